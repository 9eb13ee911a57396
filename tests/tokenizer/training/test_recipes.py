"""The recipes in configs/tokenizer, alone and in their documented combinations, train."""

from pathlib import Path

import pytest
import torch
from places import ROOT
from video_files import moving_noise, write_file

from vidtok_plugin import VidTok, presets
from vidtok_plugin.common.config import load_config
from vidtok_plugin.tokenizer.training.module import TokenizerRunConfig
from vidtok_plugin.tokenizer.training.runs import fit_tokenizer

CONFIGS = ROOT / "configs" / "tokenizer"
TOY = {"ch": 4, "ch_mult": (1, 1, 1, 1), "num_res_blocks": 1}
RECIPES = {
    "pretrain_128": ["pretrain_128"],
    "pretrain_decoder_256": ["pretrain_128", "pretrain_decoder_256"],
    "finetune": ["finetune"],
    "finetune_decoder": ["finetune", "finetune_decoder"],
    "finetune_small": ["finetune", "finetune_small"],
    "finetune_small_decoder": ["finetune", "finetune_small", "finetune_decoder"],
}
SMALL = [
    "objective.perceptual=none",
    "data.clip_length=5",
    "data.height=16",
    "data.width=16",
    "data.batch_size=1",
    "data.num_workers=0",
    "data.validation_clips=1",
    "data.clips_per_epoch=8",
    "loggers=[csv]",
    "curves=false",
    "pictures=0",
    "trainer.accelerator=cpu",
    "trainer.enable_progress_bar=false",
    "trainer.log_every_n_steps=1",
    "trainer.max_steps=2",
    "trainer.val_check_interval=2",
    "trainer.num_sanity_val_steps=0",
]


def recipe(name: str, *overrides: str) -> TokenizerRunConfig:
    return load_config(TokenizerRunConfig, [CONFIGS / f"{file}.yaml" for file in RECIPES[name]], overrides)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two videos of two seconds: enough for the 3 frames a second of the pre-training recipes."""
    folder = tmp_path_factory.mktemp("videos")
    for seed in range(2):
        write_file(folder / f"{seed}.mp4", moving_noise(60, height=16, width=24, seed=seed))
    return folder


@pytest.mark.parametrize("preset", ["vidtok_fsq_causal_488_32768_v1_1", "vidtok_kl_causal_41616_4chn"])
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_builds_the_model_of_a_preset(name: str, preset: str) -> None:
    cfg = recipe(name, f"preset={preset}", "from_scratch=true", "pretrained=null")
    with torch.device("meta"):
        assert cfg.build().architecture == presets()[preset].architecture
    assert (cfg.trained == "decoder") == ("decoder" in name)
    assert cfg.trainer["precision"] == "bf16-mixed" and preset in str(cfg.output)


def test_every_recipe_is_covered() -> None:
    examples = {"demo", "demo_from_scratch", "generators", "example_pretrain", "example_finetune"}
    own = {*examples, "vidtok_tiny"}  # covered by other tests
    assert {path.stem for path in CONFIGS.glob("*.yaml")} - own == {
        file for files in RECIPES.values() for file in files
    }


def test_stage_two_starts_from_the_model_of_stage_one() -> None:
    first, second = recipe("pretrain_128"), recipe("pretrain_decoder_256")
    assert second.pretrained == str(first.output / "model") and not second.from_scratch
    assert (first.data.height, second.data.height) == (128, 256)
    assert (first.trainer["max_steps"], second.trainer["max_steps"]) == (50_000, 30_000)
    assert first.objective == second.objective and first.objective.discriminating(10_001)


@pytest.mark.filterwarnings("ignore:The .*_dataloader.* does not have many workers")
@pytest.mark.filterwarnings("ignore:Found .* module.* in eval mode at the start of training")
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_trains_on_a_cpu(name: str, videos: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    before = VidTok.from_preset("vidtok_tiny", **TOY)
    before.save_pretrained(tmp_path / "before")
    if name == "pretrain_128":
        start = ["preset=vidtok_tiny", "architecture={ch: 4, ch_mult: [1, 1, 1, 1], num_res_blocks: 1}"]
    else:
        start = ["preset=null", f"pretrained={tmp_path / 'before'}"]
    data = [f"data.train=[{videos}]", f"data.validation=[{videos}]"]
    cfg = recipe(name, *SMALL, *start, *data, f"output={tmp_path / 'run'}")
    fit_tokenizer(cfg)
    after = VidTok.from_pretrained(cfg.output / "model").state_dict()
    old = before.state_dict()
    if name != "pretrain_128":
        changed = {key.split(".")[0] for key, value in after.items() if not torch.equal(value, old[key])}
        assert changed == ({"decoder"} if "decoder" in name else {"decoder", "encoder"})
    assert all(value.isfinite().all() for value in after.values())
