"""The stages of an example: a second run repeats only the stages whose inputs have changed."""

import json
import logging
import shutil
import time
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from vidtok_plugin.common.atomic_files import atomic_write
from vidtok_plugin.common.json_files import read_json_object

logger = logging.getLogger("vidtok_plugin.stages")


class Stages:
    """Runs stages one after another, skips those already done with the same inputs, and keeps the seconds of each.

    A stage's mark, a JSON file in `folder / "stages"`, holds a hash of its inputs and of all stages before it.
    """

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.count = folder / "stages", count
        self.folder.mkdir(parents=True, exist_ok=True)
        self.key, self.number = "", 0
        self.seconds: dict[str, float] = {}

    def run(
        self, name: str, work: Callable[[], None], *, inputs: Any, result: Path, remove: Sequence[Path] = ()
    ) -> None:
        """Call `work` unless it has already made `result` from the same `inputs` after the same stages.

        If the inputs changed, the folders in `remove` are deleted first. Otherwise an interrupted stage
        continues from the files there.
        """
        self.number += 1
        self.key = sha256(json.dumps([self.key, inputs], sort_keys=True, default=str).encode()).hexdigest()
        mark = self.folder / f"{name}.json"
        before = _read(mark) if mark.exists() else {"key": None, "done": False, "seconds": 0.0}
        title = f"[{self.number}/{self.count}] {name}"
        if before["key"] == self.key and before["done"] and result.exists():
            self.seconds[name] = before["seconds"]
            logger.info("%s: already done, in %.0f s", title, before["seconds"])
            return
        if before["key"] != self.key:
            before["seconds"] = 0.0
            for path in remove:
                shutil.rmtree(path, ignore_errors=True)
        logger.info("%s ...", title)
        _write(mark, {"key": self.key, "done": False, "seconds": before["seconds"]})
        start = time.perf_counter()
        work()
        self.seconds[name] = before["seconds"] + time.perf_counter() - start
        _write(mark, {"key": self.key, "done": True, "seconds": self.seconds[name]})
        logger.info("%s: %.0f s", title, self.seconds[name])


def _read(mark: Path) -> dict[str, Any]:
    remedy = "remove it, and the stage runs again"
    before = read_json_object(mark, remedy)
    kinds = {"key": str, "done": bool, "seconds": float}
    if {name: type(value) for name, value in before.items()} != kinds or not 0 <= before["seconds"] < float("inf"):
        raise ValueError(
            f"{mark} must be a stage's mark, with key, done and seconds, got {str(before)[:100]}; {remedy}."
        )
    return before


def _write(mark: Path, values: dict[str, Any]) -> None:
    with atomic_write(mark) as partial:
        partial.write_text(json.dumps(values))
