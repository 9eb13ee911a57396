"""The examples' pictures: real above generated frames, reconstructions, and training curves."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from vidtok_plugin import VidTok
from vidtok_plugin.metrics.psnr import frame_psnr
from vidtok_plugin.video.pixels import to_uint8
from world_model.measures import CrossEntropies

T = TypeVar("T")


def evenly_spaced(items: Sequence[T], max_count: int) -> list[T]:
    """At most `max_count` items, evenly spaced, so that pictures show no selection by result."""
    count = min(max_count, len(items))
    return [items[i] for i in np.linspace(0, len(items) - 1, count).round().astype(int)]


def draw_futures(path: Path, real: Tensor, made: Tensor, prompt_frames: int, *, name: str, clips: int) -> None:
    """A contact sheet of some clips (b, 3, t, h, w): a row of real frames, and below it the frames that were made."""
    rows = evenly_spaced(range(len(real)), clips)
    times = [prompt_frames - 1, *np.linspace(prompt_frames, real.shape[2] - 1, 7).round().astype(int).tolist()]
    times = sorted(set(times))  # a short future has fewer frames than columns
    figure, axes = plt.subplots(2 * len(rows), len(times), figsize=(1.5 * len(times), 3.1 * len(rows)), squeeze=False)
    for index, row in enumerate(rows):
        for axis_row, label, video in zip(axes[2 * index : 2 * index + 2], ("real", name), (real, made), strict=True):
            pixels = to_uint8(video[row])
            for axis, t in zip(axis_row, times, strict=True):
                show_frame(axis, pixels[t])
            axis_row[0].set_ylabel(label)
        for axis, t in zip(axes[2 * index], times, strict=True):
            axis.set_title("end of prompt" if t < prompt_frames else f"+{t - prompt_frames + 1}", fontsize=9)
    save(figure, path)


@torch.no_grad()
def draw_reconstruction(path: Path, clips: Sequence[Tensor], models: Mapping[str, VidTok]) -> None:
    """The middle frames of some clips, and below them each model's reconstructions with their PSNR."""
    size = (1.9 * len(clips), 2.05 * (1 + len(models)))
    figure, axes = plt.subplots(1 + len(models), len(clips), figsize=size, squeeze=False)
    for axis_row, (name, model) in zip(axes, {"original": None, **models}.items(), strict=True):
        for axis, clip in zip(axis_row, clips, strict=True):
            middle, shown = clip.shape[1] // 2, clip
            if model is not None:
                shown = model(clip[None].to(model.device)).reconstruction[0].cpu()
                psnr = frame_psnr(clip[None], shown[None])[0, middle].item()
                axis.set_title(f"{psnr:.1f} dB", fontsize=9)
            show_frame(axis, to_uint8(shown)[middle])
        axis_row[0].set_ylabel(name)
    save(figure, path)


def draw_curves(path: Path, tokenizer: Path, world_model: Path, entropies: CrossEntropies) -> None:
    """The training curves of the runs in two folders, and the baselines of the world model."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6))
    for axis, run, name in ((left, tokenizer, "psnr"), (right, world_model, "cross_entropy")):
        axis.plot(*read_curve(run, f"train/{name}"), label="training", alpha=0.5)
        axis.plot(*read_curve(run, f"val/{name}"), label="validation", marker="o")
        axis.set_xlabel("batches")
    left.set_ylabel("tokenizer, PSNR in dB")
    right.set_ylabel("world model, nats per token")
    right.axhline(entropies.unigram, color="gray", linestyle=":", label="unigram (test)")
    right.axhline(entropies.copy, color="gray", linestyle="--", label="copy (test)")
    for axis in (left, right):
        axis.legend()
    save(figure, path)


def read_curve(run: Path, name: str) -> tuple[list[int], list[float]]:
    """A measure by training step, from the CSV logs of a run; each resumption wrote a log of its own."""
    points = {}
    for path in sorted(run.glob("logs/version_*/metrics.csv"), key=lambda p: int(p.parent.name.split("_")[1])):
        with open(path) as file:
            points |= {int(row["step"]): float(row[name]) for row in csv.DictReader(file) if row.get(name)}
    steps = sorted(points)
    return steps, [points[step] for step in steps]


def show_frame(axis: plt.Axes, pixels: np.ndarray) -> None:
    axis.imshow(pixels, interpolation="nearest")
    axis.set_xticks([])
    axis.set_yticks([])


def save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)
