"""From real to imagined gameplay: record a game, train a tokenizer and a world model on it, and roll it out.

    python examples/demo.py [key=value ...]

Overrides change the demo's own config (`rollouts.prompts=32`, `record.env=ALE/Pong-v5`) or, with a prefix, one of the
two training configs (`tokenizer.trainer.max_steps=100`, `tokenizer.from_scratch=true`, `world_model.seed=1`). A second
run repeats only the stages whose settings have changed. An interrupted run continues where it stopped.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pictures import draw_curves, draw_futures, draw_reconstruction, evenly_spaced, write_rollout_video
from rich.console import Console
from rich.table import Table
from shared import CONFIGS, held_out_clips, own_overrides, run_example, section_config
from stages import Stages

from vidtok_plugin import TokenizerAdapter, VidTok
from vidtok_plugin.common.config import load_config, to_dict
from vidtok_plugin.common.devices import default_device
from vidtok_plugin.evaluation.psnr import mean_frame_psnr, reconstruction_psnr
from vidtok_plugin.store.reader import TokenStore
from vidtok_plugin.store.tokenize import write_store
from vidtok_plugin.tokenizer.training.module import TokenizerRunConfig
from vidtok_plugin.tokenizer.training.runs import fit_tokenizer
from vidtok_plugin.video.episodes import find_episodes, find_videos
from world_model import Decoding, Sampler, WorldModelRunConfig, load_world
from world_model.measures import cross_entropies, held_out_prompts, random_actions, score_rollouts
from world_model.recording.record import SPLITS, RecordConfig, record
from world_model.training.runs import fit_world_model

SECTIONS = ("tokenizer", "world_model")


@dataclass(frozen=True, kw_only=True)
class RolloutsConfig:
    """Which rollouts the demo scores and shows."""

    prompts: int = 64
    prompt_frames: int = 13
    future_frames: int = 16
    sampler: Sampler = field(default_factory=Sampler)
    decoding: Decoding = field(default_factory=Decoding)


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """The demo's own settings. Those of the trainings are in `configs/tokenizer/` and `configs/world_model/`."""

    record: RecordConfig
    rollouts: RolloutsConfig
    tokenizer_clips: int = 32  # held-out clips for the tokenizer's PSNR
    output: Path = Path("runs/demo")

    @property
    def clip_frames(self) -> int:
        """Frames of the clips that the world model trains on: as many as a rollout, prompt and future."""
        return self.rollouts.prompt_frames + self.rollouts.future_frames


def demo(args: argparse.Namespace) -> None:
    """All five stages: record, train the tokenizer, tokenize, train the world model, roll out."""
    cfg = load_config(DemoConfig, [CONFIGS / "demo.yaml"], own_overrides(args.overrides, SECTIONS))
    out = cfg.output
    tokenizer_cfg = section_config(
        "tokenizer",
        TokenizerRunConfig,
        ["tokenizer/demo.yaml"],
        args.overrides,
        {
            "output": out / "tokenizer",
            "data.train": f"[{out}/episodes/train]",
            "data.validation": f"[{out}/episodes/validation]",
            "data.height": cfg.record.size,
            "data.width": cfg.record.size,
        },
    )
    model_cfg = section_config(
        "world_model",
        WorldModelRunConfig,
        ["world_model/demo.yaml", "world_model/actions.yaml"],
        args.overrides,
        {
            "output": out / "world_model",
            "data.store": out / "tokens",
            "measures.episodes": out / "episodes" / "validation",
        },
    )
    episodes, tokens, summary_file = out / "episodes", out / "tokens", out / "summary.json"
    stages = Stages(out, 5)
    stages.run("record", lambda: record(cfg.record), inputs=to_dict(cfg.record), result=episodes, remove=[episodes])
    stages.run(
        "tokenizer",
        lambda: fit_tokenizer(tokenizer_cfg),
        inputs=to_dict(tokenizer_cfg),
        result=tokenizer_cfg.output / "model",
        remove=[tokenizer_cfg.output],
    )
    stages.run("tokens", lambda: tokenize(cfg), inputs=cfg.clip_frames, result=tokens, remove=[tokens])
    stages.run(
        "world_model",
        lambda: fit_world_model(model_cfg),
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


def tokenize(cfg: DemoConfig) -> None:
    """Encode the episodes clip by clip: each clip starts like a prompt, so the world model learns such starts."""
    out = cfg.output
    adapter = TokenizerAdapter(VidTok.from_pretrained(out / "tokenizer" / "model").to(default_device()))
    for split in SPLITS:
        write_store(
            adapter,
            find_episodes(out / "episodes" / split),
            out / "tokens",
            split=split,
            clip_frames=cfg.clip_frames,
            episodes_per_shard=4,
            progress=True,
        )


def evaluate(
    cfg: DemoConfig, tokenizer_cfg: TokenizerRunConfig, model_cfg: WorldModelRunConfig, summary_file: Path
) -> None:
    """Score tokenizer, world model and rollouts on the test episodes, and draw the pictures."""
    out = cfg.output
    model, adapter = load_world(model_cfg.output / "model")
    device = model.device
    test_episodes = out / "episodes" / "test"
    summary: dict[str, float] = {}

    # The tokenizer: its reconstructions, and how much of its codebook it uses.
    clips = held_out_clips(test_episodes, tokenizer_cfg.data, cfg.tokenizer_clips)
    shipped = VidTok.from_pretrained("vidtok_tiny").to(device)
    summary["tokenizer_psnr"] = reconstruction_psnr(adapter.tokenizer, clips)
    summary["tokenizer_psnr_before"] = reconstruction_psnr(shipped, clips)
    summary["tokenizer_psnr_baseline"] = mean_frame_psnr(find_videos(out / "episodes" / "train"), clips)
    all_tokens = TokenStore(out / "tokens")
    used = {
        int(code)
        for i in range(len(all_tokens))
        for code in all_tokens.window(i, 0, int(all_tokens.steps[i]))["codes"].unique()
    }
    summary["codebook_usage"] = len(used) / adapter.codebook_size

    # The world model: how well it predicts the next token.
    train, test = TokenStore(out / "tokens", "train"), TokenStore(out / "tokens", "test")
    test.check(adapter)
    entropies = cross_entropies(model, train, test, window_steps=model_cfg.data.window_steps)
    summary["world_model_cross_entropy"] = entropies.world_model
    summary["unigram_cross_entropy"] = entropies.unigram
    summary["copy_cross_entropy"] = entropies.copy

    # The rollouts: how close imagined futures come to the real ones, and whether they follow the actions.
    prompts = held_out_prompts(
        find_episodes(test_episodes),
        count=cfg.rollouts.prompts,
        prompt_frames=cfg.rollouts.prompt_frames,
        future_frames=cfg.rollouts.future_frames,
    )
    assert prompts.actions is not None  # the demo records them
    scores, result = score_rollouts(
        model,
        adapter,
        prompts,
        sampler=cfg.rollouts.sampler,
        decoding=cfg.rollouts.decoding,
        others=random_actions(prompts.actions, prompts.prompt_frames, model.tokens.actions.size, cfg.record.hold),
    )
    summary |= asdict(scores)

    write_rollout_video(out / "rollout.mp4", prompts, result, fps=cfg.record.file_fps)
    draw_futures(out / "rollout.png", prompts.video, result.video, prompts.prompt_frames, name="imagined", clips=4)
    models = {"as shipped": shipped, "fine-tuned": adapter.tokenizer}
    draw_reconstruction(out / "reconstruction.png", evenly_spaced(clips, 6), models)
    draw_curves(out / "curves.png", tokenizer_cfg.output, model_cfg.output, entropies)
    summary_file.write_text(json.dumps(summary, indent=2) + "\n")


def print_summary(summary: dict[str, float], seconds: dict[str, float], out: Path) -> None:
    table = Table("measure", "value", title="From real to imagined gameplay")
    for name, value in summary.items():
        table.add_row(name, f"{value:.4g}")
    console = Console()
    console.print(table)
    console.print("seconds per stage: " + ", ".join(f"{name} {value:.0f}" for name, value in seconds.items()))
    console.print(f"See {out}/rollout.png, rollout.mp4, reconstruction.png and curves.png.", soft_wrap=True)


def main(argv: Sequence[str] | None = None) -> int:
    return run_example(demo, argv, description="Record a game, train on it, imagine more of it.")


if __name__ == "__main__":
    sys.exit(main())
