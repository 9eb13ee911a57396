"""Steps of rollouts by precision, in processor time, and what each loses of the cross entropy of true tokens.

    python benchmarks/rollout_precision.py --threads 1 [--store STORE] [--clips 32]

The Boxing world and a model of width 512 and depth 8 with random weights, without the decoder of frames. "x float32"
and "x bfloat16" are the medians of the rounds' ratios. With a token store, also the change of the cross entropy of its
validation split under the Boxing world, in nats a token.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from bfloat16_loss import cross_entropies, held_out
from harness import Row, in_turns, make_parser, ratio, report
from shapes import Shape, random_actions, random_codes

from vidtok_plugin.store.reader import TokenStore
from world_model import Decoding, Sampler, StepGenerator, WorldModel, load_world
from world_model.actions import GroupedActions
from world_model.decoding import DecodingPrecision

PRECISIONS: tuple[DecodingPrecision, ...] = ("float32", "bfloat16", "int8")
ORDERS: dict[str, dict[str, Any]] = {
    "raster": {},
    "diagonal": {"order": "diagonal"},
    "16 guesses": {"draft_tokens": 16},
}
PROMPT = 4  # steps


def steps_of(model: WorldModel, batch: int, decoding: Decoding) -> Callable[[], torch.Tensor]:
    """Draws one step more of a rollout at each call."""
    actions = random_actions(batch, PROMPT + 1)
    prompt = random_codes(batch, PROMPT)
    generator = StepGenerator(model, prompt, actions[:PROMPT], Sampler(seed=0), decoding=decoding)
    return lambda: generator.step(actions[PROMPT:])


def speeds(name: str, model: WorldModel, batch: int, rounds: int) -> list[Row]:
    rows: list[Row] = []
    for order, settings in ORDERS.items():
        works: dict[str, Callable[[], torch.Tensor]] = {
            precision: steps_of(model, batch, Decoding(precision=precision, context="rolling", **settings))
            for precision in PRECISIONS
        }
        seconds = in_turns(works, rounds=rounds, clock=time.process_time)
        for precision, taken in seconds.items():
            row = {"world": name, "batch": batch, "order": order, "precision": precision}
            ratios = {f"x {other}": ratio(seconds[other], taken) for other in ("float32", "bfloat16")}
            rows.append({**row, "ms a step": 1000 * statistics.median(taken), **ratios})
    return rows


def losses(model: WorldModel, store: TokenStore, clips: int) -> list[Row]:
    episodes = held_out(store, clips)
    window = store.windows(episodes, [0] * len(episodes), store.episodes[episodes[0]].steps)
    actions = GroupedActions(values=window["actions"], known=window["actions_known"])
    nats: dict[str, torch.Tensor] = {
        precision: cross_entropies(
            model, window["codes"], actions, Decoding(order="diagonal", precision=precision, context="rolling")
        ).double()
        for precision in PRECISIONS
    }
    rows: list[Row] = []
    for precision, values in nats.items():
        change = values - nats["float32"]
        error = float(change.std() / len(change) ** 0.5)
        row = {"world": "cross entropy", "precision": precision, "nats": float(values.mean())}
        rows.append({**row, "change": float(change.mean()), "standard error": error})
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__, rounds=3)
    parser.add_argument("--sizes", nargs="+", choices=["boxing", "demo", "large"], default=["boxing", "large"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1])
    parser.add_argument("--store", type=Path, help="a token store of the Boxing world, with a validation split")
    parser.add_argument("--clips", type=int, default=32)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    boxing, _ = load_world("boxing", device="cpu")
    rows: list[Row] = []
    for size in args.sizes:
        model = boxing if size == "boxing" else Shape(size=size).world_model()
        for batch in args.batches:
            rows += speeds(size, model, batch, args.rounds)
    if args.store:
        rows += losses(boxing, TokenStore(args.store, "validation"), args.clips)
    report("rollout_precision", rows, args.output, rounds=args.rounds, clips=args.clips)


if __name__ == "__main__":
    main()
