"""Trains in several processes that compare their states: python distributed_run.py KIND REPORT.json OVERRIDE ..."""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from training_runs import NARROW_WIDTHS, configure

from vidtok_plugin import training
from vidtok_plugin.common.hashing import hash_weights
from vidtok_plugin.tokenizer.objective import discriminators
from vidtok_plugin.tokenizer.training.module import TokenizerModule, TokenizerRunConfig
from vidtok_plugin.training.module import Loss, TrainingModule
from vidtok_plugin.video import VideoDataModule
from vidtok_plugin.video.batch import VideoBatch
from world_model import TokenDataModule, WorldModelModule


class ReplicaCheck(pl.Callback):
    """Records, for each batch, the origins of the samples of all processes and whether the replicas are bit-equal.

    Compared are parameters, optimizer states, and LeCAM's averages.
    """

    def __init__(self) -> None:
        self.batches: list[dict[str, Any]] = []

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, _: Any, batch: Any, index: int
    ) -> None:
        assert isinstance(module, TrainingModule)
        tensors = {name: p.detach() for name, p in module.named_parameters()}
        tensors |= {name: b for name, b in module.named_buffers() if ".lecam." in name}
        for number, optimizer in enumerate(trainer.optimizers):
            for key, state in optimizer.state_dict()["state"].items():
                tensors |= {f"{number}.{key}.{name}": torch.as_tensor(value) for name, value in state.items()}
        mine = {"hash": hash_weights(tensors), "origins": module.origins(batch), "process": trainer.global_rank}
        all_of_them: list[Any] = [None] * trainer.world_size
        torch.distributed.all_gather_object(all_of_them, mine)
        self.batches.append(
            {
                "step": trainer.global_step - 1,
                "equal": len({one["hash"] for one in all_of_them}) == 1,
                "origins": [one["origins"] for one in all_of_them],
            }
        )


class OneFails(TokenizerModule):
    """The third batch of the second process has a NaN loss."""

    def losses(self, batch: VideoBatch | Tensor, step: int) -> Iterator[Loss]:
        for loss in super().losses(batch, step):
            spoiled = step == 2 and self.global_rank == 1 and loss.value is not None
            yield replace(loss, value=loss.value * float("nan")) if spoiled and loss.value is not None else loss


def main(kind: str, report: str, *overrides: str) -> None:
    discriminators.WIDTHS = NARROW_WIDTHS
    cfg = configure(kind, [*overrides, "seed=3"])  # type: ignore[arg-type]
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    check = ReplicaCheck()
    if isinstance(cfg, TokenizerRunConfig):
        module = OneFails(cfg) if cfg.non_finite == "skip" else TokenizerModule(cfg)
        trainer = training.fit(cfg, module, VideoDataModule(cfg), [check])
    else:
        trainer = training.fit(cfg, WorldModelModule(cfg), TokenDataModule(cfg), [check])
    if trainer.is_global_zero:
        Path(report).write_text(json.dumps(check.batches))


if __name__ == "__main__":
    main(*sys.argv[1:])
