"""Writes the model card of an exported Boxing world: what it is, its measures, and a picture of its imagination.

    python examples/boxing_card.py FOLDER

FOLDER is what `examples/train_boxing_world.py` exports, which calls this, too. Weights and measures are only read.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from boxing_evaluation import PROMPT_FRAMES
from pictures import draw_futures
from PIL import Image
from shared import run_example

from vidtok_plugin import CardInfo
from vidtok_plugin.common.model_card import write_card
from vidtok_plugin.video.pixels import from_uint8
from vidtok_plugin.video.reading import read_frames
from world_model import Decoding, Sampler, load_world, rollout
from world_model.cards import world_facts
from world_model.rollout.files import read_actions
from world_model.rollout.worlds import world_prompts

SHOWN_CLIPS, SHOWN_FRAMES = 2, 32
COLORS = 64  # of the picture, which is a third of the size with a palette


def write_boxing_card(folder: Path) -> None:
    """Write README.md and its picture into the folder of an exported world."""
    measures = json.loads((folder / "measures.json").read_text())
    training = json.loads((folder / "training.json").read_text())
    model, adapter = load_world(folder)
    with TemporaryDirectory() as temporary:
        picture = Path(temporary) / "card.png"
        draw_world(picture, folder, Sampler(**measures["sampler"]), Decoding(**measures["decoding"]))
        info = CardInfo(
            title="A world of Atari Boxing",
            summary="Given a moment of Atari Boxing and the buttons that are pressed, it imagines how the game goes "
            "on. `world-model play` plays it in a browser.",
            data=training_data(training),
            measures=measured(measures),
            measured=f"On {measures['prompts']} prompts of {PROMPT_FRAMES} frames of held-out play, each imagined for "
            f"{measures['frames']} frames by `examples/boxing_evaluation.py`.",
            license="mit",
            picture=picture,
            caption="rows of real play, each above what the model imagines from its prompt under the same actions",
            tags=("atari", "boxing", "game"),
        )
        write_card(folder, world_facts(model.config, model.state_dict(), adapter), info)


def training_data(training: Mapping[str, Any]) -> str:
    """What it was trained on, and for how long."""
    runs = [name for name in training["batches"] if not name.startswith("own_draws_") or name == training["exported"]]
    batches = ", ".join(f"`{name}` {training['batches'][name]:,}" for name in runs)
    return (
        "Play of `ALE/Boxing-v5` that `examples/train_boxing_world.py` records: for half of the time random actions "
        "are held, for the rest the player seeks or avoids its opponent. The tokenizer is `vidtok_tiny`, trained "
        f"further on this play. Batches of each training: {batches}."
    )


def measured(measures: Mapping[str, Any]) -> dict[str, float | str]:
    """The measures, by names that tell their units."""
    named: dict[str, float | str] = {
        "tokenizer, PSNR of reconstructions, dB": measures["tokenizer_psnr"],
        "cross entropy, nats a token": measures["cross_entropy"],
    }
    for frames, value in measures["psnr_over_copy"].items():
        named[f"PSNR over the copied last frame, frames {frames.replace('_', ' to ')}, dB"] = value
    for frame, value in measures["distance"].items():
        copied = measures["distance_copy"][frame]
        named[f"distance of the player at frame {frame}, pixels"] = f"{value:.2f} (copied frame {copied:.2f})"
    named["frames with both boxers, fraction"] = measures["both_present"]
    low, high = measures["action_delta_psnr_low"], measures["action_delta_psnr_high"]
    delta = measures["action_delta_psnr"]
    named["gain of the true actions over others, PSNR, dB"] = f"{delta:.2f} (95% interval {low:.2f} to {high:.2f})"
    return named


def draw_world(path: Path, folder: Path, sampler: Sampler, decoding: Decoding) -> None:
    """Real frames above imagined ones, from prompts that come with the world."""
    model, adapter = load_world(folder)
    length = PROMPT_FRAMES + SHOWN_FRAMES
    paths = world_prompts(folder)[:SHOWN_CLIPS]
    real = from_uint8(torch.from_numpy(np.stack([read_frames(file, range(length)) for file in paths])))
    actions = torch.cat([read_actions(model, file, None, length) for file in paths])
    settings = {"sampler": sampler, "decoding": decoding, "num_frames": SHOWN_FRAMES}
    prompt = real[:, :, :PROMPT_FRAMES].to(model.device)
    made = rollout(model, adapter, prompt=prompt, actions=actions, **settings).video.cpu()
    draw_futures(path, real, made, PROMPT_FRAMES, name="imagined", clips=SHOWN_CLIPS)
    with Image.open(path) as drawn:
        drawn.convert("RGB").quantize(COLORS).save(path, optimize=True)


def main(argv: Sequence[str] | None = None) -> int:
    def add_arguments(command: argparse.ArgumentParser) -> None:
        command.add_argument("folder", type=Path, metavar="FOLDER", help="an exported world")

    def work(args: argparse.Namespace) -> None:
        write_boxing_card(args.folder)
        print(args.folder / "README.md")

    return run_example(work, argv, description="Write the card of a Boxing world.", add_arguments=add_arguments)


if __name__ == "__main__":
    sys.exit(main())
