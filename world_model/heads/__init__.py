"""Heads: distributions over codes, or a flow from noise to patches, given the transformer's output."""
