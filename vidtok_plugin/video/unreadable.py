"""Videos that cannot be read: how many of them a run puts up with, and that each is logged once."""

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

logger = logging.getLogger(__name__)


class UnreadableVideoError(ValueError):
    """A file that is no video, or is damaged, cut off, empty, or takes too long to read."""


def unopenable(path: str | os.PathLike[str], cause: str) -> UnreadableVideoError:
    """The error for a file that no frame can be read of."""
    return UnreadableVideoError(
        f"Video {path} cannot be read: it is no video, or is damaged or cut off ({cause}); remove or replace it."
    )


def undecodable(
    path: str | os.PathLike[str], indices: Sequence[int], num_frames: int, cause: str
) -> UnreadableVideoError:
    """The error for frames that cannot be read."""
    return UnreadableVideoError(
        f"Video {path} cannot be decoded at frames {min(indices)}..{max(indices)}, though it says that it has"
        f" {num_frames} ({cause}); it is damaged or says too many: re-encode or remove it."
    )


class UnreadableVideos:
    """The unreadable videos met so far, path to cause, in a budget: a share of all videos.

    The budget of 0 has no room for a single one. A copy in a loader's worker keeps to the budget as well, as far as it
    knows; what it finds travels with the batches to the main process, which alone logs.

    Example:
        >>> unreadable = UnreadableVideos(0.5)
        >>> unreadable.expect(["a.mp4", "b.mp4", "c.mp4"])
        >>> unreadable.add({"b.mp4": "Video b.mp4 cannot be read: the file is empty; remove or replace it."})
        ['b.mp4']
        >>> unreadable.count
        1
    """

    def __init__(self, most: float = 0.0) -> None:
        if not 0 <= most < 1:
            raise ValueError(f"UnreadableVideos: most must be a share of the videos in 0..1, under 1, got {most}.")
        self.most = most
        self.found: dict[str, str] = {}
        self._expected: set[str] = set()
        self._logged: set[str] = set()

    @property
    def count(self) -> int:
        """How many of the videos are known to be unreadable."""
        return len(self.found)

    @property
    def total(self) -> int:
        """How many videos there are, the unreadable ones included."""
        return len(self._expected)

    def expect(self, paths: Iterable[Any]) -> None:
        """Counts videos that the budget is a share of, each path once."""
        self._expected.update(map(str, paths))

    def add(self, found: Mapping[str, str]) -> list[str]:
        """Notes unreadable videos, path to cause, and returns the paths that were not known yet.

        Raises:
            UnreadableVideoError: they are more than the budget has room for.
        """
        new = [path for path in found if path not in self.found]
        self.found |= {path: found[path] for path in new}
        self._expected.update(new)
        room = int(self.most * self.total + 1e-9)
        if new and self.count > room:
            self._logged.add(new[-1])  # the error names it
            self.log()
            raise UnreadableVideoError(
                f"{self.count} of {self.total} videos cannot be read, but data.max_unreadable_fraction={self.most:g} "
                f"has room for {room}. {found[new[-1]]}" + (" The log has the others." if self.count > 1 else "")
            )
        return new

    def log(self, level: int = logging.WARNING) -> None:
        """Logs what was not logged yet."""
        for path, cause in self.found.items():
            if path not in self._logged:
                logger.log(level, "left out: %s", cause)
        self._logged.update(self.found)

    def state_dict(self) -> dict[str, Any]:
        return {"found": dict(self.found)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over what an earlier part of the run found and logged, of the videos that are still expected."""
        known = {path: cause for path, cause in state["found"].items() if path in self._expected}
        self.found = known | self.found
        self._logged.update(known)
