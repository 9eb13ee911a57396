"""The default device of commands, and what a device is fast at, or lacks."""

import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

NO_FLOAT64 = ("mps",)  # types of devices


def default_device(local_rank: int | None = None) -> torch.device:
    """The device that `VIDTOK_DEVICE` names; else an NVIDIA or AMD GPU if there is one, else the CPU.

    local_rank: selects one of several GPUs.

    Raises:
        ValueError: `VIDTOK_DEVICE` names no device.
    """
    if chosen := os.environ.get("VIDTOK_DEVICE"):
        try:
            return torch.device(chosen)
        except RuntimeError:
            raise ValueError(
                f"VIDTOK_DEVICE must be a device of PyTorch, such as cpu, cuda:1 or mps, got {chosen}."
            ) from None
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda" if local_rank is None else f"cuda:{local_rank % torch.cuda.device_count()}")


def has_fast_bfloat16(accelerator: str = "auto") -> bool:
    """Whether bfloat16 matrix products are faster than float32 ones: on GPUs that have them, and on CPUs with AMX or
    AVX512-BF16 instructions.

    accelerator: Lightning's name of the device; `auto` is the GPU if there is one.
    """
    if accelerator in ("gpu", "cuda") or (accelerator == "auto" and torch.cuda.is_available()):
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = cpu_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def cpu_capabilities() -> Mapping[str, Any]:
    """PyTorch's account of the processor: its name, and which instructions it has."""
    if hasattr(torch.cpu, "get_capabilities"):
        return torch.cpu.get_capabilities()
    info = Path("/proc/cpuinfo")  # torch 2.9 says only which instructions
    lines = info.read_text().splitlines() if info.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu_name": named[0] if named else platform.processor(),
        "avx512_bf16": torch.cpu._is_avx512_bf16_supported(),
        "amx_bf16": torch.cpu._is_amx_tile_supported(),
    }


def for_float64(x: Tensor) -> Tensor:
    """x, on the CPU if its device has no float64, as Apple's GPUs."""
    return x.cpu() if x.device.type in NO_FLOAT64 else x
