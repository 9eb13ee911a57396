"""Tokenizing a source of recordings into a store, by processes started here or by a launcher."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from vidtok_plugin.adapter.adapter import TokenizerAdapter
from vidtok_plugin.common.devices import default_device
from vidtok_plugin.common.folder_lock import FolderLock
from vidtok_plugin.common.processes import THE_ONLY_PROCESS, Process, launched_process, run_processes
from vidtok_plugin.store.adapter import CLIPS, agree_on_statistics, load_adapter
from vidtok_plugin.store.parallelism import Parallelism, parallelism_of
from vidtok_plugin.store.reader import TokenStore
from vidtok_plugin.store.tokenize import TokenizeConfig, write_shards
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
    processes: to start here; None: 1 under a launcher or on a GPU, otherwise chosen by `parallelism_of`.
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

    With several processes, each writes its own shards. A script that
    calls this needs `if __name__ == "__main__":`, because new processes import it.

    show_traceback: print the tracebacks of errors in processes started here.

    Raises:
        ValueError: `processes` is invalid, another command writes the same split, or as in `write_store`.
        ChildProcessError: a process started here failed.
    """
    process = launched_process()
    if cfg.processes is not None and cfg.processes < 1:
        raise ValueError(f"tokenize: --processes must be at least 1, got {cfg.processes}.")
    if cfg.processes is not None and cfg.processes > 1 and process.world_size > 1:
        raise ValueError(
            f"tokenize: --processes must be left out under a launcher, which has set WORLD_SIZE={process.world_size}; "
            "set the number of processes of the launcher."
        )
    episodes = open_episodes(cfg.folder, cfg.camera)  # an empty folder is an error before any process starts
    # A split has one command, or the processes of a launcher; other splits may be written at the same time.
    with FolderLock(cfg.output, name=f".{cfg.tokenize.split}.lock", shared=process.world_size > 1):
        return _tokenize(cfg, process, episodes, show_traceback=show_traceback)


def _tokenize(cfg: FolderConfig, process: Process, episodes: Sequence[Episode], *, show_traceback: bool) -> list[str]:
    # With several processes, this fits statistics, if needed, once and with all threads.
    adapter = _adapter(cfg, episodes, process.local_rank if process.world_size > 1 else None)
    parallelism = _parallelism(cfg, adapter, episodes, process)
    if parallelism.processes > 1:
        del adapter
        logger.info("%s: %d processes, threads of each: %d", cfg.output, parallelism.processes, parallelism.threads)
        run_processes(_write_shards, parallelism.processes, cfg, parallelism.threads, show_traceback=show_traceback)
        return [_summary(cfg)]
    shards = write_shards(adapter, episodes, cfg.output, cfg.tokenize, process)
    lines = [] if shards.missing else [_summary(cfg)]
    if process.world_size > 1:
        lines.insert(
            0, f"{cfg.output}: {process} wrote {len(shards.written)} shards; still missing: {len(shards.missing)}"
        )
    return lines


def _parallelism(
    cfg: FolderConfig, adapter: TokenizerAdapter, episodes: Sequence[Episode], process: Process
) -> Parallelism:
    cores = torch.get_num_threads()
    if cfg.processes is not None:
        threads = cores if "OMP_NUM_THREADS" in os.environ else max(1, cores // cfg.processes)
        return Parallelism(processes=cfg.processes, threads=threads)
    if process is not THE_ONLY_PROCESS:  # a launcher started it
        return Parallelism(processes=1, threads=cores)
    return parallelism_of(adapter, _prepared(cfg, episodes), cfg.tokenize.episodes_per_shard)


def _write_shards(process: Process, cfg: FolderConfig, threads: int) -> None:
    """The work of one of the processes started here."""
    torch.set_num_threads(threads)
    episodes = open_episodes(cfg.folder, cfg.camera)
    adapter = _adapter(cfg, episodes, process.local_rank)
    write_shards(adapter, episodes, cfg.output, cfg.tokenize, process)


def _prepared(cfg: FolderConfig, episodes: Sequence[Episode]) -> list[Episode]:
    return [cfg.tokenize.preparation.of(episode) for episode in episodes]


def _adapter(cfg: FolderConfig, episodes: Sequence[Episode], local_rank: int | None = None) -> TokenizerAdapter:
    """The adapter, equal in all processes."""
    adapter = load_adapter(cfg.model, preset=cfg.preset, patch_size=cfg.patch_size).to(default_device(local_rank))
    agree_on_statistics(adapter, _prepared(cfg, episodes), cfg.output, clips=cfg.statistics_clips)
    return adapter


def _summary(cfg: FolderConfig) -> str:
    if cfg.tokenize.update and unfinished_update(cfg.output):
        return f"{cfg.output}: the update is unfinished; until then the store serves the previous tokens"
    store = TokenStore(cfg.output, cfg.tokenize.split)
    return f"{cfg.output}: {len(store)} episodes, {store.num_tokens} tokens"
