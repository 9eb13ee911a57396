"""FrozenTokenizer: a module with a tokenizer that a parent neither trains, nor changes, nor saves."""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from vidtok_plugin.adapter.precision import check_float32
from vidtok_plugin.common.frozen_weights import FrozenWeights, freeze
from vidtok_plugin.tokenizer.model import VidTok

_WHO = "TokenizerAdapter"


class FrozenTokenizer(nn.Module):
    """Keeps `tokenizer` in eval mode, without gradients, unchanged, and out of state_dicts.

    Loading a parent's state_dict leaves the tokenizer's weights as they are, and refuses other weights for it. A
    tokenizer that was changed by other means is refused where it is used.
    """

    def __init__(self, tokenizer: VidTok) -> None:
        super().__init__()
        check_float32(tokenizer)
        self.tokenizer = tokenizer
        self._frozen_encoder = FrozenWeights(tokenizer.encoder, who=_WHO, name="encoder")
        self._frozen_decoder = FrozenWeights(tokenizer.decoder, who=_WHO, name="decoder")
        self._freeze()
        self._hashes: dict[str, tuple[tuple[object, ...], str]] = {}  # by name: what it was computed of, and the hash
        self.register_state_dict_post_hook(_leave_out_tokenizer)
        self.register_load_state_dict_pre_hook(_keep_tokenizer)

    @property
    def frozen(self) -> bool:
        return True

    def train(self, mode: bool = True) -> Self:
        """Sets the mode of everything but the tokenizer, and freezes that again if a parent has unfrozen it."""
        super().train(mode)
        self._freeze()
        return self

    def check_encoder(self, *, values: bool | None = None) -> None:
        """A ValueError unless the tokenizer's encoder is as it was frozen.

        values: read all weights even if none was written to, as far as PyTorch knows; by default on the CPU only, since
            it synchronizes.
        """
        check_float32(self.tokenizer)
        self._freeze_again()
        self._frozen_encoder.check(self.tokenizer.encoder, values=self._on_cpu() if values is None else values)

    def check_decoder(self, *, values: bool | None = None) -> None:
        """A ValueError unless the tokenizer's decoder is as it was frozen; `values` as for `check_encoder`."""
        self._freeze_again()
        self._frozen_decoder.check(self.tokenizer.decoder, values=self._on_cpu() if values is None else values)

    def cached_hash(self, name: str, compute: Callable[[], str], *, decoder: bool) -> str:
        """`compute()`, or its last result if the weights that it depends on have not changed since.

        decoder: whether it depends on the decoder, too. It may depend on the encoder and on this module's buffers.
        """
        values = self._on_cpu()
        buffers = tuple(tuple(buffer.tolist()) for buffer in self.buffers(recurse=False))
        of: tuple[object, ...] = (buffers, self._frozen_encoder.look(self.tokenizer.encoder, values=values))
        if decoder:
            of = (*of, self._frozen_decoder.look(self.tokenizer.decoder, values=values))
        cached = self._hashes.get(name)
        if cached is None or cached[0] != of:
            cached = self._hashes[name] = (of, compute())
        return cached[1]

    def _on_cpu(self) -> bool:
        return self.tokenizer.device.type == "cpu"

    def _freeze_again(self) -> None:
        if self.tokenizer.training:
            self._freeze()

    def _freeze(self) -> None:
        freeze(self.tokenizer)
        self._is_hf_initialized = True  # Hugging Face libraries then leave it as it is

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self._frozen_encoder.forget()
        self._frozen_decoder.forget()
        self._hashes = {}
        return self

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_hashes": {}}


def _leave_out_tokenizer(module: nn.Module, state_dict: dict[str, Any], prefix: str, _: Any) -> None:
    for name in [name for name in state_dict if name.startswith(f"{prefix}tokenizer.")]:
        del state_dict[name]


def _keep_tokenizer(
    module: nn.Module,
    state_dict: dict[str, Any],
    prefix: str,
    local_metadata: Any,
    strict: bool,
    missing: list[str],
    unexpected: list[str],
    errors: list[str],
) -> None:
    """Fill in the frozen weights, which checkpoints leave out, and refuse others in their place."""
    tokenizer = module.tokenizer
    assert isinstance(tokenizer, nn.Module)
    other = []
    for name, own in tokenizer.state_dict().items():
        given = state_dict.get(f"{prefix}tokenizer.{name}")
        if given is not None and not _equal(given, own):
            other.append(f"{prefix}tokenizer.{name}")
        state_dict[f"{prefix}tokenizer.{name}"] = own
    if other:
        more = f" and {len(other) - 1} more" if len(other) > 1 else ""
        errors.append(
            f"{_WHO}: the tokenizer is frozen, and checkpoints must not hold another one, got other values for "
            f"{other[0]}{more}; load the adapter that the checkpoint was trained with, or remove these keys."
        )


def _equal(given: Any, own: Tensor) -> bool:
    if not isinstance(given, Tensor) or given.shape != own.shape or given.is_meta or own.is_meta:
        return False
    return torch.equal(given.detach().to(own), own)
