"""What the documentation names is there: files, links, modules, options and config keys; and one version everywhere."""

import argparse
import dataclasses
import inspect
import re
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import yaml
from docs_blocks import CLIS, DOCS
from places import ROOT

import vidtok_plugin

PAGES = [*DOCS, ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"]
FOLDERS = "vidtok_plugin|world_model|configs|examples|benchmarks|docs|tests"
# Options of other programs, and what is named because it is gone.
FOREIGN = {"--window", "--strict", "--no-sandbox", "--head", "--num-gpus"}


@cache
def prose(path: Path) -> str:
    """A page without its blocks of code, and without what it says of earlier versions."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"^### When you come from an earlier version$.*?^### ", "", text, flags=re.MULTILINE | re.DOTALL)


def spans(path: Path) -> list[str]:
    """What stands in backticks on a page."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(path))]


def anchors(path: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", title.lower()).strip()) for title in titles}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_files_that_are_named_exist(path: Path) -> None:
    for span in spans(path):
        for word in span.split():
            if re.fullmatch(rf"({FOLDERS})/[\w./*-]+", word) and not word.startswith("docs/_"):
                assert any(ROOT.glob(word.rstrip("/"))), f"{path.name}: {word}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_to_files_and_titles(path: Path) -> None:
    for link, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", prose(path)):
        if not link.startswith(("http:", "https:")):
            target = path.parent / link if link else path
            assert target.exists(), f"{path.name}: {link}"
            assert not anchor or anchor in anchors(target), f"{path.name}: {link}#{anchor}"


@pytest.mark.slow
@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_modules_and_their_names_exist(path: Path) -> None:
    for span in spans(path):
        if re.fullmatch(r"(vidtok_plugin|world_model)(\.\w+)+", span):
            assert found(span), f"{path.name}: {span}"


def found(dotted: str) -> bool:
    """Whether a dotted name is a module, or something in one."""
    parts = dotted.split(".")
    for end in range(len(parts), 0, -1):
        try:
            value: Any = import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for name in parts[end:]:
            if not hasattr(value, name):
                return False
            value = getattr(value, name)
        return True
    return False


@cache
def options() -> set[str]:
    """Those of both command lines, the examples and the benchmarks."""
    known = set(FOREIGN)
    for cli in CLIS.values():
        for parser in parsers(cli.build_parser()):
            known |= set(parser._option_string_actions)
    for folder in ("examples", "benchmarks"):
        for file in (ROOT / folder).glob("*.py"):
            known |= set(re.findall(r'"(--[a-z-]+)"', file.read_text(encoding="utf-8")))
    return known


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.values()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_options_exist(path: Path) -> None:
    for span in spans(path):
        if not span.startswith(("git ", "pip ", "ray ", "python ", "apt-get ", "ffmpeg ")):
            for word in re.findall(r"(?<![\w-])--[a-z][a-z-]*", span):
                assert word in options(), f"{path.name}: {span}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_commands_exist(path: Path) -> None:
    for program, command in (words for span in spans(path) for words in re.findall(r"^([\w-]+) ([a-z]+)\b", span)):
        if program in CLIS:
            known = {
                name
                for action in CLIS[program].build_parser()._actions
                if isinstance(action, argparse._SubParsersAction)
                for name in action.choices
            }
            assert command in known, f"{path.name}: {program} {command}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_config_keys_exist(path: Path) -> None:
    import lightning.pytorch as pl

    from vidtok_plugin.tokenizer.training.module import TokenizerRunConfig
    from world_model import WorldModelRunConfig

    for span in spans(path):
        key = span.partition("=")[0]
        if re.fullmatch(r"(data|objective|optimizer|model|measures|collapse)(\.\w+)+", key) and key not in GONE:
            known = (has_key(schema, key.split(".")) for schema in (TokenizerRunConfig, WorldModelRunConfig))
            assert any(known), f"{path.name}: {span}"
        if re.fullmatch(r"trainer\.\w+", key):
            assert key.partition(".")[2] in inspect.signature(pl.Trainer).parameters, f"{path.name}: {span}"


GONE = {"data.skip_unreadable"}


def has_key(schema: Any, keys: list[str]) -> bool:
    """Whether a config of this class has such a key; what is in a dict, or in another library's class, is not known."""
    if not keys:
        return True
    classes = [schema, *get_args(schema)]
    known = [cls for cls in classes if dataclasses.is_dataclass(cls)]
    return not known or any(
        has_key(get_type_hints(cls)[keys[0]], keys[1:])
        for cls in known
        if keys[0] in {field.name for field in dataclasses.fields(cls)}
    )


def test_one_version_stands_everywhere() -> None:
    version = vidtok_plugin.__version__
    texts = {path: (ROOT / path).read_text(encoding="utf-8") for path in ("CHANGELOG.md", "README.md", "SECURITY.md")}
    assert re.findall(r"^## \[(.*?)\]", texts["CHANGELOG.md"], re.MULTILINE)[0] == version
    assert f"newest version, {version.rpartition('.')[0]}." in texts["SECURITY.md"]
    for page in (texts["README.md"], (ROOT / "docs" / "install.md").read_text(encoding="utf-8")):
        assert set(re.findall(r"vidtok_plugin-([\d.]+)-py3", page)) == {version}
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == version
    assert {"cff-version", "message", "title", "authors", "license"} <= set(citation)
