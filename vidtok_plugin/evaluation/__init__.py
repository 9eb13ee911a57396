"""Evaluation: a folder of videos, or clips, measured."""
