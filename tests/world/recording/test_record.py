"""Recording Atari play gives complete, reproducible episodes with the actions that were taken."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from gymnasium.spaces import Discrete

from vidtok_plugin.video import find_episodes, read_frames
from vidtok_plugin.video.episodes import rewards_path
from vidtok_plugin.video.writing import VideoWriter, write_video
from world_model.recording import episode as episode_module
from world_model.recording import game as game_module
from world_model.recording import record as record_module
from world_model.recording.game import AtariGame
from world_model.recording.policy import CoveringPolicy
from world_model.recording.record import RecordConfig, record, replay

pytest.importorskip("ale_py")


def config(output: Path, **changes: object) -> RecordConfig:
    tiny = RecordConfig(
        env="ALE/Boxing-v5",
        output=str(output),
        train_episodes=2,
        validation_episodes=1,
        test_episodes=0,
        frames_per_episode=20,
        min_frames=5,
        size=32,
        warmup=3,
        seed=7,
    )
    return dataclasses.replace(tiny, **changes)


class FrameKeeper(VideoWriter):
    """Also keeps the frames before compression: the encoder itself is not always deterministic."""

    kept: ClassVar[dict[Path, list[np.ndarray]]] = {}

    def __init__(self, path: Path, **settings: Any) -> None:
        super().__init__(path, **settings)
        self.kept[self.path] = []

    def write(self, frames: np.ndarray) -> None:
        self.kept[self.path].append(frames.copy())
        super().write(frames)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> RecordConfig:
    cfg = config(tmp_path_factory.mktemp("boxing"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(episode_module, "VideoWriter", FrameKeeper)
        record(cfg, show_progress=False)
    return cfg


def test_each_split_has_its_own_episodes(recorded: RecordConfig) -> None:
    train = find_episodes(Path(recorded.output) / "train")
    validation = find_episodes(Path(recorded.output) / "validation")
    assert [episode.path.name for episode in train] == ["episode_00000.mp4", "episode_00001.mp4"]
    assert len(validation) == 1 and not (Path(recorded.output) / "test").exists()
    assert len({episode.meta["seed"] for episode in train + validation}) == 3
    assert not any(path.name.startswith(".") for path in Path(recorded.output).rglob("*"))


def test_an_episode_documents_how_it_was_made(recorded: RecordConfig) -> None:
    episode = find_episodes(Path(recorded.output) / "train")[0]
    meta = episode.meta
    assert meta["environment"] == "ALE/Boxing-v5" and meta["num_frames"] == episode.num_frames == 20
    assert (meta["frame_skip"], meta["sticky_actions"], meta["fps"], meta["size"]) == (2, 0.0, 30.0, 32)
    assert meta["action_space"]["kind"] == "discrete" and meta["action_space"]["size"] == 18
    assert meta["action_space"]["meanings"][:3] == ["NOOP", "FIRE", "UP"]
    assert episode.actions.dtype == np.int64 and episode.actions[0] == 0


def test_replaying_the_actions_gives_the_video(recorded: RecordConfig) -> None:
    """actions[i] led from frame i-1 to frame i; actions shifted by one fail this test."""
    episode = find_episodes(Path(recorded.output) / "train")[1]
    replayed = replay(episode.meta, episode.actions.tolist()).astype(int)
    video = read_frames(episode.path).astype(int)
    assert video.shape == replayed.shape == (20, 32, 32, 3)
    assert np.abs(video - replayed).mean() < 3
    other = replay(episode.meta, [*episode.actions[:10].tolist(), *[2] * 10]).astype(int)
    assert np.array_equal(other[:10], replayed[:10]) and not np.array_equal(other[10:], replayed[10:])
    with pytest.raises(ValueError, match="sticky_actions must be 0, got 0.1; such a game can't be played again"):
        replay({**episode.meta, "recipe": {**episode.meta["recipe"], "sticky_actions": 0.1}}, [0, 0])


def test_recording_again_keeps_complete_episodes(recorded: RecordConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_module, "record_episode", lambda *_: pytest.fail("nothing is missing"))
    record(recorded, show_progress=False)


def test_an_interrupted_recording_ends_like_an_uninterrupted_one(
    recorded: RecordConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = config(tmp_path)
    real, calls = episode_module.save_episode_files, []

    def interrupted(*args: object) -> None:
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(*args)

    monkeypatch.setattr(episode_module, "VideoWriter", FrameKeeper)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(episode_module, "save_episode_files", interrupted)
        record(cfg, show_progress=False)
    record(cfg, show_progress=False)
    for split in ("train", "validation"):
        again, once = find_episodes(tmp_path / split), find_episodes(Path(recorded.output) / split)
        assert len(again) == len(once)
        for ours, theirs in zip(again, once, strict=True):
            np.testing.assert_array_equal(ours.actions, theirs.actions)
            np.testing.assert_array_equal(*(np.concatenate(FrameKeeper.kept[ep.path]) for ep in (ours, theirs)))
            assert np.abs(read_frames(ours.path).astype(int) - read_frames(theirs.path)).mean() < 1


def test_a_folder_recorded_with_other_settings_is_refused(recorded: RecordConfig) -> None:
    with pytest.raises(ValueError, match=r"frame_skip=2, not 3; choose another output"):
        record(config(Path(recorded.output), frame_skip=3), show_progress=False)
    with pytest.raises(ValueError, match=r"more episodes than the 1 asked for"):
        record(config(Path(recorded.output), train_episodes=1), show_progress=False)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-16] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("suffix", [".mp4", ".actions.npy"])
@pytest.mark.parametrize("damage", [Path.unlink, cut, flip])
def test_a_damaged_episode_is_recorded_again(
    recorded: RecordConfig, tmp_path: Path, suffix: str, damage: Callable[[Path], object]
) -> None:
    """It said that everything was recorded."""
    cfg = dataclasses.replace(recorded, output=str(shutil.copytree(recorded.output, tmp_path / "copy")))
    file = (tmp_path / "copy" / "train" / "episode_00000.mp4").with_suffix(suffix)
    damage(file)
    record(cfg, show_progress=False)
    ours, theirs = find_episodes(tmp_path / "copy" / "train"), find_episodes(Path(recorded.output) / "train")
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one.actions, other.actions)
        assert np.abs(read_frames(one.path).astype(int) - read_frames(other.path)).mean() < 1


def test_an_episode_from_before_digests_is_checked_by_its_frames(recorded: RecordConfig, tmp_path: Path) -> None:
    cfg = dataclasses.replace(recorded, output=str(shutil.copytree(recorded.output, tmp_path / "copy")))
    path = tmp_path / "copy" / "train" / "episode_00000.mp4"
    meta = json.loads(path.with_suffix(".json").read_text())
    del meta["video_sha256"], meta["actions_sha256"]
    path.with_suffix(".json").write_text(json.dumps(meta))
    intact = path.read_bytes()
    record(cfg, show_progress=False)
    assert path.read_bytes() == intact
    write_video(path, np.zeros((3, 32, 32, 3), np.uint8), fps=30)
    record(cfg, show_progress=False)
    assert len(read_frames(path)) == 20


def test_a_recording_whose_json_is_damaged_is_named(recorded: RecordConfig, tmp_path: Path) -> None:
    cfg = dataclasses.replace(recorded, output=str(shutil.copytree(recorded.output, tmp_path / "copy")))
    (tmp_path / "copy" / "train" / "episode_00000.json").write_text("{}")
    with pytest.raises(ValueError, match=r"episode_00000\.json must have the recipe and num_frames .*; restore it"):
        record(cfg, show_progress=False)


class SeeingPolicy:
    """Its actions depend on the frame it is given."""

    def __init__(self, env: Any, hold: tuple[int, int], rng: np.random.Generator) -> None:
        self.num_actions = int(env.action_space.n)

    def __call__(self, frame: np.ndarray) -> int:
        assert frame.dtype == np.uint8 and frame.shape == (210, 160, 3)
        return int(frame.sum()) % self.num_actions


def test_a_policy_sees_the_frame_before_its_action(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []
    real = game_module.AtariGame.step
    monkeypatch.setattr(
        game_module.AtariGame, "step", lambda game, action: shown.append(real(game, action)) or shown[-1]
    )
    cfg = config(tmp_path, train_episodes=1, validation_episodes=0, warmup=1)
    record(cfg, policy=SeeingPolicy, show_progress=False)
    episode = find_episodes(tmp_path / "train")[0]
    shown = shown[-20:]  # before, the policy was asked for one action, to see whether it is one of the game's
    assert episode.actions.tolist() == [0, *(int(played.frame.sum()) % 18 for played in shown[:-1])]
    assert len(set(episode.actions.tolist())) > 2


def test_episodes_of_two_policies_do_not_mix(recorded: RecordConfig, tmp_path: Path) -> None:
    cfg = config(tmp_path, train_episodes=1, validation_episodes=0)
    record(cfg, policy=SeeingPolicy, show_progress=False)
    assert find_episodes(tmp_path / "train")[0].meta["policy"] == "SeeingPolicy"
    record(cfg, policy=SeeingPolicy, show_progress=False)  # nothing is missing
    with pytest.raises(ValueError, match="policy='SeeingPolicy', not 'covering'"):
        record(cfg, show_progress=False)
    with pytest.raises(ValueError, match="policy='covering', not 'SeeingPolicy'"):
        record(recorded, policy=SeeingPolicy, show_progress=False)


def test_an_unknown_game_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"env must be one of .*ALE/Nonesuch-v5"):
        record(config(tmp_path, env="ALE/Nonesuch-v5"), show_progress=False)


class ShortGame:
    """The part of an environment that recording uses; its games end after 4, 9, 4, 9 ... steps."""

    def __init__(self) -> None:
        self.games, self.left = 0, 0
        self.action_space = Discrete(2)
        self.unwrapped = self

    def get_action_meanings(self) -> list[str]:
        return ["NOOP", "FIRE"]

    def reset(self, seed: int) -> tuple[np.ndarray, dict[str, object]]:
        self.games += 1
        self.left = 4 if self.games % 2 else 9
        return np.zeros((16, 16, 3), np.uint8), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, object]]:
        self.left -= 1
        return np.zeros((16, 16, 3), np.uint8), 0.0, self.left == 0, False, {}

    def close(self) -> None:
        pass


def test_a_file_is_one_uninterrupted_game_and_short_games_are_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(game_module, "make_env", lambda *_, **__: ShortGame())
    cfg = config(tmp_path, frame_skip=1, warmup=0, size=16, min_frames=6, validation_episodes=0)
    record(cfg, show_progress=False)
    episodes = find_episodes(tmp_path / "train")
    assert [episode.num_frames for episode in episodes] == [10, 10, 10, 10]  # 40 frames were asked for


def test_policy_takes_all_actions_equally_often_and_holds_them() -> None:
    policy = CoveringPolicy(5, (2, 4), np.random.default_rng(0))
    actions = np.array([policy() for _ in range(3000)])
    assert np.bincount(actions, minlength=5) == pytest.approx(600, rel=0.1)
    changes = np.flatnonzero(np.diff(actions)) + 1
    assert np.diff(changes).min() >= 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frame_skip": 0}, "frame_skip must be at least 1, got 0"),
        ({"hold": (5, 2)}, "hold must be"),
        ({"sticky_actions": 1.0}, "sticky_actions must be in"),
        ({"min_frames": 50}, "min_frames must be at most frames_per_episode"),
        ({"fps": 0.0}, "fps must be above 0"),
    ],
)
def test_config_mistakes_are_named(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **changes)


def test_rewards_are_the_scores_between_frames(tmp_path: Path) -> None:
    """The sum of an episode's rewards is the game's score, which the emulator keeps in two bytes of its memory."""
    cfg = config(tmp_path, train_episodes=1, validation_episodes=0, frames_per_episode=600, warmup=0)
    record(cfg, policy=PunchingPolicy, show_progress=False)
    episode = find_episodes(tmp_path / "train")[0]
    assert episode.rewards is not None and episode.rewards.dtype == np.float32
    assert episode.rewards.shape == episode.actions.shape and episode.rewards[0] == 0
    with AtariGame("ALE/Boxing-v5", frame_skip=2, warmup=0, sticky_actions=0.0, minimal_actions=True) as game:
        remaining = iter(episode.actions[1:].tolist())
        scores = []
        for _ in game.play(lambda _: next(remaining), seed=episode.meta["seed"], frames=600):
            player, opponent = (int(f"{game.env.unwrapped.ale.getRAM()[place]:x}") for place in (18, 19))
            scores.append(player - opponent)
    assert len(set(scores)) > 2
    assert np.cumsum(episode.rewards).tolist() == scores
    assert (episode.terminated, episode.meta["truncated"]) == (False, True)


class PunchingPolicy:
    """Walks to the opponent and punches."""

    def __init__(self, env: Any, hold: tuple[int, int], rng: np.random.Generator) -> None:
        self.calls = 0

    def __call__(self, frame: np.ndarray) -> int:
        self.calls += 1
        return (8, 1)[self.calls % 2] if self.calls < 300 else (16, 3, 1)[self.calls % 3]  # down and right, punch


def test_an_episode_may_end_where_a_life_is_lost(tmp_path: Path) -> None:
    cfg = config(
        tmp_path, env="ALE/Breakout-v5", train_episodes=1, validation_episodes=0, frames_per_episode=500,
        end_on_life_loss=True,
    )  # fmt: skip
    record(cfg, show_progress=False)
    episodes = find_episodes(tmp_path / "train")
    assert len(episodes) > 1
    assert [episode.terminated for episode in episodes[:-1]] == [True] * (len(episodes) - 1)
    assert all(episode.num_frames < 500 for episode in episodes if episode.terminated)


def test_lost_and_changed_rewards_are_recorded_again(recorded: RecordConfig, tmp_path: Path) -> None:
    shutil.copytree(recorded.output, tmp_path / "copy")
    cfg = config(tmp_path / "copy")
    first, second = find_episodes(tmp_path / "copy" / "train")[:2]
    rewards_path(first.path).unlink()
    np.save(rewards_path(second.path), second.rewards + 1)
    record(cfg, show_progress=False)
    for before, again in zip((first, second), find_episodes(tmp_path / "copy" / "train"), strict=False):
        np.testing.assert_array_equal(again.rewards, before.rewards)
