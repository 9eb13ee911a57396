"""Weights: published checkpoints, checkpoints of training, saved models, and conversion between their layouts."""
