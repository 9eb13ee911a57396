"""The result of an evaluation, as JSON and as a table."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from vidtok_plugin.common.atomic_files import atomic_write
from vidtok_plugin.evaluation.records import Scores, VideoScores
from vidtok_plugin.tokenizer.presets import Metrics

REPORT_FILE = "metrics.json"


@dataclass(frozen=True, kw_only=True)
class Report:
    """The overall figures and those of each video."""

    model: str
    settings: Mapping[str, Any]
    overall: Scores
    videos: tuple[VideoScores, ...]
    not_computed: Mapping[str, str]  # metric -> why
    skipped: Mapping[str, str]  # unreadable video -> why
    published: Metrics | None = None  # figures of the model, on other videos

    @property
    def num_clips(self) -> int:
        return sum(video.num_clips for video in self.videos)

    def to_json(self) -> dict[str, Any]:
        """The content of `metrics.json`."""
        return {
            "model": self.model,
            "settings": dict(self.settings),
            "num_videos": len(self.videos),
            "num_frames": sum(video.num_frames for video in self.videos),
            "num_clips": self.num_clips,
            "overall": asdict(self.overall),
            "not_computed": dict(self.not_computed),
            "published": None if self.published is None else asdict(self.published),
            "videos": [video.to_json() for video in self.videos],
            "skipped": dict(self.skipped),
        }

    def write(self, folder: str | Path) -> Path:
        """Writes `metrics.json` and returns its path."""
        path = Path(folder) / REPORT_FILE
        with atomic_write(path) as partial:
            partial.write_text(json.dumps(self.to_json(), indent=2) + "\n", encoding="utf-8")
        return path

    def table(self) -> Table:
        """A row per video, then the overall and the published figures."""
        table = Table("video")
        for name in ("frames", "PSNR", "SSIM", "LPIPS", "FVD"):
            table.add_column(name, justify="right")
        for video in self.videos:
            table.add_row(escape(video.name), str(video.num_frames), *_cells(video))
        table.add_section()
        table.add_row("overall", str(sum(video.num_frames for video in self.videos)), *_cells(self.overall))
        if self.published is not None:
            table.add_row("published (MCL-JCV, 30 fps, 256x256)", "", *_cells(self.published))
        return table

    def notes(self) -> list[str]:
        """Remarks below the table."""
        notes = [f"{metric.upper()} not computed: {why}" for metric, why in self.not_computed.items()]
        if self.overall.fvd is not None:
            notes.append(f"FVD is over {self.num_clips} clips; the fewer clips, the stronger its upward bias.")
        notes += [f"skipped: {why}" for why in self.skipped.values()]
        return notes


def _cells(scores: Scores | Metrics) -> list[str]:
    values = ((scores.psnr, 2), (scores.ssim, 4), (scores.lpips, 4), (scores.fvd, 1))
    return ["-" if value is None else f"{value:.{digits}f}" for value, digits in values]
