"""The networks of LPIPS and FVD, and the reasons for missing ones."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from vidtok_plugin.common.file_hashes import hash_files
from vidtok_plugin.common.hashing import hash_weights
from vidtok_plugin.metrics.fvd import I3D, I3D_URL
from vidtok_plugin.metrics.lpips import LPIPS
from vidtok_plugin.metrics.lpips_weights import load_lpips


@dataclass(frozen=True, kw_only=True)
class MetricNetworks:
    """The networks of the metrics; a metric without one is not computed, and `not_computed` says why."""

    lpips: LPIPS | None
    i3d: I3D | None
    not_computed: Mapping[str, str]  # "lpips" or "fvd" -> why

    def hashes(self) -> dict[str, str | None]:
        return {
            "lpips_hash": None if self.lpips is None else hash_weights(self.lpips.state_dict()),
            "i3d_hash": None if self.i3d is None else hash_files(self.i3d.path),
        }


def load_metric_networks(
    device: torch.device | str, *, vgg: str | Path | None = None, i3d: str | Path | None = None
) -> MetricNetworks:
    """LPIPS with the VGG16 file `vgg` (see `load_lpips`), and the I3D of a file.

    A given file that is missing or doesn't fit is an error. Without `vgg`, LPIPS is left out if its weights can't be
    downloaded; without `i3d`, FVD is left out, since I3D has no standard location.
    """
    network = None if i3d is None else I3D(i3d, device)  # a wrong path is an error before the long download
    lpips, not_computed = None, {}
    try:
        lpips = load_lpips(vgg).to(device)
    except FileNotFoundError as error:
        if vgg is not None:
            raise
        not_computed["lpips"] = str(error).removeprefix("LPIPS: ")
    if i3d is None:
        not_computed["fvd"] = f"no network was given; fetch {I3D_URL} and pass the file with --i3d."
    return MetricNetworks(lpips=lpips, i3d=network, not_computed=not_computed)
