"""Ctrl-C, which reaches all processes of a terminal, ends each command with one line and exit code 130."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from training_runs import make_store, make_videos, settings

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="process groups of POSIX")]
RUN = "import sys; from {package}.cli import main; sys.exit(main(sys.argv[1:]))"


def interrupted(package: str, arguments: list[str], ready: Callable[[], bool]) -> tuple[int, list[str]]:
    """The exit code and the last lines of a command that gets Ctrl-C once it works."""
    command = [sys.executable, "-c", RUN.format(package=package), *arguments]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        try:
            deadline = time.monotonic() + 120
            while not ready():
                assert process.poll() is None, process.communicate()[0]
                assert time.monotonic() < deadline
                time.sleep(0.02)
            os.killpg(process.pid, signal.SIGINT)
            printed, _ = process.communicate(timeout=60)
        finally:
            process.kill()
    return process.returncode, printed.splitlines()


def check(code: int, lines: list[str]) -> None:
    text = "\n".join(lines)
    assert code == 130 and lines[-1] == "interrupted", text
    assert lines.count("interrupted") == 1 and "Traceback" not in text and "KeyboardInterrupt" not in text, text


def test_training(tmp_path: Path) -> None:
    torch.manual_seed(0)
    store, output = make_store(tmp_path / "tokens"), tmp_path / "run"
    (tmp_path / "empty.yaml").write_text("seed: 3\n")
    more = ["data.num_workers=2", "trainer.max_steps=100000", "checkpoint_every=2"]
    arguments = ["fit", "--config", str(tmp_path / "empty.yaml"), *settings("world_model", store, output, *more)]
    check(*interrupted("world_model", arguments, lambda: any(output.glob("checkpoints/*.ckpt"))))


def test_tokenizing_in_processes(tmp_path: Path) -> None:
    videos, output = make_videos(tmp_path / "videos", 60), tmp_path / "store"
    arguments = ["tokenize", str(videos), "--model", "vidtok_tiny", "--output", str(output), "--processes", "2"]
    arguments += ["--episodes-per-shard", "1"]
    check(*interrupted("vidtok_plugin", arguments, lambda: any(output.glob("tokens_*/train/shard_*"))))


def test_recording_in_processes(tmp_path: Path) -> None:
    output = tmp_path / "play"
    arguments = ["record", "--env", "CartPole-v1", "--output", str(output), "--processes", "2", "size=[32,32]"]
    arguments += ["train_episodes=500", "frames_per_episode=200", "min_frames=9"]
    check(*interrupted("world_model", arguments, lambda: any(output.glob("train/*.mp4"))))
