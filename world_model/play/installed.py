"""The check that the packages of the extra `play` are installed."""

from importlib import import_module

NEEDED = ("starlette", "uvicorn", "websockets")


def check_installed() -> None:
    """A ValueError that names a missing package and the extra."""
    for name in NEEDED:
        try:
            import_module(name)
        except ImportError:
            raise ValueError(
                f"play: the page needs {name}, which is not installed; run: pip install 'vidtok-plugin[play]'."
            ) from None
