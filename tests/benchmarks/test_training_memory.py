"""The memory of training, counted without data, equals that of real steps."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from meta_autocast import meta_autocast
from training_memory_count import count_step, training_memory

from vidtok_plugin import VidTok, presets
from vidtok_plugin.metrics.lpips import LPIPS
from vidtok_plugin.tokenizer.architecture import Architecture
from vidtok_plugin.tokenizer.network.fast import dispatch
from vidtok_plugin.tokenizer.objective import Objective, ObjectiveConfig

SIZE: dict[str, Any] = {"frames": 5, "height": 16, "width": 32}


def narrow(name: str) -> Architecture:
    return replace(presets()[name].architecture, ch=8, ch_mult=(1, 1, 1, 1), num_res_blocks=1)


@pytest.mark.parametrize(
    ("name", "precision", "checkpointing", "choices"),
    [
        ("vidtok_fsq_causal_488_32768", "bf16-mixed", False, {"perceptual": True, "discriminator": "none"}),
        ("vidtok_kl_causal_488_4chn_v1_1", "bf16-mixed", True, {"perceptual": False, "discriminator": "3d"}),
        ("vidtok_kl_noncausal_488_4chn", "32-true", True, {"perceptual": False, "discriminator": "none"}),
    ],
)
def test_counted_bytes_are_alive_in_a_real_step(
    name: str, precision: Any, checkpointing: bool, choices: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "on_cpu", lambda _: False)  # the counted kernels are those of a GPU
    counted = training_memory(narrow(name), precision=precision, checkpointing=checkpointing, **choices, **SIZE)
    tokenizer = VidTok(narrow(name)).train()
    tokenizer.checkpoint_activations(checkpointing)
    perceptual = "lpips" if choices["perceptual"] else "none"
    cfg = ObjectiveConfig(perceptual=perceptual, discriminator=choices["discriminator"])
    objective = Objective(cfg, lpips=LPIPS())
    with meta_autocast(torch.bfloat16 if precision == "bf16-mixed" else None):
        real = count_step(tokenizer, objective, torch.rand(1, 3, 5, 16, 32) * 2 - 1)
    # Attention saves other sums on a CPU.
    assert counted.activations == pytest.approx(real, rel=0.01)
    parameters = [*tokenizer.parameters(), *objective.parameters()]
    assert counted.gradients == sum(p.grad.nbytes for p in parameters if p.grad is not None)


def test_choices_change_memory_as_expected() -> None:
    arch = narrow("vidtok_kl_causal_488_4chn")
    base: dict[str, Any] = {**SIZE, "precision": "32-true", "checkpointing": False}
    base |= {"perceptual": False, "discriminator": "none"}
    plain = training_memory(arch, **base)
    assert training_memory(arch, **base | {"checkpointing": True}).activations < 0.5 * plain.activations
    assert training_memory(arch, **base | {"precision": "bf16-mixed"}).activations < 0.95 * plain.activations
    assert training_memory(arch, **base | {"batch_size": 2}).activations > 1.8 * plain.activations
    decoder = training_memory(arch, **base | {"trained": "decoder"})
    assert decoder.activations < 0.75 * plain.activations and decoder.optimizer == 2 * decoder.gradients
    assert decoder.weights == plain.weights > decoder.gradients
    averaged = training_memory(arch, **base | {"ema": True})
    assert averaged.averages == plain.weights and averaged.total == plain.total + plain.weights
    assert training_memory(arch, **base | {"perceptual": True}).weights > plain.weights + 50e6
    assert training_memory(arch, **base | {"discriminator": "3d"}).gradients > plain.gradients + 10e6


def test_counting_leaves_autocast_as_it_was() -> None:
    before = torch.autocast
    training_memory(narrow("vidtok_fsq_causal_488_4096"), precision="bf16-mixed", **SIZE)
    assert torch.autocast is before


def test_casts_follow_the_rules_of_cuda_autocast() -> None:
    x, weight = torch.zeros(2, 4), torch.zeros(3, 4, requires_grad=True)
    with meta_autocast(torch.bfloat16):
        assert F.linear(x, weight).dtype == (x @ weight.T).dtype == torch.bfloat16
        assert F.layer_norm(F.linear(x, weight), (3,)).dtype == torch.float32
        assert F.silu(F.linear(x, weight)).dtype == torch.bfloat16
        with torch.autocast("cpu", enabled=False):
            assert F.linear(x, weight).dtype == torch.float32
    assert F.linear(x, weight).dtype == torch.float32


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"height": 60}, "height must be a multiple of 8"),
        ({"precision": "16-mixed"}, "precision must be"),
        ({"trained": "encoder"}, "trained must be"),
    ],
)
def test_unknown_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        training_memory(narrow("vidtok_kl_causal_488_4chn"), **settings)
