"""Faster implementations for a CPU; under `reference_path()` the transformer runs its definition instead."""
