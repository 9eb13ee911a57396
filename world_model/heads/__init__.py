"""From the transformer's output to tokens: distributions over codes, or a flow from noise to patches."""
