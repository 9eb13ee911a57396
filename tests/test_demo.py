"""The whole pipeline at toy size, from recorded play to pictures, through the demo's own code."""

import importlib
import json
import sys
from pathlib import Path

import pytest

from vidtok_plugin.store import TokenStore
from vidtok_plugin.video.reading import probe

ROOT = Path(__file__).resolve().parent.parent
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
def demo():
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        yield importlib.import_module("demo")
    finally:
        sys.path.remove(str(ROOT / "examples"))


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


def test_pictures_and_video_are_there(run: Path) -> None:
    for name in ("rollout.png", "reconstruction.png", "curves.png"):
        assert (run / name).read_bytes().startswith(b"\x89PNG")
    assert probe(run / "rollout.mp4").num_frames > 29


def test_store_holds_every_episode_with_the_tokenizers_hash(run: Path) -> None:
    store = TokenStore(run / "tokens")
    clips = -(-119 // 28)  # of 29 frames, each beginning with the last frame of the one before
    assert len(store) == 4 * clips
    assert store.metadata.adapter_hash and store.metadata.action_space["size"] == 18
    assert store.steps.max() == 8


def test_second_run_does_nothing_again(demo, run: Path) -> None:
    before = seconds_of(run)
    episode = run / "episodes" / "train" / "episode_00000.mp4"
    stamp = episode.stat().st_mtime_ns
    assert demo.main([f"output={run}", *TOY]) == 0
    assert seconds_of(run) == before
    assert episode.stat().st_mtime_ns == stamp


def test_changed_rollouts_redo_the_last_stage_alone(demo, run: Path) -> None:
    before = seconds_of(run)
    assert demo.main([f"output={run}", *TOY, "rollouts.sampler.temperature=0"]) == 0
    after = seconds_of(run)
    assert {name for name in after if after[name] != before[name]} == {"rollouts"}
