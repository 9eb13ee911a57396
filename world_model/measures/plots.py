"""Plots of a validation: measures along the horizon, by position in the grid, and drift."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vidtok_plugin.common.atomic_files import atomic_write
from world_model.measures.drift import TITLES
from world_model.measures.report import Report

Draw = Callable[[Axes], None]
LINES = {"": ("world model", "tab:blue", "-"), "unigram_": ("unigram", "gray", ":"), "copy_": ("copy", "gray", "--")}
FRAME_LINES = {
    "tokenizer_": ("tokenizer alone", "tab:green", "-."),
    "": ("imagined", "tab:blue", "-"),
    "copy_": ("last frame copied", "gray", "--"),
}
STEP_PANELS = (
    ("cross_entropy", "cross entropy, nats per token"),
    ("accuracy", "accuracy"),
    ("flow_loss", "flow-matching loss"),
)
FRAME_PANELS = (("psnr", "PSNR, dB"), ("ssim", "SSIM"), ("lpips", "LPIPS"))
POSITION_PANELS = (
    ("accuracy_by_position", "accuracy"),
    ("copy_accuracy_by_position", "accuracy of copying"),
    ("cross_entropy_by_position", "cross entropy, nats"),
    ("flow_loss_by_position", "flow-matching loss"),
)


def write_plots(report: Report, folder: str | Path) -> list[Path]:
    """Draw `horizon.png`, `positions.png` and `drift.png`, if there is anything to show; -> the files written."""
    folder = Path(folder)
    forced, prompted, free = (report.regimes[r].values for r in ("teacher_forced", "prompt_then_free", "free_running"))
    pictures: dict[str, list[Draw]] = {
        "horizon.png": [*_step_panels(forced), *_frame_panels(prompted)],
        "positions.png": _position_panels(forced),
        "drift.png": _drift_panels(free),
    }
    written = []
    for name, panels in pictures.items():
        if panels:
            written.append(folder / name)
            _save(panels, written[-1])
    return written


def _step_panels(values: Any) -> list[Draw]:
    return [
        _series_panel(title, "latent steps of context", _lines(values, LINES, name, "by_step"))
        for name, title in STEP_PANELS
        if f"{name}_by_step" in values
    ]


def _frame_panels(values: Any) -> list[Draw]:
    return [
        _series_panel(title, "frames after the prompt", _lines(values, FRAME_LINES, name, "by_frame"))
        for name, title in FRAME_PANELS
        if f"{name}_by_frame" in values
    ]


def _lines(values: Any, styles: Any, name: str, by: str) -> list[tuple[tuple[str, str, str], list[float]]]:
    found = ((style, values.get(f"{prefix}{name}_{by}")) for prefix, style in styles.items())
    return [(style, series) for style, series in found if series is not None]


def _series_panel(title: str, x: str, lines: Sequence[tuple[tuple[str, str, str], list[float]]]) -> Draw:
    def draw(axes: Axes) -> None:
        for (label, color, style), series in lines:
            axes.plot(range(1, len(series) + 1), series, style, color=color, marker=".", label=label)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel(x, fontsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8)

    return draw


def _position_panels(values: Any) -> list[Draw]:
    def panel(name: str, title: str) -> Draw:
        def draw(axes: Axes) -> None:
            limits = (0.0, 1.0) if "accuracy" in name else (None, None)
            image = axes.imshow(values[name], vmin=limits[0], vmax=limits[1], cmap="viridis")
            axes.set_title(title, fontsize=10)
            axes.set_xlabel("column", fontsize=9)
            axes.set_ylabel("row", fontsize=9)
            axes.get_figure().colorbar(image, ax=axes, shrink=0.8)  # type: ignore[union-attr]

        return draw

    return [panel(name, title) for name, title in POSITION_PANELS if name in values]


def _drift_panels(values: Any) -> list[Draw]:
    def panel(name: str, title: str) -> Draw:
        def draw(axes: Axes) -> None:
            real = values[f"real_{name}"]
            axes.axhspan(min(real), max(real), color="tab:green", alpha=0.2, label="real play, minimum to maximum")
            axes.axhline(sum(real) / len(real), color="tab:green", lw=1)
            axes.plot(values["frames"], values[name], color="tab:blue", marker=".", label="imagined")
            axes.set_title(title, fontsize=10)
            axes.set_xlabel("frames imagined", fontsize=9)
            axes.grid(alpha=0.25)
            axes.legend(fontsize=8)

        return draw

    return [panel(name, title) for name, title in TITLES.items() if name in values]


def _save(panels: Sequence[Draw], path: Path) -> None:
    columns = min(2 if len(panels) == 4 else 3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.2 * rows), dpi=100, layout="constrained")
    for index, draw in enumerate(panels, start=1):
        draw(figure.add_subplot(rows, columns, index))
    with atomic_write(path) as partial:
        figure.savefig(partial, format="png")
