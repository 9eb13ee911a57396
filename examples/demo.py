"""From real gameplay to imagined gameplay: records a game, trains tokenizer and world model on it, and rolls out.

    python examples/demo.py [key=value ...]

Overrides reach the demo's own config (`rollouts.prompts=32`, `record.env=ALE/Pong-v5`) and, with a prefix, the two
training configs (`tokenizer.trainer.max_steps=100`, `tokenizer.from_scratch=true`, `world_model.seed=1`). Each stage
leaves a mark that names all it depended on: a second run does again only the stages for which that has changed, and one
that was interrupted goes on in the middle.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from demo_pictures import draw_curves, draw_reconstruction, draw_rollouts, evenly, write_rollout_video
from rich.console import Console
from rich.table import Table
from stages import CONFIGS, Stages, section, without_sections

from vidtok_plugin import TokenizerAdapter, VidTok
from vidtok_plugin.common.commands import add_command, run_command
from vidtok_plugin.common.config import load_config, to_dict
from vidtok_plugin.common.devices import default_device
from vidtok_plugin.evaluation.psnr import mean_frame_psnr, reconstruction_psnr
from vidtok_plugin.store.reader import TokenStore
from vidtok_plugin.store.tokenize import write_store
from vidtok_plugin.tokenizer.training.module import TokenizerRunConfig
from vidtok_plugin.tokenizer.training.runs import fit_tokenizer
from vidtok_plugin.video.clips import ClipDataset
from vidtok_plugin.video.episodes import find_episodes, find_videos
from vidtok_plugin.video.sources import find_sources
from world_model import Decoding, Sampler, WorldModelRunConfig
from world_model.measures import cross_entropies, held_out_prompts, random_actions, score_rollouts
from world_model.recording.record import SPLITS, RecordConfig, record
from world_model.rollout.files import load_model
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
    """The demo's own settings; those of the training are in `tokenizer/` and `world_model/`."""

    record: RecordConfig
    rollouts: RolloutsConfig
    tokenizer_clips: int = 32  # held-out clips that its PSNR is measured on
    output: Path = Path("runs/demo")

    @property
    def clip_frames(self) -> int:
        """Frames of the clips that the world model learns from: a rollout's, prompt and future."""
        return self.rollouts.prompt_frames + self.rollouts.future_frames


def demo(args: argparse.Namespace) -> None:
    cfg = load_config(DemoConfig, [CONFIGS / "demo.yaml"], without_sections(args.overrides, SECTIONS))
    out = cfg.output
    tokenizer_cfg = section(
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
    model_cfg = section(
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
    stages = Stages(out, 5)
    model_folder = out / "world_model" / "model"
    stages.run("record", to_dict(cfg.record), lambda: record(cfg.record), out / "episodes", [out / "episodes"])
    stages.run(
        "tokenizer",
        to_dict(tokenizer_cfg),
        lambda: fit_tokenizer(tokenizer_cfg),
        tokenizer_cfg.output / "model",
        [tokenizer_cfg.output],
    )
    stages.run("tokens", cfg.clip_frames, lambda: tokenize(cfg), out / "tokens", [out / "tokens"])
    learned = {key: value for key, value in to_dict(model_cfg).items() if key != "measures"}  # which training ignores
    stages.run("world_model", learned, lambda: fit_world_model(model_cfg), model_folder, [model_cfg.output])
    summary_file = out / "summary.json"
    stages.run(
        "rollouts",
        [to_dict(cfg.rollouts), cfg.tokenizer_clips],
        lambda: evaluate(cfg, tokenizer_cfg, model_cfg, summary_file),
        summary_file,
    )
    summary = json.loads(summary_file.read_text())
    summary["seconds"] = round(sum(stages.seconds.values()), 1)
    summary_file.write_text(json.dumps(summary, indent=2) + "\n")
    print_summary(summary, stages.seconds, out)


def tokenize(cfg: DemoConfig) -> None:
    """Every clip is a stream of its own, as a prompt is, so that the world model learns of such beginnings."""
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
    out = cfg.output
    folder = model_cfg.output / "model"
    device = default_device()
    model, adapter = load_model(folder, device)
    summary: dict[str, float] = {}

    data = tokenizer_cfg.data
    clips = ClipDataset.every(
        find_sources([str(out / "episodes" / "test")]),
        clip_length=data.clip_length,
        height=data.height,
        width=data.width,
        max_clips=cfg.tokenizer_clips,
    )
    held_out = [clips[i] for i in range(len(clips))]
    shipped = VidTok.from_pretrained("vidtok_tiny").to(device)
    summary["tokenizer_psnr"] = reconstruction_psnr(adapter.tokenizer, held_out)
    summary["tokenizer_psnr_before"] = reconstruction_psnr(shipped, held_out)
    summary["tokenizer_psnr_baseline"] = mean_frame_psnr(find_videos(out / "episodes" / "train"), held_out)
    whole = TokenStore(out / "tokens")
    used = {int(code) for i in range(len(whole)) for code in whole.window(i, 0, int(whole.steps[i]))["codes"].unique()}
    summary["codebook_usage"] = len(used) / adapter.codebook_size

    train, test = TokenStore(out / "tokens", "train"), TokenStore(out / "tokens", "test")
    test.check(adapter)
    entropies = cross_entropies(model, train, test, window_steps=model_cfg.data.window_steps)
    summary["world_model_cross_entropy"] = entropies.world_model
    summary["unigram_cross_entropy"] = entropies.unigram
    summary["copy_cross_entropy"] = entropies.copy

    prompts = held_out_prompts(
        find_episodes(out / "episodes" / "test"),
        count=cfg.rollouts.prompts,
        prompt_frames=cfg.rollouts.prompt_frames,
        future_frames=cfg.rollouts.future_frames,
    )
    assert prompts.actions is not None  # the demo records them
    actions = random_actions(prompts.actions, prompts.prompt_frames, model.tokens.actions.size, cfg.record.hold)
    chosen = cfg.rollouts
    scores, result = score_rollouts(
        model, adapter, prompts, sampler=chosen.sampler, decoding=chosen.decoding, others=actions
    )
    summary |= asdict(scores)

    fps = cfg.record.file_fps
    write_rollout_video(out / "rollout.mp4", prompts, result, fps=fps)
    draw_rollouts(out / "rollout.png", prompts, result)
    models = {"as shipped": shipped, "fine-tuned": adapter.tokenizer}
    draw_reconstruction(out / "reconstruction.png", evenly(held_out, 6), models)
    draw_curves(out / "curves.png", tokenizer_cfg.output, model_cfg.output, entropies)
    summary_file.write_text(json.dumps(summary, indent=2) + "\n")


def print_summary(summary: dict[str, float], seconds: dict[str, float], out: Path) -> None:
    table = Table("measure", "value", title="From real gameplay to imagined gameplay")
    for name, value in summary.items():
        table.add_row(name, f"{value:.4g}")
    console = Console()
    console.print(table)
    console.print("seconds by stage: " + ", ".join(f"{name} {value:.0f}" for name, value in seconds.items()))
    console.print(f"Look at {out}/rollout.png, rollout.mp4, reconstruction.png and curves.png.", soft_wrap=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="demo.py", description="Record, train, imagine.")
    commands = parser.add_subparsers()
    command = add_command(commands, "run", demo, "run the demo")
    command.add_argument("overrides", nargs="*", default=[], metavar="key=value")
    return run_command(parser, ["run", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    sys.exit(main())
