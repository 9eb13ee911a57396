"""The architecture of a VidTok: the settings in which the members of the family differ."""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from vidtok_plugin.common.field_checks import check_fields


class TimePadding(StrEnum):
    """What a temporal kernel sees beyond the clip's ends."""

    SYMMETRIC = "symmetric"  # non-causal: zero frames at both ends
    ZEROS = "zeros"  # causal, v1.0: zero frames in front
    FIRST_FRAME = "first_frame"  # causal, v1.1: copies of the first frame in front

    @property
    def causal(self) -> bool:
        return self is not TimePadding.SYMMETRIC


# Far beyond any model that fits a machine; a stranger's config must not keep one busy.
MAX_CODES = 2**31
MAX_CHANNELS = 2**16
MAX_LEVELS = 16
MAX_BLOCKS = 64


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A member of the VidTok family (arXiv 2412.13061, section 3).

    Levels count from 0, the full resolution. A tuple of levels that is None stands for the family's default.

    Raises:
        ValueError: for settings that contradict each other or describe no network.

    Example:
        >>> Architecture(regularizer="fsq", fsq_levels=(8, 8, 8, 8)).codebook_size
        4096
    """

    regularizer: Literal["fsq", "kl"]
    fsq_levels: tuple[int, ...] | None = None  # FSQ: levels of each latent channel
    kl_channels: int | None = None  # KL: latent channels
    causal: bool = True
    version: Literal["1.0", "1.1"] = "1.0"  # of causal models' padding and interpolation in time
    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    encoder_spatial_levels: tuple[int, ...] | None = None  # default: all but the deepest
    encoder_temporal_levels: tuple[int, ...] | None = None  # default: the two above the deepest
    decoder_spatial_levels: tuple[int, ...] | None = None  # default: all but 0
    decoder_temporal_levels: tuple[int, ...] | None = None  # default: 1 and 2
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)
        if (self.fsq_levels is not None) != (self.regularizer == "fsq") or (self.kl_channels is not None) != (
            self.regularizer == "kl"
        ):
            raise ValueError(
                "Architecture: regularizer 'fsq' takes fsq_levels and 'kl' takes kl_channels, "
                f"got {self.regularizer!r} with fsq_levels={self.fsq_levels}, kl_channels={self.kl_channels}."
            )
        if self.fsq_levels is not None and (not self.fsq_levels or min(self.fsq_levels) < 2):
            raise ValueError(f"Architecture: every FSQ level must be 2 or more, got {self.fsq_levels}.")
        if self.codebook_size is not None and self.codebook_size > MAX_CODES:
            raise ValueError(
                f"Architecture: fsq_levels must multiply to at most 2^31 codes, which stores keep as int32, got "
                f"{self.codebook_size}."
            )
        if self.version == "1.1" and not self.causal:
            raise ValueError("Architecture: version 1.1 is a kind of causal padding; set causal=true or version='1.0'.")
        for name, sizes, largest in (
            ("ch", (self.ch,), MAX_CHANNELS),
            ("kl_channels", (self.kl_channels or 1,), MAX_CHANNELS),
            ("ch_mult", self.ch_mult, MAX_CHANNELS),
            ("the number of levels in ch_mult", (len(self.ch_mult),), MAX_LEVELS),
            ("num_res_blocks", (self.num_res_blocks,), MAX_BLOCKS),
        ):
            if not 1 <= min(sizes) <= max(sizes) <= largest:
                raise ValueError(f"Architecture: {name} must be 1 to {largest}, got {', '.join(map(str, sizes))}.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"Architecture: dropout must be in [0, 1), got {self.dropout}.")
        for name in ("spatial", "temporal"):
            down, up = getattr(self, f"{name}_down"), getattr(self, f"{name}_up")
            if len(down) != len(up):
                raise ValueError(
                    f"Architecture: encoder and decoder must have the same number of {name} levels, "
                    f"got {down} and {up}."
                )
            if len(set(down)) != len(down) or len(set(up)) != len(up):
                raise ValueError(f"Architecture: {name} levels must differ, got {down} and {up}.")
            if not set(down) | set(up) <= set(range(len(self.ch_mult))):
                raise ValueError(
                    f"Architecture: {name} levels must be 0 to {len(self.ch_mult) - 1}, got {down} and {up}."
                )

    @property
    def time_padding(self) -> TimePadding:
        if not self.causal:
            return TimePadding.SYMMETRIC
        return TimePadding.FIRST_FRAME if self.version == "1.1" else TimePadding.ZEROS

    @property
    def depth(self) -> int:
        return len(self.ch_mult)

    @property
    def spatial_down(self) -> tuple[int, ...]:
        levels = self.encoder_spatial_levels
        return tuple(range(self.depth - 1)) if levels is None else levels

    @property
    def temporal_down(self) -> tuple[int, ...]:
        levels = self.encoder_temporal_levels
        return (self.depth - 3, self.depth - 2) if levels is None else levels

    @property
    def spatial_up(self) -> tuple[int, ...]:
        levels = self.decoder_spatial_levels
        return tuple(range(1, self.depth)) if levels is None else levels

    @property
    def temporal_up(self) -> tuple[int, ...]:
        return (1, 2) if self.decoder_temporal_levels is None else self.decoder_temporal_levels

    @property
    def spatial_factor(self) -> int:
        return 2 ** len(self.spatial_down)

    @property
    def temporal_factor(self) -> int:
        return 2 ** len(self.temporal_down)

    def num_latents(self, num_frames: int) -> int:
        """Latent steps of a clip: `1 + ceil((t - 1) / f)` if causal, else `ceil(t / f)`."""
        f = self.temporal_factor
        return 1 + -(-(num_frames - 1) // f) if self.causal else -(-num_frames // f)

    @property
    def latent_channels(self) -> int:
        if self.fsq_levels is not None:
            return len(self.fsq_levels)
        assert self.kl_channels is not None
        return self.kl_channels

    @property
    def codebook_size(self) -> int | None:
        """Number of codes; None for KL."""
        return None if self.fsq_levels is None else math.prod(self.fsq_levels)
