"""Checkpoints of a run: written whole or not at all, and the newest whole one found again."""

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
from vidtok_plugin.common.checkpoint_files import DAMAGE
from vidtok_plugin.training.config import RunConfig

logger = logging.getLogger(__name__)

NAME = "step-{:08d}.ckpt"
PATTERN = re.compile(r"step-(\d{8,})\.ckpt")


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the file, flushes to the disk, and renames: whenever the machine stops, a name has a whole file.

    Lightning's own goes through the system's folder for temporary files, and copies from there where that is another
    disk; and through a copy of the whole checkpoint in memory.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None) -> None:
        if storage_options is not None:
            raise ValueError("AtomicCheckpointIO: storage_options are for remote file systems; leave them out.")
        with atomic_write(Path(path)) as partial, open(partial, "wb") as file:
            torch.save(checkpoint, file)


class Checkpoints(Checkpoint):
    """Saves every `checkpoint_every` batches and after the last, from inside the loop; keeps the newest few.

    Not Lightning's ModelCheckpoint: under manual optimization it warns that the weights are those after the step,
    which are the right ones; and it doesn't save after the last batch. A checkpoint that `Trainer.fit` has returned
    from counts its epoch as complete, so that a run that was prolonged from it would skip the rest.
    """

    def __init__(self, cfg: RunConfig) -> None:
        self.cfg = cfg
        self.saved_step = -1

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        step = trainer.global_step
        last = step == trainer.estimated_stepping_batches or trainer.should_stop  # as a limit of time has it
        if last or step % self.cfg.checkpoint_every == 0:
            self.save(trainer)

    def save(self, trainer: pl.Trainer) -> None:
        """Saves the state after this batch, unless it is saved already."""
        if self.saved_step == trainer.global_step:
            return
        self.saved_step = trainer.global_step
        trainer.save_checkpoint(self.cfg.checkpoints / NAME.format(trainer.global_step), weights_only=False)
        if trainer.is_global_zero:
            for old in find_checkpoints(self.cfg.checkpoints)[self.cfg.keep_checkpoints :]:
                old.unlink()


def find_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, the newest first."""
    steps = {path: int(match[1]) for path in folder.glob("*.ckpt") if (match := PATTERN.fullmatch(path.name))}
    return sorted(steps, key=lambda path: steps[path], reverse=True)


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint in a folder; None if there is none at all.

    Raises:
        ValueError: all that are there are damaged.
    """
    found = find_checkpoints(folder)
    for path in found:
        damage = find_damage(path)
        if damage is None:
            return path
        logger.warning("%s is damaged (%s) and left aside; the checkpoint before it is taken.", path, damage)
    if found:
        raise ValueError(
            f"training: all checkpoints in {folder} are damaged; remove that folder to train anew, or restore one."
        )
    return None


def put_aside_after(folder: Path, chosen: Path | None) -> None:
    """Renames checkpoints newer than the chosen one, which are damaged, so that new ones can take their names; removes
    what a run that was killed left half written."""
    for partial in folder.glob(".step-*.part"):
        partial.unlink()
    for path in find_checkpoints(folder):
        if path == chosen:
            return
        path.rename(path.with_name(f"{path.name}.damaged"))


def find_damage(path: Path) -> str | None:
    """What is wrong with a checkpoint file, by the checksums in it and by reading all but its tensors; None if it is
    whole."""
    try:
        with zipfile.ZipFile(path) as file:
            broken = file.testzip()
        if broken is not None:
            return f"the checksum of {broken} is wrong"
        torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except (zipfile.BadZipFile, zlib.error, pickle.UnpicklingError, NotImplementedError, *DAMAGE) as error:
        return (str(error).splitlines() or [""])[0] or type(error).__name__
    return None
