"""Training runs: Lightning's Trainer with checkpoints, logs and resumption."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar

from vidtok_plugin.common.atomic_files import atomic_write
from vidtok_plugin.common.config import to_yaml
from vidtok_plugin.common.devices import has_fast_bfloat16
from vidtok_plugin.common.folder_lock import FolderLock
from vidtok_plugin.common.paths import local_output
from vidtok_plugin.common.progress import shows_progress
from vidtok_plugin.training.averaging import EMA
from vidtok_plugin.training.batch_bar import BatchBar
from vidtok_plugin.training.checkpoints import AtomicCheckpointIO, Checkpoints, last_checkpoint, set_aside_damaged
from vidtok_plugin.training.config import RunConfig
from vidtok_plugin.training.curves import Curves
from vidtok_plugin.training.freed_memory import KeepFreedMemory
from vidtok_plugin.training.learning_rates import LearningRates
from vidtok_plugin.training.loading import ResumableDataModule
from vidtok_plugin.training.signals import StopAtSigterm
from vidtok_plugin.training.throughput import Throughput
from vidtok_plugin.training.trackers import build_loggers, tracking

logger = logging.getLogger(__name__)


def default_callbacks(cfg: RunConfig) -> list[pl.Callback]:
    """The callbacks of every run: learning rates, throughput, and curves of all logged scalars.

    Put them after all callbacks that log: the curves hold what has been logged before them.
    """
    curves = [Curves(cfg.pictures_folder / "curves.png")] if cfg.curves else []
    return [LearningRates(), Throughput(), *curves]


def build_trainer(
    cfg: RunConfig, callbacks: Sequence[pl.Callback] = (), *, progress: bool = True, **settings: Any
) -> pl.Trainer:
    """The Trainer of a run. It chooses the device unless `cfg.trainer` does.

    progress: show a progress bar if stderr is a terminal, or `trainer.enable_progress_bar` asks for it.
    settings: Trainer keywords that override those of the config, such as a strategy object.
    """
    if logging.getLogger().handlers:  # Lightning's own, which it adds when it is imported, would print all again
        logging.getLogger("lightning").handlers.clear()
    output = local_output(cfg.output)
    keywords = {"enable_model_summary": False, "enable_progress_bar": shows_progress(), **cfg.trainer, **settings}
    keywords["enable_progress_bar"] = progress and keywords["enable_progress_bar"]
    if keywords.get("precision") == "auto":
        fast = has_fast_bfloat16(str(keywords.get("accelerator", "auto")))
        keywords["precision"] = "bf16-mixed" if fast else "32-true"
    checkpoints = Checkpoints(cfg)
    averaging = [] if cfg.ema_decay is None else [EMA(cfg.ema_decay)]
    own_bar = any(isinstance(callback, ProgressBar) for callback in callbacks)
    bars = [BatchBar()] if keywords["enable_progress_bar"] and not own_bar else []
    keeping = [KeepFreedMemory()] if cfg.keep_freed_memory else []
    # Averages are updated before they are saved: Lightning runs checkpoint callbacks last.
    return pl.Trainer(
        **keywords,
        logger=build_loggers(cfg),
        callbacks=[*averaging, *callbacks, *bars, *keeping, checkpoints, StopAtSigterm(checkpoints)],
        plugins=[AtomicCheckpointIO()],
        default_root_dir=output,
    )


def fit(
    cfg: RunConfig,
    module: pl.LightningModule,
    data: pl.LightningDataModule,
    callbacks: Sequence[pl.Callback] = (),
    *,
    export: Callable[[], None] | None = None,
    progress: bool = True,
    **settings: Any,
) -> pl.Trainer:
    """Trains, resuming from the run's last checkpoint if it has one, and writes the resolved config to `cfg.output`.

    At the end, the module holds the averaged weights if `cfg.ema_decay` is set. With `trainer.fast_dev_run` nothing is
    resumed, written or exported.

    export: called at the end in all processes, to save the model.
    progress: as in `build_trainer`.

    Raises:
        ValueError: another process trains into `cfg.output`.
    """
    trainer = build_trainer(cfg, callbacks, progress=progress, **settings)
    dry = bool(trainer.fast_dev_run)  # type: ignore[attr-defined]
    writes = trainer.is_global_zero and not dry
    with FolderLock(cfg.output) if writes else nullcontext():
        last = None if dry else last_checkpoint(cfg.checkpoints)
        if writes:
            set_aside_damaged(cfg.checkpoints, last)
            with atomic_write(cfg.output / "config.yaml") as partial:
                partial.write_text(to_yaml(cfg), encoding="utf-8")
        if last is not None:
            logger.info("Resuming from %s.", last)
        with tracking(trainer, cfg), _ended(data):
            trainer.fit(module, data, ckpt_path=last, weights_only=True)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, EMA):
                callback.export(module)
        if export is not None and not dry:
            export()
    return trainer


def validate(
    cfg: RunConfig,
    module: pl.LightningModule,
    data: pl.LightningDataModule,
    *,
    table: bool = True,
    progress: bool = True,
    **settings: Any,
) -> dict[str, float]:
    """Evaluates the run's last checkpoint on its validation data; -> the metrics, by name.

    table: print them, too.
    progress: as in `build_trainer`.
    """
    last = last_checkpoint(cfg.checkpoints)
    if last is None:
        raise FileNotFoundError(f"validate: there is no checkpoint in {cfg.checkpoints}; run fit first.")
    trainer = build_trainer(cfg, progress=progress, **settings)
    with tracking(trainer, cfg), _ended(data):
        (metrics,) = trainer.validate(module, data, ckpt_path=last, weights_only=True, verbose=table)
    return dict(metrics)


@contextmanager
def _ended(data: pl.LightningDataModule) -> Iterator[None]:
    """Ends the loaders' workers on every way out. Ctrl-C is a KeyboardInterrupt again, not Lightning's SystemExit."""
    try:
        yield
    except SystemExit as end:
        if isinstance(end.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
    finally:
        if isinstance(data, ResumableDataModule):
            data.end_workers()
