"""The fenced blocks of README and docs, and the commands in them."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from places import ROOT

import vidtok_plugin.cli
import world_model.cli

README = ROOT / "README.md"
DOCS = [README, *sorted((ROOT / "docs").rglob("*.md"))]
WALKTHROUGHS = (
    "first_world.md",
    "robot_data.md",
    "fine_tune.md",
    "gallery.md",
)  # run from top to bottom by test_docs.py
SERVED = ("hub.md",)  # run by test_model_hub.py with a hub on this machine
CLIS = {"vidtok-plugin": vidtok_plugin.cli, "world-model": world_model.cli}


def fenced_blocks(path: Path) -> list[tuple[str, str]]:
    """Language and text of each block. Fences are paired, so that an end is never taken for a start."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def code_blocks(path: Path, *languages: str) -> list[str]:
    """The blocks in one of these languages."""
    return [block for language, block in fenced_blocks(path) if language in languages]


def shell_commands(block: str) -> Iterator[list[str]]:
    """The words of each command, with the block's own variables replaced."""
    variables: dict[str, str] = {}
    for line in block.replace("\\\n", " ").splitlines():
        for name, value in variables.items():
            line = line.replace(f"${name}", value)
        words = shlex.split(line, comments=True)
        if words and re.match(r"[A-Z]+=", words[0]):
            name, _, variables[name] = words[0].partition("=")
        elif words:
            yield words
