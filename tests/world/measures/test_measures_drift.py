"""Drift: frozen, flickering, blank and ordinary play have the expected statistics."""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from measured_models import random_model
from recordings import tiny_adapter, write_episode
from torch import Tensor

from vidtok_plugin import VidTok
from vidtok_plugin.adapter.adapter import TokenizerAdapter
from vidtok_plugin.store.reader import TokenStore
from vidtok_plugin.store.tokenize import write_store
from vidtok_plugin.video.episodes import find_episodes
from world_model import Sampler
from world_model.measures import drift
from world_model.measures.drift import Drift, free_running, play_from_episodes, play_from_store
from world_model.measures.prompts import held_out_prompts
from world_model.measures.segments import SegmentStatistics, Sequences, TokenFrequencies, TokenVectors
from world_model.rollout.tokens import decode_steps, encode_steps

F = 4
ADAPTER = tiny_adapter()


def smooth(batch: int, frames: int) -> Tensor:
    coarse = torch.rand(batch, 3, frames, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return torch.nn.functional.interpolate(coarse, (frames, 16, 16), mode="trilinear")


def statistics(tokens: Tensor, video: Tensor, reference: Tensor) -> dict[str, float]:
    found, expected = TokenFrequencies((4, 3)), TokenFrequencies((4, 3))
    expected.add(reference)
    result = SegmentStatistics(found)
    result.add(Sequences(tokens=tokens, video=video), ADAPTER)
    return result.compute(expected)


def random_tokens(batch: int, steps: int) -> Tensor:
    return torch.randint(12, (batch, steps, 2, 2), generator=torch.Generator().manual_seed(1))


def test_frozen_play_is_unchanged_and_without_motion() -> None:
    tokens, video = random_tokens(2, 1).expand(2, 5, 2, 2), smooth(2, 1).expand(2, 3, 17, 16, 16)
    frozen = statistics(tokens, video, tokens)
    assert frozen["unchanged_share"] == 1 and frozen["motion"] == 0
    assert frozen["token_divergence"] == 0 and frozen["sharpness"] > 1


def test_flickering_play_changes_every_token() -> None:
    tokens = (torch.arange(5) % 12).view(1, 5, 1, 1).expand(2, 5, 2, 2)
    noise = torch.rand(2, 3, 17, 16, 16) * 2 - 1
    flicker, calm = statistics(tokens, noise, tokens), statistics(tokens, smooth(2, 17), tokens)
    assert flicker["unchanged_share"] == 0
    assert flicker["motion"] > 70 and flicker["sharpness"] > 3 * calm["sharpness"]  # noise changes by 255 / 3 = 85


def test_blank_frames_have_no_sharpness_and_tokens_that_real_play_lacks() -> None:
    blank = statistics(
        torch.full((2, 5, 2, 2), 11), torch.full((2, 3, 17, 16, 16), -0.3), torch.zeros(2, 5, 2, 2, dtype=torch.int64)
    )
    assert blank["sharpness"] == 0
    assert blank["token_divergence"] == pytest.approx(math.log(2))  # nothing in common


def test_motion_is_in_grey_levels_per_frame() -> None:
    brighter = torch.linspace(-1, 1, 17).view(1, 1, 17, 1, 1).expand(2, 3, 17, 16, 16)
    assert statistics(random_tokens(2, 5), brighter, random_tokens(2, 5))["motion"] == pytest.approx(255 / 16, rel=1e-3)


def test_retokenized_psnr_compares_the_video_with_its_reconstruction() -> None:
    video = smooth(3, 17)
    again = ADAPTER.decode(ADAPTER.encode(video))
    error = ((video - again.clamp(-1, 1)) / 2).square().mean((1, 3, 4))[:, 1:]
    expected = -10 * torch.log10(error + 1e-8)
    found = statistics(random_tokens(3, 5), video, random_tokens(3, 5))["retokenized_psnr"]
    assert found == pytest.approx(float(expected.mean()), abs=0.01)


def test_the_first_step_and_frame_only_serve_as_predecessors() -> None:
    tokens, video = random_tokens(2, 5), smooth(2, 17)
    tokens[:, 1:] = 3
    reference = torch.full((1, 1, 2, 2), 3)
    assert statistics(tokens, video, reference)["token_divergence"] == 0
    changed = statistics(tokens, video, reference)["unchanged_share"]
    assert changed == pytest.approx(1 - float((tokens[:, 0] != 3).double().mean()) / 4)


def test_continuous_tokens_are_compared_by_frechet_distance() -> None:
    torch.manual_seed(0)
    real, same, other = (TokenVectors(3) for _ in range(3))
    real.add(torch.randn(4, 5, 4, 4, 3))
    same.add(torch.randn(4, 5, 4, 4, 3))
    other.add(torch.randn(4, 5, 4, 4, 3) + torch.tensor([2.0, 0, 0]))
    assert real.distance(same) < 0.2 < 3.5 < real.distance(other) < 4.6
    tokenizer = VidTok.from_preset("vidtok_kl_causal_488_4chn", ch=4, ch_mult=(1, 1, 1, 1), num_res_blocks=1)
    adapter, result = TokenizerAdapter(tokenizer), SegmentStatistics(TokenVectors(4))
    video = smooth(2, 17)
    tokens = encode_steps(adapter, video)
    assert decode_steps(adapter, tokens).shape == video.shape
    result.add(Sequences(tokens=tokens, video=video), adapter)
    reference = TokenVectors(4)
    reference.add(tokens[:, 1:])
    values = result.compute(reference)
    assert set(values) == {"token_frechet", "motion", "sharpness", "retokenized_psnr"}
    assert values["token_frechet"] == pytest.approx(0, abs=1e-6)


def test_segments_follow_each_other_from_the_prompt_on() -> None:
    tokens = torch.arange(8).view(1, 8, 1, 1)
    frames = torch.arange(29.0).view(1, 1, 29, 1, 1)
    segments = list(Sequences(tokens=tokens, video=frames).segments(2, first=3, temporal_factor=F))
    assert [segment.tokens.flatten().tolist() for segment in segments] == [[2, 3, 4], [4, 5, 6]]
    assert [(int(segment.video[0, 0, 0]), segment.video.shape[2]) for segment in segments] == [(8, 9), (16, 9)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Episodes of noise, and their tokens, in clips of 29 frames."""
    folder = tmp_path_factory.mktemp("drift")
    for number, frames in enumerate((90, 77)):
        write_episode(folder / "episodes" / f"{number}.mp4", frames)
    episodes = find_episodes(folder / "episodes")
    for split in ("train", "validation"):
        write_store(ADAPTER, episodes, folder / "store", split=split, clip_frames=29)
    return folder


def measure(root: Path, source: str, *, batch_size: int = 32) -> Drift:
    model = random_model()
    train, held_out = TokenStore(root / "store", "train"), TokenStore(root / "store", "validation")
    if source == "episodes":
        prompts = held_out_prompts(find_episodes(root / "episodes"), count=2, prompt_frames=5, future_frames=32)
        starts, real = play_from_episodes(ADAPTER, prompts, 8, model.device)
    else:
        starts, real = play_from_store(
            ADAPTER, held_out, rollouts=3, prompt_frames=5, num_frames=32, segment_frames=8, device=model.device
        )
    return free_running(
        model, ADAPTER, starts, real, train, num_frames=32, segment_frames=8, real_source=source,
        sampler=Sampler(), batch_size=batch_size,
    )  # fmt: skip


@pytest.mark.parametrize("source", ["episodes", "store"])
def test_rollouts_and_real_play_are_measured_segment_by_segment(root: Path, source: str) -> None:
    result = measure(root, source)
    values = result.measured().values
    names = {"token_divergence", "unchanged_share", "motion", "sharpness", "retokenized_psnr"}
    assert values["frames"] == [8, 16, 24, 32] and values["rollouts"] == (2 if source == "episodes" else 3)
    for name in names:
        assert len(values[name]) == 4 and 1 <= len(values[f"real_{name}"]) <= 4
    # A random model's tokens differ from the training tokens more than real play does.
    assert min(values["token_divergence"]) > max(values["real_token_divergence"])


def test_drift_does_not_depend_on_the_batch_size(root: Path) -> None:
    two, one = (measure(root, "episodes", batch_size=size).measured().values for size in (2, 1))
    for name in ("token_divergence", "unchanged_share", "motion", "real_motion"):
        assert two[name] == pytest.approx(one[name], abs=1e-3)


def test_a_rollout_that_replays_the_episode_scores_like_real_play(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = held_out_prompts(find_episodes(root / "episodes"), count=2, prompt_frames=5, future_frames=32)

    class Replay:
        def __init__(self) -> None:
            self.tokens = ADAPTER.encode(prompts.video)
            self.prompt_reconstruction, self.imagined = ADAPTER.decode(self.tokens).split([5, 32], dim=2)

    monkeypatch.setattr(drift, "rollout", lambda *args, **settings: Replay())
    values = measure(root, "episodes").measured().values
    for name in ("token_divergence", "unchanged_share", "motion", "sharpness", "retokenized_psnr"):
        assert values[name] == pytest.approx(values[f"real_{name}"], rel=1e-3)


def test_actions_continue_from_clip_to_clip(root: Path) -> None:
    store = TokenStore(root / "store", "validation")
    starts, _ = play_from_store(
        ADAPTER, store, rollouts=1, prompt_frames=5, num_frames=64, segment_frames=8, device=torch.device("cpu")
    )
    recorded = torch.from_numpy(find_episodes(root / "episodes")[0].actions)
    assert starts.actions is not None and starts.actions[0, 1:].tolist() == recorded[1:69].tolist()


def test_a_store_whose_episodes_are_too_short_is_one_clear_error(root: Path) -> None:
    def play(**sizes: int) -> Iterator[list[Sequences]]:
        store = TokenStore(root / "store", "validation")
        settings = {"prompt_frames": 5, "num_frames": 32, "segment_frames": 8, **sizes}
        return play_from_store(ADAPTER, store, rollouts=1, device=torch.device("cpu"), **settings)[1]

    with pytest.raises(
        ValueError, match="measures.drift_segment needs 9 latent steps .* longest in .* has 8; lower it"
    ):
        play(segment_frames=32)
    with pytest.raises(ValueError, match="measures.prompt_frames needs 9 latent steps"):
        play(prompt_frames=33)
