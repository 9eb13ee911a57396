"""Fine-tunes a small tokenizer on a new domain, all of it or only the decoder, and shows what that gains.

    python examples/finetune_frozen_tokenizer.py [key=value ...]

The example records play of some Atari games and trains a small tokenizer on it from random weights. It then fine-tunes
that tokenizer on natural clips twice: all of it, and only the decoder, which keeps the token ids of every video
unchanged. Both are compared with the pretrained one on held-out clips of both domains.

Overrides change the example's own config (`frames_per_game=1000`) or, with a prefix, one of the trainings
(`pretrain.trainer.max_steps=300`, `finetune.optimizer.muon_lr=0.01`). A second run repeats only what has changed.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from natural_scenes import find_scenes, natural_videos, read_small, virtual_camera
from pictures import draw_reconstruction, evenly_spaced
from rich.console import Console
from rich.table import Table
from shared import CONFIGS, held_out_clips, own_overrides, run_example, section_config
from stages import Stages
from torch import Tensor

from vidtok_plugin import VidTok
from vidtok_plugin.common.config import load_config, to_dict
from vidtok_plugin.common.devices import default_device
from vidtok_plugin.evaluation.psnr import mean_frame_psnr
from vidtok_plugin.metrics.psnr import frame_psnr
from vidtok_plugin.tokenizer.training.module import TokenizerRunConfig
from vidtok_plugin.tokenizer.training.runs import fit_tokenizer
from vidtok_plugin.video.data import VideoDataConfig
from vidtok_plugin.video.episodes import find_videos
from vidtok_plugin.video.reading import probe
from vidtok_plugin.video.writing import write_video
from world_model.recording.record import RecordConfig, record

SECTIONS = ("pretrain", "finetune")
# Frames of each natural video for training and for testing. The test frames of bikes show two other scenes; those of
# carphone show the same man in the same car a moment later.
EXCERPTS = {
    "bikes.mp4": {"train": (0, 137), "test": (137, 242)},
    "carphone_pristine.mp4": {"train": (0, 72), "test": (80, 120)},
}
DOMAINS = {"natural": "new domain", "atari": "old domain"}


@dataclass(frozen=True, kw_only=True)
class ExampleConfig:
    """The example's own settings. Those of the trainings are in `configs/tokenizer/example_*.yaml`."""

    games: tuple[str, ...]
    frames_per_game: int = 600  # for training; a quarter as many, from other episodes, are held out
    natural_clips: int = 40  # per natural video, for training; a quarter as many are held out
    scored_clips: int = 16  # held-out clips per domain
    shown_clips: int = 7  # from the new domain
    seed: int = 0
    output: Path = Path("runs/finetune")


def finetune(args: argparse.Namespace) -> None:
    """All stages: record, cut clips, train three times, compare."""
    cfg = load_config(ExampleConfig, [CONFIGS / "finetune_example.yaml"], own_overrides(args.overrides, SECTIONS))
    out = cfg.output
    runs = {
        "pretrain": section_config(
            "pretrain",
            TokenizerRunConfig,
            ["tokenizer/example_pretrain.yaml"],
            args.overrides,
            {
                "output": out / "pretrain",
                "data.train": f"[{out}/atari/*/train]",
                "data.validation": f"[{out}/atari/*/test]",
            },
        )
    }
    recipe = ["tokenizer/finetune.yaml", "tokenizer/finetune_small.yaml", "tokenizer/example_finetune.yaml"]
    for name, files in {"full": recipe, "decoder": [*recipe, "tokenizer/finetune_decoder.yaml"]}.items():
        settings = {
            "output": out / name,
            "pretrained": out / "pretrain" / "model",
            "data.train": f"[{out}/natural/train]",
            "data.validation": f"[{out}/natural/test]",
        }
        runs[name] = section_config("finetune", TokenizerRunConfig, files, args.overrides, settings)

    stages = Stages(out, 6)
    own = to_dict(cfg)
    games = {key: own[key] for key in ("games", "frames_per_game", "seed")}
    clips = {key: own[key] for key in ("natural_clips", "seed")}
    scored = {key: own[key] for key in ("scored_clips", "shown_clips")}
    atari, natural, summary_file = out / "atari", out / "natural", out / "summary.json"
    stages.run("record", lambda: record_games(cfg), inputs=games, result=atari, remove=[atari])
    stages.run("natural", lambda: cut_clips(cfg), inputs=clips, result=natural, remove=[natural])
    for name, run in runs.items():
        stages.run(
            name,
            lambda run=run: fit_tokenizer(run),
            inputs=to_dict(run),
            result=run.output / "model",
            remove=[run.output],
        )
    stages.run("compare", lambda: compare(cfg, runs["full"].data, summary_file), inputs=scored, result=summary_file)
    summary = json.loads(summary_file.read_text())
    summary["seconds"] = {name: round(value, 1) for name, value in stages.seconds.items()}
    summary_file.write_text(json.dumps(summary, indent=2) + "\n")
    print_summary(summary, out)


def record_games(cfg: ExampleConfig) -> None:
    """Record each game's training and test episodes."""
    for game in cfg.games:
        folder, held_out = cfg.output / "atari" / game.lower(), max(64, cfg.frames_per_game // 4)
        common: dict[str, Any] = {"env": f"ALE/{game}-v5", "output": str(folder), "seed": cfg.seed}
        none = {"train_episodes": 0, "validation_episodes": 0, "test_episodes": 0}
        for split, frames in (("train", cfg.frames_per_game), ("test", held_out)):
            settings = {**common, **none, f"{split}_episodes": 1, "frames_per_episode": frames}
            record(RecordConfig(**settings), show_progress=False)


def cut_clips(cfg: ExampleConfig) -> None:
    """Cut clips for training and testing from the natural videos, through a virtual camera that zooms and pans."""
    for number, path in enumerate(path for path in natural_videos() if path.name in EXCERPTS):
        frames, fps = read_small(path), probe(path).fps
        for split, (start, stop) in EXCERPTS[path.name].items():
            excerpt = frames[start:stop]
            scenes = find_scenes(excerpt)
            for index in range(cfg.natural_clips if split == "train" else -(-cfg.natural_clips // 4)):
                scene = scenes[index % len(scenes)]
                rng = np.random.default_rng([cfg.seed, number, index, split == "train"])
                clip = virtual_camera(excerpt[scene.start : scene.stop], rng)
                write_video(cfg.output / "natural" / split / f"{path.stem}_{index:03d}.mp4", clip, fps=fps)


@torch.no_grad()
def score(model: VidTok, clips: Sequence[Tensor]) -> tuple[float, Tensor]:
    """The mean PSNR in dB over all frames of the clips, and the clips' token ids (n, T, H, W)."""
    psnr, ids = [], []
    for clip in clips:
        video = clip[None].to(model.device)
        out = model(video)
        assert out.indices is not None  # the example's tokenizer has a codebook
        psnr.append(frame_psnr(video, out.reconstruction))
        ids.append(out.indices.cpu())
    return torch.cat(psnr).mean().item(), torch.cat(ids)


def compare(cfg: ExampleConfig, data: VideoDataConfig, summary_file: Path) -> None:
    """Score the three models on held-out clips of both domains, and draw reconstructions.

    Raises:
        RuntimeError: training only the decoder changed a token id.
    """
    out = cfg.output
    folders = {"before": "pretrain", "full": "full", "decoder": "decoder"}
    models = {name: VidTok.from_pretrained(out / folder / "model") for name, folder in folders.items()}
    models = {name: model.to(default_device()).eval() for name, model in models.items()}
    patterns = {"natural": out / "natural" / "test", "atari": out / "atari" / "*" / "test"}
    clips = {name: held_out_clips(pattern, data, cfg.scored_clips) for name, pattern in patterns.items()}
    scores = {name: {domain: score(model, found) for domain, found in clips.items()} for name, model in models.items()}
    rows: dict[str, dict[str, float]] = {}
    for name, by_domain in scores.items():
        changed = {domain: ids != scores["before"][domain][1] for domain, (_, ids) in by_domain.items()}
        if name == "decoder" and any(mask.any() for mask in changed.values()):
            raise RuntimeError("finetune: training only the decoder must keep all token ids, but some changed.")
        rows[name] = {f"{domain}_psnr": psnr for domain, (psnr, _) in by_domain.items()}
        rows[name] |= {f"{domain}_ids_changed": mask.float().mean().item() for domain, mask in changed.items()}
    before = {domain: ids for domain, (_, ids) in scores["before"].items()}
    summary = {
        "models": rows,
        "gain": {name: rows[name]["natural_psnr"] - rows["before"]["natural_psnr"] for name in ("full", "decoder")},
        "natural_mean_frame_psnr": mean_frame_psnr(find_videos(out / "natural" / "train"), clips["natural"]),
        "natural_codes_used_before": torch.unique(before["natural"]).numel(),
        "ids_compared": sum(ids.numel() for ids in before.values()),
        "clips": {domain: len(found) for domain, found in clips.items()},
    }
    labels = {"before": "before", "full": "full", "decoder": "decoder only"}
    shown = {labels[name]: model for name, model in models.items()}
    draw_reconstruction(out / "before_and_after.png", evenly_spaced(clips["natural"], cfg.shown_clips), shown)
    summary_file.write_text(json.dumps(summary, indent=2) + "\n")


def print_summary(summary: dict[str, Any], out: Path) -> None:
    table = Table(title="From Atari play to natural clips: PSNR in dB on held-out video")
    for heading in ("model", *DOMAINS.values(), "gain", "ids changed", "seconds"):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    names = {"before": ("before", "pretrain"), "full": ("full", "full"), "decoder": ("decoder only", "decoder")}
    for name, (title, stage) in names.items():
        row = summary["models"][name]
        gain = f"{summary['gain'][name]:+.2f}" if name in summary["gain"] else ""
        scores = [f"{row[f'{domain}_psnr']:.2f}" for domain in DOMAINS]
        changed = f"{row['natural_ids_changed']:.1%}"
        table.add_row(title, *scores, gain, changed, f"{summary['seconds'][stage]:.0f}")
    console = Console()
    console.print(table)
    lines = (
        f"Baseline on the new domain, the mean training frame: {summary['natural_mean_frame_psnr']:.2f} dB.",
        f"Decoder only: all {summary['ids_compared']} token ids of the held-out clips are unchanged.",
        f"{sum(summary['seconds'].values()):.0f} seconds in all. See {out}/before_and_after.png.",
    )
    for line in lines:
        console.print(line, soft_wrap=True)


def main(argv: Sequence[str] | None = None) -> int:
    return run_example(finetune, argv, description="Pretrain a tokenizer, fine-tune it, compare.")


if __name__ == "__main__":
    sys.exit(main())
