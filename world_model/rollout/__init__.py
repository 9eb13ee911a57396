"""Rollouts: a video prompt in, imagined video out."""
