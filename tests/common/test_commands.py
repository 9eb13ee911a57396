"""Command lines: overrides anywhere, --print-config, and errors as one sentence with exit code 2."""

import argparse
import errno
import logging
import os
import signal
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from vidtok_plugin.common.commands import add_command, add_config_arguments, config_from, run_command, say

SIGINT, SIGTERM = 1000 + signal.SIGINT, 1000 + signal.SIGTERM  # seeds


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    seed: int = 0
    width: int = 8


seen: list[RunConfig] = []


def fit(args: argparse.Namespace) -> None:
    seen.append(config_from(args, RunConfig))
    if seen[-1].seed == 13:
        raise ValueError("RunConfig: seed must not be 13,\n  got 13; take 14.")
    if seen[-1].seed == 14:
        Path("nowhere/at/all").read_text()
    if seen[-1].seed == 15:
        raise RuntimeError("a bug of ours")
    if seen[-1].seed == 12:
        logging.getLogger("vidtok_plugin").info("trained")
        lightning = logging.getLogger("lightning.pytorch")
        lightning.setLevel(logging.INFO)  # as its import does
        lightning.info("trained")
        logging.getLogger("vidtok_plugin").warning("too hot")
        say(args, "done")
    if seen[-1].seed == 16:
        raise KeyboardInterrupt
    if seen[-1].seed == 17:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "run/step.ckpt")
    if seen[-1].seed in (SIGINT, SIGTERM):  # twice, the second one while the first is cleaned up
        try:
            os.kill(os.getpid(), seen[-1].seed - 1000)
        finally:
            if seen[-1].width == 2:
                os.kill(os.getpid(), seen[-1].seed - 1000)


@pytest.fixture
def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="program")
    commands = parser.add_subparsers()
    add_config_arguments(add_command(commands, "fit", fit, "Train."), "tokenizer")
    add_command(commands, "presets", lambda args: None, "List.")
    return parser


@pytest.fixture
def config(tmp_path: Path) -> str:
    (tmp_path / "a.yaml").write_text("seed: 1\n")
    return str(tmp_path / "a.yaml")


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    seen.clear()
    with warnings.catch_warnings():
        yield
    logging.captureWarnings(False)
    root.handlers = handlers
    root.setLevel(level)


def test_overrides_stand_anywhere_and_keep_their_order(parser: argparse.ArgumentParser, config: str) -> None:
    assert run_command(parser, ["fit", "seed=2", "--config", config, "seed=3", "--traceback", "width=4"]) == 0
    assert seen == [RunConfig(seed=3, width=4)]


def test_print_config_prints_and_does_not_run(
    parser: argparse.ArgumentParser, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        run_command(parser, ["fit", "--config", config, "--print-config", "width=4"])
    assert not stop.value.code and not seen
    assert capsys.readouterr().out == "seed: 1\nwidth: 4\n"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=13", "error: RunConfig: seed must not be 13, got 13; take 14.\n"),
        ("seed=14", "error: nowhere/at/all: No such file or directory.\n"),
        (
            "seed=17",
            "error: run/step.ckpt: No space left on device; make room there, and run the same command again.\n",
        ),
        ("sed=1", "error: unknown key sed (override 'sed=1'); the nearest known key is seed.\n"),
    ],
)
def test_users_mistake_is_one_line_on_stderr_and_exit_code_2(
    parser: argparse.ArgumentParser,
    config: str,
    capsys: pytest.CaptureFixture[str],
    override: str,
    message: str,
) -> None:
    assert run_command(parser, ["fit", "--config", config, override]) == 2
    assert capsys.readouterr() == ("", message)


def test_quiet_leaves_warnings_alone(
    parser: argparse.ArgumentParser, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = []
    for arguments in ((), ("--quiet",)):
        assert run_command(parser, ["fit", "--config", config, "seed=12", *arguments]) == 0
        printed.append([text.split() for text in capsys.readouterr()])
    (talking_out, talking_err), (quiet_out, quiet_err) = printed
    assert talking_out == ["done"] and "trained" in talking_err and talking_err[-2:] == ["too", "hot"]
    assert quiet_out == [] and "trained" not in quiet_err and quiet_err[-2:] == ["too", "hot"]


def test_traceback_shows_where(
    parser: argparse.ArgumentParser, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(parser, ["fit", "--config", config, "seed=13", "--traceback"]) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err and err.endswith("error: RunConfig: seed must not be 13, got 13; take 14.\n")


def test_lightnings_error_for_wrong_settings_is_a_users_mistake(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from lightning import Trainer

    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers()
    add_command(commands, "fit", lambda args: print(Trainer(accelerator="nonsense")), "Train.")
    assert run_command(parser, ["fit"]) == 2
    assert "error:" in capsys.readouterr().err


def test_our_own_bugs_are_not_swallowed(parser: argparse.ArgumentParser, config: str) -> None:
    with pytest.raises(RuntimeError, match="a bug of ours"):
        run_command(parser, ["fit", "--config", config, "seed=15"])


def test_interruption_is_exit_code_130(parser: argparse.ArgumentParser, config: str) -> None:
    assert run_command(parser, ["fit", "--config", config, "seed=16"]) == 130


@pytest.mark.usefixtures("default_signals")
@pytest.mark.parametrize(("seed", "code", "text"), [(SIGINT, 130, "interrupted\n"), (SIGTERM, 143, "terminated\n")])
def test_a_signal_ends_a_command_by_its_cleanup_and_a_second_one_at_once(
    parser: argparse.ArgumentParser,
    config: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
    code: int,
    text: str,
) -> None:
    class Exited(BaseException):
        pass

    def leave(code: int) -> None:
        raise Exited(code)

    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    assert run_command(parser, ["fit", "--config", config, f"seed={seed}"]) == code
    assert capsys.readouterr() == ("", text)
    monkeypatch.setattr(os, "_exit", leave)
    with pytest.raises(Exited) as end:
        run_command(parser, ["fit", "--config", config, f"seed={seed}", "width=2"])
    assert end.value.args == (code,)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.parametrize("argv", [["presets", "a=1"], ["fit", "--config", "a", "--nope"], ["fit"]])
def test_unknown_or_missing_argument_is_an_error(
    parser: argparse.ArgumentParser, argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        run_command(parser, argv)
    assert stop.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_no_command_prints_the_help(parser: argparse.ArgumentParser, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(parser, []) == 2
    assert "fit" in capsys.readouterr().err
