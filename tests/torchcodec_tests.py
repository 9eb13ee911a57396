"""Marks of the tests that read by torchcodec, which needs FFmpeg's libraries beside it."""

from ctypes.util import find_library
from importlib.util import find_spec

import pytest

needs_torchcodec = pytest.mark.skipif(
    find_spec("torchcodec") is None or find_library("avdevice") is None,
    reason="torchcodec or FFmpeg's libraries are not installed",
)
TORCHCODEC = pytest.param("torchcodec", marks=needs_torchcodec)
