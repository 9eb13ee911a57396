"""Tiles cover a frame, their weights sum to one, and their streams equal whole clips of them."""

from pathlib import Path

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from natural_clips import natural_clip
from torch import Tensor
from toy_tokenizers import difference, random_video, toy_tokenizer

from vidtok_plugin import VidTok
from vidtok_plugin.metrics.psnr import frame_psnr
from vidtok_plugin.tokenizer.reconstruction.memory import footprint, make_plan
from vidtok_plugin.tokenizer.reconstruction.tile_streams import TiledReconstruction
from vidtok_plugin.tokenizer.reconstruction.tiling import Tiling, tile_length
from vidtok_plugin.video import read_frames

NAMES = ("vidtok_fsq_causal_488_32768", "vidtok_kl_causal_488_4chn_v1_1", "vidtok_kl_noncausal_488_4chn")


@pytest.fixture(scope="module", params=NAMES)
def model(request: pytest.FixtureRequest) -> VidTok:
    return toy_tokenizer(request.param)


def uint8_video(num_frames: int, h: int, w: int) -> Tensor:
    return ((random_video(num_frames, h=h, w=w) + 1) * 127.5).round().to(torch.uint8)


def reconstruct(tiled: TiledReconstruction, video: Tensor, push: int) -> Tensor:
    return torch.cat([tiled.push(chunk) for chunk in video.split(push, dim=2)] + [tiled.flush()], dim=2)


@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 4), st.integers(1, 4), st.integers(0, 40))
def test_weights_sum_to_one_everywhere(h: int, w: int, rows: int, columns: int, overlap: int) -> None:
    for size, count in ((h, rows), (w, columns)):
        assume(tile_length(8 * size, count, overlap, 8) <= 8 * size)
    tiling = Tiling(8 * h, 8 * w, rows=rows, columns=columns, overlap=overlap, multiple=8)
    total = torch.zeros(8 * h, 8 * w)
    for number, tile in enumerate(tiling.tiles):
        weights = tiling.weights(number)
        assert weights.min() > 0 and weights.shape == (tiling.tile_height, tiling.tile_width)
        assert tile.rows.start % 8 == tile.columns.start % 8 == tile.rows.stop % 8 == tile.columns.stop % 8 == 0
        total[tile.rows, tile.columns] += weights
    torch.testing.assert_close(total, torch.ones_like(total))
    edges = sorted({(tile.rows.start, tile.rows.stop) for tile in tiling.tiles})
    assert all(stop - start >= overlap for (start, _), (_, stop) in zip(edges[1:], edges[:-1], strict=True))


@pytest.mark.parametrize("push", [4, 11])
def test_a_single_tile_equals_the_whole_clip(model: VidTok, push: int) -> None:
    if not model.causal and push < 11:
        pytest.skip("a non-causal model reconstructs each push on its own")
    video = uint8_video(11, 16, 24)
    tiled = TiledReconstruction(model, Tiling(16, 24, rows=1, columns=1, overlap=8, multiple=8))
    with torch.no_grad():
        whole = model(video).reconstruction.clamp(-1, 1)
    assert difference(reconstruct(tiled, video, push)[:, :, :11], whole) < 1e-11
    assert tiled.seam is None


def test_tiles_are_blended_from_their_own_reconstructions(model: VidTok) -> None:
    video, tiling = uint8_video(8, 16, 32), Tiling(16, 32, rows=1, columns=2, overlap=8, multiple=8)
    expected = torch.zeros(1, 3, 8, 16, 32, dtype=torch.float64)
    with torch.no_grad():
        for number, tile in enumerate(tiling.tiles):
            alone = model(video[..., tile.rows, tile.columns]).reconstruction.clamp(-1, 1)
            expected[..., tile.rows, tile.columns] += alone * tiling.weights(number)
    tiled = TiledReconstruction(model, tiling)
    assert difference(reconstruct(tiled, video, 8)[:, :, :8], expected) < 1e-6  # the weights are float32
    assert tiled.seam is not None and tiled.seam > 0


def test_states_on_disk_give_the_same_result_as_in_memory(model: VidTok, tmp_path: Path) -> None:
    video, tiling = uint8_video(11, 16, 32), Tiling(16, 32, rows=1, columns=2, overlap=8, multiple=8)
    in_memory = reconstruct(TiledReconstruction(model, tiling), video, 4)
    assert torch.equal(reconstruct(TiledReconstruction(model, tiling, folder=tmp_path), video, 4), in_memory)
    assert any(tmp_path.iterdir()) == model.causal


# Memory


def test_a_footprint_is_in_proportion_to_the_pixels(model: VidTok) -> None:
    """So the count for a small tile predicts that for a large one."""
    small = footprint(model, 4)
    assert small.push > small.state >= 0 and (small.state > 0) == model.causal
    assert footprint(model, 8).push > small.push
    large = footprint(model, 4, latents=5)
    assert large.push == pytest.approx(small.push, rel=0.02) and large.state == pytest.approx(small.state, rel=0.02)


def test_a_budget_decides_the_tiles() -> None:
    model = toy_tokenizer(NAMES[0], ch=16).float()
    whole = make_plan(model, 512, 768, budget=None)
    assert len(whole.tiling.tiles) == 1 and whole.states_on_disk == 0
    assert len(make_plan(model, 512, 768, budget=whole.memory).tiling.tiles) == 1
    tiles = []
    for fraction in (0.7, 0.5, 0.4):
        plan = make_plan(model, 512, 768, budget=fraction * whole.memory)
        assert plan.memory <= fraction * whole.memory
        tiles.append(len(plan.tiling.tiles))
    assert 1 < tiles[0] <= tiles[1] <= tiles[2]


def test_a_budget_below_the_smallest_tile_names_the_minimum() -> None:
    model = toy_tokenizer(NAMES[0]).float()
    with pytest.raises(ValueError, match=r"memory must be at least [0-9.]+ GB for frames of 512 x 768 .*, got 0.01 GB"):
        make_plan(model, 512, 768, budget=1e7)


# Seams


@torch.no_grad()
def test_seams_of_a_natural_clip_are_slight() -> None:
    """The measurement in `tiling`'s docstring, on a smaller clip: an overlap makes seams weaker."""
    model = VidTok.from_pretrained("vidtok_tiny")
    frames = torch.from_numpy(read_frames(natural_clip("bikes.mp4"), range(5)))[:, :192, :320]
    video = frames.permute(3, 0, 1, 2)[None]
    original, whole = video / 127.5 - 1, model(video).reconstruction.clamp(-1, 1)
    seams = {}
    for overlap in (0, 48):
        tiled = TiledReconstruction(model, Tiling(192, 320, rows=1, columns=2, overlap=overlap, multiple=8))
        blended = reconstruct(tiled, video, 5)[:, :, :5]
        seams[overlap] = (blended - whole)[..., 156:164].abs().mean() * 127.5  # levels of 0-255
        assert frame_psnr(original, blended).mean() > frame_psnr(original, whole).mean() - 0.2  # dB
    assert seams[48] < 2 and seams[48] < seams[0] / 2
