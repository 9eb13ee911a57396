"""The transformer is causal, uses relative positions, and gives the same whole or step by step."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from world_model.transformer import attention as attention_module
from world_model.transformer.attention import attention, attention_over
from world_model.transformer.block import TransformerConfig
from world_model.transformer.cache import Placement, Segment, TransformerCache
from world_model.transformer.rotary import grid_rotation
from world_model.transformer.transformer import Transformer

CONFIG = TransformerConfig(width=24, depth=3, heads=2)
GRID = (4, 2, 3)
N = 24


def random_transformer() -> Transformer:
    transformer = Transformer(CONFIG, grid_rotation(*GRID, 12))
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return transformer.eval()


@pytest.mark.parametrize("split", [[24], [1] * 24, [6, 6, 6, 6], [7, 1, 1, 12, 3], [1, 23]])
@torch.no_grad()
def test_steps_with_a_cache_equal_the_whole(split: list[int]) -> None:
    transformer, x = random_transformer(), torch.randn(2, N, 24)
    whole = transformer(x)
    cache, parts = transformer.init_cache(2, N), []
    for part in x.split(split, dim=1):
        y, cache = transformer.step(part, cache)
        parts.append(y)
    assert cache.length == N
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_later_tokens_do_not_change_earlier_outputs() -> None:
    transformer, x = random_transformer(), torch.randn(1, N, 24)
    changed = x.clone()
    changed[:, 10] += 1
    difference = (transformer(x) - transformer(changed)).abs().amax(-1)[0]
    assert not difference[:10].any()
    assert (difference[10:] > 0).all()


@pytest.mark.parametrize("begin", [None, [3, 0]])
@torch.no_grad()
def test_forks_share_the_past_and_go_on_independently(begin: list[int] | None) -> None:
    transformer, x = random_transformer(), torch.randn(2, N, 24)
    padding = None if begin is None else torch.tensor(begin)
    _, cache = transformer.step(x[:, :8], transformer.init_cache(2, N, begin=padding))
    fork = cache.fork(3)
    assert fork.own.keys.shape[3] == N - 8 and fork.capacity == N
    assert fork.shared[0].keys.untyped_storage().data_ptr() == cache.own.keys.untyped_storage().data_ptr()
    futures = torch.randn(6, 5, 24)
    y, fork = transformer.step(futures[:, :3], fork)
    again = fork.fork(2)  # a fork of a fork: two shared pasts
    z, again = transformer.step(futures[:, 3:].repeat_interleave(2, dim=0), again)
    own, _ = transformer.step(x[:, 8:12], cache)  # the forked cache goes on, too
    for row in range(6):
        past = x[row // 3, :8] if begin is None else x[row // 3, begin[row // 3] : 8]
        whole = transformer(torch.cat([past, futures[row]])[None], positions_from(8 - len(past), len(past) + 5))[0]
        torch.testing.assert_close(y[row], whole[-5:-2], rtol=1e-4, atol=1e-5)
        for twin in (2 * row, 2 * row + 1):
            torch.testing.assert_close(z[twin], whole[-2:], rtol=1e-4, atol=1e-5)
    if begin is None:
        torch.testing.assert_close(own, transformer(x)[:, 8:12], rtol=1e-4, atol=1e-5)
    assert (cache.length, fork.length, again.length) == (8, 11, 13)


@pytest.mark.parametrize("masked", [False, True])
def test_outputs_of_the_last_tokens_equal_those_of_all(masked: bool) -> None:
    """So do gradients: the last layer skips the other tokens."""
    transformer, x = random_transformer(), torch.randn(2, 9, 24)
    mask = torch.rand(9, 9) < 0.7 if masked else None
    if mask is not None:
        mask |= torch.eye(9, dtype=torch.bool)
    positions = torch.arange(9) if masked else None
    gradients = []
    for y in (transformer(x, positions, mask)[:, 4:], transformer(x, positions, mask, needed=5)):
        transformer.zero_grad()
        y.square().sum().backward()
        gradients.append((y.detach(), [parameter.grad.clone() for parameter in transformer.parameters()]))
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_prefill_leaves_the_cache_that_steps_leave() -> None:
    transformer, x = random_transformer(), torch.randn(2, 9, 24)
    stepped = transformer.step(x, transformer.init_cache(2, N))[1]
    taken = transformer.prefill(x, transformer.init_cache(2, N))
    assert taken.length == stepped.length == 9
    assert torch.equal(taken.own.keys, stepped.own.keys) and torch.equal(taken.own.values, stepped.own.values)


@pytest.mark.parametrize("rows", [1, 4])
@torch.no_grad()
def test_prepacked_blocks_give_the_same(rows: int) -> None:
    transformer, x = random_transformer(), torch.randn(rows, 9, 24)
    cache = transformer.prefill(x[:, :8], transformer.init_cache(rows, N))
    expected = transformer(x)[:, 8:]
    for given in (transformer.decode_blocks(cache), transformer.decode_blocks(cache, rows)):
        y, _ = transformer.step(x[:, 8:], cache, blocks=given)
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)


def positions_from(start: int, count: int) -> Tensor:
    return torch.arange(start, start + count)


@torch.no_grad()
def test_tokens_may_be_placed_in_any_order() -> None:
    """In diagonal order some tokens are computed before others that precede them."""
    transformer, x = random_transformer(), torch.randn(2, 8, 24)
    visible = torch.ones(8, 8, dtype=torch.bool).tril()
    visible[5:, 4] = False  # position 4 is computed last, and no later position sees it
    whole = transformer(x, torch.arange(8), visible)
    _, cache = transformer.step(x[:, :4], transformer.init_cache(2, N))
    for positions in ([5], [6, 7], [4]):
        at = Placement(
            positions=torch.tensor(positions), end=max(positions) + 1, mask=visible[positions, : max(positions) + 1]
        )
        y, cache = transformer.step(x[:, positions], cache, at)
        torch.testing.assert_close(y, whole[:, positions], rtol=1e-4, atol=1e-5)
    assert cache.length == 4


@torch.no_grad()
def test_pasts_of_different_lengths_are_aligned_at_their_ends() -> None:
    transformer, x = random_transformer(), torch.randn(3, 12, 24)
    begin = torch.tensor([0, 5, 2])
    y, cache = transformer.step(x[:, :9], transformer.init_cache(3, N, begin=begin))
    z, _ = transformer.step(x[:, 9:], cache)
    for row, first in enumerate(begin.tolist()):
        whole = transformer(x[row : row + 1, first:], positions_from(first, 12 - first))[0]
        torch.testing.assert_close(torch.cat([y[row, first:], z[row]]), whole, rtol=1e-4, atol=1e-5)
    assert y.isfinite().all()


def test_a_full_cache_says_so() -> None:
    transformer = random_transformer()
    with pytest.raises(ValueError, match="4 more tokens don't fit"):
        transformer.step(torch.zeros(1, 4, 24), transformer.init_cache(1, 3))
    with pytest.raises(ValueError, match="futures must be at least 1, got 0"):
        transformer.init_cache(1, 3).fork(0)


def test_an_untrained_transformer_only_normalises() -> None:
    x = torch.randn(2, N, 24)
    y = Transformer(CONFIG, grid_rotation(*GRID, 12))(x)
    torch.testing.assert_close(y, torch.nn.functional.rms_norm(x, (24,), eps=1e-6))


def test_rotary_scores_depend_only_on_differences_of_step_row_and_column() -> None:
    rotation = grid_rotation(4, 3, 3, 12)
    q, k = torch.randn(2, 12, dtype=torch.float64)
    rotated_q, rotated_k = (rotation(x.expand(36, 12)) for x in (q, k))
    scores = (rotated_q @ rotated_k.t()).view(4, 3, 3, 4, 3, 3)
    torch.testing.assert_close(scores[0, 0, 0, 1, 2, 1], scores[2, 0, 1, 3, 2, 2], rtol=1e-5, atol=1e-5)
    for neighbor in (scores[1, 0, 0, 0, 0, 0], scores[0, 1, 0, 0, 0, 0], scores[0, 0, 1, 0, 0, 0]):
        assert abs(neighbor - scores[0, 0, 0, 0, 0, 0]) > 1e-3


@pytest.mark.parametrize(("queries", "keys"), [(5, 5), (1, 5), (3, 5)])
def test_causal_queries_are_aligned_with_the_end_of_the_keys(queries: int, keys: int) -> None:
    """SDPA's `is_causal` aligns both at their beginning, which is wrong after cached keys."""
    q, k, v = torch.randn(1, 2, queries, 8), torch.randn(1, 2, keys, 8), torch.randn(1, 2, keys, 8)
    scores = q @ k.transpose(-1, -2) / 8**0.5
    for i in range(queries):
        scores[:, :, i, keys - queries + i + 1 :] = float("-inf")
    expected = scores.softmax(-1) @ v
    torch.testing.assert_close(attention(q, k, v, causal=True), expected, rtol=1e-4, atol=1e-5)
    segments = [Segment(keys=k[:, :, :2], values=v[:, :, :2]), Segment(keys=k[:, :, 2:], values=v[:, :, 2:])]
    torch.testing.assert_close(attention_over(q, segments, causal=True), expected, rtol=1e-4, atol=1e-5)


def test_xformers_is_refused_where_it_cannot_run() -> None:
    q = torch.zeros(1, 1, 1, 8)
    with pytest.raises(ValueError, match="attention: xformers runs only on CUDA, got tensors on cpu"):
        attention(q, q, q, backend="xformers")


class FakeXformers:
    """xformers' interface, computed by SDPA; its kernels support what `kernel` says."""

    def __init__(self, kernel: bool) -> None:
        self.inputs: list[SimpleNamespace] = []
        self.calls = 0
        kernels = [SimpleNamespace(supports=lambda _: kernel)]
        self.fmha = SimpleNamespace(Inputs=self._inputs, ALL_FW_OPS=kernels, ALL_BW_OPS=kernels)

    def _inputs(self, **inputs: Any) -> SimpleNamespace:
        self.inputs.append(SimpleNamespace(**inputs))
        return self.inputs[-1]

    def memory_efficient_attention(self, q: Tensor, k: Tensor, v: Tensor, attn_bias: Tensor | None) -> Tensor:
        self.calls += 1
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=attn_bias).transpose(1, 2)


@pytest.mark.parametrize("kernel", [True, False])
def test_xformers_gets_its_inputs_once(kernel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mask was made a bias twice a call: to look for a kernel, and to run it."""
    fake = FakeXformers(kernel)
    monkeypatch.setattr(attention_module, "_xformers", lambda: fake)
    monkeypatch.setattr(attention_module, "_on_cuda", lambda _: True)
    q, k, v = torch.randn(3, 2, 4, 5, 8).unbind()
    mask = torch.rand(5, 5) < 0.7
    mask[:, 0] = True
    seen = attention(q, k, v, mask=mask)
    torch.testing.assert_close(seen, attention(q, k, v, mask=mask, backend="sdpa"), rtol=1e-5, atol=1e-6)
    assert (len(fake.inputs), fake.calls) == (1, int(kernel))


@pytest.mark.gpu
@pytest.mark.parametrize(("queries", "keys"), [(64, 64), (1, 64), (16, 64)])
def test_xformers_equals_sdpa(queries: int, keys: int) -> None:
    pytest.importorskip("xformers")
    q = torch.randn(2, 4, queries, 32, device="cuda")
    k, v = torch.randn(2, 2, 4, keys, 32, device="cuda").unbind()
    mask = torch.rand(2, 1, queries, keys, device="cuda") < 0.7
    mask[..., 0] = True
    for seen in ({"causal": True}, {"causal": False}, {"mask": mask}):
        expected = attention(q, k, v, backend="sdpa", **seen)  # type: ignore[arg-type]
        ours = attention_module._xformers_attention(
            q,
            k,
            v,
            seen.get("causal", False),  # type: ignore[arg-type]
            seen.get("mask"),  # type: ignore[arg-type]
            required=False,
        )
        if ours is None:
            pytest.skip("xformers has no kernel for this PyTorch")
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [12, 64])
def test_auto_chooses_a_backend_that_can_run(dtype: torch.dtype, width: int) -> None:
    """An xformers built for another PyTorch imports but lacks kernels: auto chose it and failed."""
    q, k, v = torch.randn(3, 2, 4, 16, width, device="cuda", dtype=dtype, requires_grad=True).unbind()
    expected = attention(q, k, v, causal=True, backend="sdpa")
    torch.testing.assert_close(attention(q, k, v, causal=True), expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 20, "heads": 3}, "width must be heads times an even number"),
        ({"depth": 0}, "depth must be 1 to 512, got 0"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"attention": "flash"}, "attention must be 'auto', 'sdpa' or 'xformers', got 'flash'"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TransformerConfig(**settings)  # type: ignore[arg-type]


def test_gradients_reach_every_parameter() -> None:
    transformer, x = random_transformer().train(), torch.randn(2, N, 24)
    loss: Tensor = transformer(x).square().sum()
    loss.backward()  # type: ignore[no-untyped-call]
    for name, parameter in transformer.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


def test_a_cache_has_the_requested_size() -> None:
    cache = TransformerCache.empty(layers=2, batch=3, heads=4, capacity=5, head_width=6, dtype=torch.float64)
    assert cache.own.keys.shape == (2, 3, 4, 5, 6) and cache.own.keys.dtype == torch.float64
    assert cache.num_bytes == 2 * 2 * 3 * 4 * 5 * 6 * 8
    assert (cache.batch, cache.capacity, cache.length) == (3, 5, 0)
