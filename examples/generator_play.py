"""Shared by the examples of other libraries' generators: recorded play, its tokenizer, a training loop, a report.

Each of these examples runs the same steps: `record_play`, `tune_tokenizer`, `Play.encode`, `train`, `report`. They
differ in the generator, its loss and its sampling.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from pictures import draw_futures
from rich.progress import track
from shared import run_example, section_config
from stages import Stages
from torch import Tensor, nn

from vidtok_plugin import TokenGrid, TokenizerAdapter, VideoTokens, VidTok
from vidtok_plugin.common.config import load_config, to_dict
from vidtok_plugin.common.devices import default_device
from vidtok_plugin.metrics.psnr import frame_psnr
from vidtok_plugin.tokenizer.training.module import TokenizerRunConfig
from vidtok_plugin.tokenizer.training.runs import fit_tokenizer
from vidtok_plugin.video.clips import ClipDataset
from vidtok_plugin.video.sources import find_sources
from world_model.recording.record import RecordConfig, record

CLIP_BATCH = 8  # clips that are encoded, evaluated or decoded together


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig:
    """The data, size and training of a generator.

    It sees the first `prompt_frames` of a clip of `clip_frames` and generates the rest.
    """

    output: Path
    play: Path = Path("runs/generators/play")  # recorded once, shared by all examples
    env: str = "ALE/Boxing-v5"
    tokenizer: dict[str, Any] = field(default_factory=dict)  # overrides of configs/tokenizer/generators.yaml
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
    temperature: float = 0.7  # of generators that sample ids
    seed: int = 0


Config = TypeVar("Config", bound=GeneratorConfig)


@dataclass(frozen=True, kw_only=True)
class Play:
    """Clips (n, 3, t, h, w) for training, and held-out ones from other episodes."""

    train: Tensor
    test: Tensor
    config: GeneratorConfig

    def encode(self, adapter: TokenizerAdapter) -> tuple[VideoTokens, VideoTokens]:
        """The tokens of the training and of the held-out clips."""
        device = next(adapter.tokenizer.parameters()).device
        train, test = (
            torch.cat([adapter.encode(batch.to(device)) for batch in clips.split(CLIP_BATCH)])
            for clips in (self.train, self.test)
        )
        return train, test

    def prompt_grid(self, adapter: TokenizerAdapter) -> TokenGrid:
        """The grid of a prompt's tokens."""
        return adapter.grid(self.config.prompt_frames, self.config.size, self.config.size)


def run_generator(schema: type[Config], work: Callable[[Config], None], argv: Sequence[str] | None) -> int:
    """Call `work` with the config that the overrides on the command line give; -> the exit code."""

    def run(args: argparse.Namespace) -> None:
        work(load_config(schema, [], args.overrides))

    return run_example(run, argv, description=work.__doc__ or "")


def record_play(cfg: GeneratorConfig) -> Play:
    """Record episodes, unless they exist already, and pick clips from them."""
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
    train_clips = ClipDataset.random(train, num_clips=cfg.train_clips, seed=cfg.seed, **common)
    test_clips = ClipDataset.every(test, max_clips=cfg.test_clips, **common)
    clips = [torch.stack([dataset[i] for i in range(len(dataset))]) for dataset in (train_clips, test_clips)]
    return Play(train=clips[0], test=clips[1], config=cfg)


def tune_tokenizer(cfg: GeneratorConfig, start: VidTok) -> VidTok:
    """Train `start` on the recorded play, once for all examples that start from the same kind of tokenizer."""
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
    files = ["tokenizer/demo_from_scratch.yaml", "tokenizer/generators.yaml"]
    run = section_config("tokenizer", TokenizerRunConfig, files, dotted(cfg.tokenizer, "tokenizer."), settings)
    model = run.output / "model"
    Stages(folder, 1).run(
        "tokenizer", lambda: fit_tokenizer(run), inputs=to_dict(run), result=model, remove=[run.output]
    )
    torch.manual_seed(cfg.seed)  # so the generator starts the same, whether or not the tokenizer was trained just now
    return VidTok.from_pretrained(model).to(default_device())


def dotted(tree: dict[str, Any], prefix: str) -> list[str]:
    """Nested settings as `key.subkey=value` overrides."""
    overrides: list[str] = []
    for key, value in tree.items():
        overrides += dotted(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}={value}"]
    return overrides


@torch.no_grad()
def evaluate(model: nn.Module, loss: Callable[[VideoTokens], Tensor], tokens: VideoTokens) -> float:
    """The mean loss; a random loss gets the same noise each time."""
    model.eval()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.stack([loss(batch) for batch in tokens.split(CLIP_BATCH)]).mean().item()


def train(
    model: nn.Module, loss: Callable[[VideoTokens], Tensor], train: VideoTokens, test: VideoTokens, cfg: GeneratorConfig
) -> None:
    """Train with AdamW, warm-up and cosine decay; prints the held-out loss before and after, and the seconds."""
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
    return torch.cat([adapter.decode(batch).cpu() for batch in tokens.split(CLIP_BATCH)])


def report(play: Play, adapter: TokenizerAdapter, real: VideoTokens, generated: VideoTokens) -> None:
    """Decode the generated tokens, print their PSNR beside that of baselines, and draw them beside the real frames."""
    prompt, path = play.config.prompt_frames, play.config.output / "generated.png"
    ceiling, made = (decode(adapter, tokens) for tokens in (real, generated))
    still = play.test[:, :, prompt - 1 : prompt].expand_as(play.test)
    mean = play.train.mean((0, 2), keepdim=True).expand_as(play.test)
    videos = (made, mean, still, ceiling)
    psnr = [frame_psnr(play.test, video)[:, prompt:].mean().item() for video in videos]
    print(
        f"PSNR on {play.test.shape[2] - prompt} frames after a prompt of {prompt}: generated {psnr[0]:.3f} dB; the "
        f"mean training frame {psnr[1]:.3f} dB, the prompt's last frame repeated {psnr[2]:.3f} dB, the real frames "
        f"after the tokenizer {psnr[3]:.3f} dB"
    )
    draw_futures(path, play.test, made, prompt, name="generated", clips=3)
    print(f"See {path}.")
