"""CollapseMonitor warns once when the codebook or the discriminator collapses, and not in healthy runs."""

import logging
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from monitored_runs import LIGHTNING_NOISE, Metrics, config, module_of, run
from torch.utils.hooks import RemovableHandle
from training_runs import make_videos

from vidtok_plugin.tokenizer.training.codebook_usage import CodebookUsage, CodebookUsageMonitor
from vidtok_plugin.tokenizer.training.collapse import CollapseConfig, CollapseMonitor
from vidtok_plugin.tokenizer.training.module import TokenizerModule, TokenizerRunConfig

pytestmark = pytest.mark.usefixtures("narrow_discriminators")
NO_DISCRIMINATOR = "objective={perceptual: none, discriminator: none}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_videos(tmp_path_factory.mktemp("videos"), 2)


def monitored(cfg: TokenizerRunConfig, module: TokenizerModule, *more: pl.Callback) -> Metrics:
    codebook = CodebookUsageMonitor(cfg.collapse.window)
    return run(
        cfg, module, *more, codebook, CollapseMonitor(cfg.collapse, codebook, disc_start=cfg.objective.disc_start)
    )


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def scale_latents(module: TokenizerModule, factor: float) -> RemovableHandle:
    """Multiplies what the encoder gives, whose weights are frozen; 0 gives all tokens one code, whatever the video."""
    return module.tokenizer.encoder.register_forward_hook(lambda encoder, inputs, latents: factor * latents)


@LIGHTNING_NOISE
def test_a_healthy_run_does_not_warn(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cfg = config(folder, tmp_path, "trainer.max_steps=12")
    metrics = monitored(cfg, module_of(cfg))
    assert warnings(caplog) == []
    # Verdicts start after the grace period of 4, for the discriminator counted from disc_start, 2.
    assert metrics.series("train/codebook_collapsed") == {4: 0.0, 6: 0.0, 8: 0.0, 10: 0.0, 12: 0.0}
    assert metrics.series("train/discriminator_collapsed") == {6: 0.0, 8: 0.0, 10: 0.0, 12: 0.0}


@LIGHTNING_NOISE
def test_a_collapsed_codebook_is_reported_once(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cfg = config(folder, tmp_path, "trainer.max_steps=12", "trained=decoder", NO_DISCRIMINATOR)
    module = module_of(cfg)
    scale_latents(module, 0)
    metrics = monitored(cfg, module)
    assert metrics.series("train/codebook_perplexity")[12] == pytest.approx(1.0)
    assert metrics.series("train/codebook_collapsed") == {4: 1.0, 6: 1.0, 8: 1.0, 10: 1.0, 12: 1.0}
    assert metrics.series("train/discriminator_collapsed") == {}
    (message,) = warnings(caplog)
    assert message.startswith("the codebook has collapsed: after 4 batches, over the last 3: perplexity 1, below ")
    assert "entropy_weight" in message


@LIGHTNING_NOISE
def test_each_collapse_and_recovery_is_reported(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Break(pl.Callback):
        """The encoder is broken from batch 0, repaired at batch 6, and broken again at batch 12."""

        def on_train_batch_start(self, trainer: pl.Trainer, module: Any, *_: Any) -> None:
            if trainer.global_step in (0, 12):
                self.hook = scale_latents(module, 0)
            if trainer.global_step == 6:
                self.hook.remove()
                scale_latents(module, 20)  # codes of all kinds

    caplog.set_level(logging.INFO, "vidtok_plugin")
    cfg = config(folder, tmp_path, "trainer.max_steps=16", "trained=decoder", NO_DISCRIMINATOR)
    metrics = monitored(cfg, module_of(cfg), Break())
    verdicts = metrics.series("train/codebook_collapsed")
    assert verdicts[6] == 1 and verdicts[10] == 0 and verdicts[16] == 1
    reports = [r.getMessage().split()[3] for r in caplog.records if r.getMessage().startswith("the codebook has")]
    assert reports == ["collapsed:", "recovered", "collapsed:"]


@LIGHTNING_NOISE
def test_a_discriminator_that_has_lost_is_reported(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cfg = config(folder, tmp_path, "trainer.max_steps=12", "discriminator_optimizer.lr=1e-12")
    module = module_of(cfg)
    assert module.objective.discriminator is not None
    with torch.no_grad():
        for parameter in module.objective.discriminator.main[-1].parameters():
            parameter.zero_()
    metrics = monitored(cfg, module)
    assert metrics.series("train/hinge")[12] == pytest.approx(1.0, abs=1e-3)
    assert metrics.series("train/discriminator_collapsed") == {6: 1.0, 8: 1.0, 10: 1.0, 12: 1.0}
    assert metrics.series("train/codebook_collapsed")[12] == 0
    (message,) = warnings(caplog)
    assert message.startswith("the discriminator has collapsed: after 6 batches, over the last 3: it cannot")
    assert "it cannot distinguish real from reconstructed" in message


@LIGHTNING_NOISE
def test_a_discriminator_that_has_won_is_reported(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The tokenizer hardly learns, so its gray frames never resemble the videos."""
    settings = ["optimizer.lr=1e-9", "discriminator_optimizer.lr=3e-2", "trainer.max_steps=16"]
    cfg = config(folder, tmp_path, *settings)
    metrics = monitored(cfg, module_of(cfg))
    assert metrics.series("train/hinge")[16] < 0.01
    verdicts = metrics.series("train/discriminator_collapsed")
    assert verdicts[6] == 0 and verdicts[16] == 1
    (message,) = warnings(caplog)
    assert "it separates real from reconstructed perfectly and stops learning" in message


@LIGHTNING_NOISE
def test_a_tokenizer_without_codes_has_no_codebook_to_collapse(folder: Path, tmp_path: Path) -> None:
    cfg = config(folder, tmp_path, "preset=vidtok_kl_causal_488_4chn_v1_1", "trainer.max_steps=8")
    metrics = monitored(cfg, module_of(cfg))
    assert metrics.series("train/codebook_collapsed") == metrics.series("train/codebook_usage") == {}
    assert metrics.series("train/discriminator_collapsed")[8] == 0


def test_values_that_waver_around_a_bound_are_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    """A discriminator with a huge learning rate crossed the bound repeatedly, with a warning each time."""

    class Trainer:
        is_global_zero, global_step, log_every_n_steps = True, 0, 1

        def __init__(self) -> None:
            self.callback_metrics: dict[str, torch.Tensor] = {}

    class Module:
        def log(self, name: str, value: float) -> None:
            verdicts.append(value)

    verdicts: list[float] = []
    trainer: Any = Trainer()
    module: Any = Module()
    monitor = CollapseMonitor(CollapseConfig(window=1, grace=0), CodebookUsageMonitor(1), disc_start=0)
    for hinge in (0.5, 0.009, 0.011, 0.009, 0.019, 0.03, 0.009):
        trainer.global_step += 1
        trainer.callback_metrics = {
            "train/hinge": torch.tensor(hinge),
            "train/logits_real": torch.tensor(1.0),
            "train/logits_fake": torch.tensor(-1.0),
        }
        monitor.on_train_batch_end(trainer, module)
    assert verdicts == [0, 1, 1, 1, 1, 0, 1] and len(warnings(caplog)) == 2


@pytest.mark.parametrize(
    ("codes", "tokens", "bound"),
    [
        (32_768, 10**6, 327.68),  # a fraction of the codes
        (32_768, 5_000, 50.0),  # or of the tokens, if there are fewer
        (64, 10**6, 2.0),  # a hundredth of 64 codes would be less than 1
        (32_768, 1, 1.0),  # one token has only one code
    ],
)
def test_the_minimum_perplexity_is_a_fraction_of_the_highest_possible(codes: int, tokens: int, bound: float) -> None:
    usage = CodebookUsage(usage=0.5, perplexity=1.0, codes=codes, tokens=tokens, batches=100)
    assert CollapseConfig().min_perplexity(usage) == pytest.approx(bound)
    assert CollapseConfig(codebook_share=0.0).min_perplexity(usage) == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [("window", 0), ("grace", -1), ("codebook_share", 1.0), ("won_hinge", -0.1), ("lost_margin", 2.0)],
)
def test_bounds_out_of_range_are_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"CollapseConfig: .*{field}"):
        CollapseConfig(**{field: value})


def test_different_windows_are_refused() -> None:
    with pytest.raises(ValueError, match="window must equal that of CodebookUsageMonitor, 5, got 100"):
        CollapseMonitor(CollapseConfig(), CodebookUsageMonitor(5), disc_start=0)
