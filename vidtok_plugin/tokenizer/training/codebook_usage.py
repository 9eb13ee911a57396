"""How much of its codebook a tokenizer uses while it trains."""

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
    """Of the codebook over a window of batches, by all processes."""

    usage: float  # share of the codes that occur
    perplexity: float
    codes: int
    tokens: int
    batches: int


class CodebookUsageLog(pl.Callback):
    """Logs `train/codebook_usage` and `train/codebook_perplexity` of the last `window` batches, of all processes.

    One batch has too few tokens to tell: at 262,144 codes each could have its own. The window is empty after a start or
    a resumption. The codes are those of the very forward passes that are trained; a tokenizer without codes has none.
    """

    def __init__(self, window: int = 100) -> None:
        self.batches: deque[Tensor] = deque(maxlen=window)  # each one's codes
        self.parts: list[Tensor] = []  # of this batch, which may be split
        self.hook: RemovableHandle | None = None
        self.last: CodebookUsage | None = None  # as last logged

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.batches.clear()
        self.last = None
        self.hook = tokenizer_of(module, "CodebookUsageLog").register_forward_hook(self._note)

    def _note(self, tokenizer: VidTok, inputs: Any, out: Reconstruction) -> None:
        if tokenizer.training and out.indices is not None:
            self.parts.append(out.indices.flatten().int())

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        if self.parts:
            self.batches.append(torch.cat(self.parts))
            self.parts = []
        if self.batches and at_log_step(trainer):
            self._log(module)

    def _log(self, module: pl.LightningModule) -> None:
        codes = tokenizer_of(module, "CodebookUsageLog").codebook_size
        assert codes is not None
        counts = count_codes(torch.cat(list(self.batches)), codes)
        counts = mean_over_processes(counts) * num_processes()
        statistics = {name: value.item() for name, value in code_statistics(counts).items()}
        module.log_dict({f"train/{name}": value for name, value in statistics.items()})
        self.last = CodebookUsage(
            usage=statistics["codebook_usage"],
            perplexity=statistics["codebook_perplexity"],
            codes=codes,
            tokens=int(counts.sum()),
            batches=len(self.batches),
        )

    def on_train_end(self, *_: Any) -> None:
        if self.hook is not None:
            self.hook.remove()
            self.hook = None

    def on_exception(self, *_: Any) -> None:
        self.on_train_end()


def tokenizer_of(module: pl.LightningModule, who: str) -> VidTok:
    """What a module trains, as `module.tokenizer`."""
    tokenizer = getattr(module, "tokenizer", None)
    if not isinstance(tokenizer, VidTok):
        raise TypeError(f"{who}: the module must have a VidTok as `tokenizer`, got {type(module).__name__}.")
    return tokenizer
