"""Scalars: all logged values of a run by batch, across its resumptions."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vidtok_plugin.common.atomic_files import atomic_write, naming

logger = logging.getLogger(__name__)

MAX_POINTS = 2000  # of a scalar in memory; more than a plot can show


@dataclass(kw_only=True)
class Series:
    """One scalar: every `stride`th of its points."""

    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    stride: int = 1
    seen: int = 0

    def add(self, step: int, value: float) -> None:
        """Adds a point. Beyond `MAX_POINTS`, every other point is dropped."""
        if self.seen % self.stride == 0:
            self.steps.append(step)
            self.values.append(value)
        self.seen += 1
        if len(self.steps) > MAX_POINTS:
            del self.steps[1::2], self.values[1::2]
            self.stride *= 2


class Scalars:
    """Series by name, such as `train/loss`. The file at `path` holds all points, one line of JSON per step."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.series: dict[str, Series] = {}

    def resume(self, step: int) -> None:
        """Reads the file up to `step`, and drops later lines, whose batches are trained again.

        The points are not kept in checkpoints: a checkpoint is saved before the validation after its batch, which is
        not run again.
        """
        self.series = {}
        lines = (
            self.path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
            if self.path.exists()
            else []
        )
        kept: list[str] = []
        for line in lines:
            try:
                values = json.loads(line)
            except json.JSONDecodeError:  # the process was killed while it wrote this line
                logger.warning("%s: skipped a damaged line: %.40r", self.path, line)
                continue
            if values["step"] <= step:
                kept.append(line.rstrip("\n") + "\n")
                self._add_to_series(values)
        with atomic_write(self.path) as partial:
            partial.write_text("".join(kept), encoding="utf-8")

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Adds the values after `step` batches."""
        self._add_to_series({"step": step, **values})
        with naming(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")

    def _add_to_series(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            if name != "step":
                self.series.setdefault(name, Series()).add(int(values["step"]), value)
