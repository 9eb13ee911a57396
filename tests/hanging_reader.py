"""Replacements in tests for the functions of a reader process, which hang or crash on some videos."""

import os
import signal
import time
from typing import Any

import numpy as np

from vidtok_plugin.video.clip_reader import index_video, read_clip_from
from vidtok_plugin.video.sampling import IndexedVideo


def index(path: Any, *arguments: Any) -> IndexedVideo:
    if "never-opens" in str(path):
        time.sleep(600)
    return index_video(path, *arguments)


def read(open_videos: int, path: Any, *arguments: Any) -> np.ndarray:
    if "hangs" in str(path):
        time.sleep(600)
    if "crashes" in str(path):
        os.kill(os.getpid(), signal.SIGSEGV)
    return read_clip_from(open_videos, path, *arguments)


def array(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.uint64).astype(np.uint8).reshape(shape)


def loaded_modules() -> list[str]:
    import sys

    return sorted(sys.modules)
