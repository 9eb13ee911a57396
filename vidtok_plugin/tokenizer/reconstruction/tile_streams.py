"""Reconstruction tile by tile: each tile is a video of its own, whose streams wait while the other tiles run."""

from collections.abc import Callable
from pathlib import Path

import torch
from tensordict import TensorDict
from torch import Tensor

from vidtok_plugin.common.devices import for_float64
from vidtok_plugin.tokenizer.model import VidTok
from vidtok_plugin.tokenizer.reconstruction.tiling import Tile, Tiling
from vidtok_plugin.tokenizer.streams import DecoderStream, EncoderStream

Streams = tuple[EncoderStream, DecoderStream]


class TiledReconstruction:
    """Reconstructs a video of any length, a few frames per push.

    A causal model runs one stream over all pushes in each tile; a non-causal one reconstructs each push as a clip.
    The result of a single tile equals that of the whole frame; several tiles differ from it (see `tiling`).

    Between two pushes the states of the streams stay on the model's device, or with `folder` in files there. Memory is
    then that of one tile, and the files don't grow with the video.

    Example:
        >>> tokenizer = VidTok.from_preset("vidtok_kl_causal_488_4chn", ch=4).eval()
        >>> tiling = Tiling(16, 64, rows=1, columns=2, overlap=16, multiple=8)
        >>> tiled = TiledReconstruction(tokenizer, tiling)
        >>> frames = torch.zeros(1, 3, 6, 16, 64, dtype=torch.uint8)
        >>> tiled.push(frames).shape[2], tiled.flush().shape[2]   # 1 + 4 + 4 frames, of which the last 3 are padding
        (5, 4)
    """

    def __init__(self, tokenizer: VidTok, tiling: Tiling, *, folder: Path | None = None) -> None:
        self.tokenizer, self.tiling, self.folder = tokenizer, tiling, folder
        self._streams: dict[int, Streams] = {}
        self._difference, self._compared = 0.0, 0

    @property
    def seam(self) -> float | None:
        """Mean difference of neighboring tiles where they overlap, over all frames so far, in levels of 0-255; None for
        a single tile."""
        return 127.5 * self._difference / self._compared if self._compared else None

    @torch.no_grad()
    def push(self, frames: Tensor) -> Tensor:
        """uint8 frames (1, 3, n, h, w) -> the reconstructed frames (1, 3, m, h, w) in [-1, 1] that are final now."""

        def work(number: int, tile: Tile) -> Tensor:
            clip = frames[..., tile.rows, tile.columns].to(self.tokenizer.device)
            if not self.tokenizer.causal:
                return self.tokenizer(clip).reconstruction
            encoder, decoder = self._resume(number)
            reconstruction = decoder.push(encoder.push(clip).latents)
            self._keep(number, encoder, decoder)
            return reconstruction

        return self._over_tiles(work)

    @torch.no_grad()
    def flush(self) -> Tensor:
        """Ends the streams: the frames (1, 3, m, h, w) still held back, perhaps some beyond the video's end."""

        def work(number: int, tile: Tile) -> Tensor:
            encoder, decoder = self._resume(number)
            frames = decoder.push(encoder.flush().latents)
            return torch.cat([frames, decoder.flush()], dim=2)

        if not self.tokenizer.causal:
            return torch.zeros(1, 3, 0, self.tiling.height, self.tiling.width)
        return self._over_tiles(work)

    def _over_tiles(self, work: Callable[[int, Tile], Tensor]) -> Tensor:
        tiles = self.tiling.tiles
        if len(tiles) == 1:
            return work(0, tiles[0]).clamp_(-1, 1)
        frames, covered = torch.empty(0), torch.empty(0)
        for number, tile in enumerate(tiles):
            reconstruction = work(number, tile).clamp_(-1, 1)
            weights = self.tiling.weights(number).to(reconstruction)
            if number == 0:
                size = (self.tiling.height, self.tiling.width)
                frames = reconstruction.new_zeros(1, 3, reconstruction.shape[2], *size)
                covered = weights.new_zeros(size)
            self._compare(reconstruction, frames[..., tile.rows, tile.columns], covered[tile.rows, tile.columns])
            frames[..., tile.rows, tile.columns] += reconstruction * weights
            covered[tile.rows, tile.columns] += weights
        return frames

    def _compare(self, tile: Tensor, sum_before: Tensor, weight_before: Tensor) -> None:
        """Adds the difference between a tile and the blend of the earlier tiles, over the pixels that they share."""
        shared = weight_before > 0
        before = sum_before[..., shared] / weight_before[shared]
        self._difference += for_float64(tile[..., shared] - before).abs().sum(dtype=torch.float64).item()
        self._compared += before.numel()

    def _resume(self, number: int) -> Streams:
        if self.folder is None or not self._path(number).exists():
            streams = self._streams.pop(number, None)
            return streams or (self.tokenizer.encoder_stream(), self.tokenizer.decoder_stream())
        # Copies, since the files are overwritten while the state is in use.
        device = self.tokenizer.device
        states = TensorDict.load_memmap(self._path(number)).to_tensordict().to(device)
        return self.tokenizer.encoder_stream(state=states["encoder"]), self.tokenizer.decoder_stream(
            state=states["decoder"]
        )

    def _keep(self, number: int, encoder: EncoderStream, decoder: DecoderStream) -> None:
        if self.folder is None:
            self._streams[number] = (encoder, decoder)
        else:
            states = TensorDict({"encoder": encoder.state, "decoder": decoder.state}, batch_size=[1])
            states.memmap(self._path(number))

    def _path(self, number: int) -> Path:
        assert self.folder is not None
        return self.folder / f"tile_{number}"
