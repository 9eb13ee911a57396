"""Action spaces are described in JSON, and their actions are flat vectors in gymnasium's own order."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import Space, spaces
from recordings import write_episode

from vidtok_plugin import open_episodes
from vidtok_plugin.video.action_space import components, kind_and_size, wrong_value
from vidtok_plugin.video.episodes import actions_path, load_episode
from world_model import describe_space, flatten_action, unflatten_action
from world_model.action_spaces import space_of

KEYBOARD_AND_MOUSE = {
    "type": "Dict",
    "spaces": [
        ["keys", {"type": "MultiBinary", "shape": [3]}],
        ["mouse", {"type": "Box", "shape": [2], "low": -10, "high": [10, 20.5]}],
    ],
}
NESTED = spaces.Dict(
    {
        "wheel": spaces.Box(np.float32([-1, -np.inf]), np.float32([1, 2])),
        "keys": spaces.MultiBinary((2, 2)),
        "gear": spaces.Discrete(5, start=-1),
        "rest": spaces.Tuple(
            [
                spaces.MultiDiscrete([[2, 3], [4, 5]], start=np.array([[0, 1], [0, -2]])),
                spaces.Box(0, 9, (2, 1), np.int16),
            ]
        ),
    }
)
SPACES: dict[str, tuple[Space[Any], str, int]] = {
    "nested": (NESTED, "mixed", 13),
    "dict in its own order": (spaces.Dict([("b", spaces.Discrete(3)), ("a", spaces.Box(-1, 1, (2,)))]), "mixed", 3),
    "choice": (spaces.Discrete(4, start=2), "discrete", 4),
    "choices": (spaces.MultiDiscrete([3, 4]), "mixed", 2),
    "keys": (spaces.MultiBinary(5), "mixed", 5),
    "single number": (spaces.Box(-2, 2, ()), "continuous", 1),
    "several boxes": (spaces.Tuple([spaces.Box(-1, 1, (2,)), spaces.Box(0, 1, (3,))]), "continuous", 5),
    "unbounded": (spaces.Box(-np.inf, np.inf, (2, 3), np.float64), "continuous", 6),
}


def one_hot(flat: np.ndarray, description: dict[str, Any]) -> np.ndarray:
    """A flat action as gymnasium flattens it: each choice as a one-hot vector, keys as they are."""
    found: list[float] = []
    for value, component in zip(flat, components(description), strict=True):
        binary = component.choices == 2 and "keys" in component.name
        found += [value] if binary or not component.choices else np.eye(component.choices)[int(value)].tolist()
    return np.array(found)


@pytest.mark.parametrize("name", SPACES)
def test_actions_are_flattened_in_gymnasiums_order(name: str) -> None:
    space, kind, size = SPACES[name]
    described = json.loads(json.dumps(describe_space(space)))
    assert space_of(described) == space
    assert kind_and_size(described) == (kind, size)
    space.seed(0)
    for _ in range(3):
        action = space.sample()
        flat = flatten_action(described, action)
        assert flat.dtype == np.float32 and flat.shape == (len(components(described)),)
        if not isinstance(space, spaces.MultiBinary):
            np.testing.assert_allclose(one_hot(flat, described), spaces.flatten(space, action), rtol=1e-6)
        back = unflatten_action(described, flat)
        assert back in space
        np.testing.assert_allclose(spaces.flatten(space, back), spaces.flatten(space, action), rtol=1e-6)


def test_components_say_where_they_are() -> None:
    names = [component.name for component in components(describe_space(NESTED))]
    assert names[:5] == ["gear", "keys[0,0]", "keys[0,1]", "keys[1,0]", "keys[1,1]"]  # a plain Dict is sorted by key
    assert names[5:7] == ["rest[0][0,0]", "rest[0][0,1]"] and names[-2:] == ["wheel[0]", "wheel[1]"]
    mouse = components(KEYBOARD_AND_MOUSE)[3:]
    assert [(part.low, part.high, part.choices) for part in mouse] == [(-10, 10, 0), (-10, 20.5, 0)]


@pytest.mark.parametrize(
    ("action", "problem"),
    [
        ({"keys": [0, 1, 2], "mouse": [0, 0]}, r"the action keys must be whole numbers in \[0, 0, 0\]"),
        ({"keys": [0, 1], "mouse": [0, 0]}, r"the action keys must be of the shape \(3,\), got '\(2,\)'"),
        ({"keys": [0, 1, 0], "mouse": [0, np.nan]}, "the action mouse must be finite in float32"),
        ({"keys": [0, 1, 0], "mouse": ["left", 0]}, "the action mouse must be numbers"),
        ({"keys": [0, 1, 0]}, r"the action must be a mapping of keys, mouse, got \['keys'\]"),
        ([0, 1, 0, 0, 0], "the action must be a mapping of keys, mouse, got 'list'"),
    ],
)
def test_an_action_of_another_space_is_named(action: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        flatten_action(KEYBOARD_AND_MOUSE, action)


def test_spaces_without_a_fixed_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"record: actions must be of Discrete, .* got Text\(.*; wrap the environment"):
        describe_space(spaces.Dict(say=spaces.Text(3), move=spaces.Discrete(2)), "record")
    with pytest.raises(ValueError, match="a flat action must have 5 numbers, got 6"):
        unflatten_action(KEYBOARD_AND_MOUSE, np.zeros(6))
    with pytest.raises(ValueError, match="a flat action must have 1 more numbers"):
        unflatten_action(KEYBOARD_AND_MOUSE, np.zeros(4))


@pytest.mark.parametrize(
    ("space", "problem"),
    [
        ([], r"its type must be one of Discrete, .*, got \[\]"),
        ({"type": "Text"}, "its type must be one of .* got 'Text'"),
        ({"type": "Discrete"}, "a Discrete must have n and perhaps start"),
        ({"type": "Discrete", "n": 0}, r"n must have integers in 1\.\.1000000, got 0"),
        ({"type": "Discrete", "n": 10**9}, r"n must have integers in 1\.\.1000000"),
        ({"type": "MultiDiscrete", "nvec": [3, [4]]}, "nvec must be a list of at most 65536 integers"),
        ({"type": "MultiDiscrete", "nvec": [3, 2.5]}, "nvec must be a list of at most 65536 integers"),
        ({"type": "MultiDiscrete", "nvec": [3, 2], "start": [1]}, r"start must have the shape of nvec, \(2,\)"),
        ({"type": "MultiBinary", "shape": [10**9]}, "shape must be a list of sizes"),
        ({"type": "Box", "shape": [2], "low": [0]}, "low must be a number, 2 numbers, or null"),
        ({"type": "Box", "shape": [2], "low": float("nan")}, "low must be a number, 2 numbers, or null"),
        ({"type": "Box", "shape": [2], "low": 1, "high": 0}, r"low must be at most high, got '1\.0 and 0\.0'"),
        ({"type": "Box", "shape": [2], "dtype": "object"}, "dtype must be one of float16"),
        ({"type": "Dict", "spaces": {"a": {}}}, "the spaces of a Dict must be a list of pairs"),
        ({"type": "Dict", "spaces": [["a", {"type": "Discrete", "n": 2}]] * 2}, "the keys of a Dict must differ"),
        ({"type": "Tuple", "spaces": []}, "it must have at least one component"),
        ({"type": "Tuple", "spaces": [{"type": "MultiBinary", "shape": [40000]}] * 2}, "at most 65536 components"),
    ],
)
def test_a_description_that_makes_no_sense_is_named(space: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=rf"action space.*{problem}"):
        components(space)


def test_a_description_that_is_nested_too_deep_is_named() -> None:
    space: dict[str, Any] = {"type": "Discrete", "n": 2}
    for _ in range(40):
        space = {"type": "Tuple", "spaces": [space]}
    with pytest.raises(ValueError, match="nested at most 16 deep"):
        components(space)


def test_the_first_wrong_value_is_found() -> None:
    parts = components(KEYBOARD_AND_MOUSE)
    good = np.array([[0, 1, 1, -99, 99], [1, 0, 0, 0, 1e30]])
    assert wrong_value(good, parts) is None  # recordings may go beyond the bounds
    for row, column, value in ((1, 2, 2), (0, 0, -1), (1, 1, 0.5), (0, 3, np.nan), (1, 4, -np.inf), (1, 4, 1e39)):
        bad = good.copy()
        bad[row, column] = value
        assert wrong_value(bad, parts) == ((row, column), parts[column])


# In episodes


def keyboard_episode(path: Path, frames: int = 9) -> np.ndarray:
    """An episode of keyboard and mouse; -> its actions."""
    write_episode(path, frames)
    rng = np.random.default_rng(0)
    actions = np.concatenate([rng.integers(0, 2, (frames, 3)), rng.normal(0, 5, (frames, 2))], axis=1, dtype=np.float32)
    np.save(actions_path(path), actions)
    meta = {"fps": 30, "num_frames": frames, "action_space": {"space": KEYBOARD_AND_MOUSE}}
    path.with_suffix(".json").write_text(json.dumps(meta))
    return actions


def test_an_episode_has_the_actions_of_its_described_space(tmp_path: Path) -> None:
    actions = keyboard_episode(tmp_path / "a.mp4")
    episode = load_episode(tmp_path / "a.mp4")
    assert episode.action_space == {"kind": "mixed", "size": 5, "space": KEYBOARD_AND_MOUSE}
    np.testing.assert_array_equal(episode.actions, actions)
    frames = np.zeros((9, 16, 16, 3), np.uint8)
    np.savez(tmp_path / "b.npz", frames=frames, fps=30, actions=actions, action_space=json.dumps(KEYBOARD_AND_MOUSE))
    keys = {"type": "MultiBinary", "shape": [3]}
    held = actions[:, :3].astype(bool)
    np.savez(tmp_path / "c.npz", frames=frames, fps=30, actions=held, action_space=json.dumps(keys))
    both, keyboard = open_episodes(tmp_path / "b.npz")[0], open_episodes(tmp_path / "c.npz")[0]
    assert both.action_space == episode.action_space and keyboard.action_space["kind"] == "mixed"
    np.testing.assert_array_equal(both.actions, actions)
    assert keyboard.actions is not None and keyboard.actions.dtype == np.float32
    np.testing.assert_array_equal(keyboard.actions, held)


@pytest.mark.parametrize(
    ("frame", "column", "value", "problem"),
    [
        (3, 1, 2, r"actions whose keys\[1\] is a whole number in 0\.\.1, .* got 2\.0 at frame 3"),
        (8, 0, 0.5, r"actions whose keys\[0\] is a whole number in 0\.\.1, .* got 0\.5 at frame 8"),
        (1, 3, np.nan, r"actions whose mouse\[0\] is finite in float32, .* got nan at frame 1"),
        (5, 4, np.inf, r"actions whose mouse\[1\] is finite in float32, .* got inf at frame 5"),
    ],
)
def test_actions_that_a_space_does_not_have_are_refused_by_episode_and_frame(
    frame: int, column: int, value: float, problem: str, tmp_path: Path
) -> None:
    actions = keyboard_episode(tmp_path / "a.mp4")
    actions[0] = np.nan  # ignored
    actions[frame, column] = value
    np.save(actions_path(tmp_path / "a.mp4"), actions)
    with pytest.raises(ValueError, match=rf"Episode .*a\.mp4: a\.actions\.npy must have {problem}; record it again"):
        load_episode(tmp_path / "a.mp4")
    frames, space = np.zeros((9, 16, 16, 3), np.uint8), json.dumps(KEYBOARD_AND_MOUSE)
    np.savez(tmp_path / "b.npz", frames=frames, actions=actions, action_space=space)
    with pytest.raises(ValueError, match=rf"Episode .*b\.npz: actions must have {problem}"):
        open_episodes(tmp_path / "b.npz")


@pytest.mark.parametrize(
    ("actions", "space", "problem"),
    [
        (
            np.zeros((9, 4)),
            {},
            r"must be numbers of shape \(t, 5\), according to its action_space, got float64 of \(9, 4\)",
        ),
        (np.zeros((8, 5)), {}, "must have one action for each frame, got 8 for 9 frames"),
        (np.zeros(9, int), {}, r"must be numbers of shape \(t, 5\)"),
        (np.zeros((9, 5)), {"kind": "continuous"}, "action_space.kind must be mixed, like its space, or left out"),
        (np.zeros((9, 5)), {"size": 4}, "action_space.size must be 5, like its space, or left out, got 4"),
        (np.zeros((9, 5)), {"space": {"type": "Box", "shape": "x"}}, "in a.json, action space: shape must be a list"),
    ],
)
def test_actions_of_another_shape_than_their_space_are_refused(
    actions: np.ndarray, space: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    keyboard_episode(tmp_path / "a.mp4")
    np.save(actions_path(tmp_path / "a.mp4"), actions)
    meta = {"fps": 30, "num_frames": 9, "action_space": {"space": KEYBOARD_AND_MOUSE} | space}
    (tmp_path / "a.json").write_text(json.dumps(meta))
    with pytest.raises(ValueError, match=rf"Episode .*a\.mp4.*{problem}"):
        load_episode(tmp_path / "a.mp4")


def test_an_action_space_that_is_no_json_is_named(tmp_path: Path) -> None:
    frames = np.zeros((9, 16, 16, 3), np.uint8)
    np.savez(tmp_path / "b.npz", frames=frames, actions=np.zeros((9, 5)), action_space="MultiBinary(8)")
    with pytest.raises(ValueError, match=r"b\.npz: action_space must be JSON, such as .*, got MultiBinary\(8\)"):
        open_episodes(tmp_path / "b.npz")
