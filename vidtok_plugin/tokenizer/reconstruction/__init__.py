"""Reconstruction of videos of any length and size, in tiles within a memory budget."""
