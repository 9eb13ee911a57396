"""Training of world models: the Lightning module, runs, sharding."""
