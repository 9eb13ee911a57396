"""Presets of the VidTok family: every published model, and the small one that ships with this package."""

from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

from vidtok_plugin.common.errors import nearest
from vidtok_plugin.tokenizer.architecture import Architecture

HUB_REPOSITORY = "microsoft/VidTok"


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """Reconstruction quality as published: 30 MCL-JCV videos, 30 fps, 256x256.

    Measured on clips of 17 frames, or 16 if non-causal; v1.1 on whole videos.
    """

    psnr: float  # dB
    ssim: float
    lpips: float
    fvd: float


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A named member of the family.

    checkpoint: a file of the Hugging Face repository `microsoft/VidTok`; None for the model in this package.
    """

    name: str
    architecture: Architecture
    metrics: Metrics | None
    checkpoint: str | None

    @property
    def compression(self) -> tuple[int, int, int]:
        """Factors in time, height and width."""
        arch = self.architecture
        return arch.temporal_factor, arch.spatial_factor, arch.spatial_factor

    def latent_shape(self, num_frames: int = 17, height: int = 256, width: int = 256) -> tuple[int, int, int, int]:
        """Shape (c, T, H, W) of the latents of a clip of that size."""
        arch = self.architecture
        return (
            arch.latent_channels,
            arch.num_latents(num_frames),
            height // arch.spatial_factor,
            width // arch.spatial_factor,
        )


def presets() -> MappingProxyType[str, Preset]:
    """All presets by name.

    Example:
        >>> presets()["vidtok_fsq_causal_488_32768"].compression
        (4, 8, 8)
    """
    return MappingProxyType(_PRESETS)


def get_preset(name: str) -> Preset:
    """The preset of that name; a ValueError that names the nearest one otherwise."""
    if name not in _PRESETS:
        raise ValueError(
            f"VidTok: there is no preset {name!r}; the nearest is {nearest(name, _PRESETS)!r} "
            "(`vidtok-plugin presets` lists all)."
        )
    return _PRESETS[name]


_FIVE_LEVELS = (1, 2, 4, 4, 4)

# f, s: factors in time and space; size: latent channels or codes; then PSNR, SSIM, LPIPS, FVD as published.
_ROWS: tuple[tuple[Literal["kl", "fsq"], bool, str, int, Literal["1.0", "1.1"], tuple[float, ...] | None], ...] = (
    ("kl", True, "488", 4, "1.0", (29.64, 0.852, 0.114, 194.2)),
    ("kl", True, "488", 8, "1.0", (31.83, 0.897, 0.083, 109.3)),
    ("kl", True, "488", 16, "1.0", (35.04, 0.942, 0.047, 78.9)),
    ("kl", True, "288", 8, "1.0", (33.86, 0.928, 0.057, 80.7)),
    ("kl", True, "444", 4, "1.0", (34.78, 0.941, 0.051, 87.2)),
    ("kl", True, "41616", 4, "1.0", (25.05, 0.711, 0.228, 549.1)),
    ("kl", False, "488", 4, "1.0", (30.60, 0.876, 0.098, 157.9)),
    ("kl", False, "488", 16, "1.0", (36.13, 0.950, 0.044, 60.5)),
    ("kl", False, "41616", 4, "1.0", (26.06, 0.751, 0.190, 423.2)),
    ("kl", False, "41616", 16, "1.0", (30.69, 0.878, 0.095, 147.1)),
    ("fsq", True, "488", 262144, "1.0", (29.82, 0.867, 0.106, 160.1)),
    ("fsq", True, "488", 32768, "1.0", (29.16, 0.854, 0.117, 196.9)),
    ("fsq", True, "488", 4096, "1.0", (28.36, 0.832, 0.133, 218.1)),
    ("fsq", True, "41616", 262144, "1.0", (25.38, 0.738, 0.206, 430.1)),
    ("fsq", False, "488", 262144, "1.0", (30.78, 0.889, 0.091, 132.1)),
    ("fsq", False, "41616", 262144, "1.0", (26.37, 0.772, 0.171, 357.0)),
    ("kl", True, "488", 4, "1.1", None),
    ("kl", True, "488", 16, "1.1", (35.13, 0.941, 0.049, 87.4)),
    ("kl", True, "41616", 16, "1.1", (29.61, 0.854, 0.113, 162.7)),
    ("kl", True, "288", 8, "1.1", (34.59, 0.935, 0.051, 78.2)),
    ("fsq", True, "488", 32768, "1.1", (29.39, 0.856, 0.114, 168.5)),
    ("fsq", True, "41616", 262144, "1.1", None),
    ("fsq", True, "888", 32768, "1.1", (27.95, 0.817, 0.142, 293.2)),
)
_FSQ_LEVELS = {4096: (8,) * 4, 32768: (8,) * 5, 262144: (8,) * 6}
_VARIANTS: dict[str, dict[str, Any]] = {  # differences from the family's default levels
    "488": {},
    "41616": {"ch_mult": _FIVE_LEVELS},
    "288": {"encoder_temporal_levels": (1,), "decoder_temporal_levels": (2,)},
    "444": {"encoder_spatial_levels": (1, 2), "decoder_spatial_levels": (1, 2)},
    "888": {"encoder_temporal_levels": (0, 1, 2), "decoder_temporal_levels": (1, 2, 3)},
}


def _published() -> dict[str, Preset]:
    result = {}
    for regularizer, causal, compression, size, version, metrics in _ROWS:
        suffix = "_v1_1" if version == "1.1" else ""
        name = "_".join(
            ["vidtok", regularizer, "causal" if causal else "noncausal", compression]
            + [f"{size}chn" if regularizer == "kl" else str(size)]
        )
        base = Architecture(
            regularizer=regularizer,
            fsq_levels=_FSQ_LEVELS[size] if regularizer == "fsq" else None,
            kl_channels=size if regularizer == "kl" else None,
            causal=causal,
            version=version,
        )
        folder = "checkpoints/vidtok_v1_1" if suffix else "checkpoints"
        result[name + suffix] = Preset(
            name=name + suffix,
            architecture=replace(base, **_VARIANTS[compression]),
            metrics=None
            if metrics is None
            else Metrics(psnr=metrics[0], ssim=metrics[1], lpips=metrics[2], fvd=metrics[3]),
            checkpoint=f"{folder}/{name}{suffix}.ckpt",
        )
    return result


_TINY = Preset(
    name="vidtok_tiny",
    # Cheap on a CPU: narrow, one block per level, and temporal resampling at low resolution.
    architecture=Architecture(
        regularizer="fsq",
        fsq_levels=(8, 5, 5, 5),
        ch=16,
        ch_mult=(1, 2, 3, 4),
        num_res_blocks=1,
        encoder_temporal_levels=(0, 1),
        decoder_temporal_levels=(2, 3),
    ),
    metrics=None,
    checkpoint=None,
)

_PRESETS: dict[str, Preset] = {**_published(), _TINY.name: _TINY}
