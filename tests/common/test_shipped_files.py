"""Configs and examples of the package: found by name, listed, copied; a user's file of the same name comes first."""

from pathlib import Path

import pytest
from places import ROOT

from vidtok_plugin import cli
from vidtok_plugin.common import shipped_files
from vidtok_plugin.common.shipped_files import config_path, copy_shipped, shipped_folder, shipped_names
from world_model import cli as world_model_cli

CONFIGS = ROOT / "configs"


def test_a_name_is_searched_in_the_folder_of_the_command_first() -> None:
    assert config_path("demo", "tokenizer") == CONFIGS / "tokenizer" / "demo.yaml"
    assert config_path("demo", "world_model") == CONFIGS / "world_model" / "demo.yaml"
    assert config_path("boxing/world_model", "tokenizer") == CONFIGS / "boxing" / "world_model.yaml"
    assert config_path("finetune_example", "tokenizer") == CONFIGS / "finetune_example.yaml"


def test_a_file_comes_before_a_shipped_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "finetune").mkdir()
    assert config_path("finetune", "tokenizer") == CONFIGS / "tokenizer" / "finetune.yaml"  # a folder is no config
    (tmp_path / "finetune").rmdir()
    (tmp_path / "finetune").write_text("seed: 1\n")
    assert config_path("finetune", "tokenizer") == Path("finetune")


def test_a_missing_file_is_not_replaced_by_a_shipped_config_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["fit", "--config", "finetune.yaml", "--print-config"]) == 2
    assert "config file finetune.yaml does not exist" in capsys.readouterr().err


def test_an_unknown_name_is_an_error_that_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert world_model_cli.main(["fit", "--config", "maskd", "--print-config"]) == 2
    error = capsys.readouterr().err
    assert "maskd is neither a file nor a config of the package" in error and "nearest of those is masked;" in error


def test_commands_take_names_in_an_empty_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        cli.main(
            ["fit", "--config", "finetune", "--config", "finetune_decoder", "preset=vidtok_tiny", "--print-config"]
        )
    assert end.value.code == 0
    printed = capsys.readouterr().out
    assert "trained: decoder" in printed and "output: runs/vidtok_tiny_decoder" in printed


@pytest.mark.parametrize("kind", ["configs", "examples"])
def test_all_are_listed_with_a_sentence(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([kind]) == 0
    listed = capsys.readouterr().out
    for name in shipped_names(kind):  # type: ignore[arg-type]
        (line,) = [line for line in listed.splitlines() if f"│ {name} " in line]
        assert len(line.split("│")[2].split()) > 3, f"{name} has no description"


def test_configs_are_copied_with_their_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["configs", "--copy", str(tmp_path / "mine")]) == 0
    names = {path.relative_to(CONFIGS) for path in CONFIGS.rglob("*.yaml")}
    assert {path.relative_to(tmp_path / "mine") for path in (tmp_path / "mine").rglob("*.yaml")} == names
    assert all((tmp_path / "mine" / name).read_bytes() == (CONFIGS / name).read_bytes() for name in names)
    assert len(capsys.readouterr().out.splitlines()) == len(names)


def test_copies_replace_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "finetune.yaml").write_text("seed: 1\n")
    assert cli.main(["configs", "--copy", str(tmp_path)]) == 2
    assert "finetune.yaml is there already" in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*.yaml")] == ["finetune.yaml"]
    assert (tmp_path / "tokenizer" / "finetune.yaml").read_text() == "seed: 1\n"


def test_an_example_is_copied_with_what_it_imports(tmp_path: Path) -> None:
    written = {path.name for path in copy_shipped("examples", tmp_path, ["rollout"])}
    assert {"rollout.py", "shared.py", "stages.py"} <= written and "demo.py" not in written
    with pytest.raises(ValueError, match="rolout must be one of the package's examples; the nearest is rollout"):
        copy_shipped("examples", tmp_path, ["rolout"])


def test_a_notebook_is_an_example(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["examples", "your_data"]) == 0
    assert "Your own data: from arrays with continuous actions" in capsys.readouterr().out
    assert tmp_path / "your_data.ipynb" in copy_shipped("examples", tmp_path, ["your_data"])


def test_an_installed_package_has_them_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another package's folder `configs` may lie beside ours in site-packages."""
    package = tmp_path / "site-packages" / "vidtok_plugin"
    for folder in (package / "configs", package.parent / "configs"):
        folder.mkdir(parents=True)
    monkeypatch.setattr(shipped_files, "_PACKAGE", package)
    assert shipped_folder("configs") == package / "configs"
    with pytest.raises(FileNotFoundError, match="examples is missing from the installation"):
        shipped_folder("examples")
