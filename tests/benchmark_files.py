"""The benchmarks as modules, which are files beside the packages and import each other by their names."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).parents[1] / "benchmarks"


def load_benchmark(name: str) -> ModuleType:
    """benchmarks/NAME.py."""
    sys.path.insert(0, str(FOLDER))
    try:
        module = importlib.import_module(name)
    finally:
        sys.path.remove(str(FOLDER))
    assert Path(str(module.__file__)).parent == FOLDER, f"another file is imported as {name}: {module.__file__}"
    return module
