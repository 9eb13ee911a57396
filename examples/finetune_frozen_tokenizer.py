"""Fine-tunes a small tokenizer on a domain that it never saw, whole and with a frozen encoder, and shows what it gains.

    python examples/finetune_frozen_tokenizer.py [key=value ...]

Records play of some Atari games, trains a small tokenizer on it from random weights, and fine-tunes that on natural
clips twice: all of it, and the decoder alone, which leaves the ids of every video as they are. Both are compared with
the pre-trained one on held-out clips of both domains. Overrides reach the example's own config
(`frames_per_game=1000`) and, with a prefix, the trainings (`pretrain.trainer.max_steps=300`,
`finetune.optimizer.muon_lr=0.01`). A second run does again only what has changed.
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
from demo_pictures import draw_reconstruction, evenly
from prepare_tiny_data import find_scenes, natural_videos, read_small, virtual_camera
from rich.console import Console
from rich.table import Table
from stages import CONFIGS, Stages, section, without_sections
from torch import Tensor

from vidtok_plugin import VidTok
from vidtok_plugin.common.commands import add_command, run_command
from vidtok_plugin.common.config import load_config, to_dict
from vidtok_plugin.common.devices import default_device
from vidtok_plugin.evaluation.psnr import mean_frame_psnr
from vidtok_plugin.metrics.psnr import frame_psnr
from vidtok_plugin.tokenizer.training.module import TokenizerRunConfig
from vidtok_plugin.tokenizer.training.runs import fit_tokenizer
from vidtok_plugin.video.clips import ClipDataset
from vidtok_plugin.video.data import VideoDataConfig
from vidtok_plugin.video.episodes import find_videos
from vidtok_plugin.video.reading import probe
from vidtok_plugin.video.sources import find_sources
from vidtok_plugin.video.writing import write_video
from world_model.recording.record import RecordConfig, record

SECTIONS = ("pretrain", "finetune")
# Frames to train on and held-out ones: in bikes two scenes that the training doesn't show, in carphone the same man in
# the same car a moment later.
NATURAL = {
    "bikes.mp4": {"train": (0, 137), "test": (137, 242)},
    "carphone_pristine.mp4": {"train": (0, 72), "test": (80, 120)},
}
DOMAINS = {"natural": "new domain", "atari": "old domain"}


@dataclass(frozen=True, kw_only=True)
class ExampleConfig:
    """The example's own settings; `tokenizer/example_*.yaml` hold the trainings'."""

    games: tuple[str, ...]
    frames_per_game: int = 600  # to train on; a quarter as many of other episodes are held out
    natural_clips: int = 40  # of each natural video, to train on; a quarter as many are held out
    scored_clips: int = 16  # held-out clips of each domain
    shown_clips: int = 7  # of the new domain
    seed: int = 0
    output: Path = Path("runs/finetune")


def finetune(args: argparse.Namespace) -> None:
    cfg = load_config(ExampleConfig, [CONFIGS / "finetune_example.yaml"], without_sections(args.overrides, SECTIONS))
    out = cfg.output
    runs = {
        "pretrain": section(
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
        runs[name] = section("finetune", TokenizerRunConfig, files, args.overrides, settings)

    stages = Stages(out, 6)
    own = to_dict(cfg)
    games = {key: own[key] for key in ("games", "frames_per_game", "seed")}
    clips = {key: own[key] for key in ("natural_clips", "seed")}
    scored = {key: own[key] for key in ("scored_clips", "shown_clips")}
    stages.run("record", games, lambda: record_games(cfg), out / "atari", [out / "atari"])
    stages.run("natural", clips, lambda: cut_clips(cfg), out / "natural", [out / "natural"])
    for name, run in runs.items():
        stages.run(name, to_dict(run), lambda run=run: fit_tokenizer(run), run.output / "model", [run.output])
    summary_file = out / "summary.json"
    stages.run("compare", scored, lambda: compare(cfg, runs["full"].data, summary_file), summary_file)
    summary = json.loads(summary_file.read_text())
    summary["seconds"] = {name: round(value, 1) for name, value in stages.seconds.items()}
    summary_file.write_text(json.dumps(summary, indent=2) + "\n")
    print_summary(summary, out)


def record_games(cfg: ExampleConfig) -> None:
    for game in cfg.games:
        folder, held_out = cfg.output / "atari" / game.lower(), max(64, cfg.frames_per_game // 4)
        common: dict[str, Any] = {"env": f"ALE/{game}-v5", "output": str(folder), "seed": cfg.seed}
        none = {"train_episodes": 0, "validation_episodes": 0, "test_episodes": 0}
        for split, frames in (("train", cfg.frames_per_game), ("test", held_out)):
            settings = {**common, **none, f"{split}_episodes": 1, "frames_per_episode": frames}
            record(RecordConfig(**settings), show_progress=False)


def cut_clips(cfg: ExampleConfig) -> None:
    """Clips of the natural videos' two parts, through a virtual camera that zooms and pans."""
    for number, path in enumerate(path for path in natural_videos() if path.name in NATURAL):
        frames, fps = read_small(path), probe(path).fps
        for split, (start, stop) in NATURAL[path.name].items():
            part = frames[start:stop]
            scenes = find_scenes(part)
            for index in range(cfg.natural_clips if split == "train" else -(-cfg.natural_clips // 4)):
                scene = scenes[index % len(scenes)]
                rng = np.random.default_rng([cfg.seed, number, index, split == "train"])
                clip = virtual_camera(part[scene.start : scene.stop], rng)
                write_video(cfg.output / "natural" / split / f"{path.stem}_{index:03d}.mp4", clip, fps=fps)


def held_out_clips(pattern: Path, data: VideoDataConfig, count: int) -> list[Tensor]:
    sources = find_sources([str(pattern)])
    clips = ClipDataset.every(
        sources, clip_length=data.clip_length, height=data.height, width=data.width, max_clips=count
    )
    return [clips[i] for i in range(len(clips))]


@torch.no_grad()
def score(model: VidTok, clips: Sequence[Tensor]) -> tuple[float, Tensor]:
    """Mean PSNR in dB over all frames of the clips, and their ids (n, T, H, W)."""
    psnr, ids = [], []
    for clip in clips:
        video = clip[None].to(model.device)
        out = model(video)
        assert out.indices is not None, "the example's tokenizer has a codebook"
        psnr.append(frame_psnr(video, out.reconstruction))
        ids.append(out.indices.cpu())
    return torch.cat(psnr).mean().item(), torch.cat(ids)


def compare(cfg: ExampleConfig, data: VideoDataConfig, summary_file: Path) -> None:
    """Scores the three models on held-out clips of both domains.

    Raises:
        RuntimeError: training the decoder alone has changed an id.
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
            raise RuntimeError("finetune: training the decoder alone must leave every id as it is, but some changed.")
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
    draw_reconstruction(out / "before_and_after.png", evenly(clips["natural"], cfg.shown_clips), shown)
    summary_file.write_text(json.dumps(summary, indent=2) + "\n")


def print_summary(summary: dict[str, Any], out: Path) -> None:
    table = Table(title="From Atari play to natural clips: PSNR on held-out video in dB")
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
        f"The mean training frame in place of a reconstruction: {summary['natural_mean_frame_psnr']:.2f} dB on new.",
        f"Decoder only: all {summary['ids_compared']} ids of the held-out clips are those of the model before.",
        f"{sum(summary['seconds'].values()):.0f} seconds in all. Look at {out}/before_and_after.png.",
    )
    for line in lines:
        console.print(line, soft_wrap=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="finetune_frozen_tokenizer.py", description="Pre-train, fine-tune, compare.")
    commands = parser.add_subparsers()
    command = add_command(commands, "run", finetune, "run the example")
    command.add_argument("overrides", nargs="*", default=[], metavar="key=value")
    return run_command(parser, ["run", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    sys.exit(main())
