"""Inference takes large tensors in parts and long clips in groups, and writes over its own tensors: nothing differs.

What keeps gradients takes the plain way, so that is what it is compared with.
"""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from toy_tokenizers import difference, random_latents, random_video, toy_tokenizer

from vidtok_plugin import VidTok
from vidtok_plugin.tokenizer.network import chunking, encoder_decoder
from vidtok_plugin.tokenizer.network.layers import SpatialConv, StreamLayer, TimeConv, TimePadding
from vidtok_plugin.tokenizer.reconstruction.memory import LiveBytes

NAMES = [
    "vidtok_fsq_causal_488_32768",
    "vidtok_kl_causal_488_4chn_v1_1",
    "vidtok_fsq_causal_888_32768_v1_1",
    "vidtok_kl_noncausal_41616_4chn",
]
EXACT = 1e-10


@pytest.fixture(params=NAMES)
def model(request: pytest.FixtureRequest) -> VidTok:
    return toy_tokenizer(request.param)


@pytest.fixture(params=[1, 2_000, 20_000])
def small_parts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Parts of so many bytes: single rows and frames, some of them, most of a clip."""
    monkeypatch.setattr(chunking, "CHUNK_BYTES", request.param)
    yield request.param


def run(model: VidTok, video: Tensor) -> tuple[Tensor, Tensor]:
    latents = model.encode(video).latents
    return latents, model.decode(latents)


@pytest.mark.usefixtures("small_parts")
def test_parts_make_the_whole(model: VidTok) -> None:
    side = 24 if model.spatial_factor == 8 else 16  # in latents an odd number
    video = random_video(4 * model.temporal_factor + 1, b=2, h=side, w=16)
    plain = run(model, video)
    with torch.no_grad():
        for part, whole in zip(run(model, video), plain, strict=True):
            assert difference(part, whole) < EXACT


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("name", NAMES[:3])
def test_streams_in_parts_make_the_whole(name: str) -> None:
    model = toy_tokenizer(name)
    video = random_video(1 + 5 * model.temporal_factor, h=16, w=16)
    latents, frames = run(model, video)
    with torch.no_grad():
        encoder, decoder = model.encoder_stream(), model.decoder_stream()
        coded = [encoder.push(part).latents for part in video.split(2 * model.temporal_factor + 1, dim=2)]
        assert difference(torch.cat(coded, dim=2), latents) < EXACT
        decoded = [decoder.push(part) for part in latents.split(2, dim=2)] + [decoder.flush()]
        assert difference(torch.cat(decoded, dim=2), frames) < EXACT


@pytest.mark.parametrize("name", NAMES[:3])
@pytest.mark.parametrize("pixels", [1, 3000])
def test_groups_make_the_whole(name: str, pixels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = toy_tokenizer(name)
    video = random_video(1 + 5 * model.temporal_factor, h=8, w=16)
    plain = run(model, video)
    monkeypatch.setitem(encoder_decoder.GROUP_PIXELS, "cpu", pixels)
    with torch.no_grad():
        for grouped, whole in zip(run(model, video), plain, strict=True):
            assert difference(grouped, whole) < EXACT


@torch.no_grad()
def test_a_clip_of_a_hundred_groups_takes_little_more_than_one_of_five(monkeypatch: pytest.MonkeyPatch) -> None:
    model = toy_tokenizer(NAMES[0], ch=16)
    monkeypatch.setitem(encoder_decoder.GROUP_PIXELS, "cpu", 4 * 8 * 16)
    peaks = []
    for groups in (5, 100):
        video = random_video(1 + 4 * groups, h=8, w=16)
        with LiveBytes([*model.parameters(), video]) as live:
            frames = model.decode(model.encode(video).latents)
        # The padded video; the frames in groups, and joined.
        peaks.append(live.peak - 2 * frames.nbytes)
    assert 0 < peaks[1] < 1.2 * peaks[0]


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("length", [1, 2, 3, 5, 8, 9])
def test_nothing_is_parted_where_gradients_are_kept(length: int) -> None:
    """An odd length was: `length // 2 * 2` fitted."""
    x = torch.rand(1, length, length, 4, 2)
    for dim in (1, 2):
        assert chunking.chunk_size(x, dim, multiple=2, overlap=4) == length


@torch.no_grad()
def test_parts_are_multiples_that_leave_room_for_what_overlaps(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.rand(1, 9, 1, 1, 25)  # 100 bytes a frame
    monkeypatch.setattr(chunking, "CHUNK_BYTES", 799)
    assert [chunking.chunk_size(x, 1, multiple=n) for n in (1, 2, 4, 8)] == [7, 6, 4, 8]
    assert [chunking.chunk_size(x, 1, multiple=2, overlap=n) for n in (1, 2, 9)] == [6, 4, 2]
    monkeypatch.setattr(chunking, "CHUNK_BYTES", 900)
    assert chunking.chunk_size(x, 1, multiple=2, overlap=4) == 9
    assert list(chunking.chunk_ranges(9, 4)) == [(0, 4), (4, 8), (8, 9)]
    assert list(chunking.chunk_ranges(9, 1, first=3))[:2] == [(0, 3), (3, 4)]
    assert list(chunking.chunk_ranges(2, 1, first=3)) == [(0, 2)]


@torch.no_grad()
@pytest.mark.parametrize("size", [1, chunking.CHUNK_BYTES])
def test_a_clips_precision_does_not_depend_on_its_size(
    model: VidTok, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunking, "CHUNK_BYTES", size)
    model = model.float()
    with torch.autocast("cpu", torch.bfloat16):
        assert model.decode(random_latents(model, 5).float()).dtype == torch.bfloat16


@torch.no_grad()
def test_what_is_upsampled_is_never_whole_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model = toy_tokenizer(NAMES[1], ch=32, ch_mult=(1, 2, 2, 2)).float()
    latents = torch.rand(1, model.latent_channels, 5, 8, 8)
    whole = 32 * 20 * 64 * 64 * 4  # bytes of what the first level makes, of twice as much
    monkeypatch.setattr(chunking, "CHUNK_BYTES", whole // 20)
    peaks = []
    for chains in (encoder_decoder.Decoder.chains, encoder_decoder.Network.chains):
        monkeypatch.setattr(encoder_decoder.Decoder, "chains", chains)
        with LiveBytes([*model.parameters(), latents]) as live:
            model.decode(latents)
        peaks.append(live.peak)
    assert peaks[0] < peaks[1] - 0.8 * whole


@torch.no_grad()
def test_a_clips_forward_hooks_are_called(model: VidTok) -> None:
    called = set()
    for name, layer in model.named_modules():
        if isinstance(layer, StreamLayer):
            layer.register_forward_hook(lambda *_, name=name: called.add(name))
    run(model, random_video(model.num_frames(2)))
    levels = [f"{kind}.0.block.0" for kind in ("encoder.down", "encoder.down_temporal", "decoder.up")]
    assert called >= {"encoder", "encoder.conv_in", "encoder.mid", "encoder.conv_out", "decoder.conv_out", *levels}


@torch.no_grad()
def test_what_the_caller_holds_is_never_written_to(model: VidTok, monkeypatch: pytest.MonkeyPatch) -> None:
    for size in (1, chunking.CHUNK_BYTES):
        monkeypatch.setattr(chunking, "CHUNK_BYTES", size)
        video = random_video(model.num_frames(2), h=16, w=16)
        before = video.clone()
        frames = video.permute(0, 2, 3, 4, 1)
        latents = model.encode(video).latents
        kept = latents.clone()
        model.decode(latents)
        if model.causal:  # whose other frames are put in front
            model.encoder(frames[:, : model.temporal_factor])
        assert torch.equal(video, before) and torch.equal(latents, kept)


@torch.no_grad()
def test_a_stream_in_parts_leaves_a_state_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunking, "CHUNK_BYTES", 2000)
    model = toy_tokenizer(NAMES[1])
    stream, latents = model.decoder_stream(), random_latents(model, 6)
    stream.push(latents[:, :, :3])
    state, kept = stream.state, copy.deepcopy(stream.state)
    stream.push(latents[:, :, 3:])
    assert all(torch.equal(a, b) for a, b in zip(state.values(True, True), kept.values(True, True), strict=True))


@torch.no_grad()
def test_changed_weights_count_at_once_however_they_changed() -> None:
    """Lightning's EMA swap writes through `.data`, which leaves a tensor's version as it was."""
    model, other = toy_tokenizer(NAMES[1]), toy_tokenizer(NAMES[1])
    for parameter in other.parameters():
        parameter.mul_(1.1)
    video = random_video(5, h=16, w=16)
    right, before = run(other, video), run(model, video)
    originals = copy.deepcopy(model.state_dict())

    def swap() -> None:
        for mine, its in zip(model.parameters(), other.parameters(), strict=True):
            mine.data.copy_(its.data)

    def rebind() -> None:
        for mine, its in zip(model.parameters(), other.parameters(), strict=True):
            mine.data = its.data.clone()

    def step() -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        for mine, its in zip(model.parameters(), other.parameters(), strict=True):
            mine.grad = mine.detach() - its.detach()
        optimizer.step()

    for change in (lambda: model.load_state_dict(other.state_dict()), swap, rebind, step):
        change()
        for got, wanted in zip(run(model, video), right, strict=True):
            assert difference(got, wanted) < EXACT
        model.load_state_dict(originals)
        for got, wanted in zip(run(model, video), before, strict=True):
            assert difference(got, wanted) < EXACT
    assert run(model.float(), video.float())[0].dtype == torch.float32


def test_a_single_picture_stays_channels_last() -> None:
    """einops gave a single picture a stride by which PyTorch didn't know channels-last memory: it copied each one to
    another layout and back, at a third of the speed."""
    picture = torch.randn(1, 1, 8, 8, 4)
    assert SpatialConv(4, 4)(picture).is_contiguous()
    for spatial in (True, False):
        conv = TimeConv(4, 4, padding=TimePadding.ZEROS, spatial=spatial)
        assert conv(torch.randn(1, 3, 8, 8, 4)).is_contiguous()
        assert conv(picture).is_contiguous()
