"""Recording real play as episodes."""
