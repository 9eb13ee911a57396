"""Shards written by several processes: the store is the same to the byte for any number and after any interruption."""

import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from places import TESTS
from recordings import contents, tiny_adapter, write_episode

from vidtok_plugin import cli
from vidtok_plugin.adapter.adapter import TokenizerAdapter
from vidtok_plugin.common import atomic_files
from vidtok_plugin.store import encode as encoding
from vidtok_plugin.store.config import TokenizeConfig
from vidtok_plugin.store.reader import TokenStore
from vidtok_plugin.store.shard_encoder import PlannedShard, ShardEncoder
from vidtok_plugin.store.tokenize import WrittenShards, write_shards, write_store
from vidtok_plugin.video.episodes import find_episodes

NAMES = ("a", "b", "c", "d", "e", "f", "g")  # four shards of up to 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("episodes")
    for frames, name in enumerate(NAMES, start=8):
        write_episode(root / f"{name}.mp4", frames)
    return root


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store that one process writes without interruption."""
    output = tmp_path_factory.mktemp("whole")
    write_store(tiny_adapter(), find_episodes(folder), output, episodes_per_shard=2)
    return output


def train(store: Path) -> Path:
    """The folder of the training split."""
    return next(store.glob("tokens_*/train"))


def write(
    folder: Path,
    output: Path,
    names: Sequence[str] = NAMES,
    *,
    parts: int = 1,
    episodes_per_shard: int = 2,
    clip_frames: int | None = None,
) -> WrittenShards:
    """As `tokenize --processes PARTS` does, but one part after the other, the last first, in this process."""
    episodes = [episode for episode in find_episodes(folder) if episode.path.stem in names]
    config = TokenizeConfig(episodes_per_shard=episodes_per_shard, clip_frames=clip_frames)

    def engine(encoder: ShardEncoder, shards: Sequence[PlannedShard]) -> None:
        recipe, planned = pickle.loads(pickle.dumps((encoder.recipe(), shards)))
        for part in reversed(range(parts)):
            recipe.make(torch.device("cpu")).write([shard for shard in planned if shard.number % parts == part])

    return write_shards(tiny_adapter(), episodes, output, config, engine)


@pytest.mark.parametrize("clip_frames", [None, 9])
def test_the_store_is_the_same_to_the_byte_for_any_number_of_processes(
    folder: Path, tmp_path: Path, clip_frames: int | None
) -> None:
    episodes = find_episodes(folder)
    write_store(tiny_adapter(), episodes, tmp_path / "0", episodes_per_shard=2, clip_frames=clip_frames)
    stores = [contents(tmp_path / "0")]
    for parts in (1, 2, 3):
        done = write(folder, tmp_path / str(parts), parts=parts, clip_frames=clip_frames)
        assert done.written == (0, 1, 2, 3)
        stores.append(contents(tmp_path / str(parts)))
    assert stores[0] == stores[1] == stores[2] == stores[3]
    assert [shard for shard in stores[1] if shard.endswith("shard.safetensors")] and not any(
        ".part" in n for n in stores[1]
    )
    names = [episode.name[0] for episode in TokenStore(tmp_path / "3").episodes if not episode.first_frame]
    assert names == list(NAMES)


def test_a_second_call_writes_only_what_is_missing(folder: Path, tmp_path: Path) -> None:
    assert write(folder, tmp_path).written == (0, 1, 2, 3)
    shutil.rmtree(train(tmp_path) / "shard_00002")
    assert write(folder, tmp_path, parts=2) == WrittenShards(written=(2,))
    assert write(folder, tmp_path, parts=2) == WrittenShards(written=())


def test_added_episodes_go_into_new_shards_for_any_number_of_processes(folder: Path, tmp_path: Path) -> None:
    stores = []
    for first, second in ((1, 1), (2, 3), (3, 2)):
        output = tmp_path / f"{first}{second}"
        for parts, names in ((first, "bcf"), (second, NAMES)):
            write(folder, output, names, parts=parts)
        stores.append(contents(output))
    assert stores[0] == stores[1] == stores[2]
    assert [episode.name[0] for episode in TokenStore(output).episodes] == ["b", "c", "f", "a", "d", "e", "g"]


class Killed(BaseException):
    """No handler runs for it."""


def kill_at_the_second_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    replace = os.replace

    def killed(source: Path, target: Path) -> None:
        if target.name == "shard_00002":
            raise Killed
        replace(source, target)

    monkeypatch.setattr(atomic_files.os, "replace", killed)
    monkeypatch.setattr(atomic_files, "_remove", lambda path: None)  # a partial folder stays


def check_another_number_of_processes_continues(folder: Path, whole: Path, store: Path) -> None:
    # The first process of two has written its first shard, the second process all.
    assert sorted(path.name for path in train(store).glob("shard_*")) == ["shard_00000", "shard_00001", "shard_00003"]
    assert len(list(train(store).glob(".shard_00002.part-*"))) == 1  # complete, but not yet renamed
    write(folder, store, parts=3)
    assert contents(store) == contents(whole)


def test_after_a_kill_another_number_of_processes_continues(
    folder: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched, pytest.raises(Killed):
        kill_at_the_second_shard(patched)
        write(folder, tmp_path, parts=2)
    check_another_number_of_processes_continues(folder, whole, tmp_path)


SIGKILL_AT_THE_SECOND_SHARD = """
import os, signal, sys
from vidtok_plugin.common import atomic_files
from test_tokenize_processes import Path, write

replace_file = os.replace

def replace(source, target):
    if Path(target).name == "shard_00002":
        os.kill(os.getpid(), signal.SIGKILL)
    replace_file(source, target)

atomic_files.os.replace = replace
write(Path(sys.argv[1]), Path(sys.argv[2]), parts=2)
"""


@pytest.mark.slow
def test_after_a_real_kill_another_number_of_processes_continues(folder: Path, whole: Path, tmp_path: Path) -> None:
    path = os.pathsep.join([str(TESTS), *sys.path])
    command = [sys.executable, "-c", SIGKILL_AT_THE_SECOND_SHARD, str(folder), str(tmp_path)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    check_another_number_of_processes_continues(folder, whole, tmp_path)


def test_of_two_processes_with_the_same_shard_the_first_ones_stays(
    folder: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, overtaken = encoding.encode_episode, []

    def encode_late(adapter: TokenizerAdapter, episode: Any, *arguments: Any) -> Any:
        if not overtaken:
            overtaken.append(True)
            write(folder, tmp_path)  # another process writes the whole store meanwhile
        return encode(adapter, episode, *arguments)

    monkeypatch.setattr(encoding, "encode_episode", encode_late)
    assert write(folder, tmp_path).written == (0, 1, 2, 3) and overtaken
    assert contents(tmp_path) == contents(whole)


def test_runs_over_different_folders_do_not_touch_each_others_shards(folder: Path, tmp_path: Path) -> None:
    assert write(folder, tmp_path, "abc").written == (0, 1)
    shutil.rmtree(train(tmp_path) / "shard_00000")
    assert write(folder, tmp_path, "defg", parts=2).written == (2, 3)
    assert write(folder, tmp_path, "abc", parts=2) == WrittenShards(written=(0,))
    assert [episode.name[0] for episode in TokenStore(tmp_path).episodes] == list(NAMES)


@pytest.mark.parametrize("clip_frames", [None, 9])
def test_a_store_without_a_plan_can_be_extended(folder: Path, tmp_path: Path, clip_frames: int | None) -> None:
    """Stores written before there were plans have none."""
    write(folder, tmp_path, "acd", episodes_per_shard=3, clip_frames=clip_frames)
    shutil.rmtree(train(tmp_path) / "plan_00000")
    old = contents(tmp_path)
    assert len(TokenStore(tmp_path)) == (3 if clip_frames is None else 5)
    write(folder, tmp_path, parts=2, clip_frames=clip_frames)
    new = contents(tmp_path)
    assert old.items() < new.items()
    names = dict.fromkeys(episode.name[0] for episode in TokenStore(tmp_path).episodes)
    assert list(names) == ["a", "c", "d", "b", "e", "f", "g"]


def test_a_damaged_video_stops_its_process_and_may_be_removed_or_replaced(folder: Path, tmp_path: Path) -> None:
    videos = shutil.copytree(folder, tmp_path / "videos")
    (videos / "e.mp4").write_text("no video")  # of the first process; the second has ended before
    with pytest.raises(ValueError, match=r"e\.mp4 cannot be read: it is not a video, or is damaged"):
        write(videos, tmp_path / "removed", parts=2)
    shutil.copytree(tmp_path / "removed", tmp_path / "replaced")
    assert write(videos, tmp_path / "removed", "abcdfg", parts=2) == WrittenShards(written=(0, 2))
    names = [episode.name[0] for episode in TokenStore(tmp_path / "removed").episodes]
    assert names == ["a", "b", "c", "d", "f", "g"]
    shutil.copy(folder / "e.mp4", videos)
    assert write(videos, tmp_path / "replaced", parts=2) == WrittenShards(written=(0, 2))
    assert [episode.name[0] for episode in TokenStore(tmp_path / "replaced").episodes] == list(NAMES)


def test_a_changed_video_is_refused_by_the_process_of_its_shard(folder: Path, tmp_path: Path) -> None:
    videos = shutil.copytree(folder, tmp_path / "videos")
    write(videos, tmp_path / "store")
    write_episode(videos / "c.mp4", 20)
    with pytest.raises(ValueError, match=r"c\.mp4 has changed since it was written"):
        write(videos, tmp_path / "store", parts=2)


# The command


@pytest.fixture
def arguments(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """`vidtok-plugin tokenize` of the episodes, without --output; its processes inherit one thread."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    tiny_adapter().tokenizer.save_pretrained(tmp_path / "model")
    yield ["tokenize", str(folder), "--model", str(tmp_path / "model"), "--episodes-per-shard", "2"]


@pytest.mark.slow
def test_the_command_divides_its_work_among_processes(
    arguments: list[str], whole: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*arguments, "--output", str(tmp_path / "store"), "--processes", "2"]) == 0
    lines = [line for line in capfd.readouterr().out.splitlines() if "episodes" in line]
    assert lines == [f"{tmp_path / 'store'}: 7 episodes, {TokenStore(whole).num_tokens} tokens"]
    assert contents(tmp_path / "store") == contents(whole)


def test_the_command_refuses_a_launcher_and_no_processes(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    arguments += ["--output", str(tmp_path / "store")]
    assert cli.main([*arguments, "--processes", "0"]) == 2
    assert "--processes must be at least 1, got 0" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert cli.main(arguments) == 2
    assert "it must run as one process, but a launcher has set WORLD_SIZE=2; " in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_names_the_process_that_failed_and_why(
    arguments: list[str], folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    videos = shutil.copytree(folder, tmp_path / "videos")
    (videos / "c.mp4").write_text("no video")
    arguments[1] = str(videos)
    assert cli.main([*arguments, "--output", str(tmp_path / "store"), "--processes", "2"]) == 2
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Process 2 of 2 failed: Video" in errors[0] and "c.mp4" in errors[0]
