"""Plots how a rollout's cost grows: time per call by length and by context, and the cache's bytes by context."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LINES = {
    "raster": ("ours", "tab:blue", "."),
    "generate()": ("HF generate()", "tab:orange", "o"),
    "raster, no cache": ("ours, no cache", "tab:gray", "."),
}
STYLES = ("-", "--", ":")  # of the batches


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Writes a PNG of rows with `axis`, `who`, `batch`, `tokens` and the measured values."""
    generated = [row for row in rows if row["axis"] == "generated"]
    context = [row for row in rows if row["axis"] == "context"]
    figure = Figure(figsize=(14, 4), dpi=100, layout="constrained")
    length, time, memory = (figure.add_subplot(1, 3, place) for place in (1, 2, 3))
    _lines(length, generated, "ms a call")
    length.axvline(generated[0]["context"] - 64, color="tab:gray", lw=1)
    length.set_title("ms per call, by tokens generated; the context is full at the line", fontsize=9)
    length.set_xlabel("tokens generated", fontsize=9)
    length.set_ylim(bottom=0)
    _lines(time, context, "ms a call")
    time.set_title("ms per call, by context", fontsize=9)
    time.set_yscale("log")
    time.yaxis.set_major_formatter(ScalarFormatter())
    time.yaxis.set_minor_formatter(ScalarFormatter())
    one = min(row["batch"] for row in context)
    _lines(memory, [row for row in context if "cache MB" in row and row["batch"] == one], "cache MB")
    memory.set_title("MB of keys and values, by context", fontsize=9)
    for axes in (time, memory):
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.set_xlabel("tokens of context", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _lines(axes: "Axes", rows: Sequence[dict[str, Any]], value: str) -> None:
    batches = sorted({row["batch"] for row in rows})
    for who, (label, colour, marker) in LINES.items():
        for batch, style in zip(batches, STYLES[: len(batches)], strict=True):
            some = [row for row in rows if row["who"] == who and row["batch"] == batch]
            if some:
                x, y = ([row[key] for row in some] for key in ("tokens", value))
                axes.plot(x, y, style, color=colour, marker=marker, mfc="none", label=f"{label}, batch {batch}")
    axes.grid(alpha=0.25, which="both")
    axes.legend(fontsize=7)
    axes.tick_params(labelsize=7, which="both")
