"""Prediction: the two kinds of world models, causal and masked; what each attends to in training and in rollouts."""
