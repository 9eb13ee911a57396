"""The demo at toy size, from recorded play to pictures, and the examples that use its model."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest

from vidtok_plugin.store.reader import TokenStore
from vidtok_plugin.video.reading import probe, read_frames

pytestmark = pytest.mark.slow

TOY = (
    "record.train_episodes=2",
    "record.validation_episodes=1",
    "record.test_episodes=1",
    "record.frames_per_episode=120",
    "rollouts.prompts=3",
    "tokenizer_clips=2",
    "tokenizer.trainer.max_steps=2",
    "tokenizer.trainer.val_check_interval=2",
    "tokenizer.trainer.log_every_n_steps=1",
    "tokenizer.trainer.enable_progress_bar=false",
    "tokenizer.data.validation_clips=1",
    "tokenizer.data.clip_length=9",
    "world_model.trainer.max_steps=4",
    "world_model.trainer.val_check_interval=2",
    "world_model.trainer.log_every_n_steps=1",
    "world_model.trainer.enable_progress_bar=false",
    "world_model.model.transformer.width=32",
    "world_model.model.transformer.depth=1",
    "world_model.model.transformer.heads=2",
)
MEASURES = {
    "seconds",
    "tokenizer_psnr",
    "tokenizer_psnr_before",
    "tokenizer_psnr_baseline",
    "codebook_usage",
    "world_model_cross_entropy",
    "unigram_cross_entropy",
    "copy_cross_entropy",
    "rollout_psnr",
    "copy_last_frame_psnr",
    "action_delta_psnr",
    "action_delta_psnr_low",
    "tokens_per_second",
    "frames_per_second",
}


@pytest.fixture(scope="module")
def demo(examples_path: None):
    return importlib.import_module("demo")


@pytest.fixture(scope="module")
def run(demo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished toy run."""
    output = tmp_path_factory.mktemp("demo")
    assert demo.main([f"output={output}", *TOY]) == 0
    return output


def seconds_of(run: Path) -> dict[str, float]:
    return {mark.stem: json.loads(mark.read_text())["seconds"] for mark in (run / "stages").glob("*.json")}


def test_summary_has_every_measure(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    assert set(summary) == MEASURES
    assert all(isinstance(value, float | int) and value == value for value in summary.values())


def test_pictures_and_video_are_written(run: Path) -> None:
    for name in ("rollout.png", "reconstruction.png", "curves.png"):
        assert (run / name).read_bytes().startswith(b"\x89PNG")
    assert probe(run / "rollout.mp4").num_frames > 29


def test_store_holds_every_episode_and_the_tokenizers_hash(run: Path) -> None:
    store = TokenStore(run / "tokens")
    clips = -(-119 // 28)  # of 29 frames; each starts with the last frame of the one before
    assert len(store) == 4 * clips
    assert store.metadata.adapter_hash and store.metadata.action_space["size"] == 18
    assert store.steps.max() == 8


def test_a_second_run_repeats_nothing(demo, run: Path) -> None:
    before = seconds_of(run)
    episode = run / "episodes" / "train" / "episode_00000.mp4"
    stamp = episode.stat().st_mtime_ns
    assert demo.main([f"output={run}", *TOY]) == 0
    assert seconds_of(run) == before
    assert episode.stat().st_mtime_ns == stamp


def test_the_rollout_example_writes_prompt_and_imagined_frames(run: Path, tmp_path: Path) -> None:
    example = importlib.import_module("rollout")
    episode = run / "episodes" / "test" / "episode_00000.mp4"
    model = str(run / "world_model" / "model")
    arguments = ["--model", model, "--prompt", str(episode), "--output", str(tmp_path / "out.mp4")]
    assert example.main([*arguments, "--frames", "8", "--order", "diagonal", "--diagonal-offset", "2"]) == 0
    assert probe(tmp_path / "out.mp4").num_frames == 13 + 8
    assert np.abs(read_frames(tmp_path / "out.mp4", range(13)).astype(int) - read_frames(episode, range(13))).mean() < 3
    assert example.main([*arguments, "--frames", "1000"]) == 2  # there are fewer actions than that


def test_the_planning_example_replays_its_plans(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example = importlib.import_module("plan_with_forks")
    sizes = {"goals": 2, "candidates": 3, "steps": 2, "random-plans": 2}
    arguments = [f"--{name}={value}" for name, value in sizes.items()]
    model, episodes = run / "world_model" / "model", run / "episodes" / "test"
    output = tmp_path / "plans.png"
    assert example.main([f"--model={model}", f"--episodes={episodes}", f"--output={output}", *arguments]) == 0
    assert "plans were nearer for" in capsys.readouterr().out
    assert output.read_bytes().startswith(b"\x89PNG")
    assert example.main([f"--model={model}", f"--episodes={episodes}", f"--output={output}", "--steps=1000"]) == 2
    assert "lower --prompt-frames or --steps" in capsys.readouterr().err


def test_changed_rollouts_repeat_only_the_last_stage(demo, run: Path) -> None:
    before = seconds_of(run)
    assert demo.main([f"output={run}", *TOY, "rollouts.sampler.temperature=0"]) == 0
    after = seconds_of(run)
    assert {name for name in after if after[name] != before[name]} == {"rollouts"}
