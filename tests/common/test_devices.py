"""The device of commands, and devices without float64: see `tests/apple_gpu.py`."""

import os
import subprocess
import sys
from functools import partial

import pytest
import torch
from places import ROOT, TESTS

from vidtok_plugin.common.commands import run_command
from vidtok_plugin.common.devices import cpu_capabilities, default_device, for_float64, has_fast_bfloat16


def test_the_device_of_commands_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDTOK_DEVICE", "cpu")
    assert default_device(3) == torch.device("cpu")
    monkeypatch.setenv("VIDTOK_DEVICE", "mp")
    with pytest.raises(ValueError, match="VIDTOK_DEVICE must be a device of PyTorch, .*, got mp"):
        default_device()


def test_tensors_stay_where_float64_is() -> None:
    x = torch.ones(2)
    assert for_float64(x) is x


@pytest.mark.parametrize(("platform", "expected"), [("darwin", "1"), ("linux", None)])
def test_on_macs_commands_let_the_cpu_do_what_the_gpu_cannot(
    platform: str, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch warns of each operation; the variable must be set before it is imported."""
    import argparse

    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setenv("PYTORCH_ENABLE_MPS_FALLBACK", "")
    monkeypatch.delenv("PYTORCH_ENABLE_MPS_FALLBACK")
    assert run_command(argparse.ArgumentParser(), []) == 2
    assert os.environ.get("PYTORCH_ENABLE_MPS_FALLBACK") == expected


def test_the_oldest_torch_tells_bfloat16_and_the_makers_of_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training and world models stopped under torch 2.9, which has no `get_capabilities`."""
    fast, name = has_fast_bfloat16("cpu"), cpu_capabilities()["cpu_name"]
    for check in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):  # newer ones call what is removed next
        has = getattr(torch.cpu, check)()
        monkeypatch.setattr(torch.cpu, check, partial(bool, has))
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert has_fast_bfloat16("cpu") == fast
    assert cpu_capabilities()["cpu_name"].startswith("Intel") == name.startswith("Intel")


def test_the_pretended_gpu_is_in_no_process_of_the_tests() -> None:
    """It was: doctests were looked for in its file, and random numbers were kept for its device in all tests."""
    assert "apple_gpu" not in sys.modules and "windows" not in sys.modules


@pytest.mark.slow
def test_a_gpu_without_float64_encodes_trains_imagines_and_measures() -> None:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(ROOT)])}
    done = subprocess.run(
        [sys.executable, str(TESTS / "apple_gpu.py")], capture_output=True, text=True, timeout=600, env=env, cwd=ROOT
    )
    if "No module named" in done.stderr and "_setup_privateuseone" in done.stderr:
        pytest.skip("this PyTorch has no devices in Python")
    assert done.returncode == 0 and done.stdout.split() == [
        *("tokenizers", "rollouts", "measures", "training", "done")
    ], done.stderr[-4000:]
