"""A play server serves its page, plays with it alone, and goes on serving whatever else connects."""

import gc
import io
import json
import socket
import time
import weakref
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
from play_clients import PlayClient, serving, tiny_scenes
from websockets.exceptions import ConnectionClosed, InvalidStatus

from vidtok_plugin.video.episodes import find_episodes
from world_model.play import connection, player
from world_model.play.limits import Limits
from world_model.play.scenes import Scenes
from world_model.play.server import PlayServer

pytestmark = pytest.mark.slow  # each test waits for a server


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Scenes:
    return tiny_scenes(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def shared_server(scenes: Scenes) -> Iterator[PlayServer]:
    with serving(scenes, limits=Limits(sessions=3)) as running:
        yield running


@pytest.fixture
def server(shared_server: PlayServer) -> PlayServer:
    """The server, once the games of the test before have ended: a closed connection's game ends after its step."""
    wait_until(lambda: shared_server.games.open == 0)
    return shared_server


def status_of(address: str, host: str | None = None) -> int:
    try:
        with urlopen(Request(address, headers={"Host": host} if host else {}), timeout=30) as answer:
            return int(answer.status)
    except HTTPError as error:
        return error.code


def wait_until(reached: Any, seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < until
        time.sleep(0.02)


def plays(server: PlayServer) -> bool:
    """Whether a new client sees the game go on."""
    with PlayClient(server) as client:
        client.wait_for("hello")
        client.send("run")
        return bool(client.wait_for("moment", jump=False))


def test_the_page_and_all_its_files_come_from_this_server(server: PlayServer) -> None:
    with urlopen(server.address, timeout=30) as answer:
        page, headers = answer.read().decode(), answer.headers
    assert "default-src 'self'" in headers["Content-Security-Policy"] and headers["Referrer-Policy"] == "no-referrer"
    assert "<title>" in page and "http://" not in page and "https://" not in page
    for name in ("app.js", "actions.js", "connection.js", "screen.js", "style.css", "icon.svg"):
        assert status_of(f"{server.address}static/{name}") == 200
    assert status_of(f"{server.address}static/../server.py") == 404
    assert status_of(f"{server.address}saves/none") == 404


def test_a_client_plays_rewinds_branches_and_resets(server: PlayServer) -> None:
    with PlayClient(server) as client:
        hello = client.wait_for("hello")
        assert hello["world"] == "toy" and hello["actions"]["meanings"] == ["noop", "left", "right"]
        assert (hello["frames"], hello["fps"], hello["grid"], len(hello["prompts"])) == (4, 60, [2, 2], 2)
        assert client.wait_for("moment")["jump"]
        client.send("hold", id=1, action=2)
        client.send("step")
        first = client.wait_for("moment")
        assert (first["moment"], first["action"], first["input"], first["jump"]) == (1, 2, 1, False)
        client.send("run")
        while client.wait_for("moment")["moment"] < 6:
            pass
        client.send("pause")
        client.wait_for("state", running=False)
        client.send("rewind", moment=3)
        back = client.wait_for("moment", jump=True)
        assert back["moment"] == 3
        shown = next(i for i, header in enumerate(client.moments) if header["moment"] == 3)
        np.testing.assert_array_equal(client.pictures[-1], client.pictures[shown])
        client.send("step")
        assert client.wait_for("state", branch=1)["branches"][1]["parent"] == 0
        client.send("branch", branch=0)
        assert client.wait_for("moment", jump=True)["branch"] == 0
        client.send("sampler", temperature=0.5, guidance=1)
        client.wait_for("state", temperature=0.5)
        client.send("entropy", on=True)
        client.send("step")
        assert len(client.wait_for("moment", jump=False)["entropy"]) == 4
        client.send("reset", prompt=1)
        client.wait_for("state", prompt=1)  # in any order
        while not (client.moments[-1]["jump"] and client.moments[-1]["moments"] == [client.moments[-1]["moment"]]):
            client.receive()


def test_a_game_runs_at_its_recorded_rate(server: PlayServer) -> None:
    """No faster, however fast the machine: 15 steps of 4 frames take a second at 60 frames a second."""
    with PlayClient(server) as client:
        client.wait_for("hello")
        client.send("run")
        begun = time.monotonic()
        while not client.moments or client.moments[-1]["moment"] < 16:
            client.receive()
        assert time.monotonic() - begun > 0.9


def test_a_game_is_saved_and_downloaded(server: PlayServer, scenes: Scenes, tmp_path: Path) -> None:
    with PlayClient(server) as client:
        client.wait_for("hello")
        client.send("step")
        client.send("save")
        saved = client.wait_for("saved")
        assert "path" not in saved
        with urlopen(server.address + saved["address"], timeout=30) as answer:
            assert 'filename="played_00000.zip"' in answer.headers["Content-Disposition"]
            zipfile.ZipFile(io.BytesIO(answer.read())).extractall(tmp_path)
        assert find_episodes(tmp_path)[0].num_frames == 13 + 4
    wait_until(lambda: status_of(server.address + saved["address"]) == 404)  # it ended with the game
    with serving(scenes, output=tmp_path / "kept") as other, PlayClient(other) as client:
        client.send("save")
        assert Path(client.wait_for("saved")["path"]) == tmp_path / "kept" / "played_00000.mp4"
        assert find_episodes(tmp_path / "kept")[0].num_frames == 13


@pytest.mark.parametrize(
    "origin", [None, "http://evil.example", "http://127.0.0.1:1", "null", "http://localhost.evil.example"]
)
def test_pages_of_other_origins_cannot_play(server: PlayServer, origin: str | None) -> None:
    with pytest.raises(InvalidStatus, match="403"):
        PlayClient(server, origin=origin)
    assert server.games.open == 0


def test_a_foreign_name_for_this_machine_is_refused(server: PlayServer) -> None:
    assert status_of(server.address, host="evil.example") == 403
    assert status_of(server.address, host=f"localhost:{server.port}") == 200


def test_another_host_demands_the_token_in_the_address(scenes: Scenes) -> None:
    with serving(scenes, host="0.0.0.0") as server:
        base = f"http://127.0.0.1:{server.port}/"
        assert server.token is not None and len(server.token) >= 20 and server.address.endswith(f"/{server.token}/")
        assert status_of(base + server.token + "/") == 200
        assert status_of(base + server.token + "/static/app.js") == 200
        for address in (base, f"{base}{'x' * 22}/", base + "static/app.js", base + server.token[:-1] + "/"):
            assert status_of(address) == 403
        with pytest.raises(InvalidStatus, match="403"):
            PlayClient(server, address=base)
        with PlayClient(server, address=f"{base}{server.token}/") as client:
            assert client.wait_for("hello")["world"] == "toy"
    with serving(scenes) as server:
        assert server.token is None and server.address == f"http://127.0.0.1:{server.port}/"


def test_a_taken_port_is_named(scenes: Scenes, server: PlayServer) -> None:
    with pytest.raises(ValueError, match=f"play: port {server.port} of 127.0.0.1 must be free"):
        PlayServer(scenes, port=server.port)


def test_invalid_messages_are_answered_and_many_end_the_game(server: PlayServer) -> None:
    with PlayClient(server) as client:
        client.wait_for("hello")
        client.send("hold", id=1, action=99)
        assert "an integer in 0..2" in client.wait_for("error")["message"]
        client.send("rewind", moment=12345)
        assert "too long ago" in client.wait_for("error")["message"]
        client.send("step")  # it is still played
        client.wait_for("moment", jump=False)
        for _ in range(8):
            client.socket.send("nonsense")
        assert "no sense" in client.wait_for("ended")["reason"]
        with pytest.raises(ConnectionClosed) as closed:
            client.receive()
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1008
    assert plays(server)


@pytest.mark.parametrize("message", ["x" * 5000, b"\x00" * 5000])
def test_oversized_messages_end_the_game(server: PlayServer, message: str | bytes) -> None:
    with PlayClient(server) as client:
        client.wait_for("hello")
        client.socket.send(message)
        with pytest.raises(ConnectionClosed) as closed:
            while True:
                client.receive()
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1009
    wait_until(lambda: server.games.open == 0)
    assert plays(server)


def test_binary_and_broken_frames_leave_it_serving(server: PlayServer) -> None:
    with PlayClient(server) as client:
        client.wait_for("hello")
        client.socket.send(b"\x01\x02")
        assert "must be text" in client.wait_for("error")["message"]
    with PlayClient(server) as client:
        client.wait_for("hello")
        client.socket.socket.sendall(b"\xff" * 64)  # not a websocket frame
        with pytest.raises(ConnectionClosed):
            while True:
                client.receive()
    with socket.create_connection(("127.0.0.1", server.port)) as raw:
        raw.sendall(b"GET / HTTP/9.9\r\n\x00\r\n\r\n")
        assert b"400" in raw.recv(4096)
    assert plays(server)


def test_sessions_are_capped_and_a_hundred_connections_leave_it_serving(server: PlayServer) -> None:
    clients = [PlayClient(server) for _ in range(3)]
    for client in clients:
        client.wait_for("hello")
    for _ in range(100):
        with PlayClient(server) as client:
            assert "3 games are being played already" in client.receive()["reason"]
    assert server.games.open == 3
    for client in clients:
        client.send("step")
        client.wait_for("moment", jump=False)
        client.socket.close()
    wait_until(lambda: server.games.open == 0)
    assert plays(server)


def test_connections_without_a_request_are_closed(scenes: Scenes) -> None:
    with serving(scenes, limits=Limits(connections=20, request_seconds=1.0)) as server:
        silent = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(100)]
        for connected in silent:
            connected.settimeout(30)
            assert connected.recv(1) == b""  # those beyond the limit at once, the others after a second
            connected.close()
        assert plays(server)


def test_clients_that_vanish_end_their_games(scenes: Scenes) -> None:
    with serving(scenes, limits=Limits(ping_seconds=0.5)) as server:
        gone = PlayClient(server)
        gone.wait_for("hello")
        gone.send("run")
        assert server.games.open == 1
        gone.socket.socket.shutdown(socket.SHUT_RDWR)  # without a word
        wait_until(lambda: server.games.open == 0)
        frozen = socket.create_connection(("127.0.0.1", server.port))  # answers no ping
        key, origin = "dGhlIHNhbXBsZSBub25jZQ==", f"http://127.0.0.1:{server.port}"
        frozen.sendall(
            f"GET /play HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Origin: {origin}\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        wait_until(lambda: server.games.open == 1)
        wait_until(lambda: server.games.open == 0)
        frozen.close()
        assert plays(server)


def test_idle_games_end_and_free_their_memory(scenes: Scenes, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[Any]] = []

    class Watched(player.PlaySession):
        def __init__(self, *args: Any, **settings: Any) -> None:
            super().__init__(*args, **settings)
            made.append(weakref.ref(self))
            made.append(weakref.ref(self.live))

    monkeypatch.setattr(player, "PlaySession", Watched)
    with serving(scenes, limits=Limits(idle_seconds=1.0)) as server, PlayClient(server) as client:
        client.wait_for("hello")
        client.send("run")
        assert "Nobody played for 1 seconds" in client.wait_for("ended")["reason"]
        wait_until(lambda: server.games.open == 0)
        gc.collect()
        assert len(made) == 2 and all(reference() is None for reference in made)


def test_a_slow_client_gets_the_newest_frames(server: PlayServer) -> None:
    """Without a word from it, no more than a few moments are under way; then comes the newest, and none in between."""
    with PlayClient(server) as client:
        client.acknowledges = False
        client.wait_for("hello")
        client.send("run")
        time.sleep(2.0)
        client.send("pause")
        while client.receive()["type"] != "state" or len(client.moments) < player.IN_FLIGHT:
            pass
        sent = [header["moment"] for header in client.moments]
        assert sent == [0, 1, 2]
        client.send("seen", moment=2)
        newest = client.wait_for("moment")["moment"]
        assert newest > 3  # those between were never sent
        client.send("seen", moment=newest)
        client.send("step")
        assert client.wait_for("moment")["moment"] == newest + 1


def test_a_flood_of_messages_is_refused_and_the_game_goes_on(server: PlayServer) -> None:
    with PlayClient(server) as client:
        client.wait_for("hello")
        client.send("run")
        for i in range(500):
            client.send("hold", id=i + 1, action=i % 3)
        moment = client.wait_for("moment", input=500)
        assert moment["action"] == 499 % 3


def test_an_error_in_a_game_ends_that_game_alone(
    server: PlayServer, scenes: Scenes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("the accelerator is gone")

    with PlayClient(server) as client, PlayClient(server) as other:
        client.wait_for("hello")
        other.wait_for("hello")
        with monkeypatch.context() as patch:
            patch.setattr(player.PlaySession, "advance", broken)
            client.send("step")
            assert "ended by an error" in client.wait_for("ended")["reason"]
        assert "the accelerator is gone" in caplog.text
        other.send("step")
        other.wait_for("moment", jump=False)


def test_a_game_that_cannot_be_written_says_so(server: PlayServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(connection, "save_recording", full)
    with PlayClient(server) as client:
        client.send("save")
        assert "No space left" in client.wait_for("error")["message"]
        client.send("step")
        client.wait_for("moment", jump=False)


def test_messages_are_small() -> None:
    """What the page sends fits the limit with room to spare."""
    assert len(json.dumps({"type": "hold", "id": 2**40, "action": [-0.123456789012345] * 64})) < 4096 / 2
