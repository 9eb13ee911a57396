"""Inputs: the tokens and actions that each position reads, and their embeddings."""
