"""The demo's pictures: real beside imagined frames, reconstructions, and curves of the training."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from vidtok_plugin import VidTok
from vidtok_plugin.metrics.psnr import frame_psnr
from vidtok_plugin.video.pixels import to_uint8
from vidtok_plugin.video.writing import write_video
from world_model.measures import CrossEntropies, Prompts
from world_model.rollout.rollout import RolloutResult

SCALE = 4  # of the frames in the video
ROWS = 4  # rollouts that are shown


def shown(prompts: Prompts) -> list[int]:
    """The rollouts that are shown: evenly spaced over all, not chosen by how they came out."""
    return np.linspace(0, len(prompts.video) - 1, min(ROWS, len(prompts.video))).round().astype(int).tolist()


def write_rollout_video(path: Path, prompts: Prompts, result: RolloutResult, *, fps: float) -> None:
    """Rollouts one after another, the real video left and the imagined right, each frame labelled."""
    frames = []
    for row in shown(prompts):
        real, imagined = to_uint8(prompts.video[row]), to_uint8(result.video[row])
        for t, (left, right) in enumerate(zip(real, imagined, strict=True)):
            state = "prompt" if t < prompts.prompt_frames else f"imagined, frame {t - prompts.prompt_frames + 1}"
            frames += [labelled(left, right, state)] * (1 if t + 1 < len(real) else int(fps))
    write_video(path, np.stack(frames), fps=fps / 2)


def labelled(left: np.ndarray, right: np.ndarray, state: str) -> np.ndarray:
    height, width = left.shape[0] * SCALE, left.shape[1] * SCALE
    canvas = Image.new("RGB", (2 * width + 8, height + 24), "black")
    for x, pixels in ((0, left), (width + 8, right)):
        canvas.paste(Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST), (x, 24))
    draw = ImageDraw.Draw(canvas)
    draw.text((6, 6), "real", fill="white")
    draw.text((width + 14, 6), state, fill="white" if state == "prompt" else "yellow")
    return np.asarray(canvas)


def draw_rollouts(path: Path, prompts: Prompts, result: RolloutResult) -> None:
    """A contact sheet: for each rollout a row of real frames and under it the imagined ones."""
    start, total = prompts.prompt_frames, prompts.video.shape[2]
    times = [start - 1, *np.linspace(start + 1, total - 1, 7).round().astype(int).tolist()]
    rows = shown(prompts)
    figure, axes = plt.subplots(2 * len(rows), len(times), figsize=(1.5 * len(times), 3.1 * len(rows)), squeeze=False)
    for i, row in enumerate(rows):
        for line, (name, video) in enumerate((("real", prompts.video), ("imagined", result.video))):
            pixels = to_uint8(video[row])
            for column, t in enumerate(times):
                axis = axes[2 * i + line][column]
                axis.imshow(pixels[t], interpolation="nearest")
                axis.set_xticks([])
                axis.set_yticks([])
                if column == 0:
                    axis.set_ylabel(name)
                if line == 0:
                    axis.set_title("end of prompt" if column == 0 else f"+{t - start + 1}", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)


def evenly(clips: Sequence[Tensor], count: int) -> list[Tensor]:
    """At most `count` of the clips, evenly spaced over all, not chosen by how they came out."""
    return [clips[i] for i in np.linspace(0, len(clips) - 1, min(count, len(clips))).round().astype(int)]


@torch.no_grad()
def draw_reconstruction(path: Path, clips: Sequence[Tensor], models: Mapping[str, VidTok]) -> None:
    """The middle frames of clips, and under them each model's reconstructions with their PSNR."""
    figure, axes = plt.subplots(
        1 + len(models), len(clips), figsize=(1.9 * len(clips), 2.05 * (1 + len(models))), squeeze=False
    )
    for row, (name, model) in enumerate({"original": None, **models}.items()):
        for axis, clip in zip(axes[row], clips, strict=True):
            middle, shown = clip.shape[1] // 2, clip
            if model is not None:
                shown = model(clip[None].to(model.device)).reconstruction[0].cpu()
                psnr = frame_psnr(clip[None], shown[None])[0, middle].item()
                axis.set_title(f"{psnr:.1f} dB", fontsize=9)
            axis.imshow(to_uint8(shown)[middle], interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
        axes[row][0].set_ylabel(name)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)


def read_curve(run: Path, name: str) -> tuple[list[int], list[float]]:
    """A measure over the steps of a run, from the CSV logs of all its parts."""
    points = {}
    for path in sorted(run.glob("logs/version_*/metrics.csv"), key=lambda p: int(p.parent.name.split("_")[1])):
        with open(path) as file:
            points |= {int(row["step"]): float(row[name]) for row in csv.DictReader(file) if row.get(name)}
    steps = sorted(points)
    return steps, [points[step] for step in steps]


def draw_curves(path: Path, tokenizer: Path, world_model: Path, entropies: CrossEntropies) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6))
    for axis, run, name in ((left, tokenizer, "psnr"), (right, world_model, "cross_entropy")):
        for split, style in (("train", {"alpha": 0.5}), ("val", {"marker": "o"})):
            axis.plot(
                *read_curve(run, f"{split}/{name}"), label={"train": "training", "val": "validation"}[split], **style
            )
        axis.set_xlabel("batches")
    left.set_ylabel("tokenizer, PSNR in dB")
    right.set_ylabel("world model, nats a token")
    right.axhline(entropies.unigram, color="gray", linestyle=":", label="unigram (test)")
    right.axhline(entropies.copy, color="gray", linestyle="--", label="copy (test)")
    for axis in (left, right):
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)
