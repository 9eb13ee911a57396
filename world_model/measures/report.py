"""The report of a validation: every number under its regime, as JSON and as a table.

teacher_forced      each token is predicted from the real tokens before it
prompt_then_free    rollouts from real prompts under the real actions, compared with the real future frame by frame
free_running        rollouts far beyond their prompt, compared with real play by the statistics of segments
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
    """A row of the table: the world model's number, its course along the horizon, and numbers to compare with."""

    name: str
    value: str
    horizon: str = ""
    compared: str = ""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The results of one regime."""

    values: Mapping[str, Any]  # name -> number, or list by horizon or by position
    rows: Sequence[Row] = ()
    not_measured: Mapping[str, str] = field(default_factory=dict)  # name -> reason and remedy


@dataclass(frozen=True, kw_only=True)
class Report:
    """The results of all regimes."""

    source: str  # where the model came from
    settings: Mapping[str, Any]
    regimes: Mapping[Regime, Measured]

    def to_json(self) -> dict[str, Any]:
        """The source, the settings, regime -> measure -> number or list, and what was not measured."""
        return {
            "source": self.source,
            "settings": dict(self.settings),
            **{regime: dict(measured.values) for regime, measured in self.regimes.items()},
            "not_measured": {regime: dict(measured.not_measured) for regime, measured in self.regimes.items()},
        }

    def write(self, folder: str | Path) -> Path:
        """Write `validation.json`; -> its path."""
        path = Path(folder) / REPORT_FILE
        with atomic_write(path) as partial:
            partial.write_text(json.dumps(self.to_json(), indent=2, allow_nan=False) + "\n", encoding="utf-8")
        return path

    def table(self) -> Table:
        """A table with a section for each regime; measures that were not taken show the reason."""
        table = Table("measure", title=escape(self.source))
        for name in ("world model", "along the horizon"):
            table.add_column(name, justify="right")
        table.add_column("compare with")
        for regime, measured in self.regimes.items():
            table.add_section()
            table.add_row(f"[bold]{regime}[/bold]")
            for row in measured.rows:
                table.add_row(f"  {row.name}", row.value, row.horizon, row.compared)
            for name, why in measured.not_measured.items():
                table.add_row(f"  {name}", "not measured", "", escape(why))
        return table


def numbers(values: Sequence[float], digits: int) -> list[float]:
    """Rounded floats, as JSON holds them."""
    return [round(float(value), digits) for value in values]


def from_to(values: Sequence[float], digits: int) -> str:
    """The first and the last value of a series.

    Example:
        >>> from_to([28.04, 25.0, 22.06], 1)
        '28.0 … 22.1'
    """
    return f"{values[0]:.{digits}f} … {values[-1]:.{digits}f}"
