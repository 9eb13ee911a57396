"""Tokens and frames per second of rollouts, against Hugging Face `generate()` with a Llama of the same shape.

    python benchmarks/rollout_speed.py                                # minutes
    python benchmarks/rollout_speed.py --quick                        # less than one on a GPU
    python benchmarks/rollout_speed.py --plot docs/rollout_cost.png   # instead, how cost grows with length, as a plot

Both have the same layers, width, heads, hidden width and vocabulary, continue the same prompts by the same number of
tokens, and draw from the whole distribution at temperature 1 (--greedy: take the likeliest). Times include the prompt,
and are medians of rounds in which contenders take turns; "ms a token" divides by the batch. "x generate()" is the
median of the rounds' ratios to the default `generate()`, with its growing cache; its static cache is a contender too.
Without a cache each token takes a whole pass over the context. The tokenizer is measured separately, and so is a whole
`rollout()`, from video to video.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from harness import in_turns, make_parser, ratio, report, seconds_of, synchronize
from rollout_plot import draw
from shapes import PRECISIONS, SIZES, STEP, TOKENS, Shape, random_actions, random_codes
from transformers import LlamaForCausalLM, StoppingCriteria

from vidtok_plugin import TokenizerAdapter, VidTok
from vidtok_plugin.common.devices import default_device
from world_model import Decoding, Sampler, WorldModel, rollout
from world_model.generation.generator import StepGenerator
from world_model.rollout.tokens import decode_steps, encode_steps

FRAMES = TOKENS.temporal_factor  # of a step
PROMPT = 4  # steps: 13 frames
PEER = "generate()"
PLAIN = "raster"
CAUSAL = {
    PLAIN: Decoding(),
    **{f"diagonal, offset {k}": Decoding(order="diagonal", diagonal_offset=k) for k in (4, 2, 1)},
}
COMPILED = {
    "raster, compiled": Decoding(compiled=True),
    "diagonal, offset 1, compiled": Decoding(order="diagonal", compiled=True),
}
MASKED = {f"masked, {steps} calls": Decoding(order="masked", steps=steps) for steps in (8, 4)}
COMPILED_MASKED = {"masked, 8 calls, compiled": Decoding(order="masked", steps=8, compiled=True)}
UNCACHED_TOKENS = 4  # drawn without a cache: each takes equally long
CONTEXTS = (4, 8, 16, 32)  # steps

Row = dict[str, Any]


@dataclass
class Contender:
    """A way to roll out: `work` draws `tokens` tokens of each rollout, in `calls` calls of the transformer."""

    work: Callable[[], Any]
    tokens: int
    calls: int


def ours(model: WorldModel, batch: int, steps: int, decoding: Decoding, sampler: Sampler) -> Contender:
    prompt, actions = random_codes(batch, PROMPT), random_actions(batch, PROMPT + steps)

    def work() -> StepGenerator:
        generator = StepGenerator(model, prompt, actions[:PROMPT], sampler, decoding=decoding)
        for step in range(PROMPT, PROMPT + steps):
            generator.step(actions[step : step + 1])
        return generator

    return Contender(work, steps * STEP, work().model_calls - 1)  # without the prefill of the prompt


def without_cache(model: WorldModel, batch: int, sampler: Sampler) -> Contender:
    codes, actions = random_codes(batch, PROMPT + 1), random_actions(batch, PROMPT + 1)
    previous, current = codes[:, -2].flatten(1), codes[:, -1].flatten(1)  # views
    noise = torch.rand(batch, 1, model.head.noise_per_token, device=codes.device)

    @torch.no_grad()
    def work() -> torch.Tensor:
        for position in range(UNCACHED_TOKENS):
            window = model.window_inputs(codes, actions)
            hidden = model.prediction.hidden(window, since=PROMPT).flatten(1, 3)[:, position : position + 1]
            neighbor_codes = previous[:, position : position + 1, None]
            drawn = model.head.draw(
                hidden, neighbor_codes, noise, sampler, model.head.tables(), confidence=False
            ).tokens
            current[:, position] = drawn[:, 0]
        return current[:, :UNCACHED_TOKENS]

    return Contender(work, UNCACHED_TOKENS, UNCACHED_TOKENS)


def generate(llama: LlamaForCausalLM, batch: int, tokens: int, sampler: Sampler, **settings: Any) -> Contender:
    prompt = random_codes(batch, PROMPT).flatten(1)
    return Contender(lambda: generated(llama, prompt, tokens, sampler, **settings), tokens, tokens - 1)


def generated(llama: LlamaForCausalLM, prompt: torch.Tensor, tokens: int, sampler: Sampler, **settings: Any) -> Any:
    drawing = {"do_sample": False} if sampler.greedy else {"do_sample": True, "temperature": 1.0, "top_k": 0}
    return llama.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=tokens, **drawing, **settings)


def measured(shape: Shape, batch: int, args: Any) -> list[Row]:
    sampler = Sampler(temperature=0.0 if args.greedy else 1.0)
    model, llama = shape.world_model(), shape.llama(shape.max_steps * STEP)
    steps = args.steps
    orders = {**CAUSAL, **(COMPILED if args.compiled else {})}
    masked = shape.world_model("masked")
    masked_orders = MASKED | (COMPILED_MASKED if args.compiled else {})
    with shape.casting():
        makers: dict[str, Callable[[], Contender]] = {
            PEER: lambda: generate(llama, batch, steps * STEP, sampler),
            "generate(), static cache": lambda: generate(
                llama, batch, steps * STEP, sampler, cache_implementation="static", disable_compile=True
            ),
            **{name: partial(ours, model, batch, steps, decoding, sampler) for name, decoding in orders.items()},
            **{
                name: partial(ours, masked, batch, steps, decoding, sampler) for name, decoding in masked_orders.items()
            },
        }
        if not args.quick:
            makers["raster, no cache"] = lambda: without_cache(model, batch, sampler)
        contenders = {name: make() for name, make in makers.items() if name in (PEER, *(args.only or makers))}
        clock = time.process_time if args.cpu_time else time.perf_counter
        works = {name: one.work for name, one in contenders.items()}
        seconds = in_turns(works, rounds=args.rounds, clock=clock)
    per_token = {name: [taken / contenders[name].tokens for taken in all_] for name, all_ in seconds.items()}
    rows = []
    for name, one in contenders.items():
        median = statistics.median(per_token[name])
        rows.append(
            {
                "size": shape.size,
                "batch": batch,
                "order": name,
                "calls a frame": one.calls / one.tokens * STEP / FRAMES,
                "ms a token": 1000 * median / batch,
                "tokens/s": batch / median,
                "frames/s": batch / median / STEP * FRAMES,
                "x generate()": ratio(per_token[PEER], per_token[name]),
            }
        )
    return rows


def from_video_to_video(batch: int, args: Any) -> list[Row]:
    """The time of the tokenizer, and of a whole rollout with the demo's sizes."""
    adapter = TokenizerAdapter(VidTok.from_pretrained("vidtok_tiny").to(default_device()))
    shape = Shape(size="demo", precision=args.precision)
    model = shape.world_model()
    given, imagined = 1 + (PROMPT - 1) * FRAMES, args.steps * FRAMES
    video = torch.rand(batch, 3, given, 64, 64, device=default_device()) * 2 - 1
    actions = random_actions(batch, PROMPT + args.steps).values.flatten(1)[:, FRAMES - 1 :]
    codes = random_codes(batch, PROMPT + args.steps)
    whole = partial(rollout, model, adapter, prompt=video, actions=actions, num_frames=imagined)
    works = {
        "tokenizer encodes the prompt": lambda: encode_steps(adapter, video),
        "tokenizer decodes all": lambda: decode_steps(adapter, codes),
        "whole rollout(), raster": whole,
        "whole rollout(), diagonal, offset 1": partial(whole, decoding=CAUSAL["diagonal, offset 1"]),
    }
    frames = dict(zip(works, (given, given + imagined, imagined, imagined), strict=True))
    with shape.casting():
        seconds = in_turns(works, rounds=args.rounds, clock=time.process_time if args.cpu_time else time.perf_counter)
    return [
        {"size": shape.size, "batch": batch, "order": name, "frames": frames[name]}
        | {"seconds": statistics.median(taken), "frames/s": batch * frames[name] / statistics.median(taken)}
        for name, taken in seconds.items()
    ]


# How cost grows


class Clock(StoppingCriteria):
    """Never stops, and records the time of each token."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        synchronize()
        self.times.append(time.perf_counter())
        return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)


def step_seconds(model: WorldModel, batch: int, prompt: int, steps: int) -> tuple[list[float], int]:
    """Seconds per token of each of `steps` steps after a prompt and one more step, and the cache's bytes.

    The first step prepacks weights for the whole window, and is left out.
    """
    actions = random_actions(batch, prompt + 1 + steps)
    generator = StepGenerator(model, random_codes(batch, prompt), actions[:prompt], Sampler())
    seconds = [
        seconds_of(lambda step=step: generator.step(actions[step : step + 1])) / STEP  # type: ignore[misc]
        for step in range(prompt, prompt + 1 + steps)
    ]
    return seconds[1:], generator.window.cache.num_bytes


def peer_seconds(llama: LlamaForCausalLM, batch: int, prompt: int, steps: int) -> tuple[list[float], int]:
    """The same for `generate()`."""
    clock = Clock()
    codes = random_codes(batch, prompt).flatten(1)
    result = generated(
        llama,
        codes,
        1 + steps * STEP,  # the prompt gives the first
        Sampler(),
        stopping_criteria=[clock],
        return_dict_in_generate=True,
    )
    ends = clock.times[::STEP]
    cache = sum(part.nbytes for layer in result.past_key_values.layers for part in (layer.keys, layer.values))
    return [(end - begin) / STEP for begin, end in zip(ends, ends[1:], strict=False)], cache


def whole_seconds(model: WorldModel, batch: int, steps: int) -> float:
    """Seconds per token without a cache: a pass over so many steps."""
    codes, actions = random_codes(batch, steps), random_actions(batch, steps)
    with torch.no_grad():
        return seconds_of(lambda: model(codes, actions))


def growth(args: Any) -> list[Row]:
    """Time per token by the number of generated tokens; time and bytes by context. Medians of rounds, in turns."""
    return [row for batch in args.batches for row in (*by_length(batch, args), *by_context(batch, args))]


def by_length(batch: int, args: Any) -> list[Row]:
    context, beyond = (4, 2) if args.quick else (16, 8)
    shape = Shape(size=args.sizes[0], precision=args.precision, max_steps=context)
    model, llama = shape.world_model(), shape.llama((context + beyond + 1) * STEP)
    steps = context - 2 + beyond  # after two that are given or drawn before
    taken: dict[str, list[list[float]]] = {PLAIN: [], PEER: []}
    with shape.casting():
        for _ in range(args.rounds + 1):
            taken[PLAIN].append(step_seconds(model, batch, 1, steps)[0])
            taken[PEER].append(peer_seconds(llama, batch, 2, steps)[0])
    rows = []
    for name, rounds in taken.items():
        for i, seconds in enumerate(zip(*rounds[1:], strict=True)):
            row = {"axis": "generated", "size": shape.size, "batch": batch, "who": name, "tokens": (i + 1) * STEP}
            rows.append(row | {"ms a call": 1000 * statistics.median(seconds), "context": context * STEP})
    return rows


def by_context(batch: int, args: Any) -> list[Row]:
    contexts = CONTEXTS[:3] if args.quick else CONTEXTS
    shapes = {steps: Shape(size=args.sizes[0], precision=args.precision, max_steps=steps) for steps in contexts}
    models = {steps: shape.world_model() for steps, shape in shapes.items()}
    llama = shapes[contexts[0]].llama((contexts[-1] + 1) * STEP)
    taken: dict[tuple[str, int], list[float]] = {}
    held: dict[tuple[str, int], int] = {}
    with shapes[contexts[0]].casting():
        for _ in range(args.rounds + 1):
            for steps, model in models.items():
                of_both = {
                    PLAIN: step_seconds(model, batch, steps - 2, 1),
                    PEER: peer_seconds(llama, batch, steps - 1, 1),
                }
                for name, ((seconds,), size) in of_both.items():
                    held[name, steps] = size
                    taken.setdefault((name, steps), []).append(seconds)
                if not args.quick:
                    taken.setdefault(("raster, no cache", steps), []).append(whole_seconds(model, batch, steps))
    rows = []
    for (name, steps), seconds in taken.items():
        row: Row = {"axis": "context", "size": args.sizes[0], "batch": batch, "who": name, "tokens": steps * STEP}
        row["ms a call"] = 1000 * statistics.median(seconds[1:])
        if (name, steps) in held:
            row["cache MB"] = held[name, steps] / 1e6
        rows.append(row)
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    gpu = default_device().type == "cuda"
    parser = make_parser(__doc__, rounds=5)
    parser.add_argument(
        "--sizes", nargs="+", choices=tuple(SIZES), help="default: demo and large; with --quick or --plot, demo"
    )
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--steps", type=int, help="latent steps of 64 tokens to imagine; default: 4, with --quick 1")
    parser.add_argument("--precision", choices=PRECISIONS, default="32", help="bf16 uses autocast")
    parser.add_argument("--greedy", action="store_true")
    parser.add_argument("--compiled", action="store_true", default=gpu, help="also compiled decoding; always on a GPU")
    parser.add_argument("--only", nargs="+", metavar="ORDER", help="these rows of the table, and generate()")
    parser.add_argument("--cpu-time", action="store_true", help="CPU time in place of wall time: for busy machines")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="measure how cost grows instead, and plot it")
    args = parser.parse_args(argv)
    if args.plot and (args.steps or args.greedy or (args.sizes and len(args.sizes) > 1) or len(args.batches) > 3):
        parser.error("--plot takes one size and at most 3 batches, and neither --steps nor --greedy.")
    args.sizes = args.sizes or (["demo"] if args.quick or args.plot else list(SIZES))
    args.steps = args.steps or (1 if args.quick else 4)
    args.rounds = min(args.rounds, 2) if args.quick else args.rounds
    torch.set_num_threads(args.threads)
    transformers.utils.logging.set_verbosity_error()
    more = {"rounds": args.rounds, "precision": args.precision}
    if args.plot:
        rows = growth(args)
        draw(rows, args.plot)
        report("rollout_cost", rows, args.output, packages=["transformers"], **more)
        return
    rows = []
    for size in args.sizes:
        for batch in args.batches:
            rows += measured(Shape(size=size, precision=args.precision), batch, args)
    for batch in args.batches:
        rows += from_video_to_video(batch, args)
    more |= {
        "prompt tokens": PROMPT * STEP,
        "tokens": args.steps * STEP,
        "greedy": args.greedy,
        "cpu time": args.cpu_time,
    }
    report("rollout_speed", rows, args.output, packages=["transformers"], **more)


if __name__ == "__main__":
    main()
