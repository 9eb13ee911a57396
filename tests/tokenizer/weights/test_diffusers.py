"""Our models equal diffusers' AutoencoderVidTok: same outputs from the same weights, converted there and back.

Skipped without diffusers (the extra of that name). Its chunked decoding of long clips differs from its whole-clip
decoding, so whole clips are compared.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from golden_weights import fill
from torch import Tensor

from vidtok_plugin import VidTok, presets
from vidtok_plugin.tokenizer.weights.conversion import convert

diffusers = pytest.importorskip("diffusers", minversion="0.38")

NAMES = [name for name in presets() if name.endswith("_v1_1")] + ["vidtok_kl_noncausal_488_4chn"]
# Both run in float32 with different summation order; decoders amplify the difference. Outputs lie within -3 to 3.
LATENTS = {"rtol": 0.0, "atol": 1e-5}
VIDEO = {"rtol": 0.0, "atol": 2e-4}


class Pair:
    """Our model, and the one that diffusers loads from the converted folder."""

    def __init__(self, name: str, folder: Path) -> None:
        self.folder = folder
        self.ours = fill(VidTok.from_preset(name, ch=8)).eval()
        self.ours.save_pretrained(folder / "ours")
        convert(folder / "ours", folder / "theirs", to="diffusers")
        self.theirs = self.load(folder / "theirs")
        size, frames = 2 * self.ours.spatial_factor, 17 if self.ours.causal else 16
        generator = torch.Generator().manual_seed(0)
        self.video = torch.rand(1, 3, frames, size, size, generator=generator) * 2 - 1

    def load(self, folder: Path) -> Any:
        return diffusers.AutoencoderVidTok.from_pretrained(folder, low_cpu_mem_usage=False).eval()

    def their_latents(self) -> tuple[Tensor, Tensor | None]:
        """Latents of diffusers, and indices for FSQ."""
        encoded = self.theirs(self.video, sample_posterior=False, encoder_mode=True)
        return encoded if isinstance(encoded, tuple) else (encoded, None)


@pytest.fixture(scope="module", params=NAMES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(request.param, tmp_path_factory.mktemp("diffusers"))


@torch.no_grad()
def test_latents_and_indices_are_those_of_diffusers(pair: Pair) -> None:
    ours, (latents, indices) = pair.ours.encode(pair.video), pair.their_latents()
    torch.testing.assert_close(ours.latents, latents, **LATENTS)
    assert (ours.indices is None) == (indices is None)
    if ours.indices is not None:
        assert torch.equal(ours.indices, indices.long()) and len(indices.unique()) > 5


@torch.no_grad()
def test_decoded_video_is_that_of_diffusers(pair: Pair) -> None:
    latents, indices = pair.their_latents()
    video = pair.theirs.decode(latents)
    assert video.shape == pair.video.shape and video.std() > 0.1
    torch.testing.assert_close(pair.ours.decode(latents), video, **VIDEO)
    torch.testing.assert_close(
        pair.ours(pair.video).reconstruction, pair.theirs(pair.video, sample_posterior=False).sample, **VIDEO
    )
    if indices is not None:
        theirs = pair.theirs.decode(indices, decode_from_indices=True)
        torch.testing.assert_close(pair.ours.decode_indices(indices.long()), theirs, **VIDEO)


def test_weights_convert_back_from_a_diffusers_folder_bit_for_bit(pair: Pair, tmp_path: Path) -> None:
    pair.theirs.save_pretrained(tmp_path / "saved")
    again = VidTok.from_pretrained(convert(tmp_path / "saved", tmp_path / "again"))
    assert again.architecture == pair.ours.architecture
    ours = pair.ours.state_dict()
    assert all(torch.equal(value, ours[name]) for name, value in again.state_dict().items())


@torch.no_grad()
def test_v1_0_padding_is_far_outside_the_tolerance() -> None:
    """So the tolerances distinguish the members of the family."""
    new, old = (fill(VidTok.from_preset("vidtok_kl_causal_488_4chn" + suffix, ch=8)).eval() for suffix in ("_v1_1", ""))
    video = torch.rand(1, 3, 17, 16, 16) * 2 - 1
    latents = new.encode(video).latents
    assert (latents - old.encode(video).latents).abs().max() > 1000 * LATENTS["atol"]
    assert (new.decode(latents) - old.decode(latents)).abs().max() > 100 * VIDEO["atol"]
