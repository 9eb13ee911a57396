"""Several videos encoded together give what each gives alone: the same store, byte for byte."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recordings import contents, tiny_adapter, tiny_kl_adapter

from vidtok_plugin import TokenizerAdapter, VidTok, open_episodes
from vidtok_plugin.store.config import TokenizeConfig
from vidtok_plugin.store.encode import encode_batch, encode_episode, encode_sources
from vidtok_plugin.store.tokenize import write_store
from vidtok_plugin.video.episode import Episode

LENGTHS = {"a": 17, "b": 11, "c": 1, "d": 30, "e": 12, "f": 4}  # ends within groups of 4 frames, and within chunks


@pytest.fixture(scope="module")
def episodes(tmp_path_factory: pytest.TempPathFactory) -> list[Episode]:
    folder, rng = tmp_path_factory.mktemp("episodes"), np.random.default_rng(0)
    for name, length in LENGTHS.items():
        frames = rng.integers(0, 256, (length, 16, 24, 3), dtype=np.uint8)
        signals = {"actions": rng.normal(size=(length, 2)), "rewards": rng.normal(size=length), "terminated": True}
        np.savez(folder / f"{name}.npz", frames=frames, fps=10, state=rng.normal(size=(length, 3)), **signals)
    return open_episodes(folder)


@pytest.mark.parametrize(("chunk_frames", "clip_frames"), [(1, None), (6, None), (6, 9)])
def test_a_batch_gives_the_same_store_to_the_byte(
    episodes: list[Episode], tmp_path: Path, chunk_frames: int, clip_frames: int | None
) -> None:
    adapter, stores = tiny_adapter(), {}
    for batch in (1, 4):
        write_store(
            adapter, episodes, tmp_path / str(batch), clip_frames=clip_frames, chunk_frames=chunk_frames, batch=batch
        )
        stores[batch] = contents(tmp_path / str(batch))
    assert stores[1] == stores[4]


def test_a_batch_has_the_codes_of_the_shipped_tokenizer(episodes: list[Episode]) -> None:
    adapter = TokenizerAdapter(VidTok.from_pretrained("vidtok_tiny"))
    clips = [(episode, range(episode.num_frames)) for episode in episodes]
    for data, (episode, _) in zip(encode_batch(adapter, clips, 8), clips, strict=True):
        video = torch.from_numpy(episode.read(range(episode.num_frames))).permute(3, 0, 1, 2)[None]
        assert torch.equal(data["codes"].flatten().long(), adapter.encode(video).ids[0])


def test_patches_of_a_batch_equal_those_of_each_alone(episodes: list[Episode]) -> None:
    adapter = tiny_kl_adapter()
    adapter.fit_latent_stats([torch.randn(1, 3, 5, 16, 24).clamp(-1, 1)])
    together = encode_batch(adapter, [(episode, range(episode.num_frames)) for episode in episodes], 6)
    for episode, data in zip(episodes, together, strict=True):
        alone = encode_episode(adapter, episode, chunk_frames=6)
        assert data.keys() == alone.keys()
        for name, values in alone.items():
            torch.testing.assert_close(data[name], values, rtol=1e-5, atol=1e-5, equal_nan=True)


def test_clips_of_one_length_are_encoded_together(episodes: list[Episode], monkeypatch: pytest.MonkeyPatch) -> None:
    adapter, sizes = tiny_adapter(), []
    stream = adapter.stream

    def recorded() -> Any:
        opened = stream()
        push = opened.push
        opened.push = lambda frames: (sizes.append(tuple(frames.shape[:3:2])), push(frames))[1]  # type: ignore
        return opened

    monkeypatch.setattr(adapter, "stream", recorded)
    done: list[float] = []
    sources = {episode.name: episode for episode in episodes}
    clips = encode_sources(adapter, sources, clip_frames=9, chunk_frames=64, batch=4, advance=done.append)
    assert sizes == [(4, 9), (4, 9), (4, 4)]  # of 7 clips of 9 frames, and of 6, 4, 4, 3, 1
    assert sum(done) == pytest.approx(len(episodes))
    assert [frames for frames, _ in clips["d.npz"]] == [range(0, 9), range(8, 17), range(16, 25), range(24, 30)]


def test_batches_are_of_at_least_one() -> None:
    with pytest.raises(ValueError, match="batch must be at least 1"):
        TokenizeConfig(batch=0)
