"""Imagines how a video continues under a sequence of actions, and writes the frames as they are drawn.

    python examples/rollout.py --model runs/demo/world_model/model --output imagined.mp4 \\
        --prompt runs/demo/episodes/test/episode_00000.mp4 [--actions other.actions.npy] [--frames 128]

The model's folder holds its adapter. The actions, one for each frame of the prompt and of the future, come from the
file next to the video unless `--actions` gives another. Stop at any time with Ctrl-C: the frames imagined so far are
kept.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from shared import run_example
from torch import Tensor

from vidtok_plugin.video.pixels import to_uint8
from vidtok_plugin.video.writing import VideoWriter
from world_model import Decoding, Sampler, load_world, stream_rollout
from world_model.rollout.files import as_video, read_actions, read_prompt


def rollout(args: argparse.Namespace) -> None:
    """Load model and prompt, then draw and write the frames step by step."""
    model, adapter = load_world(args.model)
    pixels, fps = read_prompt(args.prompt, args.prompt_frames)
    actions = read_actions(model, args.prompt, args.actions, args.prompt_frames + args.frames)
    frames_drawn = 0

    def next_actions(newest: Tensor) -> Tensor:
        """The file's actions for the next frames. A player would choose them after seeing the newest frames."""
        start = args.prompt_frames + frames_drawn
        assert actions is not None
        return actions[:, start : start + adapter.temporal_factor]

    stream = stream_rollout(
        model,
        adapter,
        prompt=as_video(pixels, model.device),
        policy=None if actions is None else next_actions,
        actions=None if actions is None else actions[:, : args.prompt_frames],
        num_frames=args.frames,
        sampler=Sampler(temperature=args.temperature, seed=args.seed),
        decoding=Decoding(order=args.order, diagonal_offset=args.diagonal_offset),
    )
    start_time = time.perf_counter()
    with VideoWriter(args.output, fps=fps, playable=True) as writer:
        writer.write(pixels)
        try:
            for frames in stream:
                writer.write(to_uint8(frames[0]))
                frames_drawn += frames.shape[2]
                rate = frames_drawn / (time.perf_counter() - start_time)
                progress = f"\r{frames_drawn} of {args.frames} frames, {rate:.1f} per second on {model.device}"
                print(progress, end="", flush=True)
        except KeyboardInterrupt:
            print("\nstopped", end="")
    print(f"\n{args.output}: {args.prompt_frames} frames of the prompt, {frames_drawn} imagined")


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--model",
        required=True,
        metavar="WORLD",
        help="a shipped world (boxing), a saved model's folder, or a hub repository",
    )
    command.add_argument("--prompt", type=Path, required=True, metavar="clip.mp4", help="the video to continue")
    command.add_argument("--actions", type=Path, metavar="clip.actions.npy", help="default: the file beside the prompt")
    command.add_argument("--output", type=Path, required=True, metavar="out.mp4", help="the video to write")
    command.add_argument(
        "--prompt-frames", type=int, default=13, metavar="N", help="frames of the prompt to use (default: 13)"
    )
    command.add_argument("--frames", type=int, default=64, metavar="N", help="frames to imagine (default: 64)")
    command.add_argument(
        "--temperature", type=float, default=0.7, metavar="X", help="0 draws the likeliest tokens (default: 0.7)"
    )
    command.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the random numbers (default: 0)")
    command.add_argument("--order", choices=("raster", "diagonal", "masked"), help="default: as the model was trained")
    command.add_argument(
        "--diagonal-offset", type=int, metavar="N", help="diagonal order: columns between rows (default: 1)"
    )


def main(argv: Sequence[str] | None = None) -> int:
    return run_example(rollout, argv, description="Imagine how a video continues.", add_arguments=add_arguments)


if __name__ == "__main__":
    sys.exit(main())
