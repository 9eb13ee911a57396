"""Marks of the tests that read by torchcodec, which `make test-torchcodec` runs in a process of their own.

After torchcodec was loaded, PyAV's first encoding of HEVC in the same process failed at times.
"""

import os
from ctypes.util import find_library
from importlib.util import find_spec

import pytest

needs_torchcodec = pytest.mark.skipif(
    "TEST_TORCHCODEC" not in os.environ or find_spec("torchcodec") is None or find_library("avdevice") is None,
    reason="make test-torchcodec runs it; it needs torchcodec and FFmpeg's libraries",
)
TORCHCODEC = pytest.param("torchcodec", marks=needs_torchcodec)
