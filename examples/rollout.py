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

import numpy as np
import torch
from torch import Tensor

from vidtok_plugin import TokenizerAdapter
from vidtok_plugin.commands import add_command, run_command
from vidtok_plugin.devices import default_device
from vidtok_plugin.video.episodes import actions_path
from vidtok_plugin.video.reading import probe, read_frames
from vidtok_plugin.video.writing import VideoWriter
from world_model import Decoding, Sampler, WorldModel, stream_rollout


def to_pixels(video: Tensor) -> np.ndarray:
    """Video (1, 3, t, h, w) in [-1, 1] -> uint8 (t, h, w, 3)."""
    pixels = ((video[0].clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return pixels.permute(1, 2, 3, 0).cpu().numpy()


def read_actions(args: argparse.Namespace, needed: int) -> Tensor:
    """The actions (1, t) or (1, t, a) of prompt and imagined frames."""
    path = args.actions or actions_path(args.prompt)
    if not path.is_file():
        raise FileNotFoundError(f"rollout: there are no actions at {path}; name a file with --actions.")
    actions = torch.from_numpy(np.load(path, allow_pickle=False))
    if len(actions) < needed:
        raise ValueError(
            f"rollout: {path} must have an action for each of {needed} frames, got {len(actions)}; lower --frames, or "
            "name a longer file with --actions."
        )
    return actions[None, :needed]


def rollout(args: argparse.Namespace) -> None:
    device = default_device()
    model = WorldModel.from_pretrained(args.model).to(device)
    adapter = TokenizerAdapter.from_pretrained(args.model / "adapter").to(device)
    info = probe(args.prompt)
    if info.num_frames < args.prompt_frames:
        raise ValueError(
            f"rollout: {args.prompt} has {info.num_frames} frames, fewer than the prompt's {args.prompt_frames}; "
            "lower --prompt-frames."
        )
    pixels = read_frames(args.prompt, range(args.prompt_frames))
    prompt = torch.from_numpy(pixels).permute(3, 0, 1, 2)[None].to(device)
    actions, policy, frames_drawn = None, None, 0
    if args.actions is not None and model.tokens.actions.kind == "none":
        raise ValueError("rollout: the world model was trained without actions; leave --actions out.")
    if model.tokens.actions.kind != "none":
        every = read_actions(args, args.prompt_frames + args.frames)
        actions = every[:, : args.prompt_frames].to(device)

        def policy(newest: Tensor) -> Tensor:
            """The file's actions of the next frames; a player would look at the newest ones."""
            start = args.prompt_frames + frames_drawn
            return every[:, start : start + adapter.temporal_factor].to(device)

    stream = stream_rollout(
        model,
        adapter,
        prompt=prompt,
        policy=policy,
        actions=actions,
        num_frames=args.frames,
        sampler=Sampler(temperature=args.temperature, seed=args.seed),
        decoding=Decoding(order=args.order, window=args.window),
    )
    begun = time.perf_counter()
    with VideoWriter(args.output, fps=info.fps) as writer:
        writer.write(pixels)
        try:
            for frames in stream:
                writer.write(to_pixels(frames))
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
    command.add_argument("--window", type=int, help="columns by which rows are apart in diagonal order")
    return run_command(parser, ["run", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    sys.exit(main())
