"""The settings of tokenizing."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vidtok_plugin.common.field_checks import check_fields
from vidtok_plugin.store.shards import SPLIT_RULE, is_split_name
from vidtok_plugin.video.preparation import Preparation


@dataclass(frozen=True, kw_only=True)
class TokenizeConfig:
    """How episodes become tokens in a store.

    split: the store's split to write to.
    root: episodes are named by their paths relative to it; without it, by their file names.
    clip_frames: 1 + k f; cut each video into clips of this many frames, the last frame of one being the first of the
        next, and encode and store each on its own. The first step of a clip is a single frame, like that of a
        rollout's prompt; a model trained on whole videos seldom sees such a step. None: whole videos.
    size, fit, fps, group_actions: of all videos in the store, whatever theirs; see `Preparation`. None: all must have
        the same size and rate, and keep them.
    episodes_per_shard: of new shards; shards that are already planned stay as they are.
    chunk_frames: frames that are encoded at once, of each video of a batch.
    batch: videos, or clips of them, that are encoded together; the same codes. Faster on a GPU.
    update: replace what differs: episodes whose files have changed, or all of them if the tokenizer or the size, rate
        or actions of the videos are different.
    keep_freed_memory: on a CPU, keep the memory that a chunk frees for the next: faster, and a little more memory.
    progress: show a progress bar.
    """

    split: str = "train"
    root: str | Path | None = None
    clip_frames: int | None = None
    size: tuple[int, int] | None = None
    fit: Literal["crop", "pad", "stretch"] | None = None
    fps: float | None = None
    group_actions: Literal["concatenate", "sum"] | None = None
    episodes_per_shard: int = 32
    chunk_frames: int = 64
    batch: int = 1
    update: bool = False
    keep_freed_memory: bool = True
    progress: bool = False

    @property
    def batch_frames(self) -> int:
        """Frames of the other videos of a batch, which are in memory with those of the first."""
        return (self.batch - 1) * min(self.chunk_frames, self.clip_frames or self.chunk_frames)

    @property
    def preparation(self) -> Preparation:
        """Of the episodes' frames."""
        return Preparation(size=self.size, fit=self.fit, fps=self.fps, group_actions=self.group_actions)

    def __post_init__(self) -> None:
        check_fields(self)
        if not is_split_name(self.split):
            raise ValueError(f"write_store: split must be {SPLIT_RULE}, got {self.split!r}.")
        if min(self.episodes_per_shard, self.chunk_frames, self.batch) < 1:
            raise ValueError(
                "write_store: episodes_per_shard, chunk_frames and batch must be at least 1, got "
                f"{self.episodes_per_shard}, {self.chunk_frames} and {self.batch}."
            )
        Preparation(size=self.size, fit=self.fit, fps=self.fps, group_actions=self.group_actions)  # checks them
