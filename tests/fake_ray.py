"""A stand-in for the module `ray`: actors run in this process, and are lost when a test says so."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any


class RayError(Exception):
    """Of an actor that was lost."""


class RayTaskError(RayError):
    """Raised by an actor's own code."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


@dataclass
class Call:
    """A call of an actor's method, which is done when it is waited for."""

    actor: int
    method: str
    run: Callable[[], Any]

    def __hash__(self) -> int:
        return id(self)


@dataclass
class FakeRay:
    """nodes: the resources of each machine. lost: whether the n-th call of a method on an actor loses that actor."""

    nodes_: Sequence[Mapping[str, float]]
    lost: Callable[[int, str, int], bool] = lambda actor, method, n: False
    exceptions: Any = field(default_factory=lambda: SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError))
    hired: list[Mapping[str, float]] = field(default_factory=list)  # the options of each actor
    killed: list[int] = field(default_factory=list)
    most_at_once: int = 0

    def __post_init__(self) -> None:
        self.counts: dict[tuple[int, str], itertools.count[int]] = {}

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": node} for node in self.nodes_] + [{"Alive": False, "Resources": {}}]

    def put(self, value: Any) -> Any:
        return value

    def remote(self, **options: float) -> Callable[[type], Any]:
        def hire(kind: type) -> Any:
            def create() -> Any:
                number, actor = len(self.hired), kind()
                self.hired.append(options)
                methods = {
                    name: SimpleNamespace(remote=self._method(number, name, getattr(actor, name)))
                    for name in ("start", "write")
                }
                return SimpleNamespace(number=number, **methods)

            return SimpleNamespace(remote=create)

        return hire

    def _method(self, actor: int, name: str, method: Callable[..., Any]) -> Callable[..., Call]:
        return lambda *arguments: Call(actor=actor, method=name, run=lambda: method(*arguments))

    def wait(self, calls: Sequence[Call], num_returns: int, timeout: float) -> tuple[list[Call], list[Call]]:
        self.most_at_once = max(self.most_at_once, len(calls))
        return list(calls[:1]), list(calls[1:])

    def get(self, call: Call) -> Any:
        assert call.actor not in self.killed
        n = next(self.counts.setdefault((call.actor, call.method), itertools.count()))
        if self.lost(call.actor, call.method, n):
            raise RayError("The machine is gone. Some common causes include: (1) storms.")
        try:
            return call.run()
        except Exception as error:
            raise RayTaskError(error) from error

    def kill(self, actor: Any) -> None:
        self.killed.append(actor.number)
