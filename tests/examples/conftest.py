"""The examples as modules: files beside the packages that import each other by name."""

import sys
from collections.abc import Iterator

import pytest
from places import ROOT


@pytest.fixture(scope="module")
def examples_path() -> Iterator[None]:
    """While it is in use, `importlib.import_module` finds the examples."""
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        yield
    finally:
        sys.path.remove(str(ROOT / "examples"))
