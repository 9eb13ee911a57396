"""The limits of a play server, and who may talk to it."""

import hmac
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from vidtok_plugin.common.field_checks import check_fields


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much a play server gives to its clients."""

    sessions: int = 4  # games at a time: each has a thread, and up to some hundred MB
    connections: int = 64  # open at a time, whatever they are for
    idle_seconds: float = 600.0  # without a key or a click, after which a game ends and its memory is freed
    request_seconds: float = 10.0  # in which a connection must make its first request
    ping_seconds: float = 15.0  # between pings, and for their answers: a client that vanished is gone after both
    invalid_messages: int = 8  # of a client, after which its game ends

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("sessions", "connections", "idle_seconds", "request_seconds", "ping_seconds", "invalid_messages"):
            if getattr(self, name) <= 0:
                raise ValueError(f"Limits: {name} must be above 0, got {getattr(self, name)}.")


def is_loopback(host: str) -> bool:
    """Whether a host's name or address is this machine's own, which no other can reach."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def host_allowed(headers: Mapping[str, str], *, loopback: bool) -> bool:
    """Whether the Host of a request is this server's: on loopback, a loopback name, or else a foreign page could reach
    the server by a name of its own that means 127.0.0.1."""
    host = headers.get("host", "")
    try:
        name = urlsplit(f"//{host}").hostname
    except ValueError:
        return False
    return bool(name) and (not loopback or is_loopback(name or ""))


def origin_allowed(headers: Mapping[str, str]) -> bool:
    """Whether a websocket comes from a page of this server: browsers name a page's origin, which it cannot forge."""
    try:
        origin = urlsplit(headers.get("origin", ""))
    except ValueError:
        return False
    return origin.scheme in ("http", "https") and bool(origin.netloc) and origin.netloc == headers.get("host")


def token_allowed(token: str | None, path: str) -> str | None:
    """The path without the token that it must begin with; None if it has another, or none."""
    if token is None:
        return path
    first, slash, rest = path.lstrip("/").partition("/")
    return f"/{rest}" if slash and hmac.compare_digest(first.encode(), token.encode()) else None
