"""Packages that only some uses need: extras of the installation, named by the error where one is missing."""

from importlib.util import find_spec


class MissingExtraError(ImportError):
    """A package of an extra is not installed."""


def need_extra(extra: str, packages: tuple[str, ...], what: str) -> None:
    """Raises a MissingExtraError unless the packages of an extra are installed; none of them is imported.

    Example:
        >>> need_extra("train", ("no_such_package",), "training")
        Traceback (most recent call last):
        vidtok_plugin.common.extras.MissingExtraError: training needs no_such_package, which is not installed; run:
        pip install 'vidtok-plugin[train]'.
    """
    for package in packages:
        if find_spec(package) is None:
            raise MissingExtraError(
                f"{what} needs {package}, which is not installed; run: pip install 'vidtok-plugin[{extra}]'."
            )


def need_training() -> None:
    """Raises a MissingExtraError unless what training needs is installed."""
    need_extra("train", ("lightning", "torchdata", "matplotlib"), "training")
