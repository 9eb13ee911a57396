"""The errors that readers of files raise on damaged bytes."""

import struct

DAMAGE = (
    EOFError, RuntimeError, OSError, ValueError, LookupError, TypeError, AttributeError, AssertionError, struct.error
)  # fmt: skip
