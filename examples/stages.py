"""Stages of an example: each is done once for the same inputs, and configs take the overrides that name them."""

import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from vidtok_plugin.common.config import load_config

logger = logging.getLogger("vidtok_plugin.stages")
CONFIGS = Path(__file__).resolve().parent.parent / "configs"


class Stages:
    """Runs each stage unless its mark says that it is done with the same inputs; keeps the seconds of each."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.count = folder / "stages", count
        self.folder.mkdir(parents=True, exist_ok=True)
        self.key, self.number = "", 0
        self.seconds: dict[str, float] = {}

    def run(self, name: str, inputs: Any, work: Callable[[], None], made: Path, redo: Sequence[Path] = ()) -> None:
        """`inputs` and all stages before decide; `redo` are the folders to remove when they have changed."""
        self.number += 1
        started = json.dumps([self.key, inputs], sort_keys=True, default=str)
        self.key = sha256(started.encode()).hexdigest()
        mark = self.folder / f"{name}.json"
        before = json.loads(mark.read_text()) if mark.exists() else {"key": None, "done": False, "seconds": 0.0}
        title = f"[{self.number}/{self.count}] {name}"
        if before["key"] == self.key and before["done"] and made.exists():
            self.seconds[name] = before["seconds"]
            logger.info("%s: done before, in %.0f s", title, before["seconds"])
            return
        if before["key"] != self.key:
            before["seconds"] = 0.0
            for path in redo:
                shutil.rmtree(path, ignore_errors=True)
        logger.info("%s ...", title)
        mark.write_text(json.dumps({"key": self.key, "done": False, "seconds": before["seconds"]}))
        start = time.perf_counter()
        work()
        self.seconds[name] = before["seconds"] + time.perf_counter() - start
        mark.write_text(json.dumps({"key": self.key, "done": True, "seconds": self.seconds[name]}))
        logger.info("%s: %.0f s", title, self.seconds[name])


def without_sections(overrides: Sequence[str], names: Sequence[str]) -> list[str]:
    """The overrides that are the example's own, of no section's prefix."""
    return [override for override in overrides if not override.startswith(tuple(f"{name}." for name in names))]


def section(
    name: str, schema: type, files: Sequence[str], overrides: Sequence[str], settings: Mapping[str, Any]
) -> Any:
    """A training run's config: its files, what the example itself sets, and the overrides with its prefix."""
    chosen = [f"{key}={value}" for key, value in settings.items()]
    chosen += [o.removeprefix(f"{name}.") for o in overrides if o.startswith(f"{name}.")]
    return load_config(schema, [CONFIGS / file for file in files], chosen)
