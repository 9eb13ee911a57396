"""Budget and one-time logging for unreadable videos."""

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

logger = logging.getLogger(__name__)


class UnreadableVideoError(ValueError):
    """A file is not a video, is damaged, truncated or empty, or takes too long to read."""


def unopenable(path: str | os.PathLike[str], cause: str) -> UnreadableVideoError:
    """The error for a file that cannot be opened as a video."""
    return UnreadableVideoError(
        f"Video {path} cannot be read: it is not a video, or is damaged or truncated ({cause}); remove or replace it."
    )


def undecodable(
    path: str | os.PathLike[str], indices: Sequence[int], num_frames: int, cause: str
) -> UnreadableVideoError:
    """The error for frames that cannot be decoded."""
    return UnreadableVideoError(
        f"Video {path} cannot be decoded at frames {min(indices)}..{max(indices)}, although it declares {num_frames}"
        f" frames ({cause}); it is damaged or declares too many: re-encode or remove it."
    )


class UnreadableVideos:
    """The unreadable videos found so far, path to cause, limited to a fraction of all videos.

    With `max_fraction=0` the first one is an error. Copies in a loader's workers enforce the limit on what they find
    themselves; their findings travel with the batches to the main process, which alone logs.

    Example:
        >>> unreadable = UnreadableVideos(0.5)
        >>> unreadable.expect(["a.mp4", "b.mp4", "c.mp4"])
        >>> unreadable.add({"b.mp4": "Video b.mp4 cannot be read: the file is empty; remove or replace it."})
        ['b.mp4']
        >>> unreadable.count
        1
    """

    def __init__(self, max_fraction: float = 0.0) -> None:
        if not 0 <= max_fraction < 1:
            raise ValueError(
                f"UnreadableVideos: max_fraction must be from 0 up to but not including 1, got {max_fraction}."
            )
        self.max_fraction = max_fraction
        self.found: dict[str, str] = {}
        self._expected: set[str] = set()
        self._logged: set[str] = set()

    @property
    def count(self) -> int:
        """The number of unreadable videos found."""
        return len(self.found)

    @property
    def total(self) -> int:
        """The number of all videos, including unreadable ones."""
        return len(self._expected)

    def expect(self, paths: Iterable[Any]) -> None:
        """Adds videos to the total, each path once."""
        self._expected.update(map(str, paths))

    def add(self, found: Mapping[str, str]) -> list[str]:
        """Adds unreadable videos, path to cause, and returns the paths that are new.

        Raises:
            UnreadableVideoError: there are more than the budget allows.
        """
        new = [path for path in found if path not in self.found]
        self.found |= {path: found[path] for path in new}
        self._expected.update(new)
        allowed = int(self.max_fraction * self.total + 1e-9)
        if new and self.count > allowed:
            self._logged.add(new[-1])  # the error names it
            self.log()
            raise UnreadableVideoError(
                f"{self.count} of {self.total} videos cannot be read, but data.max_unreadable_fraction="
                f"{self.max_fraction:g} allows {allowed}. {found[new[-1]]}"
                + (" The log lists the others." if self.count > 1 else "")
            )
        return new

    def log(self, level: int = logging.WARNING) -> None:
        """Logs the videos that were not logged yet."""
        for path, cause in self.found.items():
            if path not in self._logged:
                logger.log(level, "skipped: %s", cause)
        self._logged.update(self.found)

    def state_dict(self) -> dict[str, Any]:
        return {"found": dict(self.found)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what the run found and logged before it was resumed, for videos that are still in use."""
        known = {path: cause for path, cause in state["found"].items() if path in self._expected}
        self.found = known | self.found
        self._logged.update(known)
