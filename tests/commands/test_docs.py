"""The documentation: its walkthroughs run from top to bottom, and the site builds and needs no other server."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from docs_blocks import CLIS, WALKTHROUGHS, code_blocks, fenced_blocks, shell_commands
from metric_networks import golden_lpips
from places import ROOT
from video_files import smooth_motion

import vidtok_plugin
import world_model
from vidtok_plugin.evaluation import networks
from vidtok_plugin.video import write_video

STEP = ("trainer.max_steps=1", "trainer.val_check_interval=1", "trainer.log_every_n_steps=1")
FEWER = {  # the same commands on less data and for fewer steps
    "world-model record": ("train_episodes=1", "validation_episodes=1", "test_episodes=1", "frames_per_episode=82"),
    "vidtok-plugin fit": (*STEP, "data.validation_clips=2"),
    "world-model fit": (*STEP, "data.validation_windows=2"),
    "world-model rollout": ("--frames", "8"),
    "python world_gif.py": ("--frames", "8", "--columns", "2"),
    "world-model validate": ("measures.prompts=2", "measures.drift_rollouts=1", "measures.drift_frames=16"),
}


def can_run(words: list[str]) -> bool:
    """All but installations, a server that does not end, and trainings that begin with a download."""
    if words[0] not in (*CLIS, "python") or words[:2] == ["world-model", "play"]:
        return False
    return not any("=vidtok_fsq" in word for word in words)


def run(words: list[str]) -> None:
    program, command = words[:2]
    arguments = [*words[1:], *FEWER.get(f"{program} {command}", ())]
    if program == "python":  # an example that an earlier command copied
        run_python(*arguments)
    elif "CarRacing-v3" in arguments:  # Box2D crashed in a process that had trained before
        run_python("-c", "import sys; from world_model import cli; sys.exit(cli.main(sys.argv[1:]))", *arguments)
    else:
        assert CLIS[program].main(arguments) == 0, " ".join(words)


def run_python(*arguments: str) -> None:
    subprocess.run([sys.executable, *arguments], env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long if name == "gallery.md" else ()) for name in WALKTHROUGHS]
)
def test_walkthroughs_run_from_top_to_bottom(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(networks, "load_lpips", lambda vgg: golden_lpips())  # VGG16 would be downloaded
    frames = np.asarray(smooth_motion(41, height=64, width=96))
    for video in ("film.mp4", "my_videos/a.mp4", "my_held_out_videos/b.mp4"):
        Path(video).parent.mkdir(exist_ok=True)
        write_video(video, frames, fps=30)
    namespace: dict[str, object] = {}
    ran = 0
    for language, block in fenced_blocks(ROOT / "docs" / name):
        if language == "python":
            exec(compile(block, name, "exec"), namespace)
        for words in filter(can_run, shell_commands(block) if language == "sh" else ()):
            run(words)
            ran += 1
    assert ran >= 3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["install.md", "rollouts.md"])
def test_commands_run_in_an_empty_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    commands = [words for block in code_blocks(ROOT / "docs" / name, "sh") for words in shell_commands(block)]
    assert any(map(can_run, commands))
    for words in filter(can_run, commands):
        run(words)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built with --strict: a warning, a broken link or a name that is not found is an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_pages_load_nothing_from_other_servers(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) >= len(list((ROOT / "docs").rglob("*.md")))
    loaded = re.compile(
        r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"?(https?:)?//|<link\b[^>]*\bhref=\"?(?:https?:)?//"
    )
    for page in pages:
        assert not loaded.search(page.read_text(encoding="utf-8")), page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import\s*)[\"']?(?:https?:)?//", sheet.read_text(encoding="utf-8")), sheet


@pytest.mark.slow
def test_the_reference_has_every_public_name_with_its_docstring(site: Path) -> None:
    for package in (vidtok_plugin, world_model):
        page = (site / "api" / f"{package.__name__}.html").read_text(encoding="utf-8")
        documented = dict(re.findall(r'<h3 id="([\w.]+)"[^>]*>.*?</h3>(.*?)(?=<h[23] |</article>)', page, re.DOTALL))
        by_name = {path.rsplit(".", 1)[1]: body for path, body in documented.items()}
        for name in package.__all__:
            assert name in by_name, f"docs/api/{package.__name__}.md lacks {name}"
            assert "<p>" in by_name[name], f"{name} has no docstring"


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        assert f": {page.relative_to(ROOT / 'docs').as_posix()}\n" in navigation, page


@pytest.mark.slow
def test_docstrings_become_code_lists_and_fields(site: Path) -> None:
    """What docs/extensions/docstrings.py does: without it, examples are quotations and fields have no comments."""
    page = (site / "api" / "vidtok_plugin.html").read_text(encoding="utf-8")
    assert "<strong>Example</strong>" in page and "<blockquote>" not in page
    assert re.search(r"<li>\s*(?:<p>)?<code>source</code>: a preset's name", page)
    assert re.search(r"<li>\s*(?:<p>)?<code>checkpoint_every</code>: batches", page)


@pytest.mark.slow
@pytest.mark.parametrize("package", [vidtok_plugin, world_model], ids=lambda package: package.__name__)
def test_methods_of_public_classes_have_docstrings(package: ModuleType) -> None:
    """But for those that override a documented one, and Episode's attributes, which its class documents."""
    for name in set(package.__all__) - {"Episode"}:
        cls = getattr(package, name)
        if isinstance(cls, type):
            inherited = {member for base in cls.__mro__[1:] for member in vars(base)}
            for member, value in vars(cls).items():
                function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
                ours = getattr(function, "__module__", "") == cls.__module__ and hasattr(function, "__code__")
                if ours and not member.startswith("_") and member not in inherited:
                    assert function.__doc__, f"{name}.{member}"


def test_every_extra_is_described() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    described = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    assert [extra for extra in extras if f"`{extra}`" not in described] == []
