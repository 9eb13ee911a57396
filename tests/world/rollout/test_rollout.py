"""Rollouts continue their prompts token by token under their actions and decode exactly."""

from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vidtok_plugin import VidTok
from vidtok_plugin.adapter.adapter import TokenizerAdapter
from world_model.actions import ActionSpec, group_actions
from world_model.architecture import TokenSpec, WorldModelConfig
from world_model.heads.sampler import Sampler
from world_model.model import WorldModel
from world_model.rollout.files import read_actions
from world_model.rollout.rollout import rollout, rollout_many
from world_model.rollout.streaming import stream_rollout
from world_model.transformer.block import TransformerConfig

F = 4  # frames per latent step
SIZE = 16  # pixels: a grid of 2 x 2
SAMPLER = Sampler(seed=3)


def tiny_adapter(version: str = "1.0", dtype: torch.dtype = torch.float64) -> TokenizerAdapter:
    """In float64 by default, so that rounding errors stay far below the tolerances."""
    torch.manual_seed(0)
    tokenizer = VidTok.from_preset("vidtok_tiny", ch=4, ch_mult=(1, 1, 1, 1), fsq_levels=(4, 3), version=version)
    return TokenizerAdapter(tokenizer.to(dtype))


@pytest.fixture(scope="module", params=["1.0", "1.1"])
def adapter(request: pytest.FixtureRequest) -> TokenizerAdapter:
    return tiny_adapter(request.param)


def random_model(kind: str = "discrete", size: int = 5, max_steps: int = 6) -> WorldModel:
    """A model with random weights, none of them zero, as after training."""
    torch.manual_seed(0)
    tokens = TokenSpec(
        codebook_size=12,
        height=2,
        width=2,
        temporal_factor=F,
        fsq_levels=(4, 3),
        actions=ActionSpec(kind=kind, size=size),  # type: ignore[arg-type]
    )
    sizes = TransformerConfig(width=24, depth=1, heads=2)
    model = WorldModel(WorldModelConfig(tokens=tokens, max_steps=max_steps, transformer=sizes))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def video(batch: int = 2, frames: int = 1 + 2 * F) -> Tensor:
    return torch.rand(batch, 3, frames, SIZE, SIZE, generator=torch.Generator().manual_seed(1)) * 2 - 1


def actions(batch: int, frames: int) -> Tensor:
    return torch.randint(5, (batch, frames), generator=torch.Generator().manual_seed(2))


def test_a_rollout_is_the_prompt_followed_by_its_decoded_tokens(adapter: TokenizerAdapter) -> None:
    prompt = video()
    result = rollout(random_model(), adapter, prompt=prompt, actions=actions(2, 17), num_frames=8, sampler=SAMPLER)
    decoded = adapter.decode(result.tokens).clamp(-1, 1)
    assert result.video.shape == (2, 3, 17, SIZE, SIZE)
    assert torch.equal(result.video[:, :, :9].float(), prompt)
    torch.testing.assert_close(result.imagined, decoded[:, :, 9:], rtol=0, atol=1e-6)
    torch.testing.assert_close(result.prompt_reconstruction, decoded[:, :, :9], rtol=0, atol=1e-6)
    assert result.tokens.num_frames.tolist() == [17, 17]
    assert torch.equal(result.tokens.ids[:, : 3 * 4], adapter.encode(prompt).ids)
    assert result.generated_tokens == 2 * 2 * 4 and result.tokens_per_second > 0


def test_greedy_rollouts_take_the_most_likely_token() -> None:
    adapter, model, prompt, acts = tiny_adapter(), random_model(), video(), actions(2, 17)
    result = rollout(model, adapter, prompt=prompt, actions=acts, num_frames=8, sampler=Sampler(temperature=0))
    ids, grouped = adapter.encode(prompt).ids, group_actions(acts, F)
    with torch.no_grad():
        for position in range(3 * 4, 5 * 4):
            codes = torch.cat([ids, torch.zeros(2, 20 - position, dtype=torch.int64)], dim=1).view(2, 5, 2, 2)
            likeliest = model.logits(codes, grouped)[0].flatten(1, 3)[:, position].argmax(-1)
            ids = torch.cat([ids, likeliest[:, None]], dim=1)
    assert torch.equal(result.tokens.ids, ids)


def test_a_rollout_does_not_depend_on_the_rest_of_its_batch() -> None:
    adapter, model, prompt, acts = tiny_adapter(), random_model(), video(3), actions(3, 17)
    together = rollout(model, adapter, prompt=prompt, actions=acts, num_frames=8, sampler=SAMPLER)
    alone = rollout(model, adapter, prompt=prompt[2:], actions=acts[2:], num_frames=8, sampler=SAMPLER, indices=[2])
    assert torch.equal(alone.tokens.ids, together.tokens.ids[2:])
    other = rollout(model, adapter, prompt=prompt, actions=acts, num_frames=8, sampler=Sampler(seed=4))
    assert not torch.equal(other.tokens.ids, together.tokens.ids)


def test_equal_prompts_have_different_futures() -> None:
    prompt, acts = video(1).expand(8, -1, -1, -1, -1), actions(1, 17).expand(8, -1)
    result = rollout(random_model(), tiny_adapter(), prompt=prompt, actions=acts, num_frames=8, sampler=SAMPLER)
    assert len({tuple(row) for row in result.tokens.ids.tolist()}) > 1


def test_actions_change_the_future_from_their_step_on() -> None:
    adapter, model, prompt, acts = tiny_adapter(), random_model(), video(8), actions(8, 21)
    one = rollout(model, adapter, prompt=prompt, actions=acts, num_frames=12, sampler=SAMPLER)
    changed = acts.clone()
    changed[:, 13:] = (acts[:, 13:] + 1) % 5  # of step 4
    other = rollout(model, adapter, prompt=prompt, actions=changed, num_frames=12, sampler=SAMPLER)
    assert torch.equal(one.tokens.ids[:, : 4 * 4], other.tokens.ids[:, : 4 * 4])
    assert not torch.equal(one.tokens.ids[:, 4 * 4 :], other.tokens.ids[:, 4 * 4 :])


@pytest.mark.parametrize("kind", ["none", "discrete", "continuous"])
def test_every_kind_of_action_works(kind: str) -> None:
    model = random_model(kind, 0 if kind == "none" else 3)
    acts = {"none": None, "discrete": torch.randint(3, (2, 13)), "continuous": torch.randn(2, 13, 3)}[kind]
    result = rollout(model, tiny_adapter(), prompt=video(2, 9), actions=acts, num_frames=4)
    assert result.video.shape[2] == 13


def test_uint8_prompts_are_scaled() -> None:
    prompt = ((video() + 1) * 127.5).round().to(torch.uint8)
    result = rollout(random_model(), tiny_adapter(), prompt=prompt, actions=actions(2, 13), num_frames=4)
    torch.testing.assert_close(result.video[:, :, :9].float(), prompt / 127.5 - 1)


def test_prompts_of_different_lengths_fit_in_one_batch() -> None:
    adapter, model = tiny_adapter(), random_model()
    prompts = [video(1, frames)[0] for frames in (9, 1, 5)]
    acts = [actions(1, prompt.shape[1] + 12)[0] for prompt in prompts]
    results = rollout_many(model, adapter, prompts=prompts, actions=acts, num_frames=12, sampler=SAMPLER)
    for i, result in enumerate(results):
        alone = rollout(
            model,
            adapter,
            prompt=prompts[i][None],
            actions=acts[i][None],
            num_frames=12,
            sampler=SAMPLER,
            indices=[i],
        )
        assert torch.equal(result.tokens.ids, alone.tokens.ids)
        torch.testing.assert_close(result.video, alone.video, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="at least one prompt, and as many actions as prompts, got 3 prompts and 1"):
        rollout_many(model, adapter, prompts=prompts, actions=acts[:1])
    with pytest.raises(ValueError, match=r"rollout_many \(prompt 1\): the prompt must have 1 \+ k \* 4 frames"):
        rollout_many(model, adapter, prompts=[prompts[0], prompts[0][:, :3]], actions=acts[:2], num_frames=12)


@pytest.mark.parametrize("prediction", ["causal", "masked"])
def test_continuous_tokens_roll_out(prediction: str) -> None:
    torch.manual_seed(0)
    tokenizer = VidTok.from_preset("vidtok_kl_causal_488_4chn", ch=4, ch_mult=(1, 1, 1, 1), num_res_blocks=1)
    adapter = TokenizerAdapter(tokenizer.double(), patch_size=(1, 1, 2))
    tokens = TokenSpec(patch_dim=8, height=2, width=2, temporal_factor=F, actions=ActionSpec(kind="discrete", size=5))
    sizes = TransformerConfig(width=24, depth=1, heads=2)
    config = WorldModelConfig(tokens=tokens, transformer=sizes, prediction=prediction)  # type: ignore[arg-type]
    model = WorldModel(config).eval()
    prompt = torch.rand(2, 3, 9, 16, 32) * 2 - 1
    result = rollout(model, adapter, prompt=prompt, actions=actions(2, 17), num_frames=8, sampler=SAMPLER)
    assert result.video.shape == (2, 3, 17, 16, 32) and result.video.isfinite().all()
    torch.testing.assert_close(
        result.tokens.patches[:, :12].float(), adapter.encode(prompt).patches.float(), rtol=1e-4, atol=1e-4
    )
    decoded = adapter.decode(result.tokens).clamp(-1, 1)
    torch.testing.assert_close(result.imagined, decoded[:, :, 9:].to(result.imagined), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="the adapter must be continuous, like the world model's tokens"):
        rollout(model, tiny_adapter(), prompt=prompt, actions=actions(2, 17), num_frames=8)


def test_a_stream_yields_the_frames_of_the_rollout_step_by_step(adapter: TokenizerAdapter) -> None:
    model, prompt, acts = random_model(), video(), actions(2, 17)
    whole = rollout(model, adapter, prompt=prompt, actions=acts, num_frames=8, sampler=SAMPLER)
    seen = []

    def policy(frames: Tensor) -> Tensor:
        seen.append(frames)
        return acts[:, 9 + 4 * len(seen) - 4 : 9 + 4 * len(seen)]

    stream = stream_rollout(
        model, adapter, prompt=prompt, policy=policy, actions=acts[:, :9], num_frames=8, sampler=SAMPLER
    )
    streamed = list(stream)
    assert [frames.shape[2] for frames in streamed] == [F, F]
    assert torch.equal(seen[0], prompt[:, :, -F:]) and torch.equal(seen[1], streamed[0])
    if adapter.tokenizer.architecture.version == "1.0":  # 1.1 differs a little at the seams without lookahead
        torch.testing.assert_close(torch.cat(streamed, dim=2), whole.imagined, rtol=0, atol=1e-6)


def test_a_stream_without_an_end_continues() -> None:
    policy: Callable[[Tensor], Tensor] = lambda frames: torch.ones(1, F, dtype=torch.int64)  # noqa: E731
    stream = stream_rollout(random_model(max_steps=3), tiny_adapter(), prompt=video(1, 1), policy=policy)
    assert all(frames.shape == (1, 3, F, SIZE, SIZE) for frames in islice(stream, 5))
    stream = stream_rollout(random_model("none", 0), tiny_adapter(), prompt=video(1, 5))
    assert next(stream).shape[2] == F


def test_interleaved_streams_stay_independent() -> None:
    model, adapter = random_model("none", 0), tiny_adapter()
    streams = [
        stream_rollout(model, adapter, prompt=video(2, frames), num_frames=12, sampler=SAMPLER) for frames in (5, 9)
    ]
    interleaved = list(zip(*streams, strict=True))
    for i, frames in enumerate((5, 9)):
        alone = stream_rollout(model, adapter, prompt=video(2, frames), num_frames=12, sampler=SAMPLER)
        for one, other in zip(alone, interleaved, strict=True):
            assert torch.equal(one, other[i])


def rollout_with(**changes: Any) -> None:
    arguments: dict[str, Any] = {"prompt": video(), "actions": actions(2, 17), "num_frames": 8}
    rollout(random_model(), tiny_adapter(), **arguments | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": video(2, 8)}, r"1 \+ k \* 4 frames .* got 8; the nearest lengths that fit are 5 and 9"),
        ({"prompt": video(2, 4)}, "got 4; the nearest lengths that fit are 1 and 5"),
        ({"num_frames": 6}, "positive multiple of 4 .* got 6; the nearest lengths that fit are 4 and 8"),
        ({"num_frames": 0}, "got 0; the nearest length that fits is 4"),
        (
            {"num_frames": 4},
            r"shape \(2, 13\), one for each frame \(9 of the prompt and 4 to imagine\), got \(2, 17\)",
        ),
        ({"actions": None}, "trained with actions; pass one for each of the 17 frames .* got none"),
        ({"actions": actions(1, 17)}, r"shape \(2, 17\).*got \(1, 17\)"),
        ({"actions": actions(2, 17) + 1}, r"must be in 0\.\.4, .* got 5 at position \(\d, \d+\)"),
        ({"actions": torch.zeros(2, 17)}, "must be integers of shape"),
        ({"prompt": video()[..., :8]}, "16 x 16 pixels .* got 16 x 8"),
        ({"prompt": video()[..., :12]}, "width must be a multiple of 8"),
        ({"prompt": video() * 100}, r"must be in \[-1, 1\]"),
        ({"indices": [0]}, "indices must name each of the 2 rollouts, got 1"),
    ],
)
def test_arguments_that_do_not_fit_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rollout_with(**changes)


def test_policies_that_do_not_fit_are_named() -> None:
    model, adapter = random_model(), tiny_adapter()
    with pytest.raises(ValueError, match="policy must be given, since the world model was trained with actions"):
        stream_rollout(model, adapter, prompt=video())
    with pytest.raises(ValueError, match="policy must be left out, since the world model was trained without actions"):
        stream_rollout(random_model("none", 0), adapter, prompt=video(), policy=lambda frames: frames)
    stream = stream_rollout(model, adapter, prompt=video(), policy=lambda frames: torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"the 4 actions of the next latent step .*\(2, 4\), got \(2, 3\)"):
        next(stream)


def test_another_adapter_is_refused() -> None:
    model, adapter = random_model(), tiny_adapter()
    model.token_hash = "abc"
    with pytest.raises(ValueError, match="the token hash that the model was trained on, abc, got"):
        rollout(model, adapter, prompt=video(), actions=actions(2, 13), num_frames=4)
    config = model.config
    assert config.tokens is not None
    other = WorldModel(replace(config, tokens=replace(config.tokens, codebook_size=24, fsq_levels=(8, 3))))
    with pytest.raises(ValueError, match="codebook_size must be the model's, 24, got 12"):
        rollout(other, adapter, prompt=video(), actions=actions(2, 13), num_frames=4)


def test_an_adapter_whose_decoder_was_trained_further_is_accepted() -> None:
    model, adapter = random_model(), tiny_adapter()
    model.token_hash = adapter.token_hash
    with torch.no_grad():
        next(adapter.tokenizer.decoder.parameters()).mul_(1.5)
    trained = TokenizerAdapter(adapter.tokenizer)
    rollout(model, trained, prompt=video(), actions=actions(2, 13), num_frames=4)
    with torch.no_grad():
        next(trained.tokenizer.encoder.parameters()).mul_(1.5)
    other = TokenizerAdapter(trained.tokenizer)
    with pytest.raises(ValueError, match="the token hash that the model was trained on"):
        rollout(model, other, prompt=video(), actions=actions(2, 13), num_frames=4)


def test_an_actions_file_is_refused_for_a_model_without_actions(tmp_path: Path) -> None:
    """`world-model rollout --actions` used to ignore them silently."""
    model = random_model("none", 0)
    assert read_actions(model, tmp_path / "clip.mp4", None, 5) is None
    with pytest.raises(ValueError, match="trained without actions; leave --actions out"):
        read_actions(model, tmp_path / "clip.mp4", tmp_path / "clip.actions.npy", 5)


def test_a_saved_model_loads_with_its_adapter(tmp_path: Any) -> None:
    model, adapter = random_model(), tiny_adapter(dtype=torch.float32)
    model.save_pretrained(tmp_path, adapter)
    again, its_adapter = (
        WorldModel.from_pretrained(tmp_path),
        TokenizerAdapter.from_pretrained(tmp_path / "adapter"),
    )
    assert again.token_hash == its_adapter.token_hash == adapter.token_hash
    arguments: dict[str, Any] = {"prompt": video(), "actions": actions(2, 13), "num_frames": 4}
    one, other = rollout(model, adapter, **arguments), rollout(again, its_adapter, **arguments)
    assert torch.equal(one.video, other.video)
