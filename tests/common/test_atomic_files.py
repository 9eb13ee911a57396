"""Files and folders appear complete or not at all, and the first of several writers wins."""

from pathlib import Path

import pytest
from safetensors import SafetensorError

from vidtok_plugin.common.atomic_files import atomic_create, atomic_write, remove_partials


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
