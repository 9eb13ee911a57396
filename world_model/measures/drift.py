"""Drift: rollouts far beyond their prompt and context, measured segment by segment.

After that many frames there is no single real future to compare with. So the statistics of each segment are compared
with those of an equal amount of real play, passed through the same tokenizer: the episodes that the prompts came from,
at the same distances from the prompts, or a store's held-out tokens.

Shapes: b rollouts, T latent steps, t h w frames and pixels, f frames per latent step.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
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
from world_model.measures.segments import SegmentStatistics, Sequences, TokenFrequencies, Tokens, TokenVectors
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
    "unchanged_share": "fraction of tokens unchanged",
    "motion": "motion, grey levels per frame",
    "sharpness": "sharpness, grey levels per pixel",
    "retokenized_psnr": "PSNR after retokenizing, dB",
}


@dataclass(frozen=True, kw_only=True)
class RolloutStarts:
    """The prompts of some rollouts and the actions of prompt and future."""

    prompt: Tensor  # (b, 3, p, h, w) in [-1, 1]
    actions: Tensor | None  # (b, p + n) or (b, p + n, a)
    state: Tensor | None = None  # (b, p, s), of the prompt; None: unknown


@dataclass(frozen=True, kw_only=True)
class Drift:
    """Each statistic by segment, of imagined and of real play."""

    imagined: dict[str, list[float]]
    real: dict[str, list[float]]
    rollouts: int
    segment_frames: int
    real_source: str

    def measured(self) -> Measured:
        """The results under the names of the report."""
        count = len(next(iter(self.imagined.values())))
        ends = [self.segment_frames * (1 + index) for index in range(count)]  # of the segments, in imagined frames
        values: dict[str, Any] = {"rollouts": self.rollouts, "frames": ends, "real_source": self.real_source}
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
        return Measured(values=values, rows=rows)


@torch.no_grad()
def free_running(
    model: WorldModel,
    adapter: TokenizerAdapter,
    starts: RolloutStarts,
    real: Iterable[list[Sequences]],
    train: TokenStore,
    *,
    num_frames: int,
    segment_frames: int,
    real_source: str,
    sampler: Sampler,
    decoding: Decoding | None = None,
    batch_size: int = 32,
    advance: Callable[[int], None] = lambda rollouts: None,
) -> Drift:
    """Roll out `num_frames` frames from all starts and compare their segments with those of real play.

    `real` yields segments, each as a list of batches with about as many sequences in all as there are rollouts.
    `advance` is called with the number of rollouts of each finished batch.
    """
    f = model.tokens.temporal_factor
    sizes = model.factor_sizes

    def tokens_like(tokens: Tensor) -> Tokens:
        return TokenVectors(tokens.shape[-1]) if sizes is None else TokenFrequencies(sizes)

    reference: Tokens | None = None
    for tokens in episode_tokens(train):
        reference = tokens_like(tokens) if reference is None else reference
        reference.add(tokens)
    assert reference is not None  # a store has at least one episode

    steps, first = segment_frames // f, 1 + (starts.prompt.shape[2] - 1) // f
    imagined: dict[int, SegmentStatistics] = {}
    count = len(starts.prompt)
    for start in range(0, count, batch_size):
        rows = slice(start, start + batch_size)
        prompt = starts.prompt[rows].to(model.device)
        result = rollout(
            model,
            adapter,
            prompt=prompt,
            actions=None if starts.actions is None else starts.actions[rows].to(model.device),
            num_frames=num_frames,
            sampler=sampler,
            decoding=decoding,
            indices=range(start, start + len(prompt)),
            state=None if starts.state is None or model.state_head is None else starts.state[rows],
        )
        whole = Sequences(
            tokens=result.tokens.grid_values, video=torch.cat([result.prompt_reconstruction, result.imagined], dim=2)
        )
        for index, segment in enumerate(whole.segments(steps, first=first, temporal_factor=f)):
            statistics = imagined.setdefault(index, SegmentStatistics(tokens_like(segment.tokens)))
            statistics.add(segment, adapter)
        advance(len(prompt))
    computed = [imagined[index].compute(reference) for index in sorted(imagined)]
    played = []
    for batches in real:
        statistics = SegmentStatistics(tokens_like(batches[0].tokens))
        for batch in batches:
            statistics.add(batch, adapter)
        played.append(statistics.compute(reference))
    return Drift(
        imagined={name: [segment[name] for segment in computed] for name in computed[0]},
        real={name: [segment[name] for segment in played] for name in played[0]},
        rollouts=count,
        segment_frames=segment_frames,
        real_source=real_source,
    )


def play_from_episodes(
    adapter: TokenizerAdapter, prompts: Prompts, segment_frames: int, device: torch.device, *, batch_size: int = 32
) -> tuple[RolloutStarts, Iterator[list[Sequences]]]:
    """Rollouts that start from recorded prompts with their actions, and the segments of the real futures."""
    f = adapter.temporal_factor

    def segments() -> Iterator[list[Sequences]]:
        found: dict[int, list[Sequences]] = {}
        first = 1 + (prompts.prompt_frames - 1) // f
        for _, batch in prompts.batches(batch_size):
            tokens = encode_steps(adapter, batch.video.to(device))
            whole = Sequences(tokens=tokens, video=decode_steps(adapter, tokens))
            for index, segment in enumerate(whole.segments(segment_frames // f, first=first, temporal_factor=f)):
                found.setdefault(index, []).append(segment)
        yield from found.values()

    starts = RolloutStarts(prompt=prompts.prompt, actions=prompts.actions, state=prompts.prompt_state)
    return starts, segments()


def play_from_store(
    adapter: TokenizerAdapter,
    store: TokenStore,
    *,
    rollouts: int,
    prompt_frames: int,
    num_frames: int,
    segment_frames: int,
    device: torch.device,
) -> tuple[RolloutStarts, Iterator[list[Sequences]]]:
    """Rollouts that start from a store's decoded episodes with the store's actions, and real segments of the store.

    Each real segment has as many sequences as there are rollouts. Where an episode's actions end, those of the next
    episodes follow.

    Raises:
        ValueError: no episode is as long as a prompt, or as a segment and the step before it.
    """
    f = adapter.temporal_factor
    lengths = {index: 1 + (episode.frames - 1) // f for index, episode in enumerate(store.episodes)}  # whole steps
    steps, prompt_steps = segment_frames // f, 1 + (prompt_frames - 1) // f
    for name, needed in (("prompt_frames", prompt_steps), ("drift_segment", 1 + steps)):
        if max(lengths.values()) < needed:
            raise ValueError(
                f"free_running: measures.{name} needs {needed} latent steps of one episode, but the longest in "
                f"{store.folder} has {max(lengths.values())}; lower it, or set measures.episodes to recordings."
            )
    long = [index for index, length in lengths.items() if length >= prompt_steps]
    chosen = [long[i] for i in torch.linspace(0, len(long) - 1, min(rollouts, len(long))).round().long().tolist()]

    def decoded(index: int, length: int) -> Sequences:
        values = window_tokens(store.window(index, 0, length))[None].to(device)
        return Sequences(tokens=values, video=decode_steps(adapter, values))

    def segments() -> Iterator[list[Sequences]]:
        missing, found = num_frames // segment_frames, []
        for index, length in lengths.items():
            if length <= steps:
                continue
            for segment in decoded(index, length).segments(steps, first=1, temporal_factor=f):
                found.append(segment)
                if len(found) == len(chosen):
                    yield found
                    found, missing = [], missing - 1
                    if not missing:
                        return
        if missing == num_frames // segment_frames:  # a small store: one sample of everything in it
            yield found

    prompt = torch.cat([decoded(index, prompt_steps).video for index in chosen])
    actions = None
    if store.metadata.action_space:
        taken = [_actions_on(store, index, prompt_frames + num_frames) for index in chosen]
        actions = torch.stack(taken)
    state = None
    if store.state_size is not None:  # of a first step, only the last frame exists
        windows = store.windows(chosen, [0] * len(chosen), prompt_steps)
        state = windows["state"].flatten(1, 2)[:, f - 1 :]
    return RolloutStarts(prompt=prompt.clamp(-1, 1), actions=actions, state=state), segments()


def _actions_on(store: TokenStore, index: int, frames: int) -> Tensor:
    """Actions for `frames` frames from the start of an episode, continued with those of the next episodes."""
    found: list[Tensor] = []
    count = 0
    while count < frames:
        window = store.window(index % len(store), 0, store.episodes[index % len(store)].steps)
        own = window["actions"][window["actions_known"]]  # one per frame after the first, in order
        if not found:
            own = torch.cat([own.new_zeros(1, *own.shape[1:]), own])  # frame 0, whose action is ignored
        found.append(own)
        count += len(own)
        index += 1
    return torch.cat(found)[:frames]
