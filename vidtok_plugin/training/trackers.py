"""The loggers of a run: files in its folder, and experiment trackers, with metrics and pictures alike."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from vidtok_plugin.common.atomic_files import atomic_write
from vidtok_plugin.common.config import to_dict
from vidtok_plugin.common.json_files import read_json_object
from vidtok_plugin.training.config import RunConfig
from vidtok_plugin.training.trackio_logger import TrackioLogger

PROJECT = "vidtok-plugin"  # unless the tracker's environment variable names another
IDS_FILE = "trackers.json"  # in the run's folder: a resumed run goes on in the trackers' same run
REMEDY = "remove it, and the trackers show a new run"


def build_loggers(cfg: RunConfig) -> list[Logger]:
    """The loggers that `cfg.loggers` names, in their order. Trackers show the run under the name of its folder."""
    if cfg.trainer.get("fast_dev_run"):
        return []  # Lightning would replace them
    ids = _ids(cfg) if set(cfg.loggers) & {"wandb", "trackio", "mlflow"} else {}
    name, env = cfg.output.name, os.environ
    loggers: list[Logger] = []
    if "csv" in cfg.loggers:
        loggers.append(CSVLogger(cfg.output, name="logs"))
    if "tensorboard" in cfg.loggers:
        loggers.append(TensorBoardLogger(cfg.output, name="tensorboard"))
    if "wandb" in cfg.loggers:
        project = env.get("WANDB_PROJECT", PROJECT)
        loggers.append(WandbLogger(name=name, save_dir=cfg.output, id=ids["id"], project=project))
    if "trackio" in cfg.loggers:
        project = env.get("TRACKIO_PROJECT", PROJECT)
        loggers.append(TrackioLogger(project, f"{name}-{ids['id']}"))
    if "mlflow" in cfg.loggers:
        loggers.append(_mlflow_logger(cfg, ids.get("mlflow")))
    return loggers


@contextmanager
def tracking(trainer: pl.Trainer, cfg: RunConfig) -> Iterator[None]:
    """Gives the trackers the run's config, and ends their runs on every way out, as failed after an error."""
    trackers = [log for log in trainer.loggers if isinstance(log, WandbLogger | TrackioLogger | MLFlowLogger)]
    if not trackers or not trainer.is_global_zero:
        yield
        return
    ids = _ids(cfg)
    for log in trackers:
        if not (isinstance(log, MLFlowLogger) and "mlflow" in ids):  # MLflow refuses parameters that have changed
            log.log_hyperparams(to_dict(cfg))
        if isinstance(log, MLFlowLogger):
            _write_ids(cfg, {**ids, "mlflow": log.run_id})
    failed = True
    try:
        yield
        failed = False
    finally:
        for log in trackers:
            if isinstance(log, WandbLogger):  # else the next run of this process would go on in this one
                log.experiment.finish(exit_code=int(failed))
            else:
                log.finalize("failed" if failed else "success")


def log_picture(loggers: Sequence[Logger], name: str, picture: np.ndarray, step: int) -> None:
    """Gives a picture, uint8 (h, w, 3), to the loggers that show pictures; called in the first process only."""
    for log in loggers:
        if isinstance(log, TensorBoardLogger):
            log.experiment.add_image(name, picture, step, dataformats="HWC")
        elif isinstance(log, WandbLogger):
            log.log_image(name, [picture], step=step)
        elif isinstance(log, TrackioLogger):
            log.log_picture(name, picture, step)
        elif isinstance(log, MLFlowLogger):
            log.experiment.log_image(log.run_id, picture, key=name, step=step)


def _mlflow_logger(cfg: RunConfig, run_id: str | None) -> MLFlowLogger:
    uri, artifacts = os.environ.get("MLFLOW_TRACKING_URI"), None
    if not uri:  # a database and a folder of pictures in the run's folder
        cfg.output.mkdir(parents=True, exist_ok=True)
        uri, artifacts = f"sqlite:///{cfg.output.absolute()}/mlflow.db", (cfg.output.absolute() / "mlflow").as_uri()
    experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
    return MLFlowLogger(
        experiment, run_name=cfg.output.name, tracking_uri=uri, artifact_location=artifacts, run_id=run_id
    )


def _ids(cfg: RunConfig) -> dict[str, Any]:
    """The run's identities in the trackers; the first process chooses those of a new run."""
    path = cfg.output / IDS_FILE
    if not path.exists():
        ids = {"id": uuid4().hex[:8]}
        if getattr(rank_zero_only, "rank", 0) == 0:
            _write_ids(cfg, ids)
        return ids
    ids = read_json_object(path, REMEDY)
    if not isinstance(ids.get("id"), str):
        raise ValueError(f"{path} must have the key id; {REMEDY}.")
    return ids


def _write_ids(cfg: RunConfig, ids: dict[str, Any]) -> None:
    with atomic_write(cfg.output / IDS_FILE) as partial:
        partial.write_text(json.dumps(ids), encoding="utf-8")
