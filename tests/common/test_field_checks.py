"""The fields of config dataclasses are checked however the instance was made."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pytest

from vidtok_plugin.common.field_checks import check_fields
from vidtok_plugin.training.optimization import OptimizerConfig
from world_model.decoding import Decoding
from world_model.heads.sampler import Sampler

NAN, INF = float("nan"), float("inf")


@dataclass(frozen=True, kw_only=True)
class Part:
    size: int = 1


@dataclass(frozen=True, kw_only=True)
class Config:
    rate: float = 0.1
    steps: int | None = None
    flag: bool = False
    name: str = "a"
    shape: Literal["linear", "cosine"] = "linear"
    betas: tuple[float, float] = (0.9, 0.99)
    sizes: tuple[int, ...] = ()
    part: Part = Part()
    free: Any = None

    def __post_init__(self) -> None:
        check_fields(self)


@pytest.mark.parametrize(
    "fields",
    [
        {"rate": 1, "steps": None, "sizes": (1, 2)},
        {"rate": np.float32(0.5), "steps": np.int64(3), "betas": [0, 0.5]},
        {"free": NAN, "shape": "cosine"},
    ],
)
def test_values_of_the_fields_types_are_taken(fields: dict[str, Any]) -> None:
    Config(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rate": NAN}, "rate must be a finite number, got nan"),
        ({"rate": -INF}, "rate must be a finite number, got -inf"),
        ({"rate": 10**400}, "rate must be a finite number, got 1000"),
        ({"rate": True}, "rate must be a finite number, got True"),
        ({"rate": "1"}, "rate must be a finite number, got '1'"),
        ({"steps": 2.0}, "steps must be a whole number or None, got 2.0"),
        ({"steps": True}, "steps must be a whole number or None, got True"),
        ({"flag": 1}, "flag must be true or false, got 1"),
        ({"name": 3}, "name must be text, got 3"),
        ({"shape": "round"}, "shape must be 'linear' or 'cosine', got 'round'"),
        ({"betas": (0.9,)}, r"betas must be 2 values \(a finite number, a finite number\), got \(0.9,\)"),
        ({"betas": (0.9, NAN)}, r"betas must be 2 values"),
        ({"sizes": "12"}, "sizes must be several, each a whole number, got '12'"),
        ({"sizes": (1, None)}, "sizes must be several, each a whole number"),
        ({"part": {"size": 1}}, "part must be a Part, got {'size': 1}"),
    ],
)
def test_another_value_is_one_sentence(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^Config: {message}.*[.]$"):
        Config(**fields)


@pytest.mark.parametrize(
    ("cls", "fields"),
    [
        (OptimizerConfig, {"lr": INF}),
        (OptimizerConfig, {"lr": NAN}),
        (OptimizerConfig, {"muon_lr": INF}),
        (OptimizerConfig, {"weight_decay": NAN}),
        (OptimizerConfig, {"betas": (NAN, 0.9)}),
        (OptimizerConfig, {"gradient_clip": INF}),
        (OptimizerConfig, {"final_rate": NAN, "decay_steps": 1}),
        (OptimizerConfig, {"warmup_steps": 1.5}),
        (Sampler, {"temperature": NAN}),
        (Sampler, {"temperature": INF}),
        (Sampler, {"temperature": None}),
        (Sampler, {"top_k": 2.5}),
        (Sampler, {"top_p": NAN}),
        (Sampler, {"guidance": INF}),
        (Sampler, {"flow_steps": True}),
        (Sampler, {"seed": 1.0}),
        (Decoding, {"order": "masked", "choice_temperature": NAN}),
        (Decoding, {"order": "diagonal", "diagonal_offset": 1.5}),
        (Decoding, {"order": 3}),
        (Decoding, {"compiled": "yes"}),
        (Decoding, {"context_shift": 1.0}),
    ],
)
def test_samplers_decodings_and_optimizers_check_every_field(cls: type, fields: dict[str, Any]) -> None:
    name = next(iter(fields)) if cls is not Decoding else list(fields)[-1]
    with pytest.raises(ValueError, match=f"^{cls.__name__}: {name} must be .*, got "):
        cls(**fields)
