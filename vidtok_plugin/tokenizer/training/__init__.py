"""Training of tokenizers: the Lightning module, the runs, and the callbacks that monitor them."""
