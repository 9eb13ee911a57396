"""Published checkpoints by name: from the folder where users put them by hand, else from the Hugging Face hub."""

import logging
import os
from pathlib import Path

from huggingface_hub import hf_hub_download, hf_hub_url
from huggingface_hub.errors import RevisionNotFoundError

from vidtok_plugin.tokenizer.presets import HUB_REPOSITORY, Preset

HOME_VARIABLE = "VIDTOK_HOME"

logger = logging.getLogger(__name__)


def checkpoint_folder() -> Path:
    """Where users put checkpoints by hand, as `NAME.ckpt`: `$VIDTOK_HOME`, or `~/.cache/vidtok_plugin`."""
    home = os.environ.get(HOME_VARIABLE)
    return Path(home).expanduser() if home else Path.home() / ".cache" / "vidtok_plugin"


def published_checkpoint(preset: Preset, revision: str | None) -> Path:
    """The published checkpoint of `preset`, downloaded if it is neither in `checkpoint_folder` nor in the hub's cache.

    The hub's own settings hold: `HF_HOME` moves its cache, and `HF_HUB_OFFLINE=1` keeps to it.

    revision: a branch, tag or commit of the hub's repository; the newest by default. With it the folder is not looked
        into, since nothing tells of which revision a file there is.

    Raises:
        FileNotFoundError: if the file cannot be had; it tells its address and where to put it.
        ValueError: if the repository has no such revision.
    """
    assert preset.checkpoint is not None
    by_hand = checkpoint_folder() / f"{preset.name}.ckpt"
    if revision is None and by_hand.is_file():
        logger.info("%s: reading %s.", preset.name, by_hand)
        return by_hand
    try:
        path = Path(hf_hub_download(HUB_REPOSITORY, preset.checkpoint, revision=revision))
    except RevisionNotFoundError as error:
        raise ValueError(
            f"VidTok: {HUB_REPOSITORY} on the hub has no revision {revision!r}; leave revision out for the newest."
        ) from error
    except Exception as error:
        # OSError, the errors of the hub's HTTP client, and others of its own: which ones differs by its version.
        address = hf_hub_url(HUB_REPOSITORY, preset.checkpoint, revision=revision)
        put = f"put it at {by_hand}, or pass its path" if revision is None else "pass its path"
        raise FileNotFoundError(
            f"VidTok: {preset.name} is not in the hub's cache and could not be downloaded "
            f"({type(error.__cause__ or error).__name__}); fetch {address} by other means and {put} with "
            f"preset={preset.name!r}."
        ) from error
    logger.info("%s: reading %s.", preset.name, path)  # the cache's path names the commit
    return path
