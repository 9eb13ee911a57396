"""Rollout: video in, imagined video out."""
