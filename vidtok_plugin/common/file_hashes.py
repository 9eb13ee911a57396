"""SHA-256 hashes of files, to detect changes."""

import hashlib
from pathlib import Path


def hash_files(*paths: Path) -> str:
    """SHA-256 of the concatenated contents of files."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
