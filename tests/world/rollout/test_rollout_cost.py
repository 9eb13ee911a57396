"""The cost of a rollout in machine-independent counts: guards against slower code without a clock."""

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
POSITIONS = GRID * GRID
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
    """Counts a transformer's calls: steps, and prefills apart from them."""

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
    ("decoding", "draws", "prefills"),
    [
        (Decoding(), 16, 0),
        (Decoding(order="diagonal"), 7, 0),
        (Decoding(order="diagonal", diagonal_offset=2), 10, 0),
        (Decoding(order="diagonal", diagonal_offset=4), 16, 0),
        (Decoding(order="masked", steps=3), 3, 1),
    ],
)
@pytest.mark.parametrize("batch", [1, 3])
def test_calls_per_step(
    monkeypatch: pytest.MonkeyPatch, decoding: Decoding, draws: int, prefills: int, batch: int
) -> None:
    """Calls don't depend on the batch. A full context of 8 steps drops 2 of them, which costs one more prefill."""
    config = MASKED if decoding.order == "masked" else CONFIG
    model, actions = random_model(config), random_actions(config, batch, 12)
    assert actions is not None
    calls = Calls(model, monkeypatch)
    generator = StepGenerator(model, random_tokens(config, batch, 2), actions[:2], Sampler(), decoding=decoding)
    assert calls.counts == {"step": 0, "prefill": 1}
    for step in range(2, 12):
        generator.step(of_step(actions, step))
    shifts = 2  # of the context, before steps 8 and 10
    assert calls.counts == {"step": 10 * draws, "prefill": 1 + 10 * prefills + shifts}
    assert generator.model_calls == sum(calls.counts.values())


@pytest.mark.parametrize("max_steps", [4, 8, 16])
def test_bytes_of_a_rollouts_state(max_steps: int) -> None:
    """At most the keys and values of a full context, and its codes, however long the rollout."""
    config = replace(CONFIG, max_steps=max_steps)
    actions = random_actions(config, 3, 30)
    assert actions is not None
    generator = StepGenerator(random_model(config), random_tokens(config, 3, 2), actions[:2], Sampler())
    tokens = 3 * max_steps * POSITIONS
    keys_and_values, codes = tokens * 2 * DEPTH * WIDTH * 4, tokens * 8
    for step in range(2, 30):
        generator.step(of_step(actions, step))
        assert keys_and_values <= generator.state_bytes <= keys_and_values + codes


@pytest.mark.slow
def test_a_rolling_step_costs_the_same_however_long_the_rollout(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same calls and bytes at every step once the context is full, and operations within 1.2 of their median."""
    model, actions = random_model(CONFIG).requires_grad_(False), random_actions(CONFIG, 1, 36)
    assert actions is not None
    calls = Calls(model, monkeypatch)
    decoding = Decoding(order="diagonal", context="rolling")
    generator = StepGenerator(model, random_tokens(CONFIG, 1, 2), actions[:2], Sampler(), decoding=decoding)
    operations, held = [], []
    for step in range(2, 36):
        before = dict(calls.counts)
        with flop_counter() as counter:
            generator.step(of_step(actions, step))
        assert calls.counts == {"step": before["step"] + 7, "prefill": before["prefill"]}
        operations.append(counter.get_total_flops())
        held.append(generator.state_bytes)
    full = CONFIG.max_steps + 2
    assert set(held[full:]) == {held[full]}
    assert max(operations[full:]) <= 1.2 * sorted(operations[full:])[len(operations[full:]) // 2]


def layer_flops(tokens: int, keys: int) -> int:
    """Operations of a block for a number of tokens, each of which attends to a number of keys."""
    hidden = CONFIG.transformer.mlp_width
    return 2 * tokens * (4 * WIDTH**2 + 3 * WIDTH * hidden + 2 * WIDTH * keys)


def context_flops(batch: int) -> int:
    """Operations on what a step is conditioned on before its first token: the previous step and the actions."""
    previous = POSITIONS * 9 * CONFIG.code_width * WIDTH
    return 2 * batch * (previous + FRAMES * CONFIG.action_width * WIDTH + WIDTH**2)


def print_flops() -> int:
    """Operations that tell whether the layers' weights are those that were prepacked before, once a window at most."""
    return 2 * DEPTH * (4 * WIDTH**2 + 3 * WIDTH * CONFIG.transformer.mlp_width)


def drawing_flops(batch: int, positions: int, positions_below_others: int) -> int:
    """Operations of the head, which may also copy a code, and of embedding the token above a position."""
    return 2 * batch * (positions * WIDTH * (CODES + 1) + positions_below_others * CONFIG.code_width * WIDTH)


def counted_step(decoding: Decoding, batch: int) -> int:
    """Operations of one step after two."""
    model, actions = random_model(CONFIG).requires_grad_(False), random_actions(CONFIG, batch, 3)
    assert actions is not None
    generator = StepGenerator(model, random_tokens(CONFIG, batch, 2), actions[:2], Sampler(), decoding=decoding)
    with flop_counter() as counter:
        generator.step(of_step(actions, 2))
    return counter.get_total_flops()


def check_ceiling(operations: int, ceiling: int) -> None:
    """Far fewer operations mean that something is not counted."""
    assert ceiling / 2 < operations <= ceiling


@pytest.mark.parametrize("batch", [1, 3])
def test_operations_of_a_raster_step(batch: int) -> None:
    """Each token passes the layers and the head once, whatever came before; only attention grows."""
    layers = sum(DEPTH * layer_flops(batch, 2 * POSITIONS + position + 1) for position in range(POSITIONS))
    drawing = drawing_flops(batch, POSITIONS, POSITIONS - GRID)
    check_ceiling(counted_step(Decoding(), batch), layers + drawing + context_flops(batch) + print_flops())


def test_operations_of_a_diagonal_step() -> None:
    """Each token passes the layers once here, too; attention covers the positions up to the diagonal's last, masked."""
    groups = diagonal_groups(GRID, GRID, 1, torch.device("cpu"))
    layers = sum(DEPTH * layer_flops(len(group.positions), 2 * POSITIONS + group.end) for group in groups)
    ceiling = layers + drawing_flops(1, POSITIONS, POSITIONS) + context_flops(1) + print_flops()
    check_ceiling(counted_step(Decoding(order="diagonal"), 1), ceiling)


def test_prefill_skips_the_output_of_the_last_layer() -> None:
    """Only the last layer's keys and values are needed."""
    model, tokens = random_model(CONFIG), random_tokens(CONFIG, 1, 2)
    actions = random_actions(CONFIG, 1, 2)
    x = torch.randn(1, 2 * POSITIONS, WIDTH)
    with torch.no_grad(), flop_counter() as counter:
        model.transformer.prefill(x, model.init_cache(1))
    projections = 2 * 2 * POSITIONS * 3 * WIDTH**2
    ceiling = (DEPTH - 1) * layer_flops(2 * POSITIONS, 2 * POSITIONS) + projections
    check_ceiling(counter.get_total_flops(), ceiling)
    with torch.no_grad():
        filled = model.prefill(tokens, actions, model.init_cache(1))
    assert filled.length == 2 * POSITIONS
