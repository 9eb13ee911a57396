"""What a rollout costs, in counts that no machine changes: a guard against slower code that needs no clock."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from flops import flop_counter
from world_models import of_step, random_actions, random_model, random_tokens

from world_model.actions import ActionSpec
from world_model.architecture import TokenSpec, WorldModelConfig
from world_model.decoding import Decoding, diagonal_groups
from world_model.generation.generator import StepGenerator
from world_model.heads.sampler import Sampler
from world_model.model import WorldModel
from world_model.transformer.block import TransformerConfig

GRID, FRAMES, CODES, WIDTH, DEPTH = 4, 2, 10, 24, 2
SLOTS = GRID * GRID
CONFIG = WorldModelConfig(
    tokens=TokenSpec(
        codebook_size=CODES,
        height=GRID,
        width=GRID,
        temporal_factor=FRAMES,
        actions=ActionSpec(kind="discrete", size=3),
    ),
    max_steps=8,
    transformer=TransformerConfig(width=WIDTH, depth=DEPTH, heads=2),
    code_width=12,
)
MASKED = replace(CONFIG, prediction="masked")


class Calls:
    """Counts a transformer's calls, those that only take tokens in apart."""

    def __init__(self, model: WorldModel, monkeypatch: pytest.MonkeyPatch) -> None:
        self.counts = {"step": 0, "prefill": 0}
        for name in self.counts:
            monkeypatch.setattr(model.transformer, name, self._counted(name, getattr(model.transformer, name)))

    def _counted(self, name: str, call: Any) -> Any:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.counts[name] += 1
            return call(*args, **kwargs)

        return counted


@pytest.mark.parametrize(
    ("decoding", "draws", "taken_in"),
    [
        (Decoding(), 16, 0),
        (Decoding(order="diagonal"), 7, 0),
        (Decoding(order="diagonal", diagonal_offset=2), 10, 0),
        (Decoding(order="diagonal", diagonal_offset=4), 16, 0),
        (Decoding(order="masked", steps=3), 3, 1),
    ],
)
@pytest.mark.parametrize("batch", [1, 3])
def test_calls_of_a_step(
    monkeypatch: pytest.MonkeyPatch, decoding: Decoding, draws: int, taken_in: int, batch: int
) -> None:
    """For a batch together; a step is two frames. A window of eight steps moves by two, which is one call more."""
    config = MASKED if decoding.order == "masked" else CONFIG
    model, actions = random_model(config), random_actions(config, batch, 12)
    assert actions is not None
    calls = Calls(model, monkeypatch)
    generator = StepGenerator(model, random_tokens(config, batch, 2), actions[:2], Sampler(), decoding=decoding)
    assert calls.counts == {"step": 0, "prefill": 1}
    for step in range(2, 12):
        generator.step(of_step(actions, step))
    moves = 2  # before the steps 8 and 10
    assert calls.counts == {"step": 10 * draws, "prefill": 1 + 10 * taken_in + moves}
    assert generator.model_calls == sum(calls.counts.values())


@pytest.mark.parametrize("max_steps", [4, 8, 16])
def test_bytes_of_a_context(max_steps: int) -> None:
    """Keys and values of each layer, single precision, for the whole context from the first; and they stay."""
    config = replace(CONFIG, max_steps=max_steps)
    actions = random_actions(config, 3, 30)
    assert actions is not None
    generator = StepGenerator(random_model(config), random_tokens(config, 3, 2), actions[:2], Sampler())
    a_token = 2 * DEPTH * WIDTH * 4
    buffers = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in generator._cache.own
    }
    assert sum(buffers.values()) == generator._cache.num_bytes == 3 * max_steps * SLOTS * a_token
    before = generator._cache.own.keys.data_ptr()
    for step in range(2, 30):
        generator.step(of_step(actions, step))
    assert generator._cache.own.keys.data_ptr() == before
    past = generator.state_bytes - generator._cache.num_bytes  # codes, 8 bytes each
    assert past == 3 * (max_steps - max(1, max_steps // 4)) * SLOTS * 8


def layer_flops(tokens: int, keys: int) -> int:
    """Of a block for so many tokens, each of which sees so many keys."""
    hidden = CONFIG.transformer.mlp_width
    return 2 * tokens * (4 * WIDTH**2 + 3 * WIDTH * hidden + 2 * WIDTH * keys)


def known_before_flops(batch: int) -> int:
    """Of what a step is told before its first token: the step before it, and its actions."""
    conditioning = SLOTS * 9 * CONFIG.code_width * WIDTH
    return 2 * batch * (conditioning + FRAMES * CONFIG.action_width * WIDTH + WIDTH**2)


def drawing_flops(batch: int, positions: int, slots_told_above: int) -> int:
    """Of the head, with the code that may be pointed at, and of the tokens above that slots are told."""
    return 2 * batch * (positions * WIDTH * (CODES + 1) + slots_told_above * CONFIG.code_width * WIDTH)


def counted_step(decoding: Decoding, batch: int) -> int:
    """Operations of the step after two."""
    model, actions = random_model(CONFIG).requires_grad_(False), random_actions(CONFIG, batch, 3)
    assert actions is not None
    generator = StepGenerator(model, random_tokens(CONFIG, batch, 2), actions[:2], Sampler(), decoding=decoding)
    with flop_counter() as counter:
        generator.step(of_step(actions, 2))
    return counter.get_total_flops()


@pytest.mark.parametrize("batch", [1, 3])
def test_operations_of_a_raster_step(batch: int) -> None:
    """Each token goes through the layers and the head once, whatever came before; attention alone grows."""
    layers = sum(DEPTH * layer_flops(batch, 2 * SLOTS + position + 1) for position in range(SLOTS))
    drawing = drawing_flops(batch, SLOTS, SLOTS - GRID)
    assert counted_step(Decoding(), batch) == layers + drawing + known_before_flops(batch)


def test_operations_of_a_diagonal_step() -> None:
    """Each token goes through once, too; attention is over the slots up to the diagonal's last, masked."""
    groups = diagonal_groups(GRID, GRID, 1, torch.device("cpu"))
    layers = sum(DEPTH * layer_flops(len(group.positions), 2 * SLOTS + group.end) for group in groups)
    expected = layers + drawing_flops(1, SLOTS, SLOTS) + known_before_flops(1)
    assert counted_step(Decoding(order="diagonal"), 1) == expected


def test_taking_in_a_past_leaves_out_what_nobody_reads() -> None:
    """Of the last layer only keys and values are needed."""
    model, tokens = random_model(CONFIG), random_tokens(CONFIG, 1, 2)
    actions = random_actions(CONFIG, 1, 2)
    x = torch.randn(1, 2 * SLOTS, WIDTH)
    with torch.no_grad(), flop_counter() as counter:
        model.transformer.prefill(x, model.init_cache(1))
    projections = 2 * 2 * SLOTS * 3 * WIDTH**2
    assert counter.get_total_flops() == (DEPTH - 1) * layer_flops(2 * SLOTS, 2 * SLOTS) + projections
    with torch.no_grad():
        taken = model.prefill(tokens, actions, model.init_cache(1))
    assert taken.length == 2 * SLOTS
