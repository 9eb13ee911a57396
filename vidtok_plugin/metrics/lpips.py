"""LPIPS (arXiv 1801.03924): the perceptual distance of frames, by features of VGG16."""

import torch
from torch import Tensor, nn

# The convolutions (index in the standard VGG16 feature list, width) of each slice. Each is followed by a ReLU, and each
# slice but the first starts with a max-pool. Features are compared at the end of each slice.
_SLICES = (
    ((0, 64), (2, 64)),
    ((5, 128), (7, 128)),
    ((10, 256), (12, 256), (14, 256)),
    ((17, 512), (19, 512), (21, 512)),
    ((24, 512), (26, 512), (28, 512)),
)
_EPSILON = 1e-10  # added to the norm of the features
MIN_SIZE = 16  # pixels per side: the network halves frames four times


class LPIPS(nn.Module):
    """Distance of frames `(n, 3, h, w)` in [-1, 1], h and w at least 16: `lpips(a, b)` -> `(n,)`, 0 for equal frames.

    The network is fixed: its parameters need no gradients, and training mode has no effect. Gradients reach both
    inputs, and are finite also where all features of a pixel are zero. Features are compared in float32, also under
    autocast.

    Weights are random; `vidtok_plugin.metrics.lpips_weights.load_lpips` loads the real ones. Parameters have the names
    of published VidTok checkpoints after `loss.perceptual_loss.`: `net.slice1.0.weight`, ..., `lin0.model.1.weight`.

    Example:
        >>> frames = torch.rand(2, 3, 16, 16) * 2 - 1
        >>> LPIPS()(frames, frames)
        tensor([0., 0.])
    """

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        # Constants, hence not in the state_dict.
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1), persistent=False)
        self.net = nn.ModuleDict()
        for index, convs in enumerate(_SLICES):
            self.net[f"slice{index + 1}"] = _vgg_slice(index, convs)
            self.add_module(f"lin{index}", _Head(convs[-1][1]))
        self.requires_grad_(False)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        if a.ndim != 4 or a.shape[1] != 3 or a.shape != b.shape:
            raise ValueError(
                f"LPIPS: frames must both have the shape (n, 3, h, w), got {tuple(a.shape)} and {tuple(b.shape)}."
            )
        if min(a.shape[-2:]) < MIN_SIZE:
            raise ValueError(f"LPIPS: height and width must be at least {MIN_SIZE}, got {tuple(a.shape[-2:])}.")
        # Not concatenated, so that an input without gradients costs no backward pass.
        x, y = ((frames - self.shift) / self.scale for frames in (a, b))
        distances = []
        for index, features in enumerate(self.net.values()):
            x, y = features(x), features(y)
            with torch.autocast(x.device.type, enabled=False):
                unit_a, unit_b = (_unit(z.to(torch.promote_types(z.dtype, torch.float32))) for z in (x, y))
                weighted = self.get_submodule(f"lin{index}")((unit_a - unit_b).square())  # (n, 1, h, w)
            distances.append(weighted.mean(dim=(1, 2, 3)))
        return torch.stack(distances).sum(0)


class _Head(nn.Module):
    """Weights the squared differences of features: (n, c, h, w) -> (n, 1, h, w)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        # Index 0 is a dropout in the published network, which a distance does not use.
        self.model = nn.Sequential(nn.Identity(), nn.Conv2d(width, 1, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


def _vgg_slice(index: int, convs: tuple[tuple[int, int], ...]) -> nn.Sequential:
    layers = nn.Sequential()
    width = 3
    if index:
        layers.add_module(str(convs[0][0] - 1), nn.MaxPool2d(2))
        width = _SLICES[index - 1][-1][1]
    for index_in_vgg, out in convs:
        layers.add_module(str(index_in_vgg), nn.Conv2d(width, out, 3, padding=1))
        layers.add_module(str(index_in_vgg + 1), nn.ReLU())
        width = out
    return layers


def _unit(x: Tensor) -> Tensor:
    """Features (n, c, h, w) divided by their norm over channels; zero where all are zero."""
    # Clamped far below any relevant norm: the gradient of the square root is infinite at 0.
    norm = x.square().sum(1, keepdim=True).clamp(min=_EPSILON**2).sqrt()
    return x / (norm + _EPSILON)
