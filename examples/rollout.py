"""A saved world model imagines how a video goes on under a sequence of actions, and writes the video as it goes.

    python examples/rollout.py --model runs/demo/world_model/model --output imagined.mp4 \\
        --prompt runs/demo/episodes/test/episode_00000.mp4 [--actions other.actions.npy] [--frames 128]

The folder of the model holds its adapter. The prompt's actions, and those that the imagined frames follow, are the file
beside the video unless another is named: one action for each frame, from the video's first on. Frames are written as
soon as they are drawn, on a GPU where there is one; stop it at any time with Ctrl-C, and what was imagined by then is
kept.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from vidtok_plugin.common.commands import add_command, run_command
from vidtok_plugin.common.devices import default_device
from vidtok_plugin.video.pixels import to_uint8
from vidtok_plugin.video.writing import VideoWriter
from world_model import Decoding, Sampler, stream_rollout
from world_model.rollout.files import as_batch, load_model, read_actions, read_prompt


def rollout(args: argparse.Namespace) -> None:
    device = default_device()
    model, adapter = load_model(args.model, device)
    pixels, fps = read_prompt(args.prompt, args.prompt_frames)
    every = read_actions(model, args.prompt, args.actions, args.prompt_frames + args.frames)
    frames_drawn = 0

    def next_actions(newest: Tensor) -> Tensor:
        """The file's actions of the next frames; a player would look at the newest ones."""
        start = args.prompt_frames + frames_drawn
        return every[:, start : start + adapter.temporal_factor]

    stream = stream_rollout(
        model,
        adapter,
        prompt=as_batch(pixels).to(device),
        policy=None if every is None else next_actions,
        actions=None if every is None else every[:, : args.prompt_frames],
        num_frames=args.frames,
        sampler=Sampler(temperature=args.temperature, seed=args.seed),
        decoding=Decoding(order=args.order, diagonal_offset=args.diagonal_offset),
    )
    begun = time.perf_counter()
    with VideoWriter(args.output, fps=fps) as writer:
        writer.write(pixels)
        try:
            for frames in stream:
                writer.write(to_uint8(frames[0]))
                frames_drawn += frames.shape[2]
                rate = frames_drawn / (time.perf_counter() - begun)
                print(f"\r{frames_drawn} of {args.frames} frames, {rate:.1f} a second on {device}", end="", flush=True)
        except KeyboardInterrupt:
            print("\nstopped", end="")
    print(f"\n{args.output}: {args.prompt_frames} frames of the prompt, {frames_drawn} imagined")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="rollout.py", description="Imagine how a video goes on.")
    command = add_command(parser.add_subparsers(), "run", rollout, "roll out a saved world model")
    command.add_argument("--model", type=Path, required=True, metavar="FOLDER")
    command.add_argument("--prompt", type=Path, required=True, metavar="clip.mp4")
    command.add_argument("--actions", type=Path, metavar="clip.actions.npy", help="default: the file beside the prompt")
    command.add_argument("--output", type=Path, required=True, metavar="out.mp4")
    command.add_argument("--prompt-frames", type=int, default=13, help="frames taken from the prompt's start")
    command.add_argument("--frames", type=int, default=64, help="frames to imagine")
    command.add_argument("--temperature", type=float, default=0.7)
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--order", choices=("raster", "diagonal", "masked"), help="default: as the model was trained")
    command.add_argument("--diagonal-offset", type=int, help="columns by which rows are apart in diagonal order")
    return run_command(parser, ["run", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    sys.exit(main())
