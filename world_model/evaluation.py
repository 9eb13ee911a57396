"""How good a world model is on held-out episodes: its tokens' cross entropy, and its rollouts under the actions.

Shapes: b prompts, t h w frames and pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.utils.data import DataLoader

from vidtok_plugin.adapter.adapter import TokenizerAdapter
from vidtok_plugin.store import TokenStore
from vidtok_plugin.tokenizer.objective import frame_psnr
from vidtok_plugin.video.episodes import Episode
from vidtok_plugin.video.reading import read_frames
from world_model.baselines import Baselines
from world_model.data import WindowDataset, window_actions
from world_model.model import WorldModel
from world_model.record import CoveringPolicy
from world_model.rollout import RolloutResult, rollout
from world_model.sampler import Sampler

BOOTSTRAP_DRAWS = 10_000


@dataclass(frozen=True, kw_only=True)
class CrossEntropies:
    """Nats a token over the same held-out tokens, those after each window's first step."""

    world_model: float
    unigram: float
    copy: float


@torch.no_grad()
def cross_entropies(
    model: WorldModel, train: TokenStore, held_out: TokenStore, *, window_steps: int, batch_size: int = 32
) -> CrossEntropies:
    """The model's cross entropy, and that of the baselines fitted on the training split."""
    windows = WindowDataset(held_out, window_steps, every=window_steps - 1, partial=True)
    batches = list(DataLoader(windows, batch_size, collate_fn=lambda batch: batch))
    baselines = Baselines.fit_store(train)
    unigram, copy = baselines.cross_entropies(batches)
    total, count = 0.0, 0
    for batch in batches:
        batch = batch.to(model.device)
        losses = model.score(batch["codes"], window_actions(batch)).token_losses[batch["valid"][:, 1:]]
        total, count = total + float(losses.double().sum()), count + losses.numel()
    return CrossEntropies(world_model=total / count, unigram=unigram, copy=copy)


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """Stretches of held-out episodes: a prompt, and what really came after it."""

    video: Tensor  # (b, 3, t, h, w) in [-1, 1], prompt and future
    actions: Tensor  # (b, t) or (b, t, a)
    prompt_frames: int

    @property
    def prompt(self) -> Tensor:
        return self.video[:, :, : self.prompt_frames]

    def to(self, device: torch.device) -> "Prompts":
        """These prompts on a device."""
        return replace(self, video=self.video.to(device), actions=self.actions.to(device))

    @property
    def future(self) -> Tensor:
        return self.video[:, :, self.prompt_frames :]


def held_out_prompts(episodes: Sequence[Episode], *, count: int, prompt_frames: int, future_frames: int) -> Prompts:
    """`count` stretches, evenly spaced over the episodes and without overlap where they have room for it."""
    length = prompt_frames + future_frames
    starts = [(episode, start) for episode in episodes for start in range(0, episode.num_frames - length + 1, length)]
    if len(starts) < count:
        raise ValueError(
            f"held_out_prompts: the episodes have room for {len(starts)} stretches of {length} frames, asked for "
            f"{count}; record more, or ask for fewer."
        )
    chosen = [starts[i] for i in np.linspace(0, len(starts) - 1, count).round().astype(int)]
    videos = [torch.from_numpy(read_frames(episode.path, range(s, s + length))) for episode, s in chosen]
    actions = [torch.from_numpy(episode.actions[s : s + length]) for episode, s in chosen]
    video = rearrange(torch.stack(videos), "b t h w c -> b c t h w").float() / 127.5 - 1
    return Prompts(video=video, actions=torch.stack(actions), prompt_frames=prompt_frames)


@dataclass(frozen=True, kw_only=True)
class RolloutScores:
    """PSNR in dB of imagined frames against the real ones, mean over prompts and frames."""

    rollout_psnr: float
    copy_last_frame_psnr: float  # repeating the prompt's last frame as the tokenizer reconstructs it
    action_delta_psnr: float  # under the real actions, less under random ones (Genie, arXiv 2402.15391)
    action_delta_psnr_low: float  # lower end of its 95% bootstrap interval, paired by prompt
    tokens_per_second: float  # generated, of all rollouts together
    frames_per_second: float  # imagined, decoding included


def score_rollouts(
    model: WorldModel,
    adapter: TokenizerAdapter,
    prompts: Prompts,
    *,
    sampler: Sampler,
    hold: tuple[int, int],
    seed: int = 0,
) -> tuple[RolloutScores, RolloutResult]:
    """Rolls out every prompt under its real actions and under random ones, held as the recording's policy holds.

    Also gives the rollouts under the real actions.
    """
    prompts = prompts.to(model.device)
    future = prompts.future
    frames = future.shape[2]
    real = rollout(model, adapter, prompt=prompts.prompt, actions=prompts.actions, num_frames=frames, sampler=sampler)
    random_actions = prompts.actions.clone()
    rng = np.random.default_rng(seed)
    for row in random_actions:
        policy = CoveringPolicy(model.tokens.actions.size, hold, rng)
        row[prompts.prompt_frames :] = torch.tensor([policy() for _ in range(frames)]).to(row)
    other = rollout(model, adapter, prompt=prompts.prompt, actions=random_actions, num_frames=frames, sampler=sampler)
    copied = real.prompt_reconstruction[:, :, -1:].expand_as(future)
    psnr = frame_psnr(future, real.imagined).mean(1)
    delta = psnr - frame_psnr(future, other.imagined).mean(1)
    low, _ = bootstrap_interval(delta.cpu().numpy(), seed=seed)
    scores = RolloutScores(
        rollout_psnr=float(psnr.mean()),
        copy_last_frame_psnr=float(frame_psnr(future, copied).mean()),
        action_delta_psnr=float(delta.mean()),
        action_delta_psnr_low=low,
        tokens_per_second=real.tokens_per_second,
        frames_per_second=len(future) * frames / real.seconds,
    )
    return scores, real


def bootstrap_interval(values: np.ndarray, *, seed: int = 0, level: float = 0.95) -> tuple[float, float]:
    """The percentile bootstrap interval of the mean of `values` (n,).

    Example:
        >>> low, high = bootstrap_interval(np.arange(100.0))
        >>> low < 49.5 < high
        True
    """
    rng = np.random.default_rng(seed)
    means = values[rng.integers(0, len(values), (BOOTSTRAP_DRAWS, len(values)))].mean(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
