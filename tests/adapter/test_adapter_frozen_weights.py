"""What changes a frozen tokenizer is refused by name where ids or frames would change; all else changes none."""

import copy
import pickle
import re
from collections.abc import Callable

import pytest
import torch
from adapters import make, tokenizer, values
from adapters import video as random_video
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from vidtok_plugin import TokenizerAdapter
from vidtok_plugin.adapter import adapter as module
from vidtok_plugin.common.frozen_weights import FrozenWeight

FIRST = "conv_in.conv.weight"


def video(num_frames: int = 5) -> Tensor:
    return random_video(num_frames, w=16)


class Parent(nn.Module):
    def __init__(self, kind: str = "fsq") -> None:
        super().__init__()
        self.adapter = make(kind)
        self.head = nn.Linear(2, 2)


def part(parent: nn.Module, name: str) -> nn.Module:
    return parent.get_submodule(f"adapter.tokenizer.{name}")


def conv(parent: nn.Module, name: str) -> nn.Module:
    return part(parent, f"{name}.conv_in.conv")


def weight(parent: nn.Module, name: str) -> Tensor:
    return part(parent, name).get_parameter(FIRST)


def initialize(layer: nn.Module) -> None:
    if hasattr(layer, "weight"):
        layer.weight.data.normal_(0, 0.02)


def step_with_decay(parent: nn.Module, name: str) -> None:
    parent.requires_grad_(True)
    optimizer = torch.optim.AdamW(parent.parameters(), weight_decay=0.1)
    for parameter in parent.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()


def average_inexactly(parent: nn.Module, name: str) -> None:
    for parameter in parent.parameters():
        parameter.data.copy_(parameter * 0.999 + parameter * 0.0011)


def replace_data(parent: nn.Module, name: str) -> None:
    for parameter in part(parent, name).parameters():
        parameter.data = parameter.data + 1e-3


def replace_parameters(parent: nn.Module, name: str) -> None:
    conv(parent, name).weight = nn.Parameter(weight(parent, name) + 1e-3)


def write_through_numpy(parent: nn.Module, name: str) -> None:
    weight(parent, name).detach().numpy()[0] += 1e-3


def load_into_the_tokenizer(parent: nn.Module, name: str) -> None:
    tok = parent.get_submodule("adapter.tokenizer")
    tok.load_state_dict({key: value * 1.01 for key, value in tok.state_dict().items()})


def prune_and_make_permanent(parent: nn.Module, name: str) -> None:
    prune.l1_unstructured(conv(parent, name), "weight", amount=0.3)
    prune.remove(conv(parent, name), "weight")


def replace_layer(parent: nn.Module, name: str) -> None:
    layer = part(parent, f"{name}.conv_in")
    layer.conv = nn.Sequential(layer.conv, nn.Identity())


ONE = rf"{re.escape(FIRST)} has other values; load"
ALL = rf"{re.escape(FIRST)} has other values and \d+ more; load"
TAMPERING: dict[str, tuple[Callable[[nn.Module, str], object], str]] = {
    "in place": (lambda p, name: torch.no_grad()(weight(p, name).add_)(1e-3), ONE),
    "through .data": (lambda p, name: weight(p, name).data.mul_(1.001), ONE),
    "through numpy": (write_through_numpy, ONE),
    "by setting .data": (replace_data, ALL),
    "a new parameter": (replace_parameters, ONE),
    "apply(init)": (lambda p, _: p.apply(initialize), ALL),
    "to_empty": (lambda p, _: (p.to_empty(device="cpu"), p.apply(initialize)), ALL),
    "to meta": (lambda p, _: p.to("meta"), rf"{FIRST} has no values \(device meta\) and \d+ more"),
    "half and back": (lambda p, _: p.half().float(), ALL),
    "bfloat16 and back": (lambda p, _: p.bfloat16().float(), ALL),
    "weight decay": (step_with_decay, ALL),
    "an inexact average": (average_inexactly, ALL),
    "load_state_dict": (load_into_the_tokenizer, ALL),
    "weight_norm": (
        lambda p, name: parametrizations.weight_norm(conv(p, name)),
        r"conv_in\.conv\.parametrizations was added",
    ),
    "spectral_norm": (
        lambda p, name: parametrizations.spectral_norm(conv(p, name)),
        r"conv_in\.conv\.parametrizations was added",
    ),
    "pruning": (lambda p, name: prune.random_unstructured(conv(p, name), "weight", 0.3), f"{FIRST} is missing and 1"),
    "permanent pruning": (prune_and_make_permanent, ONE),
    "another layer": (replace_layer, r"conv_in\.conv\.0 was added"),
}


@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, "encoder") for kind in TAMPERING]
    + [(kind, "decoder") for kind in ("in place", "through .data", "to_empty")],
)
def test_a_changed_tokenizer_is_refused_with_the_first_weight_that_differs(kind: str, name: str) -> None:
    """Half of the ids once changed without a word."""
    tamper, message = TAMPERING[kind]
    parent = Parent()
    tokens = parent.adapter.encode(video())
    tamper(parent, name)
    expected = rf"^TokenizerAdapter: the weights of its frozen {name} must stay as they were, but "
    calls = (
        [lambda: parent.adapter.encode(video()), parent.adapter.stream]
        if name == "encoder"
        else [lambda: parent.adapter.decode(tokens), parent.adapter.decoder_stream]
    )
    for call in calls * 2:
        with pytest.raises(ValueError, match=expected + message):
            call()


def test_a_stream_refuses_a_tokenizer_that_changes_under_way() -> None:
    parent = Parent()
    stream, decoder = parent.adapter.stream(), parent.adapter.decoder_stream()
    decoder.push(stream.push(video(5)))
    weight(parent, "encoder").data.add_(1e-3)
    for call in (lambda: stream.push(video(4)), stream.flush):
        with pytest.raises(ValueError, match=rf"frozen encoder must stay .* but {FIRST} has other values"):
            call()
    weight(parent, "decoder").data.add_(1e-3)
    with pytest.raises(ValueError, match=rf"frozen decoder must stay .* but {FIRST} has other values"):
        decoder.flush()


def averaged(parent: Parent) -> Parent:
    model = AveragedModel(parent, multi_avg_fn=get_ema_multi_avg_fn(0.999), use_buffers=True)
    for _ in range(3):
        with torch.no_grad():
            parent.head.weight.add_(1)
        model.update_parameters(parent)
    return model.module


def unfrozen(parent: Parent) -> Parent:
    for layer in parent.modules():
        layer.training = True
    return parent.requires_grad_(True)


def trained(parent: Parent) -> Parent:
    optimizer = torch.optim.AdamW(parent.parameters(), lr=1.0, weight_decay=1.0)
    for _ in range(2):
        frames = parent.adapter.decode(parent.adapter.encode(video()))
        (parent.head.weight.sum() * frames.sum()).backward()
        optimizer.step()
    return parent


HARMLESS: dict[str, Callable[[Parent], Parent]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda parent: pickle.loads(pickle.dumps(parent)),
    "to": lambda parent: parent.to("cpu"),
    "double and back": lambda parent: parent.double().float(),
    "share_memory": lambda parent: parent.share_memory(),
    "average": averaged,
    "unfrozen": unfrozen,
    "trained": trained,
    "assign": lambda parent: (parent.load_state_dict(parent.state_dict(), assign=True), parent)[1],
    "clones": lambda parent: parent._apply(torch.clone),
}


@pytest.mark.parametrize("kind", ["fsq", "kl"])
@pytest.mark.parametrize("name", HARMLESS)
def test_what_keeps_the_values_keeps_ids_hashes_and_the_freezing(name: str, kind: str) -> None:
    parent = Parent(kind)
    tokens, hashes = parent.adapter.encode(video()), (parent.adapter.hash, parent.adapter.token_hash)
    changed = HARMLESS[name](parent).adapter
    assert torch.equal(values(changed.encode(video())), values(tokens))
    assert (changed.hash, changed.token_hash) == hashes
    assert not changed.decode(tokens).requires_grad
    assert not any(parameter.requires_grad for parameter in changed.parameters())
    assert not any(module.training for module in changed.tokenizer.modules())


def test_a_decoder_that_is_trained_leaves_ids_as_they_are_and_is_refused_for_frames() -> None:
    adapter = make("fsq")
    tokens, before = adapter.encode(video()), adapter.token_hash
    adapter.tokenizer.decoder.requires_grad_(True)
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=0.01, weight_decay=0.1)
    adapter.tokenizer.decode(adapter.latents_of(tokens)).square().mean().backward()
    optimizer.step()
    assert torch.equal(adapter.encode(video()).ids, tokens.ids) and adapter.token_hash == before
    with pytest.raises(ValueError, match="weights of its frozen decoder must stay as they were"):
        adapter.decode(tokens)
    again = TokenizerAdapter(adapter.tokenizer)
    assert again.decode(tokens).shape == video().shape and again.token_hash == before


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("assign", [True, False])
def test_a_parents_checkpoint_with_other_tokenizer_weights_is_refused_and_changes_none(
    strict: bool, assign: bool
) -> None:
    parent = Parent()
    before = parent.adapter.hash
    named = {name: tensor.detach().clone() for name, tensor in parent.named_parameters()}
    parent.load_state_dict({**parent.state_dict(), **named}, strict=strict, assign=assign)  # the same weights
    assert parent.adapter.hash == before
    other = {**named, f"adapter.tokenizer.encoder.{FIRST}": named[f"adapter.tokenizer.encoder.{FIRST}"] + 1}
    message = rf"must not hold another one, got other values for adapter\.tokenizer\.encoder\.{re.escape(FIRST)}; load"
    with pytest.raises(RuntimeError, match=message):
        parent.load_state_dict(other, strict=strict, assign=assign)
    assert parent.adapter.hash == before
    parent.adapter.encode(video())


def test_hashes_are_computed_once_and_again_when_something_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every rollout once hashed all weights."""
    count = []
    monkeypatch.setattr(module, "token_hash", lambda *args: count.append(1) or str(len(count)))
    adapter = make("kl")
    assert [adapter.token_hash, adapter.token_hash] == ["1", "1"]
    adapter.encode(video())
    adapter.train()
    weight(nn.ModuleDict({"adapter": adapter}), "decoder").data.add_(1)
    assert adapter.token_hash == "1"
    adapter.latent_mean.data.add_(1)
    assert adapter.token_hash == "2"
    weight(nn.ModuleDict({"adapter": adapter}), "encoder").data.add_(1)
    assert [adapter.token_hash, adapter.token_hash] == ["3", "3"]


def test_an_adapter_needs_weights_with_values() -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=r"encoder must .* has no values \(device meta\) and"):
        TokenizerAdapter(tokenizer("fsq").to("meta"))


def test_a_frozen_weight_counts_writes_through_its_data() -> None:
    parameter = FrozenWeight(torch.zeros(2))
    parameter.data.add_(1)
    parameter.data.copy_(parameter.data * 2)
    assert parameter._version == 2 and parameter.tolist() == [2, 2]
    parameter.detach().data.add_(1)
    assert parameter._version == 3 and type(parameter.data) is type(parameter + 1) is Tensor
    parameter.data = torch.ones(3)
    assert parameter.tolist() == [1, 1, 1] and type(copy.deepcopy(parameter)) is FrozenWeight
    assert nn.Parameter(parameter).tolist() == [1, 1, 1]
