"""Policies by name: covering, random, a function of the user's, or what stable-baselines3 saved."""

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vidtok_plugin.common.file_hashes import hash_files
from vidtok_plugin.common.paths import user_path
from world_model.recording.game import Game
from world_model.recording.policy import MakePolicy, Policy, covering, random

if TYPE_CHECKING:
    from gymnasium import Env, Space

OWN = {policy.__name__: policy for policy in (covering, random)}
LIBRARIES = ("stable_baselines3", "sb3_contrib")
CHOICES = "covering, random, module:function, or the path of a .zip that stable-baselines3 saved"


@dataclass(frozen=True, kw_only=True)
class NamedPolicy:
    """What makes the policy of each episode, and its name in their JSON."""

    name: str
    make: MakePolicy

    @classmethod
    def of(cls, policy: str | MakePolicy) -> "NamedPolicy":
        """A policy by its name, see `load_policy`, or what makes one."""
        if isinstance(policy, str):
            return load_policy(policy)
        return cls(name=getattr(policy, "__name__", repr(policy)), make=policy)

    def check(self, game: Game, hold: tuple[int, int]) -> None:
        """Make a policy and, unless it is one of ours, ask for its first action of a game.

        Raises:
            ValueError: it makes none, or the action is none of the game's.
        """
        game.renew()
        policy = self.make(game.env, hold, np.random.default_rng(0))
        if not callable(policy):
            raise ValueError(
                f"RecordConfig: policy {self.name} must make an episode's policy, a function of the observation, from "
                f"(env, hold, rng), got {type(policy).__name__}; return a function."
            )
        if self.make not in OWN.values():
            for _ in game.play(policy, seed=0, frames=2):
                pass


def load_policy(name: str) -> NamedPolicy:
    """The policy called covering or random, that of a `module:function`, or of a `.zip` that stable-baselines3 saved.

    A function is called once per episode as `function(env, hold, rng)` with the gymnasium environment, `hold` and a
    `numpy.random.Generator`, and returns the episode's policy: a function from an observation, in Atari the frame that
    is shown, to an action. A saved policy takes its likeliest actions. Both run code of their files.

    Raises:
        ValueError: there is no such policy, or it cannot be loaded.
        FileNotFoundError: there is no such file.
    """
    if name in OWN:
        return NamedPolicy(name=name, make=OWN[name])
    if name.endswith(".zip"):
        path = user_path(name)
        if not path.is_file():
            raise FileNotFoundError(f"RecordConfig: policy {path} must be a file, but there is none; check the path.")
        return NamedPolicy(name=f"{path.name} {hash_files(path)[:16]}", make=TrainedPolicies.load(path))
    module, colon, function = name.rpartition(":")
    if not colon or not module or not function:
        raise ValueError(f"RecordConfig: policy must be {CHOICES}, got {name!r}.")
    try:
        found: Any = importlib.import_module(module)
        for part in function.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"RecordConfig: policy {name} cannot be imported ({error}); correct it, or run the command where the "
            "module can be found."
        ) from error
    if not callable(found):
        raise ValueError(f"RecordConfig: policy {name} must be a function, got {type(found).__name__}; name another.")
    return NamedPolicy(name=name, make=found)


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainedPolicies:
    """Makes policies that act as a model of stable-baselines3 predicts."""

    path: Path
    model: Any  # a BaseAlgorithm

    @classmethod
    def load(cls, path: Path) -> "TrainedPolicies":
        """The model in a `.zip`, of whatever algorithm."""
        try:
            from stable_baselines3.common.save_util import load_from_zip_file
        except ImportError:
            raise ValueError(
                "RecordConfig: a policy in a .zip needs stable-baselines3, which is not installed; run: pip install "
                "stable-baselines3."
            ) from None
        try:
            data, _, _ = load_from_zip_file(path, device="cpu")
            wanted = (data or {}).get("policy_class")
            algorithm = next((found for found in _algorithms() if wanted in found.policy_aliases.values()), None)
            model = None if algorithm is None else algorithm.load(path, device="cpu")
        except Exception as error:  # unpickling may raise anything
            raise ValueError(
                f"RecordConfig: policy {path} cannot be loaded ({type(error).__name__}: {error}); save it again with "
                "model.save of stable-baselines3."
            ) from error
        if model is None:
            raise ValueError(
                f"RecordConfig: policy {path} must be a model of an algorithm in {' or '.join(LIBRARIES)} with one of "
                f"its own policy classes, got {getattr(wanted, '__name__', wanted)}; give it as module:function."
            )
        return cls(path=path, model=model)

    def __call__(self, env: "Env[Any, Any]", hold: tuple[int, int], rng: np.random.Generator) -> Policy:
        if self.model.action_space != env.action_space:
            raise self.unfit("action", self.model.action_space, env.action_space)
        return TrainedPolicy(self, env.observation_space)

    def unfit(self, what: str, trained: "Space[Any]", given: "Space[Any]") -> ValueError:
        """The error of an environment whose actions or observations are not those of the model."""
        return ValueError(
            f"RecordConfig: policy {self.path} must have the environment's {what} space {given}, got {trained}; record "
            "the environment with the wrappers that it was trained with, registered under a name of its own, or give "
            "the policy as module:function."
        )


class TrainedPolicy:
    """One episode's actions of a model, with the state of its recurrent network if it has one."""

    def __init__(self, maker: TrainedPolicies, observations: "Space[Any]") -> None:
        self.maker, self.observations = maker, observations
        self._state, self._start = None, np.ones(1, bool)

    def __call__(self, observation: Any) -> Any:
        import torch

        model = self.maker.model
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # sums that are split otherwise differ in their last digits
        try:
            action, self._state = model.predict(
                observation, state=self._state, episode_start=self._start, deterministic=True
            )
        except Exception as error:  # of whatever library, for observations of another kind
            raise self.maker.unfit("observation", model.observation_space, self.observations) from error
        finally:
            torch.set_num_threads(threads)
        self._start = np.zeros(1, bool)
        return action


def _algorithms() -> Iterator[Any]:
    """The algorithms of stable-baselines3, and of its contributors where that is installed."""
    for name in LIBRARIES:
        try:
            library = importlib.import_module(name)
        except ImportError:
            continue
        yield from (found for found in vars(library).values() if hasattr(found, "policy_aliases"))
