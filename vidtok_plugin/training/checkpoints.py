"""Checkpoints of a run: written atomically, checked for damage, and the newest intact one found again."""

import logging
import pickle
import re
import zipfile
import zlib
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.types import _PATH
from lightning.pytorch.callbacks import Checkpoint

from vidtok_plugin.common.atomic_files import atomic_write
from vidtok_plugin.common.damage import DAMAGE
from vidtok_plugin.training.config import RunConfig

logger = logging.getLogger(__name__)

NAME = "step-{:08d}.ckpt"
PATTERN = re.compile(r"step-(\d{8,})\.ckpt")


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints atomically: after a crash, a checkpoint's name refers to a complete file or to none.

    Lightning's own version holds a second copy of the checkpoint in memory, and writes through the system's temporary
    folder, which may be on another disk.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None) -> None:
        if storage_options is not None:
            raise ValueError("AtomicCheckpointIO: storage_options is for remote file systems; leave it out.")
        # An open file: given a path, torch would store the temporary name in the checkpoint.
        with atomic_write(Path(path)) as partial, partial.open("wb") as file:
            torch.save(checkpoint, file)


class Checkpoints(Checkpoint):
    """Saves every `checkpoint_every` batches, before validations and after the last batch; keeps `keep_checkpoints`.

    Lightning's ModelCheckpoint does not fit: it warns under manual optimization, and does not save after the last
    batch. Saving after `Trainer.fit` does not fit either: such a checkpoint marks its epoch as complete, so a run that
    is extended from it would skip the rest of the epoch.
    """

    def __init__(self, cfg: RunConfig) -> None:
        self.cfg = cfg
        self.saved_step = -1

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        step = trainer.global_step
        last = step == trainer.estimated_stepping_batches or trainer.should_stop  # set by a time limit
        if last or step % self.cfg.checkpoint_every == 0:
            self.save(trainer)

    def on_validation_start(self, trainer: pl.Trainer, *_: Any) -> None:
        # Before averaged weights are swapped in: a run that ends in a long validation resumes here.
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.save(trainer)

    def save(self, trainer: pl.Trainer) -> None:
        """Saves the state after this batch, unless it has been saved already or the run is a dry one."""
        if self.saved_step == trainer.global_step or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        self.saved_step = trainer.global_step
        trainer.save_checkpoint(self.cfg.checkpoints / NAME.format(trainer.global_step), weights_only=False)
        if trainer.is_global_zero:
            for old in find_checkpoints(self.cfg.checkpoints)[self.cfg.keep_checkpoints :]:
                old.unlink()


def find_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, newest first."""
    steps = {path: int(match[1]) for path in folder.glob("*.ckpt") if (match := PATTERN.fullmatch(path.name))}
    return sorted(steps, key=lambda path: steps[path], reverse=True)


def last_checkpoint(folder: Path) -> Path | None:
    """The newest intact checkpoint in a folder; None if the folder has no checkpoint.

    Raises:
        ValueError: all checkpoints in the folder are damaged.
    """
    found = find_checkpoints(folder)
    for path in found:
        damage = find_damage(path)
        if damage is None:
            return path
        logger.warning("%s is damaged (%s); trying the checkpoint before it.", path, damage)
    if found:
        raise ValueError(
            f"training: all checkpoints in {folder} are damaged; restore one, or remove the folder to start over."
        )
    return None


def set_aside_damaged(folder: Path, resumed: Path | None) -> None:
    """Renames the damaged checkpoints, those newer than `resumed`, and removes files that a killed run left partial."""
    for partial in folder.glob(".step-*.part*"):
        partial.unlink()
    for path in find_checkpoints(folder):
        if path == resumed:
            return
        path.rename(path.with_name(f"{path.name}.damaged"))


def find_damage(path: Path) -> str | None:
    """Describes the damage to a checkpoint file, found by its checksums and by reading it; None if it is intact."""
    try:
        with zipfile.ZipFile(path) as file:
            broken = file.testzip()
        if broken is not None:
            return f"wrong checksum of {broken}"
        torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except (zipfile.BadZipFile, zlib.error, pickle.UnpicklingError, NotImplementedError, *DAMAGE) as error:
        return (str(error).splitlines() or [""])[0] or type(error).__name__
    return None
