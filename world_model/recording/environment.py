"""Any gymnasium environment that renders pictures, played frame by frame."""

import importlib
import logging
import re
import warnings
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from typing import TYPE_CHECKING, Any

import numpy as np

from world_model.recording.game import Game, PlayedFrame

if TYPE_CHECKING:
    from gymnasium import Env

logger = logging.getLogger(__name__)

RENDER_MODE = "rgb_array"


class EnvironmentGame(Game):
    """An environment of gymnasium that shows one frame for every `frame_skip` of its steps.

    Frames are what it renders. Its state is the low-dimensional part of the observations, if there is one. `renew`
    makes a new environment: some keep a part of the last game, such as a mark that they draw, when they are reset.

    Raises:
        ValueError: the environment is unknown, fails or does not render, or its action space has no vectors of a fixed
            length.
    """

    def __init__(self, name: str, *, frame_skip: int, env_kwargs: Mapping[str, Any]) -> None:
        self.name, self.frame_skip, self.env_kwargs = name, frame_skip, env_kwargs
        self.env, self._used = make_env(name, env_kwargs), False
        try:
            from world_model.recording.spaces import RecordedActions, RecordedState

            self.actions = RecordedActions(space=self.env.action_space)
            self.state = RecordedState.of(self.env.observation_space)
            rate = self.env.metadata.get("render_fps")
            self.fps = float(rate) if rate else None
            self.version = _version(self.env)
            self._size: tuple[int, ...] = ()
            self._try()
        except BaseException:
            self.env.close()
            raise

    def _try(self) -> None:
        """An environment that does not start or render is refused before anything is written."""
        try:
            self.env.reset(seed=0)
            self.env.render()
        except Exception as error:  # the environment's own code may raise anything
            raise ValueError(f"record: {self.name} cannot be played: {_told(error)}; {_remedy(error)}.") from error
        frame = self.start(seed=0).frame
        if (frame == frame[:1, :1]).all():
            logger.warning("%s renders a first frame of one color; look whether its pictures are right", self.name)

    def renew(self) -> None:
        if self._used:
            self.env.close()
            self.env = make_env(self.name, self.env_kwargs)
            self._used = False

    def start(self, seed: int) -> PlayedFrame:
        self._used = True
        observation, _ = self.env.reset(seed=seed)
        return self._played(observation, self.actions.first, 0.0, False, False)

    def step(self, action: Any) -> PlayedFrame:
        checked = self.actions.checked(action)
        total, terminated, truncated = 0.0, False, False
        for _ in range(self.frame_skip):
            observation, reward, terminated, truncated, _ = self.env.step(checked)
            total += float(reward)
            if terminated or truncated:
                break
        return self._played(observation, self.actions.row(checked), total, bool(terminated), bool(truncated))

    def _played(
        self, observation: Any, action: int | np.ndarray, reward: float, terminated: bool, truncated: bool
    ) -> PlayedFrame:
        return PlayedFrame(
            frame=self._render(),
            action=action,
            reward=reward,
            terminated=terminated,
            truncated=truncated,
            observation=observation,
            state=None if self.state is None else self.state.read(observation),
        )

    def _render(self) -> np.ndarray:
        frame = self.env.render()
        if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            got = f"{frame.dtype} of {frame.shape}" if isinstance(frame, np.ndarray) else type(frame).__name__
            raise ValueError(
                f"record: {self.name} must render uint8 arrays (h, w, 3), got {got}; wrap it in one that does."
            )
        if self._size and frame.shape != self._size:
            raise ValueError(
                f"record: {self.name} must render frames of one size, got {frame.shape[:2]} after {self._size[:2]}; "
                "wrap it in one that does."
            )
        self._size = frame.shape
        return frame.copy()  # some environments draw into one array

    def action(self, row: Any) -> Any:
        return self.actions.action(row)

    def rows(self, rows: list[Any]) -> np.ndarray:
        return self.actions.rows(rows)

    def facts(self) -> dict[str, Any]:
        space = self.actions.description()
        meanings = getattr(self.env.unwrapped, "get_action_meanings", None)
        if space["kind"] == "discrete" and meanings is not None and len(named := list(meanings())) == space["size"]:
            space["meanings"] = [str(name) for name in named]
        state = {} if self.state is None else {"state": self.state.description()}
        return {"action_space": space, **state, "gymnasium": version("gymnasium")}


def make_env(name: str, env_kwargs: Mapping[str, Any]) -> "Env[Any, Any]":
    """The environment `name`, or `module:name` of a module that registers it, with pictures as its rendering."""
    try:
        import gymnasium
    except ImportError:
        raise ValueError(
            "record: playing an environment needs gymnasium, which is not installed; run: pip install "
            "'vidtok-plugin[envs]'."
        ) from None
    _import_module(name)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*that is not in the possible render_modes")  # an error below
            env = gymnasium.make(name, render_mode=RENDER_MODE, disable_env_checker=True, **env_kwargs)
    except gymnasium.error.UnregisteredEnv as error:
        raise ValueError(
            f"RecordConfig: env must be an environment that is registered with gymnasium, got {name!r} "
            f"({_told(error)}); correct the name, or put the module in front that registers it, as in "
            "gym_pusht:gym_pusht/PushT-v0."
        ) from None
    except Exception as error:  # the environment's own code may raise anything
        raise ValueError(f"RecordConfig: env {name!r} cannot be made: {_told(error)}; {_remedy(error)}.") from error
    modes = list(env.metadata.get("render_modes") or [])
    if RENDER_MODE not in modes:
        env.close()
        raise ValueError(
            f"RecordConfig: env must be able to render pictures (render_mode={RENDER_MODE!r}), but {name} renders "
            f"{', '.join(map(str, modes)) or 'nothing'}; choose another, or add the mode to it."
        )
    return env


def _import_module(name: str) -> None:
    """Import the module of `module:name`, which registers the environment."""
    module = name.rpartition(":")[0]
    if not module:
        return
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"RecordConfig: env {name!r} needs the module {error.name or module}, which cannot be imported "
            f"({_told(error)}); install the package that has it, or run the command where it can be found."
        ) from error


def _told(error: Exception) -> str:
    """The message of an error of another library, with its type if that is no error of the installation."""
    text = " ".join(str(error).split()).rstrip(".")
    return text if isinstance(error, ImportError) or _of_gymnasium(error) else f"{type(error).__name__}: {text}"


def _of_gymnasium(error: Exception) -> bool:
    return type(error).__module__.startswith("gymnasium.")


def _remedy(error: Exception) -> str:
    if re.search("OpenGL|GLFW|EGL", str(error)):
        return "set up its graphics: without a display, MuJoCo needs MUJOCO_GL=egl or MUJOCO_GL=osmesa"
    missing = getattr(error, "name", None) if isinstance(error, ImportError) else None
    if missing:
        return f"install the package that has {missing}"
    if re.search("not installed|pip install", str(error)):
        return "install it"
    return "correct env or env_kwargs, or repair the environment; --traceback shows where"


_packages = cache(packages_distributions)  # which reads all packages that are installed


def _version(env: "Env[Any, Any]") -> str | None:
    """The version of the installed package that has an environment's class."""
    names = _packages().get(type(env.unwrapped).__module__.partition(".")[0], [])
    try:
        return version(names[0]) if names else None
    except PackageNotFoundError:
        return None
