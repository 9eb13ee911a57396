"""FrozenTokenizer: a module with a tokenizer that a parent neither trains nor saves."""

from typing import Any, Self

from torch import nn

from vidtok_plugin.adapter.precision import check_float32
from vidtok_plugin.tokenizer.model import VidTok


class FrozenTokenizer(nn.Module):
    """Keeps `tokenizer` in eval mode, without gradients, and out of state_dicts.

    Loading a parent's state_dict leaves the tokenizer's weights as they are.
    """

    def __init__(self, tokenizer: VidTok) -> None:
        super().__init__()
        check_float32(tokenizer)
        self.tokenizer = tokenizer
        self._freeze()
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

    def _freeze(self) -> None:
        self.tokenizer.requires_grad_(False).eval()


def _leave_out_tokenizer(module: nn.Module, state_dict: dict[str, Any], prefix: str, _: Any) -> None:
    for name in [name for name in state_dict if name.startswith(f"{prefix}tokenizer.")]:
        del state_dict[name]


def _keep_tokenizer(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Fill in the frozen weights, which checkpoints leave out, so that a strict load does not report them missing."""
    tokenizer = module.tokenizer
    assert isinstance(tokenizer, nn.Module)
    for name, tensor in tokenizer.state_dict().items():
        state_dict.setdefault(f"{prefix}tokenizer.{name}", tensor)
