"""Tokens are computed in float32 whatever autocast, TF32 settings and device."""

import copy
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from adapters import make, tokenizer, values, video
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from vidtok_plugin import TokenizerAdapter
from vidtok_plugin.adapter.precision import full_float32

CPU = torch.device("cpu")
BACKENDS = torch.backends


def precisions() -> list[object]:
    operations = (BACKENDS.cuda.matmul, BACKENDS.cudnn.conv, BACKENDS.cudnn.rnn, BACKENDS.mkldnn.matmul)
    older = (BACKENDS.cudnn.allow_tf32, BACKENDS.cuda.matmul.allow_tf32, torch.get_float32_matmul_precision())
    return [*older, *(operation.fp32_precision for operation in operations), BACKENDS.mkldnn.conv.fp32_precision]


NEVER = [False, False, "highest", "ieee", "ieee", "ieee", "ieee", "ieee"]


@pytest.fixture(params=["highest", "high", "medium"])
def allowed(request: pytest.FixtureRequest) -> Iterator[str]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(request.param)
    yield request.param
    torch.set_float32_matmul_precision(before)


def test_reduced_precision_is_off_inside_and_restored_after(allowed: str) -> None:
    before = precisions()
    assert before != NEVER and before[2] == allowed
    with full_float32(CPU):
        assert precisions() == NEVER
    assert precisions() == before
    with pytest.raises(RuntimeError, match="stop"), full_float32(CPU):
        raise RuntimeError("stop")
    assert precisions() == before


def test_threads_that_overlap_do_not_allow_it_to_each_other(allowed: str) -> None:
    """The first to leave restored the settings while others computed; the last to leave made them permanent."""
    before = precisions()
    first, second = full_float32(CPU), full_float32(CPU)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert precisions() == NEVER
    second.__exit__(None, None, None)
    assert precisions() == before


def test_streams_in_many_threads_run_in_full_float32(allowed: str) -> None:
    before, adapter, seen = precisions(), make("kl"), []

    def push(frames: Tensor) -> None:
        stream = adapter.stream()
        with Products() as products:
            for frame in frames.split(1, dim=2):
                stream.push(frame)
        seen.extend(products.seen)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(push, [video()] * 4))
    assert len(seen) > 20 and all(found == (NEVER, {torch.float32}) for found in seen)
    assert precisions() == before


def test_newer_settings_that_contradict_the_older_are_restored_too() -> None:
    """PyTorch then refuses to read the older ones."""
    before = BACKENDS.cudnn.rnn.fp32_precision
    BACKENDS.cudnn.rnn.fp32_precision = "ieee"
    try:
        with pytest.raises(RuntimeError, match="allow_tf32"):
            _ = BACKENDS.cudnn.allow_tf32
        with full_float32(CPU):
            assert BACKENDS.cudnn.conv.fp32_precision == "ieee"
        assert (BACKENDS.cudnn.conv.fp32_precision, BACKENDS.cudnn.rnn.fp32_precision) == ("tf32", "ieee")
    finally:
        BACKENDS.cudnn.rnn.fp32_precision = before


class Products(TorchDispatchMode):
    """Records the precision settings and the types of the operands of every convolution and matrix product."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[list[object], set[torch.dtype]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if any(name in str(func) for name in ("conv", "mm")):
            self.seen.append((precisions(), {x.dtype for x in args if isinstance(x, torch.Tensor)}))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["fsq", "kl"])
def test_encoding_and_fitting_run_in_full_float32(kind: str, allowed: str) -> None:
    adapter = make(kind)
    with torch.autocast("cpu", torch.bfloat16), Products() as products:
        adapter.encode(video())
        if kind == "kl":
            adapter.fit_latent_stats([video()])
    assert len(products.seen) > 5 and all(seen == (NEVER, {torch.float32}) for seen in products.seen)


def test_streamed_tokens_do_not_depend_on_autocast() -> None:
    adapter = make("kl")
    plain = adapter.encode(video())
    with torch.autocast("cpu", torch.bfloat16):
        stream = adapter.stream()
        streamed = adapter.join_steps([stream.push(video()[:, :, :7]), stream.push(video()[:, :, 7:]), stream.flush()])
    torch.testing.assert_close(values(streamed), values(plain), rtol=0, atol=1e-4)


def test_a_tokenizer_that_is_not_in_float32_is_refused() -> None:
    """Ids change in half precision, also if a parent converts the adapter with everything else."""
    with pytest.raises(ValueError, match="must be in float32, since ids change in torch.bfloat16; call .*float"):
        TokenizerAdapter(tokenizer("fsq").bfloat16())
    parent = nn.ModuleDict({"adapter": make("fsq"), "head": nn.Linear(1, 1)})
    parent.bfloat16()
    with pytest.raises(ValueError, match="must be in float32"):
        parent["adapter"].encode(video())
    with pytest.raises(ValueError, match="must be in float32"):
        parent["adapter"].stream().push(video())


@pytest.mark.gpu
@pytest.mark.parametrize("allowed", ["medium"], indirect=True)
def test_the_hash_and_the_ids_do_not_depend_on_the_device(allowed: str) -> None:
    """TF32 convolutions, the default on CUDA, would change dozens of ids."""
    adapter = make("fsq")
    moved = copy.deepcopy(adapter).to("cuda")
    assert moved.hash == adapter.hash
    agreeing = moved.encode(video(17, b=4).to("cuda")).ids.cpu() == adapter.encode(video(17, b=4)).ids
    assert agreeing.float().mean() > 0.95  # all but values at rounding boundaries
