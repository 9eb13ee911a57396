"""The files that come with the package: configs and examples, found alike in a checkout and in an installed wheel."""

import ast
import json
import shutil
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Literal

from vidtok_plugin.common.errors import nearest
from vidtok_plugin.common.paths import user_path

Kind = Literal["configs", "examples"]
_PACKAGE = Path(__file__).resolve().parents[1]
_SUFFIXES: dict[Kind, tuple[str, ...]] = {"configs": (".yaml",), "examples": (".py", ".ipynb")}
_MAIN = 'if __name__ == "__main__":'  # an example has it, the files that examples share have not


def shipped_folder(kind: Kind) -> Path:
    """The folder of the shipped configs or examples.

    Raises:
        FileNotFoundError: the installation is incomplete.
    """
    # In a wheel inside of the package, in a checkout beside it.
    for folder in (_PACKAGE / kind, _PACKAGE.parent / kind):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"{_PACKAGE / kind} is missing from the installation; install vidtok-plugin again.")


def shipped_names(kind: Kind) -> list[str]:
    """The names of the shipped configs, such as `tokenizer/finetune`, or of the examples, such as `demo`.

    Example:
        >>> "tokenizer/finetune" in shipped_names("configs"), "demo" in shipped_names("examples")
        (True, True)
    """
    return sorted(
        _name(kind, path) for path in _files(kind) if path.suffix != ".py" or _MAIN in path.read_text(encoding="utf-8")
    )


def summary(kind: Kind, name: str) -> str:
    """What a shipped file is: the first sentence of its comment or docstring, or a notebook's title.

    Example:
        >>> summary("configs", "tokenizer/finetune")
        'Fine-tunes any VidTok preset, encoder and decoder, on your videos.'
    """
    (path,) = (path for path in _files(kind) if _name(kind, path) == name)
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        text = json.loads(text)["cells"][0]["source"][0].lstrip("# ").rstrip("\n")
    elif path.suffix == ".py":
        text = (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
    else:
        comment = takewhile(lambda line: line.startswith("#"), text.splitlines())
        text = " ".join(line.lstrip("# ") for line in comment)
    return f"{text.partition('. ')[0].rstrip('.:')}."


def config_path(given: str, folder: str) -> Path:
    """The path of a config that a user gave: a file, or the name of a shipped config.

    folder: the folder of the shipped configs that is searched first, such as `tokenizer`; the names of others need
        theirs (`boxing/world_model`). A file of the same name comes first.

    Raises:
        FileNotFoundError: it is neither.

    Example:
        >>> config_path("finetune", "tokenizer").name
        'finetune.yaml'
    """
    path = user_path(given)
    if path.is_file() or path.suffix in (".yaml", ".yml"):
        return path
    names = shipped_names("configs")
    for name in (f"{folder}/{given}", given):
        if name in names:
            return shipped_folder("configs") / f"{name}.yaml"
    known = [name.removeprefix(f"{folder}/") for name in names]
    raise FileNotFoundError(
        f"config {given} is neither a file nor a config of the package; the nearest of those is "
        f"{nearest(given, known)}; `vidtok-plugin configs` lists them."
    )


def check_names(kind: Kind, names: Sequence[str]) -> list[str]:
    """These names, or all if there are none. A ValueError if there is no shipped file of a name."""
    known = shipped_names(kind)
    for name in names:
        if name not in known:
            raise ValueError(
                f"{kind}: {name} must be one of the package's {kind}; the nearest is {nearest(name, known)}."
            )
    return list(names) or known


def copy_shipped(kind: Kind, folder: Path, names: Sequence[str] = ()) -> list[Path]:
    """Copies shipped configs, with their subfolders, or examples into a folder; returns the files written.

    names: those to copy, all by default. With examples, the files that they share are copied as well.

    Raises:
        ValueError: a name is unknown.
        FileExistsError: a file is there already; nothing is written.
    """
    chosen = check_names(kind, names)
    known = shipped_names(kind)
    source = shipped_folder(kind)
    files = {}
    for path in _files(kind):
        part = path.relative_to(source)
        name = part.with_suffix("").as_posix()
        if name in chosen or name not in known:
            files[part] = path
    for part in files:
        if (folder / part).exists():
            raise FileExistsError(f"{kind}: {folder / part} is there already; choose another folder or remove it.")
    for part, path in files.items():
        (folder / part).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / part)
    return [folder / part for part in files]


def _files(kind: Kind) -> list[Path]:
    folder = shipped_folder(kind)
    return sorted(path for path in folder.rglob("*") if path.suffix in _SUFFIXES[kind])


def _name(kind: Kind, path: Path) -> str:
    return path.relative_to(shipped_folder(kind)).with_suffix("").as_posix()
