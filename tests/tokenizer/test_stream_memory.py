"""A stream's state is minimal, and doesn't grow with the stream."""

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from places import TESTS
from tensordict import TensorDict
from toy_tokenizers import random_video, toy_tokenizer

from vidtok_plugin import VidTok, presets
from vidtok_plugin.tokenizer.network.fast import dispatch
from vidtok_plugin.tokenizer.network.fast import network as fast_network
from vidtok_plugin.tokenizer.network.layers import TimeConv
from vidtok_plugin.tokenizer.network.resampling import TemporalDownsample, TemporalUpsample
from vidtok_plugin.tokenizer.reconstruction.memory import LiveBytes

CAUSAL = [name for name, preset in presets().items() if preset.architecture.causal]


def elements(state: TensorDict | Any) -> int:
    return sum(tensor.numel() for tensor in state.values(include_nested=True, leaves_only=True))


def min_state(network: torch.nn.Module, sizes: dict[str, tuple[int, int]]) -> int:
    """Elements that the fast path must keep: the earlier frames that each kernel still sees, layer by layer.

    sizes: height and width of each layer's input, by the layer's name.
    """
    total = 0
    for name, layer in network.named_modules():
        frames = 0
        if isinstance(layer, TimeConv) and name in sizes:
            frames = 2
        elif isinstance(layer, TemporalDownsample):
            frames = 1
        elif isinstance(layer, TemporalUpsample):  # two sums and, for linear interpolation, three products of a frame
            frames = 5 if layer.padding == "first_frame" else 2
        if frames:
            conv = layer if isinstance(layer, TimeConv) else layer.conv.conv
            total += frames * conv.weight.shape[1] * math.prod(sizes[name])
    return total


def input_sizes(network: torch.nn.Module, x: torch.Tensor) -> dict[str, tuple[int, int]]:
    """Height and width of each temporal layer's input, seen in a run."""
    sizes: dict[str, tuple[int, int]] = {}

    def note(name: str, inputs: tuple[torch.Tensor]) -> None:
        sizes[name] = (inputs[0].shape[2], inputs[0].shape[3])

    kinds = (TimeConv, TemporalDownsample, TemporalUpsample)
    hooks = [
        layer.register_forward_pre_hook(lambda _, inputs, name=name: note(name, inputs))
        for name, layer in network.named_modules()
        # A resampling layer's state is counted as a whole, not as that of its convolution.
        if isinstance(layer, kinds) and not name.endswith(("sample.conv", "sample.conv.conv"))
    ]
    network(x)
    for hook in hooks:
        hook.remove()
    return sizes


@pytest.mark.parametrize("name", CAUSAL)
@torch.no_grad()
def test_a_state_is_as_small_as_the_kernels_allow(name: str) -> None:
    model = toy_tokenizer(name)
    f, s = model.temporal_factor, model.spatial_factor
    encoder, decoder = model.encoder_stream(), model.decoder_stream()
    encoder.push(random_video(1 + 2 * f, h=s, w=2 * s))
    sizes = input_sizes(model.encoder, torch.zeros(1, f, s, 2 * s, 3, dtype=torch.float64))
    assert elements(encoder.state) == min_state(model.encoder, sizes)
    decoder.push(torch.zeros(1, model.latent_channels, 3, 1, 2))
    sizes = input_sizes(model.decoder, torch.zeros(1, 1, 1, 2, model.latent_channels, dtype=torch.float64))
    held_back = decoder.state["ready"].numel()
    flags = 1 if model.architecture.version == "1.1" else 0
    assert elements(decoder.state) == min_state(model.decoder, sizes) + held_back + flags
    assert held_back <= (f - 1) * 3 * s * 2 * s  # final frames of a group that is not


@torch.no_grad()
def run(model: VidTok, frames: int, size: int) -> None:
    encoder, decoder = model.encoder_stream(), model.decoder_stream()
    for _ in range(0, frames, 20):
        latents = encoder.push(random_video(20, h=size, w=size)).latents
        if latents.shape[2]:
            decoder.push(latents)


NAMES = ["vidtok_fsq_causal_488_32768", "vidtok_kl_causal_488_4chn_v1_1"]


@pytest.mark.parametrize("name", NAMES)
def test_two_hundred_frames_take_the_memory_of_forty(name: str) -> None:
    model, peaks = toy_tokenizer(name), []
    for frames in (40, 200):
        with LiveBytes(model.parameters()) as live:
            run(model, frames, size=8)
        peaks.append(live.peak)
    assert peaks[0] > 10_000 and peaks[1] <= 1.05 * peaks[0]


@torch.no_grad()
def test_a_long_push_passes_through_the_network_group_by_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pushing 64 frames of 256 x 256 took tensors of 2 GB at the published width."""
    model, video = toy_tokenizer(NAMES[0]), random_video(21, h=8, w=8)
    whole = model.encoder_stream().push(video).latents
    groups, step = [], fast_network._step_group

    def count(network: Any, x: torch.Tensor, state: Any, last: bool) -> Any:
        groups.append(x.shape[1])
        return step(network, x, state, last)

    monkeypatch.setattr(fast_network, "_step_group", count)
    monkeypatch.setitem(dispatch.GROUP_PIXELS, "cpu", 8 * 8 * 8)
    assert torch.equal(model.encoder_stream().push(video).latents, whole)
    assert groups == [8, 8, 8]  # with the padding before the first frame


SCRIPT = """
import sys
sys.path[:0] = {folders!r}
import test_stream_memory as here
model = here.toy_tokenizer({name!r}, ch=16)

def peak_kilobytes():
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))

here.run(model, 40, size=64)
open("/proc/self/clear_refs", "w").write("5")  # resets the peak
here.run(model, 100, size=64)
short = peak_kilobytes()
here.run(model, 400, size=64)
print(short, peak_kilobytes())
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("name", NAMES)
def test_a_process_that_streams_four_hundred_frames_stays_as_small(name: str) -> None:
    script = SCRIPT.format(folders=[str(TESTS), str(Path(__file__).parent)], name=name)
    # A fixed threshold: glibc's own grows with freed blocks and then keeps more memory, up to 12%.
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=env)
    short, long = map(int, done.stdout.split())
    assert long < 1.05 * short
