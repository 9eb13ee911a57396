"""The engine of several machines: actors of a Ray cluster, each with the tokenizer, that write one shard at a time.

Ray places the actors: one for each GPU if the cluster has any, else one for each core. Lost actors are replaced, and
the shards that they were writing are written again. The store and the recordings must be at the same paths on all
machines.
"""

import logging
import math
import os
import pickle
import signal
import socket
import threading
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch

from vidtok_plugin import __version__
from vidtok_plugin.common.commands import sentence, set_up_logging
from vidtok_plugin.common.devices import default_device
from vidtok_plugin.common.progress import progress_bar
from vidtok_plugin.store.parallelism import process_bytes
from vidtok_plugin.store.shard_encoder import EncoderRecipe, PlannedShard, ShardEncoder

logger = logging.getLogger(__name__)

MAX_LOSSES = 5  # of actors that were writing the same shard, and of actors in succession that did not even start
MAX_FAILURES = 20  # shards with an error of their own, after which no further ones are begun
PATIENCE = 60.0  # seconds without news, after which a warning says what is awaited
CONNECT_SECONDS = 10.0
OBJECT_STORE_BYTES = 100 << 20  # Ray's least is 75 MiB; only descriptions of shards pass through it


def check_ray(address: str | None = None) -> None:
    """Check that Ray can be used, before anything large is loaded.

    Raises:
        ValueError: it is not installed, or nothing listens at HOST:PORT, for which Ray itself would wait some minutes.
    """
    if find_spec("ray") is None:
        raise ValueError(
            "tokenize: --engine ray needs Ray, which is not installed; install it on all machines with: pip install "
            "'vidtok-plugin[ray]', or leave --engine out for this machine alone."
        )
    host, _, port = (address or "").rpartition("://")[2].rpartition(":")
    if not port.isdigit():  # such as auto, which Ray looks up
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        reason = sentence(error).rstrip(".")
        raise ValueError(
            f"tokenize: a Ray cluster must answer at --address {address}, but none does ({reason}); start one with "
            "`ray start --head`, or leave --address out for a Ray of its own on this machine."
        ) from None


def write_with_ray(
    encoder: ShardEncoder, shards: Sequence[PlannedShard], *, address: str | None = None, actors: int | None = None
) -> None:
    """Have the shards written by a Ray cluster.

    address: of the cluster, as `ray.init` takes it; None: a Ray of its own on this machine.
    actors: how many at most, by default as many as there are GPUs or cores.

    Raises:
        ValueError, OSError: a shard could not be written; the others are, unless many could not.
        ChildProcessError: actors were lost again and again while writing the same shard, or before they started.
    """
    with cluster(address) as ray:
        first = next(iter(shards[0].sources.values()))
        memory = process_bytes(encoder.adapter, first.size, encoder.config.batch_frames)
        crew = Crew(ray, encoder.recipe(), actors=actors, memory=memory)
        total = sum(len(shard.sources) for shard in shards)
        with progress_bar(encoder.config.progress) as bar:
            encoding = bar.add_task(f"tokens ({encoder.config.split})", total=total)
            for shard in crew.write(shards):
                bar.advance(encoding, len(shard.sources))


class ShardActor:
    """What runs in a worker of the cluster: an encoder for one shard at a time."""

    def start(self, recipe: EncoderRecipe, versions: Mapping[str, str]) -> str:
        """Load the tokenizer from the store; says where this is.

        Raises:
            ValueError: the machine has other versions than the one that plans, whose tokens may differ.
            FileNotFoundError: the store is not at its path here.
        """
        set_up_logging(logging.WARNING)
        where = f"process {os.getpid()} on {socket.gethostname()}"
        if (own := packages()) != versions:
            name = next(name for name in versions if own[name] != versions[name])
            raise ValueError(
                f"tokenize: all machines must have {name} {versions[name]}, got {own[name]} in {where}; install the "
                "same versions everywhere."
            )
        self.encoder = recipe.make(default_device())
        return where

    def write(self, pickled: bytes) -> None:
        """Write a shard, unless it is there already. Errors are those of `ShardEncoder.write`.

        pickled: a `PlannedShard`, by ourselves, since arrays that Ray unpickles cannot be written to.
        """
        self.encoder.write([pickle.loads(pickled)])


def packages() -> dict[str, str]:
    """Versions that must be the same on all machines for the same tokens."""
    return {"vidtok-plugin": __version__, "torch": torch.__version__}


class Crew:
    """Actors of a cluster, and the shard that each is writing.

    ray: the module.
    memory: bytes that an actor needs; Ray places no more actors on a machine than fit.
    """

    def __init__(self, ray: Any, recipe: EncoderRecipe, *, actors: int | None, memory: int) -> None:
        self.ray, self.recipe, self.actors, self.memory = ray, ray.put(recipe), actors, memory
        self.kind = "GPU" if any("GPU" in resources for resources in self._machines()) else "CPU"
        self.starting: dict[Any, Any] = {}  # actor by the reference of what is awaited
        self.writing: dict[Any, tuple[Any, PlannedShard]] = {}
        self.losses: Counter[int] = Counter()  # by the number of the shard
        self.lost_starts = 0  # in succession
        self.failures: list[tuple[PlannedShard, Exception]] = []

    def write(self, shards: Sequence[PlannedShard]) -> Iterator[PlannedShard]:
        """Have the shards written; yields each when it is. Errors are those of `write_with_ray`."""
        waiting = deque(shards)
        while waiting or self.writing:
            self._hire(len(waiting))
            done, _ = self.ray.wait([*self.starting, *self.writing], num_returns=1, timeout=PATIENCE)
            if not done:
                self._say_what_is_awaited()
            for reference in done:
                actor, shard = self.writing.pop(reference, (self.starting.pop(reference, None), None))
                if (ended := self._outcome(reference, actor, shard)) is None:  # it was lost
                    if shard is not None:
                        waiting.appendleft(shard)
                    continue
                if shard is not None and ended:
                    yield shard
                if len(self.failures) >= MAX_FAILURES:
                    waiting.clear()
                if waiting:
                    following = waiting.popleft()
                    self.writing[actor.write.remote(pickle.dumps(following))] = actor, following
                else:
                    self.ray.kill(actor)
        for actor in self.starting.values():
            self.ray.kill(actor)
        self._report_failures(len(shards))

    def _hire(self, waiting: int) -> None:
        """Ask Ray for as many actors as the cluster has room for; those that have none start when there is."""
        machines = self._machines()
        room = int(sum(resources.get(self.kind, 0) for resources in machines))
        wanted = min(self.actors or max(1, room), waiting + len(self.writing))
        largest = max((resources.get("memory", math.inf) for resources in machines), default=math.inf)
        options = {"num_cpus": 1, "num_gpus": int(self.kind == "GPU"), "memory": int(min(self.memory, largest))}
        while len(self.starting) + len(self.writing) < wanted:
            actor = self.ray.remote(**options)(ShardActor).remote()
            self.starting[actor.start.remote(self.recipe, packages())] = actor

    def _machines(self) -> list[Mapping[str, float]]:
        """The resources of each machine that is there."""
        return [node["Resources"] for node in self.ray.nodes() if node["Alive"]]

    def _outcome(self, reference: Any, actor: Any, shard: PlannedShard | None) -> bool | None:
        """Whether what an actor was asked to do was done, or has an error of its own; None if the actor was lost.

        Raises:
            ValueError, OSError: the actor could not start.
            ChildProcessError: one too many was lost.
        """
        errors = self.ray.exceptions
        try:
            where = self.ray.get(reference)
        except errors.RayTaskError as error:  # raised by our own code
            if shard is None or not isinstance(error.cause, ValueError | OSError):
                raise error.cause from error
            logger.warning("shard %d: %s", shard.number, sentence(error.cause))
            self.failures.append((shard, error.cause))
            return False
        except errors.RayError as error:  # of the actor, its process, its machine or the way there
            self.ray.kill(actor)  # it may still be there
            self._count_loss(shard, error)
            return None
        if shard is None:
            self.lost_starts = 0
            logger.info("a worker has started: %s", where)
        return True

    def _count_loss(self, shard: PlannedShard | None, error: Exception) -> None:
        # Ray's own text goes on with general advice.
        reason = sentence(error).partition(" Some common causes include")[0].rstrip(".")
        if shard is None:
            self.lost_starts += 1
            if self.lost_starts > MAX_LOSSES:
                raise ChildProcessError(f"tokenize: {self.lost_starts} workers were lost as they started: {reason}")
            logger.warning("a worker was lost as it started (%s); starting another", reason)
            return
        self.losses[shard.number] += 1
        if self.losses[shard.number] > MAX_LOSSES:
            raise ChildProcessError(
                f"tokenize: shard {shard.number}, with {shard.names[0]}, has lost {self.losses[shard.number]} workers, "
                f"the last one thus: {reason}. Check their memory, or lower --episodes-per-shard for a new store."
            )
        logger.warning("shard %d: its worker was lost (%s); it is written again", shard.number, reason)

    def _say_what_is_awaited(self) -> None:
        logger.warning(
            "no news for %.0f s: %d shards are being written, %d workers wait for room in the cluster or for their "
            "start; `ray status` shows its machines",
            *(PATIENCE, len(self.writing), len(self.starting)),
        )

    def _report_failures(self, total: int) -> None:
        if not self.failures:
            return
        shard, error = min(self.failures, key=lambda failure: failure[0].number)
        if len(self.failures) == 1:
            raise error
        raise ValueError(
            f"tokenize: {len(self.failures)} of {total} shards could not be written, as listed above; the first, shard "
            f"{shard.number}: {sentence(error)}"
        ) from error


@contextmanager
def cluster(address: str | None) -> Iterator[Any]:
    """The module `ray`, connected to a cluster; what was started here ends with the context."""
    import ray

    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "configure_logging": False}
    with _signals_kept():
        if address is None:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            ray.init(address="local", include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES, **quiet)
        else:
            ray.init(address=address, **quiet)
    try:
        yield ray
    finally:
        ray.shutdown()


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Puts back the handlers of signals, which `ray.init` replaces: the command's own end it by its cleanup."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
