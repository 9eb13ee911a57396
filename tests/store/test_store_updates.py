"""Updates of a store: readers find complete tokens, previous or new, wherever the update is interrupted."""

import json
import pickle
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recordings import contents, tiny_adapter, write_episode

from vidtok_plugin import cli
from vidtok_plugin.adapter.adapter import TokenizerAdapter
from vidtok_plugin.common import atomic_files
from vidtok_plugin.store import encode as encoding
from vidtok_plugin.store import reader, writer
from vidtok_plugin.store.config import TokenizeConfig
from vidtok_plugin.store.metadata import adapter_folder
from vidtok_plugin.store.reader import TokenStore
from vidtok_plugin.store.shard_encoder import PlannedShard, ShardEncoder
from vidtok_plugin.store.tokenize import WrittenShards, write_shards, write_store
from vidtok_plugin.video.episodes import find_episodes

OLD, NEW = 0, 1  # seeds of tokenizers


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("episodes")
    for frames, name in ((8, "a"), (9, "b"), (10, "c")):
        write_episode(root / "train" / f"{name}.mp4", frames)
    write_episode(root / "test" / "d.mp4", 11)
    return root


@pytest.fixture
def videos(recorded: Path, tmp_path: Path) -> Path:
    """A copy, for tests that change files."""
    return shutil.copytree(recorded, tmp_path / "videos")


def write(videos: Path, output: Path, adapter: TokenizerAdapter, split: str = "train", **settings: Any) -> TokenStore:
    episodes = find_episodes(videos / split)
    return write_store(adapter, episodes, output, split=split, episodes_per_shard=2, **settings)


def update(
    videos: Path,
    output: Path,
    adapter: TokenizerAdapter,
    split: str = "train",
    *,
    parts: int = 1,
    clip_frames: int | None = None,
) -> WrittenShards:
    """As `tokenize --update --processes PARTS` does, but one part after the other, the last first, in this process."""
    config = TokenizeConfig(split=split, episodes_per_shard=2, update=True, clip_frames=clip_frames)

    def engine(encoder: ShardEncoder, shards: Sequence[PlannedShard]) -> None:
        for part in reversed(range(parts)):
            own = [shard for shard in shards if shard.number % parts == part]
            encoder.recipe().make(torch.device("cpu")).write(own)

    return write_shards(adapter, find_episodes(videos / split), output, config, engine)


def both_splits(videos: Path, output: Path, seed: int) -> Path:
    for split in ("train", "test"):
        write(videos, output, tiny_adapter(seed), split)
    return output


@pytest.fixture(scope="module")
def fresh(recorded: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Stores of both tokenizers, each written in one go."""
    root = tmp_path_factory.mktemp("fresh")
    return {seed: both_splits(recorded, root / str(seed), seed) for seed in (OLD, NEW)}


@pytest.fixture
def stored(fresh: dict[int, Path], tmp_path: Path) -> Path:
    """The old tokenizer's store, to be updated."""
    return shutil.copytree(fresh[OLD], tmp_path / "store")


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the videos that are encoded, in order."""
    names: list[str] = []
    original = encoding.encode_episode

    def encode(adapter: TokenizerAdapter, episode: Any, *arguments: Any) -> Any:
        names.append(episode.path.name)
        return original(adapter, episode, *arguments)

    monkeypatch.setattr(encoding, "encode_episode", encode)
    return names


def codes(store: TokenStore) -> list[list[int]]:
    return [store.window(i, 0, int(steps))["codes"].flatten().tolist() for i, steps in enumerate(store.steps)]


# Another tokenizer


@pytest.mark.parametrize("parts", [1, 2])
def test_an_updated_store_equals_a_new_one_to_the_byte(
    recorded: Path, stored: Path, fresh: dict[int, Path], parts: int
) -> None:
    for split in ("test", "train"):
        done = update(recorded, stored, tiny_adapter(NEW), split, parts=parts)
    assert done.written and done.outdated == ()
    assert contents(stored) == contents(fresh[NEW]) != contents(fresh[OLD])


def test_the_store_serves_the_previous_tokens_until_every_split_is_updated(
    recorded: Path, stored: Path, fresh: dict[int, Path], caplog: pytest.LogCaptureFixture
) -> None:
    new = tiny_adapter(NEW)
    assert update(recorded, stored, new).outdated == ("test/d.mp4",)
    assert "serves its previous tokens until 1 more episodes are tokenized with --update" in caplog.text
    assert codes(TokenStore(stored)) == codes(TokenStore(fresh[OLD]))
    TokenStore(stored).check(tiny_adapter(OLD))
    written = write(recorded, stored, new, update=True)  # nothing to do; its tokens can be read at once
    written.check(new)
    assert codes(written) == codes(TokenStore(fresh[NEW], "train"))
    assert update(recorded, stored, new, "test").outdated == ()
    assert contents(stored) == contents(fresh[NEW])


def test_an_episode_whose_file_is_gone_keeps_the_previous_tokens_current(videos: Path, stored: Path) -> None:
    for suffix in (".mp4", ".json", ".actions.npy"):
        (videos / "train" / f"b{suffix}").unlink()
    update(videos, stored, tiny_adapter(NEW), "test")
    assert update(videos, stored, tiny_adapter(NEW)).outdated == ("train/b.mp4",)
    TokenStore(stored).check(tiny_adapter(OLD))


def test_another_frame_rate_needs_an_update_like_another_tokenizer(videos: Path, stored: Path) -> None:
    for path in videos.rglob("*.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"fps": 15}))
    with pytest.raises(ValueError, match=r"fps must be the same throughout a store, 30\.0, got 15\.0 .* --update"):
        write(videos, stored, tiny_adapter(OLD))
    for split in ("train", "test"):
        update(videos, stored, tiny_adapter(OLD), split)
    assert TokenStore(stored).metadata.fps == 15 and len(TokenStore(stored)) == 4


def test_of_two_simultaneous_updates_the_later_is_refused(
    recorded: Path, stored: Path, fresh: dict[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, overtaken = encoding.encode_episode, []

    def encode_late(*arguments: Any) -> Any:
        if not overtaken:
            overtaken.append(True)
            for split in ("train", "test"):
                update(recorded, stored, tiny_adapter(NEW), split)
        return encode(*arguments)

    monkeypatch.setattr(encoding, "encode_episode", encode_late)
    with pytest.raises(ValueError, match="was written by another tokenizer"):
        update(recorded, stored, tiny_adapter(2))
    assert codes(TokenStore(stored)) == codes(TokenStore(fresh[NEW]))


# Readers


def test_an_open_reader_keeps_the_previous_tokens(recorded: Path, stored: Path, fresh: dict[int, Path]) -> None:
    reader = TokenStore(stored)
    names = [episode.name for episode in TokenStore(fresh[OLD]).episodes]
    for split in ("train", "test"):
        update(recorded, stored, tiny_adapter(NEW), split)
    assert codes(reader) == codes(TokenStore(fresh[OLD]))
    assert [episode.name for episode in reader.episodes] == names  # read for the first time
    with pytest.raises(
        FileNotFoundError,
        match="no longer exists: an update has replaced it since the store was opened; open the store again",
    ):
        pickle.loads(pickle.dumps(reader))  # a loader's new worker
    assert codes(reader.refreshed()) == codes(TokenStore(fresh[NEW]))


def test_a_store_that_is_updated_while_it_is_opened_has_the_new_tokens(
    recorded: Path, stored: Path, fresh: dict[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    open_shard, opened = reader.open_shard, []

    def open_late(path: Path) -> Any:
        opened.append(path)
        if len(opened) == 2:
            for split in ("train", "test"):
                update(recorded, stored, tiny_adapter(NEW), split)
        return open_shard(path)

    monkeypatch.setattr(reader, "open_shard", open_late)
    assert codes(TokenStore(stored)) == codes(TokenStore(fresh[NEW]))


def test_a_shard_that_is_missing_without_an_update_is_named(stored: Path) -> None:
    shard = next(stored.glob("tokens_*/train/shard_00001"))
    (shard / "shard.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="shard_00001/shard.safetensors no longer exists"):
        TokenStore(stored)
    (shard / "shard.safetensors").write_text("no shard")
    with pytest.raises(ValueError, match=r"shard_00001/shard.safetensors is damaged .* tokenize its videos again"):
        TokenStore(stored)


# Interruptions


class Killed(BaseException):
    """No handler runs for it."""


@pytest.mark.slow
def test_wherever_an_update_is_killed_the_store_is_complete_and_the_same_call_continues(
    recorded: Path, stored: Path, fresh: dict[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: Iterator[None] = iter(())

    def killable(function: Any) -> Any:
        def call(*arguments: Any, **settings: Any) -> Any:
            if next(calls, True):
                raise Killed
            return function(*arguments, **settings)

        return call

    def run() -> None:
        for split in ("train", "test"):
            update(recorded, output, tiny_adapter(NEW), split)

    old, new = codes(TokenStore(fresh[OLD])), codes(TokenStore(fresh[NEW]))
    found = []
    output = stored
    for alive in range(100):
        output = shutil.copytree(fresh[OLD], tmp_path / f"killed_{alive}")
        with monkeypatch.context() as patched:
            calls = iter([None] * alive)
            patched.setattr(atomic_files.os, "replace", killable(atomic_files.os.replace))
            patched.setattr(writer.shutil, "rmtree", killable(shutil.rmtree))
            patched.setattr(atomic_files, "_remove", lambda path: None)  # a partial folder stays
            try:
                run()
                break
            except Killed:
                pass
        found.append(codes(TokenStore(output)))
        assert found[-1] in (old, new)
        TokenStore(output).check(TokenizerAdapter.from_pretrained(adapter_folder(output)))
        run()
        assert contents(output) == contents(fresh[NEW])
    assert old in found and new in found and alive > 8


# Changed files


def test_only_a_changed_file_is_encoded_again(
    videos: Path, stored: Path, encoded: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    old = codes(TokenStore(stored))
    reader = TokenStore(stored, "train")
    write_episode(videos / "train" / "b.mp4", 20)
    with pytest.raises(ValueError, match=r"b\.mp4 has changed since it was written .* --update"):
        write(videos, stored, tiny_adapter(OLD))
    assert update(videos, stored, tiny_adapter(OLD)).written == (0,)
    assert encoded == ["b.mp4"]
    assert "1 episodes have changed since they were written; encoding them again" in caplog.text
    now = TokenStore(stored, "train")
    assert [episode.frames for episode in now.episodes] == [8, 20, 10]
    assert codes(now)[0] == old[1] and codes(now)[2] == old[3]  # the split test comes first
    fresh = write(videos, stored.parent / "fresh", tiny_adapter(OLD))
    assert codes(now) == codes(fresh)
    assert torch.equal(now.window(1, 0, 6)["actions"], fresh.window(1, 0, 6)["actions"])
    assert codes(reader) == old[1:] and [episode.frames for episode in reader.episodes] == [8, 9, 10]
    assert sorted(path.name for path in now.episodes and stored.glob("tokens_*/train/shard_*")) == [
        "shard_00000_r1",
        "shard_00001",
    ]
    update(videos, stored, tiny_adapter(OLD))
    assert encoded[1:] == ["a.mp4", "b.mp4", "c.mp4"]  # only those of the fresh store


def test_clips_of_a_changed_file_replace_its_previous_ones(videos: Path, tmp_path: Path) -> None:
    write(videos, tmp_path / "store", tiny_adapter(), clip_frames=5)
    write_episode(videos / "train" / "a.mp4", 14)
    update(videos, tmp_path / "store", tiny_adapter(), clip_frames=5)
    first = write(videos, tmp_path / "fresh", tiny_adapter(), clip_frames=5)
    assert codes(TokenStore(tmp_path / "store")) == codes(first)
    assert [(e.name, e.first_frame, e.frames) for e in first.episodes][:4] == [
        ("a.mp4", 0, 5),
        ("a.mp4", 4, 5),
        ("a.mp4", 8, 5),
        ("a.mp4", 12, 2),
    ]


def test_changed_actions_are_stored_again(videos: Path, stored: Path, encoded: list[str]) -> None:
    path = videos / "train" / "c.actions.npy"
    actions = np.load(path)
    np.save(path, 2 - actions)
    update(videos, stored, tiny_adapter(OLD))
    assert encoded == ["c.mp4"]
    assert TokenStore(stored, "train").window(2, 1, 1)["actions"].flatten().tolist() == (2 - actions[1:5]).tolist()


# Another decoder


def with_another_decoder(seed: int) -> TokenizerAdapter:
    adapter = tiny_adapter(seed)
    with torch.no_grad():
        for parameter in adapter.tokenizer.decoder.parameters():
            parameter.add_(1)
    return adapter


def test_another_decoder_replaces_only_the_adapter(
    recorded: Path, stored: Path, encoded: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    adapter, before = with_another_decoder(OLD), contents(stored)
    write(recorded, stored, adapter)
    assert contents(stored) == before
    assert "keeps its adapter, which produces the same tokens as this one but has another decoder" in caplog.text
    assert update(recorded, stored, adapter).outdated == ()
    after = contents(stored)
    assert encoded == [] and TokenStore(stored).metadata.adapter_hash == adapter.hash
    assert TokenizerAdapter.from_pretrained(adapter_folder(stored)).hash == adapter.hash
    assert len(list(stored.glob("adapter_*"))) == 1
    changed = {name for name in before | after if before.get(name) != after.get(name)}
    assert all(name.startswith(("adapter_", "store.json")) for name in changed)


# The command


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # its processes inherit this
    tiny_adapter(NEW).tokenizer.save_pretrained(tmp_path / "model")
    return ["tokenize", "--model", str(tmp_path / "model"), "--episodes-per-shard", "2"]


def test_the_command_updates_a_store_of_another_tokenizer(
    arguments: list[str], recorded: Path, stored: Path, fresh: dict[int, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    train = [*arguments, str(recorded / "train"), "--output", str(stored)]
    test = [*arguments, str(recorded / "test"), "--output", str(stored), "--split", "test"]
    assert cli.main(train) == 2
    assert "was written by another tokenizer" in (error := capsys.readouterr().err) and "--update" in error
    assert cli.main([*train, "--update"]) == 0
    assert "the update is unfinished; until then the store serves the previous tokens" in capsys.readouterr().out
    assert cli.main([*test, "--update"]) == 0
    assert "1 episodes" in capsys.readouterr().out
    assert contents(stored) == contents(fresh[NEW])


@pytest.mark.slow
def test_the_command_updates_a_store_with_several_processes(
    arguments: list[str], recorded: Path, stored: Path, fresh: dict[int, Path]
) -> None:
    for split in ("train", "test"):
        two = [*arguments, str(recorded / split), "--split", split, "--update", "--processes", "2"]
        assert cli.main([*two, "--output", str(stored)]) == 0
    assert contents(stored) == contents(fresh[NEW])
