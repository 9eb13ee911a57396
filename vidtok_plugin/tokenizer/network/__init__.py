"""The VidTok network: layers, blocks, encoder and decoder."""
