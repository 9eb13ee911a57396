"""Weights that were saved with a checksum are read as they were, or refused; files of others are read as they are."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vidtok_plugin.common.checkpoint_files import read_safetensors, write_safetensors

WEIGHTS = {"a.weight": torch.arange(12.0).view(3, 4), "b.count": torch.tensor(5)}


def test_weights_are_read_as_they_were_written(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "w.safetensors", WEIGHTS | {"t": torch.arange(6).view(2, 3).T})
    read = read_safetensors(tmp_path / "w.safetensors")
    assert all(torch.equal(read[name], tensor) for name, tensor in WEIGHTS.items())
    assert torch.equal(read["t"], torch.arange(6).view(2, 3).T)


@pytest.mark.parametrize("offset", range(-56, 0, 8))
def test_a_changed_bit_is_found(tmp_path: Path, offset: int) -> None:
    file = tmp_path / "w.safetensors"
    write_safetensors(file, WEIGHTS)
    data = bytearray(file.read_bytes())
    data[offset] ^= 4
    file.write_bytes(data)
    with pytest.raises(ValueError, match=r"w\.safetensors is damaged: its tensors differ from the checksum.*; fetch"):
        read_safetensors(file)


def test_weights_under_another_name_are_found(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    write_safetensors(file, WEIGHTS)
    file.write_bytes(file.read_bytes().replace(b"a.weight", b"c.weight"))
    with pytest.raises(ValueError, match="is damaged: its tensors differ from the checksum"):
        read_safetensors(file)


def test_a_file_without_a_checksum_is_read(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "w.safetensors", {"format": "pt", "sha256": "of something else"})
    assert torch.equal(read_safetensors(tmp_path / "w.safetensors")["a.weight"], WEIGHTS["a.weight"])
