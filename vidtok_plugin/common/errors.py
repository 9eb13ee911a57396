"""What error messages share: naming the known word nearest to a mistaken one."""

import difflib
from collections.abc import Iterable


def nearest(word: str, known: Iterable[str]) -> str:
    """The known word most like `word`.

    Example:
        >>> nearest("learnig_rate", ["width", "learning_rate"])
        'learning_rate'
    """
    return difflib.get_close_matches(word, list(known), n=1, cutoff=0.0)[0]
