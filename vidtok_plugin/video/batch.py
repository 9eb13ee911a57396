"""Batches of clips as uint8 frames with their origins; `video` converts them to float."""

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

    `origin` describes its file, frames, crop and mirroring. `unreadable` maps paths to causes: the unreadable videos
    that this clip was drawn in place of.
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
    """Clips, `frames` uint8 RGB `(b, t, h, w, 3)`, with the origin of each; see `Clip`.

    As uint8 they take a quarter of the bytes of float video on the way from workers to the device, where `video`
    converts them once.
    """

    frames: Tensor
    origins: list[str]
    unreadable: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.frames.dtype != torch.uint8 or self.frames.ndim != 5 or self.frames.shape[-1] != 3:
            raise ValueError(
                f"VideoBatch: frames must be uint8 of shape (b, t, h, w, 3), got {self.frames.dtype} of"
                f" {tuple(self.frames.shape)}; for float video, use the tensor (b, 3, t, h, w) itself as the batch."
            )
        if len(self.origins) != len(self.frames):
            raise ValueError(
                f"VideoBatch: origins must have one entry for each of the {len(self.frames)} clips, got"
                f" {len(self.origins)}."
            )

    def __len__(self) -> int:
        return len(self.frames)

    @cached_property
    def video(self) -> Tensor:
        """The clips `(b, 3, t, h, w)`, float32 in [-1, 1]."""
        return from_uint8(self.frames)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "VideoBatch":
        """The batch with its frames on a device."""
        return replace(self, frames=self.frames.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "VideoBatch":
        """The batch in page-locked memory; loaders with `pin_memory=True` call this."""
        return replace(self, frames=self.frames.pin_memory())


def collate_clips(clips: Sequence[Clip]) -> VideoBatch:
    """The batch of clips of equal shape."""
    unreadable: dict[str, str] = {}
    for clip in clips:
        unreadable |= clip.unreadable
    return VideoBatch(
        frames=default_collate([clip.frames for clip in clips]),  # in a worker: into shared memory
        origins=[clip.origin for clip in clips],
        unreadable=unreadable,
    )


def as_video(batch: VideoBatch | Tensor) -> Tensor:
    """The clips `(b, 3, t, h, w)` of a batch: a VideoBatch, or the tensor of a user's own loader."""
    video = batch.video if isinstance(batch, VideoBatch) else batch
    if not isinstance(video, Tensor):
        raise TypeError(
            f"A batch must be a VideoBatch or a tensor (b, 3, t, h, w), got {type(video).__name__}; give the loader"
            " a collate_fn that returns one of these."
        )
    return video
