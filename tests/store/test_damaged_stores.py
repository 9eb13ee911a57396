"""Whatever happens to its files, a store serves the tokens that were written, or names file and remedy."""

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from recordings import tiny_adapter, write_episode
from safetensors.torch import load_file, save_file
from stores import METADATA, PATCHES, episode_data, write_episodes

from vidtok_plugin import cli
from vidtok_plugin.store.adapter import stored_adapter
from vidtok_plugin.store.check import check_store
from vidtok_plugin.store.metadata import read_metadata
from vidtok_plugin.store.reader import TokenStore
from vidtok_plugin.store.shards import StoredEpisode
from vidtok_plugin.store.tokenize import write_store
from vidtok_plugin.store.writer import TokenStoreWriter
from vidtok_plugin.video.episodes import find_episodes

Damage = Callable[[Path], object]

KEYS = {"type": "MultiBinary", "shape": [2]}


def shard_file(store: Path, name: str = "shard_00000", split: str = "train") -> Path:
    return next(store.glob(f"tokens_*/{split}/{name}/shard.safetensors"))


def read_all(store: Path) -> list[Any]:
    opened = TokenStore(store)
    return [opened.window(i, 0, int(steps)) for i, steps in enumerate(opened.steps)]


def change(file: Path, offset: int, data: bytes) -> None:
    with open(file, "r+b") as opened:
        opened.seek(offset, os.SEEK_END if offset < 0 else os.SEEK_SET)
        opened.write(data)


def flip(file: Path, offset: int, bit: int = 0) -> None:
    change(file, offset, bytes([file.read_bytes()[offset] ^ 1 << bit]))


def rewrite(store: Path, edit: Callable[[dict[str, torch.Tensor], dict[str, str]], None]) -> None:
    """Edit the tensors and the header of a shard, leaving a file that is whole as such."""
    file = shard_file(store)
    length = struct.unpack("<Q", file.read_bytes()[:8])[0]
    facts = json.loads(file.read_bytes()[8 : 8 + length])["__metadata__"]
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    edit(tensors, facts)
    save_file(tensors, file, facts)


def without_checksums(store: Path, edit: Callable[[dict[str, torch.Tensor]], None] = lambda _: None) -> Path:
    """Make a store like those of earlier versions: no checksums and no records."""
    for path in store.glob("tokens_*/*/shard_*/shard.safetensors"):
        length = struct.unpack("<Q", path.read_bytes()[:8])[0]
        text = json.loads(path.read_bytes()[8 : 8 + length])["__metadata__"]["shard"].partition(" ")[2]
        tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
        edit(tensors)
        save_file(tensors, path, {"episodes": json.dumps(json.loads(text)["episodes"])})
    shutil.rmtree(next(store.glob("tokens_*/_written")))
    metadata = json.loads((store / "store.json").read_text())
    del metadata["checksum"]
    (store / "store.json").write_text(json.dumps(metadata))
    return store


def another_codes_shard(store: Path) -> None:
    """A shard of the same place in a store of the same tokenizer, with the same names."""
    other = store.parent / "other"
    writer = TokenStoreWriter(other, METADATA)
    entries = [StoredEpisode(name=f"{i}.mp4", steps=5, frames=8, digest="another file") for i in range(2)]
    writer.write_shard("train", entries, [episode_data(5, 7)] * 2)
    shutil.copy(shard_file(other), shard_file(store))


def another_tokenizers_shard(store: Path) -> None:
    from dataclasses import replace

    other = write_episodes(store.parent / "other", "train", [5, 5], metadata=replace(METADATA, token_hash="other"))
    shutil.copy(shard_file(other), shard_file(store))


def fifo(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


# Shards


@pytest.mark.parametrize(
    "damage",
    [
        lambda store: flip(shard_file(store), -1 + shard_file(store).stat().st_size),
        lambda store: flip(shard_file(store), shard_file(store).stat().st_size // 2 + 200, 5),
        lambda store: change(shard_file(store), -64, bytes(48)),  # a zeroed block
        lambda store: flip(shard_file(store), 40, 1),  # in the header
        lambda store: change(shard_file(store), 0, struct.pack("<Q", 2**62)),
        lambda store: os.truncate(shard_file(store), shard_file(store).stat().st_size - 8),
        lambda store: os.truncate(shard_file(store), 0),
        lambda store: shard_file(store).write_bytes(struct.pack("<Q", 200_000) + b"[" * 200_000),
        lambda store: shard_file(store).write_bytes(struct.pack("<Q", 2) + b"[]"),
        lambda store: fifo(shard_file(store)),
        lambda store: shutil.copy(shard_file(store, "shard_00001"), shard_file(store)),
        lambda store: shutil.copy(shard_file(store, split="test"), shard_file(store)),
        another_codes_shard,
        another_tokenizers_shard,
        lambda store: rewrite(store, lambda tensors, facts: facts.pop("shard")),
        lambda store: rewrite(
            store, lambda tensors, facts: facts.update(shard=facts["shard"].replace("0.mp4", "9.mp4"))
        ),
        lambda store: rewrite(store, lambda tensors, facts: tensors.update(codes=tensors["codes"] + 1)),
        lambda store: rewrite(store, lambda tensors, facts: tensors.pop("num_actions")),
        lambda store: rewrite(store, lambda tensors, facts: tensors.update(codes=tensors["codes"].long())),
        lambda store: rewrite(store, lambda tensors, facts: tensors.update(codes=tensors["codes"][:, :1].contiguous())),
    ],
)
def test_a_damaged_or_foreign_shard_is_named_with_a_remedy(tmp_path: Path, damage: Damage) -> None:
    """A store served whatever its files held: a flipped bit, a zeroed block, a shard of another store."""
    store = write_episodes(tmp_path / "store", "train", [5, 5, 5, 5])
    write_episodes(store, "test", [5, 5])
    read_all(store)
    damage(store)
    with pytest.raises(
        ValueError, match=r"shard_00000/shard\.safetensors is damaged \(.*\); tokenize its videos again"
    ):
        read_all(store)
    assert [problem for problem in check_store(store).problems if "shard_00000/shard.safetensors is damaged" in problem]


@pytest.mark.parametrize("lost", ["train/shard_00001", "test"])
def test_a_lost_shard_or_split_is_missed(tmp_path: Path, lost: str) -> None:
    store = write_episodes(tmp_path, "train", [5, 5, 5])
    write_episodes(store, "test", [5])
    shutil.rmtree(next(store.glob("tokens_*")) / lost)
    with pytest.raises(FileNotFoundError, match=f"{lost}.* was written and is missing; restore it, tokenize"):
        TokenStore(store)
    assert [problem for problem in check_store(store).problems if lost in problem]
    if lost == "test":
        assert TokenStore(store, "train").num_steps == 15


@pytest.mark.parametrize("spoil", [lambda s: s + b" ", lambda s: s[:-2] + b"x\n", lambda s: b"\xff" * 70])
def test_a_damaged_record_is_noticed(tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    store = write_episodes(tmp_path, "train", [5])
    record = next(store.glob("tokens_*/_written/train/shard_00000"))
    whitespace = spoil(record.read_bytes()).strip() == record.read_bytes().strip()
    record.write_bytes(spoil(record.read_bytes()))
    if whitespace:
        assert TokenStore(store).num_steps == 5
        return
    with pytest.raises(ValueError, match="it is not the shard that was written there"):
        TokenStore(store)


def test_contents_are_checked_once_and_only_when_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = TokenStore(write_episodes(tmp_path, "train", [5, 5, 5, 5]))
    checked: list[str] = []
    monkeypatch.setattr("vidtok_plugin.store.reader.check_contents", lambda shard, _: checked.append(shard.path.name))
    store.windows([2, 3, 2], [0, 1, 2], 2)
    store.windows([2], [0], 2)
    assert checked == ["shard_00001"]


# Stores of earlier versions


def test_a_store_without_checksums_is_read_as_before(tmp_path: Path) -> None:
    written = write_episodes(tmp_path / "store", "train", [5, 1, 7])
    before = read_all(written)
    after = read_all(without_checksums(written))
    assert all(torch.equal(a["codes"], b["codes"]) for a, b in zip(before, after, strict=True))
    write_episodes(written, "train", [3])  # is extended by one that has them
    assert TokenStore(written).steps.tolist() == [5, 1, 7, 3] and check_store(written).unsigned == 2


@pytest.mark.parametrize(
    ("metadata", "edit", "problem"),
    [
        (METADATA, lambda t: t["codes"].view(-1)[3].fill_(16_777_216 + 5), r"codes must be in 0\.\.11, got 16777221"),
        (METADATA, lambda t: t["codes"].view(-1)[3].fill_(-1), r"codes must be in 0\.\.11, got -1"),
        (METADATA, lambda t: t["actions"].view(-1)[3].fill_(5), r"actions must be in 0\.\.4, got 5"),
        (METADATA, lambda t: t["num_actions"].view(-1)[3].fill_(3), "num_actions must be at most 2, got 3"),
        (PATCHES, lambda t: t["patches"].view(-1)[3].fill_(float("nan")), "patches must be finite"),
    ],
)
def test_impossible_values_are_found_without_checksums(
    tmp_path: Path, metadata: Any, edit: Callable[[dict[str, torch.Tensor]], None], problem: str
) -> None:
    """A code of 16,777,216 + x was trained on until an IndexError."""
    store = without_checksums(write_episodes(tmp_path, "train", [5], metadata=metadata), edit)
    with pytest.raises(ValueError, match=rf"is damaged \(its {problem}.*\); tokenize its videos again"):
        read_all(store)


def test_impossible_values_are_not_written(tmp_path: Path) -> None:
    writer = TokenStoreWriter(tmp_path, METADATA)
    entry = StoredEpisode(name="x.mp4", steps=3, frames=5, digest="")
    data = episode_data(3)
    for wrong in (
        {**data, "codes": data["codes"] + 12},
        {**data, "codes": data["codes"].long()},
        {"codes": data["codes"]},
        {**data, "num_actions": data["num_actions"][:2]},
    ):
        with pytest.raises(ValueError, match=r"the data of x\.mp4 do not fit the store: its"):
            writer.write_shard("train", [entry], [wrong])


# store.json


@pytest.mark.parametrize(
    ("facts", "problem"),
    [
        ({"height": 10**9}, r"height must be an integer in 1\.\.65536, got 1000000000"),
        ({"height": "8"}, "height must be an integer"),
        ({"height": True}, "height must be an integer"),
        ({"temporal_factor": 0}, "temporal_factor must be an integer in"),
        ({"fps": float("nan")}, "fps must be a number above 0, at most 1000000, got nan"),
        ({"fps": "30/1"}, "fps must be a number above 0"),
        ({"codebook_size": 10**12, "fsq_levels": None}, "codebook_size must be an integer in"),
        ({"codebook_size": 13}, "codebook_size must be the product of fsq_levels"),
        ({"fsq_levels": 5}, "fsq_levels must be a list"),
        ({"fsq_levels": [4, "3"]}, "fsq_levels must be an integer"),
        ({"action_space": []}, "action_space must be empty, or have the kind"),
        ({"action_space": {"kind": "discrete", "size": 10**15}}, r"action_space\.size must be an integer in"),
        ({"action_space": {"kind": "other", "size": 5}}, "action_space must be empty, or have the kind"),
        ({"action_space": {"kind": "mixed", "size": 5}}, "action_space must have a space if its kind is mixed"),
        (
            {"action_space": {"kind": "mixed", "size": 5, "space": KEYS}},
            r"size of its space, \('mixed', 2\), got mixed and 5",
        ),
        ({"action_space": {"kind": "mixed", "size": 2, "space": [KEYS]}}, "action space: its type must be one of"),
        ({"kind": ["discrete"]}, "kind must be discrete"),
        ({"token_hash": None}, "token_hash must be a string"),
        ({"colour": 1}, "colour is unknown or missing"),
        ({"checksum": "0"}, "its values must be those of its checksum"),
        ({"preset": "x", "checksum": "0"}, "its values must be those of its checksum"),
    ],
)
def test_impossible_metadata_are_refused(tmp_path: Path, facts: dict[str, Any], problem: str) -> None:
    file = write_episodes(tmp_path, "train", [5]) / "store.json"
    values = {name: value for name, value in json.loads(file.read_text()).items() if name != "checksum"}
    file.write_text(json.dumps({**values, **facts}))
    with pytest.raises(ValueError, match=rf"store\.json is damaged \(.*{problem}.*\); restore it"):
        read_metadata(tmp_path)


@pytest.mark.parametrize("facts", [{"height": 3}, {"fps": 60.0}, {"clip_frames": 5}, {"token_hash": "xyz"}])
@pytest.mark.parametrize("checksum", [True, False])
def test_edited_metadata_are_noticed_with_and_without_a_checksum(
    tmp_path: Path, facts: dict[str, Any], checksum: bool
) -> None:
    file = write_episodes(tmp_path, "train", [5]) / "store.json"
    values = {**json.loads(file.read_text()), **facts}
    if not checksum:
        del values["checksum"]
    file.write_text(json.dumps(values))
    with pytest.raises(
        (ValueError, FileNotFoundError), match=r"store\.json .*it was changed|their? were changed|its values"
    ):
        TokenStore(tmp_path)


@pytest.mark.parametrize(
    ("write", "problem"),
    [
        (lambda file: file.write_text("{"), "is not valid JSON"),
        (lambda file: file.write_bytes(b'{"a": "\xe9"}'), "is not UTF-8 text"),
        (lambda file: file.write_text("[" * 100_000), "is nested too deeply"),
        (lambda file: file.write_text("[]"), "must be a JSON object, got list"),
        (lambda file: file.write_text('{"format": ' + "9" * 5000 + "}"), "is not valid JSON"),
        (lambda file: os.truncate(file, 1 << 40), "must have at most"),
        (fifo, "must be a regular file"),
    ],
)
def test_a_malformed_json_file_is_one_error_that_names_it(tmp_path: Path, write: Damage, problem: str) -> None:
    file = write_episodes(tmp_path, "train", [5]) / "store.json"
    write(file)
    with pytest.raises(ValueError, match=rf"store\.json {problem}.*; restore it, or remove it and run"):
        TokenStore(tmp_path)


# Mending


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("episodes")
    for frames, name in ((5, "a"), (6, "b"), (7, "c")):
        write_episode(root / f"{name}.mp4", frames)
    return root


@pytest.fixture(scope="module")
def fresh(recorded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fresh") / "store"
    write_store(tiny_adapter(), find_episodes(recorded), folder, episodes_per_shard=2)
    return folder


@pytest.fixture
def stored(fresh: Path, tmp_path: Path) -> Path:
    return shutil.copytree(fresh, tmp_path / "store")


@pytest.mark.parametrize("update", [False, True])
@pytest.mark.parametrize(
    "damage",
    [
        lambda store: flip(shard_file(store), shard_file(store).stat().st_size - 20),
        lambda store: os.truncate(shard_file(store), 100),
        lambda store: shutil.copy(shard_file(store, "shard_00001"), shard_file(store)),
        lambda store: shard_file(store).unlink(),
        lambda store: shutil.rmtree(shard_file(store).parent),
        lambda store: next(store.glob("tokens_*/_written/train/shard_00000")).write_text("0"),
    ],
)
def test_tokenizing_again_mends_a_damaged_shard(
    recorded: Path, fresh: Path, stored: Path, damage: Damage, update: bool, caplog: pytest.LogCaptureFixture
) -> None:
    damage(stored)
    with pytest.raises((ValueError, FileNotFoundError)):
        read_all(stored)
    write_store(tiny_adapter(), find_episodes(recorded), stored, episodes_per_shard=2, update=update)
    for mended, original in zip(read_all(stored), read_all(fresh), strict=True):
        assert torch.equal(mended["codes"], original["codes"]) and torch.equal(mended["actions"], original["actions"])
    assert check_store(stored).problems == ()


def test_a_damaged_shard_is_not_carried_into_its_next_revision(recorded: Path, stored: Path, tmp_path: Path) -> None:
    """An update of one episode copies the others from the shard that it replaces, and signs them."""
    videos = shutil.copytree(recorded, tmp_path / "videos")
    write_episode(videos / "b.mp4", 9)
    flip(shard_file(stored), shard_file(stored).stat().st_size - 20)
    write_store(tiny_adapter(), find_episodes(videos), stored, episodes_per_shard=2, update=True)
    expected = write_store(tiny_adapter(), find_episodes(videos), tmp_path / "expected", episodes_per_shard=2)
    for mended, original in zip(read_all(stored), read_all(expected.folder), strict=True):
        assert torch.equal(mended["codes"], original["codes"]) and torch.equal(mended["actions"], original["actions"])


def test_a_damaged_shard_whose_videos_are_not_given_is_named(recorded: Path, stored: Path) -> None:
    flip(shard_file(stored), shard_file(stored).stat().st_size - 20)
    with pytest.raises(ValueError, match=r"shard_00000/.* is damaged .*; its video b\.mp4 is not among those given"):
        write_store(tiny_adapter(), find_episodes(recorded)[:1], stored, episodes_per_shard=2)


@pytest.mark.parametrize("name", ["adapter.yaml", "tokenizer/model.safetensors", "tokenizer/config.yaml"])
@pytest.mark.parametrize("how", ["lost", "cut", "zeroed"])
def test_a_damaged_adapter_inside_a_store_is_named_and_mended(
    recorded: Path, stored: Path, name: str, how: str
) -> None:
    file = next(stored.glob("adapter_*")) / name
    if how == "lost":
        file.unlink()
    elif how == "cut":
        os.truncate(file, file.stat().st_size // 2)
    else:
        change(file, -24, bytes(16))
    with pytest.raises((ValueError, FileNotFoundError), match="adapter_"):
        stored_adapter(stored)
    assert [problem for problem in check_store(stored).problems if "the adapter in" in problem]
    write_store(tiny_adapter(), find_episodes(recorded), stored, episodes_per_shard=2)
    assert stored_adapter(stored).hash == read_metadata(stored).adapter_hash


@pytest.mark.parametrize("content", ["{", '{"a": 1}', "[[1]]", '["a.mp4"]'])
def test_a_damaged_plan_is_named(recorded: Path, stored: Path, content: str) -> None:
    plan = next(stored.glob("tokens_*/train/plan_00000/shards.json"))
    plan.write_text(content)
    assert "plan_00000/shards.json" in check_store(stored).problems[0]
    with pytest.raises(
        ValueError, match=r"plan_00000/shards\.json (is|must) .*; remove .*plan_00000 and tokenize again"
    ):
        write_store(tiny_adapter(), find_episodes(recorded), stored, episodes_per_shard=2)
    shutil.rmtree(plan.parent)
    write_store(tiny_adapter(), find_episodes(recorded), stored, episodes_per_shard=2)
    assert check_store(stored).problems == ()


# Names and the command


@pytest.mark.parametrize(
    "split", ["../../x", "..", ".", "", "/tmp/x", "a/b", "a\\b", ".hidden", "_written", "shard_00000", "x\n"]
)
def test_a_split_whose_name_leads_elsewhere_is_refused(tmp_path: Path, split: str) -> None:
    writer = TokenStoreWriter(tmp_path / "store", METADATA)
    entry = StoredEpisode(name="x.mp4", steps=3, frames=5, digest="")
    with pytest.raises(ValueError, match="split must be a plain name"):
        writer.write_shard(split, [entry], [episode_data(3)])
    with pytest.raises(ValueError, match="split must be a plain name"):
        write_store(tiny_adapter(), [], tmp_path / "store", split=split)


def test_the_command_reports_an_intact_store_and_a_damaged_one(
    stored: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["check", str(stored)]) == 0
    assert capsys.readouterr().out.endswith("intact: 2 shards, 3 episodes, 8 steps\n")
    flip(shard_file(stored), shard_file(stored).stat().st_size - 20)
    assert cli.main(["check", str(stored)]) == 2
    captured = capsys.readouterr()
    assert "shard_00000/shard.safetensors is damaged" in captured.out and "found 1 problems" in captured.err
