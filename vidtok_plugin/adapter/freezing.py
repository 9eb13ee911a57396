"""A frozen tokenizer within a parent: out of its checkpoints, and not missing from them."""

from typing import Any

from torch import nn


def keep_out_of_checkpoints(adapter: nn.Module) -> None:
    """The weights of `adapter.tokenizer` are in no state_dict, and loading one neither wants nor takes them."""
    adapter.register_state_dict_post_hook(_leave_out_tokenizer)
    adapter.register_load_state_dict_pre_hook(_keep_tokenizer)


def _leave_out_tokenizer(module: nn.Module, state_dict: dict[str, Any], prefix: str, _: Any) -> None:
    for name in [name for name in state_dict if name.startswith(f"{prefix}tokenizer.")]:
        del state_dict[name]


def _keep_tokenizer(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """So that the frozen weights, which checkpoints leave out, are not missing, and any others are."""
    tokenizer = module.tokenizer
    assert isinstance(tokenizer, nn.Module)
    for name, tensor in tokenizer.state_dict().items():
        state_dict.setdefault(f"{prefix}tokenizer.{name}", tensor)
