"""Errors of downloads from the Hugging Face hub: failed ones, a full disk, a wrong name; anything else is a bug."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import errors
from huggingface_hub.errors import HFValidationError, RevisionNotFoundError

OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)
# Connections and HTTP (`HTTPError` is that of the client, which the hub's version chooses), and hf_xet's RuntimeError.
FAILED: tuple[type[Exception], ...] = (OSError, errors.HTTPError, RuntimeError)  # type: ignore[attr-defined]


@contextmanager
def hub_errors(who: str, repository: str, revision: str | None, failed: str) -> Iterator[None]:
    """Inside, a download fails with one sentence.

    failed: the sentence for a failed connection, a missing repository or file; `{cause}` in it becomes the cause.

    Raises:
        FileNotFoundError: the download failed.
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
        cause = error.__cause__ or error
        if isinstance(error, OSError) and error.errno in OF_THE_DISK:
            raise OSError(
                f"{who}: {repository} could not be stored in the hub's cache ({error}); free space there, or set "
                "HF_HOME to a folder that can be written."
            ) from error
        if isinstance(cause, NotImplementedError | RecursionError):  # RuntimeErrors of Python's own
            raise
        raise FileNotFoundError(failed.replace("{cause}", type(cause).__name__)) from error
