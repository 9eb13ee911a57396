"""store.json: the facts that all tokens of a store share."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

FORMAT = 2
METADATA_FILE = "store.json"
_OF_THE_ADAPTER = ("adapter_hash", "tokenizer", "preset")  # may change while the tokens stay the same


@dataclass(frozen=True, kw_only=True)
class StoreMetadata:
    """The facts that all tokens of a store share."""

    adapter_hash: str
    token_hash: str  # of what determines the tokens; training the decoder leaves it unchanged
    tokenizer: Mapping[str, Any]  # its architecture, for information
    preset: str | None = None  # the preset with that architecture, if there is one
    kind: Literal["discrete", "continuous"] = "discrete"
    codebook_size: int | None = None  # discrete tokens only
    fsq_levels: tuple[int, ...] | None = None
    patch_dim: int | None = None  # continuous tokens only
    height: int  # rows of the grid
    width: int  # columns of the grid
    temporal_factor: int  # frames in a step
    fps: float
    action_space: Mapping[str, Any] = field(default_factory=dict)  # kind, size and meanings; empty without actions
    clip_frames: int | None = None  # frames of a clip that was encoded on its own; None for whole videos
    format: int = FORMAT

    def __post_init__(self) -> None:
        sizes = {"discrete": self.codebook_size, "continuous": self.patch_dim}
        if self.kind not in sizes or [kind for kind, size in sizes.items() if size is not None] != [self.kind]:
            raise ValueError(
                "StoreMetadata: kind must be discrete with a codebook_size or continuous with a patch_dim, got "
                f"{self.kind!r} with codebook_size={self.codebook_size} and patch_dim={self.patch_dim}."
            )

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "StoreMetadata":
        levels = values["fsq_levels"]
        return cls(**{**values, "fsq_levels": None if levels is None else tuple(levels)})

    def to_json(self) -> str:
        """The text of store.json."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @property
    def token_key(self) -> Literal["codes", "patches"]:
        """The name of the tokens in shards and windows."""
        return "codes" if self.kind == "discrete" else "patches"

    @property
    def tokens_folder(self) -> str:
        """The name of the folder of these tokens in a store."""
        facts = {name: value for name, value in asdict(self).items() if name not in _OF_THE_ADAPTER}
        return f"tokens_{hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]}"

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
                    f"{whose}; {remedy}."
                )


def read_metadata(folder: str | Path) -> StoreMetadata:
    """The metadata of a store.

    Raises:
        FileNotFoundError: there is no store in this folder.
        ValueError: another version of this package wrote it, in another format.
    """
    path = Path(folder) / METADATA_FILE
    if not path.is_file():
        what = "is a file, not a folder" if path.parent.is_file() else "does not exist"
        if path.parent.is_dir():
            what = f"is not a token store: it has no {METADATA_FILE}"
        raise FileNotFoundError(f"TokenStore: {folder} {what}; write a store with `vidtok-plugin tokenize`.")
    values = json.loads(path.read_text())
    if values.get("format") != FORMAT:
        raise ValueError(
            f"TokenStore: the format of {folder} must be {FORMAT}, got {values.get('format')}: another version of this "
            "package wrote it; tokenize the videos into another folder, or remove this one first."
        )
    return StoreMetadata.from_json(values)


def adapter_folder(folder: str | Path) -> Path:
    """The folder of the adapter that wrote a store, for `TokenizerAdapter.from_pretrained`."""
    return Path(folder) / read_metadata(folder).adapter_folder


def written_by_another(folder: Path, theirs: str, ours: str) -> str:
    """The beginning of the errors about a store of another tokenizer."""
    return f"TokenStore: {folder} was written by another tokenizer (token hash {theirs}, not {ours})"
