"""The demo's own settings, and which games and seeds it accepts."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from boxing_measures import SIZE
from omegaconf import OmegaConf
from shared import CONFIGS

from vidtok_plugin.common.config import load_config
from world_model import Decoding, Sampler
from world_model.recording.record import RecordConfig

BOXING = "ALE/Boxing-v5"


@dataclass(frozen=True, kw_only=True)
class RolloutsConfig:
    """Which rollouts the demo scores and shows."""

    prompts: int = 64
    prompt_frames: int = 13
    future_frames: int = 16  # for PSNR and the effect of the actions
    long_prompts: int = 48  # of Boxing, whose measures look further ahead
    long_frames: int = 64  # for these and for the pictures
    sampler: Sampler = field(default_factory=Sampler)
    decoding: Decoding = field(default_factory=Decoding)


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """The demo's own settings. Those of the trainings are in `configs/tokenizer/` and `configs/world_model/`."""

    record: RecordConfig
    rollouts: RolloutsConfig
    clip_frames: int  # of the clips that the world model trains on, each tokenized on its own
    from_scratch: bool = False  # train a new world model, on any game, in place of going on with `world`
    world: str = "boxing"  # a source for `load_world`
    tokenizer_clips: int = 32  # held-out clips for the tokenizer's PSNR
    output: Path = Path("runs/demo")

    def __post_init__(self) -> None:
        if self.from_scratch:
            return
        if self.record.env != BOXING:
            raise ValueError(
                f"demo: record.env must be {BOXING}, the game of the world that the demo starts from, got "
                f"{self.record.env}; add from_scratch=true to train a new world model on it."
            )
        if self.record.seed == (seed := OmegaConf.load(CONFIGS / "boxing" / "world.yaml").record.seed):
            raise ValueError(
                f"demo: record.seed must not be {seed}, since the shipped world was trained on that play; choose "
                "another seed."
            )

    @property
    def measures_boxing(self) -> bool:
        """Whether the measures of boxers apply."""
        return self.record.env == BOXING and self.record.size == SIZE


def demo_config(overrides: Sequence[str]) -> DemoConfig:
    """The config of `configs/demo.yaml`, or with from_scratch=true that of `configs/demo_from_scratch.yaml`."""
    from_scratch = OmegaConf.from_dotlist(list(overrides)).get("from_scratch")
    name = "demo_from_scratch" if from_scratch else "demo"
    return load_config(DemoConfig, [CONFIGS / f"{name}.yaml"], overrides)
