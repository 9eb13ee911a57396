"""The real game beside the imagined one starts where its prompt ends, if that can be, and goes back with it."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from vidtok_plugin.video.episodes import load_episode
from vidtok_plugin.video.reading import read_frames
from world_model.play.real_game import EARLIER_ACTIONS, RealGame
from world_model.play.scenes import ActionSpace, Prompt, load_scenes
from world_model.recording.record import RecordConfig, record


@pytest.fixture(scope="module")
def prompt(tmp_path_factory: pytest.TempPathFactory) -> Prompt:
    """A recorded start of Boxing, at 16 x 16 pixels."""
    pytest.importorskip("ale_py")
    folder = tmp_path_factory.mktemp("recorded")
    splits = {"train_episodes": 1, "validation_episodes": 0, "test_episodes": 0}
    lengths = {"frames_per_episode": 41, "min_frames": 2, "size": 16, "warmup": 3}
    record(RecordConfig(env="ALE/Boxing-v5", output=str(folder), **splits, **lengths), show_progress=False)
    episode = load_episode(folder / "train" / "episode_00000.mp4")
    actions = torch.from_numpy(episode.actions)[None, :41]
    return Prompt(
        name="recorded", frames=read_frames(episode.path, range(41)), actions=actions, fps=30, meta=episode.meta
    )


def scenes_of(prompt: Prompt, meanings: list[str] | None = None) -> Any:
    names = meanings or prompt.meta["action_space"]["meanings"]
    return SimpleNamespace(step_frames=4, actions=ActionSpace(kind="discrete", size=len(names), meanings=names))


def test_a_prompt_with_its_recipe_is_played_up_to_its_last_picture(prompt: Prompt) -> None:
    game = RealGame(scenes_of(prompt), prompt, seed=5)
    assert game.replayed and game.first.frames.shape == (4, 16, 16, 3)
    assert np.abs(game.first.frames.astype(int) - prompt.frames[-4:]).mean() < 3  # H.264
    game.close()


def test_a_prompt_from_the_middle_of_an_episode_has_the_actions_before_it(prompt: Prompt) -> None:
    assert prompt.actions is not None
    earlier, actions = prompt.actions[0, :28].tolist(), prompt.actions[:, 28:]
    cut = replace(prompt, frames=prompt.frames[28:], actions=actions, meta={**prompt.meta, EARLIER_ACTIONS: earlier})
    whole, later = (RealGame(scenes_of(prompt), one, seed=5) for one in (prompt, cut))
    assert later.replayed and np.array_equal(later.first.frames, whole.first.frames)
    for game in (whole, later):
        game.close()


@pytest.mark.parametrize("earlier", ["3, 4", [0, 18], [0, "UP"]])
def test_wrong_earlier_actions_are_refused(prompt: Prompt, earlier: object) -> None:
    with pytest.raises(ValueError, match="actions? must be"):
        RealGame(scenes_of(prompt), replace(prompt, meta={**prompt.meta, EARLIER_ACTIONS: earlier}), seed=5)


def test_other_prompts_start_a_new_game(prompt: Prompt) -> None:
    meta = {name: value for name, value in prompt.meta.items() if name != "recipe"}
    game = RealGame(scenes_of(prompt), replace(prompt, meta=meta), seed=5)
    assert not game.replayed and (game.first.frames == game.first.frames[:1]).all()
    game.close()


def test_the_game_goes_back_and_on_differently(prompt: Prompt) -> None:
    game = RealGame(scenes_of(prompt), prompt, seed=5)
    right, left = prompt.meta["action_space"]["meanings"].index("RIGHT"), 4
    once = [game.step([right] * 4) for _ in range(5)]
    game.go_to(game.first)
    other = [game.step([left] * 4) for _ in range(5)]
    assert not np.array_equal(other[-1].frames, once[-1].frames)
    game.go_to(once[1])
    again = game.step([right] * 4)
    np.testing.assert_array_equal(again.frames, once[2].frames)
    assert again.score == once[2].score and not again.over
    game.close()


@pytest.mark.parametrize(
    ("meta", "meanings", "reason"),
    [
        ({}, None, "names no environment"),
        ({"environment": "CartPole-v1"}, None, "CartPole-v1 is not an Atari game"),
        ({"environment": "ALE/Boxin-v5"}, None, "env must be one of gymnasium's Atari games"),
        ({"environment": "ALE/Boxing-v5"}, ["NOOP", "JUMP"], "has other actions than this world"),
    ],
)
def test_a_reason_says_why_there_is_none(
    prompt: Prompt, meta: dict[str, Any], meanings: list[str] | None, reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        RealGame(scenes_of(prompt, meanings), replace(prompt, meta=meta), seed=0)


def test_without_the_emulator_the_reason_names_it(prompt: Prompt, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "ale_py", None)
    with pytest.raises(ValueError, match="Playing Atari needs ale_py, which is not installed"):
        RealGame(scenes_of(prompt), prompt, seed=0)


def test_the_end_of_the_game_stays(prompt: Prompt) -> None:
    game = RealGame(scenes_of(prompt), prompt, seed=5)
    game._over = True
    step = game.step([3] * 4)
    assert step.over and step.reward == 0 and (step.frames == step.frames[:1]).all()
    game.close()


def test_the_shipped_prompts_are_replayed() -> None:
    pytest.importorskip("ale_py")
    scenes = load_scenes("boxing")
    prompt = scenes.prompts[-1]  # the one from furthest into its episode
    game = RealGame(scenes, prompt, seed=5)
    assert game.replayed and len(prompt.meta[EARLIER_ACTIONS]) > 1000
    shown = game.first.frames.astype(int)
    error, other_error = (np.abs(shown - frames).mean() for frames in (prompt.frames[-4:], prompt.frames[-5:-1]))
    assert error < 0.7 and error < 0.8 * other_error  # RGB to YUV rounds
    game.close()
