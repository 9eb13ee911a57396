"""Tokenizing a source of recordings into a store, by one process or by several on this machine."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch

from vidtok_plugin.adapter.adapter import TokenizerAdapter
from vidtok_plugin.common.devices import default_device
from vidtok_plugin.common.processes import Process, check_no_launcher, run_processes
from vidtok_plugin.store.adapter import CLIPS, agree_on_statistics, load_adapter
from vidtok_plugin.store.parallelism import Parallelism, parallelism_of
from vidtok_plugin.store.plan import read_plan
from vidtok_plugin.store.reader import TokenStore
from vidtok_plugin.store.shard_encoder import EncoderRecipe, PlannedShard, ShardEncoder
from vidtok_plugin.store.shards import shard_paths
from vidtok_plugin.store.sources import named_sources, store_metadata
from vidtok_plugin.store.staging import written_at
from vidtok_plugin.store.tokenize import Engine, TokenizeConfig, split_lock, write_here, write_shards
from vidtok_plugin.store.writer import unfinished_update
from vidtok_plugin.video.episode import Episode
from vidtok_plugin.video.opening import open_episodes

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class FolderConfig:
    """The settings of `vidtok-plugin tokenize`.

    folder, camera: a source for `open_episodes`, and which of its cameras to read.
    model, preset, patch_size: of the adapter; see `load_adapter`.
    statistics_clips: to fit a KL model's latent statistics; see `agree_on_statistics`.
    processes: to start here; None: 1 on a GPU, otherwise chosen by `parallelism_of`.
    """

    folder: Path
    output: Path
    model: str | Path
    camera: str | None = None
    preset: str | None = None
    patch_size: tuple[int, int] | None = None
    statistics_clips: int = CLIPS
    processes: int | None = None
    tokenize: TokenizeConfig = field(default_factory=TokenizeConfig)


def tokenize_folder(cfg: FolderConfig, *, show_traceback: bool = False) -> list[str]:
    """Writes the tokens of all episodes of a source into a store; returns a summary in sentences.

    This process plans the shards, and the processes that it starts write them. A script that calls this needs
    `if __name__ == "__main__":`, because new processes import it.

    show_traceback: print the tracebacks of errors in processes started here.

    Raises:
        ValueError: `processes` is invalid, another command writes the same split, a launcher such as torchrun has
            started several of this process, or as in `write_store`.
        ChildProcessError: a process started here failed.
    """

    def write(output: Path) -> list[str]:
        lines = _tokenize(replace(cfg, output=output), show_traceback=show_traceback)
        return [line.replace(str(output), str(cfg.output)) for line in lines]

    return written_at(cfg.output, write)


def _tokenize(cfg: FolderConfig, *, show_traceback: bool) -> list[str]:
    check_no_launcher("tokenize", "start it without a launcher; --processes N uses several cores or GPUs of a machine")
    if cfg.processes is not None and cfg.processes < 1:
        raise ValueError(f"tokenize: --processes must be at least 1, got {cfg.processes}.")
    episodes = open_episodes(cfg.folder, cfg.camera)  # an empty folder is an error before anything large is loaded
    prepared = [cfg.tokenize.preparation.of(episode) for episode in episodes]
    with split_lock(cfg.output, cfg.tokenize.split):
        adapter = load_adapter(cfg.model, preset=cfg.preset, patch_size=cfg.patch_size).to(default_device())
        agree_on_statistics(adapter, prepared, cfg.output, clips=cfg.statistics_clips)
        parallelism = _parallelism(cfg, adapter, prepared)
        engine: Engine = write_here
        if parallelism.processes > 1:
            logger.info("%s: %d processes, threads of each: %d", cfg.output, *vars(parallelism).values())
            engine = partial(write_in_processes, parallelism=parallelism, show_traceback=show_traceback)
        write_shards(adapter, episodes, cfg.output, cfg.tokenize, engine)
        return [_summary(cfg)]


def _parallelism(cfg: FolderConfig, adapter: TokenizerAdapter, episodes: Sequence[Episode]) -> Parallelism:
    if cfg.processes is None:
        unwritten = episodes if cfg.tokenize.update else _unwritten(cfg, adapter, episodes)
        return parallelism_of(adapter, unwritten, cfg.tokenize.episodes_per_shard)
    cores = torch.get_num_threads()
    threads = cores if "OMP_NUM_THREADS" in os.environ else max(1, cores // cfg.processes)
    return Parallelism(processes=cfg.processes, threads=threads)


def _unwritten(cfg: FolderConfig, adapter: TokenizerAdapter, episodes: Sequence[Episode]) -> list[Episode]:
    """The prepared episodes that are in no shard yet, as far as the store's plan says."""
    metadata = store_metadata(adapter, episodes[0], cfg.tokenize.clip_frames)
    facts = cfg.tokenize.preparation.facts() or None
    folder = Path(cfg.output, replace(metadata, preparation=facts).tokens_folder, cfg.tokenize.split)
    _, plan = read_plan(folder)
    written = {name for number in shard_paths(folder) if number < len(plan) for name in plan[number]}
    return [episode for name, episode in named_sources(episodes, cfg.tokenize.root).items() if name not in written]


def write_in_processes(
    encoder: ShardEncoder, shards: Sequence[PlannedShard], *, parallelism: Parallelism, show_traceback: bool = False
) -> None:
    """The engine of several processes on this machine: each writes every n-th shard.

    Raises:
        ChildProcessError: one failed.
    """
    n = parallelism.processes
    if 0 < (new := sum(shard.path is None for shard in shards)) < n:
        logger.warning(
            "%s: there are only %d shards to write for %d processes; lower episodes_per_shard",
            *(encoder.writer.folder, new, n),
        )
    run_processes(_write_part, n, encoder.recipe(), list(shards), parallelism.threads, show_traceback=show_traceback)


def _write_part(process: Process, recipe: EncoderRecipe, shards: Sequence[PlannedShard], threads: int) -> None:
    """The work of one of the processes started here."""
    torch.set_num_threads(threads)
    own = [shard for shard in shards if shard.number % process.world_size == process.rank]
    progress = recipe.config.progress and process.rank == 0
    recipe.make(default_device(process.rank)).write(own, progress=progress)


def _summary(cfg: FolderConfig) -> str:
    if cfg.tokenize.update and unfinished_update(cfg.output):
        return f"{cfg.output}: the update is unfinished; until then the store serves the previous tokens"
    store = TokenStore(cfg.output, cfg.tokenize.split)
    return f"{cfg.output}: {len(store)} episodes, {store.num_tokens} tokens"
