"""FVD (arXiv 1812.01717): the Frechet distance between the I3D features of two sets of clips."""

import warnings
from pathlib import Path

import torch
from torch import Tensor

from vidtok_plugin.metrics.frechet import FeatureStatistics, frechet_distance

MIN_FRAMES = 9  # fewer leave no frame for I3D's last temporal pooling
MIN_CLIPS = 2  # for a covariance
I3D_URL = "https://huggingface.co/flateon/FVD-I3D-torchscript/resolve/main/i3d_torchscript.pt"


class I3D:
    """Features of clips by a TorchScript file with the interface of StyleGAN-V's `i3d_torchscript.pt`.

    The interface is `network(video, rescale=False, resize=True, return_features=True)`: the network takes video in
    [-1, 1], resizes it to 224 x 224 itself, and returns a vector of 400 features per clip. A TorchScript file is a
    program: only use one that you trust.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is not a TorchScript file, or takes other arguments.
    """

    def __init__(self, path: str | Path, device: torch.device | str = "cpu") -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"FVD: there is no file {path}; fetch {I3D_URL} and pass its path.")
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "`torch.jit.load` is", DeprecationWarning)  # the format of I3D
                self.network = torch.jit.load(self.path, map_location=device).eval()
        except RuntimeError as error:
            raise ValueError(
                f"FVD: {path} must be a TorchScript file such as {I3D_URL}, but it cannot be read as one "
                f"({str(error).strip().splitlines()[0].partition('. ')[0]})."
            ) from error
        taken = {argument.name for argument in self.network.forward.schema.arguments}
        if missing := {"rescale", "resize", "return_features"} - taken:
            raise ValueError(
                f"FVD: {path} must take the arguments rescale, resize and return_features as {I3D_URL} does, but it "
                f"lacks {', '.join(sorted(missing))}."
            )
        self.device = torch.device(device)

    @torch.no_grad()
    def __call__(self, video: Tensor) -> Tensor:
        """Clips (b, 3, t, h, w) in [-1, 1], t >= 9 -> features (b, d) float32."""
        if video.ndim != 5 or video.shape[1] != 3 or video.shape[2] < MIN_FRAMES:
            raise ValueError(
                f"FVD: clips must have the shape (b, 3, t, h, w) with t >= {MIN_FRAMES}, got {tuple(video.shape)}."
            )
        features = self.network(video.to(self.device).float(), rescale=False, resize=True, return_features=True)
        if features.ndim != 2 or len(features) != len(video):
            raise ValueError(
                f"FVD: {self.path} must return one vector per clip, ({len(video)}, d), got {tuple(features.shape)}."
            )
        return features.float()


class FrechetVideoDistance:
    """The FVD of reconstructions, from running statistics of the features of clips.

    Example:
        >>> distance = FrechetVideoDistance()
        >>> originals = torch.tensor([[0.0, 1.0], [2.0, 3.0]])
        >>> distance.update(torch.stack([originals, originals + 1]))
        >>> distance.num_clips, round(distance.compute(), 6)
        (2, 2.0)
    """

    def __init__(self) -> None:
        self._statistics: tuple[FeatureStatistics, FeatureStatistics] | None = None

    @property
    def num_clips(self) -> int:
        return 0 if self._statistics is None else self._statistics[0].count

    def update(self, features: Tensor) -> None:
        """Adds the features (2, n, d) of n clips and their reconstructions."""
        if self._statistics is None:
            size = features.shape[-1]
            self._statistics = FeatureStatistics(size), FeatureStatistics(size)
        for statistics, vectors in zip(self._statistics, features, strict=True):
            statistics.update(vectors)

    def compute(self) -> float:
        """The distance; a ValueError for fewer than 2 clips. With fewer clips than features it is biased upwards."""
        if self._statistics is None or self.num_clips < MIN_CLIPS:
            raise ValueError(f"FVD: it needs at least {MIN_CLIPS} clips, got {self.num_clips}.")
        a, b = self._statistics
        return frechet_distance(a.mean, a.covariance(), b.mean, b.covariance())
