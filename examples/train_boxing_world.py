"""Makes a Boxing world from nothing but the game: `make boxing-world`.

    python examples/train_boxing_world.py [--minutes 480] [key=value ...]

This records play, fine-tunes vidtok_tiny on it, tokenizes it, trains the world model, measures it on held-out play and
exports it. The settings are in `configs/boxing/`. Overrides change world.yaml or, with the prefix `tokenizer.` or
`world_model.`, one of the two training configs. The schedules are for the `minutes` of world.yaml, and `--minutes`
scales both. An interrupted run continues where it stopped.

The run works on a copy of the last commit, `tree/` in its output folder, so that work on the repository can go on. It
leaves out uncommitted changes. Delete the copy to continue with a newer commit.
"""

import argparse
import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from boxing_evaluation import evaluate
from boxing_play import BoxingPolicy
from pictures import read_curve
from shared import CONFIGS, add_overrides, own_overrides, run_example, section_config
from stages import Stages

from vidtok_plugin import TokenizerAdapter, VidTok
from vidtok_plugin.common.config import load_config, to_dict, to_yaml
from vidtok_plugin.common.devices import default_device
from vidtok_plugin.common.processes import Process, run_processes
from vidtok_plugin.store.tokenize import TokenizeConfig, write_shards
from vidtok_plugin.tokenizer.training.module import TokenizerRunConfig
from vidtok_plugin.training import RunConfig
from vidtok_plugin.video.episodes import find_episodes
from world_model import WorldModel, WorldModelRunConfig
from world_model.recording.record import SPLITS, RecordConfig, record
from world_model.weights import ADAPTER_FOLDER

logger = logging.getLogger("vidtok_plugin.train_boxing_world")
ROOT = CONFIGS.parent
SECTIONS = ("tokenizer", "world_model")


@dataclass(frozen=True, kw_only=True)
class BoxingConfig:
    """What is recorded and measured, and how long the schedules of the two trainings take."""

    record: RecordConfig
    minutes: float  # that everything takes with the schedules as configured, on two CPU cores
    clip_frames: int  # of the clips that the world model trains on, each tokenized on its own
    processes: int  # that tokenize
    prompts: int  # to measure on
    future_frames: int  # to imagine for each prompt
    output: Path = Path("runs/boxing")


def train_boxing_world(args: argparse.Namespace) -> None:
    """All stages, in a copy of the tree."""
    cfg = load_config(BoxingConfig, [CONFIGS / "boxing" / "world.yaml"], own_overrides(args.overrides, SECTIONS))
    out = cfg.output.absolute()
    if (ROOT / ".git").exists():
        run_in_copy(args, out / "tree")
        return
    episodes, tokens, measures, exported = (out / name for name in ("episodes", "tokens", "measures.json", "export"))
    ratio = 1.0 if args.minutes is None else args.minutes / cfg.minutes
    if ratio <= 0:
        raise ValueError(f"train_boxing_world: --minutes must be above 0, got {args.minutes:g}.")
    tokenizer_cfg = training_config(
        "tokenizer",
        TokenizerRunConfig,
        args.overrides,
        {
            "output": out / "tokenizer",
            "data.train": f"[{episodes}/train]",
            "data.validation": f"[{episodes}/validation]",
        },
        ratio,
    )
    model_cfg = training_config(
        "world_model",
        WorldModelRunConfig,
        args.overrides,
        {"output": out / "world_model", "data.store": tokens, "measures.episodes": episodes / "validation"},
        ratio,
    )
    recording = replace(cfg.record, output=str(episodes))
    stages = Stages(out, 6)
    stages.run(
        "record",
        lambda: record(recording, policy=BoxingPolicy),
        inputs=to_dict(recording),
        result=episodes,
        remove=[episodes],
    )
    stages.run(
        "tokenizer",
        lambda: fit("vidtok-plugin", tokenizer_cfg),
        inputs=to_dict(tokenizer_cfg),
        result=tokenizer_cfg.output / "model",
        remove=[tokenizer_cfg.output],
    )
    stages.run(
        "tokens",
        lambda: tokenize(cfg, tokenizer_cfg.output / "model", episodes, tokens),
        inputs=cfg.clip_frames,
        result=tokens,
        remove=[tokens],
    )
    stages.run(
        "world_model",
        lambda: fit("world-model", model_cfg),
        inputs={key: value for key, value in to_dict(model_cfg).items() if key != "measures"},  # not for training
        result=model_cfg.output / "model",
        remove=[model_cfg.output],
    )
    stages.run(
        "measure",
        lambda: measure(cfg, model_cfg.output / "model", episodes, tokens, measures),
        inputs=[cfg.prompts, cfg.future_frames],
        result=measures,
    )
    stages.run(
        "export",
        lambda: export(exported, tokenizer_cfg, model_cfg, measures, stages.seconds),
        inputs=None,
        result=exported,
        remove=[exported],
    )
    logger.info("The world is in %s.", exported)


def run_in_copy(args: argparse.Namespace, tree: Path) -> None:
    """Run this script from a copy of the last commit, made when the run begins."""
    if not tree.exists():
        partial = tree.with_name(f"{tree.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
        subprocess.run(["tar", "-x", "-C", str(partial)], input=archive, check=True)
        partial.rename(tree)
    minutes = [] if args.minutes is None else [f"--minutes={args.minutes}"]
    command = [sys.executable, str(tree / "examples" / Path(__file__).name), *minutes, *args.overrides]
    code = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(tree)}).returncode
    if code:
        sys.exit(code)


def training_config(
    name: str, schema: type, overrides: Sequence[str], settings: dict[str, Any], ratio: float
) -> RunConfig:
    """The config of a training whose schedule is multiplied by `ratio`; with the changes for a GPU if there is one."""
    files = [f"boxing/{name}.yaml", *([f"boxing/{name}_gpu.yaml"] if torch.cuda.is_available() else [])]
    cfg = section_config(name, schema, files, overrides, settings)

    def scaled(steps: int) -> int:
        return max(1, round(steps * ratio))

    schedule = {key: scaled(cfg.trainer[key]) for key in ("max_steps", "val_check_interval")}
    decay_steps = scaled(cfg.optimizer.decay_steps)
    optimizer = replace(
        cfg.optimizer, decay_steps=decay_steps, warmup_steps=min(cfg.optimizer.warmup_steps, decay_steps)
    )
    return replace(cfg, trainer={**cfg.trainer, **schedule}, optimizer=optimizer)


def fit(program: str, cfg: RunConfig) -> None:
    """Train in a command of its own: Lightning starts its second process by running the command again."""
    file = cfg.output.with_suffix(".yaml")
    file.write_text(to_yaml(cfg))
    command = [str(Path(sys.executable).with_name(program)), "fit", "--config", str(file)]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def tokenize(cfg: BoxingConfig, tokenizer: Path, episodes: Path, tokens: Path) -> None:
    """Encode the episodes clip by clip: each clip starts like a prompt, so the world model learns such starts."""
    for split in SPLITS:
        config = TokenizeConfig(split=split, clip_frames=cfg.clip_frames, episodes_per_shard=2, progress=True)
        run_processes(tokenize_shards, cfg.processes, tokenizer, episodes / split, tokens, config)


def tokenize_shards(process: Process, tokenizer: Path, episodes: Path, tokens: Path, config: TokenizeConfig) -> None:
    """One process's shards of a split."""
    torch.set_num_threads(1)
    adapter = TokenizerAdapter(VidTok.from_pretrained(tokenizer)).to(default_device())
    write_shards(adapter, find_episodes(episodes), tokens, config, process)


def measure(cfg: BoxingConfig, model: Path, episodes: Path, tokens: Path, measures: Path) -> None:
    scores = evaluate(model, episodes, tokens, prompts=cfg.prompts, frames=cfg.future_frames)
    measures.write_text(json.dumps(scores, indent=2) + "\n")


def export(
    folder: Path, tokenizer_cfg: RunConfig, model_cfg: RunConfig, measures: Path, seconds: dict[str, float]
) -> None:
    """Put the world model, its adapter and the documents of its training into a folder."""
    trained = model_cfg.output / "model"
    adapter = TokenizerAdapter.from_pretrained(trained / ADAPTER_FOLDER)
    WorldModel.from_pretrained(trained).save_pretrained(folder, adapter)
    shutil.copy(measures, folder / "measures.json")
    lines = ["run,measure,step,value"]
    for run_cfg, name in ((tokenizer_cfg, "psnr"), (model_cfg, "cross_entropy")):
        run = run_cfg.output.name
        shutil.copy(run_cfg.pictures_folder / "curves.png", folder / f"{run}_curves.png")
        for series in (f"train/{name}", f"val/{name}"):
            points = zip(*read_curve(run_cfg.output, series), strict=True)
            lines += [f"{run},{series},{step},{value:.4f}" for step, value in points]
    (folder / "log.csv").write_text("\n".join(lines) + "\n")
    weights = sorted(folder.rglob("*.safetensors"))
    summary = {
        "weights_sha256": {
            str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in weights
        },
        "seeds": {cfg.output.name: cfg.seed for cfg in (tokenizer_cfg, model_cfg)},
        "batches": {cfg.output.name: cfg.trainer["max_steps"] for cfg in (tokenizer_cfg, model_cfg)},
        "minutes": {name: round(value / 60, 1) for name, value in seconds.items()},
    }
    (folder / "training.json").write_text(json.dumps(summary, indent=2) + "\n")


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--minutes", type=float, help="scale the trainings' schedules to this budget")
    add_overrides(command)


def main(argv: Sequence[str] | None = None) -> int:
    return run_example(train_boxing_world, argv, description="Make a Boxing world.", add_arguments=add_arguments)


if __name__ == "__main__":
    sys.exit(main())
