"""Training of world models: module, runs, shards."""
