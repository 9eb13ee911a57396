"""Packages import their public names when they are first used, and tell type checkers of the same names."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from textwrap import dedent

import pytest

from vidtok_plugin.training.workers import PRELOADED

PACKAGES = ("vidtok_plugin", "vidtok_plugin.video", "vidtok_plugin.training", "world_model")


@pytest.mark.parametrize("name", PACKAGES)
def test_type_checkers_see_the_names_that_can_be_imported(name: str) -> None:
    package = import_module(name)
    assert package.__file__ is not None
    body = ast.parse(Path(package.__file__).read_text()).body
    shown = next(node for node in body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    imports = [node for node in shown.body if isinstance(node, ast.ImportFrom)]
    assert package.__all__ == sorted(alias.name for node in imports for alias in node.names)
    for node in imports:
        for alias in node.names:
            assert getattr(package, alias.name) is getattr(import_module(str(node.module)), alias.name)
    assert set(package.__all__) <= set(dir(package))


@pytest.mark.parametrize("command", ["vidtok_plugin", "world_model"])
def test_help_imports_nothing_heavy(command: str) -> None:
    code = (
        f"import sys; from {command}.cli import build_parser; build_parser().format_help(); "
        "print(*{'torch', 'lightning', 'numpy', 'av', 'gymnasium'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "\n"


def test_names_whose_package_is_missing_are_left_out_and_name_the_extra() -> None:
    code = """
        import sys
        sys.modules["lightning"] = sys.modules["gymnasium"] = None
        import vidtok_plugin.video, world_model
        from vidtok_plugin.cli import main
        print(*{"WorldModelModule", "ImaginedEnv", "load_world"} & set(world_model.__all__))
        print(*{"VideoDataModule", "probe"} & set(vidtok_plugin.video.__all__))
        sys.exit(main(["fit", "--config", "finetune"]))
    """
    ended = subprocess.run([sys.executable, "-c", dedent(code)], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (2, "load_world\nprobe\n")
    assert "error: training needs lightning, which is not installed; run: pip install 'vidtok-plugin[train]'" in (
        ended.stderr
    )


def test_workers_find_everything_heavy_imported() -> None:
    """Their packages import nothing by themselves."""
    code = (
        f"import sys, importlib; importlib.import_module({PRELOADED!r}); print("
        "{'torch', 'lightning', 'torchdata.stateful_dataloader', 'av', 'vidtok_plugin.video.clips'} - set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "set()\n"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="rollouts"):
        import_module("world_model").rollouts  # noqa: B018


def test_a_name_wins_over_the_subpackage_of_the_same_name(monkeypatch: pytest.MonkeyPatch) -> None:
    package, subpackage = import_module("world_model"), import_module("world_model.rollout")
    package.rollout = subpackage  # as Python does after the first import of the subpackage
    assert package.rollout is import_module("world_model.rollout.rollout").rollout
    monkeypatch.setattr(package, "rollout", len)
    assert package.rollout is len
    monkeypatch.undo()
    assert package.rollout is import_module("world_model.rollout.rollout").rollout
