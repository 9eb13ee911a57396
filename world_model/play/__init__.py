"""A page to play a world on: the imagined game live, beside the real one."""
