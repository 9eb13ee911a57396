"""A separate process reads clips and is terminated when it hangs or crashes."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import hanging_reader
import numpy as np
import pytest
from video_files import cut_off, moving_noise, write_file

from vidtok_plugin.video import ClipDataset, UnreadableVideos, find_sources, reader_process
from vidtok_plugin.video.clip_reader import ClipReader
from vidtok_plugin.video.reader_process import ReaderProcess, ReaderStoppedError


def test_results_and_errors_of_calls_are_returned() -> None:
    with ReaderProcess(timeout=60) as process:
        assert process.call("math:hypot", 3, 4) == 5.0
        for shape in ((2, 3), (40, 50, 3), (7,), (40, 50, 3)):  # shared memory grows
            np.testing.assert_array_equal(process.call("hanging_reader:array", *shape), hanging_reader.array(*shape))
        with pytest.raises(ValueError, match="invalid literal"):
            process.call("builtins:int", "x")
        with pytest.raises(FileNotFoundError):
            process.call("os:stat", "/none")
        child = process.call("os:getpid")
        assert child != os.getpid() and process.call("os:getpid") == child


def test_it_starts_without_torch() -> None:
    """The packages' own imports would take seconds and hundreds of MB, in each worker and at each restart."""
    with ReaderProcess(timeout=60) as process:
        loaded = process.call("hanging_reader:loaded_modules")
    assert "vidtok_plugin.video.clip_reader" in loaded
    assert not {"torch", "lightning", "tensordict"}.intersection(loaded)


def test_a_hanging_call_is_terminated_and_the_next_one_succeeds() -> None:
    with ReaderProcess(timeout=60) as process:
        child = process.call("os:getpid")
        process.timeout = 0.3
        start = time.monotonic()
        with pytest.raises(ReaderStoppedError, match=r"reading took longer than 0\.3 s"):
            process.call("time:sleep", 600)
        assert time.monotonic() - start < 30 and not exists(child)
        process.timeout = 60
        assert process.call("os:getpid") != child


def test_a_crash_is_distinguished_from_a_bug() -> None:
    with ReaderProcess(timeout=60) as process:
        with pytest.raises(ReaderStoppedError, match="crashed with signal 6"):
            process.call("os:abort")
        with pytest.raises(RuntimeError, match="exited with code 3"):
            process.call("os:_exit", 3)
        assert process.call("math:sqrt", 4) == 2


def test_it_exits_with_its_parent_even_while_it_hangs() -> None:
    script = (  # only the module, since the package imports torch
        "import importlib.util\n"
        f"spec = importlib.util.spec_from_file_location('reader_process', {reader_process.__file__!r})\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "process = module.ReaderProcess(timeout=600)\n"
        "print(process.call('os:getpid'), flush=True)\n"
        "process.call('time:sleep', 600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        time.sleep(0.2)
        parent.send_signal(signal.SIGKILL)
    for _ in range(100):
        if not exists(child):
            return
        time.sleep(0.1)
    os.kill(child, signal.SIGKILL)
    pytest.fail("the reader process outlived its parent by 10 s")


def exists(process: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("videos")
    for number, name in enumerate(("a", "b", "c", "hangs", "crashes", "never-opens")):
        write_file(root / f"{name}.mp4", moving_noise(20, seed=number))
    cut_off(write_file(root / "cut.mp4", moving_noise(20)), 0.5)
    return root


def test_clips_read_by_a_process_equal_those_read_directly(folder: Path) -> None:
    def clips(timeout: float | None) -> ClipDataset:
        return ClipDataset.random(
            find_sources([str(folder)]),
            clip_length=5,
            height=16,
            width=24,
            fps=12,
            crop="random",
            num_clips=12,
            seed=1,
            read_timeout=timeout,
            unreadable=UnreadableVideos(0.2),
        )

    direct, other = clips(None), clips(60)
    assert other.unreadable.found == direct.unreadable.found and direct.unreadable.count == 1
    for index in range(12):
        one, two = direct.clip((3, index)), other.clip((3, index))
        assert one.origin == two.origin and bool((one.video == two.video).all())
    assert other.reader.process is not None
    other.reader.process.close()


def test_videos_that_hang_or_crash_the_decoder_are_unreadable(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ClipReader, "index_function", "hanging_reader:index")
    monkeypatch.setattr(ClipReader, "read_function", "hanging_reader:read")
    sources = find_sources([str(folder)])
    unreadable = UnreadableVideos(0.6)
    settings = {"clip_length": 5, "height": 32, "width": 32, "read_timeout": 1.0}
    clips = ClipDataset.every(sources, **settings, unreadable=unreadable, every=20)  # type: ignore[arg-type]
    assert len(clips) == 5
    origins = [Path(clips.clip(index).origin.split(",")[0]).name for index in range(5)]
    assert origins[:2] == ["a.mp4", "b.mp4"] and origins[2] == "c.mp4"
    assert set(origins[3:]) <= {"a.mp4", "b.mp4", "c.mp4"}  # replacing crashes.mp4 and hangs.mp4
    causes = {Path(path).name: cause for path, cause in unreadable.found.items()}
    assert set(causes) == {"cut.mp4", "never-opens.mp4", "hangs.mp4", "crashes.mp4"}
    for name, cause in (
        ("never-opens", r"reading took longer than 1 s; .*read_timeout"),
        ("hangs", r"reading took longer than 1 s"),
        ("crashes", r"the decoder crashed with signal 11"),
    ):
        assert re.search(rf"{name}\.mp4 cannot be read: {cause}", causes[f"{name}.mp4"])
    assert clips.reader.process is not None
    clips.reader.process.close()
