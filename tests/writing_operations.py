"""Everything that writes an output folder: trainings, stores, recordings, models, videos, reports, pictures."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from recordings import tiny_adapter, tiny_kl_adapter, write_folder
from training_runs import Kind, make_store, make_videos, run_here, settings
from world_models import random_model

from vidtok_plugin.store.adapter import agree_on_statistics
from vidtok_plugin.store.tokenize import write_store
from vidtok_plugin.tokenizer.model import VidTok
from vidtok_plugin.tokenizer.reconstruction.reconstruct import reconstruct_video
from vidtok_plugin.tokenizer.weights.conversion import convert
from vidtok_plugin.training.curves import draw_curves
from vidtok_plugin.training.scalars import Series
from vidtok_plugin.video.episodes import find_episodes, find_videos, save_episode_files
from world_model.measures.report import Report
from world_model.recording.record import RecordConfig, record

NAMES = (
    *("training of a world model", "training of a tokenizer", "store of codes", "store of patches", "recording"),
    *("adapter", "world", "model for diffusers", "published model", "video", "actions", "report", "curves"),
)


@dataclass(frozen=True)
class Operation:
    """Something that writes an output folder: `run(output, 0)` an earlier content, `run(output, 1)` the later one."""

    run: Callable[[Path, int], object]
    adds: bool = False  # to the earlier content, which it otherwise replaces
    same: str = r".*"  # the files that are the same to the byte in each run


def make_operations(folder: Path) -> dict[str, Operation]:
    """The operations of `NAMES`, with their inputs in `folder`."""
    torch.manual_seed(0)
    videos, store = make_videos(folder / "videos", scale=4), make_store(folder / "tokens")
    episodes = write_folder(folder / "first", {"a": 9}), write_folder(folder / "all", {"a": 9, "b": 17})
    models = [folder / f"model{seed}" for seed in (0, 1)]
    for seed, model in enumerate(models):
        torch.manual_seed(seed)
        VidTok.from_preset("vidtok_tiny", ch=4, ch_mult=(1, 1, 1, 1), fsq_levels=(8, 8), version="1.1").save_pretrained(
            model
        )
    found = {
        "training of a world model": _fit("world_model", store),
        "training of a tokenizer": _fit("tokenizer", videos),
        "store of codes": _tokenize("codes", episodes),
        "store of patches": _tokenize("patches", episodes),
        "recording": Operation(_record, adds=True, same=r".*\.npy"),
        "adapter": Operation(lambda output, later: tiny_adapter(later).save_pretrained(output)),
        "world": Operation(lambda output, later: random_model(seed=later).save_pretrained(output, tiny_adapter(later))),
        "model for diffusers": Operation(lambda output, later: convert(models[later], output, to="diffusers")),
        "published model": Operation(lambda output, later: convert(models[later], output, to="published")),
        "video": Operation(
            lambda output, later: reconstruct_video(
                tiny_adapter().tokenizer, videos / f"{later}.mp4", output / "out.mp4"
            )
        ),
        "actions": Operation(_save_sidecars),
        "report": Operation(
            lambda output, later: Report(source="s" * 9000 * (1 + later), settings={}, regimes={}).write(output)
        ),
        "curves": Operation(
            lambda output, later: draw_curves(output / "c.png", {"train/loss": Series(steps=[0, 1], values=[0, later])})
        ),
    }
    assert tuple(found) == NAMES
    return found


def _fit(kind: Kind, data: Path) -> Operation:
    own = ["checkpoint_every=2", "trainer.check_val_every_n_epoch=100", "ema_decay=0.9", "loggers=[csv, tensorboard]"]

    def run(output: Path, later: int) -> None:
        run_here(kind, settings(kind, data, output, *own, f"trainer.max_steps={2 + 2 * later}"))

    return Operation(run, adds=True, same=r"model/.*\.safetensors")


def _tokenize(kind: str, episodes: tuple[Path, Path]) -> Operation:
    def run(output: Path, later: int) -> None:
        adapter = tiny_adapter() if kind == "codes" else tiny_kl_adapter()
        agree_on_statistics(adapter, find_videos(episodes[1]), output, clips=2)
        write_store(adapter, find_episodes(episodes[later]), output, episodes_per_shard=1)

    return Operation(run, adds=True, same=r"tokens_.*/shard_\d+/.*|adapter_.*")


def _record(output: Path, later: int) -> None:
    sizes = {"train_episodes": 1 + later, "frames_per_episode": 40, "min_frames": 16, "size": 32}
    cfg = RecordConfig(env="ALE/Boxing-v5", output=str(output), validation_episodes=0, test_episodes=0, **sizes)
    record(cfg, show_progress=False)


def _save_sidecars(output: Path, later: int) -> None:
    count = 2_000 + 9 * later
    save_episode_files(output / "a.mp4", np.arange(count) % 3, {"num_frames": count, "fps": 30 + later})
