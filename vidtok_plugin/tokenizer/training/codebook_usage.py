"""Codebook usage during training: how many codes a tokenizer uses, and their perplexity."""

from collections import deque
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from vidtok_plugin.common.distributed import mean_over_processes, num_processes
from vidtok_plugin.tokenizer.codebook import code_statistics, count_codes
from vidtok_plugin.tokenizer.model import Reconstruction, VidTok
from vidtok_plugin.training.log_steps import at_log_step


@dataclass(frozen=True, kw_only=True)
class CodebookUsage:
    """Codebook usage over a window of batches, in all processes."""

    usage: float  # fraction of the codes that occur
    perplexity: float
    codes: int
    tokens: int
    batches: int


class CodebookUsageMonitor(pl.Callback):
    """Logs `train/codebook_usage` and `train/codebook_perplexity` over the last `window` batches of all processes.

    One batch has too few tokens to judge by: with 262,144 codes, each token could have its own. The window is empty
    after a start or a resumption. Codes are taken from the forward passes of training; a tokenizer without codes logs
    nothing.
    """

    def __init__(self, window: int = 100) -> None:
        self.batches: deque[Tensor] = deque(maxlen=window)  # the codes of each batch
        self.micro_batches: list[Tensor] = []  # the codes of the current batch
        self.hook: RemovableHandle | None = None
        self.last: CodebookUsage | None = None  # as last logged

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        tokenizer = getattr(module, "tokenizer", None)
        if not isinstance(tokenizer, VidTok):
            raise TypeError(
                f"CodebookUsageMonitor: the module must have a VidTok as `tokenizer`, got {type(module).__name__}."
            )
        self.batches.clear()
        self.last = None
        self.codes = tokenizer.codebook_size
        self.hook = tokenizer.register_forward_hook(self._record)

    def _record(self, tokenizer: VidTok, inputs: Any, out: Reconstruction) -> None:
        if tokenizer.training and out.indices is not None:
            self.micro_batches.append(out.indices.flatten().int())

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        if self.micro_batches:
            self.batches.append(torch.cat(self.micro_batches))
            self.micro_batches = []
        if self.batches and at_log_step(trainer):
            self._log(module)

    def _log(self, module: pl.LightningModule) -> None:
        assert self.codes is not None
        counts = count_codes(torch.cat(list(self.batches)), self.codes)
        counts = mean_over_processes(counts) * num_processes()
        statistics = {name: value.item() for name, value in code_statistics(counts).items()}
        module.log_dict({f"train/{name}": value for name, value in statistics.items()})
        self.last = CodebookUsage(
            usage=statistics["codebook_usage"],
            perplexity=statistics["codebook_perplexity"],
            codes=self.codes,
            tokens=int(counts.sum()),
            batches=len(self.batches),
        )

    def on_train_end(self, *_: Any) -> None:
        if self.hook is not None:
            self.hook.remove()
            self.hook = None

    def on_exception(self, *_: Any) -> None:
        self.on_train_end()
