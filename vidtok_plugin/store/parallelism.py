"""How many processes tokenize, and with how many threads each."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

from vidtok_plugin.adapter.adapter import TokenizerAdapter
from vidtok_plugin.common.memory import available_bytes
from vidtok_plugin.store.sources import Source
from vidtok_plugin.video.video_file import as_episode

logger = logging.getLogger(__name__)

# Starting processes: each imports PyTorch and loads the model again. Measured: 5 to 6 seconds on two cores.
START_SECONDS = 8.0
# What one core encodes in a second, in pixels of video times the encoder's width squared: 650 frames of 64x64 by
# `vidtok_tiny`.
WORK_PER_SECOND = 7e8
# Of the time of one thread, what each further thread adds by waiting. Two threads encode 1.7 times as fast as one.
WAITING = 0.17
# Of a process without the model: Python, PyTorch and the video reader.
BASE_BYTES = 500 << 20
# A network in inference takes about half a million pixels at once, or one group of frames if that is more, and holds
# about four tensors of its first level.
PIXELS_AT_ONCE = 2**19
BYTES_PER_VALUE = 4 * 4
BYTES_PER_PIXEL = 3 * (1 + 2 * 4)  # of the frames of a batch: as they are read, and twice in float32


@dataclass(frozen=True, kw_only=True)
class Parallelism:
    """Processes that divide the shards among them, and the PyTorch threads of each."""

    processes: int
    threads: int


def choose_parallelism(
    *, cores: int, shards: int, work: float, process_bytes: float, available: float | None
) -> Parallelism:
    """The processes that finish first, and fewer of those that finish equally early.

    Threads wait for each other several hundred times per chunk of frames, and processes never do. But processes take
    time to start, so a single one with a thread for each core is faster where there is little to encode. There are also
    fewer where there are few shards, since the one with the most of them finishes last, or where memory is short, since
    each process holds the model and the activations of its own frames.

    cores: that may be used.
    shards: that there are to write, all taken to be equally long.
    work: pixels of video times the encoder's width squared.
    process_bytes: memory of each process.
    available: memory in bytes; None if unknown.

    Example:
        >>> choose_parallelism(cores=8, shards=100, work=1e12, process_bytes=2e9, available=9e9)
        Parallelism(processes=4, threads=2)
        >>> choose_parallelism(cores=8, shards=100, work=1e10, process_bytes=2e9, available=9e9)
        Parallelism(processes=1, threads=8)
    """
    fitting = cores if available is None else max(1, min(cores, int(available // process_bytes)))
    choices = [
        Parallelism(processes=processes, threads=cores // processes)
        for processes in range(1, max(1, min(fitting, shards)) + 1)
    ]
    return min(choices, key=lambda choice: expected_seconds(choice, shards, work))


def expected_seconds(choice: Parallelism, shards: int, work: float) -> float:
    """How long encoding takes, from the start of any further processes to the end of the last.

    Example:
        >>> two, one = Parallelism(processes=2, threads=1), Parallelism(processes=1, threads=2)
        >>> expected_seconds(two, 100, 7e11) < expected_seconds(one, 100, 7e11)
        True
    """
    most = math.ceil(shards / choice.processes) / max(1, shards)  # of the work, by one process
    speed = choice.threads / (1 + WAITING * (choice.threads - 1))
    start = START_SECONDS if choice.processes > 1 else 0.0
    return start + most * work / WORK_PER_SECOND / speed


def parallelism_of(
    adapter: TokenizerAdapter, videos: Sequence[Source], episodes_per_shard: int, batch_frames: int = 0
) -> Parallelism:
    """The choice for these videos, judged by the first of them; on a GPU, or for none, one process.

    batch_frames: of the other videos of a batch, which are in memory at once.

    It uses as many cores as PyTorch would in one process, so `OMP_NUM_THREADS` limits their number.
    """
    cores = torch.get_num_threads()
    if adapter.tokenizer.device.type != "cpu" or not videos:
        return Parallelism(processes=1, threads=cores)
    first = as_episode(videos[0])
    choose = partial(
        choose_parallelism,
        cores=cores,
        work=len(videos) * first.num_frames * math.prod(first.size) * adapter.tokenizer.architecture.ch**2,
        process_bytes=process_bytes(adapter, first.size, batch_frames),
        available=available_bytes(),
    )
    shards = math.ceil(len(videos) / episodes_per_shard)
    chosen, wanted = choose(shards=shards), choose(shards=cores)
    if chosen.processes < wanted.processes:
        logger.warning(
            "processes limited by the number of shards: %d in place of %d; lower episodes_per_shard for a new store",
            *(chosen.processes, wanted.processes),
        )
    return chosen


def process_bytes(adapter: TokenizerAdapter, size: tuple[int, int], batch_frames: int = 0) -> int:
    """Memory of a process that encodes videos of this height and width on a CPU; `batch_frames` as above."""
    pixels = math.prod(size)
    at_once = max(PIXELS_AT_ONCE, adapter.temporal_factor * pixels)
    weights = sum(tensor.nbytes for tensor in adapter.tokenizer.state_dict().values())
    network = BYTES_PER_VALUE * adapter.tokenizer.architecture.ch * at_once
    return BASE_BYTES + weights + network + BYTES_PER_PIXEL * batch_frames * pixels
