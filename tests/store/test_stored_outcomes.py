"""A store keeps each frame's reward and where episodes ended, for those episodes that have them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from recordings import tiny_adapter, write_episode
from stores import METADATA, episode_data

from vidtok_plugin.store.reader import TokenStore
from vidtok_plugin.store.shards import StoredEpisode
from vidtok_plugin.store.tokenize import write_store
from vidtok_plugin.store.writer import TokenStoreWriter
from vidtok_plugin.video.episodes import find_episodes, load_episode, meta_path, rewards_path

NAN = float("nan")


def give_outcomes(video: Path, rewards: list[float] | None, *, terminated: bool | None = None) -> None:
    if rewards is not None:
        np.save(rewards_path(video), np.array(rewards, np.float32))
    if terminated is not None:
        meta = json.loads(meta_path(video).read_text())
        meta_path(video).write_text(json.dumps(meta | {"terminated": terminated}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, frames in (("a", 10), ("b", 9), ("c", 5)):
        write_episode(tmp_path / f"{name}.mp4", frames)
    give_outcomes(tmp_path / "a.mp4", [float(i) for i in range(10)], terminated=True)
    give_outcomes(tmp_path / "b.mp4", [0.5] * 9, terminated=False)
    return tmp_path


def test_rewards_and_ends_are_those_of_each_steps_frames(folder: Path, tmp_path: Path) -> None:
    store = write_store(tiny_adapter(), find_episodes(folder), tmp_path / "tokens")
    windows = store.windows([0, 1, 2], [0, 0, 0], 4)
    torch.testing.assert_close(
        windows["rewards"][:, :3],
        torch.tensor(
            [
                [[NAN] * 4, [1, 2, 3, 4], [5, 6, 7, 8]],
                [[NAN] * 4, [0.5] * 4, [0.5] * 4],
                [[NAN] * 4] * 3,
            ]
        ),
        equal_nan=True,
    )
    assert windows["rewards"][0, 3, 0] == 9 and windows["rewards"][0, 3, 1:].isnan().all()
    assert windows["terminated"].tolist() == [[0, 0, 0, 1], [0, 0, 0, 2], [2, 2, 2, 2]]  # 2: unknown, or no step


def test_only_the_last_clip_of_an_episode_ends(folder: Path, tmp_path: Path) -> None:
    store = write_store(tiny_adapter(), find_episodes(folder)[:1], tmp_path / "tokens", clip_frames=5)
    windows = store.windows([0, 1, 2], [0, 0, 0], 2)
    assert windows["terminated"].tolist() == [[0, 0], [0, 0], [0, 1]]
    assert windows["rewards"][1, 1].tolist() == [5, 6, 7, 8]


def test_a_store_without_outcomes_has_none_in_its_windows(tmp_path: Path) -> None:
    write_episode(tmp_path / "a.mp4", 9)
    store = write_store(tiny_adapter(), find_episodes(tmp_path), tmp_path / "tokens")
    assert not {"rewards", "terminated"} & set(store.windows([0], [0], 2).keys())


def test_shards_with_and_without_outcomes_are_read_together(tmp_path: Path) -> None:
    writer = TokenStoreWriter(tmp_path, METADATA)
    rewards = torch.ones(3, METADATA.temporal_factor)
    for number, extra in enumerate(({}, {"rewards": rewards})):
        entry = StoredEpisode(name=f"{number}.mp4", steps=3, frames=1 + 2 * METADATA.temporal_factor, digest="")
        writer.write_shard("train", [entry], [{**episode_data(3, number), **extra}])
    windows = TokenStore(tmp_path, "train").windows([0, 1], [0, 0], 3)
    assert windows["rewards"].isnan().all(dim=(1, 2)).tolist() == [True, False]
    assert torch.equal(windows["rewards"][1], rewards)


@pytest.mark.parametrize("change", ["rewards", "terminated"])
def test_changed_outcomes_are_tokenized_again(folder: Path, tmp_path: Path, change: str) -> None:
    adapter, output = tiny_adapter(), tmp_path / "tokens"
    write_store(adapter, find_episodes(folder), output)
    video = folder / "a.mp4"
    give_outcomes(video, [0.0] * 10 if change == "rewards" else None, terminated=change == "rewards")
    with pytest.raises(ValueError, match="a.mp4 has changed since it was written"):
        write_store(adapter, find_episodes(folder), output)
    window = write_store(adapter, find_episodes(folder), output, update=True).windows([0], [0], 4)
    assert (window["rewards"][0, 1, 0] == 0) == (change == "rewards")
    assert (window["terminated"][0, 3] == 1) == (change == "rewards")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [("rewards", float("inf"), "rewards must be finite, or NaN"), ("terminated", 3, "terminated must be 0, 1, or 2")],
)
def test_impossible_outcomes_are_refused(tmp_path: Path, name: str, value: float, message: str) -> None:
    outcomes = {"rewards": torch.zeros(3, METADATA.temporal_factor), "terminated": torch.zeros(3, dtype=torch.uint8)}
    outcomes[name][1] = value
    entry = StoredEpisode(name="a.mp4", steps=3, frames=1 + 2 * METADATA.temporal_factor, digest="")
    writer = TokenStoreWriter(tmp_path, replace(METADATA))
    with pytest.raises(ValueError, match=message):
        writer.write_shard("train", [entry], [{**episode_data(3, 0), **outcomes}])


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        ([0.0] * 8, r"a\.rewards\.npy must be numbers of shape \(10,\)"),
        ([0.0] * 9 + [NAN], r"must have rewards that are finite in float32, got nan at frame 9"),
        (["x"] * 10, r"a\.rewards\.npy must be numbers of shape \(10,\), one for each frame, got <U1"),
    ],
)
def test_rewards_that_do_not_fit_are_refused(folder: Path, rewards: list[object], message: str) -> None:
    np.save(rewards_path(folder / "a.mp4"), np.array(rewards))
    with pytest.raises(ValueError, match=message):
        load_episode(folder / "a.mp4")


def test_an_end_that_is_neither_true_nor_false_is_refused(folder: Path) -> None:
    meta = json.loads(meta_path(folder / "a.mp4").read_text())
    meta_path(folder / "a.mp4").write_text(json.dumps(meta | {"terminated": "no"}))
    with pytest.raises(ValueError, match="terminated must be true or false, got 'no'"):
        load_episode(folder / "a.mp4")
