"""Collecting the errors that FFmpeg logs while it goes on with guessed or missing data."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

import av

Log = tuple[int, str, str]  # level, the component's name, message

_lock = Lock()
_users = 0
_before: tuple[int | None, bool] = (None, True)  # level and repetitions, as they were without users


@contextmanager
def logged_errors() -> Iterator[list[Log]]:
    """The errors that FFmpeg logs in this thread, appended as they occur; PyAV's own level is restored afterwards."""
    global _users, _before
    with _lock:
        if _users == 0:
            _before = (av.logging.get_level(), av.logging.get_skip_repeated())
            av.logging.set_level(max(av.logging.ERROR, _before[0] or 0))
            av.logging.set_skip_repeated(False)  # else the same error in the next read would be missed
        _users += 1
    try:
        with av.logging.Capture() as logs:
            yield logs
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                av.logging.set_level(_before[0])
                av.logging.set_skip_repeated(_before[1])


def first_error(logs: list[Log], container: av.container.InputContainer) -> str | None:
    """The first error that concerns the container or its video, not its sound or subtitles."""
    others = {stream.codec_context.name for stream in container.streams.audio}
    others |= {stream.codec_context.name for stream in container.streams.subtitles}
    for level, name, message in logs:
        if level <= av.logging.ERROR and name not in others:
            return f"FFmpeg's {name or 'decoder'}: {' '.join(message.split())}"
    return None
