"""Files of a store and those beside its episodes, damaged by seed: never wrong in silence, always file and remedy."""

import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from recordings import tiny_adapter, write_episode

from vidtok_plugin.store.adapter import stored_adapter
from vidtok_plugin.store.check import check_store
from vidtok_plugin.store.reader import TokenStore
from vidtok_plugin.store.tokenize import write_store
from vidtok_plugin.video.episodes import find_episodes

TRIES = int(os.environ.get("VIDTOK_DAMAGE_TRIES", "60"))
SECONDS = 300  # of one try, which takes less than one on an idle machine
REMEDIES = ("tokenize", "restore", "remove", "save", "record the episode again", "correct", "write the file")

Content = list[torch.Tensor]


def flip(data: bytearray, rng: np.random.Generator) -> bytes:
    data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
    return bytes(data)


def zero(data: bytearray, rng: np.random.Generator) -> bytes:
    begin = int(rng.integers(len(data)))
    data[begin : begin + 64] = bytes(len(data[begin : begin + 64]))
    return bytes(data)


def splice(data: bytearray, rng: np.random.Generator) -> bytes:
    begin = int(rng.integers(len(data)))
    return bytes(data[:begin] + rng.bytes(8) + data[begin:])


WAYS: list[Callable[[bytearray, np.random.Generator], bytes]] = [
    flip,
    flip,
    zero,
    splice,
    lambda data, rng: bytes(data[: rng.integers(len(data))]),
    lambda data, rng: bytes(data) + rng.bytes(8),
    lambda data, rng: b"[" * 100_000,
    lambda data, rng: b"[]",
]


def damage(root: Path, rng: np.random.Generator) -> Path:
    """Damage, replace or remove one file; -> its path."""
    files = sorted(path for path in root.rglob("*") if path.is_file() and path.suffix != ".mp4")
    file = files[rng.integers(len(files))]
    before, way = file.read_bytes(), int(rng.integers(len(WAYS) + 3))
    if way < len(WAYS):
        file.write_bytes(WAYS[way](bytearray(before), rng))
    elif way == len(WAYS):
        file.unlink()
    elif way == len(WAYS) + 1:
        file.unlink()
        os.mkfifo(file)
    else:
        others = [other for other in files if other.suffix == file.suffix and other.read_bytes() != before]
        file.write_bytes(others[rng.integers(len(others))].read_bytes() if others else b"")
    return file


def content(store: Path) -> Content:
    opened = TokenStore(store)
    windows = [opened.window(i, 0, int(steps)) for i, steps in enumerate(opened.steps)]
    weights = stored_adapter(store).tokenizer.state_dict().values()
    return [*(window[name] for window in windows for name in ("codes", "actions")), *weights]


def same(one: Content, other: Content) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def write(root: Path) -> None:
    write_store(tiny_adapter(), find_episodes(root / "videos"), root / "store", episodes_per_shard=2)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("original")
    for frames, name in ((5, "a"), (6, "b"), (7, "c")):
        write_episode(root / "videos" / f"{name}.mp4", frames)
    write(root)
    return root


@pytest.fixture
def clock() -> Iterator[None]:
    def late(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.slow
def test_no_damage_is_served_in_silence(original: Path, tmp_path: Path, clock: None) -> None:
    expected, counts, failures = content(original / "store"), Counter[str](), []
    for seed in range(TRIES):
        root = shutil.copytree(original, tmp_path / str(seed))
        file = damage(root, np.random.default_rng(seed))
        place = str(file.relative_to(root))
        signal.alarm(SECONDS)
        try:
            read = content(root / "store")
            outcome = "read as written" if same(read, expected) else "wrong in silence"
            problems = check_store(root / "store").problems
            error = " ".join(problems)
            if outcome == "read as written" and not problems and "videos" in file.parts:
                write(root)  # reads the episodes
        except (ValueError, FileNotFoundError) as raised:
            outcome, error = "refused", str(raised)
        except Exception as raised:
            outcome, error = "crash or hang", repr(raised)
        if outcome == "refused":
            named = any(name in error for name in (file.name, file.parent.name, file.stem))
            if not named or not any(word in error for word in REMEDIES):
                outcome = "without file and remedy"
        signal.alarm(0)
        counts[outcome] += 1
        print(f"{seed:3} {outcome:24} {place:60} {error[:300]}", flush=True)
        if outcome in ("wrong in silence", "without file and remedy", "crash or hang"):
            failures.append(f"seed {seed}, {place}: {outcome}: {error[:500]}")
    print(dict(counts))
    assert not failures, "\n".join(failures)
    assert counts["refused"] >= TRIES // 3
