"""Sharded world models (FSDP2), for models too large for one device."""

from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from world_model.training.module import WorldModelModule


class ShardedWorldModelModule(WorldModelModule):
    """A WorldModelModule for `sharding_strategy`: a block's weights are gathered only while the block computes."""

    def configure_model(self) -> None:
        assert self.device_mesh is not None
        mesh = self.device_mesh["data_parallel"]
        for block in self.model.transformer.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(self.model, mesh=mesh)
        for method in (
            "loss",
            "losses",
            "score",
            "window_outcomes",
            "window_states",
        ):  # called instead of forward
            register_fsdp_forward_method(self.model, method)

    def full_weights(self) -> dict[str, torch.Tensor]:
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        weights: dict[str, Any] = get_model_state_dict(self.model, options=options)
        return weights


def sharding_strategy(processes: int) -> ModelParallelStrategy:
    """Lightning's FSDP2 strategy. Checkpoints are single files, like those of other runs."""
    return ModelParallelStrategy(
        data_parallel_size=processes, tensor_parallel_size=1, save_distributed_checkpoint=False
    )
