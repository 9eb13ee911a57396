"""A bound on oneDNN's cache of compiled operations, which grows with each new size of the input on a CPU."""

import os

VARIABLES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "DNNL_PRIMITIVE_CACHE_CAPACITY")  # oneDNN reads either
# A training step of a published model has 116 operations at one size, an encoding 45. oneDNN's default of 1,024 takes
# some 90 MB once inputs of 100 sizes have passed.
CAPACITY = 256


def bound_primitive_cache() -> None:
    """Sets the capacity, unless the environment does. oneDNN reads it at its first operation in the process."""
    if not any(name in os.environ for name in VARIABLES):
        os.environ[VARIABLES[0]] = str(CAPACITY)
