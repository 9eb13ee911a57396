"""Generation: a latent step's tokens drawn from the past."""
