"""A player's thread: it advances a session at the recorded rate, and hands over what the page is to show.

The page's newest word counts. Only the newest moment waits for it, so that a slow connection never makes a queue; and
no more than `IN_FLIGHT` moments are sent before the page says that it has seen them, since the network's own buffers
would be such a queue, too.
"""

import asyncio
import json
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from world_model.play.messages import Command, greeting, pack_moment, state_of
from world_model.play.saving import Recording, recording_of
from world_model.play.scenes import Scenes
from world_model.play.session import Input, PlaySession

logger = logging.getLogger(__name__)

IN_FLIGHT = 3
MAX_COMMANDS = 32  # that wait; the thread takes them before each step


class Outbox:
    """What waits to be sent to a page: the newest moment, and the newest message of each type. For the event loop."""

    def __init__(self) -> None:
        self._moment: tuple[int, bytes] | None = None
        self._infos: dict[str, dict[str, Any]] = {}
        self._unseen: deque[int] = deque()
        self._changed = asyncio.Event()
        self.dropped = 0  # moments that were replaced by newer ones

    def put_moment(self, number: int, message: bytes) -> None:
        self.dropped += self._moment is not None
        self._moment = (number, message)
        self._changed.set()

    def put_info(self, info: dict[str, Any]) -> None:
        self._infos[info["type"]] = info
        self._changed.set()

    def seen(self, number: int) -> None:
        """The page has received the moment, and all before it."""
        if number in self._unseen:
            while self._unseen.popleft() != number:
                pass
            self._changed.set()

    async def next(self) -> str | bytes:
        """The next message to send, when there is one."""
        while True:
            if self._infos:
                return json.dumps(self._infos.pop(next(iter(self._infos))), separators=(",", ":"))
            if self._moment is not None and len(self._unseen) < IN_FLIGHT:
                (number, message), self._moment = self._moment, None
                self._unseen.append(number)
                return message
            self._changed.clear()
            await self._changed.wait()


class Player(threading.Thread):
    """Plays a session in a thread of its own, until `stop`."""

    def __init__(self, scenes: Scenes, outbox: Outbox, save: Callable[[Recording], None], *, seed: int, real: bool):
        super().__init__(name="player", daemon=True)
        self._scenes, self._outbox, self._save, self._seed, self._real = scenes, outbox, save, seed, real
        self._loop = asyncio.get_running_loop()
        self._commands: queue.Queue[Command] = queue.Queue(MAX_COMMANDS)
        self._session: PlaySession | None = None
        self._stopped = threading.Event()
        self.running = False

    def give(self, command: Command) -> None:
        """Do as a command says, soon; a ValueError if too many wait. From the event loop."""
        if command.name == "hold" and self._session is not None:
            self._session.hold(Input(command.action, command.number))
        try:
            self._commands.put_nowait(command)  # of `hold`, too: it wakes the thread
        except queue.Full:
            if command.name != "hold":
                raise ValueError("play: too many messages at once; send fewer.") from None

    def stop(self) -> None:
        """End the thread and free the session, after its present step. From the event loop."""
        self._stopped.set()

    def run(self) -> None:
        try:
            self._session = session = PlaySession(self._scenes, seed=self._seed, real=self._real)
            self._tell(greeting(session))
            self._tell(state_of(session, self.running))
            self._show(jump=True)
            self._play(session)
        except Exception:
            logger.exception("play: a game ended by an error")
            self._tell({"type": "ended", "reason": "The game ended by an error; the server's log has it."})
        finally:
            if self._session is not None:
                self._session.close()
            self._session = None

    def _play(self, session: PlaySession) -> None:
        due = time.monotonic()
        while not self._stopped.is_set():
            wait = due - time.monotonic() if self.running else 0.25
            try:
                command = self._commands.get(timeout=wait) if wait > 0 else self._commands.get_nowait()
            except queue.Empty:
                if self.running and time.monotonic() >= due:
                    period = session.scenes.step_frames / session.scenes.prompts[session.prompt].fps
                    due = max(due + period, time.monotonic())
                    self._advance(session)
                continue
            was_running = self.running
            try:
                self._do(session, command)
            except ValueError as error:
                self._tell({"type": "error", "message": str(error).removeprefix("play: ")})
            if self.running and not was_running:
                due = time.monotonic()

    def _advance(self, session: PlaySession) -> None:
        begun = time.perf_counter()
        moment = session.advance()
        self._show(jump=False, seconds=time.perf_counter() - begun)
        if moment.terminated:
            self.running = False
        if session.branched or moment.terminated:
            self._tell(state_of(session, self.running))
        session.prepare()

    def _do(self, session: PlaySession, command: Command) -> None:
        name, number = command.name, command.number
        if name == "hold" or name == "seen":
            return
        if name == "run":
            if session.timeline.cursor.terminated:
                raise ValueError("play: the game is over; reset it, or go back and on differently.")
            self.running = True
        elif name == "pause":
            self.running = False
        elif name == "step":
            self.running = False
            self._advance(session)
        elif name == "reset":
            session.reset(None if number < 0 else number)
            self._show(jump=True)
        elif name == "rewind":
            self.running = False
            session.rewind(number)
            self._show(jump=True)
        elif name == "branch":
            self.running = False
            session.switch(number)
            self._show(jump=True)
        elif name == "sampler":
            session.set_sampler(temperature=command.temperature, guidance=command.guidance)
        elif name == "entropy":
            session.measures_entropy = command.on
        elif name == "save":
            self._call(self._save, recording_of(session))
            return
        self._tell(state_of(session, self.running))

    def _show(self, *, jump: bool, seconds: float = 0.0) -> None:
        assert self._session is not None
        moment = self._session.timeline.cursor
        message = pack_moment(self._session, moment, jump=jump, seconds=seconds)
        self._call(self._outbox.put_moment, moment.id, message)

    def _tell(self, info: dict[str, Any]) -> None:
        self._call(self._outbox.put_info, info)

    def _call(self, function: Callable[..., None], *args: Any) -> None:
        """Call a function in the event loop, unless the game has ended."""
        if not (self._stopped.is_set() or self._loop.is_closed()):
            self._loop.call_soon_threadsafe(function, *args)
