"""Suggestions in error messages: the known name closest to a mistyped one."""

import difflib
from collections.abc import Iterable


def nearest(word: str, known: Iterable[str]) -> str:
    """The known name most similar to `word`.

    Example:
        >>> nearest("learnig_rate", ["width", "learning_rate"])
        'learning_rate'
    """
    return difflib.get_close_matches(word, list(known), n=1, cutoff=0.0)[0]
