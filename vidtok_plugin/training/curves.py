"""Curves: one picture of every logged scalar of a run, over the batches."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import numpy as np

from vidtok_plugin.common.atomic_files import atomic_write
from vidtok_plugin.training.log_steps import at_log_step
from vidtok_plugin.training.scalars import Scalars, Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SECONDS_BETWEEN = 120.0  # drawing takes one or two seconds
ORDER = (  # panels in this order, the rest after them by name
    *("loss", "psnr", "lpips", "l1", "cross_entropy", "accuracy", "codebook_usage", "codebook_perplexity"),
    *("logits", "hinge", "grad_norm", "lr", "clips_per_second", "windows_per_second", "data_wait", "collapsed"),
)
FAMILIES = ("logits", "grad_norm", "lr")  # scalars with these prefixes share a panel
LOGARITHMIC = ("grad_norm",)
COLUMNS = 4
MIN_SMOOTHED = 40  # points from which on a moving average is drawn as well
COLORS = {"train": ("tab:blue", "tab:red", "tab:green", "tab:purple"), "val": ("tab:orange", "tab:olive", "tab:brown")}


class Curves(pl.Callback):
    """Plots the logged scalars to `path`, at most every two minutes and at the end of training.

    It needs no logger. A `.jsonl` file of the same name keeps all points, so that the curves of a resumed run start at
    its first batch. Points logged after the checkpoint that it resumes from are dropped. A dry run (`fast_dev_run`)
    writes nothing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.scalars = Scalars(path.with_suffix(".jsonl"))

    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self.drawn = time.monotonic()
        if _writes(trainer):
            self.scalars.resume(trainer.global_step)

    # Lightning calls callbacks in order: this one must come after all that log.

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if at_log_step(trainer):
            self._note(trainer, "train/")

    def on_validation_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._note(trainer, "val/")

    def on_train_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if _writes(trainer):
            self._draw()

    def _note(self, trainer: pl.Trainer, prefix: str) -> None:
        if not _writes(trainer):
            return
        metrics = {name: value.item() for name, value in trainer.logged_metrics.items() if name.startswith(prefix)}
        self.scalars.add(trainer.global_step, metrics)
        if time.monotonic() - self.drawn >= SECONDS_BETWEEN:
            self._draw()

    def _draw(self) -> None:
        if self.scalars.series:
            draw_curves(self.path, self.scalars.series)
        self.drawn = time.monotonic()


def _writes(trainer: pl.Trainer) -> bool:
    return trainer.is_global_zero and not trainer.fast_dev_run  # type: ignore[attr-defined]


def draw_curves(path: Path, series: Mapping[str, Series]) -> None:
    """Writes a PNG with one panel per scalar; training and validation, and scalars of one family, share a panel."""
    # Imported here: it takes half a second, which only this function needs.
    from matplotlib.figure import Figure

    panels: dict[str, list[str]] = {}
    for name in sorted(series):
        panels.setdefault(panel_of(name), []).append(name)
    order = sorted(panels, key=lambda panel: (ORDER.index(panel) if panel in ORDER else len(ORDER), panel))
    rows = -(-len(order) // COLUMNS)
    height = 2.1 * rows
    figure = Figure(figsize=(3.6 * COLUMNS, height), dpi=100)
    figure.subplots_adjust(left=0.04, right=0.99, bottom=0.4 / height, top=1 - 0.25 / height, hspace=0.35, wspace=0.2)
    end = max(line.steps[-1] for line in series.values())
    for place, panel in enumerate(order):
        axes = figure.add_subplot(rows, COLUMNS, place + 1)
        axes.set_title(panel.replace("_", " "), fontsize=9)
        axes.tick_params(labelsize=7)
        axes.set_xlim(0, 1.02 * end)
        axes.grid(alpha=0.25)
        if panel in LOGARITHMIC:
            axes.set_yscale("log")
        if panel == "collapsed":
            axes.set_ylim(-0.1, 1.1)
        if place + COLUMNS >= len(order):
            axes.set_xlabel("batches", fontsize=7)
        _draw_panel(axes, panel, {name: series[name] for name in panels[panel]})
    with atomic_write(path) as partial:
        figure.savefig(partial, format="png")


def panel_of(name: str) -> str:
    """The name of the panel that a scalar is drawn in.

    Example:
        >>> [panel_of(name) for name in ("val/psnr", "train/logits_real", "train/lr", "train/codebook_collapsed")]
        ['psnr', 'logits', 'lr', 'collapsed']
    """
    base = name.split("/", 1)[-1]
    if base.endswith("_collapsed"):
        return "collapsed"
    return next((family for family in FAMILIES if base == family or base.startswith(f"{family}_")), base)


def _draw_panel(axes: "Axes", panel: str, lines: Mapping[str, Series]) -> None:
    used = {"train": 0, "val": 0}
    validated = any(name.startswith("val/") for name in lines)
    for name, line in lines.items():
        kind, _, base = name.partition("/")
        color = COLORS[kind][used[kind] % len(COLORS[kind])]
        used[kind] += 1
        label = kind if validated else base.removeprefix(panel).removesuffix(panel).strip("_") or "model"
        if len(line.steps) < MIN_SMOOTHED:
            style = "-" if kind == "train" and len(line.steps) > 1 else "o-"
            axes.plot(line.steps, line.values, style, color=color, ms=3, lw=1, label=label)
        else:
            axes.plot(line.steps, line.values, color=color, lw=1, alpha=0.3)
            axes.plot(line.steps, smoothed(line.values), color=color, lw=1.5, label=label)
    if len(lines) > 1:
        axes.legend(fontsize=7, loc="best", framealpha=0.6)


def smoothed(values: list[float]) -> np.ndarray:
    """The moving average over a twentieth of the values, centered; NaN and infinite values are left out."""
    numbers = np.asarray(values)
    finite = np.isfinite(numbers)
    window = np.ones(2 * max(1, len(values) // 40) + 1)
    count = np.convolve(finite, window, "same")
    total = np.convolve(np.where(finite, numbers, 0.0), window, "same")
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
