"""Curves of a run, as one picture: every scalar of its log over the batches."""

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

SECONDS_BETWEEN = 120.0  # a drawing takes one or two
FIRST = (
    *("loss", "psnr", "lpips", "l1", "cross_entropy", "accuracy", "codebook_usage", "codebook_perplexity"),
    *("logits", "hinge", "grad_norm", "lr", "clips_per_second", "windows_per_second", "data_wait", "collapsed"),
)
FAMILIES = ("logits", "grad_norm", "lr")  # scalars whose names begin so share a panel
LOGARITHMIC = ("grad_norm",)
COLUMNS = 4
SMOOTHED = 40  # points from which on a mean is drawn over them
COLOURS = {"train": ("tab:blue", "tab:red", "tab:green", "tab:purple"), "val": ("tab:orange", "tab:olive", "tab:brown")}


class Curves(pl.Callback):
    """Draws the curves to `path`: after validations and in between, at most every two minutes, and at the end.

    The scalars are those that go to the log, whatever the loggers. A file of the same name, but in `.jsonl`, keeps them
    all, so that a resumed run's curves begin at its first batch; what was logged after the checkpoint that it goes on
    from is taken out.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.scalars = Scalars(path.with_suffix(".jsonl"))

    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self.drawn = time.monotonic()
        if trainer.is_global_zero:
            self.scalars.go_on(trainer.global_step)

    # Lightning asks callbacks in their order: this one comes after all that log.

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if at_log_step(trainer):
            self._note(trainer, "train/")

    def on_validation_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._note(trainer, "val/")

    def on_train_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.is_global_zero:
            self._draw()

    def _note(self, trainer: pl.Trainer, prefix: str) -> None:
        if not trainer.is_global_zero:
            return
        metrics = {name: value.item() for name, value in trainer.logged_metrics.items() if name.startswith(prefix)}
        self.scalars.add(trainer.global_step, metrics)
        if time.monotonic() - self.drawn >= SECONDS_BETWEEN:
            self._draw()

    def _draw(self) -> None:
        if self.scalars.series:
            draw_curves(self.path, self.scalars.series)
        self.drawn = time.monotonic()


def draw_curves(path: Path, series: Mapping[str, Series]) -> None:
    """Writes a PNG with a panel for each scalar, of training and validation together; relatives share one."""
    # Here, since it takes half a second that other uses of the package need not spend.
    from matplotlib.figure import Figure

    panels: dict[str, list[str]] = {}
    for name in sorted(series):
        panels.setdefault(panel_of(name), []).append(name)
    order = sorted(panels, key=lambda panel: (FIRST.index(panel) if panel in FIRST else len(FIRST), panel))
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
    """The title of the panel that a scalar is in.

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
        colour = COLOURS[kind][used[kind] % len(COLOURS[kind])]
        used[kind] += 1
        own = base.removeprefix(panel).removesuffix(panel).strip("_") or "model"
        label = kind if validated else own
        few = len(line.steps) < SMOOTHED
        style = "-" if kind == "train" and len(line.steps) > 1 else "o-"
        if few:
            axes.plot(line.steps, line.values, style, color=colour, ms=3, lw=1, label=label)
        else:
            axes.plot(line.steps, line.values, color=colour, lw=1, alpha=0.3)
            axes.plot(line.steps, smoothed(line.values), color=colour, lw=1.5, label=label)
    if len(lines) > 1:
        axes.legend(fontsize=7, loc="best", framealpha=0.6)


def smoothed(values: list[float]) -> np.ndarray:
    """The mean of each value and its neighbours, a twentieth of all together; those that are no numbers don't count."""
    reach = max(1, len(values) // 40)
    numbers = np.asarray(values)
    known = np.isfinite(numbers)
    window = np.ones(2 * reach + 1)
    count = np.convolve(known, window, "same")
    total = np.convolve(np.where(known, numbers, 0.0), window, "same")
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
