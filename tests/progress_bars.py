"""What progress bars counted when they ended."""

from types import TracebackType

import pytest
from rich.progress import Progress


def ended_bars(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float, float | None]]:
    """A list to which each bar that ends adds the description, the count and the total of each of its tasks."""
    ended: list[tuple[str, float, float | None]] = []
    leave = Progress.__exit__

    def record(
        self: Progress, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        ended.extend((task.description, task.completed, task.total) for task in self.tasks)
        leave(self, kind, error, trace)

    monkeypatch.setattr(Progress, "__exit__", record)
    return ended
