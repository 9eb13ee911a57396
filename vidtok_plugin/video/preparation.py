"""Preparing episodes: frames of any size and rate brought to one size and one rate, with what came with them.

Shapes: t frames as recorded, n frames kept, k of the former for each of the latter, a components of an action.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vidtok_plugin.common.field_checks import check_fields
from vidtok_plugin.video.episode import Episode, EpisodeMethods, OfEpisode, check_frames
from vidtok_plugin.video.episode_meta import MAX_FPS
from vidtok_plugin.video.pyav_reader import Fit
from vidtok_plugin.video.reading import ReaderPool
from vidtok_plugin.video.resizing import resize, resize_and_crop, resize_and_pad
from vidtok_plugin.video.sampling import IndexedVideo, resample

MAX_SIDE = 2**16
RATE_TOLERANCE = 0.002  # of a whole number of frames, so that 29.97 frames a second count as 30
_FITS: Mapping[str, Callable[..., np.ndarray]] = {"crop": resize_and_crop, "pad": resize_and_pad, "stretch": resize}


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """How frames are brought to one size and one rate. Without settings, they stay as they are.

    size: height and width. Axes shrink by area and grow linearly; frames of that size stay as they are.
    fit: what happens to another shape. crop: as large as covers the size, its center; pad: as large as fits in it, on
        black; stretch: both axes alone. By default crop.
    fps: frames a second. Without actions, each frame is the one nearest in time, whose times may vary. With actions, it
        is every k-th frame, the episode's rate being k times `fps`: from the first frame on, or if the episode
        terminated, so that the last frame is among them. Frames after the last one kept are left out.
    group_actions: what led to a frame when only every k-th is kept. concatenate: one action of k parts, those of the k
        frames in order, so that nothing is lost: k * a components, or k choices. sum: the sum of continuous actions,
        for those that are differences. By default concatenate. Rewards are summed.
    """

    size: tuple[int, int] | None = None
    fit: Literal["crop", "pad", "stretch"] | None = None
    fps: float | None = None
    group_actions: Literal["concatenate", "sum"] | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.size is not None and not 1 <= min(self.size) <= max(self.size) <= MAX_SIDE:
            raise ValueError(f"Preparation: size must be a height and a width in 1..{MAX_SIDE}, got {self.size}.")
        if self.fps is not None and not 0 < self.fps <= MAX_FPS:
            raise ValueError(f"Preparation: fps must be above 0, at most {MAX_FPS}, got {self.fps}.")
        for name, of in (("fit", "size"), ("group_actions", "fps")):
            if getattr(self, name) is not None and getattr(self, of) is None:
                raise ValueError(
                    f"Preparation: {name} must be left out without {of}, got {getattr(self, name)}; give {of}, too."
                )

    @property
    def is_empty(self) -> bool:
        return self == Preparation()

    def facts(self) -> dict[str, Any]:
        """The settings in effect, with defaults, as JSON values; empty without settings.

        Example:
            >>> Preparation(size=(64, 96)).facts()
            {'size': [64, 96], 'fit': 'crop'}
        """
        found: dict[str, Any] = {}
        if self.size is not None:
            found |= {"size": list(self.size), "fit": self.fit or "crop"}
        if self.fps is not None:
            found |= {"fps": float(self.fps), "group_actions": self.group_actions or "concatenate"}
        return found

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> "Preparation":
        """The preparation with these settings; a ValueError if they are none."""
        values = dict(facts)
        size = values.get("size")
        if isinstance(size, list) and len(size) == 2:
            values["size"] = tuple(size)
        try:
            return cls(**values)
        except TypeError:
            raise ValueError(f"Preparation: it has size, fit, fps and group_actions, got {facts}.") from None

    def of(self, episode: Episode) -> Episode:
        """The episode with its frames at this size and rate. Nothing is read before it is asked for."""
        return episode if self.is_empty else PreparedEpisode(episode=episode, preparation=self)


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedEpisode(OfEpisode, EpisodeMethods):
    """An episode at another size or rate.

    Raises:
        ValueError: its rate is not a whole multiple of the one wanted and it has actions, or they cannot be grouped so.
    """

    episode: Episode
    preparation: Preparation

    @property
    def num_frames(self) -> int:
        return self.episode.num_frames if self.preparation.fps is None else len(self.kept)

    @property
    def fps(self) -> float | None:
        return self.episode.fps if self.preparation.fps is None else float(self.preparation.fps)

    def frame_rate(self) -> float:
        return self.episode.frame_rate() if self.preparation.fps is None else float(self.preparation.fps)

    @property
    def size(self) -> tuple[int, int]:
        return self.preparation.size or self.episode.size

    @property
    def terminated(self) -> bool | None:
        return self.episode.terminated

    @property
    def task(self) -> str | None:
        return self.episode.task

    @cached_property
    def stride(self) -> int:
        """How many frames of an episode with actions there are for each one kept."""
        wanted = self.preparation.fps
        if wanted is None:
            return 1
        rate = self.episode.frame_rate()
        stride = max(1, round(rate / wanted))
        if abs(rate / wanted - stride) > RATE_TOLERANCE * stride:
            below = int(rate / wanted)
            fitting = " and ".join(f"{rate / k:.6g}" for k in (below, below + 1) if k)
            raise ValueError(
                f"Episode {self}: it has an action for each frame, so fps must be its rate of {rate:g} divided by a "
                f"whole number, got {wanted:g}; the nearest that fit are {fitting}."
            )
        return stride

    @cached_property
    def kept(self) -> Sequence[int]:
        """The numbers of the frames that are kept, as recorded."""
        fps, total = self.preparation.fps, self.episode.num_frames
        if fps is None:
            return range(total)
        if self.episode.actions is not None:
            return range((total - 1) % self.stride if self.terminated else 0, total, self.stride)
        return resample(IndexedVideo.timed(self.episode, self.episode.times()), fps)

    @cached_property
    def actions(self) -> np.ndarray | None:
        actions = self.episode.actions
        if actions is None or self.stride == 1:
            return actions
        grouped = self._groups(actions)
        if self.preparation.group_actions == "sum":
            self._check_sums()
            return grouped.sum(axis=1, dtype=np.float64).astype(np.float32)
        return grouped.reshape(len(grouped), -1).astype(np.float32)

    @property
    def action_space(self) -> Mapping[str, Any]:
        space, actions = self.episode.action_space, self.episode.actions
        if actions is None or self.stride == 1:
            return space
        if self.preparation.group_actions == "sum":
            self._check_sums()
            return {name: value for name, value in space.items() if name != "space"}  # whose bounds are those of one
        grouped = {"kind": space["kind"], "frames": self.stride, "each": dict(space)}
        described = space.get("space")
        if actions.ndim == 1:
            grouped["kind"] = "mixed"
            described = described or {"type": "Discrete", "n": self._choices()}
        if described is not None:
            grouped["space"] = {"type": "Tuple", "spaces": [described] * self.stride}
        return {**grouped, "size": self.stride * (1 if actions.ndim == 1 else actions.shape[1])}

    @property
    def rewards(self) -> np.ndarray | None:
        """The sums of the rewards since the frame kept before; the first frame has its own."""
        rewards = self.episode.rewards
        if rewards is None or self._keeps_all:
            return rewards
        if self.episode.actions is None:
            return self._since(rewards)
        summed = self._groups(rewards).sum(axis=1, dtype=np.float64).astype(np.float32)
        summed[0] = rewards[self.kept[0]]
        return summed

    @property
    def state(self) -> np.ndarray | None:
        state = self.episode.state
        return state if state is None or self._keeps_all else state[list(self.kept)]

    def read(self, frames: Sequence[int], *, fit: Fit | None = None, pool: ReaderPool | None = None) -> np.ndarray:
        own = self._fit
        both = own if fit is None else fit if own is None else partial(_one_then, own, fit)
        if self.preparation.fps is None:
            return self.episode.read(frames, fit=both, pool=pool)
        check_frames(self, frames, self.num_frames)
        return self.episode.read([self.kept[index] for index in frames], fit=both, pool=pool)

    def times(self) -> np.ndarray:
        return self.episode.times() if self.preparation.fps is None else super().times()

    def digest(self) -> str:
        return self.episode.digest()

    def digest_without_state(self) -> str:
        return self.episode.digest_without_state()

    def frames_digest(self) -> str:
        return self.episode.frames_digest()

    def name_from(self, root: Path | None) -> str:
        return self.episode.name_from(root)

    @property
    def _fit(self) -> Fit | None:
        if self.preparation.size is None:
            return None
        height, width = self.preparation.size
        return partial(_FITS[self.preparation.fit or "crop"], height=height, width=width)

    @property
    def _keeps_all(self) -> bool:
        return self.preparation.fps is None or (self.episode.actions is not None and self.stride == 1)

    def _groups(self, values: np.ndarray) -> np.ndarray:
        """Values (t, ...) as those that led to each frame, (n, k, ...); zeros for the first frame."""
        first, last = self.kept[0], self.kept[-1]
        groups = np.zeros((len(self.kept), self.stride, *values.shape[1:]), values.dtype)
        groups[1:] = values[first + 1 : last + 1].reshape(-1, self.stride, *values.shape[1:])
        return groups

    def _since(self, values: np.ndarray) -> np.ndarray:
        """The sums of values (t,) after the frame kept before, up to each frame."""
        total = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
        ends = np.asarray(self.kept) + 1
        starts = np.concatenate([[self.kept[0]], ends[:-1]])
        return (total[ends] - total[starts]).astype(np.float32)

    def _check_sums(self) -> None:
        if self.episode.action_space["kind"] != "continuous":
            raise ValueError(
                f"Episode {self}: group_actions must be concatenate for actions with choices, which have no sum, got "
                "sum."
            )

    def _choices(self) -> int:
        """The number of discrete actions."""
        size = self.episode.action_space.get("size")
        if size is None:
            raise ValueError(
                f"Episode {self}: it must state how many discrete actions there are, so that groups of {self.stride} "
                'can be described, in its JSON as "action_space": {"kind": "discrete", "size": 4}, in an array file as '
                "num_actions."
            )
        return int(size)


def _one_then(first: Fit, second: Fit, frames: np.ndarray) -> np.ndarray:
    return second(first(frames))
