"""Streams of tokens, and clip boundaries: clips that were encoded separately are never joined."""

import copy

import pytest
import torch
from adapters import KINDS, make, values, video
from torch import Tensor
from toy_tokenizers import difference, random_video

from vidtok_plugin import TokenizerAdapter, VideoTokens

EXACT = 1e-11  # float64: rounding errors only


@pytest.fixture(scope="module", params=[kind for kind in KINDS if "non-causal" not in kind])
def causal(request: pytest.FixtureRequest) -> TokenizerAdapter:
    return make(request.param)


@pytest.fixture(scope="module")
def discrete() -> TokenizerAdapter:
    return make("fsq")


@pytest.mark.parametrize("split", [[1] * 10, [3, 1, 4, 2], [10]])
def test_streamed_tokens_equal_the_whole_clips(causal: TokenizerAdapter, split: list[int]) -> None:
    adapter = TokenizerAdapter(copy.deepcopy(causal.tokenizer).double(), patch_size=causal.config.patch_size)
    clip = random_video(10, b=2, w=32)
    whole, stream = adapter.encode(clip), adapter.stream()
    parts = [stream.push(part) for part in clip.split(split, dim=2)] + [stream.flush()]
    for part in parts:
        assert part.grid_values.shape[2:4] == whole.grid_values.shape[2:4]
        assert part.discrete == whole.discrete and part.batch_size == (2,)
    torch.testing.assert_close(torch.cat([values(p) for p in parts], dim=1), values(whole), rtol=0, atol=1e-9)
    assert sum(part.num_frames for part in parts).tolist() == [10, 10]
    decoder = adapter.decoder_stream()
    frames = [decoder.push(part) for part in parts] + [decoder.flush()]
    assert difference(torch.cat(frames, dim=2)[:, :, :10], adapter.decode(whole)) < EXACT


def test_streams_of_tokens_fork_and_interleave(causal: TokenizerAdapter) -> None:
    clips = [video(9, seed=seed) for seed in range(2)]
    for clip in clips:
        clip[:, :, :5] = clips[0][:, :, :5]
    stream = causal.stream()
    first = values(stream.push(clips[0][:, :, :5]))
    branches = [stream, stream.fork()]
    rest: list[list[Tensor]] = [[], []]
    for i in range(5, 9):
        for branch, clip, parts in zip(branches, clips, rest, strict=True):
            parts.append(values(branch.push(clip[:, :, i : i + 1])))
    for clip, parts in zip(clips, rest, strict=True):
        whole = values(causal.encode(clip))
        torch.testing.assert_close(torch.cat([first, *parts], dim=1), whole, rtol=0, atol=1e-4)


def test_decoding_a_stream_without_lookahead_never_waits(causal: TokenizerAdapter) -> None:
    tokens, f = causal.encode(video(1 + 3 * causal.temporal_factor)), causal.temporal_factor
    stream = causal.decoder_stream(lookahead=False)
    counts = []
    for step in range(4):
        part = VideoTokens(
            grid_values=tokens.grid_values[:, step : step + 1], num_frames=torch.tensor([f]), batch_size=[1]
        )
        counts.append(stream.push(part).shape[2])
    assert counts == [1, f, f, f] and stream.flush().shape[2] == 0


# Boundaries


def test_streamed_tokens_have_their_position(causal: TokenizerAdapter) -> None:
    f, stream = causal.temporal_factor, causal.stream()
    parts = [stream.push(video(1 + f)), stream.push(video(f - 1)), stream.push(video(2)), stream.flush()]
    assert [part.first_step.item() for part in parts] == [0, 2, 2, 3]
    assert [part.num_frames.item() for part in parts] == [1 + f, 0, f, 1]
    joined = causal.join_steps(parts)
    assert joined.first_step.item() == 0 and joined.num_frames.item() == 2 * f + 2 and joined.grid.T == 4
    twin = stream.fork()
    with pytest.raises(ValueError, match="flushed"):
        twin.push(video(1))


def test_cut_steps_have_their_own_frames(causal: TokenizerAdapter) -> None:
    f = causal.temporal_factor
    tokens = torch.cat([causal.encode(video(2 * f + 1)), causal.encode(video(2 * f))])  # three steps each
    assert causal.steps(tokens, 0, 1).num_frames.tolist() == [1, 1]
    later = causal.steps(tokens, 1, 3)
    assert later.num_frames.tolist() == [2 * f, 2 * f - 1] and later.first_step.tolist() == [1, 1]
    last = causal.steps(later, 1, 2)
    assert last.num_frames.tolist() == [f, f - 1] and last.first_step.tolist() == [2, 2]
    assert torch.equal(last.grid_values, tokens.grid_values[:, 2:])
    assert causal.steps(tokens, 2, 2).grid.T == 0
    with pytest.raises(
        ValueError, match=r"start and stop must be 0 to 3 \(the tokens have 3 steps\) and in order, got 2 and 4"
    ):
        causal.steps(tokens, 2, 4)


def test_clips_that_were_encoded_separately_are_not_joined(discrete: TokenizerAdapter) -> None:
    clips = [discrete.encode(video(9, seed=seed)) for seed in range(2)]
    with pytest.raises(ValueError, match="part 1 must begin at step 3 of the clip, but begins at step 0; clips that"):
        discrete.join_steps(clips)
    for join in (lambda: torch.cat(clips, dim=1), lambda: clips[0][:, 1:]):
        with pytest.raises((RuntimeError, IndexError)):
            join()
    first, rest = discrete.steps(clips[0], 0, 1), discrete.steps(clips[0], 1, 3)
    with pytest.raises(ValueError, match="part 1 must begin at step 3 .* but begins at step 0"):
        discrete.join_steps([rest, first])
    with pytest.raises(ValueError, match="part 1 must begin at step 1 .* but begins at step 2"):
        discrete.join_steps([first, discrete.steps(clips[0], 2, 3)])
    with pytest.raises(ValueError, match="alike in kind, batch, rows and columns"):
        discrete.join_steps([torch.cat([first, first]), rest])
    with pytest.raises(ValueError, match="at least one part"):
        discrete.join_steps([])


def test_no_part_may_follow_a_partly_filled_step(discrete: TokenizerAdapter) -> None:
    """Its last frame was repeated, so the next frames of the video do not follow it."""
    ended, longer = discrete.encode(video(7)), discrete.encode(video(17))
    assert ended.grid.T == 3
    with pytest.raises(
        ValueError, match="part 0 ends its clip with a step of fewer than 4 frames, so no part can follow it"
    ):
        discrete.join_steps([ended, discrete.steps(longer, 3, 5)])
    stream = discrete.decoder_stream()
    stream.push(ended)
    with pytest.raises(ValueError, match="next step 3, but got tokens from step 3 after the clip's end on"):
        stream.push(discrete.steps(longer, 3, 5))


def test_tokens_without_a_position_are_neither_cut_nor_joined(discrete: TokenizerAdapter) -> None:
    tokens = discrete.encode(video())
    unplaced = VideoTokens(grid_values=tokens.grid_values, num_frames=tokens.num_frames, batch_size=[1])
    for call in (lambda: discrete.join_steps([unplaced]), lambda: discrete.steps(unplaced, 0, 1)):
        with pytest.raises(ValueError, match=r"must have one position in their clips, got none; .* first_step="):
            call()
    mixed = torch.cat([discrete.steps(tokens, 0, 1), discrete.steps(tokens, 1, 2)])
    with pytest.raises(ValueError, match="must have one position in their clips, got several"):
        discrete.steps(mixed, 0, 1)
    assert torch.equal(discrete.decode(unplaced), discrete.decode(tokens))


def test_later_steps_are_not_decoded_as_a_clip(discrete: TokenizerAdapter) -> None:
    tokens = discrete.encode(video())
    with pytest.raises(
        ValueError, match="only tokens from the beginning of their clip can be decoded on their own, got .* 2"
    ):
        discrete.decode(discrete.steps(tokens, 2, 3))


def test_a_decoder_stream_takes_one_clip_in_order(discrete: TokenizerAdapter) -> None:
    tokens, stream = discrete.encode(video()), discrete.decoder_stream()
    stream.push(discrete.steps(tokens, 0, 2))
    for wrong, place in ((discrete.encode(video(seed=1)), 0), (discrete.steps(tokens, 0, 1), 0)):
        with pytest.raises(
            ValueError, match=f"one clip's steps in order, next step 2, but got tokens from step {place}"
        ):
            stream.push(wrong)
    twin = stream.fork()
    frames = [stream.push(discrete.steps(tokens, 2, 3)), stream.flush()]
    generated = discrete.tokens_from_ids(tokens.ids[:, -4:], discrete.steps(tokens, 2, 3).grid, 4)
    assert torch.equal(torch.cat([twin.push(generated), twin.flush()], dim=2), torch.cat(frames, dim=2))


def test_generated_steps_may_be_given_a_position(discrete: TokenizerAdapter) -> None:
    tokens = discrete.encode(video())
    part = discrete.steps(tokens, 1, 3)
    placed = discrete.tokens_from_ids(part.ids, part.grid, first_step=1)
    assert (placed == part).all()
    assert (discrete.join_steps([discrete.steps(tokens, 0, 1), placed]) == tokens).all()
    assert discrete.tokens_from_ids(tokens.ids, tokens.grid, 9).first_step.item() == -1
