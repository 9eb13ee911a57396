"""The page of a play server in Debian's Chromium, driven by Playwright."""

import shutil
import time
from typing import Any

import numpy as np
import pytest

from world_model.play.server import PlayServer

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
]
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")


class Page:
    """The page, opened, with what its console said."""

    def __init__(self, browser: Any, server: PlayServer, *, script: str | None = None, **settings: Any) -> None:
        """`script`: JavaScript that runs before the page's own. The settings are those of Playwright's contexts."""
        self.context = browser.new_context(accept_downloads=True, **settings)
        if script is not None:
            self.context.add_init_script(script)
        self.page = self.context.new_page()
        self.problems: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", self._said)
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(server.address)
        self.page.wait_for_selector("body.ready")
        self.page.wait_for_selector("#imagined[data-moment]")

    def __enter__(self) -> "Page":
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()

    def _said(self, message: Any) -> None:
        if message.type == "error":
            self.problems.append(message.text)

    def moment(self) -> int:
        return int(self.page.get_attribute("#imagined", "data-moment"))

    def pixels(self, canvas: str = "imagined") -> np.ndarray:
        """What a canvas shows, uint8 (h, w, 3)."""
        width, height, values = self.page.evaluate(
            """(id) => { const c = document.getElementById(id);
            return [c.width, c.height, [...c.getContext("2d").getImageData(0, 0, c.width, c.height).data]]; }""",
            canvas,
        )
        return np.array(values, dtype=np.uint8).reshape(height, width, 4)[..., :3]

    def until(self, expression: str, seconds: float = 120) -> None:
        """Wait until JavaScript is true. Playwright's own waiting needs eval, which the page's policy forbids."""
        end = time.monotonic() + seconds
        while not self.page.evaluate(expression):
            assert time.monotonic() < end, expression
            time.sleep(0.03)

    def wait_for_moment(self, number: int) -> None:
        """Until the last frame of that moment, or of a later one, is shown."""
        at = "document.getElementById('imagined').dataset"
        self.until(f"{at}.moment > {number} || ({at}.moment == {number} && {at}.row == 3)")

    def pause(self) -> None:
        """Pause, and wait until what was under way is shown."""
        self.page.keyboard.press("p")
        self.until("document.querySelector('#toggle .label').textContent === 'Play'")
        at = -1
        while at != self.moment():
            at = self.moment()
            time.sleep(1.0)
