"""What the examples of other libraries' generators share: real play, the training loop, measures and the picture."""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from rich.progress import track
from stages import CONFIGS, Stages
from torch import Tensor, nn

from vidtok_plugin import TokenGrid, TokenizerAdapter, VideoTokens, VidTok
from vidtok_plugin.common.commands import add_command, run_command
from vidtok_plugin.common.config import load_config, to_dict
from vidtok_plugin.common.devices import default_device
from vidtok_plugin.metrics.psnr import frame_psnr
from vidtok_plugin.tokenizer.training.module import TokenizerRunConfig
from vidtok_plugin.tokenizer.training.runs import fit_tokenizer
from vidtok_plugin.video.clips import ClipDataset
from vidtok_plugin.video.pixels import to_uint8
from vidtok_plugin.video.sources import find_sources
from world_model.recording.record import RecordConfig, record

ENCODED_AT_ONCE = 8  # clips
SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig:
    """What a generator learns from, and how long; a prompt has `prompt_frames`, and the rest of a clip is made up."""

    output: Path
    play: Path = Path("runs/generators/play")  # recorded once for all examples
    env: str = "ALE/Boxing-v5"
    tokenizer: dict[str, Any] = field(default_factory=dict)  # keys of configs/tokenizer/generators.yaml
    episodes: int = 4
    frames_per_episode: int = 1000
    size: int = 64
    clip_frames: int = 13
    prompt_frames: int = 5
    train_clips: int = 256
    test_clips: int = 16
    width: int = 128
    depth: int = 4
    heads: int = 4
    steps: int = 150
    batch_size: int = 4
    lr: float = 2e-3
    temperature: float = 0.7  # where the generator samples ids
    seed: int = 0


Config = TypeVar("Config", bound=GeneratorConfig)


@dataclass(frozen=True, kw_only=True)
class Play:
    """Clips (n, 3, t, h, w) to train on, and held-out ones of another game."""

    train: Tensor
    test: Tensor
    config: GeneratorConfig

    def encode(self, adapter: TokenizerAdapter) -> tuple[VideoTokens, VideoTokens]:
        """The tokens of all clips, each clip's its own."""
        device = next(adapter.tokenizer.parameters()).device
        encoded = []
        for clips in (self.train, self.test):
            parts = [adapter.encode(part.to(device)) for part in clips.split(ENCODED_AT_ONCE)]
            encoded.append(torch.cat(parts))
        return encoded[0], encoded[1]

    def prompt_grid(self, adapter: TokenizerAdapter) -> TokenGrid:
        return adapter.grid(self.config.prompt_frames, self.config.size, self.config.size)


def run_example(schema: type[Config], work: Callable[[Config], None], argv: Sequence[str] | None) -> int:
    """Calls `work` with the config that the command line's `key=value` overrides make."""
    parser = argparse.ArgumentParser(description=work.__doc__)
    command = add_command(
        parser.add_subparsers(), "run", lambda args: work(load_config(schema, [], args.overrides)), "run the example"
    )
    command.add_argument("overrides", nargs="*", default=[], metavar="key=value")
    return run_command(parser, ["run", *(sys.argv[1:] if argv is None else argv)])


def record_play(cfg: GeneratorConfig) -> Play:
    """Records what is not there yet, and draws the clips."""
    torch.manual_seed(cfg.seed)
    settings = RecordConfig(
        env=cfg.env,
        output=str(cfg.play),
        train_episodes=cfg.episodes,
        validation_episodes=0,
        test_episodes=1,
        frames_per_episode=cfg.frames_per_episode,
        size=cfg.size,
        hold=(3, 12),
        seed=cfg.seed,
    )
    record(settings, show_progress=False)
    train, test = (find_sources([str(cfg.play / split)]) for split in ("train", "test"))
    common = {"clip_length": cfg.clip_frames, "height": cfg.size, "width": cfg.size, "cache_mb": 400}
    drawn = ClipDataset.random(train, num_clips=cfg.train_clips, seed=cfg.seed, **common)
    held_out = ClipDataset.every(test, max_clips=cfg.test_clips, **common)
    clips = [torch.stack([clips[i] for i in range(len(clips))]) for clips in (drawn, held_out)]
    return Play(train=clips[0], test=clips[1], config=cfg)


def tune_tokenizer(cfg: GeneratorConfig, start: VidTok) -> VidTok:
    """`start`, trained on the recorded play: once for all examples that start from such a tokenizer."""
    architecture = start.architecture
    folder = cfg.play / f"{architecture.regularizer}_{architecture.latent_channels}_tokenizer"
    start.save_pretrained(folder / "start")
    settings = {
        "output": folder / "run",
        "pretrained": folder / "start",
        "data.train": f"[{cfg.play}/train]",
        "data.validation": f"[{cfg.play}/test]",
        "data.clip_length": cfg.clip_frames,
        "data.height": cfg.size,
        "data.width": cfg.size,
    }
    files = [CONFIGS / "tokenizer" / name for name in ("demo.yaml", "generators.yaml")]
    overrides = [*(f"{key}={value}" for key, value in settings.items()), *flat(cfg.tokenizer)]
    run = load_config(TokenizerRunConfig, files, overrides)
    Stages(folder, 1).run("tokenizer", to_dict(run), lambda: fit_tokenizer(run), run.output / "model", [run.output])
    torch.manual_seed(cfg.seed)  # the generator's start is the same whether the tokenizer was trained now or before
    return VidTok.from_pretrained(run.output / "model").to(default_device())


def flat(tree: dict[str, Any], prefix: str = "") -> list[str]:
    """Nested keys as overrides."""
    parts = [flat(v, f"{prefix}{k}.") if isinstance(v, dict) else [f"{prefix}{k}={v}"] for k, v in tree.items()]
    return [override for part in parts for override in part]


@torch.no_grad()
def evaluate(model: nn.Module, loss: Callable[[VideoTokens], Tensor], tokens: VideoTokens) -> float:
    """The mean loss, with the same noise each time where it has any."""
    model.eval()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.stack([loss(part) for part in tokens.split(ENCODED_AT_ONCE)]).mean().item()


def train(
    model: nn.Module, loss: Callable[[VideoTokens], Tensor], train: VideoTokens, test: VideoTokens, cfg: GeneratorConfig
) -> None:
    """AdamW with warm-up and cosine decay; prints the held-out loss before and after, and the seconds."""
    before, start = evaluate(model, loss, test), time.perf_counter()
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=cfg.lr, betas=(0.9, 0.95), weight_decay=0.05)
    shape = {"max_lr": cfg.lr, "total_steps": cfg.steps + 1, "pct_start": 0.1}
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, cycle_momentum=False, **shape)
    for _ in track(range(cfg.steps), "training", disable=not sys.stderr.isatty()):
        batch = train[torch.randint(len(train), (cfg.batch_size,), device=train.device)]
        optimizer.zero_grad()
        loss(batch).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    seconds = time.perf_counter() - start
    parameters = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    after = evaluate(model, loss, test)
    print(f"{parameters:.1f} M parameters, {cfg.steps} steps in {seconds:.0f} s")
    print(f"held-out loss: {before:.3f} before, {after:.3f} after")


@torch.no_grad()
def decode(adapter: TokenizerAdapter, tokens: VideoTokens) -> Tensor:
    return torch.cat([adapter.decode(part).cpu() for part in tokens.split(ENCODED_AT_ONCE)])


def report(play: Play, adapter: TokenizerAdapter, real: VideoTokens, generated: VideoTokens) -> None:
    """Decodes, scores and draws: what was made up after the prompt beside what happened."""
    prompt = play.config.prompt_frames
    ceiling, made = (decode(adapter, tokens) for tokens in (real, generated))
    still = play.test[:, :, prompt - 1 : prompt].expand_as(play.test)
    mean = play.train.mean((0, 2), keepdim=True).expand_as(play.test)
    videos = (made, mean, still, ceiling)
    psnr = [frame_psnr(play.test, video)[:, prompt:].mean().item() for video in videos]
    print(
        f"PSNR on {play.test.shape[2] - prompt} frames after a prompt of {prompt}: generated {psnr[0]:.3f} dB; the "
        f"mean training frame {psnr[1]:.3f} dB, the prompt's last frame repeated {psnr[2]:.3f} dB, the tokenizer on "
        f"the real frames {psnr[3]:.3f} dB"
    )
    play.config.output.mkdir(parents=True, exist_ok=True)
    draw(play.config.output / "generated.png", play.test, made, prompt)


def draw(path: Path, real: Tensor, generated: Tensor, prompt: int) -> None:
    """For some clips, evenly spaced over all, a row of real frames and under it the generated ones."""
    times = [prompt - 1, *np.linspace(prompt, real.shape[2] - 1, 6).round().astype(int).tolist()]
    rows = np.linspace(0, len(real) - 1, min(SHOWN, len(real))).round().astype(int).tolist()
    figure, axes = plt.subplots(2 * len(rows), len(times), figsize=(1.5 * len(times), 3.1 * len(rows)), squeeze=False)
    for line, axis_row in enumerate(axes):
        name, video = (("real", real), ("generated", generated))[line % 2]
        pixels = to_uint8(video[rows[line // 2]])
        for axis, t in zip(axis_row, times, strict=True):
            axis.imshow(pixels[t], interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            if line % 2 == 0:
                axis.set_title("end of prompt" if t < prompt else f"+{t - prompt + 1}", fontsize=9)
        axis_row[0].set_ylabel(name)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)
    print(f"Look at {path}.")
