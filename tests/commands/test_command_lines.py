"""What both command lines have: a version, examples, completion, JSON in place of tables, and few words if asked."""

import argparse
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator

import pytest
from docs_blocks import CLIS

import vidtok_plugin
from vidtok_plugin import presets
from vidtok_plugin.common.commands import parse_arguments, path_argument
from vidtok_plugin.common.completion import SHELLS, completion
from vidtok_plugin.common.shipped_files import config_path, shipped_names


def commands(program: str) -> dict[str, argparse.ArgumentParser]:
    (choices,) = (
        action.choices
        for action in CLIS[program].build_parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    return dict(choices)


def examples(parser: argparse.ArgumentParser) -> Iterator[list[str]]:
    for line in (parser.epilog or "").splitlines():
        words = shlex.split(line.partition(" > ")[0])
        if words and words[0] in CLIS:
            yield words


@pytest.mark.parametrize("program", CLIS)
def test_the_version_is_that_of_the_package(program: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        CLIS[program].main(["--version"])
    assert end.value.code in (0, None)
    assert capsys.readouterr().out == f"{program} {vidtok_plugin.__version__}\n"


@pytest.mark.parametrize("program", CLIS)
def test_each_help_has_examples_that_are_valid(program: str) -> None:
    for name, parser in commands(program).items():
        shown = list(examples(parser))
        assert shown, f"{program} {name}"
        for words in shown:
            assert words[:2] == [program, name]
            args = parse_arguments(CLIS[words[0]].build_parser(), words[1:])
            for config in getattr(args, "config", []):
                assert config.startswith("runs/") or config_path(config, args.config_folder).is_file()


@pytest.mark.parametrize("program", CLIS)
def test_the_help_documents_the_exit_codes(program: str) -> None:
    text = CLIS[program].build_parser().format_help()
    assert re.findall(r"^  (\d+) ", text, re.MULTILINE) == ["0", "1", "2", "130", "141", "143"]


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("vidtok-plugin tok", "tokenize"),
        ("vidtok-plugin tokenize --eng", "--engine"),
        ("vidtok-plugin tokenize --engine r", "ray"),
    ],
)
def test_bash_completes_commands_options_and_choices(typed: str, completed: str) -> None:
    script = completion(CLIS["vidtok-plugin"].build_parser(), "bash", path_argument)
    function = re.findall(r"complete .*-F (\w+) vidtok-plugin", script)[0]
    words = typed.split()
    script += f"\nCOMP_WORDS=({typed}); COMP_CWORD={len(words) - 1}; {function}; echo ${{COMPREPLY[@]}}"
    assert subprocess.check_output(["bash", "-c", script], text=True).split() == [completed]


@pytest.mark.parametrize("shell", SHELLS)
def test_a_script_for_each_shell_names_the_commands(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        CLIS["world-model"].main(["--print-completion", shell])
    assert end.value.code in (0, None)
    script = capsys.readouterr().out
    assert all(name in script for name in commands("world-model"))


def printed_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> object:
    assert CLIS["vidtok-plugin"].main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_presets_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    found = printed_json(capsys, "presets")
    assert isinstance(found, list) and [preset["name"] for preset in found] == list(presets())
    preset = next(preset for preset in found if preset["name"] == "vidtok_fsq_causal_488_32768")
    assert preset["codebook_size"] == 32768 and preset["latents"] == [5, 5, 32, 32]
    assert preset["published"] == {"psnr": 29.16, "ssim": 0.854, "lpips": 0.117, "fvd": 196.9}


def test_configs_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    found = printed_json(capsys, "configs")
    assert isinstance(found, dict) and list(found) == shipped_names("configs")
    assert found["tokenizer/finetune"] == "Fine-tunes any VidTok preset, encoder and decoder, on your videos."


@pytest.mark.slow
@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_reader_that_leaves_ends_the_command_without_a_word(form: list[str]) -> None:
    code = "import sys; from vidtok_plugin.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "configs", *form]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.wait(60) == 141
        assert process.stderr.read() == ""


def test_every_command_that_prints_a_table_takes_json() -> None:
    taking = {
        f"{program} {name}"
        for program in CLIS
        for name, parser in commands(program).items()
        if "--json" in parser._option_string_actions
    }
    assert taking == {
        *("vidtok-plugin presets", "vidtok-plugin configs", "vidtok-plugin examples", "vidtok-plugin evaluate"),
        *("vidtok-plugin validate", "world-model validate"),
    }
