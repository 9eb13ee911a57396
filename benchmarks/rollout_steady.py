"""Whether a step of a long rollout takes as long, and as much memory, as one of a short: the Boxing world, rolling.

    python benchmarks/rollout_steady.py                  # 1,000 frames, half a minute of processor time
    python benchmarks/rollout_steady.py --frames 400

Times are those of the processor, for a latent step from its actions to its frames once the context is full: the median,
the longest, and their ratio. Memory is that of all live tensors, after some steps.
"""

import gc
import statistics
import time
from collections.abc import Sequence

import torch
from harness import Row, make_parser, report, seconds_of

from world_model import Decoding, Imagination, Sampler, load_world

ORDERS = {
    "diagonal, offset 1": Decoding(order="diagonal", context="rolling"),
    "16 guesses": Decoding(draft_tokens=16, context="rolling"),
}


def steady(world: str, order: str, frames: int, live_at: Sequence[int]) -> Row:
    """The time of the steps of one rollout, and what is live after some of them."""
    model, adapter = load_world(world, device="cpu")
    f, size = adapter.temporal_factor, [n * adapter.spatial_factor for n in (model.tokens.height, model.tokens.width)]
    generator = torch.Generator().manual_seed(0)
    imagination = Imagination(
        model,
        adapter,
        prompts=torch.rand(1, 3, 1 + 2 * f, *size, generator=generator) * 2 - 1,
        sampler=Sampler(seed=0),
        decoding=ORDERS[order],
    )
    actions = torch.randint(model.tokens.actions.size, (frames // f, 1, f), generator=generator)
    taken, live = [], {}
    for i, held in enumerate(actions, start=1):
        taken.append(1000 * seconds_of(lambda held=held: imagination.step(held), time.process_time))  # type: ignore[misc]
        if i in live_at:
            live[f"MB after {i} steps"] = live_bytes() / 1e6
    full = taken[2 * model.config.max_steps :]
    median, longest = statistics.median(full), max(full)
    row = {"order": order, "steps": len(taken), "median ms": median, "longest ms": longest, "ratio": longest / median}
    return row | {"state MB": imagination.state_bytes / 1e6} | live


def live_bytes() -> int:
    """Bytes of all live tensors, those that share memory once."""
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if type(thing) in (torch.Tensor, torch.nn.Parameter)]
    prepacked = sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor.is_mkldnn)  # share none
    storages = [tensor.untyped_storage() for tensor in tensors if not tensor.is_mkldnn]
    return prepacked + sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__, rounds=1)
    parser.add_argument("--frames", type=int, default=1000, help="to imagine in each order")
    parser.add_argument("--world", default="boxing")
    parser.add_argument("--live-at", nargs="+", type=int, default=[50, 250], help="steps after which to measure memory")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    rows = [steady(args.world, order, args.frames, args.live_at) for order in ORDERS]
    report("rollout_steady", rows, args.output, world=args.world, frames=args.frames)


if __name__ == "__main__":
    main()
