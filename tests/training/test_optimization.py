"""The learning rate warms up, stays constant, and decays to its final value in either shape."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidtok_plugin.training.optimization import OptimizerConfig


@given(warmup=st.integers(0, 50), decay=st.integers(0, 50), max_steps=st.integers(1, 200), step=st.integers(0, 199))
def test_the_rate_warms_up_stays_constant_and_decays_to_zero(
    warmup: int, decay: int, max_steps: int, step: int
) -> None:
    cfg = OptimizerConfig(warmup_steps=warmup, decay_steps=decay)
    step = min(step, max_steps - 1)
    rate = cfg.rate(step, max_steps)
    assert 0 < rate <= 1
    if warmup <= step <= max_steps - decay:
        assert rate == 1
    if decay:
        assert cfg.rate(max_steps, max_steps) == 0
    assert cfg.rate(step, -1) == cfg.rate(step, max_steps + 10_000)  # a run without a limit never decays


@given(decay=st.integers(1, 50), final=st.floats(0, 1), shape=st.sampled_from(["linear", "cosine"]))
def test_the_rate_decays_to_its_final_fraction_in_either_shape(decay: int, final: float, shape: str) -> None:
    cfg = OptimizerConfig(decay_steps=decay, decay_shape=shape, final_rate=final)
    rates = [cfg.rate(step, decay) for step in range(decay + 1)]
    assert rates[0] == pytest.approx(1) and rates[-1] == pytest.approx(final)
    assert all(after <= before + 1e-12 for before, after in zip(rates[:-1], rates[1:], strict=True))
    assert cfg.rate(decay + 7, decay) == rates[-1]


def test_a_cosine_decay_is_flat_at_both_ends() -> None:
    cfg = OptimizerConfig(warmup_steps=2, decay_steps=4, decay_shape="cosine", final_rate=0.2)
    rates = [cfg.rate(step, 8) for step in range(9)]
    root = 0.5**0.5
    falling = [0.2 + 0.8 * left for left in (0.5 + root / 2, 0.5, 0.5 - root / 2, 0)]
    assert rates == pytest.approx([0.5, 1, 1, 1, 1, *falling])
