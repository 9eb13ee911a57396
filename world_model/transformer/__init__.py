"""The transformer: attention, norm, rotary positions, cache, blocks."""
