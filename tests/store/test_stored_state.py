"""A store keeps the state of each frame and the task of each episode, for those episodes that have them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from recordings import contents, tiny_adapter
from stores import METADATA, episode_data

from vidtok_plugin import open_episodes
from vidtok_plugin.store.check import check_store
from vidtok_plugin.store.reader import TokenStore
from vidtok_plugin.store.shards import StoredEpisode
from vidtok_plugin.store.tokenize import write_store
from vidtok_plugin.store.writer import TokenStoreWriter
from vidtok_plugin.video.episode import Episode

NAN = float("nan")


def write_array_episode(path: Path, frames: int, *, size: int | None = 2, task: str | None = None) -> Path:
    """An episode whose state is its frame's number, in units of 1 and of 100."""
    arrays: dict[str, object] = {"frames": np.zeros((frames, 16, 16, 3), np.uint8), "fps": 10}
    if size is not None:
        arrays["state"] = np.arange(frames)[:, None] * 100.0 ** np.arange(size)
    np.savez(path, **arrays | ({} if task is None else {"task": task}))  # type: ignore[arg-type]
    return path


@pytest.fixture
def episodes(tmp_path: Path) -> list[Episode]:
    folder = tmp_path / "episodes"
    folder.mkdir()
    write_array_episode(folder / "a.npz", 7, task="open the drawer")
    write_array_episode(folder / "b.npz", 5, size=None)
    return list(open_episodes(folder))


def test_states_are_those_of_each_steps_frames(episodes: list[Episode], tmp_path: Path) -> None:
    """Frame 0 is the last of step 0; step 2 lacks two of its four frames."""
    store = write_store(tiny_adapter(), episodes, tmp_path / "tokens")
    state = store.windows([0, 1], [0, 0], 4)["state"]
    frames = torch.tensor([[NAN] * 3 + [0], [1, 2, 3, 4], [5, 6, NAN, NAN], [NAN] * 4])
    torch.testing.assert_close(state[0], torch.stack([frames, 100 * frames], dim=-1), equal_nan=True)
    assert state[1].isnan().all()
    assert store.state_size == 2 and store.outcomes == set()
    statistics = store.state_statistics()
    assert statistics.mean.tolist() == [3, 300] and statistics.std.tolist() == pytest.approx([2, 200])
    assert not check_store(tmp_path / "tokens").problems


def test_clips_have_the_states_of_their_own_frames(episodes: list[Episode], tmp_path: Path) -> None:
    store = write_store(tiny_adapter(), episodes[:1], tmp_path / "tokens", clip_frames=5)
    state = store.windows([0, 1], [0, 0], 2)["state"][..., 0]
    expected = torch.tensor([[[NAN] * 3 + [0], [1, 2, 3, 4]], [[NAN] * 3 + [4], [5, 6, NAN, NAN]]])
    torch.testing.assert_close(state, expected, equal_nan=True)


def test_tasks_are_in_the_index(episodes: list[Episode], tmp_path: Path) -> None:
    store = write_store(tiny_adapter(), episodes, tmp_path / "tokens", clip_frames=5)
    assert [episode.task for episode in store.episodes] == ["open the drawer", "open the drawer", None]


@pytest.mark.parametrize("change", ["state", "task"])
def test_changed_states_and_tasks_are_tokenized_again(episodes: list[Episode], tmp_path: Path, change: str) -> None:
    adapter, output = tiny_adapter(), tmp_path / "tokens"
    write_store(adapter, episodes, output)
    values = {"state": np.ones((7, 2), np.float32)} if change == "state" else {"task": "close it"}
    changed = [replace(episodes[0], **values), episodes[1]]  # type: ignore[type-var]
    store = write_store(adapter, changed, output, update=True)
    assert store.episodes[0].task == ("close it" if change == "task" else "open the drawer")
    assert (store.windows([0], [0], 2)["state"][0, 1, 0, 1] == 1) == (change == "state")


def test_stores_from_before_they_kept_states_stay_valid(episodes: list[Episode], tmp_path: Path) -> None:
    adapter, output = tiny_adapter(), tmp_path / "tokens"
    write_store(adapter, [replace(x, state=None, task=None) for x in episodes], output)  # type: ignore[type-var]
    before = contents(output)
    assert write_store(adapter, episodes, output).state_size is None
    assert contents(output) == before
    assert write_store(adapter, episodes, output, update=True).state_size == 2


def test_states_of_different_sizes_are_refused(tmp_path: Path) -> None:
    for name, size in (("a", 2), ("b", 3)):
        write_array_episode(tmp_path / f"{name}.npz", 5, size=size)
    with pytest.raises(ValueError, match=r"equally many components, got 2 of a\.npz and 3 of b\.npz"):
        write_store(tiny_adapter(), list(open_episodes(tmp_path)), tmp_path / "tokens")
    for number, size in enumerate((2, 3)):
        data = episode_data(3, 0) | {"state": torch.zeros(3, METADATA.temporal_factor, size)}
        entry = StoredEpisode(name=f"{number}.mp4", steps=3, frames=1 + 2 * METADATA.temporal_factor, digest="")
        TokenStoreWriter(tmp_path / "two", METADATA).write_shard("train", [entry], [data])
    with pytest.raises(ValueError, match="equally many components, got 2 in .*shard_00000 and 3 in .*shard_00001"):
        TokenStore(tmp_path / "two", "train")


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (torch.full((3, 2, 4), float("inf")), "state must be finite, or NaN"),
        (torch.zeros(3, 2), r"its state must be float32 of \(3, 2, 2\), got float32 of \(3, 2\)"),
        (torch.zeros(3, 2, 4).double(), r"its state must be float32 of \(3, 2, 4\), got float64"),
    ],
)
def test_impossible_states_are_refused(tmp_path: Path, state: torch.Tensor, message: str) -> None:
    entry = StoredEpisode(name="a.mp4", steps=3, frames=1 + 2 * METADATA.temporal_factor, digest="")
    with pytest.raises(ValueError, match=message):
        TokenStoreWriter(tmp_path, METADATA).write_shard("train", [entry], [episode_data(3, 0) | {"state": state}])
