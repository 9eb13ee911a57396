"""Prediction: causal and masked, the two ways in which a world model learns and draws a latent step."""
