"""Exported programs of a world model's step and of the decoder's draw and decode what the package does."""

import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from recordings import tiny_adapter
from torch import Tensor
from torch.export import ExportedProgram
from world_models import CONFIG, VARIANTS, of_step, random_actions, random_model, random_tokens

from vidtok_plugin import TokenizerAdapter, VidTok
from vidtok_plugin.adapter.export import export_decoder
from vidtok_plugin.adapter.tokens import UNPLACED, video_tokens
from world_model import Decoding, Sampler, StepGenerator
from world_model.architecture import OutcomeConfig, StateConfig
from world_model.generation.export import export_world
from world_model.heads.sampler import RolloutNoise

SMALL: dict[str, Any] = {"transformer": replace(CONFIG.transformer, depth=1), "outcomes": OutcomeConfig()}


def loaded(program: ExportedProgram) -> Any:
    """The program as another process would run it."""
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return torch.export.load(file).module()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "sampler", "decoding"),
    [
        ("full", Sampler(seed=3, temperature=0.9, top_k=8, top_p=0.9), Decoding(order="diagonal")),
        ("factored", Sampler(seed=3, guidance=2.0), Decoding()),
        ("patches", Sampler(seed=3), Decoding(order="diagonal")),
        ("no actions", Sampler(temperature=0), Decoding()),
        ("continuous actions", Sampler(seed=3), Decoding(order="diagonal", diagonal_offset=2)),
        ("masked", Sampler(seed=3), Decoding(order="masked", steps=2)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_exported_step_draws_what_a_rolling_rollout_does(variant: str, sampler: Sampler, decoding: Decoding) -> None:
    """From a prompt of one step, until steps have left the context."""
    config = replace(VARIANTS[variant], **SMALL, action_dropout=0.1 if sampler.guided else 0.0)
    model, tokens, actions = random_model(config), random_tokens(config, 2, 1), random_actions(config, 2, 12)
    exported = export_world(model, batch=2, sampler=sampler, decoding=decoding)
    read, draw, state = loaded(exported.read), loaded(exported.draw), exported.state
    generator = StepGenerator(
        model,
        tokens,
        None if actions is None else actions[:1],
        sampler,
        decoding=replace(decoding, context="rolling"),
    )
    noise = RolloutNoise(sampler.seed, range(2))
    state = read(tokens[:, 0], None if actions is None else actions.values[:, 0], state)
    for step in range(1, config.max_steps + 4):
        expected = generator.step(of_step(actions, step))
        given = None if actions is None else actions.values[:, step]
        drawn = draw(given, noise.uniforms(exported.noise_per_step).float(), state)
        torch.testing.assert_close(drawn["tokens"], expected, rtol=1e-4, atol=1e-4)
        assert generator.outcomes is not None
        torch.testing.assert_close(drawn["rewards"], generator.outcomes.rewards, rtol=1e-2, atol=5e-3)
        assert generator.outcomes.terminated is not None
        assert torch.equal(drawn["terminated"], generator.outcomes.terminated)
        state = drawn["state"]
    assert int(state["steps"]) == config.max_steps + 4


@pytest.mark.slow
def test_steps_of_a_prompt_can_be_read_and_forgotten() -> None:
    config = replace(CONFIG, **SMALL)
    tokens, actions, steps = random_tokens(config, 1, 7), random_actions(config, 1, 8), config.max_steps - 1
    assert actions is not None
    sampler, decoding = Sampler(temperature=0), Decoding(order="diagonal")
    exported = export_world(random_model(config), sampler=sampler, decoding=decoding)
    read, draw, state = loaded(exported.read), loaded(exported.draw), exported.state
    generator = StepGenerator(
        random_model(config), tokens[:, :2], actions[:2], sampler, decoding=replace(decoding, context="rolling")
    )
    for step in range(7):
        state = read(tokens[:, step], actions.values[:, step], state)
        assert state["keys"].shape == exported.state["keys"].shape and state["keys"].shape[3] == steps * 6
    for step in range(2, 7):  # what the generator would have drawn is replaced by what was given
        generator.window.next_step(actions[step : step + 1], None)
        generator.window.append(tokens[:, step], actions[step : step + 1], in_cache=False)
    drawn = draw(actions.values[:, 7], torch.rand(1, exported.noise_per_step), state)
    assert torch.equal(drawn["tokens"], generator.step(actions[7:8]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch": 0}, "batch must be at least 1, got 0"),
        ({"decoding": Decoding(context="exact")}, "an exported context rolls"),
        ({"decoding": Decoding(compiled=True)}, "compiled is not exported"),
        ({"decoding": Decoding(draft_tokens=4)}, "draft_tokens is not exported"),
        ({"decoding": Decoding(precision="int8")}, "precision int8 is not exported"),
        ({"sampler": Sampler(guidance=2.0)}, "guidance 2.0 needs a model that was trained with actions"),
    ],
)
def test_what_is_not_exported_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        export_world(random_model(), **settings)


def test_models_with_states_are_refused() -> None:
    with pytest.raises(ValueError, match="the model must have no states"):
        export_world(random_model(replace(CONFIG, state=StateConfig(size=2))))


def tiny_1_1_adapter() -> TokenizerAdapter:
    """An adapter for patches of version 1.1, with random weights."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"ch": 4, "ch_mult": (1, 1, 1, 1), "num_res_blocks": 1}
    return TokenizerAdapter(VidTok.from_preset("vidtok_kl_causal_488_4chn_v1_1", **sizes))


def tokens_for(adapter: TokenizerAdapter, steps: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    if adapter.kind == "discrete":
        assert adapter.codebook_size is not None
        return torch.randint(adapter.codebook_size, (2, steps, 2, 2), generator=generator)
    return torch.randn(2, steps, 2, 2, adapter.patch_dim, generator=generator)


@pytest.mark.slow
@pytest.mark.parametrize(("made", "first_steps"), [(tiny_adapter, 1), (tiny_1_1_adapter, 2)], ids=["FSQ", "KL 1.1"])
def test_an_exported_decoder_gives_the_frames_of_a_stream(
    made: Callable[[], TokenizerAdapter], first_steps: int
) -> None:
    adapter = made()
    exported = export_decoder(adapter, height=16, width=16, batch=2, first_steps=first_steps)
    start, step = loaded(exported.start), loaded(exported.step)
    stream, tokens = adapter.decoder_stream(lookahead=False), tokens_for(adapter, first_steps + 4)
    frames, state = start(tokens[:, :first_steps])
    with torch.no_grad():
        expected = stream.push(video_tokens(tokens[:, :first_steps], 1 + 4 * (first_steps - 1), UNPLACED))
        torch.testing.assert_close(frames, expected, rtol=1e-4, atol=1e-5)
        for i in range(first_steps, first_steps + 4):
            frames, state = step(tokens[:, i : i + 1], state)
            expected = stream.push(video_tokens(tokens[:, i : i + 1], 4, UNPLACED))
            assert frames.shape == expected.shape == (2, 3, 4, 16, 16)
            torch.testing.assert_close(frames, expected, rtol=1e-4, atol=1e-5)


def test_a_decoder_of_version_1_1_starts_with_two_steps() -> None:
    with pytest.raises(ValueError, match="first_steps at least 2, got 1 and 1"):
        export_decoder(tiny_1_1_adapter(), height=16, width=16, first_steps=1)
