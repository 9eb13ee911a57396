"""Implementations of the network that take less time or memory; `reference_path()` switches all of them off.

`dispatch.py` decides what is used and when; `network.py` runs a network's layers by the kernels of `steps.py`.
"""

from vidtok_plugin.tokenizer.network.fast.dispatch import fast_path, fast_step
from vidtok_plugin.tokenizer.network.fast.network import forward, step
from vidtok_plugin.tokenizer.network.fast.steps import whole

__all__ = ["fast_path", "fast_step", "forward", "step", "whole"]
