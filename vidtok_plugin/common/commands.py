"""The basis of both command lines: common arguments, logging, and errors as one sentence."""

import argparse
import errno
import json
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from rich.console import Console
from rich.logging import RichHandler

from vidtok_plugin.common.completion import SHELLS, completion
from vidtok_plugin.common.extras import MissingExtraError
from vidtok_plugin.common.paths import user_path
from vidtok_plugin.common.shipped_files import config_path
from vidtok_plugin.common.signals import Terminated, ending_by_signals

if TYPE_CHECKING:
    from rich.table import Table

    from vidtok_plugin.common.hub_push import PushOptions

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

T = TypeVar("T")
_REMEDIES = (
    ((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "; make room there, and run the same command again"),
    ((errno.EROFS, errno.EACCES, errno.EPERM), "; choose a place where you may write, or change its permissions"),
)
WORKER_TRACEBACK = "Original Traceback (most recent call last):"
Command = Callable[[argparse.Namespace], None]


EXIT_CODES = """exit codes:
  0    it is done
  1    a bug of this package: please report it, with the traceback
  2    something that you can mend, which the error says
  130  Ctrl-C
  141  what read the output has left, such as | head
  143  SIGTERM; a training saves a checkpoint at it, and ends with 0"""


def command_line(program: str, description: str, *examples: str) -> tuple[argparse.ArgumentParser, "Commands"]:
    """The parser of a program, and that of its commands, for `add_command`."""
    parser = argparse.ArgumentParser(
        prog=program,
        description=description,
        epilog=f"{_epilog(examples)}\n\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_PrintVersion, nargs=0, help="print the version and exit")
    parser.add_argument(
        "--print-completion",
        action=_PrintCompletion,
        choices=SHELLS,
        metavar="SHELL",
        help=f"print a script that completes commands and options in a shell, and exit: {', '.join(SHELLS)}",
    )
    return parser, parser.add_subparsers(metavar="COMMAND")


def add_command(
    subparsers: "Commands", name: str, run: Command, help: str, *examples: str, table: bool = False
) -> argparse.ArgumentParser:
    """Adds the subcommand `name`, which calls `run(args)`; every command accepts --quiet and --traceback.

    examples: command lines, for its help.
    table: it prints one, so it accepts --json, for which `print_json` serves.
    """
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name,
        help=help,
        description=help,
        epilog=_epilog(examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if table:
        parser.add_argument("--json", action="store_true", help="print JSON in place of the table")
    set_command(parser, run)
    return parser


def set_command(parser: argparse.ArgumentParser, run: Command) -> None:
    """Makes `parser` call `run(args)`, and accept --quiet and --traceback."""
    parser.add_argument(
        "--quiet", action="store_true", help="print only warnings, errors and tables, and no progress bars"
    )
    parser.add_argument("--traceback", action="store_true", help="print the traceback of an error")
    parser.set_defaults(run=run)


def _epilog(examples: Sequence[str]) -> str | None:
    return "\n  ".join(["example:" if len(examples) == 1 else "examples:", *examples]) if examples else None


class _PrintVersion(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        import vidtok_plugin

        print(f"{parser.prog} {vidtok_plugin.__version__}")
        parser.exit()


class _PrintCompletion(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, shell: Any, *_: Any) -> None:
        print(completion(parser, shell, path_argument))
        parser.exit()


def say(args: argparse.Namespace, text: str) -> None:
    """Prints what a command has done, unless it is to be quiet."""
    if not args.quiet:
        _print(text)


def print_table(table: "Table", *, width: int) -> None:
    """Prints a table, without a terminal at a width at which nothing is cut."""
    _Console(width=None if sys.stdout.isatty() else width).print(table)


def print_json(value: Any) -> None:
    """Prints what a table shows, as JSON (RFC 8259)."""
    _print(json.dumps(value, indent=2, allow_nan=False))


def _print(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:
        _reader_has_left()


class _Console(Console):
    def on_broken_pipe(self) -> None:
        _reader_has_left()


def _reader_has_left() -> NoReturn:
    """Ends a command without a word when what reads its output has had enough, such as `| head`."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes it at its end
    raise SystemExit(141)  # as of a program that SIGPIPE ends


def add_config_arguments(parser: argparse.ArgumentParser, folder: str) -> None:
    """Adds --config (repeatable), --print-config and `key=value` overrides; see `config_from`.

    folder: of the shipped configs, in which names are searched first.
    """
    parser.add_argument(
        "--config",
        action="append",
        default=[],
        required=True,
        metavar="CONFIG",
        help="a YAML file, or a config of the package (`vidtok-plugin configs`); several merge from left to right",
    )
    parser.set_defaults(config_folder=folder)
    parser.add_argument("--print-config", action="store_true", help="print the merged config and exit")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="override a key, for example seed=1"
    )


def add_full_color(command: argparse.ArgumentParser) -> None:
    """Adds --full-color to a command that writes a video for people; see `VideoWriter`."""
    command.add_argument(
        "--full-color",
        action="store_true",
        help="write colors at full resolution (yuv444p), to measure or learn from; many players refuse that",
    )


def add_push_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the repository and the options of a command that pushes to the hub; see `push_options`."""
    parser.add_argument("repository", metavar="USER/NAME", help="on the Hugging Face hub; created if there is none")
    parser.add_argument("--private", action="store_true", help="create it private")
    parser.add_argument("--revision", metavar="BRANCH", help="created if there is none (default: main)")
    parser.add_argument("--subfolder", metavar="FOLDER", help="of the repository (default: none)")
    parser.add_argument("--overwrite", action="store_true", help="replace another model that is there")
    parser.add_argument("--message", metavar="TEXT", help="of the commit")
    parser.add_argument("--pull-request", action="store_true", help="open a pull request in place of a commit")


def push_options(args: argparse.Namespace) -> "PushOptions":
    """The options of a push that the arguments give; the token is that of `hf auth login` or HF_TOKEN."""
    from vidtok_plugin.common.hub_push import PushOptions

    return PushOptions(
        private=args.private or None,
        revision=args.revision,
        subfolder=args.subfolder,
        overwrite=args.overwrite,
        commit_message=args.message,
        create_pr=args.pull_request,
    )


def path_argument(text: str) -> Path:
    """The type of arguments that are paths; see `user_path`."""
    try:
        return user_path(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def config_from(args: argparse.Namespace, schema: type[T]) -> T:
    """The config given by the arguments; --print-config prints it and exits."""
    from vidtok_plugin.common.config import load_config, to_yaml

    paths = [config_path(config, args.config_folder) for config in args.config]
    cfg = load_config(schema, paths, args.overrides)
    if args.print_config:
        print(to_yaml(cfg), end="")
        raise SystemExit(0)
    return cfg


def run_command(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> int:
    """Parses the arguments and runs the command; returns the exit code, 2 for a user's mistake.

    Ctrl-C and SIGTERM end it by its cleanup, with code 130 or 143; a second one ends it at once.
    """
    if (
        sys.platform == "darwin"
    ):  # what Apple's GPUs cannot do the CPU does, with a warning; read when PyTorch is imported
        os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
    args = parse_arguments(parser, argv)
    if not hasattr(args, "run"):
        parser.print_help(sys.stderr)
        return 2
    set_up_logging(logging.WARNING if args.quiet else logging.INFO)
    if args.quiet or not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # before the hub's client is imported
    try:
        with ending_by_signals():
            args.run(args)
    except _user_errors() as error:
        if args.traceback:
            Console(stderr=True).print_exception()
        print(f"error: {sentence(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Terminated:
        print("terminated", file=sys.stderr)
        return 143
    return 0


def parse_arguments(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses arguments; unlike in plain argparse, `key=value` overrides may stand anywhere among the options."""
    args, rest = parser.parse_known_args(argv)
    unknown = [argument for argument in rest if argument.startswith("-") or not hasattr(args, "overrides")]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if rest:
        args.overrides = [*args.overrides, *rest]
    return args


def set_up_logging(level: int = logging.INFO) -> None:
    """Logs to stderr through rich, including Lightning's messages, without the noise listed here."""
    handler = RichHandler(console=Console(stderr=True), show_path=False, show_level=False)
    handler.setLevel(level)  # Lightning sets the level of its loggers when it is imported
    handler.addFilter(_is_relevant)
    handler.setFormatter(logging.Formatter("%(message)s"))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    for name in ("vidtok_plugin", "world_model", "lightning"):
        logging.getLogger(name).setLevel(level)
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).handlers = []
        logging.getLogger(name).propagate = True
    logging.captureWarnings(True)
    # Lightning 2.6 under torch 2.13 calls a deprecated function of torch in each step.
    warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated")
    # A frozen encoder is in eval mode on purpose.
    warnings.filterwarnings("ignore", r"Found \d+ module\(s\) in eval mode at the start of training")


def _is_relevant(record: logging.LogRecord) -> bool:
    """False for Lightning's advertisement, its messages about missing hardware, and what we say of Ctrl-C ourselves."""
    noise = ("LitLogger", "TPU available: False", "HPU available: False", "Detected KeyboardInterrupt")
    return not any(text in record.getMessage() for text in noise)


def _user_errors() -> tuple[type[BaseException], ...]:
    """What users can mend; Lightning's MisconfigurationException is one of these if Lightning was imported."""
    lightning = sys.modules.get("lightning.fabric.utilities.exceptions")
    return (ValueError, OSError, MissingExtraError, *([lightning.MisconfigurationException] if lightning else []))


def sentence(error: BaseException) -> str:
    """The message of an error as one line."""
    if isinstance(error, FileExistsError | NotADirectoryError) and error.filename and not os.path.isdir(error.filename):
        return f"{error.filename}: a file is in the place of a folder on this path; choose another path."
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
        return f"{text}{next((remedy for numbers, remedy in _REMEDIES if error.errno in numbers), '')}."
    text = str(error)
    if WORKER_TRACEBACK in text:  # PyTorch re-raises the error of a loader's worker with its traceback
        text = re.split(r"^[\w.]*Error: ", text.partition(WORKER_TRACEBACK)[2], flags=re.MULTILINE)[-1]
    return " ".join(text.split()) or type(error).__name__
