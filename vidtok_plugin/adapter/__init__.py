"""Tokens for generators: a frozen tokenizer, with FSQ codes as a vocabulary and KL latents as patches."""
