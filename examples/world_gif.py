"""Draws a GIF of a world's imagination: real play above, what the world model imagines from its start below.

    python examples/world_gif.py --model boxing --output docs/boxing.gif [--frames 128]
    python examples/world_gif.py --model FOLDER --prompts EPISODES --output out.gif

Each column starts with the 13 real frames of a prompt, which both rows show. After them the lower row is imagined under
the actions of the real play. Prompts are the world's own, or evenly spaced over the episodes of a folder.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from shared import run_example

from vidtok_plugin.video.pixels import to_uint8
from world_model import Sampler, load_world, rollout
from world_model.measures.prompts import held_out_prompts, recordings
from world_model.rollout.worlds import world_prompts

SCALE, GAP, TEXT = 3, 6, 16  # enlargement; pixels between pictures; height of a line of text
COLORS = 64
PROMPT_FRAMES = 13


def draw_gif(args: argparse.Namespace) -> None:
    model, adapter = load_world(args.model)
    length = PROMPT_FRAMES + args.frames
    takes_actions, takes_state = model.tokens.actions.kind != "none", model.config.state is not None
    sources = world_prompts(args.model)[: args.columns] if args.prompts is None else [args.prompts]
    episodes = [
        model.tokens.prepare(episode)
        for source in sources
        for episode in recordings(source, with_actions=takes_actions, with_state=takes_state)
    ]
    prompts = held_out_prompts(episodes, count=args.columns, prompt_frames=PROMPT_FRAMES, future_frames=args.frames)
    prompts = prompts.to(model.device)
    result = rollout(
        model,
        adapter,
        prompt=prompts.prompt,
        actions=prompts.actions if takes_actions else None,
        num_frames=args.frames,
        sampler=Sampler(temperature=args.temperature, top_p=args.top_p, guidance=args.guidance, seed=args.seed),
        state=prompts.prompt_state if takes_state else None,
    )
    real = to_uint8(prompts.video)
    imagined = to_uint8(result.video)
    frames = [picture(real[:, t], imagined[:, t], max(0, t - PROMPT_FRAMES + 1)) for t in range(length)]
    frames += [frames[-1]] * 10  # stay on the last one
    palette = frames[0].quantize(COLORS)
    first, *rest = [frame.quantize(COLORS, palette=palette, dither=Image.Dither.NONE) for frame in frames]
    args.output.parent.mkdir(parents=True, exist_ok=True)
    first.save(args.output, save_all=True, append_images=rest, duration=args.milliseconds, loop=0, optimize=True)
    print(f"{args.output}: {args.frames} imagined frames, {args.output.stat().st_size / 2**20:.1f} MB")


def picture(real: np.ndarray, imagined: np.ndarray, number: int) -> Image.Image:
    """Frames (columns, h, w, 3) of both rows, with their labels; `number` of imagined frames so far."""
    columns, height, width = (real.shape[0], *(SCALE * size for size in real.shape[1:3]))
    canvas = Image.new("RGB", (columns * (width + GAP) - GAP, 2 * (height + TEXT)), "black")
    draw = ImageDraw.Draw(canvas)
    draw.text((2, 2), "real play", fill="white")
    label = f"imagined: frame {number}" if number else "the same start"
    draw.text((2, height + TEXT + 2), label, fill="yellow" if number else "white")
    for row, pixels in enumerate((real, imagined)):
        for column in range(columns):
            enlarged = Image.fromarray(pixels[column]).resize((width, height), Image.Resampling.NEAREST)
            canvas.paste(enlarged, (column * (width + GAP), row * (height + TEXT) + TEXT))
    return canvas


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--model", default="boxing", metavar="WORLD", help="a shipped world or a folder (default: boxing)"
    )
    command.add_argument(
        "--prompts", type=Path, metavar="EPISODES", help="episodes to take prompts from, in place of its own"
    )
    command.add_argument("--output", type=Path, required=True, metavar="out.gif", help="the picture to write")
    command.add_argument("--frames", type=int, default=128, metavar="N", help="frames to imagine (default: 128)")
    command.add_argument("--columns", type=int, default=4, metavar="N", help="prompts side by side (default: 4)")
    command.add_argument("--milliseconds", type=int, default=60, metavar="N", help="for each frame (default: 60)")
    command.add_argument("--temperature", type=float, default=1.0, metavar="X", help="of the sampler (default: 1)")
    command.add_argument("--top-p", type=float, metavar="P", help="of the sampler (default: all tokens)")
    command.add_argument("--guidance", type=float, default=1.0, metavar="X", help="of the sampler (default: 1)")
    command.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the random numbers (default: 0)")


def main(argv: Sequence[str] | None = None) -> int:
    return run_example(draw_gif, argv, description="Draw a GIF of a world.", add_arguments=add_arguments)


if __name__ == "__main__":
    sys.exit(main())
