"""The page's sliders and a gamepad in a real browser: the server plays the very actions that they stand for.

Chromium has no gamepad here, so `navigator.getGamepads` gives what a test puts into `pads`.
"""

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from play_clients import serving, tiny_scenes, vector_scenes
from play_pages import Page, needs_chromium

from world_model.play.server import PlayServer
from world_model.play.session import PlaySession
from world_model.play.timeline import Moment

pytestmark = [pytest.mark.slow, needs_chromium]

PADS = "window.pads = [null]; navigator.getGamepads = () => window.pads;"
REST = [0.0, 0.0, 0.0, 0.0]  # of steer, gas, lift and gear


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlayServer]:
    with serving(vector_scenes(tmp_path_factory.mktemp("world"))) as server:
        yield server


@pytest.fixture(scope="module")
def buttons(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlayServer]:
    """Of a world whose actions are noop, left and right."""
    with serving(tiny_scenes(tmp_path_factory.mktemp("world"))) as server:
        yield server


class Played(list[np.ndarray]):
    """The actions (f[, a]) of each step that a server has imagined."""

    def wait_for(self, action: Any) -> None:
        """Until a step from now on is under this action in all its frames."""
        end, first = time.monotonic() + 20, len(self)
        wanted = np.array(action, np.float32)
        while not any((step == wanted).all() for step in self[first:]):
            assert time.monotonic() < end, f"not {wanted.tolist()} but {self[first:][-3:]}"
            time.sleep(0.02)

    def of_next_steps(self, count: int) -> list[Any]:
        """The different actions in the next steps."""
        end, first = time.monotonic() + 20, len(self)
        while len(self) < first + count:
            assert time.monotonic() < end
            time.sleep(0.02)
        return np.unique(np.concatenate(self[first:]), axis=0).tolist()


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> Played:
    found, advance = Played(), PlaySession.advance

    def advancing(session: PlaySession) -> Moment:
        moment = advance(session)
        assert moment.actions is not None
        found.append(moment.actions)
        return moment

    monkeypatch.setattr(PlaySession, "advance", advancing)
    return found


def slide(page: Page, name: str, value: float) -> None:
    """Move a slider as a pointer does: through values on the way."""
    page.page.evaluate(
        """([name, value]) => {
            const input = [...document.querySelectorAll("#pad label")].find((row) => row.textContent.startsWith(name))
                .querySelector("input");
            for (const part of [0.25, 0.5, 1]) {
                input.value = value * part;
                input.dispatchEvent(new Event("input", { bubbles: true }));
            }
        }""",
        [name, value],
    )


def plug_in(page: Page, *axes: float, buttons: int | None = None) -> None:
    """A gamepad with these axes, and one of its buttons pressed."""
    page.page.evaluate(
        """([axes, down]) => { window.pads = [null, {
            axes, buttons: Array.from({ length: 17 }, (_, i) => ({ pressed: i === down, value: Number(i === down) })),
        }]; }""",
        [list(axes), buttons],
    )


def shown(page: Page) -> list[str]:
    return [output.strip() for output in page.page.locator("#pad output").all_inner_texts()]


def no_complaints(page: Page) -> None:
    assert page.problems == [] and page.page.inner_text("#news") == ""


def test_sliders_have_the_names_and_bounds_of_the_components(browser: Any, vectors: PlayServer) -> None:
    with Page(browser, vectors) as page:
        sliders = page.page.get_by_role("slider").and_(page.page.locator("#pad input"))
        given = sliders.evaluate_all("all => all.map((s) => [s.min, s.max, s.step, s.value])")
        assert given == [
            ["-0.1", "0.3", "any", "0"],
            ["0", "1", "any", "0"],
            ["-2", "2", "any", "0"],
            ["0", "3", "1", "0"],
        ]
        names = page.page.locator("#pad label").all_inner_texts()
        assert [name.split()[0] for name in names] == ["steer", "gas", "lift", "gear"]
        assert shown(page) == ["0.00", "0.00", "0.00", "0"]
        no_complaints(page)


def test_sliders_play_their_values_and_stay(browser: Any, vectors: PlayServer, played: Played) -> None:
    with Page(browser, vectors) as page:
        slide(page, "lift", -1.5)  # the first movement starts the game
        played.wait_for([0, 0, -1.5, 0])
        slide(page, "gear", 2)
        slide(page, "steer", 0.25)
        played.wait_for([0.25, 0, -1.5, 2])
        assert played.of_next_steps(3) == [[0.25, 0, -1.5, 2]]
        assert shown(page) == ["0.25", "0.00", "-1.50", "2"]
        no_complaints(page)


def test_keys_move_sliders_to_their_very_ends(browser: Any, vectors: PlayServer, played: Played) -> None:
    with Page(browser, vectors) as page:
        for key, ends in (("End", [0.3, 1, 2, 3]), ("Home", [-0.1, 0, -2, 0])):
            for slider in page.page.locator("#pad input").all():
                slider.focus()
                page.page.keyboard.press(key)
            played.wait_for(ends)
        no_complaints(page)


def test_letting_go_plays_rest_and_nothing_between(browser: Any, vectors: PlayServer, played: Played) -> None:
    """Components were let go one after another, so that the next step began with actions that nobody had chosen."""
    with Page(browser, vectors) as page:
        for name, value in (("steer", 0.25), ("gas", 0.5), ("lift", 1.5), ("gear", 3)):
            slide(page, name, value)
        held = [0.25, 0.5, 1.5, 3.0]
        played.wait_for(held)
        first = len(played)
        page.page.get_by_role("button", name="Let go").click()
        played.wait_for(REST)
        assert {tuple(action) for action in np.concatenate(played[first:]).tolist()} <= {tuple(held), tuple(REST)}
        assert shown(page) == ["0.00", "0.00", "0.00", "0"]
        no_complaints(page)


def test_a_reset_lets_go_of_sliders(browser: Any, vectors: PlayServer, played: Played) -> None:
    with Page(browser, vectors) as page:
        slide(page, "lift", 2)
        played.wait_for([0, 0, 2, 0])
        page.page.keyboard.press("r")
        played.wait_for(REST)
        assert shown(page) == ["0.00", "0.00", "0.00", "0"] and played.of_next_steps(2) == [REST]


def test_a_stick_reaches_from_rest_to_both_bounds(browser: Any, vectors: PlayServer, played: Played) -> None:
    """A stick pushed to its end once gave 0.30000000000000004 of 0.3, which the server refuses, and one just outside
    the dead zone half of a component that rests at its bound."""
    with Page(browser, vectors, script=PADS) as page:
        for axes, action in (
            ((1.0, 1.0, 1.0, 1.0), [0.3, 1, 2, 3]),
            ((-1.0, -1.0, -1.0, -1.0), [-0.1, 0, -2, 0]),
            ((0.5, 0.5, 0.5, 0.5), [0.15, 0.5, 1, 2]),
            ((-0.5, -0.25, -0.5, 0.25), [-0.05, 0, -1, 1]),
            ((1.0000153, 0.25, -3.2857, 1.28), [0.3, 0.25, -2, 3]),  # as drivers give them: beyond an axis' range
        ):
            plug_in(page, *axes)
            played.wait_for(action)
            assert shown(page) == [*(f"{value:.2f}" for value in action[:3]), str(action[3])]
        plug_in(page, 0.05, -0.1, 0.1, 0.0)  # what a stick says that nobody touches
        played.wait_for(REST)
        no_complaints(page)


def test_a_stick_at_rest_leaves_sliders_alone(browser: Any, vectors: PlayServer, played: Played) -> None:
    with Page(browser, vectors, script=PADS) as page:
        plug_in(page, 0.02, 0.0)
        slide(page, "steer", 0.2)
        played.wait_for([0.2, 0, 0, 0])
        plug_in(page, 0.02, 1.0)
        played.wait_for([0.2, 1, 0, 0])
        plug_in(page, 0.02, 0.0)
        played.wait_for([0.2, 0, 0, 0])
        no_complaints(page)


def test_a_gamepad_that_is_unplugged_lets_go(
    browser: Any, vectors: PlayServer, buttons: PlayServer, played: Played
) -> None:
    """What it had held last was held for ever."""
    with Page(browser, vectors, script=PADS) as page:
        plug_in(page, 0.0, 1.0)
        played.wait_for([0, 1, 0, 0])
        page.page.evaluate("window.pads = [null, null]")
        played.wait_for(REST)
    with Page(browser, buttons, script=PADS) as page:
        plug_in(page, -1.0, 0.0)
        played.wait_for(1)
        page.page.evaluate("window.pads = []")
        played.wait_for(0)


def test_a_stick_that_trembles_does_not_end_a_pause(browser: Any, vectors: PlayServer, played: Played) -> None:
    """A held stick gives a slightly other value at every look, and each of them started a paused game again."""
    with Page(browser, vectors, script=PADS) as page:
        plug_in(page, 0.8, 0.0)
        played.of_next_steps(2)
        page.page.evaluate(
            "window.trembling = setInterval(() => { window.pads[1].axes = [0.8 + 0.01 * Math.random(), 0]; }, 10)"
        )
        page.pause()
        count = len(played)
        time.sleep(1.0)
        assert len(played) == count
        page.page.evaluate("clearInterval(window.trembling)")
        plug_in(page, 0.0, 0.0)
        page.until("document.querySelector('#pad output').textContent === '0.00'")
        plug_in(page, 0.8, 0.0)  # pushed again: the game goes on
        played.of_next_steps(1)


@pytest.mark.parametrize(
    ("axes", "button", "action"),
    [
        ((0.0, 0.0), 14, 1),  # left of the cross
        ((0.0, 0.0), 15, 2),
        ((-0.9, 0.1), None, 1),  # the left stick
        ((0.9, 0.1), None, 2),
        ((0.4, 0.0), None, 0),
        ((0.0, 0.9), None, 0),  # down: no action of this world
        ((0.0, 0.0), 0, 0),  # fire: likewise
    ],
)
def test_a_gamepad_plays_actions_by_their_meanings(
    browser: Any, buttons: PlayServer, played: Played, axes: tuple[float, ...], button: int | None, action: int
) -> None:
    with Page(browser, buttons, script=PADS) as page:
        page.page.click("#toggle")
        plug_in(page, *axes, buttons=button)
        played.wait_for(action)
        assert played.of_next_steps(2) == [action]
        plug_in(page, 0.0, 0.0)
        played.wait_for(0)
        no_complaints(page)


def test_a_button_of_the_gamepad_and_a_key_hold_together(browser: Any, buttons: PlayServer, played: Played) -> None:
    with Page(browser, buttons, script=PADS) as page:
        page.page.keyboard.down("ArrowLeft")
        plug_in(page, 0.0, 0.0, buttons=14)
        played.wait_for(1)
        page.page.keyboard.up("ArrowLeft")
        assert played.of_next_steps(3)[-1] == 1
        page.page.keyboard.down("d")  # the newest wins
        played.wait_for(2)
        page.page.keyboard.up("d")
        played.wait_for(1)
        plug_in(page, 0.0, 0.0)
        played.wait_for(0)


def test_what_a_gamepad_holds_goes_on_after_a_reset(browser: Any, buttons: PlayServer, played: Played) -> None:
    """The page took the button up again at once, and the server forgot it with the reset that it had not done yet."""
    with Page(browser, buttons, script=PADS) as page:
        plug_in(page, 0.0, 0.0, buttons=15)
        played.wait_for(2)
        for _ in range(5):
            page.page.keyboard.press("r")
            time.sleep(0.2)
            assert played.of_next_steps(2) == [2]
