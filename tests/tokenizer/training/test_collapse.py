"""A codebook or a discriminator that collapses is told of once, and healthy ones are not."""

import logging
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from training_runs import make_videos
from watched_runs import LIGHTNING_NOISE, Metrics, config, module_of, narrow, run

from vidtok_plugin.tokenizer.training.codebook_usage import CodebookUsage, CodebookUsageLog
from vidtok_plugin.tokenizer.training.collapse import CollapseConfig, CollapseWatch
from vidtok_plugin.tokenizer.training.module import TokenizerModule, TokenizerRunConfig

__all__ = ["narrow"]
pytestmark = pytest.mark.usefixtures("narrow")
NO_DISCRIMINATOR = "objective={perceptual: none, discriminator: none}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_videos(tmp_path_factory.mktemp("videos"), 2)


def watch(cfg: TokenizerRunConfig, module: TokenizerModule, *more: pl.Callback) -> Metrics:
    codebook = CodebookUsageLog(cfg.collapse.window)
    return run(cfg, module, *more, codebook, CollapseWatch(cfg.collapse, codebook, disc_start=cfg.objective.disc_start))


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def empty_codes(module: TokenizerModule) -> None:
    """All tokens get one code, whatever the video."""
    with torch.no_grad():
        for parameter in module.tokenizer.encoder.conv_out.parameters():
            parameter.zero_()


@LIGHTNING_NOISE
def test_a_healthy_run_does_not_warn(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cfg = config(folder, tmp_path, "trainer.max_steps=12")
    metrics = watch(cfg, module_of(cfg))
    assert warnings(caplog) == []
    # Verdicts start after the grace of 4, and after disc_start, 2, and a grace.
    assert metrics.series("train/codebook_collapsed") == {4: 0.0, 6: 0.0, 8: 0.0, 10: 0.0, 12: 0.0}
    assert metrics.series("train/discriminator_collapsed") == {6: 0.0, 8: 0.0, 10: 0.0, 12: 0.0}


@LIGHTNING_NOISE
def test_a_collapsed_codebook_is_told_of_once(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cfg = config(folder, tmp_path, "trainer.max_steps=12", "trained=decoder", NO_DISCRIMINATOR)
    module = module_of(cfg)
    empty_codes(module)
    metrics = watch(cfg, module)
    assert metrics.series("train/codebook_perplexity")[12] == pytest.approx(1.0)
    assert metrics.series("train/codebook_collapsed") == {4: 1.0, 6: 1.0, 8: 1.0, 10: 1.0, 12: 1.0}
    assert metrics.series("train/discriminator_collapsed") == {}
    (message,) = warnings(caplog)
    assert message.startswith("the codebook has collapsed: after 4 batches, over the last 3: perplexity 1, under ")
    assert "entropy_weight" in message


@LIGHTNING_NOISE
def test_each_onset_is_told_of(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Break(pl.Callback):
        """The encoder breaks before the batches 0 and 12, and is whole in between."""

        def on_train_batch_start(self, trainer: pl.Trainer, module: Any, *_: Any) -> None:
            if trainer.global_step == 0:
                self.whole = [p.detach().clone() for p in module.tokenizer.encoder.conv_out.parameters()]
            if trainer.global_step in (0, 12):
                empty_codes(module)
            if trainer.global_step == 6:
                for parameter, value in zip(module.tokenizer.encoder.conv_out.parameters(), self.whole, strict=True):
                    parameter.data.copy_(20 * value)  # codes of all kinds

    caplog.set_level(logging.INFO, "vidtok_plugin")
    cfg = config(folder, tmp_path, "trainer.max_steps=16", "trained=decoder", NO_DISCRIMINATOR)
    metrics = watch(cfg, module_of(cfg), Break())
    verdicts = metrics.series("train/codebook_collapsed")
    assert verdicts[6] == 1 and verdicts[10] == 0 and verdicts[16] == 1
    told = [r.getMessage().split()[3] for r in caplog.records if r.getMessage().startswith("the codebook has")]
    assert told == ["collapsed:", "recovered", "collapsed:"]


@LIGHTNING_NOISE
def test_a_discriminator_that_tells_nothing_has_collapsed(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cfg = config(folder, tmp_path, "trainer.max_steps=12", "discriminator_optimizer.lr=1e-12")
    module = module_of(cfg)
    assert module.objective.discriminator is not None
    with torch.no_grad():
        for parameter in module.objective.discriminator.main[-1].parameters():
            parameter.zero_()
    metrics = watch(cfg, module)
    assert metrics.series("train/hinge")[12] == pytest.approx(1.0, abs=1e-3)
    assert metrics.series("train/discriminator_collapsed") == {6: 1.0, 8: 1.0, 10: 1.0, 12: 1.0}
    assert metrics.series("train/codebook_collapsed")[12] == 0
    (message,) = warnings(caplog)
    assert message.startswith("the discriminator has collapsed: after 6 batches, over the last 3: it can't tell real")


@LIGHTNING_NOISE
def test_a_discriminator_that_tells_all_has_collapsed(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The tokenizer hardly learns, so that its grey frames never look like the videos."""
    settings = ["optimizer.lr=1e-9", "discriminator_optimizer.lr=3e-2", "trainer.max_steps=16"]
    cfg = config(folder, tmp_path, *settings)
    metrics = watch(cfg, module_of(cfg))
    assert metrics.series("train/hinge")[16] < 0.01
    verdicts = metrics.series("train/discriminator_collapsed")
    assert verdicts[6] == 0 and verdicts[16] == 1
    (message,) = warnings(caplog)
    assert "it tells all apart and learns no more" in message


@LIGHTNING_NOISE
def test_a_tokenizer_without_codes_has_no_codebook_to_collapse(folder: Path, tmp_path: Path) -> None:
    cfg = config(folder, tmp_path, "preset=vidtok_kl_causal_488_4chn_v1_1", "trainer.max_steps=8")
    metrics = watch(cfg, module_of(cfg))
    assert metrics.series("train/codebook_collapsed") == metrics.series("train/codebook_usage") == {}
    assert metrics.series("train/discriminator_collapsed")[8] == 0


def test_what_wavers_at_a_bound_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    """A discriminator at a huge rate crossed the bound again and again, with a warning each time."""

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
    watched = CollapseWatch(CollapseConfig(window=1, grace=0), CodebookUsageLog(1), disc_start=0)
    for hinge in (0.5, 0.009, 0.011, 0.009, 0.019, 0.03, 0.009):
        trainer.global_step += 1
        trainer.callback_metrics = {
            "train/hinge": torch.tensor(hinge),
            "train/logits_real": torch.tensor(1.0),
            "train/logits_fake": torch.tensor(-1.0),
        }
        watched.on_train_batch_end(trainer, module)
    assert verdicts == [0, 1, 1, 1, 1, 0, 1] and len(warnings(caplog)) == 2


@pytest.mark.parametrize(
    ("codes", "tokens", "least"),
    [
        (32_768, 10**6, 327.68),  # a share of the codes
        (32_768, 5_000, 50.0),  # or of the tokens, if those are fewer
        (64, 10**6, 2.0),  # a hundredth of few codes would be less than one
        (32_768, 1, 1.0),  # one token can have no more than one code
    ],
)
def test_the_least_perplexity_is_a_share_of_what_is_possible(codes: int, tokens: int, least: float) -> None:
    use = CodebookUsage(usage=0.5, perplexity=1.0, codes=codes, tokens=tokens, batches=100)
    assert CollapseConfig().min_perplexity(use) == pytest.approx(least)
    assert CollapseConfig(codebook_share=0.0).min_perplexity(use) == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [("window", 0), ("grace", -1), ("codebook_share", 1.0), ("won_hinge", -0.1), ("lost_margin", 2.0)],
)
def test_settings_that_judge_nothing_sensible_are_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"CollapseConfig: .*{field}"):
        CollapseConfig(**{field: value})


def test_windows_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="window must be that of CodebookUse, 5, got 100"):
        CollapseWatch(CollapseConfig(), CodebookUsageLog(5), disc_start=0)
