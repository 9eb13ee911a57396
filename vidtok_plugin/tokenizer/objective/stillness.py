"""Stillness loss: keeps a causal tokenizer's codes constant where the picture is.

A tokenizer trained for reconstruction alone changes the codes of a still background from step to step, because other
codes decode just as well, or because those places carry what moves elsewhere. A world model then spends its capacity on
predicting these changes.

Shapes: b clips, t h w frames and pixels, T H W latent steps, rows and columns, f frames a step, y x pixels a latent.
"""

import torch
from einops import reduce
from torch import Tensor

TOLERANCE = 0.05  # largest change of a pixel, in [-1, 1], that counts as none


def still_places(video: Tensor, grid: tuple[int, int, int], tolerance: float = TOLERANCE) -> Tensor:
    """Which places of a latent grid (T, H, W) show a still picture: (b, T - 2, H, W) bool, for the steps 2 .. T - 1.

    A place is still if its pixels change by at most `tolerance` between successive frames, from the last frame before
    the previous step to the last frame of its own.

    Raises:
        ValueError: the video (b, 3, t, h, w) is not made of 1 + (T - 1) * f frames, or has fewer than 3 steps.
    """
    steps, height, width = grid
    t, h, w = video.shape[2:]
    if steps < 3 or (t - 1) % (steps - 1) or h % height or w % width:
        raise ValueError(
            "stillness: clips must have 1 + k * f frames and at least 3 latent steps of a causal tokenizer, got "
            f"{t}x{h}x{w} for {steps}x{height}x{width} latents; raise data.clip_length, or set "
            "objective.still_weight=0."
        )
    changes = video.diff(dim=2).abs().amax(1)
    sizes = {"f": (t - 1) // (steps - 1), "y": h // height, "x": w // width}
    unchanged = reduce(changes, "b (T f) (H y) (W x) -> b T H W", "max", **sizes) <= tolerance
    return unchanged[:, 1:] & unchanged[:, :-1]


def stillness(video: Tensor, latents: Tensor) -> Tensor:
    """Squared change of the latents (b, c, T, H, W) from step to step at still places, averaged over all places.

    It is zero where quantized latents stay the same; its gradient passes straight through the rounding. The first step
    has a single frame and is left out.

    Example:
        >>> video, latents = torch.zeros(1, 3, 9, 4, 4), torch.zeros(1, 2, 3, 1, 1)
        >>> latents[:, 0, 2] = 0.5
        >>> stillness(video, latents)
        tensor(0.2500)
    """
    _, _, steps, height, width = latents.shape
    still = still_places(video, (steps, height, width))
    change = latents.float().diff(dim=2)[:, :, 1:].square().sum(1)
    return torch.where(still, change, 0.0).mean()
