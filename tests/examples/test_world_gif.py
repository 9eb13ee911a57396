"""The GIF of a world: one frame for each frame of video, the prompt alike in both rows."""

import importlib
from pathlib import Path

import numpy as np
from PIL import Image
from recordings import tiny_adapter, write_episode

from world_model import ActionSpec, TokenSpec, TransformerConfig, WorldModel, WorldModelConfig


def test_a_gif_shows_real_and_imagined_frames(examples_path: None, tmp_path: Path) -> None:
    tokens = TokenSpec(
        codebook_size=12,
        height=2,
        width=2,
        temporal_factor=4,
        fsq_levels=(4, 3),
        actions=ActionSpec(kind="discrete", size=3),
    )
    config = WorldModelConfig(tokens=tokens, max_steps=6, transformer=TransformerConfig(width=24, depth=1, heads=2))
    WorldModel(config).save_pretrained(tmp_path / "world", tiny_adapter())
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
