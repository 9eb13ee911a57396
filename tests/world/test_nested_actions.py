"""Actions of nested spaces go from episodes through store, model, rollouts, planner and environments."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from recordings import tiny_adapter
from small_runs import LIGHTNING_NOISE, config
from stores import METADATA
from world_models import CONFIG, random_model

from vidtok_plugin import training
from vidtok_plugin.adapter.adapter import TokenizerAdapter
from vidtok_plugin.store.reader import TokenStore
from vidtok_plugin.store.shard_checks import values_problem
from vidtok_plugin.store.shards import StoredEpisode
from vidtok_plugin.store.tokenize import write_store
from vidtok_plugin.store.writer import TokenStoreWriter
from vidtok_plugin.video.episodes import load_episode, save_episode_files
from vidtok_plugin.video.preparation import Preparation
from vidtok_plugin.video.writing import write_video
from world_model import (
    ActionSpec,
    ImaginedEnv,
    ImaginedVectorEnv,
    Planner,
    Sampler,
    WorldModel,
    describe_space,
    flatten_action,
    load_world,
    rollout,
    unflatten_action,
)
from world_model.action_spaces import space_of
from world_model.actions import check_actions, group_actions
from world_model.architecture import OutcomeConfig
from world_model.data import TokenDataModule, WindowDataset, token_spec, window_actions
from world_model.inputs.action_embedding import ActionEmbedding
from world_model.play.saving import recording_of
from world_model.play.scenes import load_scenes
from world_model.play.session import Input, PlaySession
from world_model.rollout.files import read_actions
from world_model.training.module import WorldModelModule
from world_model.training.runs import fit_world_model

F = 4  # frames per latent step of the tiny adapter
SPACE = spaces.Dict(
    {"keys": spaces.MultiBinary(2), "gear": spaces.Discrete(3, start=-1), "mouse": spaces.Box(-50, 50, (2,))}
)
DESCRIBED = describe_space(SPACE)  # gear, keys, mouse: plain Dicts are sorted by key
SPEC = ActionSpec(kind="mixed", size=5, space=DESCRIBED)


def write_play(folder: Path, names: str = "ab", frames: int = 17) -> Path:
    rng = np.random.default_rng(0)
    SPACE.seed(0)
    for name in names:
        write_video(folder / f"{name}.mp4", rng.integers(0, 256, (frames, 16, 16, 3), dtype=np.uint8), fps=30)
        actions = np.stack([flatten_action(DESCRIBED, SPACE.sample()) for _ in range(frames)])
        meta = {"fps": 30, "num_frames": frames, "action_space": {"space": DESCRIBED}}
        save_episode_files(folder / f"{name}.mp4", actions, meta)
    return folder


@pytest.fixture(scope="module")
def play(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_play(tmp_path_factory.mktemp("play"))


def make_world(spec: ActionSpec = SPEC) -> tuple[WorldModel, TokenizerAdapter]:
    assert CONFIG.tokens is not None
    tokens = replace(CONFIG.tokens, width=2, temporal_factor=F, actions=spec)
    return random_model(replace(CONFIG, tokens=tokens, max_steps=6, outcomes=OutcomeConfig(width=8))), tiny_adapter()


def test_every_part_of_an_action_counts() -> None:
    """Each choice of each part, and each continuous component, gives another vector."""
    embedding = ActionEmbedding(SPEC, F, width=16)
    for parameter in embedding.parameters():
        torch.nn.init.normal_(parameter)
    assert embedding.embed.table.weight.shape == (3 + 2 + 2, 32)  # type: ignore[union-attr]
    base = [0, 0, 0, 0.0, 0.0]
    actions = [
        base,
        [1, 0, 0, 0, 0],
        [2, 0, 0, 0, 0],
        [0, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 0, 1, 0],
        [0, 0, 0, 0, 1],
    ]
    rows = torch.tensor(actions)[:, None].expand(-1, 1 + F, -1)
    vectors = embedding(group_actions(rows, F))[:, 1]
    assert torch.cdist(vectors, vectors).add(torch.eye(len(actions)) * 9).min() > 0.1


def test_statistics_leave_choices_as_they_are(play: Path, tmp_path: Path) -> None:
    write_store(tiny_adapter(), [load_episode(path) for path in sorted(play.glob("*.mp4"))], tmp_path)
    store = TokenStore(tmp_path, "train")
    assert token_spec(store.metadata).actions == SPEC and store.metadata.action_space["space"] == DESCRIBED
    model, _ = make_world(token_spec(store.metadata).actions)
    found = store.action_statistics()
    model.set_action_statistics(torch.from_numpy(found.mean), torch.from_numpy(found.std))
    normalization = model.action_normalization
    assert normalization is not None
    actions = torch.cat([torch.from_numpy(load_episode(play / f"{name}.mp4").actions[1:]) for name in "ab"])
    assert normalization.mean[:3].tolist() == [0, 0, 0] and normalization.std[:3].tolist() == [1, 1, 1]
    torch.testing.assert_close(normalization.mean[3:], actions[:, 3:].mean(0))
    torch.testing.assert_close(normalization.std[3:], actions[:, 3:].std(0, correction=0))


def test_stored_choices_that_a_part_does_not_have_are_damage(play: Path, tmp_path: Path) -> None:
    store = write_store(tiny_adapter(), [load_episode(play / "a.mp4")], tmp_path)
    data = {name: values.numpy().copy() for name, values in store.window(0, 0, 5).items()}
    data = {"codes": data["codes"], "actions": data["actions"], "num_actions": data["actions_known"].sum(1)}
    assert values_problem(data, store.metadata) is None
    data["actions"][2, 1, 0] = 3
    assert values_problem(data, store.metadata) == "gear of its actions must be a whole number in 0..2, got 3.0"


def test_actions_of_several_frames_are_a_tuple_of_the_space(play: Path) -> None:
    episode = load_episode(play / "a.mp4")
    slower = Preparation(fps=15).of(episode)
    described = slower.action_space["space"]
    assert (slower.action_space["kind"], slower.action_space["size"]) == ("mixed", 10)
    assert space_of(described) == spaces.Tuple([SPACE, SPACE])
    assert slower.actions is not None
    first, second = unflatten_action(described, slower.actions[1])
    assert np.array_equal(flatten_action(DESCRIBED, first), episode.actions[1])
    assert np.array_equal(flatten_action(DESCRIBED, second), episode.actions[2])
    with pytest.raises(ValueError, match="concatenate for actions with choices, which have no sum"):
        _ = Preparation(fps=15, group_actions="sum").of(episode).actions


@pytest.mark.parametrize(
    ("value", "place", "problem"),
    [
        (
            2.0,
            (0, 1, 1),
            r"keys\[0\] of the actions must be a whole number in 0\.\.1, got 2\.0 at position \(0, 1, 1\)",
        ),
        (0.5, (1, 4, 0), r"gear of the actions must be a whole number in 0\.\.2, got 0\.5 at position \(1, 4, 0\)"),
        (float("inf"), (0, 2, 4), r"actions must be finite in float32, got inf at position \(0, 2, 4\)"),
    ],
)
def test_actions_outside_the_space_are_named(value: float, place: tuple[int, ...], problem: str) -> None:
    actions = torch.zeros(2, 5, 5)
    assert torch.equal(check_actions(actions, SPEC, "rollout", values=True), actions)
    actions[place] = value
    with pytest.raises(ValueError, match=rf"rollout: {problem}"):
        check_actions(actions, SPEC, "rollout", values=True)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"kind": "mixed", "size": 5}, "space must be set for kind mixed"),
        ({"kind": "continuous", "size": 5, "space": DESCRIBED}, r"must be those of its space, \('mixed', 5\)"),
        (
            {
                "kind": "mixed",
                "size": 9000,
                "space": {"type": "MultiDiscrete", "nvec": [9] * 9000, "start": [8] * 9000},
            },
            "must have at most 32768 characters",
        ),
    ],
)
def test_a_spec_that_does_not_fit_its_space_is_refused(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=f"ActionSpec: .*{problem}"):
        ActionSpec(**settings)


def test_specs_are_equal_if_the_same_weights_serve_them() -> None:
    wider = describe_space(spaces.Dict(buttons=spaces.MultiDiscrete([3, 2, 2]), mouse=spaces.Box(-1, 1, (2,))))
    assert ActionSpec(kind="mixed", size=5, space=wider) == SPEC
    other = describe_space(spaces.Dict(buttons=spaces.MultiDiscrete([2, 2, 3]), mouse=spaces.Box(-1, 1, (2,))))
    assert ActionSpec(kind="mixed", size=5, space=other) != SPEC


def test_a_saved_world_keeps_its_space_and_follows_each_part(tmp_path: Path) -> None:
    model, adapter = make_world()
    model.save_pretrained(tmp_path, adapter)
    loaded, _ = load_world(tmp_path)
    assert loaded.tokens.actions == SPEC and loaded.tokens.actions.space == DESCRIBED
    prompt, actions = torch.rand(1, 3, 1 + F, 16, 16) * 2 - 1, torch.zeros(1, 1 + 2 * F, 5)
    result = rollout(loaded, adapter, prompt=prompt, actions=actions, num_frames=F, sampler=Sampler(temperature=0))
    codes = result.tokens.grid_values
    with torch.no_grad():
        still = loaded(codes, group_actions(actions, F))
        for component, value in ((0, 2.0), (1, 1.0), (2, 1.0), (3, 1.0), (4, 1.0)):
            moved = actions.clone()
            moved[:, 1 + F :, component] = value
            changes = (loaded(codes, group_actions(moved, F)) - still).abs().amax(dim=(0, 2, 3, 4))
            assert changes[:2].max() == 0 and changes[2] > 1e-3  # of the step with the action


@pytest.mark.parametrize("method", ["cem", "mppi"])
def test_a_planner_plans_choices_and_motions_within_their_bounds(method: str) -> None:
    model, adapter = make_world()
    normalization = model.action_normalization
    assert normalization is not None
    normalization.std[3:] = 80.0
    planner = Planner(model, adapter, method=method, horizon=F, candidates=16, elites=4)
    plan = planner.plan(torch.rand(3, 3, 9, 16, 16) * 2 - 1, None)
    assert plan.shape == (3, F, 5) and plan[..., 3:].abs().max() <= 50 and plan[..., 3:].std() > 1
    for row in plan:
        assert unflatten_action(DESCRIBED, row[0].numpy()) in SPACE


def test_an_imagined_environment_has_the_space_of_the_recorded_one(play: Path) -> None:
    world = make_world()
    env = ImaginedEnv(world, prompts=play, prompt_frames=5)
    assert env.action_space == SPACE
    env.reset(seed=0)
    action = {"keys": np.array([0, 1]), "gear": -1, "mouse": np.array([3.0, -4.0])}
    first = env.step(action)[0]
    envs = ImaginedVectorEnv(world, 2, prompts=play, prompt_frames=5)
    assert isinstance(envs.action_space, spaces.Dict) and envs.single_action_space == SPACE
    envs.reset(seed=[0, 0])
    both = {"keys": np.array([[0, 1], [1, 1]]), "gear": np.array([-1, -1]), "mouse": np.array([[3.0, -4.0], [3, -4]])}
    frames = envs.step(both)[0]
    assert np.abs(frames[0].astype(int) - first).max() <= 1 < np.abs(frames[1].astype(int) - first).max()
    envs.step(envs.action_space.sample())
    with pytest.raises(ValueError, match=r"ImaginedEnv: mouse\[1\] of an action must be -50\.0 to 50\.0, got 51\.0"):
        env.step(action | {"mouse": np.array([0, 51])})
    with pytest.raises(ValueError, match="ImaginedEnv: the action gear must be whole numbers in -1..1, got 2"):
        env.step(action | {"gear": 2})
    with pytest.raises(ValueError, match="ImaginedVectorEnv: actions must be 2 of Dict"):
        envs.step({"keys": both["keys"]})


def test_an_action_for_each_part_of_a_step_is_a_batch_of_the_space(play: Path) -> None:
    env = ImaginedEnv(make_world(), prompts=play, prompt_frames=5, action_repeat=2)
    env.reset(seed=0)
    held = {"keys": np.ones((2, 2), np.int8), "gear": np.zeros(2, int), "mouse": np.ones((2, 2), np.float32)}
    frames = env.step(held)[0]
    whole = ImaginedEnv(make_world(), prompts=play, prompt_frames=5)
    whole.reset(seed=0)
    assert np.array_equal(whole.step({name: value[0] for name, value in held.items()})[0], frames)
    assert env.action_space.sample() in env.action_space


def test_choices_that_begin_elsewhere_than_0_are_those_of_the_recorded_environment(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (9, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", frames=frames, fps=30, actions=np.zeros(9, int), num_actions=3)
    plain, described = ActionSpec(kind="discrete", size=3), describe_space(spaces.Discrete(3, start=5))
    envs = [
        ImaginedEnv(make_world(spec), prompts=tmp_path / "a.npz", prompt_frames=5)
        for spec in (plain, replace(plain, space=described))
    ]
    assert envs[1].action_space == spaces.Discrete(3, start=5)
    steps = []
    for env, action in zip(envs, (2, 7), strict=True):
        env.reset(seed=0)
        steps.append(env.step(action)[0])
    assert np.array_equal(*steps)


def test_a_file_of_actions_may_hold_keys_as_true_and_false(tmp_path: Path) -> None:
    keys = ActionSpec(kind="mixed", size=2, space=describe_space(spaces.MultiBinary(2)))
    held = np.array([[True, False]] * 5)
    np.save(tmp_path / "keys.npy", held)
    read = read_actions(make_world(keys)[0], tmp_path / "a.mp4", tmp_path / "keys.npy", 4)
    assert read is not None and torch.equal(read, torch.tensor([[[1.0, 0.0]] * 4]))


def test_unbounded_and_unknown_ranges_are_those_of_the_training_data(play: Path, tmp_path: Path) -> None:
    spec = ActionSpec(kind="continuous", size=2)
    model, adapter = make_world(spec)
    frames = np.zeros((9, 16, 16, 3), np.uint8)
    np.savez(tmp_path / "a.npz", frames=frames, fps=30, actions=np.zeros((9, 2)))
    settings: dict[str, Any] = {"prompts": tmp_path / "a.npz", "prompt_frames": 5}
    assert ImaginedEnv((model, adapter), **settings).action_space == spaces.Box(-1, 1, (2,))
    assert model.action_normalization is not None
    model.action_normalization.mean.fill_(100)
    model.action_normalization.std.fill_(10)
    assert ImaginedEnv((model, adapter), **settings).action_space == spaces.Box(70, 130, (2,))
    box = replace(spec, space=describe_space(spaces.Box(0, 255, (2,), np.uint8)))
    described = make_world(box)[0], adapter
    assert ImaginedEnv(described, **settings).action_space == spaces.Box(0, 255, (2,), np.uint8)
    assert ImaginedEnv(described, **settings, action_range=(0, 9)).action_space == spaces.Box(0, 9, (2,))
    with pytest.raises(ValueError, match="action_range is for actions that are continuous in all components"):
        ImaginedEnv(make_world(), prompts=play, prompt_frames=5, action_range=(-1, 1))


def test_a_player_moves_sliders_whose_choices_are_whole(play: Path, tmp_path: Path) -> None:
    model, adapter = make_world()
    model.save_pretrained(tmp_path / "world", adapter)
    session = PlaySession(load_scenes(tmp_path / "world", play, device="cpu"))
    actions = session.scenes.actions
    assert list(actions.meanings) == ["gear", "keys[0]", "keys[1]", "mouse[0]", "mouse[1]"]
    assert (list(actions.low), list(actions.high)) == ([0, 0, 0, -50, -50], [2, 1, 1, 50, 50])
    assert actions.check([2, 0, 1, -7.5, 50]) == (2, 0, 1, -7.5, 50)
    for wrong in ([2, 0.5, 1, 0, 0], [3, 0, 1, 0, 0], [0, 0, 0, 51, 0]):
        with pytest.raises(ValueError, match="an action must be 5 numbers within the action space's bounds"):
            actions.check(wrong)
    session.hold(Input((2.0, 0.0, 1.0, -7.5, 50.0), 1))
    session.advance()
    recording = recording_of(session)
    save_episode_files(tmp_path / "a.mp4", recording.actions, {**recording.meta, "num_frames": len(recording.actions)})  # type: ignore[arg-type]
    assert recording.meta["action_space"]["space"] == DESCRIBED
    assert recording.actions is not None and recording.actions[-1].tolist() == [2, 0, 1, -7.5, 50]


@LIGHTNING_NOISE
@pytest.mark.slow
def test_a_world_is_fitted_to_keyboard_and_mouse(play: Path, tmp_path: Path) -> None:
    episodes = [load_episode(path) for path in sorted(play.glob("*.mp4"))]
    for split in ("train", "validation"):
        write_store(tiny_adapter(), episodes, tmp_path / "store", split=split)
    cfg = config(tmp_path / "store", tmp_path / "run", "trainer.max_steps=2", "data.batch_size=2")
    fit_world_model(cfg)
    model, adapter = load_world(tmp_path / "run" / "model")
    assert model.tokens.actions == SPEC
    env = gymnasium.make("vidtok/Imagined-v0", world=(model, adapter), prompts=play, prompt_frames=5)
    with pytest.warns(UserWarning, match="recommend using a symmetric and normalized space"):
        check_env(env.unwrapped)
    env.reset(seed=0)
    assert env.step(env.action_space.sample())[0].shape == (16, 16, 3)
    fit_world_model(replace(cfg, trainer={**cfg.trainer, "max_steps": 3}))  # it goes on


def write_moves(folder: Path, split: str, seed: int, steps: int = 160) -> Path:
    """A store whose codes say which gear is in and where the mouse, by far the smaller part, moved."""
    space = describe_space(spaces.Dict({"gear": spaces.Discrete(3), "move": spaces.Box(-np.inf, np.inf, (2,))}))
    metadata = replace(METADATA, action_space={"kind": "mixed", "size": 3, "space": space})
    generator = torch.Generator().manual_seed(seed)
    gear = torch.randint(3, (steps, 1), generator=generator).float()
    move = torch.randn(steps, 2, generator=generator) * torch.tensor([1e-3, 100])
    actions = torch.cat([gear, move], dim=1)[:, None].repeat(1, metadata.temporal_factor, 1)
    actions[0] = 0
    codes = (gear[:, 0] * 4 + 2 * (move[:, 0] > 0)).int()
    data = {
        "codes": codes[:, None, None].expand(steps, 2, 3).contiguous(),
        "actions": actions,
        "num_actions": torch.tensor([0] + [metadata.temporal_factor] * (steps - 1), dtype=torch.uint8),
    }
    frames = 1 + (steps - 1) * metadata.temporal_factor
    entry = StoredEpisode(name=f"{split}.mp4", steps=steps, frames=frames, digest=split)
    TokenStoreWriter(folder, metadata).write_shard(split, [entry], [data])
    return folder


@LIGHTNING_NOISE
@pytest.mark.slow
def test_a_world_learns_what_choices_and_small_motions_do(tmp_path: Path) -> None:
    for split, seed in (("train", 0), ("validation", 1)):
        write_moves(tmp_path, split, seed)
    cfg = config(tmp_path, tmp_path / "run", "trainer.max_steps=200", "data.batch_size=16", "optimizer.lr=2e-2")
    torch.manual_seed(0)
    module = WorldModelModule(cfg)
    training.build_trainer(cfg).fit(module, TokenDataModule(cfg))
    windows = WindowDataset(TokenStore(tmp_path, "validation"), 4)
    batch = windows.__getitems__(list(range(len(windows))))
    with torch.no_grad():
        scores = module.model.eval().score(batch["codes"], window_actions(batch))
    assert scores.token_correct is not None
    assert scores.token_correct[:, :, 0, 0].float().mean() > 0.95  # of 6 codes, before any is known
