"""Activation checkpointing changes the memory and time of training, and nothing else."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from toy_tokenizers import random_video, toy_tokenizer

from vidtok_plugin import VidTok
from vidtok_plugin.tokenizer.reconstruction.memory import LiveBytes

KINDS = ["vidtok_fsq_causal_488_32768", "vidtok_kl_causal_488_4chn_v1_1", "vidtok_kl_noncausal_488_4chn"]


def trainee(name: str, **overrides: Any) -> VidTok:
    return toy_tokenizer(name, **overrides).float().train()


def step(model: VidTok, autocast: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
    """The reconstruction of a training step with a fixed seed, and all gradients."""
    torch.manual_seed(1)
    model.zero_grad()
    video = random_video(9).float()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = model(video)
        loss = (out.reconstruction - video).abs().mean() + 0.1 * sum(out.regularizer_terms.values())
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return out.reconstruction.detach(), gradients


def assert_equal_steps(first: tuple[Tensor, dict[str, Tensor]], second: tuple[Tensor, dict[str, Tensor]]) -> None:
    assert torch.equal(first[0], second[0])
    assert first[1].keys() == second[1].keys()
    for name, gradient in first[1].items():
        assert torch.equal(gradient, second[1][name]), name


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("name", KINDS)
def test_outputs_and_gradients_stay_bit_equal(name: str, dropout: float, autocast: bool) -> None:
    model = trainee(name, dropout=dropout)
    plain = step(model, autocast)
    assert len(plain[1]) == len(list(model.parameters())) and all(g.any() for g in plain[1].values())
    model.checkpoint_activations()
    assert_equal_steps(step(model, autocast), plain)


@pytest.mark.parametrize("name", KINDS)
def test_a_decoder_trains_behind_a_frozen_encoder(name: str) -> None:
    model = trainee(name)
    model.encoder.requires_grad_(False)
    plain = step(model)
    assert {key.split(".")[0] for key in plain[1]} == {"decoder"}
    model.checkpoint_activations()
    assert_equal_steps(step(model), plain)


def test_gradients_reach_latents_through_frozen_weights() -> None:
    model = trainee(KINDS[0]).requires_grad_(False)
    latents = torch.zeros(1, 5, 2, 1, 2, requires_grad=True)
    model.decode(latents).square().sum().backward()
    plain, latents.grad = latents.grad, None
    model.checkpoint_activations()
    model.decode(latents).square().sum().backward()
    assert plain is not None and plain.any() and torch.equal(latents.grad, plain)


def peak(run: Callable[[], Any], model: VidTok) -> int:
    with LiveBytes(model.parameters()) as live:
        run()
    return live.peak


@pytest.mark.parametrize("name", KINDS)
def test_a_training_step_takes_less_than_half_the_memory(name: str) -> None:
    model = trainee(name, num_res_blocks=2)
    plain = peak(lambda: step(model), model)
    model.checkpoint_activations()
    assert peak(lambda: step(model), model) < 0.5 * plain
    model.checkpoint_activations(False)
    assert peak(lambda: step(model), model) == plain


def test_inference_and_streams_are_not_checkpointed(monkeypatch: pytest.MonkeyPatch) -> None:

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("checkpointed")

    model = toy_tokenizer(KINDS[1])
    video, names = random_video(9), list(model.state_dict())
    expected = model.encode(video).latents
    model.checkpoint_activations()
    assert list(model.state_dict()) == names
    monkeypatch.setattr("vidtok_plugin.tokenizer.network.encoder_decoder.checkpoint", refuse)
    with pytest.raises(AssertionError, match="checkpointed"):
        model.encode(video)
    with torch.no_grad():
        assert torch.equal(model.encode(video).latents, expected)
    stream = model.encoder_stream()
    pushed = [stream.push(video[:, :, :4]).latents, stream.push(video[:, :, 4:]).latents, stream.flush().latents]
    assert torch.allclose(torch.cat(pushed, dim=2), expected, atol=1e-12)
    decoder = model.decoder_stream()
    decoder.push(expected[:, :, :2])
    decoder.flush()
