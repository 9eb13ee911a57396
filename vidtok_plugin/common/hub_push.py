"""Pushing saved models to the Hugging Face hub: one commit, which never mixes two models."""

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from textwrap import shorten
from typing import TYPE_CHECKING, Any, ClassVar, TypedDict, Unpack

from vidtok_plugin.common.downloads import FAILED, LOGIN, http_status, origin
from vidtok_plugin.common.hub_source import HubOptions, is_repository
from vidtok_plugin.common.model_card import CARD_FILE, LIBRARY, PICTURE_SUFFIXES, CardInfo, is_unedited, load_from

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import ModelInfo, RepoFile

logger = logging.getLogger(__name__)

WHO = "push"
SUFFIXES = (".safetensors", ".yaml", ".sha256", ".md", ".json", ".csv", ".npy", ".mp4", *PICTURE_SUFFIXES)
MAX_NAMED = 3  # files in a message


@dataclass(frozen=True, kw_only=True)
class PushOptions:
    """How a model is pushed."""

    private: bool | None = None  # of a repository that is created; None: as the account's setting says
    token: str | bool | None = field(default=None, repr=False)  # None: that of `hf auth login` or HF_TOKEN
    revision: str | None = None  # a branch, which is created if there is none; None: the repository's first
    subfolder: str | None = None  # of the repository
    overwrite: bool = False  # replace another model that is there; the repository's history keeps it
    commit_message: str | None = None
    create_pr: bool = False  # open a pull request in place of a commit


class PushKeywords(TypedDict, total=False):
    """The fields of `PushOptions`, as keywords."""

    private: bool | None
    token: str | bool | None
    revision: str | None
    subfolder: str | None
    overwrite: bool
    commit_message: str | None
    create_pr: bool


class PushedToHub:
    """Gives a class that has `save_pretrained` its `push_to_hub`."""

    saved_files: ClassVar[Sequence[str]]  # patterns of what `save_pretrained` writes
    save_pretrained: Callable[..., None]

    def push_to_hub(self, repository: str, *, card: CardInfo | None = None, **options: Unpack[PushKeywords]) -> str:
        """Save into a repository on the Hugging Face hub, `user/name`, in one commit.

        card: what the model card says beyond the architecture.
        options: fields of `PushOptions`, such as `private=True`, `revision="v2"`, `overwrite=True`.

        Returns:
            The address of the commit or of the pull request.

        Raises:
            FileExistsError: the repository has other files of these names, and `overwrite` is false.
            PermissionError: the login may not write there.
            OSError: the connection failed.
            ValueError: the name is not valid, or the repository is public and `private` is true, or the reverse.
        """
        return self._push(repository, PushOptions(**options), card=card)

    def _push(self, repository: str, options: PushOptions, *saved: Any, card: CardInfo | None) -> str:
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, *saved, card=card)
            return push_folder(Path(folder), repository, options, replaces=self.saved_files)


def push_folder(
    folder: Path, repository: str, options: PushOptions, *, replaces: Sequence[str], card: str | None = None
) -> str:
    """Push a saved model in one commit; -> the address of the commit or of the pull request.

    The repository is created if there is none, private if `options.private`; so is the branch `revision`, by default
    the repository's first. Pushing the same files again changes nothing. A card on the hub that was edited is kept.

    replaces: patterns of the files of a model, by which an earlier one is recognized and, with `overwrite`, removed.
    card: for a folder without a README.md.

    Raises:
        FileExistsError: the repository has other files of these names, and `overwrite` is false.
        PermissionError: the login may not write there.
        OSError: the connection failed.
        ValueError: the name is not valid, or the repository's visibility is not what `private` says.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    if not is_repository(repository) or "@" in repository:
        raise ValueError(f"{WHO}: the repository must be USER/NAME, got {repository!r}; correct it.")
    place = HubOptions(subfolder=options.subfolder)
    api = HfApi(token=options.token, library_name=LIBRARY)
    found = _files(folder)
    files: dict[str, bytes | Path] = {place.prefix + name: path for name, path in found.items()}
    text = found[CARD_FILE].read_text(encoding="utf-8") if CARD_FILE in found else card
    if text is not None:
        files[place.prefix + CARD_FILE] = load_from(text, _arguments(repository, options)).encode()
    with _push_errors(repository):
        info = _prepare(api, repository, options)
        there = _there(api, repository, str(info.sha))
        own_card = _has_edited_card(api, repository, str(info.sha), place.prefix + CARD_FILE, there)
    _check_visibility(repository, info, options)
    if own_card:
        logger.info("%s: its %s was edited, and is kept.", repository, CARD_FILE)
        del files[place.prefix + CARD_FILE]
    changed = {name: content for name, content in files.items() if name not in there or _differs(content, there[name])}
    taken = [name for name in changed if name in there and name != place.prefix + CARD_FILE]
    if taken and not options.overwrite:
        raise FileExistsError(
            f"{WHO}: {repository} has other files of these names already ({_named(taken)}); replace them by "
            "overwrite=True (--overwrite), since its history keeps them, or choose another repository or subfolder."
        )
    stale = [name for name in there if name not in files and _is_of_a_model(name, place.prefix, replaces)]
    stale = stale if options.overwrite else []
    if not changed and not stale:
        logger.info("%s: these files are there already.", repository)
        return f"{api.endpoint}/{repository}/commit/{info.sha}"
    with _push_errors(repository):
        done = api.create_commit(
            repository,
            [
                *(CommitOperationAdd(name, content) for name, content in sorted(changed.items())),
                *(CommitOperationDelete(name) for name in stale),
            ],
            commit_message=options.commit_message or f"Upload a model with {LIBRARY}",
            revision=options.revision,
            create_pr=options.create_pr,
            parent_commit=None if options.create_pr else info.sha,
        )
    return str(done.pr_url if options.create_pr else done.commit_url)


def _files(folder: Path) -> dict[str, Path]:
    """The files to push, by their names; others are named in the log."""
    found = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }
    left_out = [name for name, path in found.items() if path.suffix.lower() not in SUFFIXES and path.stem != "LICENSE"]
    if left_out:
        logger.info("%s: not pushed: %s; of no kind that a model has.", folder, _named(left_out))
    return {name: path for name, path in found.items() if name not in left_out}


def _arguments(repository: str, options: PushOptions) -> str:
    """The arguments by which the model is loaded."""
    named = {"revision": options.revision, "subfolder": options.subfolder}
    return ", ".join([f'"{repository}"', *(f'{name}="{value}"' for name, value in named.items() if value)])


def _prepare(api: "HfApi", repository: str, options: PushOptions) -> "ModelInfo":
    """What the hub has at the branch; repository and branch are created if there are none."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        info = api.model_info(repository)
    except GatedRepoError:
        raise
    except RepositoryNotFoundError:
        api.create_repo(repository, private=options.private)
        info = api.model_info(repository)
    if options.revision is None:
        return info
    try:
        return api.model_info(repository, revision=options.revision)
    except RevisionNotFoundError:
        if options.create_pr:
            raise ValueError(
                f"{WHO}: {repository} has no branch {options.revision!r} for a pull request; leave revision out."
            ) from None
        api.create_branch(repository, branch=options.revision)
        return api.model_info(repository, revision=options.revision)


def _check_visibility(repository: str, info: "ModelInfo", options: PushOptions) -> None:
    if options.private is not None and info.private is not None and info.private != options.private:
        raise ValueError(
            f"{WHO}: {repository} is {'private' if info.private else 'public'}, got private={options.private}; change "
            "that in its settings on the hub, or leave it out."
        )


def _there(api: "HfApi", repository: str, commit: str) -> dict[str, "RepoFile"]:
    from huggingface_hub.hf_api import RepoFile

    found = api.list_repo_tree(repository, recursive=True, revision=commit)
    return {entry.path: entry for entry in found if isinstance(entry, RepoFile)}


def _has_edited_card(api: "HfApi", repository: str, commit: str, name: str, there: Mapping[str, "RepoFile"]) -> bool:
    if name not in there:
        return False
    path = Path(api.hf_hub_download(repository, name, revision=commit))
    return not is_unedited(path.read_text(encoding="utf-8", errors="replace"))


def _differs(content: bytes | Path, entry: "RepoFile") -> bool:
    if entry.lfs is not None and isinstance(content, Path):
        with content.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() != entry.lfs.sha256
    data = content if isinstance(content, bytes) else content.read_bytes()
    if entry.lfs is not None:
        return hashlib.sha256(data).hexdigest() != entry.lfs.sha256
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest() != entry.blob_id


def _is_of_a_model(name: str, prefix: str, patterns: Sequence[str]) -> bool:
    return name.startswith(prefix) and any(fnmatchcase(name.removeprefix(prefix), pattern) for pattern in patterns)


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(str(PurePosixPath(name)) for name in names[:MAX_NAMED]) + more


@contextmanager
def _push_errors(repository: str) -> Iterator[None]:
    """Inside, requests to the hub fail with one sentence."""
    from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled

    try:
        yield
    except HFValidationError as error:
        raise ValueError(f"{WHO}: the repository must be USER/NAME, got {repository!r}; correct it.") from error
    except FAILED as error:
        cause = origin(error)
        status = http_status(cause)
        if status in (401, 403):
            raise PermissionError(
                f"{WHO}: this login may not write to {repository} on the hub (HTTP {status}); {LOGIN}, with a token "
                "that may write, and name a repository of your own or of your organization."
            ) from error
        if status == 412:
            raise OSError(f"{WHO}: {repository} was changed meanwhile; look at what is new, and push again.") from error
        if isinstance(cause, NotImplementedError | RecursionError):
            raise
        reason = "HF_HUB_OFFLINE is set" if isinstance(cause, OfflineModeIsEnabled) else _first_line(cause)
        raise OSError(
            f"{WHO}: {repository} could not be pushed to the hub ({reason}); check the connection, and push again."
        ) from error


def _first_line(error: BaseException) -> str:
    text = shorten((str(error).strip().splitlines() or [""])[0], 200, placeholder="...").rstrip(".")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
