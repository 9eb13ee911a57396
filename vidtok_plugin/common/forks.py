"""What must happen around a fork, where there are forks: not on Windows."""

import os
from collections.abc import Callable


def at_fork(
    before: Callable[[], object],
    after_in_parent: Callable[[], object] | None = None,
    after_in_child: Callable[[], object] | None = None,
) -> None:
    """`os.register_at_fork`; nothing where processes cannot be forked."""
    if hasattr(os, "register_at_fork"):
        after = {"after_in_parent": after_in_parent, "after_in_child": after_in_child}
        os.register_at_fork(before=before, **{name: call for name, call in after.items() if call is not None})
