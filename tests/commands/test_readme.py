"""The README's Python runs, and the paths in its annotated tree exist."""

import re
from pathlib import Path

import pytest
from places import ROOT


def readme() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8")


def code_blocks(text: str, *languages: str) -> list[str]:
    """The fenced blocks in one of these languages. Fences come in pairs, so that an end is never taken for a start."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [block for language, block in fenced if language in languages]


def tree_paths(block: str) -> list[str]:
    """The paths of a tree whose depth is the indentation; names stand before two spaces and a comment."""
    paths: list[str] = []
    parents: list[tuple[int, str]] = []
    for line in filter(str.strip, block.splitlines()):
        bare = re.sub("[│├└─]", " ", line)
        column = len(bare) - len(bare.lstrip())
        names = re.split(r"\s{2,}", bare.strip())[0].split()
        while parents and parents[-1][0] >= column:
            parents.pop()
        folder = parents[-1][1] if parents else ""
        paths += [folder + name for name in names]
        parents.append((column, folder + names[0].rstrip("/") + "/"))
    return paths


def is_generated(path: str) -> bool:
    return f"/{path.split('/')[0]}/" in (ROOT / ".gitignore").read_text().splitlines()


def test_python_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = code_blocks(readme(), "python")
    assert blocks, "README.md has no ```python block"
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)


def test_paths_of_annotated_tree_exist() -> None:
    trees = [block for block in code_blocks(readme(), "text") if "vidtok_plugin/" in block.split()]
    assert trees, "README.md has no annotated tree: a plain ``` block with a line vidtok_plugin/"
    for path in tree_paths(trees[0]):
        found = is_generated(path) or any(ROOT.glob(path.rstrip("/")))
        assert found, f"README.md names {path}, which is not there"


def test_tree_parser_reads_depth_and_several_names_a_line() -> None:
    tree = "a/            about a\n  b.py c.py   about b and c\n  d/\n    e.py\nf.py  the last\n"
    assert tree_paths(tree) == ["a/", "a/b.py", "a/c.py", "a/d/", "a/d/e.py", "f.py"]
    assert tree_paths("├── a/  x\n│   └── b.py  y\n└── c") == ["a/", "a/b.py", "c"]
