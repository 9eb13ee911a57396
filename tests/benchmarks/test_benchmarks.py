"""The benchmarks run, at tiny sizes; contenders take turns, and reports tell what they were measured on."""

import json
import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from benchmark_files import FOLDER, load_benchmark
from torchcodec_tests import needs_torchcodec
from video_files import moving_noise, write_file

from vidtok_plugin import presets
from vidtok_plugin.video import VideoDataConfig

harness = load_benchmark("harness")


def reported(benchmark: ModuleType, folder: Path, *arguments: str) -> dict[str, Any]:
    """What a benchmark's command writes."""
    output = folder / "results.json"
    benchmark.main([*arguments, "--output", str(output), "--threads", "1"])
    return json.loads(output.read_text())


def test_contenders_take_turns_after_the_warm_ups() -> None:
    calls: list[str] = []
    works = {name: lambda name=name: calls.append(name) for name in "ab"}  # type: ignore[misc]
    seconds = harness.in_turns(works, rounds=3, warmups=2)
    assert calls == ["a", "b"] * 5
    assert {name: len(taken) for name, taken in seconds.items()} == {"a": 3, "b": 3}
    assert all(0 <= taken < 1 for taken in seconds["a"])


def test_a_ratio_is_of_the_rounds_not_of_the_medians() -> None:
    """Other work that slowed a round slowed both."""
    assert harness.ratio([2.0, 20.0, 6.0], [1.0, 10.0, 2.0]) == 2.0
    with pytest.raises(ValueError, match="zip"):
        harness.ratio([1.0], [1.0, 2.0])


def test_a_report_contains_machine_versions_threads_and_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"what": "one", "seconds": 0.1234567}, {"what": "other", "clips": 12345, "none": None}]
    harness.report("trial", rows, tmp_path / "new" / "trial.json", packages=("numpy",), rounds=3)
    record = json.loads((tmp_path / "new" / "trial.json").read_text())
    assert record["rows"] == rows and record["rounds"] == 3 and record["threads"] == torch.get_num_threads()
    assert set(record["machine"]) == {"processor", "cores", "gpu", "system"}
    assert record["versions"]["torch"] == torch.__version__ and record["versions"]["numpy"] == np.__version__
    assert record["versions"]["python"] == platform.python_version()
    shown = capsys.readouterr().out
    assert all(part in shown for part in ("trial", "what", "seconds", "clips", "0.1235", "12,345", "trial.json"))


@pytest.mark.skipif(platform.system() != "Linux" or torch.cuda.is_available(), reason="a CPU's peak, by Linux's count")
def test_peak_memory_includes_freed_memory() -> None:
    code = (
        "import harness, numpy as np\n"
        "print(*map(harness.peak_bytes, [lambda: np.ones(2**26, np.uint8).sum(), lambda: None]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=FOLDER,
        env=harness.sharp_memory(),
        check=True,
        capture_output=True,
        text=True,
    )
    peak, nothing = map(int, done.stdout.split())
    assert 0.95 * 2**26 < peak < 1.5 * 2**26
    assert nothing < 2**20


def test_fsq_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    benchmark = load_benchmark("fsq_loss")
    case = "192 tokens, 32,768 codes"
    monkeypatch.setattr(benchmark, "CASES", {case: benchmark.CASES[case]})
    monkeypatch.delitem(benchmark.FORMS, "plain")
    (row,) = reported(benchmark, tmp_path, "--rounds", "1")["rows"]
    assert (row["case"], row["form"]) == (case, "factorised") and row["x the factorised time"] == 1
    assert 0 < row["MB"] < 50  # in a process of its own; a matrix of 192 x 32,768 has 25 and is kept several times


def test_token_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    benchmark = load_benchmark("token_store")
    monkeypatch.setattr(benchmark, "EPISODES", (16, 12))
    monkeypatch.setattr(benchmark, "WINDOWS", 64)
    rows = reported(benchmark, tmp_path, "--rounds", "1", "--steps", "48", "--folder", str(tmp_path))["rows"]
    assert len(rows) == 2 * 2 * 4 and {row["episodes"] for row in rows} == {3, 4}
    assert all(0 < row["median"] == row["worst"] for row in rows)


@pytest.mark.slow
def test_tokenizing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    benchmark = load_benchmark("tokenizing")
    monkeypatch.setattr(benchmark, "FOLDER", tmp_path)
    chosen = ("one process, all threads, memory returned", "as chosen")
    monkeypatch.setattr(benchmark, "CONTENDERS", {name: benchmark.CONTENDERS[name] for name in chosen})
    write_file(tmp_path / "videos" / "a.mp4", moving_noise(9, height=16, width=16))
    rows = reported(benchmark, tmp_path, "--rounds", "1", "--videos", str(tmp_path / "videos"))["rows"]
    assert [row["command"] for row in rows] == list(chosen) and rows[0]["x before"] == 1
    assert all(row["frames per second"] > 0 and row["CPU ms per frame"] > 0 for row in rows)


def test_reader_process(tmp_path: Path) -> None:
    record = reported(load_benchmark("reader_process"), tmp_path, "--rounds", "3", "--size", "32", "--frames", "3")
    assert [row["reads"] for row in record["rows"]] == ["directly", "through a process"]
    assert all(row["clips per second"] > 0 for row in record["rows"]) and record["restart_seconds"] > 0


def test_video_memory(tmp_path: Path) -> None:
    record = reported(load_benchmark("video_memory"), tmp_path, "--rounds", "2", "--reads", "4")
    assert [row["reads"] for row in record["rows"]] == [0, 2, 4] and record["unreadable"] >= 1
    assert record["growth_mib"] == record["rows"][2]["MiB"] - record["rows"][0]["MiB"]


@pytest.mark.slow
def test_training_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark = load_benchmark("training_memory")
    published = presets()[benchmark.MEASURED]
    narrow = replace(published, architecture=replace(published.architecture, ch=8))
    monkeypatch.setattr(benchmark, "presets", lambda: {benchmark.MEASURED: narrow})
    benchmark.main(["--one", "16", "8", "1", "1"])
    found = json.loads(capsys.readouterr().out)
    assert 0.9 * benchmark.count(16, True, width=8) < found["live"] and len(found["seconds"]) == 1
    monkeypatch.setattr(benchmark, "PRESETS", (benchmark.MEASURED,))
    monkeypatch.setattr(benchmark, "TARGETS", (16,))
    monkeypatch.setattr(benchmark, "PRECISIONS", ("bf16-mixed",))
    rows = reported(benchmark, tmp_path)["rows"]
    assert len(rows) == 4 and all(row["total GB"] > row["activations GB"] > 0 for row in rows)


def test_video_loading(tmp_path: Path) -> None:
    benchmark = load_benchmark("video_loading")
    for number in range(2):
        frames = moving_noise(30, height=32, width=32, seed=number)
        write_file(tmp_path / "videos" / f"{number}.mp4", frames, keyframe_interval=8)
    cfg = VideoDataConfig(train=(str(tmp_path / "videos"),), clip_length=5, height=32, width=32, batch_size=2)
    rows = benchmark.in_one_process("tiny", cfg, clips=4, rounds=1)
    assert {row["clips by"] for row in rows} >= {"bare decord", "bare decord, stopped", "ours", "ours, cached"}
    assert rows[0]["x bare"] == 1 and all(row["clips per second"] > 0 for row in rows)
    rows = benchmark.by_loaders("tiny", cfg, clips=4, rounds=1, workers=(0,))
    assert [row["clips by"] for row in rows] == ["loader, 0 workers", "loader, 0 workers, reader processes"]
    assert all(row["clips per second"] > 0 for row in rows)
    assert benchmark.two_threads_to_one(1) > 0


def test_video_loading_has_all_read_the_same_frames(tmp_path: Path) -> None:
    benchmark = load_benchmark("video_loading")
    write_file(tmp_path / "a.mp4", moving_noise(40))
    cfg = VideoDataConfig(train=(str(tmp_path),), clip_length=5, height=32, width=32, batch_size=2)
    clips = benchmark.random_clips(cfg)
    read = benchmark.frames_of(clips, range(4))
    ours = torch.cat([batch.frames for batch in benchmark.batches(clips, range(4), 2)]).numpy()
    bare = [benchmark.decord_reader(path, cfg).get_batch(indices).asnumpy() for path, indices in read]
    np.testing.assert_array_equal(ours, np.stack(bare))


@needs_torchcodec
@pytest.mark.slow
def test_video_readers_measures_each_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    benchmark = load_benchmark("video_readers")
    monkeypatch.setenv("VIDTOK_CACHE", str(tmp_path / "cache"))  # the benchmark sets it
    path = write_file(tmp_path / "a.mp4", moving_noise(30))
    rows = benchmark.rows_of("tiny", [path], frames=20, rounds=1)
    assert [row["reader"] for row in rows] == ["decord", "pyav", "torchcodec"]
    assert all(value > 0 for row in rows for name, value in row.items() if name.startswith("ms: "))
    assert {"ms: open", "ms: a frame in order", "ms: a clip of 17", "ms: a random frame"} <= set(rows[0])


@pytest.mark.slow
def test_training_speed_compares_every_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    benchmark = load_benchmark("training_speed")
    compiled: list[object] = []
    monkeypatch.setattr(benchmark.VidTok, "compile_networks", lambda model: compiled.append(model))
    monkeypatch.setattr(benchmark, "CLIPS", 1)
    monkeypatch.setattr(benchmark, "WINDOWS", 1)
    rows = reported(benchmark, tmp_path, "--rounds", "1")["rows"]
    assert [row["network"] for row in rows] == ["tokenizer"] * 4 + ["world model"] * 4
    assert [row["x"] for row in rows if row["training"].startswith("float32")][0] == 1.0
    assert all(row["s"] > 0 and row["x"] > 0 for row in rows) and len(compiled) == 2


@pytest.mark.slow
def test_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sizes = ("--frames", "33", "--sizes", "16", "--names", "100", "--files", "3", "--rounds", "1", "--without-ray")
    rows = {row["what"]: row for row in reported(load_benchmark("scale"), tmp_path, *sizes)["rows"]}
    encoded = rows["clips of 17 frames of 16x16"]
    hours = 1e6 * 3600 * 30 / encoded["frames a second"] / 3600  # of a core
    assert encoded["core hours for a million hours"] == pytest.approx(hours)
    assert encoded["frames a second"] / encoded["a second"] == pytest.approx(33 / 2)  # two clips share a frame
    assert 20 < rows["episodes planned"]["bytes each"] < 60
    assert all(row["a second"] > 0 for row in rows.values()) and not list((tmp_path / "runs/benchmarks").glob("tmp*"))
