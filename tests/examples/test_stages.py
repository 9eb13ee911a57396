"""The stages of an example: done ones are skipped, and a damaged mark is one sentence with file and remedy."""

import importlib
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("examples_path")


def run(folder: Path, inputs: str = "a") -> int:
    """How often the work of the only stage was done."""
    calls: list[int] = []

    def work() -> None:
        calls.append(1)
        (folder / "result").touch()

    stages = importlib.import_module("stages").Stages(folder, 1)
    stages.run("only", work, inputs=inputs, result=folder / "result")
    return len(calls)


def test_a_stage_is_done_again_only_if_its_inputs_changed_or_its_result_is_gone(tmp_path: Path) -> None:
    assert [run(tmp_path), run(tmp_path), run(tmp_path, "b"), run(tmp_path, "b")] == [1, 0, 1, 0]
    (tmp_path / "result").unlink()
    assert run(tmp_path, "b") == 1


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"key": "a", "done": true}',
        b'{"key": "a", "done": "yes", "seconds": 1.0}',
        b'{"key": 1, "done": true, "seconds": 1.0}',
        b'{"key": "a", "done": true, "seconds": NaN}',
        b'{"key": "a", "done": true, "seconds": -1.0}',
        b'{"key": "a", "done": true, "seconds": 1.0, "more": 2}',
    ],
)
def test_a_damaged_mark_is_named(tmp_path: Path, content: bytes) -> None:
    run(tmp_path)
    (tmp_path / "stages/only.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"only\.json .*remove it, and the stage runs again\.$"):
        run(tmp_path)
    (tmp_path / "stages/only.json").unlink()
    assert run(tmp_path) == 1
