"""The result of a validation: every number under its regime, as JSON and as a table.

teacher_forced      each token is predicted from the real ones before it
prompt_then_free    a real prompt goes on freely under the real actions, and is compared with what came, frame by
                    frame
free_running        rollouts far beyond their prompt, whose stretches are compared with real play by statistics
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.markup import escape
from rich.table import Table

from vidtok_plugin.common.atomic_files import atomic_write

REPORT_FILE = "validation.json"
Regime = Literal["teacher_forced", "prompt_then_free", "free_running"]
REGIMES: tuple[Regime, ...] = ("teacher_forced", "prompt_then_free", "free_running")


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the table: the world model's number, from the first to the last of its horizon, and others'."""

    name: str
    value: str
    horizon: str = ""
    compared: str = ""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was measured in one regime."""

    values: Mapping[str, Any]  # name -> number, or list by horizon or by place
    rows: Sequence[Row] = ()
    not_measured: Mapping[str, str] = field(default_factory=dict)  # name -> why, and the remedy


@dataclass(frozen=True, kw_only=True)
class Report:
    """All measures of a world model."""

    source: str  # what the model was read from
    settings: Mapping[str, Any]
    regimes: Mapping[Regime, Measured]

    def to_json(self) -> dict[str, Any]:
        """Regime -> measure -> number or list, beside the settings and what was not measured."""
        return {
            "source": self.source,
            "settings": dict(self.settings),
            **{regime: dict(measured.values) for regime, measured in self.regimes.items()},
            "not_measured": {regime: dict(measured.not_measured) for regime, measured in self.regimes.items()},
        }

    def write(self, folder: str | Path) -> Path:
        """Writes `validation.json`; -> its path."""
        path = Path(folder) / REPORT_FILE
        with atomic_write(path) as partial:
            partial.write_text(json.dumps(self.to_json(), indent=2, allow_nan=False) + "\n", encoding="utf-8")
        return path

    def table(self) -> Table:
        """A section for each regime; what was not measured says why."""
        table = Table("measure", title=escape(self.source))
        for name in ("world model", "along the horizon"):
            table.add_column(name, justify="right")
        table.add_column("to compare with")
        for regime, measured in self.regimes.items():
            table.add_section()
            table.add_row(f"[bold]{regime}[/bold]")
            for row in measured.rows:
                table.add_row(f"  {row.name}", row.value, row.horizon, row.compared)
            for name, why in measured.not_measured.items():
                table.add_row(f"  {name}", "not measured", "", escape(why))
        return table


def numbers(values: Sequence[float], digits: int) -> list[float]:
    """Values as JSON holds them."""
    return [round(float(value), digits) for value in values]


def from_to(values: Sequence[float], digits: int) -> str:
    """The first and the last of a series.

    Example:
        >>> from_to([28.04, 25.0, 22.06], 1)
        '28.0 … 22.1'
    """
    return f"{values[0]:.{digits}f} … {values[-1]:.{digits}f}"
