"""Config files and overrides become checked dataclasses; every mistake is one sentence with its key."""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidtok_plugin.common.config import ConfigError, check_keywords, load_config, to_dict, to_yaml

Write = Callable[[str], Path]


class Order(Enum):
    RASTER = 1
    SPIRAL = 2


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    width: int = 8
    activation: Literal["gelu", "relu"] = "gelu"
    kernel: tuple[int, int, int] = (3, 3, 3)
    multipliers: tuple[int, ...] = (1, 2)
    order: Order = Order.RASTER

    def __post_init__(self) -> None:
        if self.width % 2:
            raise ValueError(f"ModelConfig: width must be even, got {self.width}; take {self.width + 1}.")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    data: Path
    model: ModelConfig = field(default_factory=lambda: ModelConfig(width=16))
    teacher: ModelConfig | None = None
    head: ModelConfig
    name: str = "run"
    learning_rate: float = 1e-4
    clip: float | None = None
    devices: int | str = "auto"
    files: list[str] = field(default_factory=list)
    heads: dict[str, ModelConfig] = field(default_factory=dict)
    trainer: dict[str, Any] = field(default_factory=lambda: {"max_steps": 10})


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str) -> Path:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def load(*overrides: str) -> RunConfig:
    return load_config(RunConfig, [], ["data=videos", *overrides])


def test_defaults_come_from_the_dataclasses() -> None:
    assert load() == RunConfig(data=Path("videos"), head=ModelConfig())


def test_files_merge_left_to_right_and_overrides_come_last(write: Write) -> None:
    first = write("data: a\nmodel: {width: 2, kernel: [1, 1, 1]}\ntrainer: {max_epochs: 3}")
    second = write("model: {width: 4}")
    cfg = load_config(RunConfig, [first, second], ["model.activation=relu", "trainer.max_steps=7"])
    assert cfg.model == ModelConfig(width=4, kernel=(1, 1, 1), activation="relu")
    assert cfg.trainer == {"max_steps": 7, "max_epochs": 3}


def test_a_single_path_is_one_file(write: Write) -> None:
    assert load_config(RunConfig, write("data: a"), []).data == Path("a")  # type: ignore[arg-type]


def test_interpolation_works_across_files_overrides_and_defaults(write: Write) -> None:
    first = write("data: runs/${name}\nhead: {width: '${model.width}'}")
    cfg = load_config(RunConfig, [first, write("name: boxing")], ["clip=${learning_rate}"])
    assert (cfg.data, cfg.head.width, cfg.clip) == (Path("runs/boxing"), 16, 1e-4)


@pytest.mark.parametrize(
    ("override", "attribute", "value"),
    [
        ("model.kernel=[1,2,3]", "model.kernel", (1, 2, 3)),
        ("model.kernel.1=9", "model.kernel", (3, 9, 3)),
        ("model.kernel[1]=9", "model.kernel", (3, 9, 3)),
        ("model.multipliers=[1,2,4,4]", "model.multipliers", (1, 2, 4, 4)),
        ("model.order=SPIRAL", "model.order", Order.SPIRAL),
        ("learning_rate=1e-3", "learning_rate", 1e-3),
        ("learning_rate=1", "learning_rate", 1.0),
        ("clip=0.5", "clip", 0.5),
        ("clip=null", "clip", None),
        ("teacher.width=4", "teacher", ModelConfig(width=4)),
        ("teacher={}", "teacher", ModelConfig()),
        ("devices=2", "devices", 2),
        ("devices=all", "devices", "all"),
        ("files=[a,'1e-4']", "files", ["a", "1e-4"]),
        ("heads={a: {width: 2}}", "heads", {"a": ModelConfig(width=2)}),
        ("trainer.callbacks={a: [1, x]}", "trainer", {"max_steps": 10, "callbacks": {"a": [1, "x"]}}),
        ("name=a=b", "name", "a=b"),
    ],
)
def test_override_sets_typed_value(override: str, attribute: str, value: object) -> None:
    found: Any = load(override)
    for part in attribute.split("."):
        found = getattr(found, part)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "model.widht=4",
            "unknown key model.widht (override 'model.widht=4'); the nearest known key is model.width.",
        ),
        ("width=4", "unknown key width (override 'width=4'); the nearest known key is model.width."),
        ("teacher.widht=4", "nearest known key is teacher.width."),
        ("heads.a.widht=4", "nearest known key is heads.a.width."),
        ("learning_rat=1", "nearest known key is learning_rate."),
        ("learning_rate=abc", "learning_rate (override 'learning_rate=abc') must be float, got 'abc' (str)."),
        ("learning_rate=", "must be float, got nothing (null)."),
        (
            "learning_rate=.inf",
            "learning_rate (override 'learning_rate=.inf') must be a finite number, got inf (float).",
        ),
        ("learning_rate=.nan", "must be a finite number, got nan"),
        (f"learning_rate=1{'0' * 400}", "must be float, got 1000"),
        ("model.width=8.0", "must be int, got 8.0 (float)."),
        ("model.width=true", "must be int, got True (bool)."),
        ("devices=1.5", "must be int or str, got 1.5 (float)."),
        ("name=3", "must be str; put it in quotes, got 3 (int)."),
        ("data=3", "must be Path, got 3 (int)."),
        ("model.activation=gel", "must be one of gelu, relu, got 'gel' (str)."),
        ("model.order=WAVE", "must be one of RASTER, SPIRAL"),
        ("model.order=[1]", "must be one of RASTER, SPIRAL"),
        ("model.kernel=[1,2]", "must be a list of 3, got [1, 2] (list)."),
        ("model.multipliers=3", "must be a list, got 3 (int)."),
        ("model.multipliers=[1,a]", "model.multipliers.1 (override 'model.multipliers=[1,a]') must be int"),
        ("model=3", "must be a mapping of the keys of ModelConfig, got 3 (int)."),
        ("model=null", "must be a mapping of the keys of ModelConfig, got nothing (null)."),
        ("model.width.x=3", "must be int, got {'x': 3} (dict)."),
        ("trainer=3", "must be a mapping of keys to values"),
        ("model.width=???", "model.width is required; set it in a config file or as model.width=VALUE."),
        ("trainer.max_steps=???", "trainer.max_steps is required"),
        ("clip=${nope}", "clip (override 'clip=${nope}'): Interpolation key 'nope' not found."),
        ("clip=${", "has a value that is not valid YAML"),
        ("clip=[1,", "override 'clip=[1,' has a value that is not valid YAML"),
        ("clip", "override 'clip' must read key=value; for example seed=1."),
        ("=3", "override '=3' must read key=value"),
        ("a..b=3", "override 'a..b=3' must read key=value"),
        ("more.yaml", "for a config file use --config more.yaml."),
        ("files.3=a", "files.3: list index out of range."),
    ],
)
def test_mistaken_override_is_one_sentence(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(override)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no keys"),
        ("# only a comment\n", "has no keys"),
        ("- a\n- b\n", "must hold keys and values"),
        ("hello there", "must hold keys and values"),
        ("null", "must hold keys and values"),
        ("a: [1,\n", "is not valid YAML: line 2, column 1"),
        ("a: 1\na: 2\n", "is not valid YAML: line 2, column 1: found duplicate key a."),
        ("model:\n\twidth: 3\n", "is not valid YAML: line 2"),
        ("model:\n  widht: 3\n", "the nearest known key is model.width."),
    ],
)
def test_mistaken_file_is_one_sentence_that_names_it(write: Write, text: str, message: str) -> None:
    path = write(text)
    with pytest.raises(ConfigError) as caught:
        load_config(RunConfig, [path], ["data=a"])
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_binary_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not a text file"):
        load_config(RunConfig, [tmp_path / "a.yaml"])


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no.yaml does not exist; give a YAML file"):
        load_config(RunConfig, [tmp_path / "no.yaml"])
    with pytest.raises(FileNotFoundError, match="is a folder"):
        load_config(RunConfig, [tmp_path])


def test_the_last_source_is_blamed(write: Write) -> None:
    first, second = write("model: {width: a}"), write("model: {width: b}")
    with pytest.raises(ConfigError, match=second.name):
        load_config(RunConfig, [first, second], ["data=a"])


def test_required_key_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^data is required; set it in a config file or as data=VALUE\.$"):
        load_config(RunConfig, [])


def test_errors_of_post_init_get_the_key_in_front() -> None:
    with pytest.raises(ConfigError, match=r"^model \(override .*\): ModelConfig: width must be even"):
        load("model.width=3")
    with pytest.raises(ConfigError, match=r"^heads\.a \(.*\): ModelConfig: width must be even"):
        load("heads.a.width=3")


def test_an_unsupported_field_type_is_a_type_error() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Odd:
        value: complex

    with pytest.raises(TypeError, match="Odd: value has the type"):
        load_config(Odd, [], ["value=1"])


def test_yaml_round_trip(write: Write) -> None:
    cfg = load(
        "teacher.width=4", "name='1e-4'", "clip=1e-5", "files=[a,'yes','null']", "model.order=SPIRAL",
        "heads.a.width=2", "trainer.limit={a: null}", "model.kernel=[1,2,3]",
    )  # fmt: skip
    assert load_config(RunConfig, [write(to_yaml(cfg))]) == cfg
    assert to_dict(cfg)["model"]["order"] == "SPIRAL"


@settings(max_examples=30)
@given(
    name=st.text(st.characters(codec="utf-8")).filter(lambda text: text != "???"),
    rate=st.floats(allow_nan=False, allow_infinity=False),
    number=st.integers(-(2**63), 2**63),
)
def test_any_value_survives_the_round_trip(name: str, rate: float, number: int) -> None:
    cfg = RunConfig(data=Path("a"), head=ModelConfig(), name=name, learning_rate=rate, devices=number)
    with TemporaryDirectory() as folder:
        path = Path(folder, "a.yaml")
        path.write_text(to_yaml(cfg), encoding="utf-8", newline="")
        assert load_config(RunConfig, [path]) == cfg


def test_keywords_of_a_function_are_checked() -> None:
    def function(max_steps: int = 1, max_epochs: int = 1) -> None:
        pass

    check_keywords("trainer", {"max_steps": 3}, function)
    with pytest.raises(ConfigError, match="unknown key trainer.max_epoch; .* is trainer.max_epochs"):
        check_keywords("trainer", {"max_epoch": 3}, function)


def test_a_renamed_key_is_refused_with_its_new_name() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Inner:
        RENAMED: ClassVar[dict[str, str]] = {"stretch": "segment"}
        segment: int = 1

    @dataclass(frozen=True, kw_only=True)
    class Outer:
        inner: Inner = Inner()

    with pytest.raises(ConfigError, match=r"unknown key inner.stretch .*; it is now called inner.segment\.$"):
        load_config(Outer, [], ["inner.stretch=4"])
