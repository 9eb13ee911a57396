"""Weights: published, downloaded, converted, and checkpoints of our own training."""
