"""Measures of imagined Boxing: where the boxers are, whether both are present, and how sharp the ring stays.

Boxers are found by their color: inside the ring, the player is white, the opponent black and the canvas green. The
opponent acts on its own, but the player's path follows from its actions, so that the distance between the imagined
player and the real one measures how well actions are followed.

Shapes: b prompts, t frames, h w rows and columns.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vidtok_plugin.adapter.adapter import TokenizerAdapter
from vidtok_plugin.metrics.frames import bounded_psnr
from world_model import Decoding, Sampler, WorldModel
from world_model.measures import Prompts
from world_model.measures.controllability import action_effect
from world_model.rollout.rollout import RolloutResult, rollout
from world_model.rollout.tokens import reconstruct

SIZE = 64
RING = (slice(11, 53), slice(13, 51))  # rows and columns inside the ropes, of 64x64
CANVAS_GREEN, CANVAS_BLUE, WHITE = 156.0, 66.0, 214.0  # levels: the canvas's green and blue, and all of the player's
PSNR_FRAMES = {"1_4": slice(0, 4), "5_8": slice(4, 8), "9_16": slice(8, 16)}
DISTANCE_FRAMES = (4, 16, 64)
SHARPNESS_FRAMES, SHARPNESS_WINDOW = (16, 64, 128), 4
ACTION_FRAMES = 16


def boxer_coverage(video: Tensor) -> Tensor:
    """Video (b, 3, t, 64, 64) in [-1, 1] -> (b, 2, t, h, w): how much of each pixel inside the ring, 0 to 1, belongs to
    the player and to the opponent."""
    if video.shape[-2:] != (SIZE, SIZE):
        raise ValueError(f"boxer_coverage: frames must be {SIZE}x{SIZE}, got {tuple(video.shape[-2:])}.")
    levels = (video[..., RING[0], RING[1]].float() + 1) * 127.5
    player = (levels[:, 2] - CANVAS_BLUE) / (WHITE - CANVAS_BLUE)
    opponent = (CANVAS_GREEN - levels[:, 1]) / CANVAS_GREEN
    return torch.stack([player, opponent], dim=1).clamp(0, 1)


def pixel_counts(coverage: Tensor) -> Tensor:
    """The number of pixels that a boxer covers by more than half: (b, 2, t, h, w) -> (b, 2, t)."""
    return (coverage > 0.5).sum((-2, -1))


def centroids(coverage: Tensor) -> Tensor:
    """Row and column of each boxer's centroid, (b, 2, t, 2); the center of the ring for a boxer that is not visible."""
    weights = coverage * (coverage > 0.5)
    rows, columns = (torch.arange(size, device=coverage.device).float() for size in weights.shape[-2:])
    total = weights.sum((-2, -1))[..., None]
    sums = torch.stack([(weights.sum(-1) * rows).sum(-1), (weights.sum(-2) * columns).sum(-1)], dim=-1)
    return torch.where(total > 0, sums / total.clamp(min=1e-9), torch.stack([rows.mean(), columns.mean()]))


def player_distance(made: Tensor, real: Tensor) -> Tensor:
    """The distance between the player's centroids in two videos, in pixels, (b, t)."""
    return (centroids(boxer_coverage(made))[:, 0] - centroids(boxer_coverage(real))[:, 0]).norm(dim=-1)


def mean_distances(made: Tensor, real: Tensor) -> dict[str, float]:
    """The mean distance of the player by frame."""
    distance = player_distance(made, real).mean(0)
    return {str(frame): float(distance[frame - 1]) for frame in DISTANCE_FRAMES if frame <= len(distance)}


def psnr_over_copy(made: Tensor, copied: Tensor, real: Tensor) -> dict[str, float]:
    """By how many dB a video is nearer to the real one than the copied frame is, by groups of frames."""
    gain = (bounded_psnr(real, made) - bounded_psnr(real, copied)).mean(0)
    return {name: float(gain[part].mean()) for name, part in PSNR_FRAMES.items() if part.stop <= len(gain)}


def both_present(made: Tensor, reconstructed: Tensor) -> Tensor:
    """Whether both boxers have between half and twice their number of pixels in the reconstructed frame, (b, t)."""
    counts, expected = pixel_counts(boxer_coverage(made)), pixel_counts(boxer_coverage(reconstructed))
    return ((2 * counts >= expected) & (counts <= 2 * expected)).all(1)


def ring_sharpness(video: Tensor) -> Tensor:
    """Mean difference between neighboring pixels inside the ring, in levels of 255, (b, t)."""
    ring = video[..., RING[0], RING[1]].float() * 127.5
    across, down = ring.diff(dim=-1).abs().mean((1, 3, 4)), ring.diff(dim=-2).abs().mean((1, 3, 4))
    return (across + down) / 2


@dataclass(frozen=True, kw_only=True)
class BoxingScores:
    """Means over the prompts. Keys of the dictionaries are imagined frames; those after the rollouts' end are absent.

    The action's delta PSNR is over the first 16 frames, with its 95 % interval.
    """

    psnr_over_copy: dict[str, float]  # dB above the prompt's last frame, reconstructed and repeated
    distance: dict[str, float]  # pixels from the imagined player to the real one
    distance_tokenizer: dict[str, float]  # the same for the tokenizer's reconstruction of the real frames
    distance_copy: dict[str, float]  # the same for the repeated last frame of the prompt
    both_present: float  # fraction of the frames with both boxers
    frames: int  # imagined for each prompt
    sharpness: dict[str, float]  # over the frames up to this one, relative to the tokenizer's reconstruction
    action_delta_psnr: float
    action_delta_psnr_low: float
    action_delta_psnr_high: float


@torch.no_grad()
def measure_boxing(
    model: WorldModel,
    adapter: TokenizerAdapter,
    prompts: Prompts,
    *,
    others: Tensor,
    sampler: Sampler,
    decoding: Decoding | None = None,
) -> tuple[BoxingScores, RolloutResult]:
    """Roll out every prompt under its recorded actions, and for a few frames under `others` (b, t); -> the scores and
    the rollouts under the recorded actions."""
    prompts = prompts.to(model.device)
    assert prompts.actions is not None  # the policy's
    start, real = prompts.prompt_frames, prompts.future
    frames, few = real.shape[2], min(ACTION_FRAMES, real.shape[2])

    def imagine(actions: Tensor, num_frames: int) -> RolloutResult:
        given = actions[:, : start + num_frames].to(model.device)
        settings = {"num_frames": num_frames, "sampler": sampler, "decoding": decoding}
        return rollout(model, adapter, prompt=prompts.prompt, actions=given, **settings)

    result = imagine(prompts.actions, frames)
    under_others = imagine(others, few).imagined
    reconstructed = reconstruct(adapter, prompts.video)[:, :, start:]
    copied = result.prompt_reconstruction[:, :, -1:].expand_as(real)

    own_psnr, others_psnr = (
        bounded_psnr(real[:, :, :few], video[:, :, :few]) for video in (result.imagined, under_others)
    )
    effect = action_effect(own_psnr.mean(1), others_psnr.mean(1))
    sharpness, best_sharpness = (ring_sharpness(video).mean(0) for video in (result.imagined, reconstructed))
    windows = {str(end): slice(end - SHARPNESS_WINDOW, end) for end in SHARPNESS_FRAMES if end <= frames}

    scores = BoxingScores(
        psnr_over_copy=psnr_over_copy(result.imagined, copied, real),
        distance=mean_distances(result.imagined, real),
        distance_tokenizer=mean_distances(reconstructed, real),
        distance_copy=mean_distances(copied, real),
        both_present=float(both_present(result.imagined, reconstructed).float().mean()),
        frames=frames,
        sharpness={
            name: float(sharpness[window].sum() / best_sharpness[window].sum()) for name, window in windows.items()
        },
        action_delta_psnr=effect.delta_psnr,
        action_delta_psnr_low=effect.low,
        action_delta_psnr_high=effect.high,
    )
    return scores, result
