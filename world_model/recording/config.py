"""The settings of a recording."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from vidtok_plugin.common.field_checks import check_fields
from world_model.recording.game import AtariGame, Game, is_atari

SPLITS = ("train", "validation", "test")
ATARI_FRAME_SKIP = 2
ATARI_ONLY = ("warmup", "sticky_actions", "end_on_life_loss", "minimal_actions")
NOT_IN_RECIPE = ("output", "train_episodes", "validation_episodes", "test_episodes", "policy", "processes")


@dataclass(frozen=True, kw_only=True)
class RecordConfig:
    """The settings of a recording.

    Each split gets at least `*_episodes * frames_per_episode` frames. A file is one uninterrupted game of at most
    `frames_per_episode` frames, so games that end early give more files. Games shorter than `min_frames` are dropped.
    All lengths count recorded frames. One recorded frame covers `frame_skip` steps of the environment under the same
    action and shows the last; in Atari, the pixelwise maximum of the last two.

    `env` is a name that gymnasium knows, or `module:name` of a module that registers it. `policy` is covering, random,
    `module:function` (see `load_policy`), or the path of a policy that stable-baselines3 saved (`.zip`). `hold` is for
    covering and random. `processes` play one environment each, and do not change what is recorded. `warmup`,
    `sticky_actions`, `end_on_life_loss` and `minimal_actions` are for Atari games only.
    """

    env: str
    output: str
    train_episodes: int = 8
    validation_episodes: int = 2
    test_episodes: int = 2
    frames_per_episode: int = 1000
    min_frames: int = 64
    size: int | tuple[int, int] = 64  # height and width in pixels; one number for both
    frame_skip: int | None = None  # None: 2 in Atari games, 1 elsewhere
    hold: tuple[int, int] = (2, 12)  # smallest and largest number of frames for which the policy holds an action
    warmup: int = 0  # frames at the start of a game, played without action and not recorded
    sticky_actions: float = 0.0  # probability that the emulator repeats the previous action instead
    end_on_life_loss: bool = False  # an episode ends, terminated, where a life is lost
    minimal_actions: bool = True  # only the actions that have an effect in this game, not all 18
    seed: int = 0
    fps: float | None = None  # of the video files; None: the environment's render_fps, in Atari 60, over frame_skip
    crf: int = 10  # H.264 quality: 0 is lossless, larger values give smaller files
    env_kwargs: dict[str, Any] = field(default_factory=dict)  # for gymnasium.make
    policy: str = "covering"
    processes: int = 1

    def __post_init__(self) -> None:
        check_fields(self)
        minima = {
            "train_episodes": 0,
            "validation_episodes": 0,
            "test_episodes": 0,
            "frames_per_episode": 2,
            "min_frames": 2,
            "frame_skip": 1,
            "warmup": 0,
            "seed": 0,
            "processes": 1,
        }
        for name, minimum in minima.items():
            if (value := getattr(self, name)) is not None and value < minimum:
                raise ValueError(f"RecordConfig: {name} must be at least {minimum}, got {value}.")
        if min(self.frame_size) < 8:
            raise ValueError(f"RecordConfig: size must be at least 8, got {self.size}.")
        if self.min_frames > self.frames_per_episode:
            raise ValueError(
                f"RecordConfig: min_frames must be at most frames_per_episode ({self.frames_per_episode}),"
                f" got {self.min_frames}."
            )
        if len(self.hold) != 2 or not 1 <= self.hold[0] <= self.hold[1]:
            raise ValueError(
                f"RecordConfig: hold must be the smallest and the largest number of frames, from 1, got {self.hold}."
            )
        if not 0 <= self.sticky_actions < 1:
            raise ValueError(f"RecordConfig: sticky_actions must be in [0, 1), got {self.sticky_actions}.")
        if self.fps is not None and self.fps <= 0:
            raise ValueError(f"RecordConfig: fps must be above 0, got {self.fps}.")
        self._check_env_kwargs()

    def _check_env_kwargs(self) -> None:
        if "render_mode" in self.env_kwargs:
            raise ValueError("RecordConfig: env_kwargs must not have render_mode, which record sets; leave it out.")
        try:
            json.dumps(self.env_kwargs)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"RecordConfig: env_kwargs must be values that JSON can hold ({error}); register the environment with "
                "its settings under a name of its own."
            ) from None

    @property
    def frame_size(self) -> tuple[int, int]:
        """Height and width of the recorded frames."""
        return (self.size, self.size) if isinstance(self.size, int) else (self.size[0], self.size[1])

    def num_frames(self, split: str) -> int:
        return getattr(self, f"{split}_episodes") * self.frames_per_episode

    def open_game(self) -> Game:
        """The game to play.

        Raises:
            ValueError: the environment is unknown or cannot be played, or a setting does not fit it.
        """
        game: Game
        if is_atari(self.env):
            game = AtariGame(
                self.env,
                frame_skip=ATARI_FRAME_SKIP if self.frame_skip is None else self.frame_skip,
                warmup=self.warmup,
                sticky_actions=self.sticky_actions,
                minimal_actions=self.minimal_actions,
                end_on_life_loss=self.end_on_life_loss,
                env_kwargs=self.env_kwargs,
            )
        else:
            game = self._open_environment()
        if self.fps is None and game.fps is None:
            game.env.close()
            raise ValueError(
                f"RecordConfig: fps must be given for {self.env}, whose metadata has no render_fps; add fps=30, for "
                "example."
            )
        return game

    def _open_environment(self) -> Game:
        for name in ATARI_ONLY:
            if getattr(self, name) != (default := type(self).__dataclass_fields__[name].default):
                raise ValueError(
                    f"RecordConfig: {name} must be {default} for {self.env}, because it is for Atari games, got "
                    f"{getattr(self, name)}; leave it out."
                )
        from world_model.recording.environment import EnvironmentGame

        return EnvironmentGame(self.env, frame_skip=self.frame_skip or 1, env_kwargs=self.env_kwargs)

    def file_fps(self, game: Game) -> float:
        """Frames per second of the video files."""
        if self.fps is not None:
            return self.fps
        assert game.fps is not None  # else it was not opened
        return game.fps / game.frame_skip

    def recipe(self, game: Game) -> dict[str, Any]:
        """Every setting that determines what the n-th episode shows, but the policy; not the number of episodes or the
        folder."""
        left_out = {*NOT_IN_RECIPE, *(() if self.env_kwargs else ["env_kwargs"])}
        left_out |= set() if isinstance(game, AtariGame) else set(ATARI_ONLY)
        recipe = {name: value for name, value in asdict(self).items() if name not in left_out}
        lists = {name: list(value) for name, value in recipe.items() if isinstance(value, tuple)}
        return recipe | lists | {"frame_skip": game.frame_skip, "fps": self.file_fps(game)}

    @classmethod
    def from_recipe(cls, recipe: Mapping[str, Any]) -> "RecordConfig":
        """The settings in an episode's JSON."""
        return cls(**recipe, output="")
