"""Config entries resolve to videos; mistakes in CSV lists are reported with their line."""

from pathlib import Path

import pytest

from vidtok_plugin.video import find_sources
from vidtok_plugin.video.sources import read_csv


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("a/1.mp4", "a/deep/2.mp4", "b/3.mp4", "b/notes.txt", "4.mp4", "5.MKV", "e/only.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def named(root: Path, *entries: str) -> list[tuple[str, list[str]]]:
    sources = find_sources([str(root / entry) for entry in entries])
    return [(str(Path(s.name).relative_to(root)), [str(p.relative_to(root)) for p in s.videos]) for s in sources]


def test_entries_are_folders_files_and_patterns(root: Path) -> None:
    assert named(root, "a") == [("a", ["a/1.mp4", "a/deep/2.mp4"])]
    assert named(root, "4.mp4", "b") == [("4.mp4", ["4.mp4"]), ("b", ["b/3.mp4"])]
    assert named(root, "[ab]") == [("a", ["a/1.mp4", "a/deep/2.mp4"]), ("b", ["b/3.mp4"])]
    assert named(root, "*.[mM]*") == [("*.[mM]*", ["4.mp4", "5.MKV"])]
    assert named(root, "[ab]*/*.mp4") == [("[ab]*/*.mp4", ["a/1.mp4", "b/3.mp4"])]
    assert named(root, "**/*.mp4") == [("**/*.mp4", ["4.mp4", "a/1.mp4", "a/deep/2.mp4", "b/3.mp4"])]


def test_a_video_that_a_pattern_matches_twice_counts_once(root: Path) -> None:
    assert named(root, "a/**") == [("a", ["a/1.mp4", "a/deep/2.mp4"])]
    (root / "e/only.txt").unlink(), (root / "e").rmdir()
    assert named(root, "*") == [
        ("a", ["a/1.mp4", "a/deep/2.mp4"]),
        ("b", ["b/3.mp4"]),
        ("*", ["4.mp4", "5.MKV"]),
    ]


def test_a_pattern_enters_folders_that_link_to_each_other_once(root: Path) -> None:
    """There are 2^40 paths of up to 40 links: it hung."""
    for name in ("left", "right"):
        (root / "a" / name).symlink_to(root / "a")
    (root / "b/more").symlink_to(root / "e")
    (root / "e/6.mp4").touch()
    assert named(root, "a/**/*.mp4") == [("a/**/*.mp4", ["a/1.mp4", "a/deep/2.mp4"])]
    assert named(root, "**/deep/**/*.mp4") == [("**/deep/**/*.mp4", ["a/deep/2.mp4"])]
    assert named(root, "b/**") == [("b", ["b/3.mp4", "b/more/6.mp4"])]


def test_a_folder_whose_name_looks_like_a_pattern_is_that_folder(root: Path) -> None:
    (root / "[ab]").mkdir()
    (root / "[ab]/6.mp4").touch()
    assert named(root, "[ab]") == [("[ab]", ["[ab]/6.mp4"])]


def test_paths_of_a_csv_list_start_at_its_folder_or_a_root(root: Path) -> None:
    (root / "lists").mkdir()
    (root / "lists/train.csv").write_text('videos,caption\n../4.mp4,"one, two"\n\n"../a/1.mp4",\n/abs/7.mp4,x\n')
    paths = [root / "lists/../4.mp4", root / "lists/../a/1.mp4", Path("/abs/7.mp4")]
    (source,) = find_sources([str(root / "lists/train.csv")])
    assert source.videos == tuple(paths)
    (source,) = find_sources([str(root / "lists/*.csv")], root="videos")
    assert source.videos == (Path("videos/../4.mp4"), Path("videos/../a/1.mp4"), Path("/abs/7.mp4"))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1"])
def test_a_csv_list_may_be_utf8_or_latin1(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "list.csv").write_bytes('videos\r\n"Übung, é.mp4"\r\n'.encode(encoding))
    assert read_csv(tmp_path / "list.csv") == [tmp_path / "Übung, é.mp4"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "list.csv has no videos; it needs a header with the column 'videos'"),
        ("videos,text\n", "list.csv has no videos"),
        (
            "path,text\na.mp4,x\n",
            r"line 1: one column must be named 'videos', got the columns path, text; start",
        ),
        ("videos,text\na.mp4,x\n ,y\n", r"line 3: videos must be a path, got nothing; add it"),
        ("text,videos\nonly\n", r"line 2: videos must be a path, got nothing"),
        (
            "videos,text\n\na.mp4,b,c\n",
            r'line 3: a row must have a value for each of the 2 columns, got 3; .*"quotes"',
        ),
        ('videos\n"a.mp4"b\n', r"line 2: .*; check the quotes there"),
    ],
)
def test_mistakes_in_a_csv_list_are_reported_with_their_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        find_sources([str(tmp_path / "list.csv")])


def test_entries_without_videos_are_errors(root: Path) -> None:
    for entry, message in {
        "none": r"none doesn't exist",
        "none.mp4": r"none\.mp4 doesn't exist",
        "none.csv": r"CSV list .*none\.csv doesn't exist",
        "e": r"e has no videos",
        "b/*.txt": r"matches 1 files and folders, but no folder, no CSV list and no file that ends in \.mp4",
        "none/*.mp4": r"matches 0 files",
    }.items():
        with pytest.raises(FileNotFoundError, match=message):
            find_sources([str(root / entry)])
    with pytest.raises(ValueError, match=r"entries must be a list, got the string 'x'; write \[x\]"):
        find_sources("x")
