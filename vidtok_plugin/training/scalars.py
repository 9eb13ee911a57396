"""All scalars of a run by batch, over all of its resumptions."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vidtok_plugin.common.atomic_files import atomic_write

logger = logging.getLogger(__name__)

MOST_POINTS = 2000  # of a scalar in memory: more than a picture can show


@dataclass(kw_only=True)
class Series:
    """One scalar: every `stride`th of the points that came."""

    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    stride: int = 1
    seen: int = 0

    def add(self, step: int, value: float) -> None:
        """Takes in a point; of too many, every other goes."""
        if self.seen % self.stride == 0:
            self.steps.append(step)
            self.values.append(value)
        self.seen += 1
        if len(self.steps) > MOST_POINTS:
            del self.steps[1::2], self.values[1::2]
            self.stride *= 2


class Scalars:
    """Series by name, `train/loss` and the like, and all their points in a file: a line of JSON for each time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.series: dict[str, Series] = {}

    def go_on(self, step: int) -> None:
        """Takes up what the file has up to a batch; what it has of later ones is struck out, since they come again.

        A checkpoint could not hold them: the validation after its batch is not in it, nor run again.
        """
        self.series = {}
        lines = self.path.read_text(errors="replace").splitlines(keepends=True) if self.path.exists() else []
        kept: list[str] = []
        for line in lines:
            try:
                values = json.loads(line)
            except json.JSONDecodeError:  # the machine stopped while it was written
                logger.warning("%s: left out a line that is damaged: %.40r", self.path, line)
                continue
            if values["step"] <= step:
                kept.append(line.rstrip("\n") + "\n")
                self._take(values)
        with atomic_write(self.path) as partial:
            partial.write_text("".join(kept))

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Takes in the values after so many batches."""
        self._take({"step": step, **values})
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")

    def _take(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            if name != "step":
                self.series.setdefault(name, Series()).add(int(values["step"]), value)
