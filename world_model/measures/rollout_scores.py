"""How good short rollouts are, as a few numbers: their PSNR, what the actions do to it, and the speed."""

from dataclasses import dataclass

from torch import Tensor

from vidtok_plugin.adapter.adapter import TokenizerAdapter
from world_model.decoding import Decoding
from world_model.heads.sampler import Sampler
from world_model.measures.controllability import others_actions
from world_model.measures.futures import FutureScores, imagine
from world_model.measures.prompts import Prompts
from world_model.model import WorldModel
from world_model.rollout.rollout import RolloutResult


@dataclass(frozen=True, kw_only=True)
class RolloutScores:
    """PSNR in dB of imagined frames against the real ones, mean over prompts and frames."""

    rollout_psnr: float
    copy_last_frame_psnr: float  # repeating the prompt's last frame as the tokenizer reconstructs it
    action_delta_psnr: float  # under the real actions, less under others (Genie, arXiv 2402.15391)
    action_delta_psnr_low: float  # lower end of its 95% bootstrap interval, paired by prompt
    tokens_per_second: float  # generated, of all rollouts together
    frames_per_second: float  # imagined, decoding included


def score_rollouts(
    model: WorldModel,
    adapter: TokenizerAdapter,
    prompts: Prompts,
    *,
    sampler: Sampler,
    decoding: Decoding | None = None,
    others: Tensor | None = None,
) -> tuple[RolloutScores, RolloutResult]:
    """Rolls out every prompt under its real actions and under `others` (b, t[, a]), by default another prompt's.

    Also gives the rollouts under the real actions.

    Raises:
        ValueError: the prompts have no actions, or without `others` there is only one.
    """
    if prompts.actions is None:
        raise ValueError("score_rollouts: the prompts must have actions, got none; record them with the videos.")
    scores = FutureScores()
    if others is None:
        others = others_actions(prompts.actions, prompts.prompt_frames)
    futures = imagine(model, adapter, prompts, others=others, sampler=sampler, decoding=decoding, reconstruct=False)
    scores.add(futures)
    effect, by_frame = scores.action_effect(), scores.all()
    assert effect is not None
    result = RolloutScores(
        rollout_psnr=float(by_frame["psnr"].mean()),
        copy_last_frame_psnr=float(by_frame["copy_psnr"].mean()),
        action_delta_psnr=effect.delta_psnr,
        action_delta_psnr_low=effect.low,
        tokens_per_second=futures.result.tokens_per_second,
        frames_per_second=len(prompts) * prompts.future.shape[2] / futures.result.seconds,
    )
    return result, futures.result
