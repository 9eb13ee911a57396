"""Experiment trackers as loggers: metrics, pictures and config, one run for a resumed training."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vidtok_plugin.common.extras import MissingExtraError
from vidtok_plugin.training import RunConfig
from vidtok_plugin.training.trackers import build_loggers
from vidtok_plugin.video.writing import write_video


@pytest.mark.parametrize(
    ("name", "extra"), [("wandb", "wandb"), ("trackio", "trackio"), ("mlflow", "mlflow"), ("tensorboard", "train")]
)
def test_a_logger_that_is_not_installed_is_named_with_its_extra(
    name: str, extra: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=rf"loggers: {name} needs .* pip install 'vidtok-plugin\[{extra}\]'"):
        RunConfig(output=tmp_path, loggers=(name,))  # type: ignore[arg-type]


def test_a_dry_run_starts_no_run_in_a_tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vidtok_plugin.training.config.need_extra", lambda *_: None)
    names = ("csv", "wandb", "trackio", "mlflow")
    assert build_loggers(RunConfig(output=tmp_path, loggers=names, trainer={"fast_dev_run": True})) == []  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_wandb_offline_gets_metrics_pictures_and_config_and_a_resumed_run_keeps_its_id(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (12, 16, 16, 3), dtype=np.uint8)
    write_video(tmp_path / "clips" / "clip.mp4", frames, fps=30)
    settings = [
        *("output=run", "loggers=[wandb]", "from_scratch=true", "architecture={ch: 4, ch_mult: [1, 1, 1, 1]}"),
        *("data.train=[clips]", "data.validation=[clips]", "data.height=16", "data.width=16", "data.clip_length=5"),
        *("trainer.val_check_interval=2", "trainer.log_every_n_steps=1", "trainer.accelerator=cpu"),
    ]
    for steps in (2, 4):
        command = "import sys; from vidtok_plugin.cli import main; sys.exit(main(sys.argv[1:]))"
        arguments = ["fit", "--config", "demo_from_scratch", *settings, f"trainer.max_steps={steps}"]
        done = subprocess.run(
            [sys.executable, "-c", command, *arguments],
            cwd=tmp_path,
            env={**os.environ, "WANDB_MODE": "offline", "WANDB_PROJECT": "mine"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-4000:]
    run_id = json.loads((tmp_path / "run" / "trackers.json").read_text())["id"]
    runs = sorted((tmp_path / "run" / "wandb").glob("offline-run-*"))
    assert len(runs) == 2
    for run in runs:
        logged = (run / f"run-{run_id}.wandb").read_bytes()
        for text in (b"val/psnr", b"train/loss", b"trainer/global_step", b"gradient_clip", b"mine"):
            assert text in logged, text
        (picture,) = run.glob("files/media/images/reconstruction_*.png")
        assert picture.stat().st_size > 0
