"""The transformer: attention, rotary positions, blocks, and the cache of keys and values."""
