"""Drift: rollouts that go on far beyond their prompt and the context, followed stretch by stretch.

Real play has no one future that they could be compared with after so long. So their statistics are compared with those
of as much real play, through the same tokenizer: with the very episodes that the prompts are from, at the same
distances from the prompts, or with a store's held-out tokens.

Shapes: b rollouts, T latent steps, t h w frames and pixels, f frames a step.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vidtok_plugin.adapter.adapter import TokenizerAdapter
from vidtok_plugin.store.reader import TokenStore
from world_model.data import window_tokens
from world_model.decoding import Decoding
from world_model.heads.sampler import Sampler
from world_model.measures.prompts import Prompts
from world_model.measures.report import Measured, Row, from_to, numbers
from world_model.measures.segments import Sequences, StretchStatistics, TokenFrequencies, Tokens, TokenVectors
from world_model.measures.store_tokens import episode_tokens
from world_model.model import WorldModel
from world_model.rollout.rollout import rollout
from world_model.rollout.tokens import decode_steps, encode_steps

DIGITS = {
    "token_divergence": 4,
    "token_frechet": 4,
    "unchanged_share": 3,
    "motion": 2,
    "sharpness": 2,
    "retokenized_psnr": 2,
}
TITLES = {
    "token_divergence": "token divergence from training, nats",
    "token_frechet": "Frechet distance of tokens from training",
    "unchanged_share": "share of tokens unchanged",
    "motion": "motion, levels a frame",
    "sharpness": "sharpness, levels a pixel",
    "retokenized_psnr": "PSNR of encoding again, dB",
}


@dataclass(frozen=True, kw_only=True)
class Beginnings:
    """Where rollouts begin, and what leads them on: prompts, and actions for prompt and future."""

    prompt: Tensor  # (b, 3, p, h, w) in [-1, 1]
    actions: Tensor | None  # (b, p + n) or (b, p + n, a)


@dataclass(frozen=True, kw_only=True)
class Drift:
    """Each statistic of imagined play by stretch, and over stretches of real play."""

    imagined: dict[str, list[float]]
    real: dict[str, list[float]]
    rollouts: int
    stretch_frames: int
    real_source: str
    not_measured: dict[str, str] = field(default_factory=dict)

    def measured(self) -> Measured:
        """By the names of the report."""
        count = len(next(iter(self.imagined.values())))
        values: dict[str, Any] = {
            "rollouts": self.rollouts,
            "frames": [self.stretch_frames * (1 + index) for index in range(count)],  # imagined when a stretch ends
            "real_source": self.real_source,
        }
        rows = []
        for name, series in self.imagined.items():
            digits, real = DIGITS[name], self.real[name]
            values[name] = numbers(series, digits + 2)
            values[f"real_{name}"] = numbers(real, digits + 2)
            rows.append(
                Row(
                    name=TITLES[name],
                    value=f"{sum(series) / len(series):.{digits}f}",
                    horizon=from_to(series, digits),
                    compared=f"real play {min(real):.{digits}f} to {max(real):.{digits}f}",
                )
            )
        return Measured(values=values, rows=rows, not_measured=self.not_measured)


@torch.no_grad()
def free_running(
    model: WorldModel,
    adapter: TokenizerAdapter,
    beginnings: Beginnings,
    real: "Iterable[list[Sequences]]",
    train: TokenStore,
    *,
    num_frames: int,
    stretch_frames: int,
    real_source: str,
    sampler: Sampler,
    decoding: Decoding | None = None,
    at_once: int = 32,
    advance: Callable[[int], None] = lambda rollouts: None,
) -> Drift:
    """Rolls out `num_frames` frames from all beginnings and compares their stretches with those of real play.

    `real` gives stretches, each as the parts of a sample about as large as that of the rollouts.
    """
    f = model.tokens.temporal_factor
    sizes = model.factor_sizes

    def tokens_like(tokens: Tensor) -> Tokens:
        return TokenVectors(tokens.shape[-1]) if sizes is None else TokenFrequencies(sizes)

    reference: Tokens | None = None
    for tokens in episode_tokens(train):
        reference = tokens_like(tokens) if reference is None else reference
        reference.add(tokens)
    assert reference is not None  # a store has episodes

    steps, first = stretch_frames // f, 1 + (beginnings.prompt.shape[2] - 1) // f
    imagined: dict[int, StretchStatistics] = {}
    count = len(beginnings.prompt)
    for start in range(0, count, at_once):
        rows = slice(start, start + at_once)
        prompt = beginnings.prompt[rows].to(model.device)
        result = rollout(
            model,
            adapter,
            prompt=prompt,
            actions=None if beginnings.actions is None else beginnings.actions[rows].to(model.device),
            num_frames=num_frames,
            sampler=sampler,
            decoding=decoding,
            indices=range(start, start + len(prompt)),
        )
        whole = Sequences(
            tokens=result.tokens.grid_values, video=torch.cat([result.prompt_reconstruction, result.imagined], dim=2)
        )
        for index, segment in enumerate(whole.segments(steps, first=first, temporal_factor=f)):
            statistics = imagined.setdefault(index, StretchStatistics(tokens_like(segment.tokens)))
            statistics.add(segment, adapter)
        advance(len(prompt))
    computed = [imagined[index].compute(reference) for index in sorted(imagined)]
    played = []
    for parts in real:
        statistics = StretchStatistics(tokens_like(parts[0].tokens))
        for part in parts:
            statistics.add(part, adapter)
        played.append(statistics.compute(reference))
    return Drift(
        imagined={name: [segment[name] for segment in computed] for name in computed[0]},
        real={name: [segment[name] for segment in played] for name in played[0]},
        rollouts=count,
        stretch_frames=stretch_frames,
        real_source=real_source,
    )


def play_from_episodes(
    adapter: TokenizerAdapter, prompts: Prompts, stretch_frames: int, device: torch.device, *, at_once: int = 32
) -> tuple[Beginnings, Iterator[list[Sequences]]]:
    """Rollouts that begin with the prompts under what was really done, and the stretches of what really came."""
    f = adapter.temporal_factor

    def segments() -> Iterator[list[Sequences]]:
        parts: dict[int, list[Sequences]] = {}
        first = 1 + (prompts.prompt_frames - 1) // f
        for _, part in prompts.parts(at_once):
            tokens = encode_steps(adapter, part.video.to(device))
            whole = Sequences(tokens=tokens, video=decode_steps(adapter, tokens))
            for index, segment in enumerate(whole.segments(stretch_frames // f, first=first, temporal_factor=f)):
                parts.setdefault(index, []).append(segment)
        yield from parts.values()

    return Beginnings(prompt=prompts.prompt, actions=prompts.actions), segments()


def play_from_store(
    adapter: TokenizerAdapter,
    store: TokenStore,
    *,
    rollouts: int,
    prompt_frames: int,
    num_frames: int,
    stretch_frames: int,
    device: torch.device,
) -> tuple[Beginnings, Iterator[list[Sequences]]]:
    """Rollouts that begin with a store's episodes, decoded, under actions as they follow each other in the store; and
    stretches of those episodes, each the sample of as many of them as there are rollouts.

    Raises:
        ValueError: no episode is as long as a prompt, or as a stretch and the step before it.
    """
    f = adapter.temporal_factor
    lengths = {index: 1 + (episode.frames - 1) // f for index, episode in enumerate(store.episodes)}  # whole steps
    steps, prompt_steps = stretch_frames // f, 1 + (prompt_frames - 1) // f
    for name, needed in (("prompt_frames", prompt_steps), ("drift_segment", 1 + steps)):
        if max(lengths.values()) < needed:
            raise ValueError(
                f"free_running: measures.{name} takes {needed} latent steps of one episode, but {store.folder}'s have "
                f"{max(lengths.values())} at most; set it lower, or name recordings with measures.episodes."
            )
    long = [index for index, length in lengths.items() if length >= prompt_steps]
    chosen = [long[i] for i in torch.linspace(0, len(long) - 1, min(rollouts, len(long))).round().long().tolist()]

    def decoded(index: int, length: int) -> Sequences:
        values = window_tokens(store.window(index, 0, length))[None].to(device)
        return Sequences(tokens=values, video=decode_steps(adapter, values))

    def segments() -> Iterator[list[Sequences]]:
        wanted, parts = num_frames // stretch_frames, []
        for index, length in lengths.items():
            if length <= steps:
                continue
            for segment in decoded(index, length).segments(steps, first=1, temporal_factor=f):
                parts.append(segment)
                if len(parts) == len(chosen):
                    yield parts
                    parts, wanted = [], wanted - 1
                    if not wanted:
                        return
        if wanted == num_frames // stretch_frames:  # a small store: one sample of all that it has
            yield parts

    prompt = torch.cat([decoded(index, prompt_steps).video for index in chosen])
    actions = None
    if store.metadata.action_space:
        taken = [_actions_on(store, index, prompt_frames + num_frames) for index in chosen]
        actions = torch.stack(taken)
    return Beginnings(prompt=prompt.clamp(-1, 1), actions=actions), segments()


def _actions_on(store: TokenStore, index: int, frames: int) -> Tensor:
    """An action for each of `frames` frames from an episode's first on, those of the next episodes after its own."""
    found: list[Tensor] = []
    count = 0
    while count < frames:
        window = store.window(index % len(store), 0, store.episodes[index % len(store)].steps)
        own = window["actions"][window["actions_known"]]  # of its frames after the first, in order
        if not found:
            own = torch.cat([own.new_zeros(1, *own.shape[1:]), own])  # frame 0, whose action is ignored
        found.append(own)
        count += len(own)
        index += 1
    return torch.cat(found)[:frames]
