"""Imagined environments are gymnasium's, and give the same episodes alone and in any batch."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from places import ROOT
from recordings import tiny_adapter, write_folder
from world_models import CONFIG, random_model

import world_model
from vidtok_plugin import VidTok, open_episodes
from vidtok_plugin.adapter.adapter import TokenizerAdapter
from vidtok_plugin.video.episodes import load_episode, save_episode_files
from vidtok_plugin.video.pixels import from_uint8, to_uint8
from vidtok_plugin.video.reading import read_frames
from vidtok_plugin.video.writing import write_video
from world_model import Decoding, ImaginedEnv, ImaginedVectorEnv, Sampler, rollout
from world_model.actions import ActionSpec
from world_model.architecture import OutcomeConfig
from world_model.envs.episodes import _warn_once
from world_model.envs.registration import ENV_ID, _AfterGymnasium, register_env
from world_model.model import WorldModel
from world_model.transformer.transformer import Transformer

F = 4
World = tuple[WorldModel, TokenizerAdapter]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("prompts"), {"a": 11, "b": 19, "c": 9})


def make_world(kind: str = "discrete", outcomes: bool = True, **changes: Any) -> World:
    """A toy world of 16 x 16 pixels, whose episodes end now and then."""
    assert CONFIG.tokens is not None
    spec = ActionSpec() if kind == "none" else ActionSpec(kind=kind, size=3)  # type: ignore[arg-type]
    tokens = replace(CONFIG.tokens, width=2, temporal_factor=F, actions=spec)
    heads = OutcomeConfig(width=8, largest_reward=10.0) if outcomes else None
    model = random_model(replace(CONFIG, tokens=tokens, outcomes=heads, **changes))
    if model.outcomes is not None and model.outcomes.ends is not None:
        with torch.no_grad():
            model.outcomes.ends.bias -= 1.1 if model.config.prediction == "masked" else 0.8
    return model, tiny_adapter()


@pytest.fixture(scope="module")
def world() -> World:
    return make_world()


def make(world: World, prompts: Any, **settings: Any) -> ImaginedEnv:
    return ImaginedEnv(world, prompts=prompts, **{"prompt_frames": 5} | settings)


def make_vector(world: World, prompts: Path, num_envs: int = 3, **settings: Any) -> ImaginedVectorEnv:
    return ImaginedVectorEnv(world, num_envs, prompts=prompts, **{"prompt_frames": 5} | settings)


def episode_with_floats(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    write_video(folder / "a.mp4", rng.integers(0, 256, (9, 16, 16, 3), dtype=np.uint8), fps=30)
    save_episode_files(folder / "a.mp4", rng.normal(size=(9, 3)).astype(np.float32), {"fps": 30, "num_frames": 9})
    return folder


# gymnasium's own classes


@pytest.mark.parametrize(
    ("kind", "action_repeat"), [("discrete", None), ("discrete", 2), ("continuous", 2), ("none", None)]
)
def test_it_passes_gymnasiums_checks(kind: str, action_repeat: int | None, prompts: Path, tmp_path: Path) -> None:
    env = gymnasium.make(
        ENV_ID,
        world=make_world(kind),
        prompts=episode_with_floats(tmp_path) if kind == "continuous" else prompts,
        prompt_frames=5,
        action_repeat=action_repeat,
        render_mode="rgb_array",
    )
    check_env(env.unwrapped)
    assert env.observation_space.shape == (16, 16, 3) and env.observation_space.dtype == np.uint8
    assert env.metadata["render_fps"] == 30 / F
    assert isinstance(env.unwrapped, ImaginedEnv)


def test_gymnasium_makes_both_kinds_by_name(world: World, prompts: Path) -> None:
    envs = gymnasium.make_vec(ENV_ID, num_envs=2, world=world, prompts=prompts, prompt_frames=5)
    assert isinstance(envs, ImaginedVectorEnv) and envs.num_envs == 2
    observations, _ = envs.reset(seed=0)
    assert observations in envs.observation_space
    assert envs.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    wrapped = gymnasium.wrappers.vector.RecordEpisodeStatistics(envs)
    wrapped.reset(seed=0)
    assert wrapped.step(envs.action_space.sample())[0].shape == (2, 16, 16, 3)


def test_it_is_registered_when_gymnasium_is_imported_later(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "gymnasium"]:
        monkeypatch.delitem(sys.modules, name)
    finders = list(sys.meta_path)
    register_env()
    register_env()  # once is enough
    later = import_module("gymnasium")
    assert later is not gymnasium and ENV_ID in later.registry
    assert sys.meta_path == finders and not any(isinstance(finder, _AfterGymnasium) for finder in finders)


def test_without_gymnasium_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("spaces", "env", "vector_env"):
        monkeypatch.delitem(sys.modules, f"world_model.envs.{name}")
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(ImportError, match=r"gymnasium must be installed .*pip install 'vidtok-plugin\[envs\]'"):
        _ = world_model.ImaginedEnv
    with pytest.raises(AttributeError, match="no attribute 'ImaginedEnvs'"):
        _ = world_model.ImaginedEnvs


# Episodes


def test_an_episode_is_a_rollout_of_its_prompt(world: World, prompts: Path) -> None:
    """Frames, rewards and ends; the observation is the newest frame."""
    env = make(world, prompts, sampler=Sampler(temperature=0), horizon=None)
    observation, info = env.reset(seed=3)
    recorded = range(info["first_frame"], info["first_frame"] + 5)
    prompt = read_frames(info["prompt"], recorded)
    assert np.array_equal(observation, prompt[-1]) and np.array_equal(info["frames"], prompt[-F:])
    acts = [2, 0, 1, 1, 2]
    past = load_episode(info["prompt"]).actions[recorded.start : recorded.stop]
    whole = rollout(
        *world,
        prompt=from_uint8(torch.from_numpy(prompt)[None]),
        actions=torch.from_numpy(np.concatenate([past, np.repeat(acts, F)])[None]),
        num_frames=5 * F,
        sampler=Sampler(temperature=0),
    )
    imagined = to_uint8(whole.imagined)[0]
    assert whole.rewards is not None and whole.terminated is not None
    for i, action in enumerate(acts):
        observation, reward, terminated, truncated, info = env.step(action)
        frames = slice(i * F, (i + 1) * F)
        assert np.abs(info["frames"].astype(int) - imagined[frames]).max() <= 1
        assert np.array_equal(observation, info["frames"][-1])
        np.testing.assert_allclose(info["rewards"], whole.rewards[0, 5:][frames], rtol=1e-4, atol=1e-5)
        assert reward == pytest.approx(info["rewards"].sum(), rel=1e-5) and not truncated
        assert terminated == bool(whole.terminated[0, 5:][frames].any())
        env._episodes.ended[:] = False  # so that the comparison may go on


def test_prompts_start_anywhere_in_any_episode_by_seed(world: World, prompts: Path) -> None:
    env = make(world, prompts)
    starts = []
    for seed in (*range(9), 0):
        info = env.reset(seed=seed)[1]
        starts.append((Path(info["prompt"]).stem, info["first_frame"]))
    assert starts[0] == starts[-1]
    assert len({name for name, _ in starts}) > 1
    assert len({first for name, first in starts if name == "b"}) > 1
    assert all(first <= {"a": 11, "b": 19, "c": 9}[name] - 5 for name, first in starts)
    again = [env.reset()[1]["first_frame"] for _ in range(3)]
    assert len(set(again)) > 1  # without a seed, the next episode is another one


def test_prompts_are_of_any_source_of_episodes(world: World, prompts: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (9, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", frames=frames, actions=rng.integers(0, 3, 9))
    np.savez(tmp_path / "b.npz", frames=frames)
    for source in (tmp_path / "a.npz", [prompts / "a.mp4", tmp_path / "a.npz"], open_episodes(prompts)):
        observation, info = make(world, source).reset(seed=2)
        episode = open_episodes(info["prompt"])[0]
        assert np.array_equal(observation, episode.read([info["first_frame"] + 4])[0])
    with pytest.raises(ValueError, match=r"b.npz must have actions, like the world"):
        make(world, tmp_path / "b.npz")
    assert make(make_world("none"), tmp_path / "b.npz").reset(seed=0)[0].shape == (16, 16, 3)


def test_an_action_is_held_or_there_is_one_for_each_part_of_a_step(world: World, prompts: Path) -> None:
    def frames(action: Any, **settings: Any) -> np.ndarray:
        env = make(world, prompts, **settings)
        env.reset(seed=1)
        return env.step(action)[0]

    held = frames(2)
    assert np.array_equal(frames([2, 2], action_repeat=2), held)
    assert np.array_equal(frames(np.array([2, 2, 2, 2]), action_repeat=1), held)
    spaces = [make(world, prompts, action_repeat=repeat).action_space for repeat in (4, 2)]
    assert spaces == [gymnasium.spaces.Discrete(3), gymnasium.spaces.MultiDiscrete([3, 3])]


def test_episodes_are_truncated_at_the_horizon(prompts: Path) -> None:
    env = make(make_world(outcomes=False), prompts, horizon=3 * F)
    for _ in range(2):
        env.reset()
        ends = [env.step(0)[2:4] for _ in range(3)]
        assert ends == [(False, False), (False, False), (False, True)]
        with pytest.raises(gymnasium.error.ResetNeeded, match=r"reset\(\) must be called"):
            env.step(0)


def test_a_world_without_rewards_gives_none_and_says_so(prompts: Path, caplog: pytest.LogCaptureFixture) -> None:
    _warn_once.cache_clear()
    world = make_world(outcomes=False)
    env, _ = make(world, prompts), make(world, prompts)
    assert caplog.text.count("ImaginedEnv: the world predicts no rewards, so all of them are 0.") == 1
    env.reset(seed=0)
    _, reward, terminated, _, info = env.step(1)
    assert reward == 0.0 and terminated is False and "rewards" not in info


# Batches

Step = tuple[np.ndarray, float, bool, bool]


def episodes_of_one(env: ImaginedEnv, seed: int, actions: np.ndarray, same_step: bool) -> list[Step]:
    """The steps of an environment that starts again as gymnasium's vector environments do."""
    steps: list[Step] = []
    env.reset(seed=seed)
    ended = False
    for action in actions.tolist():
        if ended and not same_step:
            steps.append((env.reset()[0], 0.0, False, False))
            ended = False
            continue
        observation, reward, terminated, truncated, _ = env.step(action)
        ended = terminated or truncated
        if ended and same_step:
            observation = env.reset()[0]
        steps.append((observation, reward, terminated, truncated))
    return steps


@pytest.mark.parametrize(("prediction", "mode"), [("causal", "NextStep"), ("masked", "SameStep")])
def test_the_same_seed_gives_the_same_episodes_whatever_the_batch(prediction: str, mode: str, prompts: Path) -> None:
    world = make_world(prediction=prediction)
    envs = make_vector(world, prompts, autoreset_mode=mode, horizon=5 * F)
    actions = np.random.default_rng(0).integers(0, 3, (11, 3))
    envs.reset(seed=7)
    together = [envs.step(action) for action in actions]
    ends = np.stack([terminated | truncated for _, _, terminated, truncated, _ in together])
    assert len({tuple(row) for row in ends.T.tolist()}) > 1 and ends.any(axis=0).all()  # each in its own time
    for row in range(3):
        alone = episodes_of_one(make(world, prompts, horizon=5 * F), 7 + row, actions[:, row], mode == "SameStep")
        for (observations, rewards, terminated, truncated, _), expected in zip(together, alone, strict=True):
            assert np.abs(observations[row].astype(int) - expected[0]).max() <= 1
            assert rewards[row] == pytest.approx(expected[1], rel=1e-4, abs=1e-5)
            assert (terminated[row], truncated[row]) == expected[2:]


def test_infos_are_stacked_with_masks(world: World, prompts: Path) -> None:
    envs = make_vector(world, prompts, autoreset_mode="SameStep", horizon=F)
    observations, infos = envs.reset(seed=0)
    assert np.array_equal(infos["frames"][:, -1], observations) and infos["_frames"].all()
    assert len(infos["prompt"]) == 3 and infos["first_frame"].shape == (3,)
    observations, _, terminated, truncated, infos = envs.step(np.zeros(3, dtype=int))
    assert (terminated | truncated).all()
    last = np.stack(infos["final_obs"])
    assert np.array_equal(infos["final_info"]["frames"][:, -1], last)
    assert np.array_equal(infos["frames"][:, -1], observations) and not np.array_equal(last, observations)


def test_without_autoreset_a_mask_says_which_start_again(world: World, prompts: Path) -> None:
    envs = make_vector(world, prompts, autoreset_mode=AutoresetMode.DISABLED, horizon=F)
    with pytest.raises(gymnasium.error.ResetNeeded, match=r"reset\(\) must be called first"):
        envs.step([0, 0, 0])
    with pytest.raises(gymnasium.error.ResetNeeded, match="first reset must be one of all"):
        envs.reset(options={"reset_mask": np.array([True, False, False])})
    envs.reset(seed=0)
    before, *_ = envs.step([0, 1, 2])
    with pytest.raises(gymnasium.error.ResetNeeded, match="environments whose episode has ended"):
        envs.step([0, 1, 2])
    mask = np.array([True, False, True])
    after, infos = envs.reset(seed=[5, None, None], options={"reset_mask": mask})
    assert infos["_prompt"].tolist() == mask.tolist()
    assert np.array_equal(after[1], before[1]) and not np.array_equal(after[[0, 2]], before[[0, 2]])
    alone = make(world, prompts)
    assert np.array_equal(after[0], alone.reset(seed=5)[0])
    for wrong in ([True] * 2, np.zeros(3, dtype=bool), np.ones(3, dtype=int)):
        with pytest.raises(ValueError, match="reset_mask must be a bool for each of the 3"):
            envs.reset(options={"reset_mask": wrong})


def counted(monkeypatch: pytest.MonkeyPatch, run: Callable[[], Any]) -> dict[str, int]:
    """How often the transformer and the decoder were called."""
    calls = {"step": 0, "prefill": 0, "push": 0}
    decoder = import_module("vidtok_plugin.tokenizer.streams").DecoderStream
    with monkeypatch.context() as patch:
        for owner, name in ((Transformer, "step"), (Transformer, "prefill"), (decoder, "push")):
            original = getattr(owner, name)

            def call(*args: Any, name: str = name, original: Any = original, **kwargs: Any) -> Any:
                calls[name] += 1
                return original(*args, **kwargs)

            patch.setattr(owner, name, call)
        run()
    return calls


def test_a_batch_takes_no_more_calls_than_one_environment(
    world: World, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guard without a clock: sixteen single environments would take sixteen times as many."""
    env, envs = make(world, prompts, horizon=None), make_vector(world, prompts, 16, horizon=None)
    env.reset(seed=0), envs.reset(seed=0)
    acts = np.random.default_rng(0).integers(0, 3, (5, 16))

    def alone() -> None:
        for step in acts:
            env.step(step[0])
            env._episodes.ended[:] = False

    def together() -> None:
        for step in acts:
            envs._restarts[:] = False
            envs._episodes.ended[:] = False
            envs.step(step)

    one = counted(monkeypatch, alone)
    assert one["push"] == 5 and one["step"] == 5 * 4
    assert counted(monkeypatch, together) == one


# States


def test_a_state_is_restored_as_often_as_needed(world: World, prompts: Path) -> None:
    env = make(world, prompts, horizon=4 * F)

    def play(actions: tuple[int, ...] = (0, 2, 1, 0, 2)) -> list[np.ndarray]:
        frames = []
        for action in actions:
            observation, _, terminated, truncated, _ = env.step(action)
            frames.append(observation)
            if terminated or truncated:
                frames.append(env.reset()[0])  # the state decides on later episodes, too
        return frames

    env.reset(seed=0)
    env.step(1)
    state = env.clone_state()
    first = play()
    for _ in range(2):
        env.restore_state(state)
        assert all(np.array_equal(*pair) for pair in zip(first, play(), strict=True))
    env.restore_state(state)
    assert not all(np.array_equal(*pair) for pair in zip(first, play((2, 1, 0, 2, 1)), strict=False))


def test_a_vector_is_restored_with_its_restarts(world: World, prompts: Path) -> None:
    envs = make_vector(world, prompts, horizon=2 * F)
    actions = np.random.default_rng(1).integers(0, 3, (6, 3))
    envs.reset(seed=0)
    for action in actions[:2]:
        ends = np.logical_or(*envs.step(action)[2:4])
    assert ends.any()  # they start again in the next step
    state = envs.clone_state()
    first = [envs.step(action)[0] for action in actions]
    envs.reset(seed=9)
    envs.restore_state(state)
    assert all(np.array_equal(a, envs.step(action)[0]) for a, action in zip(first, actions, strict=True))
    with pytest.raises(ValueError, match="state must be of 1 environments like this one, got one of 3"):
        make(world, prompts).restore_state(state)


# Arguments


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt_frames": 4}, r"prompt_frames must be 1 \+ k \* 4 .* got 4"),
        ({"prompt_frames": 13}, r"must have at least 13 frames, got (9|11); lower prompt_frames"),
        ({"prompts": []}, "prompts must have at least one episode, got none"),
        ({"prompts": None}, "prompts must be given with a model and its adapter"),
        ({"horizon": 6}, "horizon must be a positive number of frames, a multiple of 4 .* got 6"),
        ({"horizon": 0}, "horizon must be .* got 0"),
        ({"action_repeat": 3}, "action_repeat must be a divisor of 4, .* got 3"),
        ({"action_range": (1.0, 0.0)}, "action_range must be two ascending numbers"),
        ({"render_mode": "human"}, "render_mode must be rgb_array or None, got 'human'"),
        ({"device": "cpu"}, "device is for worlds that are loaded, got cpu"),
    ],
)
def test_settings_that_do_not_fit_are_named(
    settings: dict[str, Any], message: str, world: World, prompts: Path
) -> None:
    for who, make_env in (("ImaginedEnv", make), ("ImaginedVectorEnv", make_vector)):
        with pytest.raises(ValueError, match=message) as error:
            make_env(world, **{"prompts": prompts} | settings)
        assert who in str(error.value)


def test_prompts_of_one_frame_with_a_tokenizer_of_v1_1(prompts: Path) -> None:
    """Its decoder's first latent has no past: a single environment may start there again, one of many may not."""
    model, _ = make_world(outcomes=False)
    torch.manual_seed(0)
    sizes = {"ch": 4, "ch_mult": (1, 1, 1, 1), "num_res_blocks": 1, "fsq_levels": (4, 3)}
    world = model, TokenizerAdapter(VidTok.from_preset("vidtok_fsq_causal_488_32768_v1_1", **sizes))
    env = make(world, prompts, prompt_frames=1)
    for _ in range(2):
        env.reset(seed=0)
        first, second = env.step(1)[0], env.step(2)[0]
    assert not np.array_equal(first, second)
    with pytest.raises(ValueError, match="prompt_frames must be at least 5, got 1: with a tokenizer of v1.1"):
        make_vector(world, prompts, prompt_frames=1)


def test_actions_and_options_that_do_not_fit_are_named(world: World, prompts: Path, tmp_path: Path) -> None:
    env = make(world, prompts)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"ImaginedEnv: actions must be in 0\.\.2, .* got 3"):
        env.step(3)
    with pytest.raises(ValueError, match=r"actions must be integers of shape \(\) .* got float64 of \(1,\)"):
        env.step(0.5)
    with pytest.raises(ValueError, match=r"reset has no such options, got \['difficulty'\]"):
        env.reset(options={"difficulty": 1})
    envs = make_vector(world, prompts)
    with pytest.raises(ValueError, match="seed must be a number, or one for each of the 3 environments, got 2"):
        envs.reset(seed=[1, 2])
    envs.reset()
    with pytest.raises(ValueError, match=r"each of 3 environments, got int64 of \(2,\)"):
        envs.step(np.array([0, 1]))
    with pytest.raises(ValueError, match="num_envs must be at least 1, got 0"):
        make_vector(world, prompts, 0)
    floats = make(make_world("continuous"), episode_with_floats(tmp_path), action_range=(-2.0, 2.0))
    floats.reset()
    floats.step(np.array([2.0, 0.0, -2.0]))
    with pytest.raises(ValueError, match="actions must be -2.0 to 2.0, action_range, got 0.0 to 3.0"):
        floats.step(np.array([3.0, 0.0, 0.0]))


@pytest.mark.slow
def test_importing_the_package_does_not_import_gymnasium() -> None:
    """But an import of gymnasium afterwards finds the environment."""
    code = (
        "import sys, world_model; assert 'gymnasium' not in sys.modules; import gymnasium; "
        f"assert {ENV_ID!r} in gymnasium.registry; assert 'ImaginedEnv' in world_model.__all__"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_stable_baselines3_trains_on_it_unmodified() -> None:
    """Foreign code is the proof of the interface: PPO with its convolutional policy, on the shipped world."""
    stable_baselines3 = pytest.importorskip("stable_baselines3")
    env = gymnasium.make(ENV_ID, world="boxing", horizon=4 * F, decoding=Decoding(order="diagonal"), device="cpu")
    agent = stable_baselines3.PPO("CnnPolicy", env, n_steps=8, batch_size=8, n_epochs=1, seed=0, device="cpu")
    before = [parameter.clone() for parameter in agent.policy.parameters()]
    agent.learn(total_timesteps=16)
    assert agent.num_timesteps == 16
    assert any(not torch.equal(*pair) for pair in zip(before, agent.policy.parameters(), strict=True))
    observation, _ = env.reset(seed=1)
    action, _ = agent.predict(observation)
    assert env.step(action)[0].shape == (64, 64, 3)


def test_a_fork_shares_the_past_without_a_copy(world: World, prompts: Path) -> None:
    env = make(world, prompts)
    env.reset(seed=0)
    state = env.clone_state()
    assert env._episodes.imagination is not None and state.episodes.imagination is not None
    own, shared = (x.generator.window.cache for x in (env._episodes.imagination, state.episodes.imagination))
    assert shared.shared[0].storage == own.own.storage
