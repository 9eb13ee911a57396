"""The adapter freezes its tokenizer and keeps it out of the parent's training and checkpoints."""

import re

import pytest
import torch
from adapters import KINDS, make, tokenizer, video
from torch import nn

from vidtok_plugin import TokenizerAdapter


def test_it_freezes_the_tokenizer_object_that_it_is_given() -> None:
    for name in KINDS:
        tok = tokenizer(name).train()
        adapter = TokenizerAdapter(tok)
        assert adapter.tokenizer is tok and adapter.frozen
        assert not tok.training and not any(p.requires_grad for p in tok.parameters())


class Parent(nn.Module):
    """Holds an adapter, and a second tokenizer that is trained."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.training_tokenizer = nn.ModuleDict({"tokenizer": tokenizer(name)})
        self.adapter = make(name)
        self.head = nn.Linear(2, 2)


@pytest.mark.parametrize("name", ["fsq", "kl"])
def test_its_weights_stay_out_of_the_parents_checkpoints(name: str) -> None:
    parent = Parent(name)
    state_dict = parent.state_dict()
    statistics = ["adapter.latent_mean", "adapter.latent_std"] if name == "kl" else []
    assert [key for key in state_dict if key.startswith("adapter.")] == statistics
    assert any(key.startswith("training_tokenizer.tokenizer.encoder.") for key in state_dict)
    before = parent.adapter.hash
    changed = {key: value + 1 for key, value in state_dict.items()}
    parent.load_state_dict(changed, strict=True)
    assert all(torch.equal(value, changed[key]) for key, value in parent.state_dict().items())
    assert (parent.adapter.hash == before) == (name == "fsq")  # a KL model's statistics come from the checkpoint
    parent.adapter.load_state_dict(parent.adapter.state_dict(), strict=True)


def test_a_strict_load_still_reports_missing_weights_of_other_modules() -> None:
    """Leaving out the frozen weights once hid missing weights of a tokenizer in training."""
    parent = Parent("fsq")
    state_dict = parent.state_dict()
    lost = "training_tokenizer.tokenizer.encoder.conv_in.conv.bias"
    del state_dict[lost]
    with pytest.raises(RuntimeError, match=rf"Missing key.*{re.escape(lost)}"):
        parent.load_state_dict(state_dict, strict=True)
    with pytest.raises(RuntimeError, match=r"Missing key.*head\.bias"):
        parent.load_state_dict({key: value for key, value in parent.state_dict().items() if key != "head.bias"})


def test_an_optimizer_over_the_parent_leaves_it_unchanged() -> None:
    parent = Parent("kl")
    before = parent.adapter.hash
    optimizer = torch.optim.AdamW(parent.parameters(), lr=1.0, weight_decay=1.0)
    tokens = parent.adapter.encode(video())
    (parent.head.weight.sum() * parent.adapter.decode(tokens).sum()).backward()
    optimizer.step()
    assert parent.adapter.hash == before
