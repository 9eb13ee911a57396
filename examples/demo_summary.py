"""The demo's measures on held-out play, its pictures, and the tables that it prints."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from boxing_measures import BoxingScores, measure_boxing
from demo_config import BOXING, DemoConfig
from pictures import draw_curves, draw_reconstruction, evenly_spaced
from rich.console import Console
from rich.table import Table
from rollout_pictures import SHOWN_CLIPS, draw_rollout, write_rollout_video
from shared import held_out_clips
from torch import Tensor

from vidtok_plugin import TokenizerAdapter, VidTok
from vidtok_plugin.evaluation.psnr import mean_frame_psnr, reconstruction_psnr
from vidtok_plugin.store.reader import TokenStore
from vidtok_plugin.tokenizer.training.module import TokenizerRunConfig
from vidtok_plugin.video.episodes import find_episodes, find_videos
from world_model import RolloutResult, WorldModel, WorldModelRunConfig, load_world, rollout
from world_model.measures import (
    CrossEntropies,
    Prompts,
    cross_entropies,
    held_out_prompts,
    random_actions,
    score_rollouts,
)

BOXING_NOTE = (
    "The buttons move the white boxer. The black one has a mind of its own, so it may act differently in the two rows."
)
Summary = dict[str, Any]  # measures by name; those of the boxers and of the token ids are dictionaries of their own


def evaluate(
    cfg: DemoConfig, tokenizer_cfg: TokenizerRunConfig, model_cfg: WorldModelRunConfig, summary_file: Path
) -> None:
    """Score tokenizer, world model and rollouts on the test episodes, and draw the pictures."""
    out = cfg.output
    model, adapter = load_world(model_cfg.output / "model")
    world = None if cfg.from_scratch else load_world(cfg.world, device=model.device)
    tokenizer_before = world[1].tokenizer if world else VidTok.from_pretrained("vidtok_tiny").to(model.device)
    clips = held_out_clips(out / "episodes" / "test", tokenizer_cfg.data, cfg.tokenizer_clips)

    summary = tokenizer_scores(out, adapter, tokenizer_before, clips)
    if world:
        summary["token_ids"] = compare_token_ids(adapter, world[1], clips)
    entropies = world_model_entropies(out, model, adapter, model_cfg.data.window_steps)
    summary["world_model_cross_entropy"] = entropies.world_model
    if world:
        before = world_model_entropies(out, world[0], adapter, model_cfg.data.window_steps)
        summary["world_model_cross_entropy_before"] = before.world_model
    summary["unigram_cross_entropy"] = entropies.unigram
    summary["copy_cross_entropy"] = entropies.copy
    scores, prompts, result = rollout_scores(cfg, model, adapter)
    summary |= scores

    game = cfg.record.env.removeprefix("ALE/").removesuffix("-v5")
    note = BOXING_NOTE if cfg.record.env == BOXING else ""
    fps = find_episodes(out / "episodes" / "test")[0].frame_rate()
    draw_rollout(out / "rollout.png", prompts, result, fps=fps, game=game, note=note)
    write_rollout_video(out / "rollout.mp4", prompts, result, fps=fps)
    models = {"as shipped": tokenizer_before, "fine-tuned": adapter.tokenizer}
    draw_reconstruction(out / "reconstruction.png", evenly_spaced(clips, 6), models)
    draw_curves(out / "curves.png", tokenizer_cfg.output, model_cfg.output, entropies)
    summary_file.write_text(json.dumps(summary, indent=2) + "\n")


def tokenizer_scores(out: Path, adapter: TokenizerAdapter, before: VidTok, clips: Sequence[Tensor]) -> Summary:
    """PSNR of the tokenizer's reconstructions, before the training as well, and how much of its codebook it uses."""
    tokens = TokenStore(out / "tokens")
    used = {
        int(code) for i in range(len(tokens)) for code in tokens.window(i, 0, int(tokens.steps[i]))["codes"].unique()
    }
    return {
        "tokenizer_psnr": reconstruction_psnr(adapter.tokenizer, clips),
        "tokenizer_psnr_before": reconstruction_psnr(before, clips),
        "tokenizer_psnr_baseline": mean_frame_psnr(find_videos(out / "episodes" / "train"), clips),
        "codebook_usage": len(used) / adapter.codebook_size,
    }


def compare_token_ids(adapter: TokenizerAdapter, before: TokenizerAdapter, clips: Sequence[Tensor]) -> Summary:
    """Whether the trained decoder left the token ids of the clips, and the hash of all that determines them, unchanged.

    Raises:
        RuntimeError: it did not.
    """
    pairs = [[a.encode(clip[None].to(a.tokenizer.device)).ids for a in (adapter, before)] for clip in clips]
    changed = sum(int((after != earlier).sum()) for after, earlier in pairs)
    if changed or adapter.token_hash != before.token_hash:
        raise RuntimeError("demo: training only the decoder must keep all token ids, but some changed.")
    return {
        "token_hash": adapter.token_hash,
        "token_hash_before": before.token_hash,
        "compared": sum(after.numel() for after, _ in pairs),
        "changed": changed,
    }


def world_model_entropies(out: Path, model: WorldModel, adapter: TokenizerAdapter, window_steps: int) -> CrossEntropies:
    """How well the world model predicts the next token of the test split."""
    train, test = TokenStore(out / "tokens", "train"), TokenStore(out / "tokens", "test")
    test.check(adapter)
    return cross_entropies(model, train, test, window_steps=window_steps)


def rollout_scores(
    cfg: DemoConfig, model: WorldModel, adapter: TokenizerAdapter
) -> tuple[Summary, Prompts, RolloutResult]:
    """How close imagined futures come to the real ones and whether they follow the actions; with some long rollouts."""
    rollouts = cfg.rollouts
    episodes = find_episodes(cfg.output / "episodes" / "test")
    settings: dict[str, Any] = {"sampler": rollouts.sampler, "decoding": rollouts.decoding}

    def find(count: int, future_frames: int) -> Prompts:
        return held_out_prompts(
            episodes, count=count, prompt_frames=rollouts.prompt_frames, future_frames=future_frames
        )

    def others(prompts: Prompts) -> Tensor:
        assert prompts.actions is not None  # the demo records them
        return random_actions(prompts.actions, prompts.prompt_frames, model.tokens.actions.size, cfg.record.hold)

    prompts = find(rollouts.prompts, rollouts.future_frames)
    summary: Summary = asdict(score_rollouts(model, adapter, prompts, others=others(prompts), **settings)[0])
    if cfg.measures_boxing:
        long = find(rollouts.long_prompts, rollouts.long_frames)
        scores, result = measure_boxing(model, adapter, long, others=others(long), **settings)
        summary["boxing"] = asdict(scores)
    else:
        long = find(SHOWN_CLIPS, rollouts.long_frames).to(model.device)
        frames = rollouts.long_frames
        result = rollout(model, adapter, prompt=long.prompt, actions=long.actions, num_frames=frames, **settings)
    return summary, long, result


def print_summary(summary: Mapping[str, Any], seconds: Mapping[str, float], out: Path) -> None:
    """Print the measures as tables, and the seconds of each stage."""
    console = Console()
    table = Table("measure", "value", title="From real to imagined gameplay")
    for name, value in summary.items():
        if not isinstance(value, dict):
            table.add_row(name, f"{value:.4g}")
    console.print(table)
    if "boxing" in summary:
        console.print(boxing_table(BoxingScores(**summary["boxing"])))
    if "token_ids" in summary:
        ids = summary["token_ids"]
        console.print(
            f"Only the decoder was trained: {ids['changed']} of {ids['compared']} token ids changed, and the token "
            f"hash is still {ids['token_hash'][:16]}, so the world model stays valid.",
            soft_wrap=True,
        )
    console.print("seconds per stage: " + ", ".join(f"{name} {value:.0f}" for name, value in seconds.items()))
    console.print(f"See {out}/rollout.png, rollout.mp4, reconstruction.png and curves.png.", soft_wrap=True)


def boxing_table(scores: BoxingScores) -> Table:
    """The measures of imagined boxers beside those of the tokenizer alone and of the prompt's last frame, repeated."""
    table = Table(title=f"Imagined boxers, up to {scores.frames} frames ahead")
    for heading in ("measure", "imagined", "tokenizer", "repeated frame"):
        table.add_column(heading, justify="left" if heading == "measure" else "right")
    for frames, gain in scores.psnr_over_copy.items():
        table.add_row(f"PSNR gained, frames {frames.replace('_', '-')}", f"{gain:.2f} dB", "", "0")
    for frame, distance in scores.distance.items():
        others = [f"{given[frame]:.2f}" for given in (scores.distance_tokenizer, scores.distance_copy)]
        table.add_row(f"player's distance, frame {frame}", f"{distance:.2f} px", *others)
    table.add_row("frames with both boxers", f"{scores.both_present:.3f}", "1", "")
    for frame, sharpness in scores.sharpness.items():
        table.add_row(f"sharpness, frame {frame}", f"{sharpness:.3f}", "1", "")
    low, high = scores.action_delta_psnr_low, scores.action_delta_psnr_high
    table.add_row("PSNR gained by the actions", f"{scores.action_delta_psnr:.2f} dB", "", "0")
    table.add_row("  its 95% interval", f"{low:.2f} to {high:.2f}", "", "")
    return table
