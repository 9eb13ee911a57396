"""CodebookUsageMonitor logs the usage and perplexity of the codes of the last training batches."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from monitored_runs import LIGHTNING_NOISE, config, module_of, run
from training_runs import make_videos

from vidtok_plugin.tokenizer.codebook import code_statistics, count_codes
from vidtok_plugin.tokenizer.training.codebook_usage import CodebookUsageMonitor


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_videos(tmp_path_factory.mktemp("videos"), 2)


@LIGHTNING_NOISE
@pytest.mark.parametrize("accumulate", [1, 2])
def test_usage_covers_the_last_batches_of_training(folder: Path, tmp_path: Path, accumulate: int) -> None:
    """Whole batches, split or not, and no validation."""
    plain = "objective={perceptual: none, discriminator: none}"
    cfg = config(folder, tmp_path, plain, f"accumulate={accumulate}", "trainer.max_steps=6", "optimizer.lr=1e-12")
    module, seen = module_of(cfg), []

    class Keep(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, index: int) -> None:
            with torch.no_grad():
                seen.append(module.tokenizer.encode(batch.video if hasattr(batch, "video") else batch).indices)

    metrics = run(cfg, module, Keep(), CodebookUsageMonitor(window=3))
    for step in (2, 4, 6):
        counts = count_codes(torch.cat(seen[max(0, step - 3) : step]), 1000)
        for name, value in code_statistics(counts).items():
            assert metrics.lines[step][f"train/{name}"] == pytest.approx(value.item(), rel=1e-4)


def test_a_module_without_a_tokenizer_is_refused() -> None:
    trainer: Any = None
    with pytest.raises(TypeError, match="must have a VidTok as `tokenizer`, got LightningModule"):
        CodebookUsageMonitor().on_train_start(trainer, pl.LightningModule())
