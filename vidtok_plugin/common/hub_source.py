"""Repositories of the Hugging Face hub as sources of models: the files of a saved model, in the hub's cache.

Only the files that `save_pretrained` writes are downloaded, so that no code and no pickle of a repository gets here.
"""

import glob
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from vidtok_plugin.common.downloads import hub_errors
from vidtok_plugin.common.paths import user_path
from vidtok_plugin.common.url_path import local_copy

WEIGHTS_SUFFIXES = (".ckpt", ".safetensors", ".pt", ".pth", ".bin")


@dataclass(frozen=True, kw_only=True)
class HubOptions:
    """How a repository is read.

    Raises:
        ValueError: a subfolder that leads out of the repository.
    """

    revision: str | None = None  # a branch, tag or commit; None for the newest
    subfolder: str | None = None  # of the repository
    token: str | bool | None = field(default=None, repr=False)  # None: that of `hf auth login` or HF_TOKEN, if any
    local_files_only: bool = False  # what is in the hub's cache, without a connection

    def __post_init__(self) -> None:
        parts = PurePosixPath(self.subfolder or "").parts
        if ".." in parts or (parts and parts[0] == "/") or "\\" in (self.subfolder or ""):
            raise ValueError(
                f"subfolder must be a folder of the repository, such as models/small, got {self.subfolder!r}."
            )

    @property
    def prefix(self) -> str:
        """What the names of the files begin with."""
        folder = PurePosixPath(self.subfolder or "").as_posix()
        return "" if folder == "." else f"{folder}/"

    def refuse(self, who: str, name: str, kinds: str = "hub repositories") -> None:
        """A ValueError for what only a repository can have; `name` is another source."""
        for option, remedy in (("revision", "leave it out"), ("subfolder", "give the path of that folder")):
            if (value := getattr(self, option)) is not None:
                raise ValueError(f"{who}: {option}={value!r} is for {kinds}, and {name} is none; {remedy}.")


PLAIN = HubOptions()


def is_repository(source: str | Path) -> bool:
    """Whether a source that is no file and no folder here can be the name of a repository: `user/name[@revision]`.

    Example:
        >>> is_repository("user/name"), is_repository("user/name@v2"), is_repository("runs/last.ckpt")
        (True, True, False)
        >>> is_repository("./runs"), is_repository("runs/a/model"), is_repository("boxing")
        (False, False, False)
    """
    if not isinstance(source, str):
        return False
    user, _, name = source.partition("@")[0].partition("/")
    return bool(user.strip(".~")) and bool(name) and "/" not in name and Path(name).suffix not in WEIGHTS_SUFFIXES


def saved_folder(
    who: str, source: str | Path, options: HubOptions, *, wanted: Sequence[str], needed: Sequence[str]
) -> Path:
    """The local folder of a saved model: a path, a URL, or a repository if there is no folder of its name.

    A folder here need not exist. Errors as in `hub_folder`, and a ValueError for options that only a repository has.
    """
    path = local_copy(user_path(source))
    if path.exists() or not is_repository(source):
        options.refuse(who, str(source))
        return path
    return hub_folder(who, str(source), options, wanted=wanted, needed=needed)


def hub_folder(who: str, source: str, options: HubOptions, *, wanted: Sequence[str], needed: Sequence[str]) -> Path:
    """The folder of a repository's model in the hub's cache, downloaded unless it is there.

    source: `user/name` or `user/name@revision`; wanted: patterns of the files to download, of which `needed` must be
        there. Weights must be safetensors.

    Raises:
        FileNotFoundError: the download failed, or the repository lacks a file.
        PermissionError: the login may not read the repository.
        OSError: the hub's cache cannot be written.
        ValueError: the name is not valid, there is no such revision, or weights are in another format.
    """
    from huggingface_hub import snapshot_download

    name, _, named = source.partition("@")
    if named and options.revision is not None:
        raise ValueError(f"{who}: {source} names its revision, and revision={options.revision!r} another; give one.")
    revision, prefix = named or options.revision, options.prefix
    failed = (
        f"{who}: there is no folder {source}, and no such repository could be downloaded from the hub ({{cause}}); "
        "check the name and the connection, or download it by other means and pass its folder."
    )
    with hub_errors(who, name, revision, failed):
        root = Path(
            snapshot_download(
                name,
                revision=revision,
                allow_patterns=[glob.escape(prefix) + pattern for pattern in wanted],
                token=options.token,
                local_files_only=options.local_files_only,
            )
        )
        absent = [prefix + file for file in needed if not (root / prefix / file).is_file()]
        missing = [file for file in absent if not _fetch(name, root, file, options)]
        there = _files(name, root.name, options) if missing else []
    if missing:
        raise FileNotFoundError(
            f"{who}: {name} on the hub has no {missing[0]} at revision {revision or 'main'}; {_remedy(there, needed)}."
        )
    folder = root / prefix
    for file in sorted(folder.rglob("*.safetensors")):
        if any(PurePosixPath(file.relative_to(folder).as_posix()).match(pattern) for pattern in wanted):
            _check_safetensors(who, name, file)
    return folder


def _fetch(name: str, root: Path, file: str, options: HubOptions) -> bool:
    """Whether the repository has a file that the snapshot lacks, which an earlier, partial download may have left."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        hf_hub_download(name, file, revision=root.name, token=options.token, local_files_only=options.local_files_only)
    except LocalEntryNotFoundError:
        raise
    except EntryNotFoundError:
        return False
    return True


def _files(name: str, revision: str, options: HubOptions) -> list[str]:
    from huggingface_hub import HfApi

    return HfApi(token=options.token).list_repo_files(name, revision=revision)


def _remedy(files: Sequence[str], needed: Sequence[str]) -> str:
    """What to do about a missing file, by the files that the repository has."""
    folders = sorted(
        str(PurePosixPath(file.removesuffix(needed[0]))) for file in files if file.endswith(f"/{needed[0]}")
    )
    complete = [folder for folder in folders if {f"{folder}/{file}" for file in needed} <= set(files)]
    if complete:
        return f"choose its folder by subfolder={complete[0]!r}"
    if any(PurePosixPath(file).suffix in WEIGHTS_SUFFIXES and not file.endswith(".safetensors") for file in files):
        return (
            "of a repository only folders are read that save_pretrained or push_to_hub wrote, and no pickles; download "
            "its checkpoint, and convert it by `vidtok-plugin convert`"
        )
    return "give a repository that push_to_hub wrote"


def _check_safetensors(who: str, name: str, file: Path) -> None:
    with file.open("rb") as opened:
        start = opened.read(16)
    if start[8:9] != b"{":
        raise ValueError(
            f"{who}: {file.name} of {name} on the hub must be a safetensors file, got one that starts with {start!r}; "
            "nothing else is read from a repository."
        )
