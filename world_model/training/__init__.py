"""Training of world models: the Lightning module, runs, sharding."""

from vidtok_plugin.common.extras import need_training

need_training()
