"""The device that commands work on."""

import torch


def default_device(local_rank: int | None = None) -> torch.device:
    """The GPU if there is one, else the CPU; of several GPUs, the one for this process of the machine's."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda" if local_rank is None else f"cuda:{local_rank % torch.cuda.device_count()}")
