"""`world-model validate` measures a run's last checkpoint in three regimes and says what it cannot measure."""

import io
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from metric_networks import ToyI3D, save_torchscript
from progress_bars import ended_bars
from recordings import tiny_adapter, write_episode
from rich.console import Console

from vidtok_plugin import training
from vidtok_plugin.common.config import load_config, to_yaml
from vidtok_plugin.store.tokenize import write_store
from vidtok_plugin.video.episodes import find_episodes, find_videos
from world_model import WorldModelModule, WorldModelRunConfig
from world_model.cli import main
from world_model.measures import REGIMES, Measured, MeasuresConfig, Report
from world_model.measures.plots import write_plots
from world_model.measures.report import Row
from world_model.training.runs import fit_world_model, validate_world_model

SMALL = [
    "model.max_steps=4",
    "model.transformer={width: 24, depth: 1, heads: 2}",
    "data.window_steps=4",
    "loggers=[]",
    "curves=false",
    "trainer={accelerator: cpu, enable_progress_bar: false, max_epochs: -1, max_steps: 2, val_check_interval: 2}",
    "trainer.check_val_every_n_epoch=null",
    "trainer.num_sanity_val_steps=0",
    "measures.prompts=3",
    "measures.prompt_frames=5",
    "measures.future_frames=12",
    "measures.drift_rollouts=2",
    "measures.drift_frames=16",
    "measures.drift_segment=8",
]


def config(root: Path, *overrides: str) -> WorldModelRunConfig:
    settings = [f"data.store={root}/store", f"output={root}/run", *SMALL, *overrides]
    return load_config(WorldModelRunConfig, [], settings)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recordings, their tokens, and a run on them that keeps averaged weights."""
    root = tmp_path_factory.mktemp("validated")
    for number, frames in enumerate((60, 45)):
        write_episode(root / "episodes" / f"{number}.mp4", frames)
    for split in ("train", "validation"):
        write_store(tiny_adapter(), find_episodes(root / "episodes"), root / "store", split=split, clip_frames=21)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The .*_dataloader.* does not have many workers")
        warnings.filterwarnings("ignore", "Checkpoint directory .* exists")
        fit_world_model(config(root, "ema_decay=0.9"))
    return root


@pytest.fixture
def restored_logging() -> Iterator[None]:
    logger = logging.getLogger()
    handlers, level = logger.handlers, logger.level
    with warnings.catch_warnings():
        yield
    logging.captureWarnings(False)
    logger.handlers = handlers
    logger.setLevel(level)


@pytest.fixture
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots take most of a small validation's time; the command's test writes them."""
    monkeypatch.setattr("world_model.training.runs.write_plots", lambda report, folder: [])


def test_the_command_writes_every_regime_as_json_table_and_plots(
    root: Path, restored_logging: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "cfg.yaml").write_text(to_yaml(config(root, f"measures.episodes={root}/episodes")))
    bars = ended_bars(monkeypatch)
    assert main(["validate", "--config", str(root / "cfg.yaml")]) == 0
    assert len(bars) == 3 and all(completed == total for _, completed, total in bars)
    out = capsys.readouterr().out
    assert main(["validate", "--config", str(root / "cfg.yaml"), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    found = json.loads((root / "run" / "validation" / "validation.json").read_text())
    assert printed == found
    forced, prompted, free = (found[regime] for regime in REGIMES)
    assert forced["cross_entropy"] > 0 and forced["unigram_cross_entropy"] > 0 and forced["copy_cross_entropy"] > 0
    assert len(forced["accuracy_by_step"]) == 3 and len(forced["accuracy_by_position"]) == 2
    assert len(prompted["psnr_by_frame"]) == len(prompted["ssim_by_frame"]) == 12 and prompted["prompts"] == 3
    low, high = prompted["action_delta_psnr_interval"]
    assert low <= prompted["action_delta_psnr"] <= high
    assert free["frames"] == [8, 16] and len(free["token_divergence"]) == 2
    assert set(found["not_measured"]["prompt_then_free"]) == {"lpips", "fvd"}
    for text in (*REGIMES, "not measured", "measures.lpips_vgg=FILE", "measures.i3d=FILE", "unigram", "real play"):
        assert text in out
    for name in ("horizon.png", "positions.png", "drift.png"):
        assert (root / "run" / "validation" / name).read_bytes().startswith(b"\x89PNG")


def test_without_recordings_drift_is_measured_on_the_stores_tokens(root: Path, no_plots: None) -> None:
    report = validate_world_model(config(root))
    prompted, free = report.regimes["prompt_then_free"], report.regimes["free_running"]
    assert prompted.values == {} and set(prompted.not_measured) == {"psnr", "ssim", "lpips", "fvd", "action_delta_psnr"}
    assert all("measures.episodes=FOLDER" in why for why in prompted.not_measured.values())
    assert len(free.values["token_divergence"]) == 2 and "split validation" in free.values["real_source"]


def test_given_networks_are_used(root: Path, tmp_path: Path, no_plots: None) -> None:
    i3d = save_torchscript(ToyI3D(), tmp_path / "i3d.pt")
    report = validate_world_model(config(root, f"measures.episodes={root}/episodes", f"measures.i3d={i3d}"))
    prompted = report.regimes["prompt_then_free"]
    assert prompted.values["fvd"] > 0 and set(prompted.not_measured) == {"lpips"}
    with pytest.raises(FileNotFoundError, match=r"LPIPS: there is no file .*nowhere.pth"):
        validate_world_model(config(root, "measures.lpips_vgg=nowhere.pth"))


def test_it_measures_the_averaged_weights_of_the_last_checkpoint(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []

    class Recorder:
        def __init__(self, model: torch.nn.Module, *args: Any, **settings: Any) -> None:
            seen.append(model.state_dict())

        def report(self, source: str) -> Report:
            empty = Measured(values={})
            return Report(source=source, settings={}, regimes=dict.fromkeys(REGIMES, empty))

    monkeypatch.setattr("world_model.training.runs.Validation", Recorder)
    report = validate_world_model(config(root, "ema_decay=0.9"))
    last = training.last_checkpoint(root / "run" / "checkpoints")
    assert report.source == str(last) and last is not None
    exported = WorldModelModule(config(root)).model.from_pretrained(root / "run" / "model").state_dict()
    current = torch.load(last, weights_only=True)["current_model_state"]
    for name, tensor in exported.items():
        assert torch.equal(seen[0][name], tensor)
    assert any(not torch.equal(current[f"model.{name}"], tensor) for name, tensor in exported.items())


def test_an_architecture_other_than_the_checkpoints_is_refused(root: Path) -> None:
    with pytest.raises(
        ValueError, match=r"must have the architecture of the config, .* model.code_width \(64, not 32\)"
    ):
        validate_world_model(config(root, "model.code_width=32"))


def test_a_run_without_checkpoint_is_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"validate: there is no checkpoint in .*; run fit first"):
        validate_world_model(config(root, f"output={tmp_path}"))


def test_a_saved_world_is_measured_without_a_run(root: Path, tmp_path: Path, no_plots: None) -> None:
    saved = root / "run" / "model"
    report = validate_world_model(config(root, f"output={tmp_path}", f"pretrained={saved}"))
    averaged = validate_world_model(config(root, "ema_decay=0.9"))
    assert report.source == str(saved)
    assert report.regimes["teacher_forced"].values == averaged.regimes["teacher_forced"].values


def test_several_processes_are_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="it must run as one process, but a launcher has set WORLD_SIZE=2"):
        validate_world_model(config(root))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("prompt_frames=6", r"prompt_frames must be 1 \+ a multiple of 4 .*, got 6; the nearest are 5 and 9"),
        ("future_frames=10", "future_frames must be a multiple of 4 .*, got 10; the nearest are 8 and 12"),
        ("drift_frames=20", "drift_frames must be a multiple of drift_segment, 8, got 20; 24 is one"),
        ("prompts=0", "prompts must be at least 1, got 0"),
        ("episodes=nowhere", "nowhere doesn't exist"),
        ("drift_frames=80", "no recording in .* has 85 frames .*; lower measures.drift_frames"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_anything_runs(root: Path, setting: str, message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        validate_world_model(config(root, f"measures.episodes={root}/episodes", f"measures.{setting}"))


def test_fvd_needs_futures_long_enough() -> None:
    with pytest.raises(ValueError, match="future_frames must be at least 9 for FVD, got 8"):
        MeasuresConfig(future_frames=8, i3d=Path("i3d.pt"))


def test_recordings_without_actions_work_for_a_model_without_actions(tmp_path: Path, no_plots: None) -> None:
    folder = tmp_path / "episodes"
    write_episode(folder / "0.mp4", 60)
    for path in (folder / "0.actions.npy", folder / "0.json"):
        path.unlink()
    for split in ("train", "validation"):
        write_store(tiny_adapter(), find_videos(folder), tmp_path / "store", split=split, clip_frames=21)
    cfg = config(tmp_path, f"measures.episodes={folder}")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The .*_dataloader.* does not have many workers")
        fit_world_model(cfg)
    prompted = validate_world_model(cfg).regimes["prompt_then_free"]
    assert "trained without actions" in prompted.not_measured["action_delta_psnr"]
    assert len(prompted.values["psnr_by_frame"]) == 12


def report_of(**regimes: Measured) -> Report:
    empty = Measured(values={})
    return Report(source="a model", settings={}, regimes={name: regimes.get(name, empty) for name in REGIMES})


def test_only_what_was_measured_is_plotted(tmp_path: Path) -> None:
    forced = Measured(values={"flow_loss_by_step": [1.0, 0.5], "flow_loss_by_position": [[1.0, 2.0]]})
    paths = write_plots(report_of(teacher_forced=forced), tmp_path)
    assert [path.name for path in paths] == ["horizon.png", "positions.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["horizon.png", "positions.png"]


def test_the_table_has_a_section_for_each_regime_and_every_reason() -> None:
    forced = Measured(values={}, rows=[Row(name="accuracy", value="0.5", horizon="0.4 … 0.6", compared="copy 0.3")])
    free = Measured(values={}, not_measured={"motion": "there are no [frames]."})
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(report_of(teacher_forced=forced, free_running=free).table())
    text = console.export_text()
    assert all(regime in text for regime in REGIMES)
    assert "0.4 … 0.6" in text and "there are no [frames]." in text


def test_nan_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        report_of(teacher_forced=Measured(values={"accuracy": float("nan")})).write(tmp_path)
    assert not (tmp_path / "validation.json").exists()
