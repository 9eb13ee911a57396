"""How well the real game predicts itself: the bound that the opponent's luck sets for any world model of Boxing.

    python examples/boxing_luck.py EPISODES [--model boxing] [--prompts 64] [--frames 128]

At the end of each prompt, the emulator's random number generator is set to another state. Then the game goes on under
the recorded actions. This future is measured against the recorded one as if a world model had imagined it: only what
the opponent does by chance differs, and what follows from it. EPISODES is a folder of play with test/.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from boxing_evaluation import PROMPT_FRAMES
from boxing_measures import mean_distances, psnr_over_copy
from shared import run_example

from vidtok_plugin.video.episodes import RecordedEpisode, find_episodes
from vidtok_plugin.video.pixels import from_uint8
from vidtok_plugin.video.resizing import resize
from world_model import load_world
from world_model.measures.prompts import held_out_segments
from world_model.recording.game import AtariGame
from world_model.rollout.tokens import reconstruct

GENERATOR = (93, 94)  # the bytes of Boxing's memory that hold its random number generator


def play_again(episode: RecordedEpisode, start: int, frames: int, generator: Sequence[int] | None) -> np.ndarray:
    """The episode's frames from `start` on, uint8 (frames, size, size, 3), played again under its actions.

    generator: a byte for each of `GENERATOR`, set after the prompt; None leaves them as they are.
    """
    recipe = episode.meta["recipe"]
    names = ("frame_skip", "warmup", "sticky_actions", "minimal_actions")
    with AtariGame(recipe["env"], **{name: recipe[name] for name in names}) as game:
        emulator, shown = game.env.unwrapped.ale, 0  # type: ignore[attr-defined]

        def recorded_action(_: np.ndarray) -> int:
            nonlocal shown
            shown += 1
            if shown == start + PROMPT_FRAMES and generator is not None:
                for place, byte in zip(GENERATOR, generator, strict=True):
                    emulator.setRAM(place, byte)
            return int(episode.actions[shown])

        played = game.play(recorded_action, seed=episode.meta["seed"], frames=start + frames)
        kept = [frame.frame for number, frame in enumerate(played) if number >= start]
    return resize(np.stack(kept), recipe["size"], recipe["size"])


def print_luck(args: argparse.Namespace) -> None:
    episodes = find_episodes(args.episodes / "test")
    length = PROMPT_FRAMES + args.frames
    rng = np.random.default_rng(0)
    recorded, other = [], []
    for episode, start in held_out_segments(episodes, args.prompts, length):
        assert isinstance(episode, RecordedEpisode)
        recorded.append(play_again(episode, start, length, None))
        other.append(play_again(episode, start, length, rng.integers(0, 256, len(GENERATOR)).tolist()))
    real, luck = (from_uint8(torch.from_numpy(np.stack(videos))) for videos in (recorded, other))
    adapter = load_world(args.model)[1]
    future = real[:, :, PROMPT_FRAMES:]
    copied = reconstruct(adapter, real[:, :, :PROMPT_FRAMES])[:, :, -1:].expand_as(future)
    made = reconstruct(adapter, luck)[:, :, PROMPT_FRAMES:]  # seen by the tokenizer, as imagined frames are
    scores = {
        "psnr_over_copy": psnr_over_copy(made, copied, future),
        "distance": mean_distances(luck[:, :, PROMPT_FRAMES:], future),
    }
    print(json.dumps(scores, indent=2))


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("episodes", type=Path, help="a folder with test/")
    command.add_argument("--model", default="boxing", help="the world whose tokenizer is used")
    command.add_argument("--prompts", type=int, default=64)
    command.add_argument("--frames", type=int, default=128, help="frames to play on")


def main(argv: Sequence[str] | None = None) -> int:
    return run_example(print_luck, argv, description="Measure what luck does to Boxing.", add_arguments=add_arguments)


if __name__ == "__main__":
    sys.exit(main())
