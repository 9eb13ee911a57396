"""The folder of what this package may keep to save work later; nothing is lost with it."""

import os
import tempfile
from pathlib import Path


def cache_folder() -> Path:
    """`$VIDTOK_CACHE`, or `$XDG_CACHE_HOME/vidtok_plugin`, by default `~/.cache/vidtok_plugin`. It need not exist.

    Example:
        >>> cache_folder().is_absolute()
        True
    """
    own = os.environ.get("VIDTOK_CACHE", "")
    if own:
        return Path(own).expanduser().absolute()
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(xdg):  # a relative one is invalid
        return Path(xdg, "vidtok_plugin")
    home = os.path.expanduser("~")
    base = Path(home, ".cache") if os.path.isabs(home) else Path(tempfile.gettempdir())  # a user without a home
    return base / "vidtok_plugin"
