"""Files and folders appear complete or not at all, and the first of several writers wins."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from disk_faults import files_limited_to
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import save_file

from vidtok_plugin.common.atomic_files import atomic_create, atomic_write, remove_partials
from vidtok_plugin.common.commands import sentence


def make_folder(path: Path, text: str = "") -> None:
    path.mkdir()
    (path / "file").write_text(text)


def test_a_file_gets_its_name_once_complete(tmp_path: Path) -> None:
    def write(path: Path) -> None:
        path.write_text("text")
        assert not (tmp_path / "new" / "file").exists()

    assert atomic_create(tmp_path / "new" / "file", write)
    assert (tmp_path / "new" / "file").read_text() == "text"
    assert not atomic_create(tmp_path / "new" / "file", lambda path: pytest.fail("it is there already"))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file"]


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    def write(path: Path) -> None:
        make_folder(path)
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        atomic_create(tmp_path / "folder", write)
    assert list(tmp_path.iterdir()) == []


def test_the_first_of_two_writers_of_a_folder_wins(tmp_path: Path) -> None:
    def write(path: Path) -> None:
        make_folder(path, "second")
        assert atomic_create(tmp_path / "folder", lambda path: make_folder(path, "first"))

    assert not atomic_create(tmp_path / "folder", write)
    assert (tmp_path / "folder" / "file").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("error", [OSError, RuntimeError, SafetensorError])
def test_a_writer_whose_partial_folder_was_removed_has_lost(tmp_path: Path, error: type[Exception]) -> None:
    def write(path: Path) -> None:
        assert atomic_create(tmp_path / "folder", lambda path: make_folder(path, "first"))
        raise error("no such folder")

    assert not atomic_create(tmp_path / "folder", write)
    assert (tmp_path / "folder" / "file").read_text() == "first"


@pytest.mark.parametrize("concurrent", [False, True])
def test_a_file_is_replaced_in_one_step_or_stays(tmp_path: Path, concurrent: bool) -> None:
    file = tmp_path / "new" / "file"
    for text in ("old", "new"):
        before = file.read_text() if file.exists() else None
        with atomic_write(file, concurrent=concurrent) as partial:
            partial.write_text(text)
            assert (file.read_text() if file.exists() else None) == before
        assert file.read_text() == text
    with pytest.raises(KeyboardInterrupt), atomic_write(file, concurrent=concurrent) as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    assert file.read_text() == "new" and list(file.parent.iterdir()) == [file]


def test_concurrent_writers_do_not_mix_their_contents(tmp_path: Path) -> None:
    file = tmp_path / "file"
    with atomic_write(file, concurrent=True) as first, atomic_write(file, concurrent=True) as second:
        first.write_text("first")
        second.write_text("second")
    assert file.read_text() == "first" and list(tmp_path.iterdir()) == [file]


def test_a_killed_write_leaves_nothing_after_the_next(tmp_path: Path) -> None:
    (tmp_path / ".file.part").write_text("left by a killed process")
    with atomic_write(tmp_path / "file") as partial:
        partial.write_text("new")
    assert (tmp_path / "file").read_text() == "new" and [path.name for path in tmp_path.iterdir()] == ["file"]


def test_partial_files_of_killed_writers_are_removed_once_the_complete_one_exists(tmp_path: Path) -> None:
    for name in (".done.part-0a1b", ".done.part", ".begun.part-0a1b"):  # with and without a unique suffix
        make_folder(tmp_path / name)
    (tmp_path / ".file.json.part-0a1b").write_text("")
    (tmp_path / ".gitignore").write_text("")
    (tmp_path / "file.json").write_text("{}")
    make_folder(tmp_path / "done")
    remove_partials(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".begun.part-0a1b", ".gitignore", "done", "file.json"}


def save_torch(path: Path) -> None:
    with path.open("wb") as file:
        torch.save({"a": torch.zeros(5000)}, file)


def save_numpy(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.zeros(5000))


def save_nested(path: Path) -> None:
    path.mkdir()
    with atomic_write(path / "inner") as partial:
        save_file({"a": torch.zeros(5000)}, partial)


@pytest.mark.parametrize("limit", [0, 3000])
@pytest.mark.parametrize(
    "write",
    [
        save_torch,
        save_numpy,
        save_nested,
        lambda path: save_file({"a": torch.zeros(5000)}, path),
        lambda path: path.write_text("a" * 20_000),
        lambda path: Image.effect_noise((100, 100), 50).save(path, format="png"),
    ],
)
def test_a_full_disk_is_one_sentence_with_the_files_name_and_changes_nothing(
    tmp_path: Path, write: Callable[[Path], object], limit: int
) -> None:
    """torch and safetensors raise errors of their own types, without the file."""
    path = tmp_path / "file"
    concurrent = write is save_nested
    if not concurrent:
        path.write_text("earlier")
    with (
        pytest.raises(OSError) as raised,
        files_limited_to(limit),
        atomic_write(path, concurrent=concurrent) as partial,
    ):
        write(partial)
    text = sentence(raised.value)
    assert text.startswith(str(path / "inner" if concurrent else path) + ": ") and ".part" not in text
    assert "run the same command again" in text or "the disk may be full" in text
    assert [p.name for p in tmp_path.iterdir()] == ([] if concurrent else ["file"])
    assert concurrent or path.read_text() == "earlier"


def test_an_error_of_another_file_or_kind_stays(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as raised, atomic_write(tmp_path / "file"):
        (tmp_path / "other").read_text()
    assert raised.value.filename == str(tmp_path / "other")
    with pytest.raises(RuntimeError, match="a bug of ours"), atomic_write(tmp_path / "file"):
        raise RuntimeError("a bug of ours")
