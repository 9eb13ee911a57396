"""Published checkpoints by name: from a local folder if present, else from the Hugging Face hub."""

import logging
import os
from pathlib import Path

from huggingface_hub import hf_hub_download, hf_hub_url

from vidtok_plugin.common.downloads import hub_errors
from vidtok_plugin.common.hub_source import HubOptions
from vidtok_plugin.tokenizer.presets import HUB_REPOSITORY, Preset

HOME_VARIABLE = "VIDTOK_HOME"

logger = logging.getLogger(__name__)


def checkpoint_folder() -> Path:
    """The folder for manually downloaded `NAME.ckpt` files: `$VIDTOK_HOME`, or `~/.cache/vidtok_plugin`."""
    home = os.environ.get(HOME_VARIABLE)
    return Path(home).expanduser() if home else Path.home() / ".cache" / "vidtok_plugin"


def published_checkpoint(preset: Preset, options: HubOptions) -> Path:
    """The published checkpoint of `preset`, downloaded unless it is in `checkpoint_folder` or in the hub's cache.

    The hub's own settings apply: `HF_HOME` moves its cache, and `HF_HUB_OFFLINE=1` prevents downloads.

    options: with a revision, `checkpoint_folder` is not used, because the revision of a file there is unknown.

    Raises:
        FileNotFoundError: the download failed; the message has the address and the path to save the file at.
        OSError: the hub's cache cannot be written.
        ValueError: the repository has no such revision.
    """
    assert preset.checkpoint is not None
    revision = options.revision
    local = checkpoint_folder() / f"{preset.name}.ckpt"
    if revision is None and local.is_file():
        logger.info("%s: reading %s.", preset.name, local)
        return local
    address = hf_hub_url(HUB_REPOSITORY, preset.checkpoint, revision=revision)
    remedy = f"put it at {local}, or pass its path" if revision is None else "pass its path"
    failed = (
        f"VidTok: {preset.name} is not in the hub's cache and could not be downloaded ({{cause}}); fetch {address} by "
        f"other means and {remedy} with preset={preset.name!r}."
    )
    with hub_errors("VidTok", HUB_REPOSITORY, revision, failed):
        path = Path(
            hf_hub_download(
                HUB_REPOSITORY,
                preset.checkpoint,
                revision=revision,
                token=options.token,
                local_files_only=options.local_files_only,
            )
        )
    logger.info("%s: reading %s.", preset.name, path)  # the cache's path names the commit
    return path
