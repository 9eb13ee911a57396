"""The page in a real browser: Debian's Chromium, driven by Playwright."""

import io
import zipfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from places import ROOT
from play_clients import serving, tiny_scenes
from play_pages import Page, needs_chromium

from vidtok_plugin.store.folder import FolderConfig, tokenize_folder
from vidtok_plugin.store.reader import TokenStore
from vidtok_plugin.video.episodes import find_episodes
from vidtok_plugin.video.reading import read_frames
from world_model.play.scenes import load_scenes
from world_model.play.server import PlayServer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def boxing() -> Iterator[PlayServer]:
    with serving(load_scenes("boxing", device="cpu")) as server:
        yield server


@pytest.fixture(scope="module")
def tiny_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlayServer]:
    with serving(tiny_scenes(tmp_path_factory.mktemp("world"))) as server:
        yield server


def column_of_player(examples: Any, pixels: np.ndarray) -> float:
    video = torch.from_numpy(pixels.astype(np.float32) / 127.5 - 1).permute(2, 0, 1)[None, :, None]
    return float(examples.centroids(examples.boxer_coverage(video))[0, 0, 0, 1])


@needs_chromium
def test_boxing_is_played_in_a_browser(
    browser: Any, boxing: PlayServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held keys move the boxer, the real game goes along, rewinding gives back the very frame, saving an episode."""
    monkeypatch.syspath_prepend(ROOT / "examples")
    measures = import_module("boxing_measures")
    with Page(browser, boxing) as page:
        columns = []
        for key in ("ArrowLeft", "ArrowRight"):
            page.page.keyboard.down(key)  # the first key starts the game
            page.wait_for_moment(page.moment() + 8)
            page.page.keyboard.up(key)
            columns.append(column_of_player(measures, page.pixels()))
        assert columns[1] > columns[0] + 3  # pixels, of 38 inside the ropes
        page.pause()
        assert page.pixels("real").std() > 10  # the real game is there
        assert page.page.inner_text("#fps") != "" and page.page.get_attribute("#latency", "data-p95") != ""

        seen = {page.moment(): page.pixels()}
        for _ in range(5):
            page.page.keyboard.press("n")
            page.wait_for_moment(page.moment() + 1)
            seen[page.moment()] = page.pixels()
        chosen = sorted(seen)[2]
        while page.moment() != chosen:
            at = page.moment()
            page.page.keyboard.press("[")
            page.until(f"document.getElementById('imagined').dataset.moment !== '{at}'")
        np.testing.assert_array_equal(page.pixels(), seen[chosen])
        assert "s ago" in page.page.inner_text("#when")
        page.page.keyboard.press("n")
        page.page.wait_for_selector("#branches [data-branch='1'][aria-current='true']")
        page.page.click("#branches [data-branch='0']")
        page.page.wait_for_selector("#branches [data-branch='0'][aria-current='true']")
        newest = max(seen)
        page.until(f"document.getElementById('imagined').dataset.moment === '{newest}'")
        np.testing.assert_array_equal(page.pixels(), seen[newest])

        with page.page.expect_download() as started:
            page.page.click("#save")
        archive = Path(started.value.path()).read_bytes()
        zipfile.ZipFile(io.BytesIO(archive)).extractall(tmp_path / "saved")
        assert page.problems == []
        assert all(url.startswith((boxing.address, "data:", "blob:")) for url in page.requests)
    (episode,) = find_episodes(tmp_path / "saved")
    frames = read_frames(episode.path, range(episode.num_frames))
    assert episode.num_frames == len(episode.actions) == 13 + 4 * newest and {3, 4} <= set(episode.actions.tolist())
    assert np.abs(frames[-1].astype(int) - seen[newest]).mean() < 6
    tokenize_folder(FolderConfig(folder=tmp_path / "saved", model="vidtok_tiny", output=tmp_path / "store"))
    assert len(TokenStore(tmp_path / "store", "train")) == 1


@needs_chromium
def test_the_page_works_by_touch_and_by_keyboard_alone(browser: Any, tmp_path: Path) -> None:
    scenes = tiny_scenes(tmp_path)
    with serving(scenes) as server:
        with Page(browser, server, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True) as page:
            assert page.page.evaluate("document.documentElement.scrollWidth") <= 390
            left = page.page.locator("#pad [data-what='LEFT']")
            assert left.is_visible() and not page.page.locator("#pad .fire").count()
            left.dispatch_event("pointerdown", {"pointerId": 1, "pointerType": "touch", "isPrimary": True})
            page.wait_for_moment(3)
            assert "held" in (left.get_attribute("class") or "")
            page.page.tap("#toggle")
            page.until("document.querySelector('#toggle .label').textContent === 'Play'")
            assert page.problems == [] or all("pointer" in problem for problem in page.problems)
        with Page(browser, server, reduced_motion="reduce") as page:
            assert page.page.evaluate("getComputedStyle(document.querySelector('#toggle')).transitionDuration") == "0s"
            names = []
            for _ in range(40):
                page.page.keyboard.press("Tab")
                names.append(
                    page.page.evaluate(
                        """() => { const e = document.activeElement;
                        return [e.id, e.ariaLabel || e.labels?.[0]?.textContent || e.textContent
                                || e.querySelector("img")?.alt || ""]; }"""
                    )
                )
            reached = {name for name, _ in names}
            assert {"stage", "toggle", "step", "reset", "time", "save", "temperature", "entropy-switch"} <= reached
            assert all(label.strip() for name, label in names if name != "")
            page.page.focus("#toggle")
            page.page.keyboard.press("Enter")
            page.wait_for_moment(2)
            page.page.keyboard.press("Enter")
            page.page.focus("#time")
            page.page.keyboard.press("ArrowLeft")
            page.until("document.getElementById('when').textContent.includes('ago')")
            assert page.problems == []


@needs_chromium
def test_a_closed_connection_is_said(browser: Any, tmp_path: Path) -> None:
    with serving(tiny_scenes(tmp_path)) as server, Page(browser, server) as page:
        server.stop()
        page.until("document.getElementById('connection').textContent.includes('Reload')")


@needs_chromium
def test_text_has_enough_contrast(browser: Any, tmp_path: Path) -> None:
    """4.5 to 1 for every text against its ground (WCAG 2, AA)."""
    with serving(tiny_scenes(tmp_path)) as server, Page(browser, server) as page:
        pairs = page.page.evaluate(
            """() => [...document.querySelectorAll("body *")].filter((e) => e.checkVisibility() && [...e.childNodes]
            .some((n) => n.nodeType === 3 && n.textContent.trim())).map((e) => {
                let ground = e;
                while (ground && /rgba\\(.*, 0\\)/.test(getComputedStyle(ground).backgroundColor)) {
                    ground = ground.parentElement;
                }
                return [e.textContent.trim().slice(0, 30), getComputedStyle(e).color,
                    getComputedStyle(ground || document.documentElement).backgroundColor];
            })"""
        )
        assert len(pairs) > 20
        low = [pair for pair in pairs if contrast(pair[1], pair[2]) < 4.5]
        assert low == []


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(color: str) -> float:
    channels = [int(value) / 255 for value in color.removeprefix("rgb(").removesuffix(")").split(",")]
    linear = [value / 12.92 if value <= 0.03928 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@needs_chromium
@pytest.mark.parametrize(
    ("held", "action"),
    [
        ([], "NOOP"),
        (["LEFT"], "LEFT"),
        (["LEFT", "RIGHT"], "RIGHT"),  # the newest
        (["RIGHT", "LEFT"], "LEFT"),
        (["UP", "RIGHT", "FIRE"], "UPRIGHTFIRE"),
        (["FIRE", "DOWN"], "DOWNFIRE"),
        (["LEFT", "UP", "RIGHT"], "UPRIGHT"),
    ],
)
def test_keys_held_together_are_one_action(browser: Any, tiny_server: PlayServer, held: list[str], action: str) -> None:
    meanings = ["NOOP", "FIRE", "UP", "RIGHT", "LEFT", "DOWN", "UPRIGHT", "UPLEFT", "DOWNRIGHT", "DOWNLEFT", "UPFIRE"]
    meanings += ["RIGHTFIRE", "LEFTFIRE", "DOWNFIRE", "UPRIGHTFIRE", "UPLEFTFIRE", "DOWNRIGHTFIRE", "DOWNLEFTFIRE"]
    with Page(browser, tiny_server) as page:
        index = page.page.evaluate(
            """async ([meanings, held]) => {
                const { choose, parts } = await import("/static/actions.js");
                return choose(meanings.map((meaning, index) => ({ index, words: parts(meaning) })), held, 0);
            }""",
            [meanings, held],
        )
    assert meanings[index] == action
