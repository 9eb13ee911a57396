"""Trains `vidtok_tiny`, the tokenizer that ships with the package, from scratch: `make vidtok-tiny`.

This records and cuts the training videos, runs `configs/tokenizer/vidtok_tiny.yaml`, and puts the weights into the
package. Next to them it documents the training: the log and its curve, the PSNR on held-out video of each source, the
hash of the weights, and a model card. An interrupted run continues where it stopped.
"""

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib.pyplot as plt
import torch
from pictures import draw_reconstruction, read_curve, save
from prepare_tiny_data import prepare
from shared import CONFIGS, held_out_clips

from vidtok_plugin import CardInfo, VidTok
from vidtok_plugin.common.commands import set_up_logging
from vidtok_plugin.common.config import load_config
from vidtok_plugin.common.model_card import write_card
from vidtok_plugin.evaluation.psnr import reconstruction_psnr
from vidtok_plugin.tokenizer.training.module import TokenizerRunConfig
from vidtok_plugin.tokenizer.weights.card import tokenizer_facts
from vidtok_plugin.tokenizer.weights.weights import WEIGHTS_FILE
from vidtok_plugin.video.pixels import from_uint8
from vidtok_plugin.video.reading import read_frames
from world_model.rollout.worlds import world_prompts

logger = logging.getLogger("vidtok_plugin.train_vidtok_tiny")
CONFIG = CONFIGS / "tokenizer" / "vidtok_tiny.yaml"
DATA = Path("runs/vidtok_tiny/data")
ROOT = CONFIGS.parent
PACKAGE = ROOT / "vidtok_plugin" / "pretrained" / "vidtok_tiny"
HELD_OUT_FRAMES, HELD_OUT_CLIPS = 17, 6  # per clip and per source
SHOWN_CLIPS = 5


def train() -> None:
    """Train in a command of its own: Lightning starts its second process by running the command again."""
    command = [str(Path(sys.executable).with_name("vidtok-plugin")), "fit", "--config", str(CONFIG)]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def export(cfg: TokenizerRunConfig) -> None:
    """Put the trained model and the documents of its training into the package."""
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
    save(figure, PACKAGE / "curve.png")
    summary = {
        "weights_sha256": hashlib.sha256((PACKAGE / WEIGHTS_FILE).read_bytes()).hexdigest(),
        "config": f"configs/tokenizer/{CONFIG.name}",
        "seed": cfg.seed,
        "batches": cfg.trainer["max_steps"],
        "clips_per_batch": cfg.data.batch_size * cfg.trainer.get("devices", 1),
        "held_out_psnr": held_out_psnr(cfg, tokenizer),
    }
    (PACKAGE / "training.json").write_text(json.dumps(summary, indent=2) + "\n")
    write_tiny_card(PACKAGE)
    logger.info("%s", json.dumps(summary, indent=2))


def write_tiny_card(folder: Path) -> None:
    """Write README.md and its picture beside weights and training.json, which are only read."""
    training = json.loads((folder / "training.json").read_text())
    tokenizer, data = VidTok.from_pretrained(folder), load_config(TokenizerRunConfig, [CONFIG]).data
    scores = training["held_out_psnr"]
    games = [value for name, value in scores.items() if name != "natural"]
    clips = [
        from_uint8(torch.from_numpy(read_frames(path, range(HELD_OUT_FRAMES)))) for path in world_prompts("boxing")
    ]
    with TemporaryDirectory() as temporary:
        picture = Path(temporary) / "card.png"
        draw_reconstruction(picture, clips[:SHOWN_CLIPS], {"reconstruction": tokenizer})
        info = CardInfo(
            title="vidtok_tiny",
            summary="A small video tokenizer of the [VidTok](https://arxiv.org/abs/2412.13061) family for 64 x 64 "
            "video. It starts fine-tuning on video of your own, and shows all that larger ones do.",
            data=f"Play of {len(games)} Atari games, recorded for it, and natural video: {training['batches']:,} "
            f"batches of {training['clips_per_batch']} clips of {data.clip_length} frames of {data.height} x "
            f"{data.width} pixels, by `examples/train_vidtok_tiny.py`.",
            measures={
                f"PSNR, dB, mean of the {len(games)} games": sum(games) / len(games),
                "PSNR, dB, lowest of the games": min(games),
                "PSNR, dB, highest of the games": max(games),
                "PSNR, dB, natural video": scores["natural"],
            },
            measured=f"Reconstructions of held-out clips of {HELD_OUT_FRAMES} frames, {HELD_OUT_CLIPS} of each source.",
            license="mit",
            picture=picture,
            caption="frames of a game that it was not trained on, above their reconstructions",
            tags=("atari",),
        )
        write_card(folder, tokenizer_facts(tokenizer.architecture, tokenizer.state_dict()), info)


def held_out_psnr(cfg: TokenizerRunConfig, tokenizer: VidTok) -> dict[str, float]:
    """Mean PSNR in dB on held-out clips of each source."""
    data = replace(cfg.data, clip_length=HELD_OUT_FRAMES)
    scores = {}
    for folder in sorted(DATA.glob("*/validation")):
        psnr = reconstruction_psnr(tokenizer, held_out_clips(folder, data, HELD_OUT_CLIPS))
        scores[folder.parent.name] = round(psnr, 2)
    return scores


def main() -> None:
    if not PACKAGE.parent.is_dir():
        sys.exit("error: train_vidtok_tiny writes into a checkout of the repository; run there: make vidtok-tiny.")
    set_up_logging()
    cfg = load_config(TokenizerRunConfig, [CONFIG])
    prepare(DATA, workers=2, seed=cfg.seed)
    train()
    export(cfg)


if __name__ == "__main__":
    main()
