"""Training of tokenizers: the Lightning module, the runs, and the callbacks that monitor them."""

from vidtok_plugin.common.extras import need_training

need_training()
