"""One contract for all streams: for any split they equal the whole clip, and they own their state."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from torch import Tensor
from toy_tokenizers import difference, random_latents, random_video, toy_tokenizer

from vidtok_plugin import VidTok
from vidtok_plugin.tokenizer.streams import EncoderStream

EXACT = 1e-11  # float64 rounding
GRADIENTS_EXACT = 1e-9  # float64 rounding, amplified by norms over four channels
TOYS = {
    "fsq v1.0 f=4": toy_tokenizer("vidtok_fsq_causal_488_32768"),
    "kl v1.1 f=4": toy_tokenizer("vidtok_kl_causal_488_4chn_v1_1"),
    "fsq v1.1 f=8": toy_tokenizer("vidtok_fsq_causal_888_32768_v1_1"),
    "kl v1.1 f=2": toy_tokenizer("vidtok_kl_causal_288_8chn_v1_1"),
    "vidtok_tiny": toy_tokenizer("vidtok_tiny"),
}


@pytest.fixture(params=TOYS)
def model(request: pytest.FixtureRequest) -> VidTok:
    return TOYS[request.param]


def waits(model: VidTok) -> bool:
    return model.architecture.version == "1.1"


def encode_by_pushes(stream: EncoderStream, chunks: Sequence[Tensor]) -> Tensor:
    """The latents; checks that the indices belong to them."""
    encoded = [stream.push(chunk) for chunk in chunks] + [stream.flush()]
    latents = torch.cat([chunk.latents for chunk in encoded], dim=2)
    if stream.model.codebook_size is None:
        assert all(chunk.indices is None for chunk in encoded)
    else:
        indices = torch.cat([chunk.indices for chunk in encoded], dim=1)
        assert indices.dtype == torch.int64
        assert torch.equal(stream.model.indices_to_latents(indices).double(), latents)
    return latents


@st.composite
def splits(draw: st.DrawFn, longest: int) -> list[int]:
    """Sizes of the pushes of a clip of 1 to `longest` frames."""
    length = draw(st.integers(1, longest))
    cuts = sorted(draw(st.sets(st.integers(1, length - 1)))) if length > 1 else []
    return [end - start for start, end in zip([0, *cuts], [*cuts, length], strict=True)]


# Equality with the whole clip


@pytest.mark.parametrize("toy", TOYS)
@settings(max_examples=6)
@given(split=splits(longest=19))
@torch.no_grad()
def test_streamed_latents_equal_whole_clip(toy: str, split: list[int]) -> None:
    model, video = TOYS[toy], random_video(sum(split))
    whole = model.encode(video)
    stream = model.encoder_stream()
    assert difference(encode_by_pushes(stream, video.split(split, dim=2)), whole.latents) < EXACT


@pytest.mark.parametrize("toy", TOYS)
@settings(max_examples=6)
@given(split=splits(longest=7))
@torch.no_grad()
def test_streamed_frames_equal_whole_clip(toy: str, split: list[int]) -> None:
    model = TOYS[toy]
    latents = random_latents(model, sum(split))
    stream = model.decoder_stream()
    frames = [stream.push(chunk) for chunk in latents.split(split, dim=2)] + [stream.flush()]
    assert difference(torch.cat(frames, dim=2), model.decode(latents)) < EXACT


def test_gradients_step_by_step_equal_those_of_the_whole(model: VidTok) -> None:
    def gradients(streamed: bool) -> list[Tensor]:
        video = random_video(1 + 2 * model.temporal_factor).requires_grad_()
        encoder, decoder = model.encoder_stream(), model.decoder_stream()
        if streamed:
            latents = torch.cat([encoder.push(frame).latents for frame in video.split(1, dim=2)], dim=2)
            chunks = [decoder.push(chunk) for chunk in latents.split(1, dim=2)] + [decoder.flush()]
            frames = torch.cat(chunks, dim=2)
        else:
            frames = model.decode(model.encode(video).latents)
        weight = random_video(frames.shape[2], seed=1)
        return list(torch.autograd.grad((frames * weight).sum(), [video, *model.parameters()]))

    pairs = list(zip(gradients(streamed=True), gradients(streamed=False), strict=True))
    largest = max(whole.abs().max() for _, whole in pairs)
    assert all((streamed - whole).abs().max() < GRADIENTS_EXACT * largest for streamed, whole in pairs)


# Timing of outputs


@torch.no_grad()
def test_every_f_frames_complete_a_latent(model: VidTok) -> None:
    f, stream, latents = model.temporal_factor, model.encoder_stream(), 0
    for frames in range(1, 2 * f + 3):
        encoded = stream.push(random_video(1))
        latents += encoded.latents.shape[2]
        assert latents == 1 + (frames - 1) // f
        assert encoded.latents.shape[3:] == (1, 2)
        assert encoded.indices is None or encoded.indices.shape == encoded.latents[:, 0].shape


@torch.no_grad()
def test_decoding_with_lookahead_emits_whole_groups(model: VidTok) -> None:
    f, stream, frames = model.temporal_factor, model.decoder_stream(), 0
    for k in range(1, 6):
        frames += stream.push(random_latents(model, 1)).shape[2]
        assert frames == (1 + max(0, k - 2) * f if waits(model) else 1 + (k - 1) * f)
    assert frames + stream.flush().shape[2] == model.num_frames(5)


@torch.no_grad()
def test_decoding_without_lookahead_emits_each_group_at_once(model: VidTok) -> None:
    f, stream, latents = model.temporal_factor, model.decoder_stream(lookahead=False), random_latents(model, 5)
    chunks = [stream.push(chunk) for chunk in latents.split([1, 1, 2, 1], dim=2)]
    assert [chunk.shape[2] for chunk in chunks] == [1, f, 2 * f, f]
    assert stream.flush().shape[2] == 0
    frames, whole = torch.cat(chunks, dim=2), model.decode(latents)
    if not waits(model):
        assert difference(frames, whole) < EXACT
        return
    # Each push equals a whole clip that ends there; only the group at a seam differs from the longer clip.
    for k in (1, 2, 4, 5):
        end, start = model.num_frames(k), model.num_frames({1: 0, 2: 1, 4: 2, 5: 4}[k])
        assert difference(frames[:, :, start:end], model.decode(latents[:, :, :k])[:, :, start:end]) < EXACT
    inside = slice(model.num_frames(2), model.num_frames(3))  # whose next latent came in the same push
    assert difference(frames[:, :, inside], whole[:, :, inside]) < EXACT
    assert difference(frames, whole) > 1e-6  # else lookahead would have no effect


@torch.no_grad()
def test_an_empty_push_of_latents_changes_nothing(model: VidTok) -> None:
    stream, latents = model.decoder_stream(), random_latents(model, 3)
    sizes = [0, 1, 0, 2, 0]
    frames = [stream.push(chunk) for chunk in latents.split(sizes, dim=2)]
    assert frames[0].shape[2] == frames[2].shape[2] == frames[4].shape[2] == 0
    whole = model.decode(latents)
    assert difference(torch.cat([*frames, stream.flush()], dim=2), whole) < EXACT


@torch.no_grad()
def test_flushing_a_partial_group_equals_encode(model: VidTok) -> None:
    for extra in range(1, model.temporal_factor):
        video, stream = random_video(1 + extra), model.encoder_stream()
        pushed = stream.push(video).latents
        assert pushed.shape[2] == 1
        latents = torch.cat([pushed, stream.flush().latents], dim=2)
        assert difference(latents, model.encode(video).latents) < EXACT


@torch.no_grad()
def test_future_frames_do_not_change_past_latents(model: VidTok) -> None:
    f = model.temporal_factor
    video, other = random_video(1 + 2 * f), random_video(1 + 2 * f, seed=1)
    other[:, :, : 1 + f] = video[:, :, : 1 + f]
    a, b = model.encode(video).latents, model.encode(other).latents
    assert difference(a[:, :, :2], b[:, :, :2]) < EXACT
    assert not torch.equal(a[:, :, 2:], b[:, :, 2:])


@torch.no_grad()
def test_later_latents_change_at_most_the_last_group_of_frames(model: VidTok) -> None:
    latents, other = random_latents(model, 4), random_latents(model, 4, seed=1)
    other[:, :, :3] = latents[:, :, :3]
    final = model.num_frames(2 if waits(model) else 3)  # v1.1 looks one latent ahead
    a, b = model.decode(latents), model.decode(other)
    assert difference(a[:, :, :final], b[:, :, :final]) < EXACT
    assert not torch.equal(a[:, :, : model.num_frames(4)], b)


# Ownership of the state


@torch.no_grad()
def test_interleaved_streams_stay_independent(model: VidTok) -> None:
    videos = [random_video(7, seed=seed) for seed in (1, 2)]
    streams = [model.encoder_stream() for _ in videos]
    chunks: list[list[Tensor]] = [[], []]
    for i in range(7):
        for j, stream in enumerate(streams):
            chunks[j].append(stream.push(videos[j][:, :, i : i + 1]).latents)
    for j, stream in enumerate(streams):
        latents = torch.cat([*chunks[j], stream.flush().latents], dim=2)
        assert difference(latents, model.encode(videos[j]).latents) < EXACT
    z = [random_latents(model, 4, seed=seed) for seed in (1, 2)]
    decoders = [model.decoder_stream() for _ in z]
    frames: list[list[Tensor]] = [[], []]
    for i in range(4):
        for j, decoder in enumerate(decoders):
            frames[j].append(decoder.push(z[j][:, :, i : i + 1]))
    for j, decoder in enumerate(decoders):
        assert difference(torch.cat([*frames[j], decoder.flush()], dim=2), model.decode(z[j])) < EXACT


@torch.no_grad()
def test_forks_continue_independently(model: VidTok) -> None:
    past, futures = random_video(6), [random_video(5, seed=seed) for seed in (1, 2)]
    stream = model.encoder_stream()
    done = stream.push(past).latents
    twin = stream.fork()
    for branch, future in ((stream, futures[0]), (twin, futures[1])):
        latents = torch.cat([done, encode_by_pushes(branch, future.split(2, dim=2))], dim=2)
        assert difference(latents, model.encode(torch.cat([past, future], dim=2)).latents) < EXACT
    z, tails = random_latents(model, 3), [random_latents(model, 2, seed=seed) for seed in (1, 2)]
    decoder = model.decoder_stream()
    first = decoder.push(z)
    futures_of_one = decoder.fork(2)  # rows of their own
    both = torch.cat([futures_of_one.push(torch.cat(tails)), futures_of_one.flush()], dim=2)
    assert difference(torch.cat([first, both[1:]], dim=2), model.decode(torch.cat([z, tails[1]], dim=2))) < EXACT
    for branch, tail in ((decoder.fork(), tails[0]), (decoder, tails[1])):
        frames = torch.cat([first, branch.push(tail), branch.flush()], dim=2)
        assert difference(frames, model.decode(torch.cat([z, tail], dim=2))) < EXACT


@torch.no_grad()
def test_rows_continue_those_of_another_stream(model: VidTok) -> None:
    """The other rows, and a fork, go on as they were."""
    f = model.temporal_factor
    videos, late, tails = random_video(1 + 2 * f, b=2), random_video(1 + f, seed=1), random_video(8, b=2, seed=2)
    encoder, other = model.encoder_stream(), model.encoder_stream()
    encoder.push(videos), other.push(late)
    fork = encoder.fork()
    encoder.replace_rows(torch.tensor([1]), other)
    latents = encoder.push(tails).latents
    unchanged = model.encode(torch.cat([videos, tails], dim=2)).latents
    count = latents.shape[2]
    assert difference(latents[:1], unchanged[:1, :, -count:]) < EXACT
    assert difference(latents[1:], model.encode(torch.cat([late, tails[1:]], dim=2)).latents[:, :, -count:]) < EXACT
    assert difference(fork.push(tails).latents, unchanged[:, :, -count:]) < EXACT

    z, new, last = random_latents(model, 3, b=2), random_latents(model, 2, seed=1), random_latents(model, 2, seed=2)
    for lookahead in (True, False):
        decoder, single = (model.decoder_stream(lookahead=lookahead) for _ in range(2))
        decoder.push(z), single.push(new)
        alone = [decoder.fork().push(last.expand(2, -1, -1, -1, -1))[:1], single.fork().push(last)]
        decoder.replace_rows(torch.tensor([1]), single)
        assert difference(decoder.push(last.expand(2, -1, -1, -1, -1)), torch.cat(alone)) < EXACT


@torch.no_grad()
def test_rows_of_streams_that_do_not_fit_are_refused() -> None:
    model = TOYS["kl v1.1 f=4"]
    streams = [model.decoder_stream(lookahead=False) for _ in range(2)]
    with pytest.raises(ValueError, match="DecoderStream: rows must come from a stream of the same model"):
        streams[0].replace_rows(torch.tensor([0]), streams[1])  # no state yet
    streams[0].push(random_latents(model, 3)), streams[1].push(random_latents(model, 1))
    with pytest.raises(ValueError, match="at the same point within a group"):  # its first latent has no past
        streams[0].replace_rows(torch.tensor([0]), streams[1])
    streams[1].push(random_latents(model, 1))
    with pytest.raises(ValueError, match="got 1 rows for 2"):
        streams[0].replace_rows(torch.tensor([0, 0]), streams[1])
    waiting = model.decoder_stream()
    waiting.push(random_latents(model, 3))
    with pytest.raises(ValueError, match="lookahead must be False for all rows, got True"):
        streams[0].replace_rows(torch.tensor([0]), waiting)


@torch.no_grad()
def test_a_state_is_saved_and_restored(model: VidTok, tmp_path: Path) -> None:
    def saved(state: TensorDict) -> TensorDict:
        """Through a file that holds nothing but tensors."""
        torch.save(state.to_dict(), tmp_path / "state.pt")
        loaded = torch.load(tmp_path / "state.pt", weights_only=True)
        return TensorDict(loaded, batch_size=state.batch_size)

    video, stream = random_video(11, b=2), model.encoder_stream()
    first = stream.push(video[:, :, :6]).latents
    restored = model.encoder_stream(state=saved(stream.state))
    again = torch.cat([first, encode_by_pushes(restored, [video[:, :, 6:]])], dim=2)
    assert difference(again, model.encode(video).latents) < EXACT
    latents, decoder = random_latents(model, 5, b=2), model.decoder_stream()
    frames = decoder.push(latents[:, :, :3])
    restored_decoder = model.decoder_stream(state=saved(decoder.state))
    rest = torch.cat([restored_decoder.push(latents[:, :, 3:]), restored_decoder.flush()], dim=2)
    assert difference(torch.cat([frames, rest], dim=2), model.decode(latents)) < EXACT


@torch.no_grad()
def test_a_state_is_a_tensordict_of_the_batch(model: VidTok) -> None:
    stream = model.encoder_stream()
    assert stream.state.is_empty()
    stream.push(random_video(6, b=3))
    state = stream.state
    assert isinstance(state, TensorDict) and state.batch_size == (3,)
    # So clips can be taken out of a batch in the middle of their streams.
    video = random_video(9, b=3)
    stream = model.encoder_stream()
    first = stream.push(video[:, :, :6]).latents
    alone = model.encoder_stream(state=stream.state[1:2])
    latents = torch.cat([first[1:2], encode_by_pushes(alone, [video[1:2, :, 6:]])], dim=2)
    assert difference(latents, model.encode(video[1:2]).latents) < EXACT


@torch.no_grad()
def test_the_state_does_not_grow_with_the_stream(model: VidTok) -> None:
    def owned_bytes(state: TensorDict) -> int:
        """Bytes of the storages behind the state's tensors."""
        tensors = state.values(include_nested=True, leaves_only=True)
        return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())

    f, encoder, decoder = model.temporal_factor, model.encoder_stream(), model.decoder_stream()
    sizes = []
    for pushes in range(4):
        encoder.push(random_video(f if pushes else 1))
        decoder.push(random_latents(model, 1))
        sizes.append((owned_bytes(encoder.state), owned_bytes(decoder.state)))
    assert sizes[-1] == sizes[-2]
    long_encoder, long_decoder = model.encoder_stream(), model.decoder_stream()
    long_encoder.push(random_video(1 + 3 * f))
    long_decoder.push(random_latents(model, 4))
    assert (owned_bytes(long_encoder.state), owned_bytes(long_decoder.state)) == sizes[-1]


@torch.no_grad()
def test_the_model_holds_no_state(model: VidTok) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    attributes = {name: sorted(vars(module)) for name, module in model.named_modules()}
    model.encoder_stream().push(random_video(6))
    model.decoder_stream().push(random_latents(model, 2))
    assert attributes == {name: sorted(vars(module)) for name, module in model.named_modules()}
    after = model.state_dict()
    assert list(before) == list(after) and all(torch.equal(before[name], after[name]) for name in before)


@torch.no_grad()
def test_clips_of_a_batch_stream_independently(model: VidTok) -> None:
    video, latents = random_video(6, b=2), random_latents(model, 3, b=2)
    streamed = encode_by_pushes(model.encoder_stream(), video.split([2, 4], dim=2))
    decoder = model.decoder_stream()
    frames = torch.cat([decoder.push(latents), decoder.flush()], dim=2)
    for i in range(2):
        assert difference(streamed[i : i + 1], model.encode(video[i : i + 1]).latents) < EXACT
        assert difference(frames[i : i + 1], model.decode(latents[i : i + 1])) < EXACT


@torch.no_grad()
def test_a_stream_moves_with_its_state(model: VidTok) -> None:
    video, stream = random_video(6), model.encoder_stream()
    assert stream.to("cpu") is stream  # nothing to move yet
    first = stream.push(video[:, :, :4]).latents
    latents = torch.cat([first, encode_by_pushes(stream.to("cpu"), [video[:, :, 4:]])], dim=2)
    assert difference(latents, model.encode(video).latents) < EXACT


@pytest.mark.gpu
@torch.no_grad()
def test_a_stream_continues_on_another_device(model: VidTok) -> None:
    video, stream = random_video(9), model.encoder_stream()
    first = stream.push(video[:, :, :6]).latents
    moved = VidTok(model.architecture).eval().double()
    moved.load_state_dict(model.state_dict())
    moved.to("cuda")
    restored = moved.encoder_stream(state=stream.to("cuda").state)
    rest = encode_by_pushes(restored, [video[:, :, 6:].to("cuda")]).cpu()
    assert difference(torch.cat([first, rest], dim=2), model.encode(video).latents) < 1e-9


# Errors


@torch.no_grad()
def test_pushing_or_flushing_after_the_end_is_refused(model: VidTok) -> None:
    encoder, decoder = model.encoder_stream(), model.decoder_stream()
    encoder.push(random_video(2))
    encoder.flush()
    decoder.push(random_latents(model, 2))
    decoder.flush()
    with pytest.raises(ValueError, match=r"EncoderStream: .*flushed; start a new one"):
        encoder.push(random_video(1))
    with pytest.raises(ValueError, match=r"DecoderStream: .*flushed; start a new one"):
        decoder.push(random_latents(model, 1))
    for stream in (encoder, decoder, model.encoder_stream(), model.decoder_stream()):
        with pytest.raises(ValueError, match=type(stream).__name__):
            stream.flush()


@torch.no_grad()
def test_a_flushed_stream_has_no_state_to_continue_from(model: VidTok) -> None:
    """Its last group was completed with copies: frames pushed after it would have a wrong past."""
    encoder, decoder = model.encoder_stream(), model.decoder_stream()
    encoder.push(random_video(2))
    encoder.flush()
    decoder.push(random_latents(model, 2))
    decoder.flush()
    for stream in (encoder, decoder):
        with pytest.raises(ValueError, match="flushed"):
            stream.state  # noqa: B018


@torch.no_grad()
def test_a_state_of_another_kind_of_stream_is_refused(model: VidTok) -> None:
    encoder, decoder = model.encoder_stream(), model.decoder_stream(lookahead=False)
    encoder.push(random_video(1))
    latents = random_latents(model, 4)
    first = decoder.push(latents[:, :, :2])
    with pytest.raises(ValueError, match="DecoderStream: the state must come from the same kind .*, got network"):
        model.decoder_stream(state=encoder.state)
    if waits(model):
        with pytest.raises(ValueError, match="lookahead must be .* with which the state was made, False, got True"):
            model.decoder_stream(state=decoder.state)
    restored = model.decoder_stream(lookahead=False, state=decoder.state)
    frames = torch.cat([first, restored.push(latents[:, :, 2:])], dim=2)
    assert frames.shape[2] == model.num_frames(4)


@torch.no_grad()
def test_a_state_of_a_model_with_other_layers_is_refused() -> None:
    """A layer without a state would have started again, with wrong latents and no error."""
    one, other = TOYS["kl v1.1 f=4"], TOYS["fsq v1.1 f=8"]
    encoder, decoder = one.encoder_stream(), one.decoder_stream()
    encoder.push(random_video(9))
    decoder.push(random_latents(one, 2))
    for make, state in ((other.encoder_stream, encoder.state), (other.decoder_stream, decoder.state)):
        with pytest.raises(ValueError, match="the state must come from a stream of this model, got one of a model"):
            make(state=state)


def test_non_causal_models_have_no_streams() -> None:
    model = toy_tokenizer("vidtok_fsq_noncausal_488_262144")
    for make in (model.encoder_stream, model.decoder_stream):
        with pytest.raises(ValueError, match="non-causal .* cannot run on a stream; use encode"):
            make()


@torch.no_grad()
def test_frames_and_latents_of_another_shape_are_refused(model: VidTok) -> None:
    stream = model.encoder_stream()
    with pytest.raises(ValueError, match="width must be a multiple of 8 .*, got 12; the nearest sizes are 8 and 16"):
        stream.push(random_video(1, w=12))
    with pytest.raises(ValueError, match="at least one frame"):
        stream.push(random_video(0))
    stream.push(random_video(3, b=2))
    with pytest.raises(ValueError, match="EncoderStream: the stream has batches of 2, got 1"):
        stream.push(random_video(1))
    with pytest.raises(ValueError, match=r"EncoderStream: the stream has frames of 8 x 16, got 16 x 16"):
        stream.push(random_video(1, b=2, h=16))
    decoder = model.decoder_stream()
    with pytest.raises(ValueError, match=rf"latents must have the shape \(b, {model.latent_channels}, T, H, W\)"):
        decoder.push(torch.zeros(1, model.latent_channels + 1, 1, 1, 2))
    decoder.push(random_latents(model, 1))
    with pytest.raises(ValueError, match=r"DecoderStream: the stream has latents of 1 x 2, got 2 x 2"):
        decoder.push(torch.zeros(1, model.latent_channels, 1, 2, 2))


def test_a_refused_push_leaves_the_stream_as_it_was(model: VidTok) -> None:
    video, stream = random_video(6), model.encoder_stream()
    with torch.no_grad():
        first = stream.push(video[:, :, :3]).latents
        with pytest.raises(ValueError, match=r"float video must be in \[-1, 1\]"):
            stream.push(video[:, :, 3:] * 100)
        latents = torch.cat([first, encode_by_pushes(stream, [video[:, :, 3:]])], dim=2)
        assert difference(latents, model.encode(video).latents) < EXACT
