"""Files beside an episode's video: flawed ones are one ValueError that names the file, the rule and the remedy."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recordings import tiny_adapter, write_episode

from vidtok_plugin.store.tokenize import write_store
from vidtok_plugin.video.episodes import load_episode, save_episode_files

SPACE = {"kind": "discrete", "size": 3}
BAD_SIZE = r"action_space\.size must be an integer in 1\.\.1000000"
BAD_KIND = r"action_space\.kind must be discrete, like its actions"


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """An intact episode of 9 frames."""
    write_episode(tmp_path / "a.mp4", 9)
    return tmp_path / "a.mp4"


@pytest.mark.parametrize(
    ("meta", "rule"),
    [
        *[({"fps": fps}, "fps must be a number above 0") for fps in (0, -30, "30/1", None, True, 10**400)],
        *[({"fps": float(fps)}, "fps must be a number above 0") for fps in ("nan", "inf")],
        *[({"num_frames": count}, "num_frames must be an integer of at least 1") for count in (0, "9", 9.0)],
        *[({"action_space": space}, "action_space must be an object") for space in (None, [])],
        *[({"action_space": {"kind": kind}}, BAD_KIND) for kind in ("continuous", ["discrete"])],
        *[({"action_space": {"size": size}}, BAD_SIZE) for size in (10**15, 0, 3.5, "3")],
    ],
)
def test_an_impossible_value_in_the_json_is_named(clip: Path, meta: dict[str, Any], rule: str) -> None:
    clip.with_suffix(".json").write_text(json.dumps({"fps": 30, "action_space": SPACE, **meta}))
    with pytest.raises(
        ValueError, match=rf"a\.mp4: in a\.json, {rule}.*, got .*; record the episode again, or correct"
    ):
        load_episode(clip)


def test_actions_of_another_size_than_the_json_says_are_refused(clip: Path) -> None:
    """They were stored as they were, and training failed in a matrix product."""
    np.save(clip.with_suffix(".actions.npy"), np.ones((9, 3), np.float32))
    clip.with_suffix(".json").write_text(json.dumps({"fps": 30, "action_space": {"kind": "continuous", "size": 2}}))
    with pytest.raises(ValueError, match=r"a\.json, action_space\.size must be 3, the components of its actions, got"):
        load_episode(clip)
    with pytest.raises(ValueError, match=r"action_space\.size must be 3"):
        save_episode_files(clip, np.ones((9, 3), np.float32), {"action_space": {"size": 2}})


def test_an_episode_without_a_frame_rate_cannot_be_stored(clip: Path, tmp_path: Path) -> None:
    clip.with_suffix(".json").write_text(json.dumps({"action_space": SPACE}))
    with pytest.raises(ValueError, match=r"in a\.json, fps, the frames per second, must be there"):
        write_store(tiny_adapter(), [load_episode(clip)], tmp_path / "store")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"{", r"a\.json is not valid JSON"),
        (b"", r"a\.json is not valid JSON"),
        (b'{"fps": 10, "note": "\xe9"}', r"a\.json is not UTF-8 text"),
        (b"[" * 100_000, r"a\.json is nested too deeply"),
        (b"[1]", r"a\.json must be a JSON object, got list"),
        (b'{"fps": ' + b"9" * 5000 + b"}", r"a\.json is not valid JSON"),
    ],
)
def test_malformed_json_is_named(clip: Path, content: bytes, problem: str) -> None:
    clip.with_suffix(".json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"{problem}.*; record the episode again, or correct the file"):
        load_episode(clip)


def npz(file: Path) -> None:
    np.savez(file.with_suffix(".npz"), a=np.zeros(9, np.int64))
    file.with_suffix(".npz").replace(file)


def huge(file: Path) -> None:
    data = file.read_bytes()
    assert b"(9,), }         " in data
    file.write_bytes(data.replace(b"(9,), }         ", b"(99999999999,), }")[: len(data)])


@pytest.mark.parametrize(
    "spoil",
    [
        npz,
        huge,
        lambda file: os.truncate(file, 0),
        lambda file: os.truncate(file, file.stat().st_size - 8),
        lambda file: file.write_bytes(b"PK\x03\x04 no archive"),
        lambda file: file.write_bytes(b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 70_000),
        lambda file: np.save(file, np.array([{}] * 9), allow_pickle=True),
        lambda file: np.save(file, np.zeros(9, np.complex64)),
        lambda file: np.save(file, np.zeros(9, bool)),
        lambda file: np.save(file, np.full(9, 2**63 + 1, np.uint64)),
        lambda file: np.save(file, np.int64(3)),
    ],
)
def test_a_malformed_file_of_actions_is_named(clip: Path, spoil: Any) -> None:
    spoil(clip.with_suffix(".actions.npy"))
    with pytest.raises(ValueError, match=r"a\.mp4: a\.actions\.npy (cannot be read|must)"):
        load_episode(clip)


def test_the_state_beside_a_video_is_the_episodes(clip: Path) -> None:
    episode = load_episode(clip)
    assert episode.state is None
    state = np.random.default_rng(0).normal(size=(9, 3))
    save_episode_files(clip, episode.actions, episode.meta, state=state)
    again = load_episode(clip)
    assert again.state is not None and again.state.dtype == np.float32
    np.testing.assert_array_equal(again.state, state.astype(np.float32))
    assert again.rewards is None


@pytest.mark.parametrize("flawed", [np.zeros(9), np.zeros((8, 2)), np.full((9, 2), np.nan)])
def test_a_flawed_state_is_named(clip: Path, flawed: np.ndarray) -> None:
    np.save(clip.with_suffix(".state.npy"), flawed)
    with pytest.raises(ValueError, match=r"a\.mp4: a\.state\.npy must .*; record it again, or correct or remove"):
        load_episode(clip)
    with pytest.raises(ValueError, match=r"a\.state\.npy must"):
        save_episode_files(clip, np.zeros(9, np.int64), {"fps": 30}, state=flawed)


@pytest.mark.parametrize("suffix", [".json", ".actions.npy"])
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(clip: Path, suffix: str) -> None:
    clip.with_suffix(suffix).unlink()
    os.mkfifo(clip.with_suffix(suffix))
    with pytest.raises(FileNotFoundError, match=r"has no a\.(json|actions\.npy) beside it"):
        load_episode(clip)


@pytest.mark.parametrize("dtype", [">i4", "<u8", "u1", ">u8"])
def test_integers_of_any_type_and_byte_order_are_actions(clip: Path, tmp_path: Path, dtype: str) -> None:
    expected = np.arange(9) % 3
    np.save(clip.with_suffix(".actions.npy"), expected.astype(dtype))
    store = write_store(tiny_adapter(), [load_episode(clip)], tmp_path / "store")
    assert store.window(0, 1, 2)["actions"].flatten().tolist() == expected[1:].tolist()
