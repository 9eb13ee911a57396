"""The token store: episodes to tokens on disk, and read back in windows."""
