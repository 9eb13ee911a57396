"""LearningRates logs the rate that each batch is trained with, for each optimizer."""

from pathlib import Path

import pytest
from monitored_runs import LIGHTNING_NOISE, config, module_of, run
from training_runs import make_videos

from vidtok_plugin.training.learning_rates import LearningRates


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_videos(tmp_path_factory.mktemp("videos"), 2)


@LIGHTNING_NOISE
@pytest.mark.usefixtures("narrow_discriminators")
def test_the_logged_learning_rate_is_that_of_the_batch(folder: Path, tmp_path: Path) -> None:
    cfg = config(folder, tmp_path, "optimizer.warmup_steps=8", "trainer.max_steps=6", "trainer.limit_val_batches=0")
    metrics = run(cfg, module_of(cfg), LearningRates())
    expected = {step: pytest.approx(0.01 * step / 8) for step in (2, 4, 6)}
    assert metrics.series("train/lr") == expected
    assert metrics.series("train/lr_discriminator") == {step: pytest.approx(3e-3) for step in (2, 4, 6)}
