"""`~` and environment variables in paths that users write."""

import argparse
from dataclasses import dataclass
from pathlib import Path

import pytest

from vidtok_plugin.common.commands import path_argument
from vidtok_plugin.common.config import load_config
from vidtok_plugin.common.config_schema import ConfigError
from vidtok_plugin.common.paths import expand, user_path
from vidtok_plugin.video import find_sources, find_videos
from vidtok_plugin.video.sources import read_csv


@dataclass(frozen=True, kw_only=True)
class Config:
    output: Path


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DATA", str(tmp_path / "data"))
    monkeypatch.delenv("NOT_SET", raising=False)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.mp4").touch()
    return tmp_path


def test_home_and_variables_are_replaced(home: Path) -> None:
    """`output: ~/run` made a folder named ~ in the working directory."""
    assert user_path("~/run") == home / "run"
    assert expand("$DATA/*/x") == expand("${DATA}/*/x") == f"{home}/data/*/x"
    assert load_config(Config, [], ["output=~/run"]).output == home / "run"
    assert path_argument("$DATA/x") == home / "data" / "x"
    assert find_videos("~/data") == [home / "data" / "a.mp4"]
    for entry in ("~/data", "$DATA", "~/data/a.mp4", "$DATA/*.mp4"):
        assert [path for source in find_sources([entry]) for path in source.videos] == [home / "data" / "a.mp4"]
    (home / "list.csv").write_text("videos\n~/data/a.mp4\n")
    assert read_csv(home / "list.csv") == [home / "data" / "a.mp4"]


def test_variables_that_are_not_set_and_unknown_users_are_errors(home: Path) -> None:
    with pytest.raises(ConfigError, match=r"output.*: path \$NOT_SET/run: the variable \$NOT_SET must be"):
        load_config(Config, [], ["output=$NOT_SET/run"])
    with pytest.raises(argparse.ArgumentTypeError, match="there is no user ~nobody-here"):
        path_argument("~nobody-here/run")


def test_a_path_that_exists_is_taken_as_it_is(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    for name in ("~", "$DATA", "50$ a"):
        (home / name).mkdir()
        assert user_path(name) == Path(name)
