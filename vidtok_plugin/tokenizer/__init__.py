"""The VidTok family: network, regularizers, presets, streams, weights and training."""
