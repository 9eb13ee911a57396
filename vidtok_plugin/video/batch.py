"""A batch of clips that knows where each clip comes from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One clip `(3, t, h, w)`, float32 in [-1, 1].

    `origin` tells its file, its frames there, and how they were cropped and mirrored. `unreadable` holds the videos,
    path to cause, that were first found to be unreadable while this clip was sought: it took their place.
    """

    video: Tensor
    origin: str
    unreadable: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class VideoBatch:
    """Clips `(b, 3, t, h, w)`, float32 in [-1, 1], each with its origin; see `Clip`."""

    video: Tensor
    origins: list[str]
    unreadable: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.origins) != len(self.video):
            raise ValueError(
                f"VideoBatch: origins must be one for each of the {len(self.video)} clips, got {len(self.origins)}."
            )

    def __len__(self) -> int:
        return len(self.video)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "VideoBatch":
        """The batch with its clips on a device."""
        return replace(self, video=self.video.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "VideoBatch":
        """The batch with its clips in page-locked memory, as loaders with `pin_memory=True` ask for."""
        return replace(self, video=self.video.pin_memory())


def collate_clips(clips: Sequence[Clip]) -> VideoBatch:
    """The batch of clips that all have one shape."""
    unreadable: dict[str, str] = {}
    for clip in clips:
        unreadable |= clip.unreadable
    return VideoBatch(
        video=torch.stack([clip.video for clip in clips]),
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
