"""TokenStoreWriter: adds shards to a store, replaces shards, and switches the store to new tokens.

An update writes its tokens next to the current ones. Once they include every episode of every split that the current
tokens have, store.json switches to them and the previous tokens are removed. Whenever it is interrupted, readers find
complete tokens, previous or new, and running the same command again continues it.
"""

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from torch import Tensor

from vidtok_plugin.adapter.adapter import TokenizerAdapter
from vidtok_plugin.common.atomic_files import atomic_create, atomic_write, remove_partials
from vidtok_plugin.common.paths import as_path
from vidtok_plugin.store.adapter import adapter_problem
from vidtok_plugin.store.metadata import METADATA_FILE, StoreMetadata, read_metadata, written_by_another
from vidtok_plugin.store.plan import stored_names
from vidtok_plugin.store.records import record_path, recorded_splits, records_folder, write_record
from vidtok_plugin.store.shard_checks import arrays_problem, values_problem
from vidtok_plugin.store.shards import (
    SPLIT_RULE,
    StoredEpisode,
    is_split_name,
    next_revision,
    open_shard,
    shard_path,
    shard_paths,
    split_folders,
    superseded_shards,
    write_shard_file,
)

logger = logging.getLogger(__name__)

REDO = "tokenize it again with `vidtok-plugin tokenize --update` (update=True)"


class TokenStoreWriter:
    """Adds shards to a store, or creates the store.

    Several processes may write one store. If two write the same shard, the first one's is kept.

    metadata: of the tokens to write.
    adapter: is saved in the store, to decode its tokens and those that a model generates.
    update: allow tokens that differ from the store's, to replace them. If only the decoder differs, replace only the
        adapter.

    Raises:
        ValueError: the store has tokens with other metadata, and `update` is not set.
    """

    def __init__(
        self,
        folder: str | Path,
        metadata: StoreMetadata,
        *,
        adapter: TokenizerAdapter | None = None,
        update: bool = False,
    ) -> None:
        self.folder = as_path(folder)
        self.metadata = StoreMetadata.from_json(json.loads(metadata.to_json()))  # as readers see it: lists, not tuples
        current = read_metadata(self.folder) if self._file.exists() else None
        replaces = current is not None and (update or self._is_empty(current))
        self._replaced = current.tokens_folder if current is not None and replaces else None
        if current is not None:
            self._check(current)
        if adapter is not None and (update or current is None or current.adapter_hash == metadata.adapter_hash):
            self._save_adapter(adapter)
        if atomic_create(self._file, self._write_metadata):
            return
        current = read_metadata(self.folder)
        self._check(current)  # another process may have created the store meanwhile
        if current.tokens_folder != self.metadata.tokens_folder and not update:
            self._replace_metadata()
            _remove(self.folder / current.tokens_folder)
            return
        if current.tokens_folder == self.metadata.tokens_folder and current.adapter_hash != metadata.adapter_hash:
            if update:
                self._replace_metadata()
            else:
                logger.warning(
                    "%s keeps its adapter, which produces the same tokens as this one but has another decoder; replace "
                    "it with `vidtok-plugin tokenize --update`",
                    self.folder,
                )

    def split_folder(self, split: str) -> Path:
        """Where the shards of a split are written.

        Raises:
            ValueError: the name could lead elsewhere.
        """
        if not is_split_name(split):
            raise ValueError(f"TokenStore: split must be {SPLIT_RULE}, got {split!r}.")
        return self.folder / self.metadata.tokens_folder / split

    def write_shard(
        self,
        split: str,
        episodes: Sequence[StoredEpisode],
        data: Sequence[Mapping[str, Tensor]],
        number: int | None = None,
        *,
        replaces: Path | None = None,
    ) -> Path:
        """Write a shard and return its path.

        data: of each episode, codes (N, H, W) int32 or patches (N, H, W, d) float32; with actions, also
            actions (N, f[, a]) and num_actions (N,) uint8; and what is known of rewards (N, f) float32, terminated (N,)
            uint8 and state (N, f, s) float32.
        number: of the shard; by default one after the last.
        replaces: the shard of which this is the next revision.

        Raises:
            ValueError: the data do not fit the metadata, the shard exists with other episodes, or the store now has
                tokens with other metadata.
        """
        self._check(read_metadata(self.folder))
        parent = self.split_folder(split)
        self._check_data(episodes, data)
        number = 1 + max(shard_paths(parent), default=-1) if number is None else number
        path = shard_path(parent, number) if replaces is None else next_revision(replaces)
        if replaces is None and not path.exists():
            _remove_records(parent, number)  # of a shard that was lost
        place, store = f"{split}/{path.name}", self.metadata.tokens_folder
        if not atomic_create(path, lambda folder: write_shard_file(folder, episodes, data, store=store, place=place)):
            existing = [_origin(episode) for episode in open_shard(path).stored_episodes()]
            if existing != [_origin(episode) for episode in episodes]:
                raise ValueError(
                    f"TokenStore: {path} must hold the episodes from {episodes[0].name} on, but another process has "
                    "written others there; start writing again."
                )
        _record(path)
        return path

    def _check_data(self, episodes: Sequence[StoredEpisode], data: Sequence[Mapping[str, Tensor]]) -> None:
        for episode, tensors in zip(episodes, data, strict=True):
            arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
            entry = (episode.name, episode.digest, episode.first_frame, episode.frames, episode.steps)
            problem = arrays_problem(arrays, [entry], self.metadata) or values_problem(arrays, self.metadata)
            if problem is not None:
                raise ValueError(f"TokenStore: the data of {episode.name} do not fit the store: {problem}.")
        sizes = {tensors["state"].shape[-1] for tensors in data if "state" in tensors}
        if len(sizes) > 1:
            raise ValueError(
                f"TokenStore: all states of a shard must have equally many components, got {sorted(sizes)}; {REDO}."
            )

    def tidy(self, split: str) -> None:
        """Remove partial files of processes that were killed, and shards that a later revision has replaced.

        Also write the records that killed processes left out.
        """
        remove_partials(self.folder)
        remove_partials(self.split_folder(split))
        for path in shard_paths(self.split_folder(split)).values():
            if not record_path(path).exists():
                with suppress(ValueError, FileNotFoundError):  # damaged, which its reader reports, or replaced
                    _record(path)
        remove_partials(records_folder(self.split_folder(split)))
        for path in superseded_shards(self.split_folder(split)):
            _remove(path)
            record_path(path).unlink(missing_ok=True)

    def switch(self) -> tuple[str, ...]:
        """Make the store serve this writer's tokens and remove the previous ones, unless episodes are still missing.

        Returns the missing episodes, as SPLIT/NAME; if there are any, the store keeps serving the previous tokens.
        """
        missing = self._switch_metadata()
        if not missing:
            keep = {self.metadata.tokens_folder, read_metadata(self.folder).adapter_folder}
            for path in [*self.folder.glob("tokens_*"), *self.folder.glob("adapter_*")]:
                if path.name not in keep:
                    _remove(path)
        return missing

    def _switch_metadata(self) -> tuple[str, ...]:
        new = self.metadata.tokens_folder
        while True:
            current = read_metadata(self.folder)
            self._check(current)
            if current.tokens_folder == new:
                return ()
            try:
                missing = _episodes(self.folder / current.tokens_folder) - _episodes(self.folder / new)
            except FileNotFoundError:
                if read_metadata(self.folder) == current:
                    raise
                continue  # another process has switched and removed the previous tokens
            if missing:
                return tuple(sorted(missing))
            self._replace_metadata()

    def _save_adapter(self, adapter: TokenizerAdapter) -> None:
        """Save the adapter in the store, in place of a copy that is damaged."""
        folder = self.folder / self.metadata.adapter_folder
        if folder.exists() and (problem := adapter_problem(folder, self.metadata.adapter_hash)):
            logger.warning("%s is damaged (%s); writing it again", folder, problem)
            _remove(folder)
        atomic_create(folder, partial(adapter.save_pretrained, card=False))

    @property
    def _file(self) -> Path:
        return self.folder / METADATA_FILE

    def _write_metadata(self, path: Path) -> None:
        path.write_text(self.metadata.to_json(), encoding="utf-8")

    def _replace_metadata(self) -> None:
        with atomic_write(self._file, concurrent=True) as partial:
            self._write_metadata(partial)

    def _is_empty(self, current: StoreMetadata) -> bool:
        """Whether there is nothing in the store yet: its episodes were refused, perhaps for their sizes or rates."""
        tokens = self.folder / current.tokens_folder
        same_tokenizer = current.token_hash == self.metadata.token_hash
        return same_tokenizer and not split_folders(tokens) and not recorded_splits(tokens)

    def _check(self, current: StoreMetadata) -> None:
        """Raise a ValueError unless the store has this writer's tokens, or those that it set out to replace."""
        if current.tokens_folder in (self.metadata.tokens_folder, self._replaced):
            return
        if current.token_hash != self.metadata.token_hash:
            raise ValueError(
                f"{written_by_another(self.folder, current.token_hash, self.metadata.token_hash)}; {REDO}, tokenize "
                "into another folder, or load the adapter that wrote it."
            )
        current.check_same(
            self.metadata, f"the episodes to be added to {self.folder}", f"{REDO}, or write another store"
        )


def unfinished_update(folder: str | Path) -> bool:
    """Whether a store has tokens other than the current ones."""
    current = read_metadata(folder).tokens_folder
    return any(path.name != current for path in Path(folder).glob("tokens_*"))


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)  # another process may be removing it, too


def _episodes(tokens_folder: Path) -> set[str]:
    return {
        f"{split.name}/{name}"
        for split in split_folders(tokens_folder)
        for names in stored_names(split).values()
        for name in names
    }


def _record(shard: Path) -> None:
    """Record a shard as written; one from before shards had checksums stays without a record."""
    if (identity := open_shard(shard).identity) is not None:
        write_record(shard, identity.digest)


def _remove_records(split_folder: Path, number: int) -> None:
    for record in records_folder(split_folder).glob(f"{shard_path(split_folder, number).name}*"):
        record.unlink(missing_ok=True)


def _origin(episode: StoredEpisode) -> tuple[str, int, int, int, str]:
    return episode.name, episode.first_frame, episode.frames, episode.steps, episode.digest
