"""The transformer is causal, relative in its positions, and the same whole or step by step."""

import pytest
import torch
from torch import Tensor

from world_model.attention import causal_attention
from world_model.cache import TransformerCache
from world_model.rotary import grid_rotation
from world_model.transformer import Transformer, TransformerConfig

CONFIG = TransformerConfig(width=24, depth=3, heads=2)
GRID = (4, 2, 3)
N = 24


def random_transformer() -> Transformer:
    transformer = Transformer(CONFIG)
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return transformer.eval()


@pytest.mark.parametrize("split", [[24], [1] * 24, [6, 6, 6, 6], [7, 1, 1, 12, 3], [1, 23]])
@torch.no_grad()
def test_steps_with_a_cache_equal_the_whole(split: list[int]) -> None:
    transformer, x, rotation = random_transformer(), torch.randn(2, N, 24), grid_rotation(*GRID, 12)
    whole = transformer(x, rotation)
    cache, parts = transformer.init_cache(2, N), []
    for part in x.split(split, dim=1):
        y, cache = transformer.step(part, rotation[cache.length : cache.length + part.shape[1]], cache)
        parts.append(y)
    assert cache.length == N
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_later_tokens_do_not_change_earlier_outputs() -> None:
    transformer, x, rotation = random_transformer(), torch.randn(1, N, 24), grid_rotation(*GRID, 12)
    changed = x.clone()
    changed[:, 10] += 1
    difference = (transformer(x, rotation) - transformer(changed, rotation)).abs().amax(-1)[0]
    assert not difference[:10].any()
    assert (difference[10:] > 0).all()


@torch.no_grad()
def test_a_fork_goes_on_independently() -> None:
    transformer, x, rotation = random_transformer(), torch.randn(1, 4, 24), grid_rotation(*GRID, 12)
    _, cache = transformer.step(x[:, :2], rotation[:2], transformer.init_cache(1, N))
    fork = cache.fork()
    expected, _ = transformer.step(x[:, 2:3], rotation[2:3], cache)
    transformer.step(x[:, 3:4], rotation[2:3], cache)  # another future, in the first one's buffers
    again, forked = transformer.step(x[:, 2:3], rotation[2:3], fork)
    assert torch.equal(again, expected)
    assert (cache.length, fork.length, forked.length) == (2, 2, 3)


def test_a_full_cache_says_so() -> None:
    transformer, rotation = random_transformer(), grid_rotation(*GRID, 12)
    cache = transformer.init_cache(1, 3)
    with pytest.raises(ValueError, match="4 more tokens don't fit"):
        transformer.step(torch.zeros(1, 4, 24), rotation[:4], cache)


def test_an_untrained_transformer_only_normalises() -> None:
    x = torch.randn(2, N, 24)
    y = Transformer(CONFIG)(x, grid_rotation(*GRID, 12))
    torch.testing.assert_close(y, torch.nn.functional.rms_norm(x, (24,), eps=1e-6))


def test_rotary_scores_depend_on_differences_of_step_row_and_column_alone() -> None:
    rotation = grid_rotation(4, 3, 3, 12)
    q, k = torch.randn(2, 12, dtype=torch.float64)
    turned_q, turned_k = (rotation(x.expand(36, 12)) for x in (q, k))
    scores = (turned_q @ turned_k.t()).view(4, 3, 3, 4, 3, 3)
    torch.testing.assert_close(scores[0, 0, 0, 1, 2, 1], scores[2, 0, 1, 3, 2, 2], rtol=1e-5, atol=1e-5)
    for neighbour in (scores[1, 0, 0, 0, 0, 0], scores[0, 1, 0, 0, 0, 0], scores[0, 0, 1, 0, 0, 0]):
        assert abs(neighbour - scores[0, 0, 0, 0, 0, 0]) > 1e-3


@pytest.mark.parametrize(("queries", "keys"), [(5, 5), (1, 5), (3, 5)])
def test_queries_stand_at_the_end_of_the_keys(queries: int, keys: int) -> None:
    """SDPA's `is_causal` aligns queries and keys at their beginning, which is wrong after cached keys."""
    q, k, v = torch.randn(1, 2, queries, 8), torch.randn(1, 2, keys, 8), torch.randn(1, 2, keys, 8)
    scores = q @ k.transpose(-1, -2) / 8**0.5
    for i in range(queries):
        scores[:, :, i, keys - queries + i + 1 :] = float("-inf")
    torch.testing.assert_close(causal_attention(q, k, v), scores.softmax(-1) @ v, rtol=1e-4, atol=1e-5)


def test_xformers_is_refused_where_it_cannot_run() -> None:
    q = torch.zeros(1, 1, 1, 8)
    with pytest.raises(ValueError, match="attention: xformers runs on CUDA alone, got tensors on cpu"):
        causal_attention(q, q, q, "xformers")


@pytest.mark.gpu
@pytest.mark.parametrize(("queries", "keys"), [(64, 64), (1, 64), (16, 64)])
def test_xformers_equals_sdpa(queries: int, keys: int) -> None:
    pytest.importorskip("xformers")
    q = torch.randn(2, 4, queries, 32, device="cuda")
    k, v = torch.randn(2, 2, 4, keys, 32, device="cuda").unbind()
    torch.testing.assert_close(
        causal_attention(q, k, v, "xformers"), causal_attention(q, k, v, "sdpa"), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 20, "heads": 3}, "width must be heads times an even number"),
        ({"depth": 0}, "depth must be at least 1, got 0"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"attention": "flash"}, "attention must be auto, sdpa or xformers, got 'flash'"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TransformerConfig(**settings)  # type: ignore[arg-type]


def test_gradients_reach_every_parameter() -> None:
    transformer, x, rotation = random_transformer().train(), torch.randn(2, N, 24), grid_rotation(*GRID, 12)
    loss: Tensor = transformer(x, rotation).square().sum()
    loss.backward()  # type: ignore[no-untyped-call]
    for name, parameter in transformer.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


def test_a_cache_is_of_the_size_asked_for() -> None:
    cache = TransformerCache.empty(layers=2, batch=3, heads=4, capacity=5, head_width=6, dtype=torch.float64)
    assert cache.keys.shape == (2, 3, 4, 5, 6) and cache.keys.dtype == torch.float64
    assert (cache.batch, cache.capacity, cache.length) == (3, 5, 0)
