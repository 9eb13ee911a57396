"""The default device of commands."""

import torch


def default_device(local_rank: int | None = None) -> torch.device:
    """The GPU if there is one, else the CPU; `local_rank` selects one of several GPUs."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda" if local_rank is None else f"cuda:{local_rank % torch.cuda.device_count()}")
