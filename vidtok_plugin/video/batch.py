"""A batch of clips that knows where each clip comes from, in bytes until its video is asked for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.utils.data import default_collate

from vidtok_plugin.video.pixels import from_uint8


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One clip, its `frames` uint8 RGB `(t, h, w, 3)`.

    `origin` tells its file, its frames there, and how they were cropped and mirrored. `unreadable` holds the videos,
    path to cause, that were first found to be unreadable while this clip was sought: it took their place.
    """

    frames: Tensor
    origin: str
    unreadable: Mapping[str, str] = field(default_factory=dict)

    @property
    def video(self) -> Tensor:
        """The clip `(3, t, h, w)`, float32 in [-1, 1]."""
        return from_uint8(self.frames)


@dataclass(frozen=True, kw_only=True, eq=False)
class VideoBatch:
    """Clips, their `frames` uint8 RGB `(b, t, h, w, 3)`, each with its origin; see `Clip`.

    So they come from workers and go to the device in a quarter of their video's bytes; the device that they are on
    makes the video, once.
    """

    frames: Tensor
    origins: list[str]
    unreadable: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.frames.dtype != torch.uint8 or self.frames.ndim != 5 or self.frames.shape[-1] != 3:
            raise ValueError(
                f"VideoBatch: frames must be uint8 of shape (b, t, h, w, 3), got {self.frames.dtype} of"
                f" {tuple(self.frames.shape)}; float video needs no VideoBatch, its tensor (b, 3, t, h, w) is a batch."
            )
        if len(self.origins) != len(self.frames):
            raise ValueError(
                f"VideoBatch: origins must be one for each of the {len(self.frames)} clips, got {len(self.origins)}."
            )

    def __len__(self) -> int:
        return len(self.frames)

    @cached_property
    def video(self) -> Tensor:
        """The clips `(b, 3, t, h, w)`, float32 in [-1, 1]."""
        return from_uint8(self.frames)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "VideoBatch":
        """The batch with its clips on a device."""
        return replace(self, frames=self.frames.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "VideoBatch":
        """The batch with its clips in page-locked memory, as loaders with `pin_memory=True` ask for."""
        return replace(self, frames=self.frames.pin_memory())


def collate_clips(clips: Sequence[Clip]) -> VideoBatch:
    """The batch of clips that all have one shape."""
    unreadable: dict[str, str] = {}
    for clip in clips:
        unreadable |= clip.unreadable
    return VideoBatch(
        frames=default_collate([clip.frames for clip in clips]),  # in a worker, into memory that its parent shares
        origins=[clip.origin for clip in clips],
        unreadable=unreadable,
    )


def as_video(batch: VideoBatch | Tensor) -> Tensor:
    """The clips `(b, 3, t, h, w)` of a batch, be it ours or the plain tensor of a user's own loader."""
    video = batch.video if isinstance(batch, VideoBatch) else batch
    if not isinstance(video, Tensor):
        raise TypeError(
            f"A batch must be a VideoBatch or a tensor (b, 3, t, h, w), got {type(video).__name__}; give the loader"
            " a collate_fn that returns one of them."
        )
    return video
