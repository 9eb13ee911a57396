"""Policies for any action space cover it, and those that stable-baselines3 saved act as they were trained."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import Space, spaces

from vidtok_plugin.video import RecordedEpisode, find_episodes
from world_model.recording.policy import STRATA, HeldPolicy, covering_draw
from world_model.recording.record import RecordConfig, record


def drawn(space: Space[Any], count: int) -> list[Any]:
    draw = covering_draw(space, np.random.default_rng(0))
    actions = [draw() for _ in range(count)]
    assert all(space.contains(action) for action in actions)
    return actions


@pytest.mark.parametrize("space", [spaces.Discrete(5, start=-2), spaces.MultiDiscrete([5, 5], start=[3, 0])])
def test_choices_come_equally_often(space: Space[Any]) -> None:
    for choices in np.reshape(drawn(space, 50), (50, -1)).T:
        assert np.unique(choices, return_counts=True)[1].tolist() == [10] * 5


def test_continuous_components_come_from_every_interval() -> None:
    """Bounded to both sides, above, below, and not at all; a component's order says nothing of another's."""
    low, high = np.array([-1, 2, -np.inf, -np.inf, -1]), np.array([3, np.inf, 5, np.inf, 3])
    values = np.stack(drawn(spaces.Box(low, high, dtype=np.float64), 100 * STRATA))
    both, above, below, free, again = values.T
    assert np.histogram(both, STRATA, (-1, 3))[0].tolist() == [100] * STRATA
    assert above.min() >= 2 and below.max() <= 5
    np.testing.assert_allclose([(above - 2).mean(), (5 - below).mean()], 1, atol=0.05)
    np.testing.assert_allclose([free.mean(), free.std()], [0, 1], atol=0.05)
    assert abs(np.corrcoef(both, again)[0, 1]) < 0.1


def test_whole_numbers_reach_both_bounds() -> None:
    values = np.stack(drawn(spaces.Box(0, 3, (1,), np.uint8), 400))
    counts = np.bincount(values.ravel())
    assert len(counts) == 4 and counts.min() > 80


def test_the_parts_of_a_nested_space_are_independent() -> None:
    space = spaces.Dict({"keys": spaces.MultiBinary(2), "more": spaces.Tuple([spaces.Discrete(2)])})
    seen = {(*action["keys"].tolist(), int(action["more"][0])) for action in drawn(space, 100)}
    assert len(seen) == 8
    with pytest.raises(ValueError, match="policy covering takes Discrete, .* got Text"):
        covering_draw(spaces.Text(3), np.random.default_rng(0))


def test_actions_are_held() -> None:
    numbers = iter(range(1000))
    policy = HeldPolicy(lambda: next(numbers), (2, 4), np.random.default_rng(0))
    lengths = np.bincount([policy() for _ in range(900)])[:-1]
    assert set(lengths.tolist()) == {2, 3, 4}


def config(output: Path, policy: Path, game: dict[str, Any]) -> RecordConfig:
    return RecordConfig(
        env="toy_envs:toy/Ball-v0",
        output=str(output),
        policy=str(policy),
        size=16,
        env_kwargs=game,
        train_episodes=1,
        validation_episodes=0,
        test_episodes=0,
        frames_per_episode=9,
        min_frames=2,
    )


def saved(name: str, path: Path, policy: str = "MlpPolicy", **game: Any) -> Any:
    """A model of stable-baselines3 with random weights for the toy environment."""
    baselines = pytest.importorskip("stable_baselines3")
    import gymnasium

    network: dict[str, Any] = {"policy_kwargs": {"net_arch": [8]}, "seed": 0, "device": "cpu"}
    buffer = {} if name == "PPO" else {"buffer_size": 10}
    model = getattr(baselines, name)(
        policy, gymnasium.make("toy_envs:toy/Ball-v0", disable_env_checker=True, **game), **network, **buffer
    )
    model.save(path)
    return model


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algorithm", "actions"), [("PPO", "box"), ("PPO", "choices"), ("SAC", "box"), ("TD3", "box"), ("DQN", "few")]
)
def test_a_saved_policy_plays_as_it_predicts(tmp_path: Path, algorithm: str, actions: str) -> None:
    game = {"actions": actions}
    model = saved(algorithm, tmp_path / "policy.zip", **game)
    episodes = []
    for name in ("a", "b"):
        record(config(tmp_path / name, tmp_path / "policy.zip", game), show_progress=False)
        episodes += find_episodes(tmp_path / name)
    episode = episodes[0]
    assert isinstance(episode, RecordedEpisode) and episode.state is not None
    expected = [model.predict(place, deterministic=True)[0] for place in episode.state[:-1]]
    np.testing.assert_allclose(episode.actions[1:], expected, atol=1e-5)
    np.testing.assert_array_equal(episode.actions, episodes[1].actions)
    assert episode.meta["policy"].startswith("policy.zip ")


@pytest.mark.slow
def test_a_policy_that_does_not_fit_is_named(tmp_path: Path) -> None:
    path = tmp_path / "policy.zip"
    saved("PPO", path)
    with pytest.raises(ValueError, match=r"policy\.zip must have the environment's action space Discrete\(3.*got Box"):
        record(config(tmp_path / "a", path, {"actions": "choice"}), show_progress=False)
    with pytest.raises(ValueError, match=r"the environment's observation space Dict\(.*got Box.*; record the"):
        record(config(tmp_path / "a", path, {"observations": "both"}), show_progress=False)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"policy .*policy\.zip cannot be loaded .*; save it again with model\.save"):
        record(config(tmp_path / "a", path, {}), show_progress=False)
    assert not (tmp_path / "a").exists()


@pytest.mark.slow
def test_a_policy_without_its_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    (tmp_path / "policy.zip").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "stable_baselines3.common.save_util", None)
    with pytest.raises(ValueError, match="needs stable-baselines3, which is not installed; run: pip install"):
        record(config(tmp_path / "a", tmp_path / "policy.zip", {}), show_progress=False)
