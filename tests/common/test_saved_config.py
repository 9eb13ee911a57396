"""The configs in folders of models are plain values of bounded size: no interpolation, no aliases, no depth."""

import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from vidtok_plugin.common.config import load_config, to_yaml
from vidtok_plugin.common.config_schema import ConfigError
from vidtok_plugin.common.saved_config import load_saved_config


@dataclass(frozen=True, kw_only=True)
class Config:
    width: int = 8
    rate: float = 1e-5
    names: tuple[str, ...] = ("bos", "${width}", "1e-4", "\\x", "???x", "yes")


PAIRS = zip("abcdef", "bcdefg", strict=True)
BOMB = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in PAIRS)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "config.yaml"


def test_what_was_written_is_read_back(path: Path) -> None:
    path.write_text(to_yaml(Config()))
    assert load_saved_config(Config, path) == Config()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names: ['${oc.env:HOME}']", r"names.0 \(\S+config.yaml\) must be a plain value, got the interpolation"),
        ("names: ['x${width}']", "must be a plain value, got the interpolation 'x..width.'"),
        ("width: ${width}", "must be a plain value"),
        ("width: ${", "is not valid"),
        ("width: ???", "width is required"),
        ("wdith: 3", r"unknown key wdith \(\S+config.yaml\); the nearest known key is width"),
        ("rate: .inf", r"rate \(\S+config.yaml\) must be a finite number, got inf"),
        ("names: &a [x]\nwidth: *a", "must have no aliases, got [*]a in line 2"),
        ("width: " + "[" * 40 + "]" * 40, "must be nested at most 32 deep, got more in line 1"),
        ("names: [" + "x, " * 40_000 + "x]", "must have at most 65536 bytes, got 120010"),
        ("width: !!python/object/apply:os.system ['true']", "is not valid YAML"),
    ],
)
def test_anything_else_is_one_sentence_that_names_the_file(
    text: str, message: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/secret")
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_saved_config(Config, path)
    assert "secret" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names: " + "[" * 100_000, "must be nested at most 32 deep, got more in line 1"),
        ("width: " + "{a: " * 100_000, "must be nested at most 32 deep"),
        (BOMB, "must have at most 100000 values once its aliases"),
        ("width: &a [*a]", "must have at most 100000 values once its aliases"),
        ("names: [" + "x" * (1 << 20) + "]", "must have at most 1048576 bytes, got 1048585"),
    ],
)  # fmt: skip
def test_a_run_config_that_would_keep_the_parser_busy_is_refused_at_once(text: str, message: str, path: Path) -> None:
    """YAML nested 100,000 deep ended the process; an alias bomb filled the memory."""
    path.write_text(text)
    begun = time.perf_counter()
    with pytest.raises(ConfigError, match=message):
        load_config(Config, [path])
    assert time.perf_counter() - begun < 10


def test_a_run_config_still_interpolates(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAME", "mine")
    path.write_text("names: &a ['${oc.env:NAME}']\n")
    assert load_config(Config, [path]).names == ("mine",)
