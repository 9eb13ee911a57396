"""A store holds a KL model's patches, normalized by latent statistics that all its writers share."""

from pathlib import Path
from typing import Any

import pytest
import torch
from recordings import contents, tiny_adapter, tiny_kl_adapter, write_folder

from vidtok_plugin import cli
from vidtok_plugin.adapter.adapter import TokenizerAdapter
from vidtok_plugin.store.adapter import agree_on_statistics, load_adapter
from vidtok_plugin.store.metadata import adapter_folder
from vidtok_plugin.store.reader import TokenStore
from vidtok_plugin.store.tokenize import write_store
from vidtok_plugin.video.episodes import find_episodes, find_videos
from vidtok_plugin.video.reading import read_frames
from world_model.data import WindowDataset

FRAMES = {"a": 17, "b": 11, "c": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("episodes"), FRAMES)


def video(path: Path, frames: range | None = None) -> torch.Tensor:
    return torch.from_numpy(read_frames(path, frames)).permute(3, 0, 1, 2)[None]


def fitted(folder: Path, **settings: Any) -> TokenizerAdapter:
    adapter = tiny_kl_adapter(**settings)
    adapter.fit_latent_stats([video(path) for path in find_videos(folder)])
    return adapter


@pytest.mark.parametrize("patch_size", [(1, 1, 1), (1, 2, 1)])
def test_stored_patches_equal_those_the_adapter_encodes(
    folder: Path, tmp_path: Path, patch_size: tuple[int, int, int]
) -> None:
    adapter, episodes = fitted(folder, patch_size=patch_size), find_episodes(folder)
    store = write_store(adapter, episodes, tmp_path, chunk_frames=6, episodes_per_shard=2)
    meta, shape = store.metadata, (2 // patch_size[1], 2, 4 * patch_size[1])
    assert (meta.kind, meta.codebook_size, meta.fsq_levels) == ("continuous", None, None)
    assert (meta.height, meta.width, meta.patch_dim) == shape
    for index, episode in enumerate(episodes):
        window = store.window(index, 0, int(store.steps[index]))
        assert "codes" not in window and window["patches"].dtype == torch.float32
        expected = adapter.encode(video(episode.path)).grid_values[0]
        torch.testing.assert_close(window["patches"], expected, rtol=1e-4, atol=1e-5)
    store.check(adapter)
    saved = TokenizerAdapter.from_pretrained(adapter_folder(tmp_path))
    assert saved.hash == adapter.hash == store.metadata.adapter_hash
    batch = WindowDataset(store, 4).__getitems__([0, 2])
    assert batch["patches"].shape == (2, 4, *shape) and batch["actions"].shape == (2, 4, 4)
    assert not batch["patches"][~batch["valid"]].any() and batch["patches"][batch["valid"]].all()


def test_patches_without_statistics_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must have been fitted, got mean 0 and std 1; call adapter.fit_latent_stats"):
        write_store(tiny_kl_adapter(), find_episodes(folder), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_store_holds_one_kind_of_tokens(folder: Path, tmp_path: Path) -> None:
    write_store(tiny_adapter(), find_episodes(folder), tmp_path)
    with pytest.raises(ValueError, match="was written by another tokenizer"):
        write_store(fitted(folder), find_episodes(folder), tmp_path)
    write_store(fitted(folder), find_episodes(folder), tmp_path, update=True)
    assert TokenStore(tmp_path).metadata.kind == "continuous"


def test_all_writers_use_the_statistics_of_the_first(folder: Path, tmp_path: Path) -> None:
    first, second, other = tiny_kl_adapter(), tiny_kl_adapter(), tiny_kl_adapter(seed=1)
    agree_on_statistics(first, find_videos(folder), tmp_path, clips=5)
    agree_on_statistics(second, [folder / "missing.mp4"], tmp_path)
    assert first.has_latent_stats and first.hash == second.hash
    agree_on_statistics(other, find_videos(folder), tmp_path, clips=5)
    assert not torch.equal(other.latent_mean, first.latent_mean)  # other weights, other statistics
    own = fitted(folder)
    before = own.hash
    agree_on_statistics(own, find_videos(folder), tmp_path)
    assert own.hash == before
    with pytest.raises(ValueError, match="clips must be at least 1, got 0"):
        agree_on_statistics(first, find_videos(folder), tmp_path, clips=0)


def test_a_writer_overtaken_while_fitting_uses_the_others_statistics(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit, first, second = TokenizerAdapter.fit_latent_stats, tiny_kl_adapter(), tiny_kl_adapter()

    def fit_late(adapter: TokenizerAdapter, videos: Any) -> None:
        monkeypatch.undo()
        agree_on_statistics(first, find_videos(folder), tmp_path, clips=3)
        fit(adapter, videos)

    monkeypatch.setattr(TokenizerAdapter, "fit_latent_stats", fit_late)
    agree_on_statistics(second, find_videos(folder), tmp_path, clips=7)
    assert first.hash == second.hash


def test_clips_of_the_statistics_come_from_all_videos(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips: list[torch.Tensor] = []
    monkeypatch.setattr(TokenizerAdapter, "fit_latent_stats", lambda adapter, videos: clips.extend(videos))
    agree_on_statistics(tiny_kl_adapter(), find_videos(folder), tmp_path, clips=6)
    assert [clip.shape[2] for clip in clips] == [17, 17, 11, 11, 1, 1]


# The command


@pytest.fixture
def arguments(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    tiny_kl_adapter().tokenizer.save_pretrained(tmp_path / "model")
    output = ["--output", str(tmp_path / "store"), "--episodes-per-shard", "1", "--statistics-clips", "4"]
    return ["tokenize", str(folder), "--model", str(tmp_path / "model"), *output]


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_command_fits_statistics_and_a_second_run_changes_nothing(
    arguments: list[str], folder: Path, tmp_path: Path, processes: int
) -> None:
    assert cli.main([*arguments, "--patch-size", "1", "2", "--processes", str(processes)]) == 0
    store = TokenStore(tmp_path / "store", "train")
    adapter = TokenizerAdapter.from_pretrained(adapter_folder(tmp_path / "store"))
    assert adapter.has_latent_stats and adapter.config.patch_size == (1, 1, 2) and len(store) == 3
    store.check(adapter)
    before = contents(tmp_path / "store")
    assert cli.main([*arguments, "--patch-size", "1", "2"]) == 0
    assert contents(tmp_path / "store") == before


def test_the_command_takes_a_saved_adapter_with_its_statistics(
    arguments: list[str], folder: Path, tmp_path: Path
) -> None:
    adapter = fitted(folder, patch_size=(1, 2, 2))
    adapter.save_pretrained(tmp_path / "adapter")
    arguments[arguments.index("--model") + 1] = str(tmp_path / "adapter")
    assert cli.main(arguments) == 0
    TokenStore(tmp_path / "store").check(adapter)
    assert not list((tmp_path / "store").glob("statistics_*"))


def test_settings_that_contradict_a_saved_adapter_are_refused(folder: Path, tmp_path: Path) -> None:
    fitted(folder, patch_size=(1, 2, 2)).save_pretrained(tmp_path)
    assert load_adapter(tmp_path, patch_size=(2, 2)).patch_dim == 16
    with pytest.raises(ValueError, match=r"whose patch size is \(2, 2\), got \(1, 2\); leave it out"):
        load_adapter(tmp_path, patch_size=(1, 2))
    with pytest.raises(ValueError, match="contains its architecture; leave preset out"):
        load_adapter(tmp_path, preset="vidtok_tiny")
