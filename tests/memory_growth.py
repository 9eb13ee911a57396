"""How much a process grows by repeating an operation: `python memory_growth.py FOLDER OPERATION=COUNT...`.

Prints the bytes of growth for each operation, after a fifth as many calls to warm up.
"""

import ctypes
import gc
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from recordings import tiny_adapter, write_folder
from world_models import save_tiny_world

from vidtok_plugin.store.reader import TokenStore
from vidtok_plugin.store.tokenize import write_store
from vidtok_plugin.video.clips import ClipDataset
from vidtok_plugin.video.episodes import find_episodes
from vidtok_plugin.video.sources import Source
from world_model import Sampler, load_world, rollout
from world_model.actions import group_actions
from world_model.generation.generator import StepGenerator

Operation = Callable[[int], object]  # of the call's number


def rollouts(folder: Path) -> Operation:
    model, adapter = load_world(save_tiny_world(folder), device="cpu")
    prompt, actions = torch.rand(1, 3, 5, 16, 16) * 2 - 1, torch.zeros(1, 9, dtype=torch.int64)
    return lambda i: rollout(
        model, adapter, prompt=prompt, actions=actions, num_frames=4, sampler=Sampler(seed=i)
    ).video.sum()


def forks(folder: Path) -> Operation:
    """Of a generator with several futures of one past, and of streams."""
    model, adapter = load_world(save_tiny_world(folder), device="cpu")
    actions = group_actions(torch.zeros(1, 9, dtype=torch.int64), 4)
    codes = torch.zeros(1, 2, 2, 2, dtype=torch.int64)
    generator = StepGenerator(model, codes, actions[:2], sampler=Sampler())
    stream, frames = adapter.stream(), torch.zeros(1, 3, 4, 16, 16)
    stream.push(frames[:, :, :1])
    futures = group_actions(torch.zeros(2, 9, dtype=torch.int64), 4)[2:3]

    def fork(_: int) -> None:
        generator.fork(2).step(futures)
        stream.fork().push(frames)

    return fork


def openings(folder: Path) -> Operation:
    write_store(tiny_adapter(), find_episodes(write_folder(folder / "videos", {"a": 9, "b": 9})), folder / "store")
    return lambda i: TokenStore(folder / "store", "train").window(i % 2, 0, 2)


def sizes(folder: Path) -> Operation:
    """Encoding videos of ever new sizes."""
    adapter = tiny_adapter()
    shapes = [(t, h, w) for t in (1, 5) for h in range(8, 248, 8) for w in range(8, 248, 8) if h * w <= 96 * 96]
    return lambda i: adapter.encode(torch.zeros(1, 3, *shapes[i * 7 % len(shapes)]))


def clips(folder: Path) -> Operation:
    """Of more videos than may be open at once."""
    write_folder(folder, {name: 9 for name in "abcd"})
    source = Source(name="noise", videos=tuple(sorted(folder.glob("*.mp4"))))
    data = ClipDataset.random([source], clip_length=3, height=16, width=16, open_videos=2)
    return lambda i: data[(i, i % len(data))]


OPERATIONS = {"rollouts": rollouts, "forks": forks, "openings": openings, "clips": clips, "sizes": sizes}


def resident() -> int:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def growth(operation: Operation, count: int) -> int:
    """Bytes by which `count` calls raise the resident memory."""
    for i in range(count // 5):
        operation(i)
    before = resident()
    for i in range(count):
        operation(i)
    return resident() - before


if __name__ == "__main__":
    torch.set_num_threads(1)
    for argument in sys.argv[2:]:
        name, count = argument.split("=")
        print(name, growth(OPERATIONS[name](Path(sys.argv[1]) / name), int(count)), flush=True)
