"""The GIF of a world: one frame for each frame of video, the prompt alike in both rows."""

import importlib
from pathlib import Path

import numpy as np
from PIL import Image
from recordings import write_episode
from world_models import save_tiny_world


def test_a_gif_shows_real_and_imagined_frames(examples_path: None, tmp_path: Path) -> None:
    save_tiny_world(tmp_path / "world")
    (tmp_path / "world" / "prompts").mkdir()
    for number in range(2):
        write_episode(tmp_path / "world" / "prompts" / f"{number}.mp4", 21)
    script = importlib.import_module("world_gif")
    argv = [
        "--model",
        str(tmp_path / "world"),
        "--output",
        str(tmp_path / "out.gif"),
        "--frames",
        "8",
        "--columns",
        "2",
    ]
    assert script.main(argv) == 0
    with Image.open(tmp_path / "out.gif") as gif:
        size = 16 * script.SCALE
        assert gif.size == (2 * size + script.GAP, 2 * (size + script.TEXT))
        assert gif.n_frames > 8
        first = np.asarray(gif.convert("RGB"))
    top, bottom = first[script.TEXT : script.TEXT + size], first[size + 2 * script.TEXT :]
    assert np.array_equal(top, bottom) and top.std() > 0
