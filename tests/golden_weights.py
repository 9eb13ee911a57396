"""The rule that fills every parameter of a golden model from its name and shape alone."""

import zlib

import numpy as np
import torch
from torch import nn


def golden_parameter(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    r = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if "mix_factor" in name:
        r = 0.5 * r
    elif len(shape) > 1:
        r = r / np.sqrt(np.prod(shape[1:]))
    elif "norm" in name and name.endswith("weight"):
        r = 1 + 0.1 * r
    else:
        r = 0.05 * r
    return torch.from_numpy(r.astype(np.float32))


def fill(model: nn.Module) -> nn.Module:
    model.load_state_dict({name: golden_parameter(name, tuple(p.shape)) for name, p in model.state_dict().items()})
    return model
