"""The code and the commands in README and docs/ run, and the paths in the README's tree exist."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from docs_blocks import CLIS, DOCS, README, SERVED, WALKTHROUGHS, code_blocks, shell_commands
from places import ROOT

from vidtok_plugin import TokenizerAdapter, VidTok
from vidtok_plugin.common.commands import parse_arguments
from world_model.actions import ActionSpec
from world_model.architecture import OutcomeConfig, TokenSpec, WorldModelConfig
from world_model.model import WorldModel
from world_model.transformer.transformer import TransformerConfig

# Their Python blocks take seconds: other libraries, published widths.
SLOW_PAGES = ("act.md", "generators.md", "world_model.md")


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


def test_python_blocks_of_the_readme_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = code_blocks(README, "python")
    assert blocks, "README.md has no ```python block"
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of other libraries
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=pytest.mark.slow if path.name in SLOW_PAGES else (), id=path.name)
        for path in DOCS[1:]
        if code_blocks(path, "python") and path.name not in (*WALKTHROUGHS, *SERVED)
    ],
)
def test_python_blocks_of_the_docs_run_on_a_toy_model(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tokenizer = VidTok.from_preset("vidtok_tiny", ch=4, ch_mult=(1, 1, 1, 1), fsq_levels=(4, 3))
    tokens = TokenSpec(
        codebook_size=12,
        height=2,
        width=2,
        temporal_factor=4,
        fsq_levels=(4, 3),
        actions=ActionSpec(kind="discrete", size=5),
    )
    config = WorldModelConfig(
        tokens=tokens,
        max_steps=6,
        action_dropout=0.1,
        outcomes=OutcomeConfig(width=8),
        transformer=TransformerConfig(width=24, depth=1, heads=2),
    )
    video, actions = torch.rand(1, 3, 9, 16, 16) * 2 - 1, torch.randint(5, (1, 41))
    namespace = {
        "adapter": TokenizerAdapter(tokenizer),
        "model": WorldModel(config).eval(),
        "video": video,
        "actions": actions,
        "past_video": video,
        "past_actions": actions[:, :9],
        "picture": video[:, :, -1],
    }
    for block in code_blocks(path, "python"):
        exec(compile(block, path.name, "exec"), namespace)


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_shell_commands_are_valid(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Options are parsed, configs load with overrides in an empty folder; make targets, examples and extras exist."""
    monkeypatch.chdir(tmp_path)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for block in code_blocks(path, "sh"):
        for program, *arguments in shell_commands(block):
            if program == "make":
                assert re.search(rf"^{arguments[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
                continue
            if program == "python":
                assert (ROOT / "examples" / arguments[0]).is_file()
                continue
            if program == "pip":
                assert arguments[0] == "install"
                assert set(re.findall(r"\w+", "".join(re.findall(r"\[(.*?)\]", " ".join(arguments))))) <= set(extras)
                continue
            with monkeypatch.context() as patch:
                patch.setattr(CLIS[program], "run_command", parse_arguments)
                args: Any = CLIS[program].main(arguments)
            configs = getattr(args, "config", [])
            if configs and not any(is_generated(config) for config in configs):
                with pytest.raises(SystemExit) as end:
                    CLIS[program].main([*arguments, "--print-config"])
                assert end.value.code == 0, capsys.readouterr().err


def test_paths_of_annotated_tree_exist() -> None:
    trees = [block for block in code_blocks(README, "text") if "vidtok_plugin/" in block.split()]
    assert trees, "README.md has no annotated tree: a plain ``` block with a line vidtok_plugin/"
    for path in tree_paths(trees[0]):
        found = is_generated(path) or any(ROOT.glob(path.rstrip("/")))
        assert found, f"README.md names {path}, which is not there"


def test_the_annotated_tree_has_every_room() -> None:
    (tree,) = [block for block in code_blocks(README, "text") if "vidtok_plugin/" in block.split()]
    rooms = {path.parent for top in ("vidtok_plugin", "world_model") for path in (ROOT / top).glob("*/__init__.py")}
    named = {path.rstrip("/") for path in tree_paths(tree)}
    assert {str(room.relative_to(ROOT)) for room in rooms} - named == set()


def test_tree_parser_reads_depth_and_several_names_a_line() -> None:
    tree = "a/            about a\n  b.py c.py   about b and c\n  d/\n    e.py\nf.py  the last\n"
    assert tree_paths(tree) == ["a/", "a/b.py", "a/c.py", "a/d/", "a/d/e.py", "f.py"]
    assert tree_paths("├── a/  x\n│   └── b.py  y\n└── c") == ["a/", "a/b.py", "c"]
