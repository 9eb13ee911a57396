"""Tokenizing a source of recordings into a store: by this process, by several on this machine, or by a Ray cluster."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from vidtok_plugin.common.devices import default_device
from vidtok_plugin.common.field_checks import check_fields
from vidtok_plugin.common.paths import as_path
from vidtok_plugin.common.processes import Process, check_no_launcher, run_processes
from vidtok_plugin.common.url_path import UrlPath
from vidtok_plugin.store.adapter import CLIPS, agree_on_statistics, load_adapter
from vidtok_plugin.store.config import TokenizeConfig
from vidtok_plugin.store.parallelism import Parallelism, parallelism_of
from vidtok_plugin.store.ray_engine import check_ray, write_with_ray
from vidtok_plugin.store.reader import TokenStore
from vidtok_plugin.store.shard_encoder import EncoderRecipe, PlannedShard, ShardEncoder
from vidtok_plugin.store.staging import written_at
from vidtok_plugin.store.tokenize import Engine, split_lock, write_here, write_shards
from vidtok_plugin.store.writer import unfinished_update
from vidtok_plugin.video.opening import open_episodes

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class FolderConfig:
    """The settings of `vidtok-plugin tokenize`.

    folder, camera: a source for `open_episodes`, and which of its cameras to read.
    model, preset, patch_size: of the adapter; see `load_adapter`.
    statistics_clips: to fit a KL model's latent statistics; see `agree_on_statistics`.
    engine: local, this machine; ray, a Ray cluster, of which this machine may be the only one.
    address: of the Ray cluster; None: a Ray of its own on this machine.
    processes: to start here; None: 1 on a GPU, otherwise chosen by `parallelism_of`. With Ray, the number of actors at
        most; None: one for each GPU of the cluster, or core.
    """

    folder: Path
    output: Path
    model: str | Path
    camera: str | None = None
    preset: str | None = None
    patch_size: tuple[int, int] | None = None
    statistics_clips: int = CLIPS
    engine: Literal["local", "ray"] = "local"
    address: str | None = None
    processes: int | None = None
    tokenize: TokenizeConfig = field(default_factory=TokenizeConfig)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.processes is not None and self.processes < 1:
            raise ValueError(f"tokenize: --processes must be at least 1, got {self.processes}.")
        if self.address is not None and self.engine != "ray":
            raise ValueError(
                f"tokenize: --address is that of a Ray cluster, got {self.address} with --engine {self.engine}; add "
                "--engine ray, or leave it out."
            )
        if self.address is not None and isinstance(as_path(self.output), UrlPath):
            raise ValueError(
                f"tokenize: --output must be a folder that all machines of the cluster share, got {self.output}, of "
                "which this one alone would have the copy to write in; copy the store there when it is complete."
            )

    def everywhere(self) -> "FolderConfig":
        """With absolute paths, which processes with other working folders find."""
        root = self.tokenize.root
        tokenize = self.tokenize if root is None else replace(self.tokenize, root=as_path(root).absolute())
        return replace(self, folder=self.folder.absolute(), output=self.output.absolute(), tokenize=tokenize)


def tokenize_folder(cfg: FolderConfig, *, show_traceback: bool = False) -> list[str]:
    """Writes the tokens of all episodes of a source into a store; returns a summary in sentences.

    This process plans the shards, and the processes that it starts write them. A script that calls this needs
    `if __name__ == "__main__":`, because new processes import it.

    show_traceback: print the tracebacks of errors in processes started here.

    Raises:
        ValueError: another command writes the same split, a launcher such as torchrun has started several of this
            process, or as in `write_store` and `write_with_ray`.
        ChildProcessError: a process started here failed, or Ray's actors were lost again and again.
    """
    check_no_launcher("tokenize", "start it without one; --processes N is for one machine, --engine ray for several")
    if cfg.engine == "ray":
        cfg = cfg.everywhere()
        check_ray(cfg.address)

    def write(output: Path) -> list[str]:
        lines = _tokenize(replace(cfg, output=output), show_traceback=show_traceback)
        return [line.replace(str(output), str(cfg.output)) for line in lines]

    return written_at(cfg.output, write)


def _tokenize(cfg: FolderConfig, *, show_traceback: bool) -> list[str]:
    episodes = open_episodes(cfg.folder, cfg.camera)  # an empty folder is an error before anything large is loaded
    prepared = [cfg.tokenize.preparation.of(episode) for episode in episodes]
    with split_lock(cfg.output, cfg.tokenize.split):
        adapter = load_adapter(cfg.model, preset=cfg.preset, patch_size=cfg.patch_size).to(default_device())
        agree_on_statistics(adapter, prepared, cfg.output, clips=cfg.statistics_clips)
        engine: Engine = partial(write_locally, processes=cfg.processes, show_traceback=show_traceback)
        if cfg.engine == "ray":
            engine = partial(write_with_ray, address=cfg.address, actors=cfg.processes)
        write_shards(adapter, episodes, cfg.output, cfg.tokenize, engine)
        return [_summary(cfg)]


def write_locally(
    encoder: ShardEncoder,
    shards: Sequence[PlannedShard],
    *,
    processes: int | None = None,
    show_traceback: bool = False,
) -> None:
    """The engine of this machine: this process, or several, each of which writes every n-th shard.

    processes: None: chosen by `parallelism_of`, for the shards that are not there yet or, in an update, for all.

    Raises:
        ChildProcessError: a process failed.
    """
    config = encoder.config
    unwritten = [shard for shard in shards if shard.path is None or config.update]
    if processes is None:
        episodes = [episode for shard in unwritten for episode in shard.sources.values()]
        parallelism = parallelism_of(encoder.adapter, episodes, config.episodes_per_shard, config.batch_frames)
    else:
        cores = torch.get_num_threads()
        threads = cores if "OMP_NUM_THREADS" in os.environ else max(1, cores // processes)
        parallelism = Parallelism(processes=processes, threads=threads)
    n, threads, store = parallelism.processes, parallelism.threads, encoder.writer.folder
    if n == 1:
        write_here(encoder, shards)
        return
    logger.info("%s: %d processes, threads of each: %d", store, n, threads)
    if 0 < len(unwritten) < n:
        logger.warning(
            "%s: there are only %d shards to write for %d processes; lower episodes_per_shard",
            *(store, len(unwritten), n),
        )
    run_processes(_write_part, n, encoder.recipe(), list(shards), threads, show_traceback=show_traceback)


def _write_part(process: Process, recipe: EncoderRecipe, shards: Sequence[PlannedShard], threads: int) -> None:
    """The work of one of the processes started here."""
    torch.set_num_threads(threads)
    own = [shard for shard in shards if shard.number % process.world_size == process.rank]
    progress = recipe.config.progress and process.rank == 0
    recipe.make(default_device(process.rank)).write(
        own, progress=progress, description=f"tokens ({recipe.config.split}), {process}"
    )


def _summary(cfg: FolderConfig) -> str:
    if cfg.tokenize.update and unfinished_update(cfg.output):
        return f"{cfg.output}: the update is unfinished; until then the store serves the previous tokens"
    store = TokenStore(cfg.output, cfg.tokenize.split)
    return f"{cfg.output}: {len(store)} episodes, {store.num_tokens} tokens"
