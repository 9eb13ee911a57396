"""Writing a token store: new shards, shards in the place of others, and new tokens in the place of all the old ones.

An update writes its tokens beside those that hold. Once there are new ones of every episode that the old ones have,
in every split, store.json names the new ones; then the old ones are removed. Whenever it is stopped, readers find
either the old tokens or the new ones, and the same command goes on.
"""

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from vidtok_plugin.common.atomic_files import atomic_create, atomic_write, remove_partials
from vidtok_plugin.store.reader import (
    METADATA_FILE,
    StoreMetadata,
    metadata_of,
    read_metadata,
    split_folders,
    written_by_another,
)
from vidtok_plugin.store.shards import (
    StoredEpisode,
    next_revision,
    open_shard,
    shard_path,
    shard_paths,
    superseded_shards,
    write_shard_file,
)

if TYPE_CHECKING:
    from vidtok_plugin.adapter.adapter import TokenizerAdapter

logger = logging.getLogger(__name__)

REDO = "redo it by `vidtok-plugin tokenize --update` (update=True)"


class TokenStoreWriter:
    """Adds shards to a store, or begins one.

    Several processes may write one store: of two that write the same shard, the second keeps the first one's.

    adapter: is saved in the store, to decode what a model makes of its tokens.
    update: write tokens in the place of what is there, if that is of another kind; if only the decoder is another,
        the adapter alone is replaced.

    Raises:
        ValueError: what is there is of another kind, and `update` is not set.
    """

    def __init__(
        self,
        folder: str | Path,
        metadata: StoreMetadata,
        *,
        adapter: "TokenizerAdapter | None" = None,
        update: bool = False,
    ) -> None:
        self.folder = Path(folder)
        self._text = json.dumps(asdict(metadata), indent=2) + "\n"
        self.metadata = metadata_of(json.loads(self._text))  # as it will be read, with lists for tuples
        self.update = update
        there = read_metadata(self.folder) if self._file.exists() else None
        self._replaced = there.tokens_folder if update and there is not None else None
        if there is not None:
            self._check(there)
        if adapter is not None and (update or there is None or there.adapter_hash == metadata.adapter_hash):
            atomic_create(self.folder / metadata.adapter_folder, adapter.save_pretrained)
        if atomic_create(self._file, lambda path: path.write_text(self._text)):
            return
        there = read_metadata(self.folder)
        self._check(there)  # another process may have begun it meanwhile
        if there.tokens_folder == self.metadata.tokens_folder and there.adapter_hash != metadata.adapter_hash:
            if update:
                self._replace_metadata()
            else:
                logger.warning(
                    "%s keeps its adapter, which gives the same tokens as this one and has another decoder; replace it "
                    "by `vidtok-plugin tokenize --update`",
                    self.folder,
                )

    def split_folder(self, split: str) -> Path:
        """Where the shards of a split are written."""
        return self.folder / self.metadata.tokens_folder / split

    def write_shard(
        self,
        split: str,
        episodes: Sequence[StoredEpisode],
        data: Sequence[Mapping[str, Tensor]],
        number: int | None = None,
        *,
        instead_of: Path | None = None,
    ) -> Path:
        """Write episodes, each with its codes or patches (N, ...), and its actions (N, f[, a]) and their numbers (N,)
        if any, as the shard of that number, or as a new one after all that are there.

        instead_of: the shard whose place it takes.

        Raises:
            ValueError: the shard is there with other episodes, or the store has become another tokenizer's.
        """
        self._check(read_metadata(self.folder))
        parent = self.split_folder(split)
        number = 1 + max(shard_paths(parent), default=-1) if number is None else number
        path = shard_path(parent, number) if instead_of is None else next_revision(instead_of)
        if not atomic_create(path, lambda folder: write_shard_file(folder, episodes, data)):
            there = [_origin(episode) for episode in open_shard(path).stored_episodes()]
            if there != [_origin(episode) for episode in episodes]:
                raise ValueError(
                    f"TokenStore: {path} must hold the episodes from {episodes[0].name} on, but another process has "
                    "written others there; start the writing again."
                )
        return path

    def tidy(self, split: str) -> None:
        """Remove what stopped processes left, and shards in whose place others are."""
        remove_partials(self.folder)
        remove_partials(self.split_folder(split))
        for path in superseded_shards(self.split_folder(split)):
            _remove(path)

    def put_in_place(self) -> tuple[str, ...]:
        """Make an update's tokens the store's, and remove the old ones, if there are new ones of all their episodes;
        -> the episodes that lack them, as SPLIT/NAME."""
        lacking = self._put_in_place()
        if not lacking:
            keep = {self.metadata.tokens_folder, read_metadata(self.folder).adapter_folder}
            for path in [*self.folder.glob("tokens_*"), *self.folder.glob("adapter_*")]:
                if path.name not in keep:
                    _remove(path)
        return lacking

    def _put_in_place(self) -> tuple[str, ...]:
        new = self.metadata.tokens_folder
        while True:
            there = read_metadata(self.folder)
            self._check(there)
            if there.tokens_folder == new:
                return ()
            try:
                lacking = _episodes(self.folder / there.tokens_folder) - _episodes(self.folder / new)
            except FileNotFoundError:
                if read_metadata(self.folder) == there:
                    raise
                continue  # another process has put the new ones in place, and removed the old ones
            if lacking:
                return tuple(sorted(lacking))
            self._replace_metadata()

    def _replace_metadata(self) -> None:
        with atomic_write(self._file, concurrent=True) as partial:
            partial.write_text(self._text)

    @property
    def _file(self) -> Path:
        return self.folder / METADATA_FILE

    def _check(self, there: StoreMetadata) -> None:
        """A ValueError unless what is there is of this kind, or is what the update began to replace."""
        if there.tokens_folder in (self.metadata.tokens_folder, self._replaced):
            return
        if there.token_hash != self.metadata.token_hash:
            raise ValueError(
                f"{written_by_another(self.folder, there.token_hash, self.metadata.token_hash)}; {REDO}, tokenize "
                "into another folder, or load the adapter that wrote it."
            )
        there.check_same(self.metadata, f"the episodes to be added to {self.folder}", f"{REDO}, or write another store")


def unfinished_update(folder: str | Path) -> bool:
    """Whether a store has tokens beside those that hold."""
    holding = read_metadata(folder).tokens_folder
    return any(path.name != holding for path in Path(folder).glob("tokens_*"))


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)  # another process may be removing it, too


def _episodes(tokens: Path) -> set[str]:
    return {
        f"{split.name}/{episode.name}"
        for split in split_folders(tokens)
        for path in shard_paths(split).values()
        for episode in open_shard(path).stored_episodes()
    }


def _origin(episode: StoredEpisode) -> tuple[str, int, int, int, str]:
    return episode.name, episode.first_frame, episode.frames, episode.steps, episode.digest
