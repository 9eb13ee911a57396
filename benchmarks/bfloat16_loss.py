"""What a world loses in bfloat16: cross entropy as rollouts compute it, and PSNR of its decoder.

    python benchmarks/bfloat16_loss.py --store STORE --videos FOLDER [--world boxing] [--clips 64]

The cross entropy is that of the true tokens of held-out clips, given the true ones before them, step by step through
the cache like a rollout's. PSNR compares held-out frames with their reconstructions from the same codes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from harness import make_parser, report
from torch import Tensor

from vidtok_plugin import TokenizerAdapter, open_episodes
from vidtok_plugin.common.precision import Precision, in_precision
from vidtok_plugin.metrics.psnr import frame_psnr
from vidtok_plugin.store.reader import TokenStore
from vidtok_plugin.video.pixels import from_uint8
from world_model import Decoding, Sampler, WorldModel, load_world
from world_model.actions import GroupedActions
from world_model.generation.generator import StepGenerator
from world_model.heads.base import DrawnTokens
from world_model.heads.codes import CodeHead
from world_model.inputs.positions import at_positions
from world_model.prediction.base import StepContext

PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")
PROMPT = 4  # latent steps
BATCH = 16
FRAMES = 17  # of a clip that is decoded


class TrueTokens:
    """In place of a model's `draw`: gives the true tokens of a step, and adds up their cross entropies."""

    def __init__(self, model: WorldModel) -> None:
        assert isinstance(model.head, CodeHead)
        self.head, self.step, self.losses = model.head, torch.empty(0), list[Tensor]()

    def __call__(
        self, hidden: Tensor, index: Tensor | int, context: StepContext, *_: Any, **settings: Any
    ) -> DrawnTokens:
        codes = at_positions(self.step, index)
        neighbors = None if context.neighbor_codes is None else at_positions(context.neighbor_codes, index)
        losses = self.head.scores(hidden, neighbors, codes, context.head_tables, correct=False)[0]
        self.losses.append(losses.sum(-1).sum(1))
        return DrawnTokens(tokens=codes, confidence=None, entropy=None)


@torch.no_grad()
def cross_entropies(model: WorldModel, codes: Tensor, actions: GroupedActions | None, decoding: Decoding) -> Tensor:
    """Nats per token (b,) of the steps after the prompt."""
    past = None if actions is None else actions[:PROMPT]
    generator = StepGenerator(model, codes[:, :PROMPT], past, Sampler(), decoding=decoding)
    true = TrueTokens(generator.model)
    vars(generator.model)["draw"] = true
    try:
        for step in range(PROMPT, codes.shape[1]):
            true.step = codes[:, step].flatten(1)
            generator.step(None if actions is None else actions[step : step + 1])
    finally:
        del vars(generator.model)["draw"]
    return torch.stack(true.losses).sum(0) / codes[:, PROMPT:].flatten(1).shape[1]


def held_out(store: TokenStore, clips: int) -> list[int]:
    """Episodes of the store's most frequent length, evenly spaced."""
    steps = torch.tensor([episode.steps for episode in store.episodes])
    chosen = (steps == steps.mode().values).nonzero()[:, 0]
    places = torch.linspace(0, len(chosen) - 1, min(clips, len(chosen))).long()
    found: list[int] = chosen[places].tolist()
    return found


def lost_nats(model: WorldModel, store: TokenStore, clips: int, order: Any) -> dict[str, Any]:
    losses: dict[str, list[Tensor]] = {precision: [] for precision in PRECISIONS}
    episodes = held_out(store, clips)
    for begin in range(0, len(episodes), BATCH):
        some = episodes[begin : begin + BATCH]
        window = store.windows(some, [0] * len(some), store.episodes[some[0]].steps)
        actions = None
        if "actions" in window.keys():  # noqa: SIM118
            actions = GroupedActions(values=window["actions"], known=window["actions_known"])
        for precision in PRECISIONS:
            decoding = Decoding(order=order, precision=precision)
            losses[precision].append(cross_entropies(model, window["codes"], actions, decoding))
    return summary(f"cross entropy, {order}", "nats a token", losses)


@torch.no_grad()
def lost_decibels(adapter: TokenizerAdapter, videos: Path, clips: int) -> dict[str, Any]:
    found: dict[str, list[Tensor]] = {precision: [] for precision in PRECISIONS}
    decoders = {precision: in_precision(adapter.tokenizer, precision) for precision in PRECISIONS}
    episodes = open_episodes(videos)
    for i in range(clips):
        episode = episodes[i % len(episodes)]
        first = (FRAMES * (i // len(episodes))) % (episode.num_frames - FRAMES + 1)
        video = from_uint8(torch.from_numpy(episode.read(range(first, first + FRAMES)))[None])
        latents = adapter.latents_of(adapter.encode(video))
        for precision, decoder in decoders.items():
            found[precision].append(frame_psnr(video, decoder.decode(latents)).mean(1))
    return summary("decoder", "dB PSNR", found)


def summary(what: str, unit: str, values: dict[str, list[Tensor]]) -> dict[str, Any]:
    full, half = (torch.cat(values[precision]).double() for precision in PRECISIONS)
    change = half - full
    error = float(change.std() / len(change) ** 0.5) if len(change) > 1 else float("nan")
    return {
        "of": what,
        "unit": unit,
        "float32": float(full.mean()),
        "bfloat16": float(half.mean()),
        "change": float(change.mean()),
        "standard error": error,
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__, rounds=1)
    parser.add_argument("--world", default="boxing", help="a name, folder or repository")
    parser.add_argument("--store", type=Path, required=True, help="a token store with a test split")
    parser.add_argument("--videos", type=Path, required=True, help="a folder of held-out videos")
    parser.add_argument("--clips", type=int, default=64)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    model, adapter = load_world(args.world)
    store = TokenStore(args.store, "test")
    rows = [lost_nats(model, store, args.clips, order) for order in ("diagonal", "raster")]
    rows.append(lost_decibels(adapter, args.videos, args.clips))
    report("bfloat16_loss", rows, args.output, clips=args.clips)


if __name__ == "__main__":
    main()
