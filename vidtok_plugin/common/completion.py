"""Completion of a command line in the shell: a script that shtab writes."""

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

SHELLS = ("bash", "zsh", "fish", "powershell", "tcsh")
FILE_METAVARS = ("CONFIG", "CKPT", "FOLDER", "WORLD", "STORE")  # of arguments that are text, but may be paths


def completion(parser: argparse.ArgumentParser, shell: str, path_type: Callable[[str], Path]) -> str:
    """The script that completes the commands, options, choices and paths of a parser.

    path_type: the type of the arguments that are paths.
    """
    import shtab

    for action in _actions(parser):
        if action.type is path_type or action.metavar in FILE_METAVARS or action.dest == "model":
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    return shtab.complete(parser, shell)


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """The arguments of a parser and of its commands."""
    for action in parser._actions:
        yield action
        commands: Sequence[argparse.ArgumentParser] = ()
        if isinstance(action, argparse._SubParsersAction):
            commands = tuple(action.choices.values())
        for command in commands:
            yield from _actions(command)
