"""What makes the transformer fast on a CPU; `reference_path()` runs its definition instead."""
