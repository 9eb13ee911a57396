"""`tokenize --engine ray` without Ray: actors run in this process, and are lost when a test says so."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from fake_ray import FakeRay
from recordings import contents, tiny_adapter, write_episode

from vidtok_plugin import cli
from vidtok_plugin.store import ray_engine
from vidtok_plugin.store.config import TokenizeConfig
from vidtok_plugin.store.ray_engine import MAX_FAILURES, MAX_LOSSES, Crew, ShardActor
from vidtok_plugin.store.shard_encoder import PlannedShard, ShardEncoder
from vidtok_plugin.store.tokenize import write_shards, write_store
from vidtok_plugin.video.episodes import find_episodes

TWO_MACHINES = ({"CPU": 1.0, "memory": 2e9}, {"CPU": 1.0, "memory": 4e9})
SHARDS = 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("episodes")
    for frames in range(5, 5 + SHARDS):
        write_episode(root / f"{frames}.mp4", frames)
    return root


@pytest.fixture(autouse=True)
def logging_of_pytest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_engine, "set_up_logging", lambda level: None)


def write(folder: Path, output: Path, ray: FakeRay) -> Sequence[PlannedShard]:
    """Tokenizes with the fake cluster; returns the shards in the order in which they were written."""
    written: list[PlannedShard] = []

    def engine(encoder: ShardEncoder, shards: Sequence[PlannedShard]) -> None:
        written.extend(Crew(ray, encoder.recipe(), actors=None, memory=10**9).write(shards))

    write_shards(tiny_adapter(), find_episodes(folder), output, TokenizeConfig(episodes_per_shard=1), engine)
    assert sorted({*range(len(ray.hired))} - {*ray.killed}) == []  # none is left
    return written


def test_the_shards_of_lost_actors_are_written_again(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_store(tiny_adapter(), find_episodes(folder), tmp_path / "whole", episodes_per_shard=1)

    def lost(actor: int, method: str, n: int) -> bool:
        return (actor, method, n) in {(0, "write", 1), (1, "write", 0), (2, "start", 0)}

    ray = FakeRay(TWO_MACHINES, lost)
    written = write(folder, tmp_path / "ray", ray)
    assert sorted(shard.number for shard in written) == list(range(SHARDS))
    assert contents(tmp_path / "ray") == contents(tmp_path / "whole")
    assert len(ray.hired) >= 5 and ray.most_at_once == 2
    assert caplog.text.count("its worker was lost (The machine is gone); it is written again") == 2
    assert "a worker was lost as it started (The machine is gone); starting another" in caplog.text


class Idle(ShardActor):
    """It writes nothing."""

    def start(self, recipe: Any, versions: Mapping[str, str]) -> str:
        return "here"

    def write(self, pickled: bytes) -> None:
        pass


def schedule(ray: FakeRay, monkeypatch: pytest.MonkeyPatch, actor: type[ShardActor] = Idle, **settings: Any) -> None:
    """Has shards written by actors of a class, to no store."""
    monkeypatch.setattr(ray_engine, "ShardActor", actor)
    shards = [PlannedShard(number=n, names=(f"{n}.mp4",), sources={}, path=None) for n in range(settings["shards"])]
    crew = Crew(ray, recipe=None, actors=settings.get("actors"), memory=10**9)  # type: ignore[arg-type]
    assert len(list(crew.write(shards))) == len(shards)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (
            "write",
            f"shard 0, with 0.mp4, has lost {MAX_LOSSES + 1} workers, the last one thus: The machine is gone. Check",
        ),
        ("start", f"{MAX_LOSSES + 1} workers were lost as they started: The machine is gone"),
    ],
)
def test_losses_without_end_are_an_error(monkeypatch: pytest.MonkeyPatch, method: str, message: str) -> None:
    """A shard that needs more memory than a machine has would otherwise be begun for ever."""
    ray = FakeRay(({"CPU": 1.0},), lambda actor, called, n: called == method)
    with pytest.raises(ChildProcessError, match=message):
        schedule(ray, monkeypatch, shards=3)


def test_actors_may_be_lost_for_ever_as_long_as_shards_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """On machines that others may take away, hundreds are lost in a day."""
    ray = FakeRay(TWO_MACHINES, lambda actor, method, n: (method, n) == ("write", 1))
    schedule(ray, monkeypatch, shards=50)
    assert len(ray.hired) >= 25


def test_damaged_videos_leave_the_other_shards_written(folder: Path, tmp_path: Path) -> None:
    """One damaged video among a million would otherwise stop them all."""
    episodes = find_episodes(folder)
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for episode in episodes:
        for path in episode.path.parent.glob(f"{episode.path.stem}.*"):
            (damaged / path.name).write_bytes(path.read_bytes())
    (damaged / "6.mp4").write_text("no video")
    with pytest.raises(ValueError, match=r"6\.mp4 cannot be read"):
        write(damaged, tmp_path / "store", FakeRay(TWO_MACHINES))
    (damaged / "9.mp4").write_text("no video")
    with pytest.raises(ValueError, match=r"2 of 5 shards could not be written, .* the first, shard 1: .*6\.mp4 cannot"):
        write(damaged, tmp_path / "store2", FakeRay(TWO_MACHINES))
    for name, shards in (("store", 4), ("store2", 3)):
        assert len(list((tmp_path / name).glob("tokens_*/train/shard_*"))) == shards


def test_many_failures_stop_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(Idle):
        def write(self, pickled: bytes) -> None:
            raise OSError("the disk is full")

    with pytest.raises(ValueError, match=f"{MAX_FAILURES} of 100 shards could not be written, .* the disk is full"):
        schedule(FakeRay(({"CPU": 1.0},)), monkeypatch, Failing, shards=100)


@pytest.mark.parametrize(
    ("machines", "actors", "hired", "options"),
    [
        (TWO_MACHINES, None, 2, {"num_cpus": 1, "num_gpus": 0, "memory": 10**9}),
        ([{"CPU": 9.0}], None, SHARDS, {"num_cpus": 1, "num_gpus": 0, "memory": 10**9}),
        ([{"CPU": 9.0}], 3, 3, {"num_cpus": 1, "num_gpus": 0, "memory": 10**9}),
        ([{"CPU": 64.0}, {"CPU": 9.0, "GPU": 2.0}], None, 2, {"num_cpus": 1, "num_gpus": 1, "memory": 10**9}),
        ([{"CPU": 2.0, "memory": 1e8}], None, 2, {"num_cpus": 1, "num_gpus": 0, "memory": 10**8}),
    ],
)
def test_there_is_an_actor_for_each_gpu_or_core(
    monkeypatch: pytest.MonkeyPatch, machines: Any, actors: int | None, hired: int, options: Mapping[str, int]
) -> None:
    """No more than there are shards; one that no machine had the memory for would wait for ever."""
    ray = FakeRay(machines)
    schedule(ray, monkeypatch, shards=SHARDS, actors=actors)
    assert ray.hired == [options] * hired and ray.most_at_once == hired


def test_machines_with_other_versions_are_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = iter([{"vidtok-plugin": "1", "torch": "2.8"}, {"vidtok-plugin": "1", "torch": "2.9"}])
    monkeypatch.setattr(ray_engine, "packages", lambda: next(versions))
    with pytest.raises(ValueError, match="all machines must have torch 2.8, got 2.9 in process .*; install the same"):
        write(folder, tmp_path, FakeRay(({"CPU": 1.0},)))


def test_ray_must_be_installed_and_answer_at_its_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["tokenize", str(tmp_path), "--model", "m", "--output", str(tmp_path / "store")]
    assert cli.main([*arguments, "--address", "head:6379"]) == 2
    assert "--address is that of a Ray cluster, got head:6379 with --engine local; add --eng" in capsys.readouterr().err
    url = [*arguments[:-1], "memory://store", "--engine", "ray", "--address", "head:6379"]
    assert cli.main(url) == 2
    assert "--output must be a folder that all machines of the cluster share, got memory:" in capsys.readouterr().err
    monkeypatch.setattr(ray_engine, "find_spec", lambda name: object())
    assert cli.main([*arguments, "--engine", "ray", "--address", "127.0.0.1:1"]) == 2
    assert (
        "a Ray cluster must answer at --address 127.0.0.1:1, but none does (Connection refused);"
        in capsys.readouterr().err
    )
    monkeypatch.setattr(ray_engine, "find_spec", lambda name: None)
    assert cli.main([*arguments, "--engine", "ray"]) == 2
    assert "needs Ray, which is not installed; install it on all machines with: pip inst" in capsys.readouterr().err
