"""Shared helpers: config, commands, atomic files, checkpoint files, processes, hashes, errors."""
