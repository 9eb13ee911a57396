"""The GIF of a world: one frame for each frame of video, the prompt alike in both rows."""

import importlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from recordings import write_episode
from world_models import save_tiny_world


def check_gif(path: Path, scale: int, gap: int, text: int) -> None:
    """Of two columns of 16 x 16 pixels."""
    with Image.open(path) as gif:
        size = 16 * scale
        assert gif.size == (2 * size + gap, 2 * (size + text))
        assert gif.n_frames > 8
        first = np.asarray(gif.convert("RGB"))
    top, bottom = first[text : text + size], first[size + 2 * text :]
    assert np.array_equal(top, bottom) and top.std() > 0


@pytest.mark.parametrize("own", [True, False])
def test_a_gif_shows_real_and_imagined_frames(examples_path: None, tmp_path: Path, own: bool) -> None:
    """Of the world's own prompts, or of a folder of episodes that it does not have."""
    save_tiny_world(tmp_path / "world")
    prompts = tmp_path / "world" / "prompts" if own else tmp_path / "episodes"
    prompts.mkdir()
    for number in range(2):
        write_episode(prompts / f"{number}.mp4", 21)
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
    assert script.main(argv if own else [*argv, "--prompts", str(prompts)]) == 0
    check_gif(tmp_path / "out.gif", script.SCALE, script.GAP, script.TEXT)
