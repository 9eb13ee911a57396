"""The fast path computes what the definition does, in outputs, gradients and streams, and can be switched off."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from toy_tokenizers import difference, random_latents, random_video, toy_tokenizer

from vidtok_plugin import VidTok, presets, reference_path
from vidtok_plugin.tokenizer.architecture import TimePadding
from vidtok_plugin.tokenizer.network.fast import chunking, dispatch, network, steps
from vidtok_plugin.tokenizer.network.fast.steps import whole
from vidtok_plugin.tokenizer.network.layers import SpatialConv, StreamLayer, TimeConv

EXACT = 1e-11  # in float64: rounding alone
NAMES = ["vidtok_fsq_causal_488_32768", "vidtok_kl_causal_488_4chn_v1_1", "vidtok_kl_noncausal_488_4chn"]


@pytest.fixture(params=NAMES)
def model(request: pytest.FixtureRequest) -> VidTok:
    return toy_tokenizer(request.param)


def run(model: VidTok, video: Tensor) -> tuple[Tensor, Tensor]:
    latents = model.encode(video).latents
    return latents, model.decode(latents)


def stream(model: VidTok, video: Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:
    encoder, decoder = model.encoder_stream(), model.decoder_stream()
    encoded = [encoder.push(chunk).latents for chunk in video.split(3, dim=2)] + [encoder.flush().latents]
    frames = [decoder.push(chunk) for chunk in latents.split(2, dim=2)] + [decoder.flush()]
    return torch.cat(encoded, dim=2), torch.cat(frames, dim=2)


@pytest.mark.parametrize("name", presets())
@torch.no_grad()
def test_the_fast_path_of_every_preset_equals_its_definition(name: str) -> None:
    model = toy_tokenizer(name)
    s, f = model.spatial_factor, model.temporal_factor
    video = random_video(4 * f + model.causal, h=2 * s, w=s)
    latents, frames = run(model, video)
    with reference_path():
        assert difference(model.encode(video).latents, latents) < EXACT
        assert difference(model.decode(latents), frames) < EXACT
        if model.causal:
            coded, decoded = stream(model, video, latents)
            assert difference(coded, latents) < EXACT and difference(decoded, frames) < EXACT


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_training_step_gives_the_gradients_of_the_definition(model: VidTok, checkpointing: bool) -> None:
    video = random_video(model.num_frames(3), h=8, w=16)

    def gradients() -> list[Tensor]:
        x = video.clone().requires_grad_()
        frames = model.decode(model.encode(x).latents)
        return list(torch.autograd.grad((frames * video).sum(), [x, *model.parameters()]))

    model.checkpoint_activations(checkpointing)
    fast = gradients()
    with reference_path():
        plain = gradients()
    largest = max(gradient.abs().max() for gradient in plain)
    assert all((a - b).abs().max() < 1e-9 * largest for a, b in zip(fast, plain, strict=True))


def test_a_step_begun_on_one_path_recomputes_on_the_same(model: VidTok) -> None:
    """The backward pass runs outside of the context in which the forward pass ran."""
    model.checkpoint_activations()
    video = random_video(model.num_frames(2))
    with reference_path():
        loss = model.decode(model.encode(video).latents).square().mean()
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def refuse(*_: Any, **__: Any) -> Any:
    raise AssertionError("the fast path")


def test_the_reference_path_runs_no_kernel(model: VidTok, monkeypatch: pytest.MonkeyPatch) -> None:
    video, latents = random_video(model.num_frames(2)), random_latents(model, 2)
    model.compile_networks(backend=refuse)
    for module, name in ((steps, "KERNELS"), (network, "chunk_size"), (network, "map_frames")):
        monkeypatch.setattr(module, name, {} if name == "KERNELS" else refuse)
    monkeypatch.setattr(steps, "step", refuse)
    for gradients in (False, True):
        with reference_path(), torch.set_grad_enabled(gradients):
            run(model, video)
            if model.causal:
                stream(model, video, latents)
    with pytest.raises((AssertionError, torch._dynamo.exc.BackendCompilerFailed), match="the fast path"):
        run(copy.deepcopy(model), video)


@torch.no_grad()
def test_a_stream_stays_on_the_path_on_which_it_began() -> None:
    for name in NAMES[:2]:
        model = toy_tokenizer(name)
        latents = random_latents(model, 3)
        decoder = model.decoder_stream()
        decoder.push(latents)
        with reference_path():
            plain = model.decoder_stream()
            plain.push(latents)
            with pytest.raises(ValueError, match="a stream must stay on the path on which it began, inside reference"):
                decoder.push(latents)
        with pytest.raises(ValueError, match="expected 'carry' in the state, got conv"):
            plain.push(latents)


@torch.no_grad()
def test_an_encoder_stream_continues_on_the_other_path() -> None:
    """Its state is the same on both."""
    model, video = toy_tokenizer(NAMES[1]), random_video(9)
    encoder = model.encoder_stream()
    first = encoder.push(video[:, :, :5]).latents
    with reference_path():
        rest = encoder.push(video[:, :, 5:]).latents
    assert difference(torch.cat([first, rest], dim=2), model.encode(video).latents) < EXACT


# Forward hooks


@pytest.mark.parametrize("gradients", [False, True])
def test_forward_hooks_see_whole_clips_whatever_their_length(
    model: VidTok, gradients: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hooks of inner layers were never called, and those of long clips got groups of frames or none."""
    layers = {name: m for name, m in model.named_modules() if isinstance(m, StreamLayer)}
    seen: dict[str, list[tuple[int, int]]] = {}
    monkeypatch.setitem(dispatch.GROUP_PIXELS, "cpu", 1)
    monkeypatch.setattr(chunking, "CHUNK_BYTES", 1)
    with torch.set_grad_enabled(gradients):
        for latents in (2, 5):
            video = random_video(model.num_frames(latents))
            expected = run(model, video)
            seen.clear()
            hooks = [
                layer.register_forward_hook(
                    lambda _, x, y, name=name: seen.setdefault(name, []).append((x[0].shape[1], y.shape[1]))
                )
                for name, layer in layers.items()
            ]
            for got, wanted in zip(run(model, video), expected, strict=True):
                assert difference(got, wanted) < EXACT
            for hook in hooks:
                hook.remove()
            assert seen.keys() == layers.keys()  # a causal clip has f - 1 frames in front
            t = latents * model.temporal_factor
            assert seen["encoder"] == [(t, latents)] and seen["encoder.conv_in"] == [(t, t)]
            assert seen["decoder.up_temporal.1.block.0.conv1.conv" if model.causal else "decoder.conv_out"] in (
                [(t, t)],
                [(t // 2, t // 2)],
            )
            assert all(len(calls) == 1 for calls in seen.values())


@torch.no_grad()
def test_a_hook_may_change_inputs_and_outputs(model: VidTok) -> None:
    """As by `torch.nn.Module`'s contract, for forward and pre-hooks."""
    latents = random_latents(model, 2)
    plain = model.decode(latents)
    for register in (model.decoder.mid.register_forward_hook, model.decoder.mid.attn_1.register_forward_pre_hook):
        hook = register(lambda *args: 2 * args[2] if len(args) == 3 else (2 * args[1][0],))
        assert difference(model.decode(latents), plain) > 1e-6
        hook.remove()
    assert torch.equal(model.decode(latents), plain)


# Tensors that the fast path may write into


@torch.no_grad()
def test_tensors_of_the_caller_are_never_modified(model: VidTok, monkeypatch: pytest.MonkeyPatch) -> None:
    for size in (1, chunking.CHUNK_BYTES):
        monkeypatch.setattr(chunking, "CHUNK_BYTES", size)
        video = random_video(model.num_frames(2), h=16, w=16)
        before = video.clone()
        frames = video.permute(0, 2, 3, 4, 1)
        latents = model.encode(video).latents
        kept = latents.clone()
        model.decode(latents)
        if model.causal:  # other frames are put in front of its clips
            model.encoder(frames[:, : model.temporal_factor])
        assert torch.equal(video, before) and torch.equal(latents, kept)


def changes(model: VidTok, other: VidTok) -> list[Callable[[], Any]]:
    """Ways to give `model` the weights of `other`."""
    pairs = list(zip(model.parameters(), other.parameters(), strict=True))

    def swap() -> None:
        for mine, its in pairs:
            mine.data.copy_(its.data)

    def rebind() -> None:
        for mine, its in pairs:
            mine.data = its.data.clone()

    def optimize() -> None:
        for mine, its in pairs:
            mine.grad = mine.detach() - its.detach()
        torch.optim.SGD(model.parameters(), lr=1.0).step()

    return [lambda: model.load_state_dict(other.state_dict()), swap, rebind, optimize]


@torch.no_grad()
def test_changed_weights_count_at_once_however_they_changed() -> None:
    """Lightning's EMA swap writes through `.data`, which leaves a tensor's version as it was."""
    model, other = toy_tokenizer(NAMES[1]), toy_tokenizer(NAMES[1])
    for parameter in other.parameters():
        parameter.mul_(1.1)
    video = random_video(5)
    right, before = run(other, video), run(model, video)
    originals = copy.deepcopy(model.state_dict())
    for change in changes(model, other):
        change()
        for got, wanted in zip(run(model, video), right, strict=True):
            assert difference(got, wanted) < EXACT
        model.load_state_dict(originals)
        for got, wanted in zip(run(model, video), before, strict=True):
            assert difference(got, wanted) < EXACT
    assert run(model.float(), video.float())[0].dtype == torch.float32


def test_a_single_picture_stays_channels_last() -> None:
    """einops gave a single picture a stride by which PyTorch didn't recognize channels-last memory: it copied each one
    to another layout and back, at a third of the speed."""
    picture = torch.randn(1, 1, 8, 8, 4)
    assert whole(SpatialConv(4, 4), picture).is_contiguous()
    for spatial in (True, False):
        conv = TimeConv(4, 4, padding=TimePadding.ZEROS, spatial=spatial)
        assert whole(conv, torch.randn(1, 3, 8, 8, 4)).is_contiguous()
        assert whole(conv, picture).is_contiguous()


@torch.no_grad()
def test_a_layer_of_a_user_class_runs_its_own_code() -> None:
    """A kernel applies to exactly the class that it is registered for, not to subclasses."""

    class Doubled(SpatialConv):
        def on_frames(self, x: Tensor) -> Tensor:
            return 2 * super().on_frames(x)

    layer, x = Doubled(4, 4), torch.randn(1, 2, 8, 8, 4)
    assert torch.equal(whole(layer, x), layer(x))
