"""Records of the finished videos of an evaluation, from which it resumes after an interruption.

OUTPUT/videos.jsonl                      a line with the model hash and settings, then a line per finished video
OUTPUT/features/NAME.safetensors         features of a video's clips, if FVD is computed
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vidtok_plugin.common.atomic_files import atomic_write, naming
from vidtok_plugin.common.paths import as_path

RECORDS_FILE = "videos.jsonl"
FEATURES_FOLDER = "features"


@dataclass(frozen=True, kw_only=True)
class Scores:
    """PSNR in dB, SSIM, LPIPS and FVD; None for a metric that isn't computed."""

    psnr: float
    ssim: float
    lpips: float | None
    fvd: float | None


@dataclass(frozen=True, kw_only=True)
class VideoScores(Scores):
    """The means over a video's frames, and the FVD of its clips."""

    name: str  # path relative to the evaluated folder
    digest: str  # SHA-256 of the file
    fps: float  # rate of the sampled frames
    num_frames: int  # compared, including padding
    num_clips: int

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, **asdict(self)}  # the name first, for readability


class Records:
    """The finished videos of an evaluation with the given settings; creates the folder if needed.

    A truncated last line is dropped, and its video is evaluated again.

    Raises:
        ValueError: the folder has an evaluation with other settings, or a damaged line before the last.
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, Any]) -> None:
        self.folder = as_path(folder)
        self.path = self.folder / RECORDS_FILE
        self._videos: dict[str, VideoScores] = {}
        self.folder.mkdir(parents=True, exist_ok=True)
        lines = self._complete_lines() if self.path.exists() else []
        if not lines:
            with atomic_write(self.path) as partial:
                partial.write_text(json.dumps(settings) + "\n", encoding="utf-8")
            return
        self._check_same(lines[0], json.loads(json.dumps(settings)))
        for line in lines[1:]:
            self._videos[line["name"]] = VideoScores(**line)

    def finished(self, name: str, digest: str, *, with_features: bool) -> VideoScores | None:
        """The scores of a finished video, else None; a ValueError if the file has changed since."""
        scores = self._videos.get(name)
        if scores is None or (with_features and self.features(name) is None):
            return None
        if scores.digest != digest:
            raise ValueError(
                f"evaluate: {name} has changed since it was evaluated into {self.folder}; "
                "choose another output folder, or remove that one."
            )
        return scores

    def add(self, scores: VideoScores, features: Tensor | None) -> None:
        """Appends a video, with the features (2, clips, d) of its original and reconstructed clips."""
        if features is not None:
            with atomic_write(self._features_path(scores.name)) as partial:
                save_file({"features": features.cpu().contiguous()}, partial)
        with naming(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(scores.to_json()) + "\n")
        self._videos[scores.name] = scores

    def features(self, name: str) -> Tensor | None:
        """The features (2, clips, d) of a video; None if the file is missing or incomplete."""
        try:
            return load_file(self._features_path(name))["features"]
        except (FileNotFoundError, SafetensorError):
            return None

    def _features_path(self, name: str) -> Path:
        return self.folder / FEATURES_FOLDER / f"{name}.safetensors"

    def _complete_lines(self) -> list[dict[str, Any]]:
        """The parsed lines; a truncated last line is removed from the file."""
        data = self.path.read_bytes()
        parsed: list[dict[str, Any]] = []
        lines = data.splitlines(keepends=True)
        for number, line in enumerate(lines, start=1):
            try:
                if not line.endswith(b"\n"):
                    raise ValueError("truncated")
                parsed.append(json.loads(line))
            except ValueError:
                if number < len(lines):
                    raise ValueError(
                        f"evaluate: line {number} of {self.path} is not valid JSON; remove the line to evaluate its "
                        "video again."
                    ) from None
                os.truncate(self.path, len(data) - len(line))
        return parsed

    def _check_same(self, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
        for name in ours:
            if name not in theirs or theirs[name] != ours[name]:
                raise ValueError(
                    f"evaluate: {self.folder} has an evaluation with {name} {theirs.get(name)}, not {ours[name]}; "
                    "choose another output folder, or remove that one."
                )
