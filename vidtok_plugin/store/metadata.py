"""store.json: the facts that all tokens of a store share."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from vidtok_plugin.common.json_files import read_json_object
from vidtok_plugin.common.paths import as_path
from vidtok_plugin.video.action_space import kind_and_size
from vidtok_plugin.video.episode_meta import MAX_ACTIONS, MAX_FPS
from vidtok_plugin.video.preparation import Preparation

FORMAT = 2
METADATA_FILE = "store.json"
_OF_THE_ADAPTER = ("adapter_hash", "tokenizer", "preset")  # may change while the tokens stay the same
_LEFT_OUT = ("preparation",)  # where they are None, so that stores from before they existed are the same
_SIZE_HINT = "; --size H W (size=) brings all videos to one size"
_HINTS = {  # to remedies, by the fact that differs
    "preparation": ", or give the same size, fit, fps and group_actions",
    "height": _SIZE_HINT,
    "width": _SIZE_HINT,
    "fps": "; --fps R (fps=) brings all videos to one rate",
}
_CHECKSUM = "checksum"  # of the other keys of store.json
_MAX_CODEBOOK = 2**31  # codes are int32
_MAX_SIZE = 2**16  # of a grid's side, a patch, an action's components, a temporal factor
_REMEDY = (
    "restore it, or remove it and run `vidtok-plugin tokenize` again with the same model and videos, which keeps the "
    "tokens"
)


@dataclass(frozen=True, kw_only=True)
class StoreMetadata:
    """The facts that all tokens of a store share."""

    adapter_hash: str
    token_hash: str  # of what determines the tokens; training the decoder leaves it unchanged
    tokenizer: Mapping[str, Any]  # its architecture, for information
    preset: str | None = None  # the preset with that architecture, if there is one
    kind: Literal["discrete", "continuous"] = "discrete"
    preparation: Mapping[str, Any] | None = None  # of the frames: Preparation.facts(); None: as they were recorded
    codebook_size: int | None = None  # discrete tokens only
    fsq_levels: tuple[int, ...] | None = None
    patch_dim: int | None = None  # continuous tokens only
    height: int  # rows of the grid
    width: int  # columns of the grid
    temporal_factor: int  # frames in a step
    fps: float
    action_space: Mapping[str, Any] = field(default_factory=dict)  # kind, size, meanings, space; empty without actions
    clip_frames: int | None = None  # frames of a clip that was encoded on its own; None for whole videos
    format: int = FORMAT

    def __post_init__(self) -> None:
        sizes = {"discrete": self.codebook_size, "continuous": self.patch_dim}
        given = [kind for kind, size in sizes.items() if size is not None]
        if not isinstance(self.kind, str) or given != [self.kind]:
            raise ValueError(
                "StoreMetadata: kind must be discrete with a codebook_size or continuous with a patch_dim, got "
                f"{self.kind!r} with codebook_size={self.codebook_size} and patch_dim={self.patch_dim}."
            )
        for name, largest in (
            ("height", _MAX_SIZE),
            ("width", _MAX_SIZE),
            ("temporal_factor", _MAX_SIZE),
            ("codebook_size", _MAX_CODEBOOK),
            ("patch_dim", _MAX_SIZE),
            ("clip_frames", None),
        ):
            value = getattr(self, name)
            if value is not None or name in ("height", "width", "temporal_factor"):
                _check_integer(name, value, largest)
        if type(self.fps) not in (int, float) or not 0 < self.fps <= MAX_FPS:
            raise ValueError(f"StoreMetadata: fps must be a number above 0, at most {MAX_FPS}, got {self.fps!r}.")
        for name in ("adapter_hash", "token_hash"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"StoreMetadata: {name} must be a string, got {getattr(self, name)!r}.")
        if self.fsq_levels is not None:
            for level in self.fsq_levels:
                _check_integer("fsq_levels", level, _MAX_CODEBOOK)
            if math.prod(self.fsq_levels) != self.codebook_size:
                raise ValueError(
                    f"StoreMetadata: codebook_size must be the product of fsq_levels {self.fsq_levels}, got "
                    f"{self.codebook_size}."
                )
        self._check_action_space()
        if self.preparation is not None and (
            not isinstance(self.preparation, Mapping)
            or not self.preparation
            or Preparation.from_facts(self.preparation).facts() != self.preparation
        ):
            raise ValueError(
                f"StoreMetadata: preparation must be the settings in effect, or None, got {self.preparation!r}."
            )

    def _check_action_space(self) -> None:
        space = self.action_space
        if not isinstance(space, Mapping) or (space and space.get("kind") not in ("discrete", "continuous", "mixed")):
            raise ValueError(
                "StoreMetadata: action_space must be empty, or have the kind discrete, continuous or mixed and a size, "
                f"got {space!r}."
            )
        if space:
            largest = MAX_ACTIONS if space["kind"] == "discrete" else _MAX_SIZE
            _check_integer("action_space.size", space.get("size"), largest)
            described = space.get("space")
            if described is None and space["kind"] == "mixed":
                raise ValueError("StoreMetadata: action_space must have a space if its kind is mixed, got none.")
            if described is not None and kind_and_size(described) != (space["kind"], space["size"]):
                raise ValueError(
                    f"StoreMetadata: action_space must have the kind and size of its space, {kind_and_size(described)},"
                    f" got {space['kind']} and {space['size']}."
                )

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "StoreMetadata":
        """The metadata in the values of store.json.

        Raises:
            ValueError: a key is unknown, missing or invalid, or the checksum is another one; stores that were written
                before have none.
        """
        facts = {name: value for name, value in values.items() if name != _CHECKSUM}
        known = [field.name for field in fields(cls)]
        if wrong := sorted((facts.keys() ^ set(known)) - set(_LEFT_OUT)):
            raise ValueError(f"StoreMetadata: its keys must be {', '.join(known)}; {wrong[0]} is unknown or missing.")
        if _CHECKSUM in values and values[_CHECKSUM] != _checksum(facts):
            raise ValueError(f"StoreMetadata: its values must be those of its {_CHECKSUM}; they were changed.")
        levels = facts["fsq_levels"]
        if not isinstance(levels, list | None):
            raise ValueError(f"StoreMetadata: fsq_levels must be a list, got {levels!r}.")
        return cls(**{**facts, "fsq_levels": None if levels is None else tuple(levels)})

    def to_json(self) -> str:
        """The text of store.json."""
        facts = json.loads(json.dumps(self._facts()))  # lists in place of tuples
        return json.dumps({**facts, _CHECKSUM: _checksum(facts)}, indent=2) + "\n"

    @property
    def token_key(self) -> Literal["codes", "patches"]:
        """The name of the tokens in shards and windows."""
        return "codes" if self.kind == "discrete" else "patches"

    @property
    def tokens_folder(self) -> str:
        """The name of the folder of these tokens in a store."""
        facts = {name: value for name, value in self._facts().items() if name not in _OF_THE_ADAPTER}
        return f"tokens_{hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]}"

    def _facts(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value is not None or name not in _LEFT_OUT}

    @property
    def adapter_folder(self) -> str:
        """The name of the adapter's folder in a store."""
        return f"adapter_{self.adapter_hash[:16]}"

    def check_same(self, other: "StoreMetadata", whose: str, remedy: str = "write another store") -> None:
        """Raise a ValueError that names the first fact about the tokens that differs in `other`."""
        ours, theirs = asdict(self), asdict(other)
        for name, value in ours.items():
            if name not in _OF_THE_ADAPTER and value != theirs[name]:
                raise ValueError(
                    f"TokenStore: {name} must be the same throughout a store, {value}, got {theirs[name]} of "
                    f"{whose}; {remedy}{_HINTS.get(name, '')}."
                )


def read_metadata(folder: str | Path) -> StoreMetadata:
    """The metadata of a store.

    Raises:
        FileNotFoundError: there is no store in this folder.
        ValueError: it is damaged, or another version of this package wrote it, in another format.
    """
    path = as_path(folder) / METADATA_FILE
    if not path.exists():
        what = "is a file, not a folder" if path.parent.is_file() else "does not exist"
        if path.parent.is_dir():
            what = f"is not a token store: it has no {METADATA_FILE}"
        raise FileNotFoundError(f"TokenStore: {folder} {what}; write a store with `vidtok-plugin tokenize`.")
    values = read_json_object(path, _REMEDY)
    if values.get("format") != FORMAT:
        raise ValueError(
            f"TokenStore: the format of {folder} must be {FORMAT}, got {values.get('format')}: another version of this "
            "package wrote it; tokenize the videos into another folder, or remove this one first."
        )
    try:
        return StoreMetadata.from_json(values)
    except ValueError as error:
        raise ValueError(f"TokenStore: {path} is damaged ({str(error).rstrip('.')}); {_REMEDY}.") from None


def adapter_folder(folder: str | Path) -> Path:
    """The folder of the adapter that wrote a store, for `TokenizerAdapter.from_pretrained`."""
    return as_path(folder) / read_metadata(folder).adapter_folder


def written_by_another(folder: Path, theirs: str, ours: str) -> str:
    """The beginning of the errors about a store of another tokenizer."""
    return f"TokenStore: {folder} was written by another tokenizer (token hash {theirs}, not {ours})"


def _checksum(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _check_integer(name: str, value: Any, largest: int | None) -> None:
    if type(value) is not int or value < 1 or (largest is not None and value > largest):
        bounds = "of at least 1" if largest is None else f"in 1..{largest}"
        raise ValueError(f"StoreMetadata: {name} must be an integer {bounds}, got {value!r}.")
