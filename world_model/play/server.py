"""The play server: its pages, its websocket, and the checks before both."""

import asyncio
import secrets
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket
from uvicorn.protocols.http.h11_impl import H11Protocol

from world_model.play.connection import Games
from world_model.play.limits import Limits, host_allowed, is_loopback, origin_allowed, token_allowed
from world_model.play.messages import MAX_MESSAGE_BYTES
from world_model.play.scenes import Scenes

STATIC = Path(__file__).parent / "static"
POLICY = "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'"
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",  # it would give the token away
    "Cache-Control": "no-store",
}


class Gate:
    """Lets in the requests that may talk to this server, without the token in their path, and answers the others."""

    def __init__(self, app: ASGIApp, *, token: str | None, loopback: bool) -> None:
        self.app, self.token, self.loopback = app, token, loopback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        path = token_allowed(self.token, scope["path"])
        if path is None:
            problem = "This server needs the whole address that its command printed, with its token."
        elif not host_allowed(headers, loopback=self.loopback):
            problem = "This server answers to its own address only."
        elif scope["type"] == "websocket" and not origin_allowed(headers):
            problem = "This server plays with its own page only."
        else:
            await self.app({**scope, "path": path, "raw_path": path.encode()}, receive, self._with_headers(send))
            return
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": problem})  # before accept: HTTP 403
        else:
            await PlainTextResponse(problem, 403)(scope, receive, self._with_headers(send))

    def _with_headers(self, send: Send) -> Send:
        async def sending(message: Any) -> None:
            if message["type"] == "http.response.start":
                extra = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *extra]}
            await send(message)

        return sending


def make_app(games: Games, *, token: str | None = None, loopback: bool = True) -> ASGIApp:
    """The ASGI application: the page at `/`, its files at `/static/`, `/play` for the websocket, and `/saves/`."""

    async def page(request: Request) -> Response:
        return Response((STATIC / "index.html").read_bytes(), media_type="text/html")

    async def save(request: Request) -> Response:
        found = games.saved(request.path_params["name"])
        if found is None:
            return PlainTextResponse("There is no such saved game any more.", 404)
        return Response(
            found[1],
            media_type="application/zip",
            headers={"Content-Disposition": f'attachment; filename="{found[0]}"'},
        )

    async def play(websocket: WebSocket) -> None:
        await games.serve(websocket)

    routes = [
        Route("/", page),
        Mount("/static", StaticFiles(directory=STATIC)),
        Route("/saves/{name}", save),
        WebSocketRoute("/play", play),
    ]
    return Gate(Starlette(routes=routes), token=token, loopback=loopback)


class BoundedProtocol(H11Protocol):
    """HTTP connections, of which only so many are open, and none for long without a request."""

    limits = Limits()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            transport.close()
        else:
            self._waiting = self.loop.call_later(self.limits.request_seconds, self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if hasattr(self, "_waiting"):
            self._waiting.cancel()

    def _give_up(self) -> None:
        if self.cycle is None and self.transport.get_protocol() is self:  # no request, and no websocket either
            self.transport.close()


def protocol_with(limits: Limits) -> type[BoundedProtocol]:
    return type("LimitedProtocol", (BoundedProtocol,), {"limits": limits})


class PlayServer:
    """A server of one world's page, listening from its making on.

    Without a `port`, the system chooses one. On a `host` that other machines can reach, its address has a random token,
    and it answers to nobody without it.

    Raises:
        ValueError: the port is taken, or the host is none of this machine's.

    Example:
        server = PlayServer(load_scenes("boxing"), port=8000)
        print(server.address)
        server.run()
    """

    def __init__(
        self,
        scenes: Scenes,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        output: Path | None = None,
        limits: Limits | None = None,
        real: bool = True,
    ) -> None:
        limits = limits or Limits()
        self.loopback = is_loopback(host)
        self.token = None if self.loopback else secrets.token_urlsafe(16)
        self.games = Games(scenes, limits, output=output, real=real)
        self._socket = _listen(host, port)
        self.host, self.port = host, self._socket.getsockname()[1]
        config = uvicorn.Config(
            make_app(self.games, token=self.token, loopback=self.loopback),
            http=protocol_with(limits),
            ws="websockets-sansio",
            ws_max_size=MAX_MESSAGE_BYTES,
            ws_ping_interval=limits.ping_seconds,
            ws_ping_timeout=limits.ping_seconds,
            ws_per_message_deflate=False,  # pictures are compressed
            timeout_graceful_shutdown=2,
            lifespan="off",
            access_log=False,
            log_level="warning",
            log_config=None,
        )
        self.server = uvicorn.Server(config)

    @property
    def address(self) -> str:
        """The address of the page."""
        everywhere = self.host in ("0.0.0.0", "::")
        host = socket.gethostname() if everywhere else f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}/" + ("" if self.token is None else f"{self.token}/")

    def run(self, started: Callable[[], None] = lambda: None) -> None:
        """Serve until Ctrl-C or SIGTERM, or until `stop`."""
        try:
            started()
            self.server.run(sockets=[self._socket])
        finally:
            self._socket.close()

    def stop(self) -> None:
        """End `run`, which may be in another thread."""
        self.server.should_exit = True


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(128)
        except BaseException:
            listener.close()
            raise
    except (OSError, OverflowError) as error:
        raise ValueError(
            f"play: port {port} of {host} must be free ({error}); choose others with --port and --host."
        ) from None
    return listener
