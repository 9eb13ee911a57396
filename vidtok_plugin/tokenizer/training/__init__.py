"""Training of tokenizers: module, runs, and what shows them."""
