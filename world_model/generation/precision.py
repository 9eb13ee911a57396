"""The model that a rollout computes with."""

from copy import deepcopy

import torch

from vidtok_plugin.common.precision import in_precision
from world_model.decoding import Decoding
from world_model.model import WorldModel
from world_model.transformer.block import Block
from world_model.transformer.fast.int8 import Int8Weight, is_available


def in_decoding_precision(model: WorldModel, decoding: Decoding) -> WorldModel:
    """The model as it is for float32, or a copy in the decoding's precision."""
    if decoding.precision == "int8":
        return with_int8_weights(model)
    return in_precision(model, decoding.precision)


def with_int8_weights(model: WorldModel) -> WorldModel:
    """A copy of a float32 model on a CPU, whose transformer's blocks have int8 weights.

    Raises:
        ValueError: the model is on another device or in another dtype, or this PyTorch has no such products.
    """
    if model.device.type != "cpu" or model.dtype != torch.float32:
        raise ValueError(
            f"Decoding: precision int8 is for a float32 model on a CPU, got {model.dtype} on {model.device.type}; take "
            "bfloat16."
        )
    if not is_available():
        raise ValueError(
            f"Decoding: precision int8 needs PyTorch's aten::_weight_int8pack_mm, which {torch.__version__} lacks or "
            "has in another form; take float32."
        )
    model = deepcopy(model)
    for block in model.modules():
        if isinstance(block, Block):
            for linear in (block.attention.qkv, block.attention.out, block.mlp.gate_value, block.mlp.out):
                linear.weight = Int8Weight(linear.weight)
    return model
