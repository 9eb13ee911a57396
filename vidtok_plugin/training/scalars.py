"""All scalars of a run by batch, over all of its resumptions, in little memory."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

MOST_POINTS = 2000  # of a scalar: more than a picture can show


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
    """Series by name, `train/loss` and the like, which a checkpoint can hold.

    Example:
        >>> scalars = Scalars()
        >>> scalars.add(50, {"train/loss": 0.5})
        >>> scalars.series["train/loss"].steps
        [50]
    """

    def __init__(self) -> None:
        self.series: dict[str, Series] = {}

    def add(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.series.setdefault(name, Series()).add(step, value)

    def state_dict(self) -> dict[str, dict[str, Any]]:
        return {name: asdict(series) for name, series in self.series.items()}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        self.series = {name: Series(**series) for name, series in state.items()}
