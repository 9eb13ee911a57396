"""Chunked inference equals the definition exactly, and bounds memory."""

import copy

import pytest
import torch
from toy_tokenizers import difference, random_latents, random_video, toy_tokenizer

from vidtok_plugin import VidTok, reference_path
from vidtok_plugin.tokenizer.network.fast import chunking, dispatch
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
def small_chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Chunk sizes in bytes: single rows and frames, some of them, most of a clip."""
    monkeypatch.setattr(chunking, "CHUNK_BYTES", request.param)
    return request.param


@pytest.mark.usefixtures("small_chunks")
@torch.no_grad()
def test_chunks_make_the_whole(model: VidTok) -> None:
    side = 24 if model.spatial_factor == 8 else 16  # in latents an odd number
    video = random_video(2 * model.temporal_factor + 1, b=2, h=side, w=model.spatial_factor)
    latents = model.encode(video).latents
    frames = model.decode(latents)
    with reference_path():
        assert difference(model.encode(video).latents, latents) < EXACT
        assert difference(model.decode(latents), frames) < EXACT


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("name", NAMES[:3])
@torch.no_grad()
def test_streams_in_chunks_make_the_whole(name: str) -> None:
    model = toy_tokenizer(name)
    video = random_video(1 + 3 * model.temporal_factor, h=16, w=16)
    with reference_path():
        latents = model.encode(video).latents
        frames = model.decode(latents)
    encoder, decoder = model.encoder_stream(), model.decoder_stream()
    coded = [encoder.push(chunk).latents for chunk in video.split(2 * model.temporal_factor + 1, dim=2)]
    assert difference(torch.cat(coded, dim=2), latents) < EXACT
    decoded = [decoder.push(chunk) for chunk in latents.split(2, dim=2)] + [decoder.flush()]
    assert difference(torch.cat(decoded, dim=2), frames) < EXACT


@pytest.mark.parametrize("name", NAMES[:3])
@pytest.mark.parametrize("pixels", [1, 3000])
@torch.no_grad()
def test_groups_make_the_whole(name: str, pixels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = toy_tokenizer(name)
    video = random_video(1 + 5 * model.temporal_factor, h=8, w=16)
    monkeypatch.setitem(dispatch.GROUP_PIXELS, "cpu", pixels)
    latents = model.encode(video).latents
    frames = model.decode(latents)
    with reference_path():
        assert difference(model.encode(video).latents, latents) < EXACT
        assert difference(model.decode(latents), frames) < EXACT


@torch.no_grad()
def test_a_clip_of_forty_groups_takes_little_more_memory_than_one_of_five(monkeypatch: pytest.MonkeyPatch) -> None:
    model = toy_tokenizer(NAMES[0], ch=16)
    monkeypatch.setitem(dispatch.GROUP_PIXELS, "cpu", 4 * 8 * 8)
    peaks = []
    for groups in (5, 40):
        video = random_video(1 + 4 * groups, h=8, w=8)
        with LiveBytes([*model.parameters(), video]) as live:
            frames = model.decode(model.encode(video).latents)
        # The padded video; the frames in groups, and joined.
        peaks.append(live.peak - 2 * frames.nbytes)
    assert 0 < peaks[1] < 1.1 * peaks[0]


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("length", [1, 2, 3, 5, 8, 9])
def test_nothing_is_chunked_where_gradients_are_kept(length: int) -> None:
    """An odd length was: `length // 2 * 2` fitted."""
    x = torch.rand(1, length, length, 4, 2)
    for dim in (1, 2):
        assert chunking.chunk_size(x, dim, multiple=2, overlap=4) == length


@torch.no_grad()
@pytest.mark.parametrize("overlap", [0, 2, 9])
@pytest.mark.parametrize("multiple", [1, 2, 4])
def test_a_chunk_is_a_multiple_and_fits_with_its_overlap(
    multiple: int, overlap: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.rand(1, 9, 1, 1, 25)  # 100 bytes a frame
    monkeypatch.setattr(chunking, "CHUNK_BYTES", 799)
    size = chunking.chunk_size(x, 1, multiple=multiple, overlap=overlap)
    assert size % multiple == 0 and (size + overlap <= 7 or size == multiple)
    monkeypatch.setattr(chunking, "CHUNK_BYTES", x.nbytes)
    assert chunking.chunk_size(x, 1, multiple=multiple, overlap=overlap) == 9


@pytest.mark.parametrize(("length", "size", "first"), [(9, 4, 1), (9, 1, 3), (2, 1, 3), (8, 4, 4)])
def test_chunk_ranges_cover_the_length_in_order(length: int, size: int, first: int) -> None:
    ranges = list(chunking.chunk_ranges(length, size, first=first))
    assert [place for start, end in ranges for place in range(start, end)] == list(range(length))
    assert ranges[0][1] >= min(first, length) and all(end - start <= size for start, end in ranges[1:])


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
def test_upsampled_tensors_are_never_complete_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model = toy_tokenizer(NAMES[1], ch=32, ch_mult=(1, 2, 2, 2)).float()
    latents = torch.rand(1, model.latent_channels, 5, 8, 8)
    upsampled = 64 * 20 * 64 * 64 * 4  # bytes of the input of the block behind the last upsampling
    monkeypatch.setattr(chunking, "CHUNK_BYTES", upsampled // 40)
    with LiveBytes([*model.parameters(), latents]) as live:
        model.decode(latents)
    assert live.peak < 1.7 * upsampled  # 2.0 if the two layers took their chunks one after the other


@torch.no_grad()
def test_a_stream_in_chunks_leaves_a_state_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunking, "CHUNK_BYTES", 2000)
    model = toy_tokenizer(NAMES[1])
    stream, latents = model.decoder_stream(), random_latents(model, 6)
    stream.push(latents[:, :, :3])
    state, kept = stream.state, copy.deepcopy(stream.state)
    stream.push(latents[:, :, 3:])
    assert all(torch.equal(a, b) for a, b in zip(state.values(True, True), kept.values(True, True), strict=True))
