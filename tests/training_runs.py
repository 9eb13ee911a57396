"""Toy training runs: their settings, in this process or another, and the values in their logs."""

import csv
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import lightning.pytorch as pl
import numpy as np

from vidtok_plugin import training
from vidtok_plugin.adapter.adapter import TokenizerAdapter
from vidtok_plugin.common.config import load_config
from vidtok_plugin.store.tokenize import write_store
from vidtok_plugin.tokenizer.model import VidTok
from vidtok_plugin.tokenizer.training.module import TokenizerModule, TokenizerRunConfig
from vidtok_plugin.tokenizer.training.runs import fit_tokenizer
from vidtok_plugin.training.checkpoints import find_checkpoints
from vidtok_plugin.video import VideoDataModule, find_videos, write_video
from world_model.data import TokenDataModule
from world_model.training.module import WorldModelModule, WorldModelRunConfig
from world_model.training.runs import fit_world_model

ROOT = Path(__file__).resolve().parent.parent
Kind = Literal["tokenizer", "world_model"]
NARROW_WIDTHS = (3, 8, 8, 8, 8, 1)  # channels of discriminators: the full ones take most of the time of a toy run
TRAINER = [
    "loggers=[csv]",
    "trainer.accelerator=cpu",
    "trainer.enable_progress_bar=false",
    "trainer.log_every_n_steps=1",
    "trainer.num_sanity_val_steps=0",
    "trainer.max_epochs=-1",
]
TOKENIZER = [
    "preset=vidtok_tiny",
    "from_scratch=true",
    "architecture={ch: 4, ch_mult: [1, 1, 1, 1], num_res_blocks: 1, dropout: 0.1}",
    "data.clip_length=5",
    "data.height=16",
    "data.width=16",
    "data.batch_size=2",
    "data.horizontal_flip=true",
    "data.validation_clips=2",
    "objective.perceptual=none",
    "optimizer={lr: 1.0e-2, warmup_steps: 5, gradient_clip: 20.0}",
]
WORLD_MODEL = [
    "model.max_steps=4",
    "model.corruption=0.3",
    "model.transformer={width: 24, depth: 1, heads: 2, dropout: 0.1}",
    "data.window_steps=4",
    "data.batch_size=2",
    "optimizer={lr: 1.0e-2, warmup_steps: 5, gradient_clip: 1.0}",
]


def make_videos(folder: Path, count: int = 3, *, scale: int = 1) -> Path:
    """Videos of bright squares that move over a gradient.

    x264's output for 16x16 frames differs about once in a hundred encodes; for 64x64 frames (`scale=4`) it has been
    the same in hundreds.
    """
    for number in range(count):
        frames = np.full((24, 16, 16, 3), (200, 40, 90), np.uint8)
        frames[..., 0] = np.arange(0, 256, 16, dtype=np.uint8)
        for t in range(24):
            frames[t, 4:10, (t + 5 * number) % 10 :][:, :6] = 240
        write_video(folder / f"{number}.mp4", frames.repeat(scale, 1).repeat(scale, 2), fps=30)
    return folder


def make_store(folder: Path) -> Path:
    """The tokens of such videos, in both splits."""
    adapter = TokenizerAdapter(VidTok.from_preset("vidtok_tiny", ch=4, ch_mult=(1, 1, 1, 1), num_res_blocks=1).eval())
    videos = find_videos(make_videos(folder / "videos"))
    for split in ("train", "validation"):
        write_store(adapter, videos, folder / "store", split=split)
    return folder / "store"


def settings(kind: Kind, data: Path, output: Path, *overrides: str) -> list[str]:
    """The overrides that make up the whole config of a toy run."""
    if kind == "tokenizer":
        own = [f"data.train=[{data}]", f"data.validation=[{data}]", *TOKENIZER]
    else:
        own = [f"data.store={data}", *WORLD_MODEL]
    return [*own, *TRAINER, f"output={output}", *overrides]


def configure(kind: Kind, overrides: Sequence[str]) -> TokenizerRunConfig | WorldModelRunConfig:
    return load_config({"tokenizer": TokenizerRunConfig, "world_model": WorldModelRunConfig}[kind], [], overrides)


def run_here(kind: Kind, overrides: Sequence[str]) -> None:
    """Runs the `fit` command in this process."""
    cfg = configure(kind, [*overrides, "seed=3"])
    if isinstance(cfg, TokenizerRunConfig):
        fit_tokenizer(cfg)
    else:
        fit_world_model(cfg)


def fit_here(kind: Kind, overrides: Sequence[str], *callbacks: pl.Callback) -> pl.Trainer:
    """The same training in this process, with these callbacks only."""
    cfg = configure(kind, [*overrides, "seed=3"])
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    if isinstance(cfg, TokenizerRunConfig):
        return training.fit(cfg, TokenizerModule(cfg), VideoDataModule(cfg), callbacks)
    return training.fit(cfg, WorldModelModule(cfg), TokenDataModule(cfg), callbacks)


def start(kind: Kind, arguments: Sequence[str], folder: Path) -> subprocess.Popen[str]:
    """Starts `vidtok-plugin fit` or `world-model fit` as a process."""
    command = Path(sys.executable).with_name({"tokenizer": "vidtok-plugin", "world_model": "world-model"}[kind])
    (folder / "empty.yaml").write_text("seed: 3\n")
    return subprocess.Popen(
        [str(command), "fit", "--config", str(folder / "empty.yaml"), *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # its own process group, for signals
    )


def wait_for_checkpoint(output: Path, step: int, process: subprocess.Popen[str]) -> None:
    """Returns once the run has saved a checkpoint of that step or a later one."""
    while True:
        steps = [int(path.stem.removeprefix("step-")) for path in find_checkpoints(output / "checkpoints")]
        if max(steps, default=0) >= step:
            return
        if process.poll() is not None:
            raise AssertionError(f"the run ended before step {step}: {process.communicate()[0]}")
        time.sleep(0.01)


def logged(output: Path, names: Iterable[str] = ("train/loss",)) -> dict[int, tuple[float, ...]]:
    """Step -> values in the logs; a resumed run's values replace those before it."""
    found = {}
    files = output.glob("logs/version_*/metrics.csv")
    for path in sorted(files, key=lambda path: int(path.parent.name.split("_")[1])):
        with open(path, newline="") as file:
            for row in csv.DictReader(file):
                values = [row.get(name) for name in names]
                if all(values):
                    found[int(row["step"])] = tuple(float(value) for value in values if value)
    return found
