"""Resampling layers equal mixes of PyTorch's interpolation, pooling and convolution, with gradients, on both paths."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vidtok_plugin.tokenizer.architecture import TimePadding
from vidtok_plugin.tokenizer.network.fast.steps import whole
from vidtok_plugin.tokenizer.network.layers import StreamLayer, bare
from vidtok_plugin.tokenizer.network.resampling import SpatialUpsample, TemporalDownsample, TemporalUpsample

PADDINGS = list(TimePadding)


def in_front(x: Tensor, frames: int, padding: TimePadding) -> Tensor:
    front = x[:, :1].expand(-1, frames, -1, -1, -1)
    return torch.cat([front if padding is TimePadding.FIRST_FRAME else torch.zeros_like(front), x], dim=1)


def conv3d(x: Tensor, weight: Tensor, bias: Tensor, stride: int = 1) -> Tensor:
    y = F.conv3d(x.permute(0, 4, 1, 2, 3), weight, bias, (stride, 1, 1), (0, 1, 1))
    return y.permute(0, 2, 3, 4, 1)


def padded(x: Tensor, padding: TimePadding, stride: int) -> Tensor:
    if padding.causal:
        return in_front(x, 3 - stride, padding)
    return F.pad(x, (0, 0, 0, 0, 0, 0, 2 - stride, 1))


def temporal_downsample(layer: TemporalDownsample, x: Tensor, padding: TimePadding) -> Tensor:
    conv, a = bare(layer.conv), torch.sigmoid(layer.mix_factor)
    x = padded(x, padding, 2)
    pooled = F.avg_pool3d(x.permute(0, 4, 1, 2, 3), (3, 1, 1), (2, 1, 1)).permute(0, 2, 3, 4, 1)
    return a * pooled + (1 - a) * conv3d(x, conv.weight, conv.bias, stride=2)


def interpolated(x: Tensor, mode: str) -> Tensor:
    """To twice the frames."""
    b, t, h, w, c = x.shape
    series = x.permute(0, 2, 3, 4, 1).reshape(1, -1, t)
    return F.interpolate(series, scale_factor=2, mode=mode).reshape(b, h, w, c, 2 * t).permute(0, 4, 1, 2, 3)


def temporal_upsample(layer: TemporalUpsample, x: Tensor, padding: TimePadding) -> Tensor:
    conv, a = bare(layer.conv), torch.sigmoid(layer.mix_factor)
    if padding is TimePadding.FIRST_FRAME:
        halves = [x[:, : layer.first_frames], x[:, layer.first_frames :]]
        u = torch.cat([interpolated(half, "linear") for half in halves if half.shape[1]], dim=1)
    else:
        u = interpolated(x, "nearest")
    return a * u + (1 - a) * conv3d(padded(u, padding, 1), conv.weight, conv.bias)


def spatial_upsample(layer: SpatialUpsample, x: Tensor) -> Tensor:
    frames = x.flatten(0, 1).permute(0, 3, 1, 2)
    y = F.conv2d(F.interpolate(frames, scale_factor=2, mode="nearest"), layer.conv.weight, layer.conv.bias, padding=1)
    return y.permute(0, 2, 3, 1).unflatten(0, x.shape[:2])


def check(layer: StreamLayer, x: Tensor, wanted: Tensor) -> None:
    weight, inputs = torch.randn_like(wanted), [x, *layer.parameters()]
    expected = torch.autograd.grad((wanted * weight).sum(), inputs)
    for got in (layer(x), whole(layer, x)):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)
        for mine, its in zip(torch.autograd.grad((got * weight).sum(), inputs), expected, strict=True):
            torch.testing.assert_close(mine, its, rtol=0, atol=1e-11)


def random_input(t: int) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(2, t, 5, 4, 6, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("padding", PADDINGS)
def test_temporal_downsampling_is_the_mix_of_an_average_and_a_convolution(padding: TimePadding) -> None:
    layer, x = TemporalDownsample(6, padding=padding).double(), random_input(6)
    check(layer, x, temporal_downsample(layer, x, padding))


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize(("t", "first_frames"), [(1, 1), (2, 1), (5, 1), (2, 2), (3, 2), (6, 2)])
def test_temporal_upsampling_is_the_mix_of_an_interpolation_and_its_convolution(
    padding: TimePadding, t: int, first_frames: int
) -> None:
    layer, x = TemporalUpsample(6, padding=padding, first_frames=first_frames).double(), random_input(t)
    check(layer, x, temporal_upsample(layer, x, padding))


def test_spatial_upsampling_is_the_convolution_of_repeated_pixels() -> None:
    layer, x = SpatialUpsample(6).double(), random_input(3)
    check(layer, x, spatial_upsample(layer, x))
