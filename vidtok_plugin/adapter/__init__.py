"""Tokens for generators: the vocabulary of FSQ codes, patches of KL latents, and the frozen tokenizer behind them."""
