"""Which episodes are still to be recorded, and recording them in several processes."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from vidtok_plugin.common.atomic_files import put_in_place
from vidtok_plugin.common.paths import as_path
from vidtok_plugin.common.task_processes import run_tasks
from world_model.recording.config import RecordConfig
from world_model.recording.episode import episode_files, episode_path, record_episode
from world_model.recording.policies import NamedPolicy
from world_model.recording.policy import MakePolicy

STAGING = ".recording"  # in the output, for episodes that wait for an earlier one
Task = tuple[str, int]  # a split and the number of an episode


class SplitTotals:
    """Chooses the episodes of a split to record, until those in place have `total` frames.

    Episodes may be finished in any order. They count, and are to be put in place, in the order of their numbers, so
    that the split has the same ones however they are recorded; the last few may turn out not to be needed.

    existing: the frames of each episode in place, and whether it is to be recorded again.
    show: called with the number of frames in place when it changes.

    Example:
        >>> totals = SplitTotals("train", 10, [], show=print)
        >>> totals.next(), totals.next(), totals.next()
        (0, 1, 2)
        >>> totals.add(1, 6)
        []
        >>> totals.add(0, 5)
        11
        [0, 1]
        >>> totals.add(2, 8), totals.next()
        ([], None)
    """

    def __init__(
        self, split: str, total: int, existing: Sequence[tuple[int, bool]] = (), *, show: Callable[[int], object]
    ) -> None:
        self.split, self.total, self._show = split, total, show
        self.lengths = [frames for frames, _ in existing]
        self._again = [number for number, (_, again) in enumerate(existing) if again]
        self._next = len(self.lengths)
        self._early: dict[int, int] = {}  # frames of finished episodes that wait for an earlier one
        if self.lengths:
            show(self.frames)

    @property
    def frames(self) -> int:
        """The frames of the episodes in place."""
        return sum(self.lengths)

    def next(self) -> int | None:
        """The number of the next episode to record; None if those that were finished are enough."""
        if self._again:
            return self._again.pop(0)
        if self.frames + sum(self._early.values()) >= self.total:
            return None
        self._next += 1
        return self._next - 1

    def add(self, number: int, frames: int) -> list[int]:
        """Count a finished episode; -> the numbers of those to put in place now, in their order."""
        if number < len(self.lengths):  # it was recorded again
            self.lengths[number] = frames
            return [number]
        self._early[number] = frames
        before = len(self.lengths)
        while len(self.lengths) in self._early and self.frames < self.total:
            self.lengths.append(self._early.pop(len(self.lengths)))
        if len(self.lengths) > before:
            self._show(self.frames)
        return list(range(before, len(self.lengths)))


def record_in_processes(cfg: RecordConfig, policy: MakePolicy | None, splits: Sequence[SplitTotals]) -> None:
    """Record the episodes of some splits in `cfg.processes` processes, which have a game each.

    Raises:
        ChildProcessError: a process failed.
    """
    staging, output = as_path(cfg.output) / STAGING, as_path(cfg.output)
    by_name = {totals.split: totals for totals in splits}

    def next_task() -> Task | None:
        for totals in splits:
            if (number := totals.next()) is not None:
                return totals.split, number
        return None

    def done(task: Task, frames: int) -> None:
        split, number = task
        for ready in by_name[split].add(number, frames):
            _move(episode_path(staging, split, ready), episode_path(output, split, ready))

    shutil.rmtree(staging, ignore_errors=True)  # what a killed process left
    try:
        run_tasks(_start, next_task, done, cfg.processes, cfg, policy, staging)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _start(cfg: RecordConfig, policy: MakePolicy | None, folder: Path) -> Callable[[Task], int]:
    game, chosen = cfg.open_game(), NamedPolicy.of(cfg.policy if policy is None else policy)
    return lambda task: record_episode(cfg, chosen, game, *task, folder)


def _move(source: Path, target: Path) -> None:
    """Put an episode's files in place, its JSON last."""
    target.parent.mkdir(parents=True, exist_ok=True)
    for old, new in zip(episode_files(source), episode_files(target), strict=True):
        if old.exists():
            put_in_place(old, new)
        else:
            new.unlink(missing_ok=True)
