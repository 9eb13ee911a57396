"""The fine-tuning example at toy size, and at full size the gain that it is there to show."""

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image

from vidtok_plugin import VidTok
from vidtok_plugin.video.clips import ClipDataset
from vidtok_plugin.video.sources import find_sources

pytestmark = pytest.mark.slow

TRAINING = (
    "architecture.ch=4",
    "data.clip_length=5",
    "data.batch_size=1",
    "data.validation_clips=1",
    "trainer.max_steps=2",
    "trainer.val_check_interval=2",
    "trainer.enable_progress_bar=false",
    "trainer.num_sanity_val_steps=0",
    "pictures=0",
    "curves=false",
    "loggers=[csv]",
)
TOY = (
    "games=[Breakout]",
    "frames_per_game=64",
    "natural_clips=1",
    "scored_clips=2",
    "shown_clips=2",
    *(f"pretrain.{setting}" for setting in TRAINING),
    *(f"finetune.{setting}" for setting in TRAINING if not setting.startswith("architecture")),
)


@pytest.fixture(scope="module")
def example(examples_path: None):
    return importlib.import_module("finetune_frozen_tokenizer")


@pytest.fixture(scope="module")
def run(example: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished toy run."""
    output = tmp_path_factory.mktemp("finetune")
    assert example.main([f"output={output}", *TOY]) == 0
    return output


def seconds_of(run: Path) -> dict[str, float]:
    return {mark.stem: json.loads(mark.read_text())["seconds"] for mark in (run / "stages").glob("*.json")}


def model(run: Path, name: str) -> VidTok:
    return VidTok.from_pretrained(run / name / "model")


def test_summary_and_picture_cover_all_three_models(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    assert list(summary["models"]) == ["before", "full", "decoder"]
    for name, gain in summary["gain"].items():
        scores = summary["models"]
        assert gain == pytest.approx(scores[name]["natural_psnr"] - scores["before"]["natural_psnr"]) and gain != 0
    assert set(summary["seconds"]) == {"record", "natural", "pretrain", "full", "decoder", "compare"}
    with Image.open(run / "before_and_after.png") as picture:
        assert picture.height > 700 and picture.width > 300  # four rows of two clips


def test_training_only_the_decoder_keeps_ids_and_encoder(run: Path) -> None:
    clips = ClipDataset.every(find_sources([str(run / "natural" / "test")]), clip_length=5, height=64, width=64)
    before, decoder, full = (model(run, name) for name in ("pretrain", "decoder", "full"))
    with torch.no_grad():
        for index in range(len(clips)):
            old, new = before.encode(clips[index][None]), decoder.encode(clips[index][None])
            assert torch.equal(old.indices, new.indices) and torch.equal(old.latents, new.latents)
    weights = before.state_dict()
    changed = {
        name: {key.split(".")[0] for key, value in other.state_dict().items() if not torch.equal(value, weights[key])}
        for name, other in (("decoder", decoder), ("full", full))
    }
    assert changed == {"decoder": {"decoder"}, "full": {"decoder", "encoder"}}


def test_changed_ids_of_the_decoder_only_model_are_an_error(example: ModuleType, run: Path, tmp_path: Path) -> None:
    for name in ("pretrain", "full", "natural", "atari"):
        (tmp_path / name).symlink_to(run / name)
    other = model(run, "decoder")
    *_, last = other.encoder.conv_out.parameters()  # its bias: all codes move to one corner
    torch.nn.init.constant_(last, 10.0)
    other.save_pretrained(tmp_path / "decoder" / "model")
    cfg = example.ExampleConfig(games=("Breakout",), scored_clips=1, output=tmp_path)
    data = example.VideoDataConfig(train=("natural",), clip_length=5, height=64, width=64)
    with pytest.raises(RuntimeError, match="training only the decoder must keep all token ids"):
        example.compare(cfg, data, tmp_path / "summary.json")


def test_training_and_test_clips_share_no_frame(example: ModuleType) -> None:
    for splits in example.EXCERPTS.values():
        assert splits["train"][0] < splits["train"][1] <= splits["test"][0] < splits["test"][1]


def test_a_second_run_repeats_nothing(example: ModuleType, run: Path) -> None:
    before = seconds_of(run)
    assert example.main([f"output={run}", *TOY]) == 0
    assert seconds_of(run) == before


def test_changed_fine_tuning_keeps_the_pretrained_model(example: ModuleType, run: Path) -> None:
    before = seconds_of(run)
    assert example.main([f"output={run}", *TOY, "finetune.optimizer.muon_lr=0.002"]) == 0
    after = seconds_of(run)
    assert {name for name in after if after[name] != before[name]} == {"full", "decoder", "compare"}


@pytest.mark.long
def test_both_recipes_gain_a_decibel_on_held_out_video(example: ModuleType, tmp_path: Path) -> None:
    assert example.main([f"output={tmp_path}"]) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert min(summary["gain"].values()) > 1
    assert summary["models"]["decoder"]["natural_ids_changed"] == 0 < summary["models"]["full"]["natural_ids_changed"]
