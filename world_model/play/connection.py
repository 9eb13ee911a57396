"""A page's websocket: from its messages to a player's thread, and from the thread's outbox to the page."""

import asyncio
import logging
import secrets
import tempfile
import time
from collections import OrderedDict
from pathlib import Path

from starlette.websockets import WebSocket, WebSocketDisconnect

from world_model.play.limits import Limits
from world_model.play.messages import parse_command
from world_model.play.player import Outbox, Player
from world_model.play.saving import Recording, save_recording, zipped
from world_model.play.scenes import Scenes

logger = logging.getLogger(__name__)

POLICY_VIOLATION, TRY_AGAIN_LATER = 1008, 1013  # close codes
SAVES = 4  # of a session, that can be downloaded


class Games:
    """All games of a server: their number, and what was saved."""

    def __init__(self, scenes: Scenes, limits: Limits, *, output: Path | None, real: bool = True) -> None:
        self.scenes, self.limits, self.output, self.real = scenes, limits, output, real
        self.open = 0
        self._begun = 0
        self._saves: OrderedDict[str, tuple[str, bytes]] = OrderedDict()

    def saved(self, name: str) -> tuple[str, bytes] | None:
        """The file name and the bytes of an archive that can be downloaded."""
        return self._saves.get(name)

    async def serve(self, socket: WebSocket) -> None:
        """Serve a page until it leaves, is idle for too long, or says too many things that make no sense."""
        await socket.accept()
        if self.open >= self.limits.sessions:
            reason = f"{self.limits.sessions} games are being played already; close one, or try again later."
            await _end(socket, TRY_AGAIN_LATER, reason)
            return
        self.open += 1
        self._begun += 1
        outbox, saves = Outbox(), _Saves(self)
        player = Player(
            self.scenes,
            outbox,
            lambda recording: saves.start(recording, outbox),
            seed=self._begun - 1,
            real=self.real,
        )
        sender = asyncio.create_task(_send(socket, outbox))
        try:
            player.start()
            code, reason = await self._receive(socket, player, outbox)
        except WebSocketDisconnect:
            code, reason = 0, ""
        finally:
            player.stop()
            sender.cancel()
            saves.end()
            await asyncio.gather(sender, return_exceptions=True)
            await asyncio.to_thread(player.join)
            self.open -= 1
        if code:
            await _end(socket, code, reason)

    async def _receive(self, socket: WebSocket, player: Player, outbox: Outbox) -> tuple[int, str]:
        """Take the page's messages; -> the close code and the reason to end."""
        invalid, active = 0, time.monotonic()
        while True:
            remaining = active + self.limits.idle_seconds - time.monotonic()
            try:
                message = await asyncio.wait_for(socket.receive(), max(0.0, remaining))
            except TimeoutError:
                return TRY_AGAIN_LATER, f"Nobody played for {self.limits.idle_seconds:g} seconds."
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(message.get("code", 1000))
            try:
                command = parse_command(message.get("text"), self.scenes.actions)
                if command.name == "seen":
                    outbox.seen(command.number)
                    continue
                active = time.monotonic()
                player.give(command)
            except ValueError as error:
                invalid += 1
                if invalid >= self.limits.invalid_messages:
                    return POLICY_VIOLATION, "Too many messages made no sense."
                outbox.put_info({"type": "error", "message": str(error).removeprefix("play: ")})


class _Saves:
    """The archives of one session, which end with it."""

    def __init__(self, games: Games) -> None:
        self._games = games
        self._names: list[str] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, recording: Recording, outbox: Outbox) -> None:
        """Write a recording in another thread, then say where it is."""
        if self._tasks:
            outbox.put_info({"type": "error", "message": "The last game is still being saved."})
            return
        task = asyncio.get_running_loop().create_task(self._save(recording, outbox))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _save(self, recording: Recording, outbox: Outbox) -> None:
        output = self._games.output
        try:
            video, archive = await asyncio.to_thread(_write, recording, output)
        except OSError as error:
            logger.warning("play: a game could not be saved: %s", error)
            outbox.put_info({"type": "error", "message": f"The game could not be saved: {error}"})
            return
        name = secrets.token_urlsafe(16)
        self._games._saves[name] = (f"{video.stem}.zip", archive)
        self._names.append(name)
        if len(self._names) > SAVES:
            del self._games._saves[self._names.pop(0)]
        info = {"type": "saved", "address": f"saves/{name}", "name": f"{video.stem}.zip"}
        outbox.put_info(info | ({} if output is None else {"path": str(video)}))

    def end(self) -> None:
        for task in self._tasks:
            task.cancel()
        for name in self._names:
            self._games._saves.pop(name, None)


def _write(recording: Recording, output: Path | None) -> tuple[Path, bytes]:
    if output is not None:
        video = save_recording(recording, output)
        return video, zipped(video)
    with tempfile.TemporaryDirectory(prefix="played-") as folder:
        video = save_recording(recording, Path(folder))
        return video, zipped(video)


async def _end(socket: WebSocket, code: int, reason: str) -> None:
    """Say why the game ends, and close the websocket."""
    try:
        await socket.send_json({"type": "ended", "reason": reason})
        await socket.close(code, reason[:100])
    except (WebSocketDisconnect, RuntimeError):
        logger.debug("play: the page was gone before this reached it: %s", reason)


async def _send(socket: WebSocket, outbox: Outbox) -> None:
    """Send what the outbox has, until the task is cancelled or the page is gone."""
    while True:
        message = await outbox.next()
        try:
            if isinstance(message, str):
                await socket.send_text(message)
            else:
                await socket.send_bytes(message)
        except (WebSocketDisconnect, RuntimeError):  # gone: receiving ends the session
            return
