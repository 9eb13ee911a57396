"""Interactive rollouts: yields the frames of each latent step before it asks the player for the next actions.

Shapes: b rollouts, t h w frames and pixels, f frames per latent step, a components of a continuous action.
"""

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

from vidtok_plugin.adapter.adapter import TokenizerAdapter
from world_model.decoding import Decoding
from world_model.heads.sampler import Sampler
from world_model.model import WorldModel
from world_model.rollout.checks import check_num_frames
from world_model.rollout.imagination import Imagination

Policy = Callable[[Tensor], Tensor]


def stream_rollout(
    model: WorldModel,
    adapter: TokenizerAdapter,
    *,
    prompt: Tensor,
    policy: Policy | None = None,
    actions: Tensor | None = None,
    num_frames: int | None = None,
    sampler: Sampler | None = None,
    decoding: Decoding | None = None,
    indices: Sequence[int] | None = None,
    state: Tensor | None = None,
    validate: bool = False,
) -> Iterator[Tensor]:
    """Imagine step by step, for interactive play: yields the f frames (b, 3, f, h, w) of each latent step.

    `policy(frames)` receives the newest f frames and returns the f actions of the next step, (b, f) or (b, f, a). The
    first call gets the last frames of the prompt; a prompt of one frame is repeated. Leave `policy` out for a model
    without actions. `actions` and `state` are those of the prompt, one per frame; without them the model treats them as
    unknown. Frames are decoded without lookahead, because the next step waits for the player. The stream ends after
    `num_frames` frames, or never if that is None.
    """
    # A generator function would run these checks only when its first frame is asked for.
    if num_frames is not None:
        check_num_frames(num_frames, model.tokens.temporal_factor, "stream_rollout")
    acts = model.tokens.actions.kind != "none"
    if acts != (policy is not None):
        raise ValueError(
            f"stream_rollout: policy must be {'given' if acts else 'left out'}, since the world model was trained "
            f"{'with' if acts else 'without'} actions, got {policy}."
        )
    imagination = Imagination(
        model,
        adapter,
        prompts=prompt,
        actions=actions,
        sampler=sampler,
        decoding=decoding,
        indices=indices,
        state=state,
        validate=validate,
        who="stream_rollout",
    )
    return _stream(imagination, policy, num_frames)


def _stream(imagination: Imagination, policy: Policy | None, num_frames: int | None) -> Iterator[Tensor]:
    num_given = 0
    while num_frames is None or num_given < num_frames:
        yield imagination.step(None if policy is None else policy(imagination.frames)).frames
        num_given += imagination.adapter.temporal_factor
