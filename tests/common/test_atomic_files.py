"""Files and folders appear whole or not at all, and the first of several writers stays."""

from pathlib import Path

import pytest
from safetensors import SafetensorError

from vidtok_plugin.common.atomic_files import atomic_create, atomic_replace, remove_partials


def make_folder(path: Path, text: str = "") -> None:
    path.mkdir()
    (path / "file").write_text(text)


def test_what_is_written_gets_its_name_once_it_is_whole(tmp_path: Path) -> None:
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


def test_of_two_writers_of_a_folder_the_first_one_stays(tmp_path: Path) -> None:
    def write(path: Path) -> None:
        make_folder(path, "second")
        assert atomic_create(tmp_path / "folder", lambda path: make_folder(path, "first"))

    assert not atomic_create(tmp_path / "folder", write)
    assert (tmp_path / "folder" / "file").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("error", [OSError, RuntimeError, SafetensorError])
def test_a_writer_whose_partial_folder_was_removed_meanwhile_is_the_second_one(
    tmp_path: Path, error: type[Exception]
) -> None:
    def write(path: Path) -> None:
        assert atomic_create(tmp_path / "folder", lambda path: make_folder(path, "first"))
        raise error("no such folder")

    assert not atomic_create(tmp_path / "folder", write)
    assert (tmp_path / "folder" / "file").read_text() == "first"


def test_a_file_is_replaced_at_once_or_stays(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("old")

    def write(path: Path) -> None:
        path.write_text("new")
        assert file.read_text() == "old"

    def fail(path: Path) -> None:
        path.write_text("half")
        raise OSError("the disk is full")

    atomic_replace(file, write)
    with pytest.raises(OSError, match="the disk is full"):
        atomic_replace(file, fail)
    assert file.read_text() == "new" and list(tmp_path.iterdir()) == [file]


def test_what_killed_writers_left_is_removed_once_another_has_written_it(tmp_path: Path) -> None:
    for name in (".done.part-0a1b", ".done.part", ".begun.part-0a1b"):  # the second from before names were unique
        make_folder(tmp_path / name)
    (tmp_path / ".file.json.part-0a1b").write_text("")
    (tmp_path / ".gitignore").write_text("")
    (tmp_path / "file.json").write_text("{}")
    make_folder(tmp_path / "done")
    remove_partials(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".begun.part-0a1b", ".gitignore", "done", "file.json"}
