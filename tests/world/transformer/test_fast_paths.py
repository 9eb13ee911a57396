"""The fast paths compute what the definition does, with the same gradients, and `reference_path` switches them off."""

import gc
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any, cast
from weakref import ref

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from vidtok_plugin import reference_path
from vidtok_plugin.common import one_dnn
from world_model.transformer import functional
from world_model.transformer.attention import attention, product_attention
from world_model.transformer.block import DecodeBlock, TransformerConfig
from world_model.transformer.cache import Placement, Segment
from world_model.transformer.fast import chunked_attention, packed_blocks, prepack
from world_model.transformer.fast import functional as fast
from world_model.transformer.fast.choice import functions
from world_model.transformer.fast.decode_block import FlatDecodeBlock
from world_model.transformer.fast.packed_blocks import PackedBlocks
from world_model.transformer.fast.prepack import MAX_ROWS, Rows, prepack_linear
from world_model.transformer.rotary import Rotation, grid_rotation
from world_model.transformer.transformer import Transformer

B, N, HEADS, E = 2, 6, 3, 6
LAYER_CALLS = 35
PARTS = (slice(0, 2), slice(2, N))  # of the positions


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


def use_one_dnn(monkeypatch: pytest.MonkeyPatch, on: bool) -> None:
    """As on a processor that is faster by it, or not."""
    if on and not one_dnn.is_available():
        pytest.skip("needs oneDNN")
    monkeypatch.setattr(one_dnn, "is_faster", lambda: on)


def angles() -> Rotation:
    return grid_rotation(N, 1, 1, E)


def defined_norm(x: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], eps=1e-6) * weight


def defined_queries_keys_values(qkv: Tensor, scale: Tensor, rotation: Rotation) -> tuple[Tensor, ...]:
    """Pair by pair, as rotations of the plane."""
    cos, sin = (table[:, None, E // 2 :].double() for table in (rotation.cos, rotation.sin))  # (n, 1, e / 2)
    rotated = []
    for i in range(2):
        x, y = defined_norm(qkv[:, :, i], scale[i]).chunk(2, dim=-1)
        rotated.append(torch.cat([x * cos - y * sin, x * sin + y * cos], dim=-1))
    return tuple(part.transpose(1, 2) for part in (*rotated, qkv[:, :, 2]))


def defined_swiglu(x: Tensor) -> Tensor:
    gate, value = x.chunk(2, dim=-1)
    return gate * torch.sigmoid(gate) * value


# name: function, its definition in other words, inputs that have gradients
CASES: dict[str, tuple[str, Callable[..., Any], tuple[Tensor, ...]]] = {
    "norm": ("rms_norm", defined_norm, (random(4, 5), random(5, seed=1))),
    "norm of three axes": ("rms_norm", defined_norm, (random(2, 3, 5), random(5, seed=1))),
    "queries, keys, values": (
        "queries_keys_values",
        defined_queries_keys_values,
        (random(B, N, 3, HEADS, E), random(2, 1, E, seed=1)),
    ),
    "swiglu": ("swiglu", defined_swiglu, (random(4, 6),)),
}


def bound(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """The function of the inputs that have gradients."""
    if CASES[name][0] != "queries_keys_values":
        return function
    return lambda qkv, scale: function(qkv, scale, angles())


def fast_function(name: str) -> Callable[..., Any]:
    return bound(getattr(fast, CASES[name][0]), name)


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_the_definition(name: str) -> None:
    function, definition, inputs = fast_function(name), bound(CASES[name][1], name), CASES[name][2]
    expected = definition(*inputs)
    torch.testing.assert_close(function(*inputs), expected)
    torch.testing.assert_close(bound(getattr(functional, CASES[name][0]), name)(*inputs), expected)
    with torch.no_grad():
        torch.testing.assert_close(function(*inputs), expected)
    assert torch.autograd.gradcheck(function, inputs)


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_as_precise_under_autocast(name: str) -> None:
    """Lightning also runs the backward pass under autocast, where matrix products have half precision."""
    function, inputs = fast_function(name), CASES[name][2]
    leaves = [one.detach().float().requires_grad_() for one in inputs]

    def gradients() -> list[Tensor]:
        out = function(*leaves)
        outs = out if isinstance(out, tuple) else (out,)
        return list(torch.autograd.grad(sum(one.square().sum() for one in outs), leaves))

    plain = gradients()
    with torch.autocast("cpu", torch.bfloat16):
        cast = gradients()
    for a, b in zip(plain, cast, strict=True):
        assert b.dtype == torch.float32 and torch.equal(a, b)


@pytest.mark.parametrize("name", CASES)
def test_a_gradients_gradient_is_refused(name: str) -> None:
    function, inputs = fast_function(name), CASES[name][2]
    out = function(*inputs)
    loss = (out[0] if isinstance(out, tuple) else out).square().sum()
    (gradient,) = torch.autograd.grad(loss, inputs[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        gradient.sum().backward()


def test_a_scale_of_zero_has_a_gradient() -> None:
    """It would be lost if the backward pass recovered the normalised values from the scaled ones."""
    qkv, scale = random(B, N, 3, HEADS, E), torch.zeros(2, 1, E, dtype=torch.float64, requires_grad=True)
    q, k, _ = fast.queries_keys_values(qkv, scale, angles())
    (q.sum() + k.sum()).backward()  # type: ignore[no-untyped-call]
    assert scale.grad is not None and scale.grad.abs().min() > 0


@pytest.mark.parametrize("name", CASES)
def test_half_precision_stays_near(name: str) -> None:
    _, _, inputs = CASES[name]
    halves = [x.detach().bfloat16() for x in inputs]
    assert functions(halves[0]) is functional
    half = bound(getattr(functional, CASES[name][0]), name)(*halves)
    exact = fast_function(name)(*(x.detach() for x in inputs))
    for one, other in zip(*((x,) if isinstance(x, Tensor) else x for x in (half, exact)), strict=True):
        assert one.dtype == torch.bfloat16
        torch.testing.assert_close(one.double(), other, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("rows", [None, 1, 2, 3, 8, MAX_ROWS, MAX_ROWS + 1, "varied"])
@pytest.mark.parametrize("by_one_dnn", [False, True])
def test_prepacked_products_equal_plain_ones(
    monkeypatch: pytest.MonkeyPatch, rows: Rows | None, by_one_dnn: bool
) -> None:
    use_one_dnn(monkeypatch, by_one_dnn)
    weight = torch.randn(12, 20)
    product = prepack_linear(weight, rows)
    for given in (rows if isinstance(rows, int) else 5, 7):  # other numbers of rows, too
        x = torch.randn(given, 20)
        torch.testing.assert_close(product(x), x @ weight.t(), rtol=1e-5, atol=1e-5)


@pytest.fixture
def asked_anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """On a processor that multiplies by MKL. Whether weights can be prepacked is asked once a process."""
    monkeypatch.setattr(one_dnn, "is_faster", lambda: False)
    prepack._can_prepack.cache_clear()
    yield
    prepack._can_prepack.cache_clear()


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="needs MKL")
@pytest.mark.usefixtures("asked_anew")
@pytest.mark.parametrize("known", [{"_mkl_gone": ["Tensor"]}, {"_mkl_linear": ["Tensor", "Tensor"]}])
def test_without_the_private_operations_products_are_plain(
    known: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A PyTorch in which they are missing or take other arguments failed in the first rollout of 3 to 32 rows."""
    monkeypatch.setattr(prepack, "_OPERATIONS", known)
    weight, x = torch.randn(12, 20), torch.randn(8, 20)
    assert torch.equal(prepack_linear(weight, 8)(x), F.linear(x, weight))
    prepack_linear(weight, 8)
    (message,) = caplog.messages
    assert f"has no mkl::{next(iter(known))}(Tensor" in message


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="needs MKL")
@pytest.mark.usefixtures("asked_anew")
def test_this_pytorch_has_the_private_operations() -> None:
    assert prepack._can_prepack()


@pytest.mark.parametrize("rows", [1, 8])
def test_only_single_precision_is_prepacked(rows: int) -> None:
    weight, x = torch.randn(12, 20, dtype=torch.float64), torch.randn(rows, 20, dtype=torch.float64)
    assert torch.equal(prepack_linear(weight, rows)(x), F.linear(x, weight))
    with torch.autocast("cpu", torch.bfloat16):
        assert prepack_linear(weight.float(), rows)(x.float()).dtype == torch.bfloat16


def random_transformer(attention: Any = "auto") -> Transformer:
    torch.manual_seed(0)
    transformer = Transformer(
        TransformerConfig(width=24, depth=3, heads=2, attention=attention), grid_rotation(4, 2, 3, 12)
    )
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return transformer


@pytest.mark.parametrize("masked", [False, True])
def test_training_on_the_fast_path_equals_the_reference_path(masked: bool) -> None:
    x = torch.randn(2, 9, 24)
    mask = torch.rand(9, 9) < 0.7 if masked else None
    if mask is not None:
        mask |= torch.eye(9, dtype=torch.bool)
    results = []
    for path in (nullcontext(), reference_path()):
        transformer = random_transformer()
        with path:
            y = transformer(x, mask=mask, needed=5)
            y.square().sum().backward()
        results.append((y.detach(), [parameter.grad for parameter in transformer.parameters()]))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("rows", "dtype"), [(None, torch.float32), (2, torch.float32), (None, torch.bfloat16)])
@torch.no_grad()
def test_decoding_on_the_fast_path_equals_the_reference_path(rows: int | None, dtype: torch.dtype) -> None:
    """In bfloat16 on a CPU, the fast path attends over whole buffers, with a mask."""
    transformer, x = random_transformer().to(dtype), torch.randn(2, 9, 24, dtype=dtype)
    tolerance = 1e-4 if dtype == torch.float32 else 0.1
    results = []
    for path in (nullcontext(), reference_path()):
        with path:
            cache = transformer.prefill(x[:, :6], transformer.init_cache(2, 9, dtype=dtype))
            blocks = transformer.decode_blocks(cache, rows)
            y, cache = transformer.step(x[:, 6:7], cache, blocks=blocks)
            z, _ = transformer.step(x.repeat_interleave(2, dim=0)[:, 7:], cache.fork(2))
        results.append((y, z, cache.own.keys, cache.own.values))
    torch.testing.assert_close(*results, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("masked", [False, True])
def test_products_attend_as_pytorchs_kernel_does(masked: bool) -> None:
    q, k, v = (random(B, HEADS, N, E, seed=seed).detach() for seed in range(3))
    mask = (torch.rand(N, N) < 0.7) | torch.eye(N, dtype=torch.bool) if masked else None
    whole, parts = Segment(keys=k, values=v), [Segment(keys=k[:, :, a], values=v[:, :, a]) for a in PARTS]
    expected = attention(q, k, v, mask=mask, backend="sdpa")
    for segments in ([whole], parts):
        torch.testing.assert_close(product_attention(q, segments, mask=mask), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", ["auto", "sdpa"])
@torch.no_grad()
def test_bfloat16_decodes_by_products_unless_sdpa_is_asked_for(monkeypatch: pytest.MonkeyPatch, backend: Any) -> None:
    """PyTorch's kernel takes two to six times as long for them on a CPU."""
    calls, kernel = 0, F.scaled_dot_product_attention

    def counted(*args: Any, **settings: Any) -> Tensor:
        nonlocal calls
        calls += 1
        return kernel(*args, **settings)

    monkeypatch.setattr("world_model.transformer.attention.scaled_dot_product_attention", counted)
    transformer = random_transformer(backend).bfloat16()
    x = torch.randn(2, 9, 24, dtype=torch.bfloat16)
    cache = transformer.prefill(x[:, :6], transformer.init_cache(2, 9, dtype=torch.bfloat16))
    transformer.step(x[:, 6:7], cache)
    assert bool(calls) == (backend == "sdpa")


@torch.no_grad()
def test_blocks_made_on_the_fast_path_are_not_used_on_the_reference_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rollout makes them once for many steps, before `reference_path` may begin."""
    use_one_dnn(monkeypatch, False)
    transformer, x = random_transformer(), torch.randn(1, 1, 24)
    cache = transformer.init_cache(1, 9)
    blocks = transformer.decode_blocks(cache, rows=1)
    assert isinstance(blocks, list) and isinstance(blocks[0], FlatDecodeBlock)
    expected, _ = transformer.step(x, cache, blocks=blocks)
    with reference_path():
        (plain, *_) = cast(list[Any], transformer.decode_blocks(cache))
        assert isinstance(plain, DecodeBlock)
        monkeypatch.delattr(FlatDecodeBlock, "__call__")
        y, _ = transformer.step(x, cache, blocks=blocks)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("at", [None, Placement(positions=torch.tensor([7, 6]), end=9, mask=torch.ones(2, 9) > 0)])
@torch.no_grad()
def test_packed_blocks_compute_what_the_definition_does(monkeypatch: pytest.MonkeyPatch, at: Placement | None) -> None:
    """In order and at places of a step, with and without a past that forks share."""
    use_one_dnn(monkeypatch, True)
    transformer, x = random_transformer(), torch.randn(2, 9, 24)
    results = []
    for path, rows in ((nullcontext(), 4), (reference_path(), None)):
        with path:
            cache = transformer.prefill(x[:, :6], transformer.init_cache(2, 9))
            for past in (cache, cache.fork(2)):
                blocks = transformer.decode_blocks(past, rows)
                assert isinstance(blocks, PackedBlocks) == (rows is not None)
                tokens = x.repeat_interleave(past.batch // 2, dim=0)[:, 6:8]
                results.append((transformer.step(tokens, past, at, blocks)[0], past.own.keys, past.own.values))
    torch.testing.assert_close(results[:2], results[2:], rtol=1e-4, atol=1e-4)


class Operations(TorchDispatchMode):
    """Counts PyTorch's operations."""

    count = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return operation(*args, **(kwargs or {}))


@torch.inference_mode()
def test_calls_of_a_layer_for_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their number is what a token takes beside its reading of weights. It was 41."""
    use_one_dnn(monkeypatch, True)
    counts = []
    for depth in (1, 2):
        config = TransformerConfig(width=24, depth=depth, heads=2)
        transformer, x = Transformer(config, grid_rotation(4, 2, 3, 12)), torch.randn(1, 1, 24)
        cache = transformer.init_cache(1, 9)
        blocks = transformer.decode_blocks(cache, 1)
        with Operations() as operations:
            transformer.step(x, cache, blocks=blocks)
        counts.append(operations.count)
    assert counts[1] - counts[0] <= LAYER_CALLS


@torch.no_grad()
def test_weights_are_packed_once_until_they_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """A change through `.data` counts, too."""
    use_one_dnn(monkeypatch, True)
    transformer, x = random_transformer(), torch.randn(1, 1, 24)
    first, second = transformer.init_cache(1, 9), transformer.init_cache(1, 9)
    kept = [transformer.decode_blocks(cache, "varied") for cache in (first, second)]
    weight = transformer._blocks()[1].mlp.out.weight
    weight.data.copy_(weight.data.flip(-1).contiguous())
    kept.append(transformer.decode_blocks(second, "varied"))
    weights = [blocks.weights for blocks in kept if isinstance(blocks, PackedBlocks)]
    assert [[a is b for a, b in zip(weights[0], other, strict=True)] for other in weights[1:]] == [
        [True, True, True],
        [True, False, True],
    ]
    torch.testing.assert_close(transformer.step(x, second, blocks=kept[2])[0], transformer(x), rtol=1e-4, atol=1e-5)


def test_packed_weights_are_freed_with_their_model(monkeypatch: pytest.MonkeyPatch) -> None:
    use_one_dnn(monkeypatch, True)
    transformer = random_transformer()
    transformer.decode_blocks(transformer.init_cache(1, 9), "varied")
    product = cast(Any, packed_blocks._PACKED[transformer._blocks()[0]].qkv)
    packed = ref(product.keywords["packed"])
    del product
    assert packed() is not None
    del transformer
    gc.collect()
    assert packed() is None


@pytest.mark.parametrize("needed", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("out", [4, 40])
def test_products_by_one_dnn_are_those_of_the_definition(
    monkeypatch: pytest.MonkeyPatch, needed: tuple[bool, bool], out: int
) -> None:
    use_one_dnn(monkeypatch, True)
    shapes = ((2, 5, 7), (out, 7))
    x, weight = (torch.randn(*shape, requires_grad=wanted) for shape, wanted in zip(shapes, needed, strict=True))
    leaves = [leaf for leaf in (x, weight) if leaf.requires_grad]
    upstream = torch.randn(out, 2, 5).permute(1, 2, 0)
    results = []
    for function in (fast.linear, functional.linear):
        multiplied = function(x, weight)
        results.append((multiplied.detach(), *torch.autograd.grad(multiplied, leaves, upstream)))
    torch.testing.assert_close(*results)


def test_products_by_one_dnn_are_left_to_pytorch_where_they_gain_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    use_one_dnn(monkeypatch, True)
    monkeypatch.setattr(one_dnn, "product", None)
    double, weight = torch.randn(3, 7, dtype=torch.float64), torch.randn(4, 7)
    assert torch.equal(fast.linear(double, weight.double()), F.linear(double, weight.double()))
    with torch.autocast("cpu", torch.bfloat16):
        assert fast.linear(torch.randn(3, 7), weight).dtype == torch.bfloat16
    with reference_path():
        assert functions(weight) is functional


@pytest.mark.parametrize("chunk", [2, 4, N])
@pytest.mark.parametrize("mixed", [False, True])
def test_chunked_attention_by_one_dnn_is_causal_attention(
    monkeypatch: pytest.MonkeyPatch, chunk: int, mixed: bool
) -> None:
    """Also where the backward pass runs under autocast."""
    use_one_dnn(monkeypatch, True)
    monkeypatch.setattr(chunked_attention, "ONE_DNN_CHUNK", chunk)
    inputs = [random(B, HEADS, N, E, seed=seed).detach().float().requires_grad_() for seed in range(3)]
    ours, expected = chunked_attention.causal_attention(*inputs), attention(*inputs, causal=True, backend="sdpa")
    torch.testing.assert_close(ours, expected)
    weights = torch.randn(ours.shape)
    wanted = torch.autograd.grad(expected, inputs, weights)
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        torch.testing.assert_close(torch.autograd.grad(ours, inputs, weights), wanted)
    assert ours.grad_fn is not None and ours.grad_fn.name() == "_CausalAttentionBackward"


@pytest.mark.parametrize("chunk", [2, 4, N])
def test_chunked_attention_is_causal_attention(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    """Its last chunk may be shorter, and there may be only one."""
    monkeypatch.setattr(chunked_attention, "CHUNK", chunk)
    inputs = [random(B, HEADS, N, E, seed=seed) for seed in range(3)]
    ours, expected = chunked_attention.causal_attention(*inputs), attention(*inputs, causal=True, backend="sdpa")
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    weights = torch.randn(ours.shape, dtype=ours.dtype)
    gradients = [torch.autograd.grad((result * weights).sum(), inputs) for result in (ours, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


def test_chunked_attention_makes_no_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each layer made the masks of its chunks anew."""
    for name in ("full", "zeros", "ones", "triu"):
        monkeypatch.setattr(torch, name, None)
    monkeypatch.setattr(Tensor, "triu", None)
    q = torch.randn(1, 1, 300, 4, requires_grad=True)
    chunked_attention.causal_attention(q, q, q).sum().backward()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("backend", ["auto", "sdpa"])
def test_training_takes_the_chunks_unless_sdpa_is_asked_for(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    calls: list[torch.Size] = []

    def recorded(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        calls.append(q.shape)
        return chunked_attention.causal_attention(q, k, v)

    monkeypatch.setattr("world_model.transformer.block.causal_attention", recorded)
    network = Transformer(TransformerConfig(width=24, depth=1, heads=2, attention=backend), grid_rotation(N, 1, 1, 12))  # type: ignore[arg-type]
    x = torch.randn(B, N, 24)
    with reference_path():
        network(x)
    with torch.no_grad():
        network(x)
    assert not calls
    network(x)
    assert len(calls) == (backend == "auto")
