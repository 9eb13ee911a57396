"""Play servers of toy worlds, and a client that does what the page does."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from recordings import tiny_adapter, write_episode
from websockets.sync.client import ClientConnection, connect
from world_models import CONFIG, TOKENS, random_model, save_tiny_world

from vidtok_plugin.video.episodes import save_episode_files
from vidtok_plugin.video.writing import write_video
from world_model.actions import ActionSpec
from world_model.play.messages import unpack_moment
from world_model.play.scenes import Scenes, load_scenes
from world_model.play.server import PlayServer


def tiny_scenes(folder: Path, fps: float = 60) -> Scenes:
    """A toy world of 16 x 16 pixels with the actions noop, left and right, and two prompts."""
    world = save_tiny_world(folder / "toy")
    for i, frames in enumerate((13, 20)):
        write_episode(folder / "toy" / "prompts" / f"prompt_{i}.mp4", frames, fps=fps)
    return load_scenes(world, device="cpu")


def vector_scenes(folder: Path) -> Scenes:
    """A toy world of 16 x 16 pixels with three continuous components and a choice of four, all with other bounds."""
    space = {
        "type": "Dict",
        "spaces": [
            ["steer", {"type": "Box", "shape": [], "low": -0.1, "high": 0.3}],
            ["gas", {"type": "Box", "shape": [], "low": 0.0, "high": 1.0}],
            ["lift", {"type": "Box", "shape": [], "low": -2.0, "high": 2.0}],
            ["gear", {"type": "Discrete", "n": 4}],
        ],
    }
    actions = ActionSpec(kind="mixed", size=4, space=space)
    model = random_model(replace(CONFIG, tokens=replace(TOKENS, width=2, temporal_factor=4, actions=actions)))
    model.save_pretrained(folder / "vectors", tiny_adapter())
    prompt = folder / "vectors" / "prompts" / "prompt_0.mp4"
    prompt.parent.mkdir()
    write_video(prompt, np.random.default_rng(0).integers(0, 256, (9, 16, 16, 3), dtype=np.uint8), fps=60)
    save_episode_files(prompt, np.zeros((9, 4), np.float32), {"fps": 60, "num_frames": 9, "action_space": space})
    return load_scenes(folder / "vectors", device="cpu")


@contextmanager
def serving(scenes: Scenes, **settings: Any) -> Iterator[PlayServer]:
    """A server in a thread of its own."""
    server = PlayServer(scenes, **settings)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join(30)
        assert not thread.is_alive()


class PlayClient:
    """A page without a browser."""

    def __init__(self, server: PlayServer, *, origin: str | None = "own", address: str | None = None) -> None:
        page = address or server.address
        own = "/".join(page.split("/")[:3])
        self.socket: ClientConnection = connect(
            page.replace("http", "ws", 1) + "play",
            origin=own if origin == "own" else origin,  # type: ignore[arg-type]
            max_size=None,
        ).__enter__()
        self.moments: list[dict[str, Any]] = []
        self.pictures: list[np.ndarray] = []  # of the imagined frames of each moment, (f h, w, 3)
        self.acknowledges = True

    def __enter__(self) -> "PlayClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, type: str, **fields: Any) -> None:
        self.socket.send(json.dumps({"type": type, **fields}))

    def receive(self, timeout: float = 60.0) -> dict[str, Any]:
        """The next message; a moment's header has the type `moment`."""
        message = self.socket.recv(timeout)
        if isinstance(message, str):
            info: dict[str, Any] = json.loads(message)
            return info
        header, strips = unpack_moment(message)
        if self.acknowledges:
            self.send("seen", moment=header["moment"])
        self.moments.append(header)
        self.pictures.append(strips[0])
        return {"type": "moment", **header}

    def wait_for(self, type: str, **fields: Any) -> dict[str, Any]:
        """The next message of a type, with these values of its fields."""
        until = time.monotonic() + 60
        while time.monotonic() < until:
            message = self.receive()
            if message["type"] == type and all(message[name] == value for name, value in fields.items()):
                return message
        raise TimeoutError(f"no {type} with {fields} in a minute")
