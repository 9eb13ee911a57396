"""Errors of the Hugging Face hub: a failed download, no permission, a full disk, a wrong name; the rest are bugs."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import errors
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)
# Connections and HTTP (`HTTPError` is that of the client, which the hub's version chooses), and hf_xet's RuntimeError.
FAILED: tuple[type[Exception], ...] = (OSError, errors.HTTPError, RuntimeError)  # type: ignore[attr-defined]
LOGIN = "log in by `hf auth login`, or give a token by HF_TOKEN or token="


@contextmanager
def hub_errors(who: str, repository: str, revision: str | None, failed: str) -> Iterator[None]:
    """Inside, a download fails with one sentence.

    failed: the sentence for a failed connection, a missing repository or file; `{cause}` in it becomes the cause.

    Raises:
        FileNotFoundError: the download failed.
        PermissionError: the login may not read the repository.
        OSError: the hub's cache cannot be written.
        ValueError: the repository has no such revision, or its name is not valid.
    """
    try:
        yield
    except RevisionNotFoundError as error:
        raise ValueError(
            f"{who}: {repository} on the hub has no revision {revision!r}; leave revision out for the newest."
        ) from error
    except HFValidationError as error:
        raise ValueError(
            f"{who}: {repository} is no folder, and not a valid name of a hub repository (user/name); check the name."
        ) from error
    except FAILED as error:
        cause = origin(error)
        if isinstance(error, OSError) and error.errno in OF_THE_DISK:
            raise OSError(
                f"{who}: {repository} could not be stored in the hub's cache ({error}); free space there, or set "
                "HF_HOME to a folder that can be written."
            ) from error
        if isinstance(cause, NotImplementedError | RecursionError):  # RuntimeErrors of Python's own
            raise
        if isinstance(cause, GatedRepoError):
            raise PermissionError(
                f"{who}: {repository} on the hub is gated, and this login has no access (HTTP {http_status(cause)}); "
                f"request it on the repository's page, then {LOGIN}."
            ) from error
        if http_status(cause) in (401, 403) and not isinstance(cause, RepositoryNotFoundError):
            raise PermissionError(
                f"{who}: {repository} on the hub may not be read by this login (HTTP {http_status(cause)}); {LOGIN}."
            ) from error
        raise FileNotFoundError(failed.replace("{cause}", _reason(cause))) from error


def origin(error: BaseException) -> BaseException:
    """What a failed request is about: the hub's own error, or the cause of one that only says that it failed."""
    return error if http_status(error) is not None else error.__cause__ or error


def http_status(error: BaseException) -> int | None:
    """The HTTP status of a failed request; None for another error."""
    return getattr(getattr(error, "response", None), "status_code", None)


def _reason(cause: BaseException) -> str:
    """The name of an error, and what follows from it."""
    name = type(cause).__name__
    if isinstance(cause, RepositoryNotFoundError):
        return f"{name}; if it is private, {LOGIN}"
    if isinstance(cause, OfflineModeIsEnabled | LocalEntryNotFoundError):
        return f"{name}; it is not in the hub's cache: unset HF_HUB_OFFLINE, and leave local_files_only out"
    return name
