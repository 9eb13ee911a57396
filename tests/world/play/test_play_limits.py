"""Who may talk to a play server."""

import pytest

from world_model.play.limits import Limits, host_allowed, is_loopback, origin_allowed, token_allowed


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "[::1]", "127.8.0.1", "LOCALHOST"])
def test_loopback_hosts(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "example.org", "::", "localhost.example.org", ""])
def test_other_hosts(host: str) -> None:
    assert not is_loopback(host)


def test_a_name_that_means_loopback_elsewhere_is_refused() -> None:
    """A foreign page whose own name resolves to 127.0.0.1 would have the origin of this server."""
    assert host_allowed({"host": "localhost:8000"}, loopback=True)
    assert host_allowed({"host": "[::1]:8000"}, loopback=True)
    for host in ("evil.example:8000", "", "[", "127.0.0.1.evil.example"):
        assert not host_allowed({"host": host}, loopback=True)
    assert host_allowed({"host": "my-machine:8000"}, loopback=False)


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("http://127.0.0.1:8000", True),
        ("https://127.0.0.1:8000", True),
        ("http://127.0.0.1:9000", False),
        ("http://evil.example", False),
        ("http://127.0.0.1:8000.evil.example", False),
        ("null", False),
        ("file://127.0.0.1:8000", False),
        ("http://[", False),
        (None, False),
    ],
)
def test_only_the_own_page_may_play(origin: str | None, allowed: bool) -> None:
    headers = {"host": "127.0.0.1:8000"} | ({} if origin is None else {"origin": origin})
    assert origin_allowed(headers) == allowed


def test_a_token_must_begin_the_path() -> None:
    assert token_allowed(None, "/play") == "/play"
    assert token_allowed("abc", "/abc/") == "/" and token_allowed("abc", "/abc/static/app.js") == "/static/app.js"
    for path in ("/", "/abc", "/abcd/", "/ab/", "/static/app.js", "/ABC/", "/é/"):
        assert token_allowed("abc", path) is None


def test_limits_are_checked() -> None:
    with pytest.raises(ValueError, match="Limits: sessions must be above 0, got 0"):
        Limits(sessions=0)
