"""A tokenizer trains by `trainer.fit` on a folder of videos, follows its config, and resumes bit for bit."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from places import ROOT
from toy_tokenizers import TOY, toy_tokenizer
from training_runs import make_videos

from vidtok_plugin import VidTok, presets, training
from vidtok_plugin.common.config import load_config
from vidtok_plugin.tokenizer.training.module import TokenizerModule, TokenizerRunConfig
from vidtok_plugin.training import RESERVED
from vidtok_plugin.video import VideoDataModule

LIGHTNING_NOISE = pytest.mark.filterwarnings(
    "ignore:The .*_dataloader.* does not have many workers", "ignore:Checkpoint directory .* exists"
)
ARCHITECTURE = "architecture={ch: 4, ch_mult: [1, 1, 1, 1], num_res_blocks: 1}"
SMALL = [
    "preset=vidtok_tiny",
    "from_scratch=true",
    ARCHITECTURE,
    "data.clip_length=5",
    "data.height=16",
    "data.width=16",
    "data.batch_size=2",
    "data.clips_per_epoch=8",
    "data.validation_clips=2",
    "objective={perceptual: none, learn_logvar: false, discriminator: none}",
    "optimizer.lr=1e-2",
    "loggers=[csv]",
    "trainer.accelerator=cpu",
    "trainer.enable_progress_bar=false",
    "trainer.log_every_n_steps=1",
    "trainer.max_epochs=-1",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_videos(tmp_path_factory.mktemp("videos"), 2)


def config(folder: Path, output: Path, *overrides: str) -> TokenizerRunConfig:
    return load_config(
        TokenizerRunConfig,
        [],
        [f"data.train=[{folder}]", f"data.validation=[{folder}]", f"output={output}", *SMALL, *overrides],
    )


class Recorder(pl.Callback):
    """Records the loss, the step and the learning rate of each batch."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.steps: list[int] = []
        self.rates: list[float] = []

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        self.steps.append(module.global_step)
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: dict[str, Any], *_: Any
    ) -> None:
        self.losses.append(outputs["loss"].item())


def run(cfg: TokenizerRunConfig) -> tuple[TokenizerModule, Recorder, pl.Trainer]:
    torch.manual_seed(0)
    module, recorder = TokenizerModule(cfg), Recorder()
    trainer = training.fit(cfg, module, VideoDataModule(cfg.data), [recorder])
    return module, recorder, trainer


# Learning


@LIGHTNING_NOISE
@pytest.mark.parametrize("preset", ["vidtok_tiny", "vidtok_kl_causal_488_4chn_v1_1"])
def test_trainer_fit_reduces_the_loss(folder: Path, tmp_path: Path, preset: str) -> None:
    cfg = config(folder, tmp_path, f"preset={preset}", "trainer.max_steps=30", "trainer.check_val_every_n_epoch=7")
    torch.manual_seed(0)
    module, recorder = TokenizerModule(cfg), Recorder()
    trainer = pl.Trainer(
        **cfg.trainer, logger=False, enable_checkpointing=False, enable_model_summary=False, callbacks=[recorder]
    )
    trainer.fit(module, VideoDataModule(cfg.data))
    assert np.mean(recorder.losses[-5:]) < 0.6 * np.mean(recorder.losses[:3])
    metrics = trainer.callback_metrics
    assert metrics["val/psnr"] > 8 and 0 < metrics["val/l1"] < 1
    terms = {"train/entropy", "train/commitment"} if preset == "vidtok_tiny" else {"train/kl"}
    assert {"train/loss", "train/psnr", "train/l1", "train/l2", *terms} <= set(metrics)
    assert all(value.isfinite() for value in metrics.values())
    assert ("val/codebook_usage" in metrics) == (preset == "vidtok_tiny")


@LIGHTNING_NOISE
def test_mixed_precision_trains_float32_weights(folder: Path, tmp_path: Path) -> None:
    cfg = config(folder, tmp_path, "trainer.max_steps=2", "trainer.precision=bf16-mixed")
    module, recorder, _ = run(cfg)
    assert np.isfinite(recorder.losses).all()
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in module.parameters())


@LIGHTNING_NOISE
def test_every_parameter_is_trained(folder: Path, tmp_path: Path) -> None:
    cfg = config(folder, tmp_path, "trainer.max_steps=3")
    torch.manual_seed(0)
    before = {name: p.clone() for name, p in TokenizerModule(cfg).named_parameters()}
    module, _, _ = run(cfg)
    assert [name for name, p in module.named_parameters() if torch.equal(p, before[name])] == []


# Counting


@LIGHTNING_NOISE
def test_the_global_step_counts_batches(folder: Path, tmp_path: Path) -> None:
    module, recorder, trainer = run(config(folder, tmp_path, "trainer.max_steps=6"))  # in epochs of 4 batches
    assert recorder.steps == list(range(6)) and trainer.global_step == len(recorder.losses) == 6
    rows = (tmp_path / "logs" / "version_0" / "metrics.csv").read_text().splitlines()
    place = rows[0].split(",").index("step")
    assert {int(row.split(",")[place]) for row in rows[1:]} == set(range(6))


@LIGHTNING_NOISE
def test_the_learning_rate_follows_the_schedule(folder: Path, tmp_path: Path) -> None:
    schedule = ["optimizer.warmup_steps=2", "optimizer.decay_steps=3", "trainer.max_steps=7"]
    cfg = config(folder, tmp_path, *schedule)
    _, recorder, _ = run(cfg)
    assert recorder.rates == pytest.approx([cfg.optimizer.lr * cfg.optimizer.rate(step, 7) for step in range(7)])
    assert recorder.rates == pytest.approx([0.005, 0.01, 0.01, 0.01, 0.01, 0.02 / 3, 0.01 / 3])


@LIGHTNING_NOISE
@pytest.mark.parametrize("clip", [None, 0.5])
def test_the_gradients_norm_is_clipped_where_asked(folder: Path, tmp_path: Path, clip: float | None) -> None:
    cfg = config(folder, tmp_path, "trainer.max_steps=2", f"optimizer.gradient_clip={clip or 'null'}")
    module, _, _ = run(cfg)
    norm = torch.stack([p.grad.norm() for p in module.parameters()]).norm().item()  # of the last step
    assert norm > 5 if clip is None else norm == pytest.approx(clip, rel=1e-3)


# Checkpoints


@LIGHTNING_NOISE
@pytest.mark.parametrize("stop", [3, 4])  # in the middle of an epoch of 4 batches, and at its end
def test_a_resumed_run_has_the_losses_of_an_uninterrupted_one(folder: Path, tmp_path: Path, stop: int) -> None:
    settings = ["optimizer.warmup_steps=5", "objective.entropy_annealing_steps=5"]
    reference_module, reference, _ = run(config(folder, tmp_path / "reference", *settings, "trainer.max_steps=7"))
    _, first, _ = run(config(folder, tmp_path / "resumed", *settings, f"trainer.max_steps={stop}"))
    module, second, trainer = run(config(folder, tmp_path / "resumed", *settings, "trainer.max_steps=7"))
    assert len(first.losses) == stop and trainer.global_step == 7
    assert first.losses + second.losses == reference.losses
    assert second.steps == list(range(stop, 7))
    expected = reference_module.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in module.state_dict().items())


@LIGHTNING_NOISE
def test_a_model_loads_from_the_last_checkpoint_alone(folder: Path, tmp_path: Path) -> None:
    cfg = config(folder, tmp_path, "trainer.max_steps=1")
    module, _, _ = run(cfg)
    loaded = VidTok.from_pretrained(training.last_checkpoint(cfg.checkpoints))
    assert loaded.architecture == module.tokenizer.architecture and not loaded.training
    ours = module.tokenizer.state_dict()
    assert all(torch.equal(value, ours[name]) for name, value in loaded.state_dict().items())
    assert load_config(TokenizerRunConfig, [tmp_path / "config.yaml"]) == cfg


@LIGHTNING_NOISE
def test_resuming_with_another_architecture_is_refused(folder: Path, tmp_path: Path) -> None:
    run(config(folder, tmp_path, "trainer.max_steps=1"))
    other = "architecture={ch: 8, ch_mult: [1, 1, 1, 1], num_res_blocks: 1}"
    with pytest.raises(ValueError, match=r"the checkpoint has another architecture, it differs in ch \(4, not 8\)"):
        run(config(folder, tmp_path, "trainer.max_steps=2", other))


def fine_tuning(folder: Path, output: Path, *overrides: str) -> TokenizerRunConfig:
    plain = [override for override in SMALL if not override.startswith(("preset", "from_scratch", "architecture"))]
    return load_config(TokenizerRunConfig, [], [f"data.train=[{folder}]", f"output={output}", *plain, *overrides])


def test_fine_tuning_starts_from_the_given_weights(folder: Path, tmp_path: Path) -> None:
    tokenizer = toy_tokenizer("vidtok_tiny").float()
    tokenizer.save_pretrained(tmp_path / "folder")
    module = TokenizerModule(fine_tuning(folder, tmp_path, f"pretrained={tmp_path / 'folder'}"))
    assert module.tokenizer.training and all(p.requires_grad for p in module.parameters())
    assert module.tokenizer.architecture == tokenizer.architecture
    ours = tokenizer.state_dict()
    assert all(torch.equal(value, ours[name]) for name, value in module.tokenizer.state_dict().items())


def test_fine_tuning_starts_from_the_shipped_tokenizer_by_default(folder: Path, tmp_path: Path) -> None:
    ours = VidTok.from_pretrained("vidtok_tiny").state_dict()
    module = TokenizerModule(fine_tuning(folder, tmp_path))
    assert all(torch.equal(value, ours[name]) for name, value in module.tokenizer.state_dict().items())


def test_fine_tuning_starts_from_a_bare_weights_file_with_its_preset(folder: Path, tmp_path: Path) -> None:
    """The preset was not passed on, so a published checkpoint could not be fine-tuned from its file."""
    ours = VidTok.from_preset("vidtok_tiny").state_dict()
    torch.save({"state_dict": ours}, tmp_path / "weights.ckpt")
    pretrained = f"pretrained={tmp_path / 'weights.ckpt'}"
    module = TokenizerModule(fine_tuning(folder, tmp_path, pretrained, "preset=vidtok_tiny"))
    assert all(torch.equal(value, ours[name]) for name, value in module.tokenizer.state_dict().items())
    with pytest.raises(ValueError, match="weights.ckpt holds only weights; give its architecture by preset=NAME"):
        TokenizerModule(fine_tuning(folder, tmp_path, pretrained))


def test_a_preset_that_contradicts_the_pretrained_weights_is_refused(folder: Path, tmp_path: Path) -> None:
    toy_tokenizer("vidtok_tiny").save_pretrained(tmp_path / "folder")
    cfg = fine_tuning(folder, tmp_path, f"pretrained={tmp_path / 'folder'}", "preset=vidtok_tiny")
    with pytest.raises(ValueError, match="stores its architecture, and it is not that of preset='vidtok_tiny'"):
        TokenizerModule(cfg)


def test_sizes_that_do_not_fit_pretrained_weights_are_refused_before_training(folder: Path, tmp_path: Path) -> None:
    """They failed only at the first batch, after all videos had been found and opened."""
    toy_tokenizer("vidtok_tiny").save_pretrained(tmp_path / "folder")
    pretrained = f"pretrained={tmp_path / 'folder'}"
    for name in ("height", "width"):
        cfg = fine_tuning(folder, tmp_path, pretrained, f"data.{name}=20")
        with pytest.raises(ValueError, match=rf"data\.{name} must be a multiple of 8 .*, got 20; .* 16 and 24"):
            TokenizerModule(cfg)


def test_from_scratch_takes_an_architecture(folder: Path, tmp_path: Path) -> None:
    module = TokenizerModule(config(folder, tmp_path))
    assert module.tokenizer.architecture == VidTok.from_preset("vidtok_tiny", **TOY).architecture
    torch.manual_seed(0)
    first = TokenizerModule(config(folder, tmp_path)).state_dict()
    torch.manual_seed(0)
    again = TokenizerModule(config(folder, tmp_path)).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in first.items())


# Mistakes


@pytest.mark.parametrize("key", RESERVED)
def test_trainer_keys_that_a_run_sets_itself_are_refused(folder: Path, tmp_path: Path, key: str) -> None:
    with pytest.raises(ValueError, match=rf"trainer\.{key} is set by {RESERVED[key]}; use that instead"):
        config(folder, tmp_path, f"trainer.{key}=1")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainer.max_step=3"], r"unknown key trainer\.max_step; the nearest known key is trainer\.max_steps"),
        (["from_scratch=false"], "no checkpoint has weights for architecture overrides"),
        (["pretrained=vidtok_tiny"], "from_scratch=true and pretrained exclude each other"),
        (["data.height=130"], r"data\.height must be a multiple of 8 .*, got 130; the nearest sizes are 128 and 136"),
        (["data.width=12"], r"data\.width must be a multiple of 8 .*, got 12; the nearest sizes are 8 and 16"),
        (["preset=vidtok_tinny"], "no preset 'vidtok_tinny'; the nearest is 'vidtok_tiny'"),
        (["architecture={chh: 4}"], "no architecture setting 'chh'; the nearest is 'ch'"),
        (["architecture={ch: 0}"], "ch must be 1 to 65536"),
        (["checkpoint_every=0"], "checkpoint_every must be 1 or more, got 0"),
        (["optimizer.lr=0.0"], "lr must be above 0"),
        (["optimizer.gradient_clip=0.0"], "gradient_clip must be above 0 or null"),
        (["optimizer.decay_steps=-1"], "must not be negative"),
        (["optimizer.final_rate=0.1"], "decay_shape=linear and final_rate=0.1 need a decay; set decay_steps"),
        (["optimizer.decay_shape=cosine"], "decay_shape=cosine and final_rate=0.0 need a decay; set decay_steps"),
        (
            ["optimizer.decay_steps=2", "optimizer.final_rate=1.5"],
            r"final_rate must be a fraction of lr in 0\.\.1, got 1.5",
        ),
        (["objective.l1_weight=0.0"], "one above 0"),
        (["data.batchsize=3"], r"unknown key data\.batchsize .*data\.batch_size"),
    ],
)
def test_invalid_settings_are_refused(folder: Path, tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(folder, tmp_path, *overrides)


def test_sizes_are_checked_against_the_overridden_architecture(folder: Path, tmp_path: Path) -> None:
    """The preset's spatial factor is 8; the overridden levels have 4."""
    halves = "architecture={ch: 4, encoder_spatial_levels: [0, 1], decoder_spatial_levels: [1, 2]}"
    assert config(folder, tmp_path, halves, "data.height=12").data.height == 12
    with pytest.raises(ValueError, match=r"data\.height must be a multiple of 4 .*, got 10"):
        config(folder, tmp_path, halves, "data.height=10")


@pytest.mark.parametrize("name", presets())
def test_one_config_serves_every_preset(name: str) -> None:
    file = ROOT / "configs" / "tokenizer" / "finetune.yaml"
    cfg = load_config(TokenizerRunConfig, [file], [f"preset={name}", "from_scratch=true"])
    assert cfg.output == Path("runs") / name
    with torch.device("meta"):
        assert cfg.build().architecture == presets()[name].architecture
