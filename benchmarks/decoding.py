"""The speed and quality of decoding orders, on trained models.

    python benchmarks/decoding.py --causal FOLDER [--masked FOLDER] --store STORE --episodes FOLDER

`benchmarks/rollout_speed.py` measures speed without trained models, and compares it with another library's.

Every order imagines the same held-out futures, in one batch and in batches of one. Orders take turns for several
rounds; figures are medians. Cross entropy is teacher-forced on the store's test split, with the attention mask of the
order, in nats per token. For masked models it is that of drawing a step's tokens in random order.
"""

import statistics
from collections.abc import Sequence
from pathlib import Path

import torch
from harness import make_parser, report
from torch.utils.data import DataLoader

from vidtok_plugin.adapter.adapter import TokenizerAdapter
from vidtok_plugin.common.devices import default_device
from vidtok_plugin.metrics.psnr import frame_psnr
from vidtok_plugin.store.reader import TokenStore
from vidtok_plugin.video.episodes import find_episodes
from world_model import Decoding, Sampler, WorldModel, rollout
from world_model.data import WindowDataset, window_actions, window_tokens
from world_model.measures.prompts import Prompts, held_out_prompts

CAUSAL = {
    "raster": Decoding(),
    "raster, 16 drafted": Decoding(draft_tokens=16),
    **{f"diagonal, offset {k}": Decoding(order="diagonal", diagonal_offset=k) for k in (4, 2, 1)},
}
MASKED = {f"masked, {steps} steps": Decoding(order="masked", steps=steps) for steps in (16, 8, 4, 2)}


@torch.no_grad()
def cross_entropy(model: WorldModel, store: TokenStore, diagonal_offset: int | None) -> float:
    steps = model.config.max_steps
    windows = WindowDataset(store, steps, every=steps - 1, partial=True)
    total, count = 0.0, 0.0
    for batch in DataLoader(windows, 32, collate_fn=lambda batch: batch):
        batch = batch.to(model.device)
        scores = model.score(window_tokens(batch), window_actions(batch), diagonal_offset=diagonal_offset)
        weights = scores.weights * batch["valid"][:, 1:, None, None]
        total += float((scores.token_losses * weights).sum())
        count += float(weights.sum())
    return total / count


def first(prompts: Prompts, count: int) -> Prompts:
    return Prompts(
        video=prompts.video[:count],
        actions=None if prompts.actions is None else prompts.actions[:count],
        prompt_frames=prompts.prompt_frames,
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__, rounds=3)
    parser.add_argument("--causal", type=Path, required=True, help="a causal model's folder")
    parser.add_argument("--masked", type=Path, help="a masked model's folder")
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--episodes", type=Path, required=True, help="recordings of the store's test split")
    parser.add_argument("--prompts", type=int, default=48)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--temperature", type=float, default=0.7)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    device = default_device()
    models = {name: WorldModel.from_pretrained(args.causal).to(device) for name in CAUSAL}
    if args.masked:
        models |= {name: WorldModel.from_pretrained(args.masked).to(device) for name in MASKED}
    adapter = TokenizerAdapter.from_pretrained(args.causal / "adapter").to(device)
    store = TokenStore(args.store, "test")
    prompts = held_out_prompts(
        find_episodes(args.episodes), count=args.prompts, prompt_frames=13, future_frames=args.frames
    ).to(device)
    sampler = Sampler(temperature=args.temperature)
    rows: dict[str, dict[str, float]] = {}
    rates: dict[str, dict[int, list[float]]] = {name: {args.prompts: [], 1: []} for name in models}
    for _ in range(args.rounds):
        for name, model in models.items():
            decoding = (CAUSAL | MASKED)[name]
            for batch in sorted({args.prompts, 1}):
                some = first(prompts, batch)
                result = rollout(
                    model,
                    adapter,
                    prompt=some.prompt,
                    actions=some.actions,
                    num_frames=args.frames,
                    sampler=sampler,
                    decoding=decoding,
                )
                rates[name][batch].append(result.tokens_per_second)
                if batch == args.prompts:
                    rows[name] = {
                        "calls a frame": result.model_calls / args.frames,
                        "rollout PSNR": float(frame_psnr(some.future, result.imagined).mean()),
                    }
    per_frame = models["raster"].tokens.tokens_per_step / models["raster"].tokens.temporal_factor
    for name, model in models.items():
        decoding = (CAUSAL | MASKED)[name]
        rows[name]["cross entropy"] = cross_entropy(model, store, decoding.diagonal_offset)
        for batch in (args.prompts, 1):
            rate = statistics.median(rates[name][batch])
            rows[name][f"tokens/s, batch {batch}"] = rate
            rows[name][f"frames/s, batch {batch}"] = rate / per_frame
    sizes = {"prompts": args.prompts, "frames": args.frames, "temperature": args.temperature}
    report("decoding", [{"order": name} | row for name, row in rows.items()], args.output, rounds=args.rounds, **sizes)


if __name__ == "__main__":
    main()
