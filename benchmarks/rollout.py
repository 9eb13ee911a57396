"""Rollouts of tokens against Hugging Face's `generate()` with a Llama of the same shape, and what context costs.

    python benchmarks/rollout.py                     # raster with and without cache, diagonal, masked; batch 1 and 8
    python benchmarks/rollout.py --context docs/rollout_cost.png     # seconds a token and bytes by context, with a plot

Random weights of the sizes given, greedy, float32 (or --precision bf16), a prompt of 4 latent steps of 8x8 tokens and
as many steps drawn; contenders take turns. The Llama has the same width, depth, heads, feed-forward width and
vocabulary, the same prompt and as many new tokens. The transformer's time alone: no video is encoded or decoded.
"""

import statistics
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import torch
from harness import in_turns, make_parser, ratio, report

from vidtok_plugin.devices import default_device
from world_model import Decoding, Sampler, WorldModel
from world_model.architecture import TokenSpec, WorldModelConfig
from world_model.generator import StepGenerator
from world_model.transformer import TransformerConfig

PROMPT = 4  # latent steps
SIDE = 8  # tokens of a step along height and width
CODES = 1000
SHAPES = ((256, 4, 4), (512, 8, 8))  # width, depth, heads
GREEDY = Sampler(temperature=0)
Work = Callable[[], Any]


def config(width: int, depth: int, heads: int, max_steps: int = 16, **settings: Any) -> WorldModelConfig:
    tokens = TokenSpec(codebook_size=CODES, height=SIDE, width=SIDE, temporal_factor=4)
    transformer = TransformerConfig(width=width, depth=depth, heads=heads)
    return WorldModelConfig(tokens=tokens, max_steps=max_steps, transformer=transformer, **settings)


def rollout(model: WorldModel, past: torch.Tensor, steps: int, decoding: Decoding) -> None:
    generator = StepGenerator(model, past, None, GREEDY, decoding=decoding)
    for _ in range(steps):
        generator.step(None)


@torch.no_grad()
def recomputed(model: WorldModel, past: torch.Tensor, tokens: int) -> None:
    """Some tokens, each by a pass over the whole window, as without a cache."""
    window = torch.cat([past, torch.zeros_like(past)], dim=1)
    for _ in range(tokens):
        model.logits(window)


def llama(model: WorldModel, dtype: torch.dtype) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = model.config.transformer
    torch.manual_seed(0)
    settings = LlamaConfig(
        vocab_size=CODES,
        hidden_size=sizes.width,
        num_hidden_layers=sizes.depth,
        num_attention_heads=sizes.heads,
        intermediate_size=int(sizes.width * sizes.mlp_ratio),
        max_position_embeddings=16 * SIDE**2,
        bos_token_id=0,
        eos_token_id=None,
        pad_token_id=0,
    )
    return LlamaForCausalLM(settings).eval().to(model.device, dtype)


def rows_of(
    shape: tuple[int, int, int], batch: int, steps: int, rounds: int, dtype: torch.dtype
) -> list[dict[str, Any]]:
    device = default_device()
    torch.manual_seed(0)
    model = WorldModel(config(*shape)).eval().to(device, dtype)
    masked = WorldModel(config(*shape, prediction="masked")).eval().to(device, dtype)
    peer = llama(model, dtype)
    past = torch.randint(CODES, (batch, PROMPT, SIDE, SIDE), device=device)
    prompt, new = past.flatten(1), steps * SIDE**2
    some = 8  # tokens without a cache
    work: dict[str, tuple[Work, int]] = {
        "raster": (lambda: rollout(model, past, steps, Decoding()), new),
        "Llama, generate()": (
            lambda: peer.generate(prompt, max_new_tokens=new, min_new_tokens=new, do_sample=False),
            new,
        ),
        "raster, no cache": (lambda: recomputed(model, past, some), some),
        "diagonal": (lambda: rollout(model, past, steps, Decoding(order="diagonal", window=None)), new),
        "diagonal, window 1": (lambda: rollout(model, past, steps, Decoding(order="diagonal", window=1)), new),
        "masked, 8 steps": (lambda: rollout(masked, past, steps, Decoding(order="masked", steps=8)), new),
    }
    if device.type == "cuda":
        work["raster, CUDA graphs"] = (lambda: rollout(model, past, steps, Decoding(compiled=True)), new)
    seconds = in_turns({name: one for name, (one, _) in work.items()}, rounds=rounds)
    rows = []
    for name, (_, tokens) in work.items():
        each = [value / tokens for value in seconds[name]]
        theirs = [value / new for value in seconds["Llama, generate()"]]
        rate = batch / statistics.median(each)
        rows.append(
            {"model": "{} x {} layers".format(*shape), "batch": batch, "order": name, "tokens/s": rate}
            | {"frames/s": rate / SIDE**2 * 4, "times generate()": ratio(theirs, each)}
        )
    return rows


def context_rows(plot: Path, rounds: int) -> list[dict[str, Any]]:
    """Seconds a token and the cache's bytes while a window of 32 steps fills, one latent step after another."""
    model, rows = WorldModel(config(*SHAPES[0], max_steps=32)).eval().to(default_device()), []
    for batch in (1, 8):
        past = torch.randint(CODES, (batch, 1, SIDE, SIDE), device=model.device)
        seconds: dict[int, list[float]] = {}
        for _ in range(rounds):
            generator = StepGenerator(model, past, None, GREEDY)
            for length in range(1, 32):
                took = in_turns({"step": lambda one=generator: one.step(None)}, rounds=1, warmups=0)["step"][0]
                seconds.setdefault(length, []).append(took / SIDE**2)
        sizes = model.config.transformer
        per_token = 2 * sizes.depth * sizes.width * 4 * batch
        for length, values in seconds.items():
            context = length * SIDE**2
            rows.append({"batch": batch, "context": context, "ms a token": 1e3 * statistics.median(values)})
            rows[-1]["MB of keys and values"] = per_token * context / 1e6
    draw(rows, plot)
    return rows


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(9, 3.2))
    for batch in (1, 8):
        some = [row for row in rows if row["batch"] == batch]
        for panel, key in zip(panels, ("ms a token", "MB of keys and values"), strict=True):
            panel.plot([row["context"] for row in some], [row[key] for row in some], ".-", label=f"batch {batch}")
            panel.set(xlabel="tokens of context", ylabel=key, ylim=(0, None))
    panels[0].legend()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = make_parser(__doc__, rounds=3)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--steps", type=int, default=4, help="latent steps that are drawn")
    parser.add_argument("--precision", choices=("32", "bf16"), default="32")
    parser.add_argument("--context", type=Path, metavar="PNG", help="measure instead what context costs, with a plot")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.context:
        report("rollout_context", context_rows(args.context, args.rounds), args.output, rounds=args.rounds)
        return
    dtype = torch.bfloat16 if args.precision == "bf16" else torch.float32
    rows = []
    for shape, batch in product(SHAPES, args.batches):
        rows += rows_of(shape, batch, args.steps, args.rounds, dtype)
    report("rollout", rows, args.output, packages=["transformers"], rounds=args.rounds, precision=args.precision)


if __name__ == "__main__":
    main()
