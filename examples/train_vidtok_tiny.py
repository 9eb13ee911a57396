"""Trains `vidtok_tiny`, the tokenizer that ships with the package, from nothing: `make vidtok-tiny`.

Records and cuts its training videos, runs `configs/tokenizer/vidtok_tiny.yaml`, and puts the weights into the package
with what tells how they came about: the log, its curve, the PSNR on held-out video of each source, and their hash.
Interrupted, it goes on where it stopped.
"""

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from demo_pictures import read_curve
from prepare_tiny_data import prepare

from vidtok_plugin import VidTok
from vidtok_plugin.common.commands import set_up_logging
from vidtok_plugin.common.config import load_config
from vidtok_plugin.evaluation.psnr import reconstruction_psnr
from vidtok_plugin.tokenizer.training.module import TokenizerRunConfig
from vidtok_plugin.tokenizer.weights.weights import WEIGHTS_FILE
from vidtok_plugin.video.clips import ClipDataset
from vidtok_plugin.video.sources import find_sources

logger = logging.getLogger("vidtok_plugin.train_vidtok_tiny")
ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "configs" / "tokenizer" / "vidtok_tiny.yaml"
DATA = Path("runs/vidtok_tiny/data")
PACKAGE = ROOT / "vidtok_plugin" / "pretrained" / "vidtok_tiny"
HELD_OUT_FRAMES, HELD_OUT_CLIPS = 17, 6  # of each source


def train() -> None:
    """As a command of its own, since Lightning starts its other process by running the command again."""
    command = [str(Path(sys.executable).with_name("vidtok-plugin")), "fit", "--config", str(CONFIG)]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def export(cfg: TokenizerRunConfig) -> None:
    """Puts the trained model into the package, and its story beside it."""
    shutil.rmtree(PACKAGE, ignore_errors=True)
    tokenizer = VidTok.from_pretrained(cfg.output / "model")
    tokenizer.save_pretrained(PACKAGE)
    steps, psnr = read_curve(cfg.output, "train/psnr")
    val_steps, val_psnr = read_curve(cfg.output, "val/psnr")
    lines = [f"{step},{value:.3f}," for step, value in zip(steps, psnr, strict=True)]
    lines += [f"{step},,{value:.3f}" for step, value in zip(val_steps, val_psnr, strict=True)]
    (PACKAGE / "log.csv").write_text("step,train_psnr,validation_psnr\n" + "\n".join(lines) + "\n")
    figure, axis = plt.subplots(figsize=(6, 3.5))
    axis.plot(steps, psnr, alpha=0.4, label="training, single batches")
    axis.plot(val_steps, val_psnr, marker="o", label="held out")
    axis.set_xlabel("batches")
    axis.set_ylabel("PSNR in dB")
    axis.legend()
    figure.tight_layout()
    figure.savefig(PACKAGE / "curve.png", dpi=100)
    story = {
        "weights_sha256": hashlib.sha256((PACKAGE / WEIGHTS_FILE).read_bytes()).hexdigest(),
        "config": f"configs/tokenizer/{CONFIG.name}",
        "seed": cfg.seed,
        "batches": cfg.trainer["max_steps"],
        "clips_per_batch": cfg.data.batch_size * cfg.trainer.get("devices", 1),
        "held_out_psnr": held_out_psnr(tokenizer),
    }
    (PACKAGE / "training.json").write_text(json.dumps(story, indent=2) + "\n")
    logger.info("%s", json.dumps(story, indent=2))


def held_out_psnr(tokenizer: VidTok) -> dict[str, float]:
    """Mean PSNR in dB on held-out clips of each source."""
    scores = {}
    for folder in sorted(DATA.glob("*/validation")):
        clips = ClipDataset.every(
            find_sources([str(folder)]),
            clip_length=HELD_OUT_FRAMES,
            height=64,
            width=64,
            max_clips=HELD_OUT_CLIPS,
        )
        psnr = reconstruction_psnr(tokenizer, (clips[i] for i in range(len(clips))))
        scores[folder.parent.name] = round(psnr, 2)
    return scores


def main() -> None:
    set_up_logging()
    cfg = load_config(TokenizerRunConfig, [CONFIG])
    prepare(DATA, workers=2, seed=cfg.seed)
    train()
    export(cfg)


if __name__ == "__main__":
    main()
