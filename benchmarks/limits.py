"""Where a world model's time goes on a CPU, beside the limits of the machine.

    python benchmarks/limits.py --threads 1

First the machine's rates: products of 2,048 x 2,048 float32 matrices by PyTorch and by oneDNN, reading memory, and
reading weights in products of a few rows. Then the CPU time of every PyTorch operation of a training step and of a
latent step of a rollout, by kind. "limit" is the time a kind takes at these rates, by arithmetic or by reading each
operation's inputs and writing its outputs once, whichever is longer; "reached" is its share of the time taken. Inputs
that are still in a cache take less than the limit. "between operations" is Python, and the profiler's own clock.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from harness import in_turns, make_parser, report
from shapes import SIZES, Shape, random_actions, random_codes
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from world_model_step import BATCHES, make_step

from vidtok_plugin.common import one_dnn
from world_model import Decoding, Sampler
from world_model.generation.generator import StepGenerator

Row = dict[str, Any]

KINDS = {
    "matrix products": ("mkldnn._linear", "aten.mm", "aten.addmm", "aten.linear", "aten.mv", "mkl._mkl_linear"),
    "attention": ("aten.bmm", "aten._softmax", "aten.softmax", "aten.scaled_dot", "aten._scaled_dot"),
    "convolutions": ("aten.convolution", "aten.conv"),
    "copies": ("aten.clone", "aten.copy_", "aten.cat", "aten.index_copy", "aten.reshape", "aten.index"),
}
REST = "elementwise, norms, losses"
ROWS = (1, 8, 64)


def best(work: Callable[[], Any]) -> float:
    """CPU seconds, the best of several."""
    return min(in_turns({"it": work}, rounds=10, warmups=2, clock=time.process_time)["it"])


def product_rate(*, by_one_dnn: bool) -> float:
    """FLOP per second."""
    a, b = torch.randn(2, 2048, 2048)
    return 2 * 2048**3 / best((lambda: one_dnn.product(a, b)) if by_one_dnn else (lambda: a @ b.t()))


def reading_rate() -> float:
    """Bytes per second of a sum over 256 MB, which no cache holds."""
    x = torch.ones(2**26)
    return x.nbytes / best(x.sum)


def machine_rates(products: float, reading: float) -> list[Row]:
    rows: list[Row] = [
        {"what": "product of 2,048 x 2,048, PyTorch", "GFLOP/s": product_rate(by_one_dnn=False) / 1e9},
        {"what": "by what the model uses", "GFLOP/s": products / 1e9},
        {"what": "reading memory", "GB/s": reading / 1e9},
    ]
    weights = torch.randn(30, 2736, 512)  # 168 MB
    layouts: dict[str, list[Callable[[Tensor], Tensor]]] = {"PyTorch": [weight.t().__rmatmul__ for weight in weights]}
    if one_dnn.is_faster():
        layouts["oneDNN"] = [one_dnn.prepacked(weight) for weight in weights]
    for count in ROWS:
        x = torch.randn(count, 512)
        for name, calls in layouts.items():
            seconds = best(lambda calls=calls, x=x: [call(x) for call in calls])  # type: ignore[misc]
            rows.append({"what": f"weights, {count} rows, {name}", "GB/s": weights.nbytes / seconds / 1e9})
    return rows


class OperationTimes(TorchDispatchMode):
    """CPU seconds, calls and limits of operations, by kind."""

    def __init__(self, products: float, reading: float) -> None:
        super().__init__()
        self.products, self.reading = products, reading
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.limits: defaultdict[str, float] = defaultdict(float)
        self.calls: defaultdict[str, int] = defaultdict(int)

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        start = time.thread_time()
        out = operation(*args, **(kwargs or {}))
        taken = time.thread_time() - start
        name = str(operation)
        kind = next((kind for kind, starts in KINDS.items() if name.startswith(starts)), REST)
        tensors = [x for x in (*args, *(out if isinstance(out, tuple | list) else [out])) if isinstance(x, Tensor)]
        if name.startswith("aten.index_copy"):  # into a part of its buffer
            tensors = [args[3], args[3]]
        moved = 0 if getattr(operation, "is_view", False) else sum(_bytes(x) for x in tensors)
        self.seconds[kind] += taken
        self.calls[kind] += 1
        self.limits[kind] += max(_flops(name, args) / self.products, moved / self.reading)
        return out


def _bytes(x: Tensor) -> int:
    """An expanded tensor is read once."""
    return (
        x.element_size() * prod(size for size, stride in zip(x.shape, x.stride(), strict=True) if stride)
        if (x.layout == torch.strided)
        else x.numel() * x.element_size()
    )


def _flops(name: str, args: Sequence[Any]) -> int:
    """Of products; other operations are limited by memory."""
    if name.startswith(("mkldnn._linear", "aten.linear")):
        return 2 * prod(args[0].shape) * args[1].shape[0]
    if name.startswith("aten.addmm"):
        return 2 * prod(args[1].shape) * args[2].shape[-1]
    if name.startswith(("aten.mm", "aten.bmm")):
        return 2 * prod(args[0].shape) * args[1].shape[-1]
    return 0


def profile(what: str, work: Callable[[], Any], products: float, reading: float) -> list[Row]:
    work()
    plain = best_of_three(work)
    with OperationTimes(products, reading) as times:
        work()
    inside = sum(times.seconds.values())
    rows = []
    for kind, seconds in sorted(times.seconds.items(), key=lambda item: -item[1]):
        row: Row = {"work": what, "kind": kind, "calls": times.calls[kind], "ms": 1000 * seconds}
        rows.append(row | {"limit, ms": 1000 * times.limits[kind], "reached": times.limits[kind] / seconds})
    rows.append({"work": what, "kind": "between operations", "ms": 1000 * max(0.0, plain - inside)})
    total = {"work": what, "kind": "all", "calls": sum(times.calls.values()), "ms": 1000 * plain}
    limit = sum(times.limits.values())
    return [*rows, total | {"limit, ms": 1000 * limit, "reached": limit / plain}]


def best_of_three(work: Callable[[], Any]) -> float:
    return min(in_turns({"it": work}, rounds=3, warmups=0, clock=time.process_time)["it"])


def rollout_step(shape: Shape, batch: int, decoding: Decoding) -> Callable[[], Any]:
    """A latent step of a rollout, the next in each of five calls. The last is the eighth and fits into the context."""
    given = shape.max_steps - 5
    actions = random_actions(batch, given + 1)
    generator = StepGenerator(
        shape.world_model(), random_codes(batch, given), actions[:given], Sampler(), decoding=decoding
    )
    return lambda: generator.step(actions[given:])


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__, rounds=1)
    parser.add_argument("--sizes", nargs="+", choices=tuple(SIZES), default=["large"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8], help="of rollouts")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    products, reading = product_rate(by_one_dnn=one_dnn.is_faster()), reading_rate()
    rows = machine_rates(products, reading)
    for size in args.sizes:
        shape = Shape(size=size)
        rows += profile(f"training, {size}", make_step("ours", shape, BATCHES[size])[1], products, reading)
        for batch in args.batches:
            for name, decoding in (("raster", Decoding()), ("diagonal", Decoding(order="diagonal"))):
                work = rollout_step(shape, batch, decoding)
                rows += profile(f"{name}, {size}, batch {batch}", work, products, reading)
    report("limits", rows, args.output)


if __name__ == "__main__":
    main()
