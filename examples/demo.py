"""From real to imagined gameplay: record a game, train tokenizer and world model on it, imagine more of it.

    python examples/demo.py [from_scratch=true] [key=value ...]

The demo starts from the Boxing world that comes with the package. On fresh play it trains only the decoder of the
world's tokenizer, which keeps all token ids, so that the world model stays valid and can be trained further on that
play. With `from_scratch=true` it fine-tunes vidtok_tiny and trains a new world model, on any game
(`record.env=ALE/Pong-v5`).

Overrides change the demo's own config (`rollouts.prompts=32`) or, with a prefix, one of the two training configs
(`tokenizer.trainer.max_steps=100`, `world_model.seed=1`). A second run repeats only the stages whose settings have
changed. An interrupted run continues where it stopped.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from hashlib import file_digest
from pathlib import Path
from typing import Any

import torch
from boxing_play import BoxingPolicy
from demo_config import DemoConfig, demo_config
from demo_summary import evaluate, print_summary
from shared import own_overrides, run_example, section_config
from stages import Stages
from train_boxing_world import fit

from vidtok_plugin.adapter.saving import TOKENIZER_FOLDER
from vidtok_plugin.common.config import to_dict
from vidtok_plugin.store.config import TokenizeConfig
from vidtok_plugin.store.folder import FolderConfig, tokenize_folder
from vidtok_plugin.tokenizer.training.module import TokenizerRunConfig
from vidtok_plugin.tokenizer.training.runs import fit_tokenizer
from world_model import WorldModelRunConfig
from world_model.recording.policy import covering
from world_model.recording.record import SPLITS, record
from world_model.rollout.worlds import world_folder
from world_model.training.runs import fit_world_model
from world_model.weights import ADAPTER_FOLDER

SECTIONS = ("tokenizer", "world_model")
ON_A_GPU = {"trainer.accelerator": "gpu", "trainer.devices": 1, "trainer.strategy": "auto"}


def demo(args: argparse.Namespace) -> None:
    """All five stages: record, train the tokenizer, tokenize, train the world model, roll out."""
    cfg = demo_config(own_overrides(args.overrides, SECTIONS))
    out = cfg.output
    tokenizer_cfg, model_cfg = training_configs(cfg, args.overrides)
    policy = covering if cfg.from_scratch else BoxingPolicy
    episodes, tokens, summary_file = out / "episodes", out / "tokens", out / "summary.json"
    stages = Stages(out, 5)
    stages.run(
        "record",
        lambda: record(cfg.record, policy=policy),
        inputs=[to_dict(cfg.record), policy.__name__],
        result=episodes,
        remove=[episodes],
    )
    stages.run(
        "tokenizer",
        lambda: fit_tokenizer(tokenizer_cfg) if cfg.from_scratch else fit("vidtok-plugin", tokenizer_cfg),
        inputs=[to_dict(tokenizer_cfg), world_digests(cfg)],
        result=tokenizer_cfg.output / "model",
        remove=[tokenizer_cfg.output],
    )
    stages.run(
        "tokens",
        lambda: tokenize(cfg, tokenizer_cfg.output / "model"),
        inputs=cfg.clip_frames,
        result=tokens,
        remove=[tokens],
    )
    stages.run(
        "world_model",
        lambda: fit_world_model(model_cfg) if cfg.from_scratch else fit("world-model", model_cfg),
        inputs={key: value for key, value in to_dict(model_cfg).items() if key != "measures"},  # not for training
        result=model_cfg.output / "model",
        remove=[model_cfg.output],
    )
    stages.run(
        "rollouts",
        lambda: evaluate(cfg, tokenizer_cfg, model_cfg, summary_file),
        inputs=[to_dict(cfg.rollouts), cfg.tokenizer_clips],
        result=summary_file,
    )
    summary = json.loads(summary_file.read_text())
    summary["seconds"] = round(sum(stages.seconds.values()), 1)
    summary_file.write_text(json.dumps(summary, indent=2) + "\n")
    print_summary(summary, stages.seconds, out)


def training_configs(cfg: DemoConfig, overrides: Sequence[str]) -> tuple[TokenizerRunConfig, WorldModelRunConfig]:
    """The configs of the two trainings."""
    out = cfg.output
    tokenizer_settings: dict[str, Any] = {
        "output": out / "tokenizer",
        "data.train": f"[{out}/episodes/train]",
        "data.validation": f"[{out}/episodes/validation]",
        "data.height": cfg.record.size,
        "data.width": cfg.record.size,
    }
    model_settings: dict[str, Any] = {
        "output": out / "world_model",
        "data.store": out / "tokens",
        "measures.episodes": out / "episodes" / "validation",
    }
    if cfg.from_scratch:
        tokenizer_files = ["tokenizer/demo_from_scratch.yaml"]
        model_files = ["world_model/demo_from_scratch.yaml", "world_model/actions.yaml"]
    else:
        tokenizer_files, model_files = ["tokenizer/demo.yaml"], ["world_model/demo.yaml"]
        tokenizer_settings["pretrained"] = world_folder(cfg.world) / ADAPTER_FOLDER / TOKENIZER_FOLDER
        model_settings["pretrained"] = cfg.world
        if torch.cuda.is_available():
            tokenizer_settings |= ON_A_GPU
            model_settings |= ON_A_GPU
    return (
        section_config("tokenizer", TokenizerRunConfig, tokenizer_files, overrides, tokenizer_settings),
        section_config("world_model", WorldModelRunConfig, model_files, overrides, model_settings),
    )


def world_digests(cfg: DemoConfig) -> dict[str, str]:
    """SHA-256 of the weights of the world that the demo starts from, so that a new world repeats the trainings."""
    digests: dict[str, str] = {}
    if not cfg.from_scratch:
        folder = world_folder(cfg.world)
        for path in sorted(folder.rglob("*.safetensors")):
            with open(path, "rb") as file:
                digests[str(path.relative_to(folder))] = file_digest(file, "sha256").hexdigest()
    return digests


def tokenize(cfg: DemoConfig, tokenizer: Path) -> None:
    """Encode the episodes clip by clip: each clip starts like a prompt, so the world model learns such starts."""
    for split in SPLITS:
        folder, tokens = cfg.output / "episodes" / split, cfg.output / "tokens"
        config = TokenizeConfig(split=split, clip_frames=cfg.clip_frames, episodes_per_shard=1, progress=True)
        tokenize_folder(FolderConfig(folder=folder, output=tokens, model=tokenizer, tokenize=config))


def main(argv: Sequence[str] | None = None) -> int:
    return run_example(demo, argv, description="Record a game, train on it, imagine more of it.")


if __name__ == "__main__":
    sys.exit(main())
