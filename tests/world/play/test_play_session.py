"""A game goes on, back, and on differently, within bounded memory."""

from pathlib import Path

import numpy as np
import pytest
import torch
from play_clients import tiny_scenes
from recordings import write_episode
from video_files import written_as
from world_models import save_tiny_world

from vidtok_plugin.video.episodes import find_episodes
from vidtok_plugin.video.reading import read_frames
from world_model.play import session as session_module
from world_model.play.saving import recording_of, save_recording
from world_model.play.scenes import ActionSpace, Scenes, load_scenes
from world_model.play.session import Input, PlaySession
from world_model.play.timeline import Moment


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Scenes:
    return tiny_scenes(tmp_path_factory.mktemp("world"))


def go(session: PlaySession, actions: list[int]) -> list[Moment]:
    """Advance under one held action a step."""
    moments = []
    for i, action in enumerate(actions):
        session.hold(Input(action, i + 1))
        moments.append(session.advance())
    return moments


def pictures(moments: list[Moment]) -> np.ndarray:
    return np.stack([moment.frames for moment in moments])


def test_a_world_folder_says_what_can_be_played(scenes: Scenes) -> None:
    assert scenes.name == "toy" and [prompt.name for prompt in scenes.prompts] == ["prompt_0", "prompt_1"]
    assert scenes.actions == ActionSpace(kind="discrete", size=3, meanings=["noop", "left", "right"])
    assert all(prompt.frames.shape == (13, 16, 16, 3) for prompt in scenes.prompts) and not scenes.guidable


def test_prompts_of_another_folder_and_what_does_not_fit(tmp_path: Path) -> None:
    world = save_tiny_world(tmp_path / "world")
    with pytest.raises(FileNotFoundError, match="has no prompts"):
        load_scenes(world, device="cpu")
    write_episode(tmp_path / "own" / "one.mp4", 7)
    assert len(load_scenes(world, tmp_path / "own", device="cpu").prompts[0].frames) == 5
    write_episode(tmp_path / "large" / "two.mp4", 13, size=24)
    with pytest.raises(ValueError, match=r"play: prompt two: the prompt must be 16 x 16 pixels .* got 24 x 24"):
        load_scenes(world, tmp_path / "large", device="cpu")


def test_the_held_action_is_that_of_all_frames(scenes: Scenes) -> None:
    session = PlaySession(scenes)
    first, second = go(session, [2, 1])
    assert first.actions is not None and first.actions.tolist() == [2] * 4
    assert second.actions is not None and second.actions.tolist() == [1] * 4
    still_held = session.advance().actions
    assert still_held is not None and still_held.tolist() == [1] * 4


def test_a_key_that_was_tapped_between_two_steps_counts(scenes: Scenes) -> None:
    session = PlaySession(scenes)
    session.hold(Input(2, 1))
    session.hold(Input(0, 2))
    tapped, after = session.advance(), session.advance()
    assert tapped.actions is not None and tapped.actions.tolist() == [2, 2, 0, 0]
    assert after.actions is not None and after.actions.tolist() == [0] * 4
    assert session.held.id == 2


def test_rewinding_gives_back_the_moment_and_going_on_equally_gives_the_same_frames(scenes: Scenes) -> None:
    session = PlaySession(scenes)
    moments = go(session, [1, 2, 0, 1, 1])
    back = session.rewind(moments[1].id)
    assert back is moments[1] and session.timeline.cursor is back
    np.testing.assert_array_equal(pictures(go(session, [0, 1, 1])), pictures(moments[2:]))


def test_going_on_differently_begins_a_branch(scenes: Scenes) -> None:
    session = PlaySession(scenes)
    moments = go(session, [1, 1, 1])
    assert not session.branched and session.timeline.live.id == 0
    session.rewind(moments[0].id)
    others = go(session, [2, 2])
    assert session.timeline.live.id == 1 and session.timeline.live.parent == 0
    assert [moment.id for moment in session.timeline.path] == [0, moments[0].id, *(moment.id for moment in others)]
    assert session.timeline.resumable == [0, 1, 4, 5]
    with pytest.raises(ValueError, match="moment 2 is too long ago, or of another branch"):
        session.rewind(2)
    assert session.switch(0) is moments[-1]
    straight = PlaySession(scenes)
    np.testing.assert_array_equal(pictures(go(session, [0])), pictures(go(straight, [1, 1, 1, 0])[-1:]))
    with pytest.raises(ValueError, match="branch 7 is not kept"):
        session.switch(7)


def test_moments_branches_and_history_are_bounded(scenes: Scenes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "MOMENTS", 12)
    monkeypatch.setattr(session_module, "BRANCHES", 3)
    monkeypatch.setattr(session_module, "HISTORY_BYTES", 20 * 4 * 16 * 16 * 3)
    session = PlaySession(scenes)
    made = [session.timeline.cursor]
    for _ in range(5):
        made += go(session, [1] * 5)
        session.rewind(session.timeline.resumable[-3])
    assert len(session.timeline.branches) == 3
    assert sum(moment.resume is not None for moment in made) <= 12 + 3
    assert len(session.timeline.live.path) <= 20
    assert all(branch.tip.resume is not None for branch in session.timeline.branches)
    oldest = session.timeline.branches[0].id
    session.switch(oldest)  # a branch's newest moment can always be gone back to
    session.advance()


def test_a_reset_starts_again_with_other_numbers(scenes: Scenes) -> None:
    session = PlaySession(scenes)
    first = go(session, [1, 1, 1, 1])
    session.reset()
    assert len(session.timeline.path) == 1 and session.prompt == 0
    assert not np.array_equal(pictures(go(session, [1, 1, 1, 1])), pictures(first))
    session.reset(1)
    assert session.prompt == 1
    with pytest.raises(ValueError, match=r"prompt must be in 0\.\.1, got 2"):
        session.reset(2)


def test_the_held_action_stays_after_a_reset(scenes: Scenes) -> None:
    """What the page held between asking for a reset and the reset itself was lost."""
    session = PlaySession(scenes)
    go(session, [1])
    for id, action in enumerate((0, 2), 2):
        session.hold(Input(action, id))
    session.reset()
    moment = session.advance()
    assert moment.actions is not None and moment.actions.tolist() == [2] * 4


def test_settings_hold_from_the_next_step_on_and_after_a_rewind(scenes: Scenes) -> None:
    session = PlaySession(scenes)
    moments = go(session, [1, 1, 1])
    session.set_sampler(temperature=0.0, guidance=1.0)
    greedy = go(session, [1, 1])
    session.rewind(moments[-1].id)
    assert session.live.sampler.temperature == 0
    np.testing.assert_array_equal(pictures(go(session, [1, 1])), pictures(greedy))
    with pytest.raises(ValueError, match="guidance must be 1"):
        session.set_sampler(temperature=1.0, guidance=2.0)


def test_a_game_that_is_over_goes_back_but_not_on(scenes: Scenes) -> None:
    session = PlaySession(scenes)
    moments = go(session, [1, 1])
    moments[-1].terminated = True
    with pytest.raises(ValueError, match="the game is over"):
        session.advance()
    session.rewind(moments[0].id)
    session.advance()


def test_a_saved_game_is_an_episode(scenes: Scenes, tmp_path: Path) -> None:
    session = PlaySession(scenes)
    moments = go(session, [1, 2])
    session.rewind(moments[0].id)
    moments[1:] = go(session, [0, 2])
    video = save_recording(recording_of(session), tmp_path / "saved")
    (episode,) = find_episodes(tmp_path / "saved")
    prompt = scenes.prompts[0]
    assert video.name == "played_00000.mp4" and episode.num_frames == 13 + 3 * 4
    assert prompt.actions is not None
    assert episode.actions.tolist() == [*prompt.actions[0].tolist(), *[1] * 4, *[0] * 4, *[2] * 4]
    assert episode.meta["imagined"]["prompt_frames"] == 13 and episode.meta["action_space"]["size"] == 3
    assert written_as(video)[0] == "yuv444p"  # an episode to learn from
    written = read_frames(video, range(25)).astype(int)
    expected = np.concatenate([prompt.frames, *(moment.frames for moment in moments)])
    assert np.abs(written - expected).mean() < 12  # of noise, which H.264 blurs
    assert save_recording(recording_of(session), tmp_path / "saved").name == "played_00001.mp4"


def test_a_long_game_saves_its_newest_part(scenes: Scenes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "HISTORY_BYTES", 0)
    monkeypatch.setattr(session_module, "MOMENTS", 4)
    session = PlaySession(scenes)
    go(session, [1] * 6)
    recording = recording_of(session)
    assert recording.meta["num_frames"] == 16 and recording.meta["imagined"]["prompt_frames"] == 0
    assert recording.actions is not None and recording.actions.tolist() == [1] * 16


def test_there_is_a_reason_where_there_is_no_real_game(scenes: Scenes) -> None:
    session = PlaySession(scenes)
    assert session.real is None and session.no_real == "The prompt's JSON names no environment."
    assert session.timeline.cursor.real is None


@pytest.mark.slow
def test_worlds_of_other_actions_are_played(tmp_path: Path) -> None:
    from dataclasses import replace

    from recordings import tiny_adapter
    from world_models import CONFIG, random_model

    from vidtok_plugin.video.episodes import save_episode_files
    from vidtok_plugin.video.writing import write_video
    from world_model.actions import ActionSpec

    adapter = tiny_adapter()
    for kind, size in (("continuous", 2), ("none", 0)):
        spec = ActionSpec(kind=kind, size=size)  # type: ignore[arg-type]
        assert CONFIG.tokens is not None
        tokens = replace(CONFIG.tokens, width=2, temporal_factor=4, actions=spec)
        model, folder = random_model(replace(CONFIG, tokens=tokens)), tmp_path / kind
        model.save_pretrained(folder, adapter)
        frames = np.random.default_rng(0).integers(0, 256, (9, 16, 16, 3), dtype=np.uint8)
        (folder / "prompts").mkdir()
        write_video(folder / "prompts" / "one.mp4", frames, fps=30)
        if kind == "continuous":
            acts = np.full((9, 2), [0.5, -3.0], dtype=np.float32)
            save_episode_files(folder / "prompts" / "one.mp4", acts, {"fps": 30})
        session = PlaySession(load_scenes(folder, device="cpu"))
        assert session.scenes.actions.high == ([1.0, 3.0] if kind == "continuous" else ())
        if kind == "continuous":
            session.hold(Input((0.25, 2.0), 1))
        moment = session.advance()
        assert (moment.actions is None) == (kind == "none")
        if moment.actions is not None:
            assert moment.actions.dtype == np.float32 and moment.actions.tolist() == [[0.25, 2.0]] * 4
        recording = recording_of(session)
        assert sum(map(len, recording.frames)) == 13 and torch.isfinite(session.live.frames).all()
