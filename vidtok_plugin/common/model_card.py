"""Model cards: the README.md beside saved weights, with the metadata by which the Hugging Face hub finds a model."""

import hashlib
import logging
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vidtok_plugin.common.atomic_files import atomic_write
from vidtok_plugin.common.field_checks import check_fields
from vidtok_plugin.common.paths import local_output, user_path

logger = logging.getLogger(__name__)

LIBRARY = "vidtok-plugin"
CARD_FILE = "README.md"
PICTURE_SUFFIXES = (".png", ".gif", ".jpg", ".jpeg", ".webp", ".svg")
PLACE = '"path/to/this/folder"'  # what a card loads; pushing replaces it by the name of the repository
_SIGNATURE = re.compile(r"<!-- Written by vidtok-plugin; saving replaces it unless it was edited: (\w{64}) -->\n?\Z")


@dataclass(frozen=True, kw_only=True)
class CardInfo:
    """What a model card says beyond the architecture, which is read from the model. All of it may be left out.

    Raises:
        ValueError: a picture that browsers do not show.

    Example:
        >>> info = CardInfo(license="mit", data="90,000 frames of Boxing", measures={"PSNR, dB": 36.5})
    """

    title: str | None = None
    summary: str | None = None  # a paragraph of Markdown below the title
    data: str | None = None  # in Markdown: what it was trained on
    datasets: tuple[str, ...] = ()  # their names on the hub
    measures: Mapping[str, float | str] = field(default_factory=dict)  # by name, with the unit in the name
    measured: str | None = None  # a sentence: on what, and how
    license: str | None = None  # of the weights, as the hub abbreviates it: mit, apache-2.0, cc-by-4.0, ...
    picture: str | Path | None = None  # an image file, which is copied beside the card
    caption: str = "what it makes"  # of the picture
    tags: tuple[str, ...] = ()  # beside those of the architecture

    def __post_init__(self) -> None:
        check_fields(self)
        if self.picture is not None and Path(self.picture).suffix.lower() not in PICTURE_SUFFIXES:
            raise ValueError(
                f"CardInfo: picture must be an image ({', '.join(PICTURE_SUFFIXES)}), got {self.picture}; convert it."
            )


Cards = CardInfo | Literal[False] | None  # of `save_pretrained`: False writes no card, None says nothing more


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What is known of a model from its weights and config."""

    title: str
    summary: str
    tags: tuple[str, ...]
    architecture: Sequence[tuple[str, str]]  # names and values
    load: str  # Python that loads it from `PLACE`


def card_text(facts: ModelFacts, info: CardInfo | None = None, *, picture: str | None = None) -> str:
    """A model card in Markdown, signed, so that `is_unedited` knows it again.

    picture: the name of the image beside it.
    """
    from huggingface_hub import ModelCard, ModelCardData

    info = info or CardInfo()
    metadata = ModelCardData(
        library_name=LIBRARY,
        license=info.license,
        datasets=list(info.datasets) or None,
        tags=[*facts.tags, *info.tags],
    )
    parts = [f"# {info.title or facts.title}", info.summary or facts.summary]
    if picture is not None:
        parts.append(f"![{info.caption}]({picture})")
    parts += ["## Architecture", _table(("", ""), facts.architecture)]
    parts += ["## Training data", info.data or "Not stated by whoever saved this model."]
    parts.append("## Measures")
    if info.measures:
        parts += [info.measured] if info.measured else []
        parts.append(_table(("measure", "value"), [(name, _number(value)) for name, value in info.measures.items()]))
    else:
        parts.append("None were stated by whoever saved this model.")
    parts += ["## License", info.license or "Not stated by whoever saved this model: ask before you use it."]
    loading = f"With the package `{LIBRARY}`; only safetensors and plain values are read, and no code is run:"
    parts += ["## How to load it", loading, f"```python\n{facts.load}\n```"]
    body = "\n\n".join(part.strip() for part in parts)
    return signed(str(ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n{body}\n")))


def signed(text: str) -> str:
    """A card with a last line by which it is known to be unedited."""
    text = _SIGNATURE.sub("", text.replace("\r\n", "\n")).rstrip("\n") + "\n\n"
    return f"{text}<!-- Written by vidtok-plugin; saving replaces it unless it was edited: {_digest(text)} -->\n"


def is_unedited(text: str) -> bool:
    """Whether a card is as this package wrote it.

    Example:
        >>> is_unedited(signed("# A")), is_unedited(signed("# A").replace("A", "B")), is_unedited("# A")
        (True, False, False)
    """
    text = text.replace("\r\n", "\n")
    found = _SIGNATURE.search(text)
    return found is not None and found[1] == _digest(text[: found.start()])


def load_from(text: str, arguments: str) -> str:
    """A card that loads the model from a repository; `arguments` are those of the loading function, in Python.

    An edited card stays as it is.
    """
    return signed(text.replace(PLACE, arguments)) if is_unedited(text) else text


@contextmanager
def writing_card(folder: Path, facts: ModelFacts, info: Cards) -> Iterator[None]:
    """Writes a card and its picture into `folder`, and puts them in place at the end; an edited card is kept.

    Raises:
        FileNotFoundError: there is no such picture.
    """
    if info is False:
        yield
        return
    path = local_output(folder) / CARD_FILE
    if path.is_file() and not is_unedited(path.read_text(encoding="utf-8", errors="replace")):
        logger.info("%s was edited, and is kept; remove it to have it written anew.", path)
        yield
        return
    source = None if info is None or info.picture is None else user_path(info.picture)
    if source is None:
        with _file(path, card_text(facts, info)):
            yield
        return
    if not source.is_file():
        raise FileNotFoundError(f"CardInfo: there is no picture {source}; check the path, or leave it out.")
    picture = folder / f"card{source.suffix.lower()}"
    with _file(path, card_text(facts, info, picture=picture.name)), atomic_write(picture) as partial:
        shutil.copyfile(source, partial)
        yield


def write_card(folder: Path, facts: ModelFacts, info: CardInfo | None = None) -> None:
    """Writes the card of a model that is saved already; see `writing_card`."""
    with writing_card(folder, facts, info):
        pass


@contextmanager
def _file(path: Path, text: str) -> Iterator[None]:
    with atomic_write(path) as partial:
        partial.write_bytes(text.encode())  # the same bytes on every system
        yield


def _table(head: tuple[str, str], rows: Sequence[tuple[str, str]]) -> str:
    cells = [tuple(cell.replace("|", "\\|").replace("\n", " ") for cell in row) for row in rows]
    return "\n".join(f"| {name} | {value} |" for name, value in (head, ("---", "---"), *cells))


def _number(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
