"""Progress bars: on stderr, and only where somebody sees them, on a terminal or in a notebook."""

import sys

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def shows_progress() -> bool:
    """Whether stderr is a terminal, or this is a notebook."""
    return sys.stderr.isatty() or Console(stderr=True).is_jupyter


def progress_bar(shown: bool) -> Progress:
    """A bar with a count and the remaining time, at its end the time that it took.

    shown: False counts without showing anything, and so does a stderr that is no terminal.

    Example:
        >>> with progress_bar(shown=False) as bar:
        ...     frames = bar.add_task("frames", total=2)
        ...     bar.advance(frames, 2)
        >>> bar.finished
        True
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    remaining = TimeRemainingColumn(elapsed_when_finished=True)
    hidden = not (shown and shows_progress())
    console = Console(stderr=True, quiet=hidden)  # rich 13.0 ends a disabled bar with an empty line
    return Progress(*columns, remaining, console=console, disable=hidden)
