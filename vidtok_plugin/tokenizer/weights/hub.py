"""Published checkpoints by name: from a local folder if present, else from the Hugging Face hub."""

import logging
import os
from pathlib import Path

from huggingface_hub import hf_hub_download, hf_hub_url
from huggingface_hub.errors import RevisionNotFoundError

from vidtok_plugin.tokenizer.presets import HUB_REPOSITORY, Preset

HOME_VARIABLE = "VIDTOK_HOME"

logger = logging.getLogger(__name__)


def checkpoint_folder() -> Path:
    """The folder for manually downloaded `NAME.ckpt` files: `$VIDTOK_HOME`, or `~/.cache/vidtok_plugin`."""
    home = os.environ.get(HOME_VARIABLE)
    return Path(home).expanduser() if home else Path.home() / ".cache" / "vidtok_plugin"


def published_checkpoint(preset: Preset, revision: str | None) -> Path:
    """The published checkpoint of `preset`, downloaded unless it is in `checkpoint_folder` or in the hub's cache.

    The hub's own settings apply: `HF_HOME` moves its cache, and `HF_HUB_OFFLINE=1` prevents downloads.

    revision: a branch, tag or commit of the hub's repository; the newest by default. If given, `checkpoint_folder` is
        not used, because the revision of a file there is unknown.

    Raises:
        FileNotFoundError: the download failed; the message has the address and the path to save the file at.
        ValueError: the repository has no such revision.
    """
    assert preset.checkpoint is not None
    local = checkpoint_folder() / f"{preset.name}.ckpt"
    if revision is None and local.is_file():
        logger.info("%s: reading %s.", preset.name, local)
        return local
    try:
        path = Path(hf_hub_download(HUB_REPOSITORY, preset.checkpoint, revision=revision))
    except RevisionNotFoundError as error:
        raise ValueError(
            f"VidTok: {HUB_REPOSITORY} on the hub has no revision {revision!r}; leave revision out for the newest."
        ) from error
    except Exception as error:
        # OSError, errors of the HTTP client, and the hub's own: the classes differ between its versions.
        address = hf_hub_url(HUB_REPOSITORY, preset.checkpoint, revision=revision)
        remedy = f"put it at {local}, or pass its path" if revision is None else "pass its path"
        raise FileNotFoundError(
            f"VidTok: {preset.name} is not in the hub's cache and could not be downloaded "
            f"({type(error.__cause__ or error).__name__}); fetch {address} by other means and {remedy} with "
            f"preset={preset.name!r}."
        ) from error
    logger.info("%s: reading %s.", preset.name, path)  # the cache's path names the commit
    return path
