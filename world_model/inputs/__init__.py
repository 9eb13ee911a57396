"""Inputs: what each position reads, and how it is embedded."""
