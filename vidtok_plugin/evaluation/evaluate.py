"""Evaluation of a tokenizer on a folder of videos by VidTok's published protocol, resumable."""

import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from einops import rearrange
from rich.progress import Progress, TaskID
from torch import Tensor

from vidtok_plugin.common.config import to_yaml
from vidtok_plugin.common.devices import for_float64
from vidtok_plugin.common.field_checks import check_fields
from vidtok_plugin.common.folder_lock import FolderLock
from vidtok_plugin.common.hashing import hash_values
from vidtok_plugin.common.paths import as_path
from vidtok_plugin.common.progress import progress_bar
from vidtok_plugin.evaluation.networks import MetricNetworks
from vidtok_plugin.evaluation.pairs import (
    clip_pairs,
    frame_rate,
    pad_clip,
    read_scaled,
    rechunk,
    sampled,
    stream_pairs,
)
from vidtok_plugin.evaluation.records import Records, Scores, VideoScores
from vidtok_plugin.evaluation.report import Report
from vidtok_plugin.metrics import fvd
from vidtok_plugin.metrics.frames import bounded_psnr, frame_ssim
from vidtok_plugin.metrics.lpips import LPIPS, MIN_SIZE
from vidtok_plugin.tokenizer.model import VidTok
from vidtok_plugin.tokenizer.presets import presets
from vidtok_plugin.tokenizer.video_checks import check_multiple
from vidtok_plugin.video.episode import Episode
from vidtok_plugin.video.opening import open_videos
from vidtok_plugin.video.unreadable import UnreadableVideoError

logger = logging.getLogger(__name__)

LPIPS_FRAMES = 8  # per call of LPIPS


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How videos are sampled, resized and split; `published_protocol` returns the settings of the published figures.

    Every k-th frame of a video is used, where k is its rate divided by `fps`, rounded, and at least 1. Frames are never
    repeated or blended, so slower videos keep their rate. Frames are resized to a short side of `size` and
    center-cropped.

    With protocol "clips" the model reconstructs independent clips of `clip_frames`. The last clip is padded by
    repeating its last frame, and padding counts as frames; the overall figures are means over all clips. With "whole"
    the model streams each video, and the overall figures are means over the videos. In both, FVD compares clips of
    `clip_frames`, the last one padded.
    """

    protocol: Literal["clips", "whole"] = "clips"
    fps: float = 30.0
    size: int = 256
    clip_frames: int = 17

    def __post_init__(self) -> None:
        check_fields(self)
        if self.protocol not in ("clips", "whole"):
            raise ValueError(f"EvaluationConfig: protocol must be clips or whole, got {self.protocol}.")
        if not 0 < self.fps < math.inf:
            raise ValueError(f"EvaluationConfig: fps must be above 0, got {self.fps}.")
        if self.size < MIN_SIZE:
            raise ValueError(f"EvaluationConfig: size must be at least {MIN_SIZE} (for LPIPS), got {self.size}.")
        if self.clip_frames < 1:
            raise ValueError(f"EvaluationConfig: clip_frames must be at least 1, got {self.clip_frames}.")


def published_protocol(tokenizer: VidTok) -> EvaluationConfig:
    """v1.1: whole videos; others: clips of 17 frames if causal, else of 16; always 30 fps and 256x256."""
    whole = tokenizer.causal and tokenizer.architecture.version == "1.1"
    return EvaluationConfig(protocol="whole" if whole else "clips", clip_frames=17 if tokenizer.causal else 16)


def check_fits(tokenizer: VidTok, cfg: EvaluationConfig, *, with_fvd: bool) -> None:
    """Raises a ValueError for settings that don't fit the model or FVD."""
    if tokenizer.training:
        raise ValueError("evaluate: the tokenizer must be in eval mode, got training mode; call its eval() first.")
    factor = tokenizer.spatial_factor
    check_multiple(cfg.size, factor, who="evaluate", name="size", of="the tokenizer's spatial factor")
    if cfg.protocol == "whole" and not tokenizer.causal:
        raise ValueError("evaluate: protocol must be clips for a non-causal model, which cannot stream, got whole.")
    if with_fvd and cfg.clip_frames < fvd.MIN_FRAMES:
        raise ValueError(
            f"evaluate: clip_frames must be at least {fvd.MIN_FRAMES} for FVD, got {cfg.clip_frames}; use longer "
            "clips, or leave FVD out."
        )


def default_output(model: str, folder: str | Path) -> Path:
    """The default output folder of `vidtok-plugin evaluate`.

    Example:
        >>> default_output("runs/mine/model", "/data/videos").as_posix()
        'runs/evaluate/runs_mine_model/data_videos'
    """
    names = (Path(model).as_posix(), as_path(folder).resolve().as_posix())
    return Path("runs", "evaluate", *(name.strip("./").replace("/", "_") for name in names))


@torch.no_grad()
def evaluate(
    tokenizer: VidTok,
    folder: str | Path,
    output: str | Path,
    *,
    camera: str | None = None,
    model: str,
    cfg: EvaluationConfig,
    networks: MetricNetworks,
    skip_unreadable: bool = False,
    progress: bool = False,
) -> Report:
    """Evaluates `tokenizer` on all videos of a source for `open_videos`, and writes `output/metrics.json` as well.

    An interrupted evaluation resumes after the last finished video. Videos added since are evaluated, and removed ones
    no longer count.

    camera: of a source with several.
    model: the name or path that the tokenizer was loaded from; for a published name, the report includes the published
        figures.
    skip_unreadable: leave out damaged videos and list them in the report; more than half of all are an error.

    Raises:
        FileNotFoundError: the folder is missing, or has no videos.
        ValueError: a video is damaged; settings don't fit; or `output` has the evaluation of another model, with other
            settings, or of a video that has changed since, or another process is writing it.
    """
    check_fits(tokenizer, cfg, with_fvd=networks.i3d is not None)
    found = open_videos(folder, camera)
    model_hash = hash_values(tokenizer.state_dict(), to_yaml(tokenizer.architecture))
    settings = {"model_hash": model_hash, **asdict(cfg), **networks.hashes()}
    skipped: dict[str, str] = {}

    def skip(video: Episode, error: UnreadableVideoError) -> None:
        if not skip_unreadable:
            raise error
        logger.warning("skipped: %s", error)
        skipped[video.name] = str(error)
        if len(skipped) * 2 > len(found):
            raise ValueError(
                f"evaluate: {len(skipped)} of the {len(found)} videos in {folder} cannot be read, more than half; "
                "see the log for the causes."
            ) from error

    to_sample: list[tuple[Episode, range]] = []
    for video in found:
        try:
            to_sample.append((video, sampled(video.num_frames, frame_rate(video), cfg.fps)))
        except UnreadableVideoError as error:
            skip(video, error)
    videos = []
    with FolderLock(output), progress_bar(progress) as bar:
        records = Records(output, settings)
        task = bar.add_task("frames", total=sum(len(indices) for _, indices in to_sample))
        for number, (video, indices) in enumerate(to_sample):
            # Of a video that was skipped, some frames were not counted.
            bar.update(task, completed=sum(len(earlier) for _, earlier in to_sample[:number]))
            name, digest = video.name, video.frames_digest()
            scores = records.finished(name, digest, with_features=networks.i3d is not None)
            if scores is not None:
                videos.append(scores)
                bar.advance(task, len(indices))
                continue
            frames = read_scaled(video, indices.step, cfg.size, tokenizer.device)
            try:
                scores, features = _evaluate_video(
                    tokenizer,
                    _counted(frames, bar, task),
                    cfg,
                    networks,
                    name=name,
                    digest=digest,
                    fps=frame_rate(video) / indices.step,
                )
            except UnreadableVideoError as error:
                skip(video, error)
            else:
                records.add(scores, features)
                videos.append(scores)
        bar.update(task, completed=sum(len(indices) for _, indices in to_sample))
        overall, not_computed = _overall(videos, records, cfg, networks)
        report = Report(
            model=model,
            settings=settings,
            overall=overall,
            videos=tuple(videos),
            not_computed=not_computed,
            skipped=skipped,
            published=presets()[model].metrics if model in presets() else None,
        )
        report.write(output)
        return report


def _counted(frames: Iterable[Tensor], bar: Progress, task: TaskID) -> Iterator[Tensor]:
    for block in frames:
        yield block
        bar.advance(task, block.shape[2])


def _evaluate_video(
    tokenizer: VidTok,
    frames: Iterable[Tensor],
    cfg: EvaluationConfig,
    networks: MetricNetworks,
    *,
    name: str,
    digest: str,
    fps: float,
) -> tuple[VideoScores, Tensor | None]:
    """The scores of a video, given its frames in blocks (1, 3, t, h, w), and the features (2, clips, d) of its clips if
    FVD is computed."""
    if cfg.protocol == "clips":
        pairs = clip_pairs(tokenizer, frames, cfg.clip_frames)
    else:
        pairs = stream_pairs(tokenizer, frames)
    sums: dict[str, float] = {}
    num_frames = num_clips = 0
    clip_features = []
    for pair in rechunk(pairs, cfg.clip_frames):
        for metric, values in _frame_scores(pair, networks.lpips).items():
            sums[metric] = sums.get(metric, 0.0) + float(for_float64(values).double().sum())
        num_frames, num_clips = num_frames + pair.shape[2], num_clips + 1
        if networks.i3d is not None:
            clip_features.append(networks.i3d(pad_clip(pair.clamp(-1, 1), cfg.clip_frames)))
    means = {metric: total / num_frames for metric, total in sums.items()}
    if not all(math.isfinite(mean) for mean in means.values()):
        raise ValueError(
            f"evaluate: the reconstruction of {name} must be finite, and isn't; the model's weights are damaged, or "
            "its training has diverged."
        )
    features = torch.stack(clip_features, dim=1).cpu() if clip_features else None
    scores = VideoScores(
        name=name,
        digest=digest,
        fps=fps,
        num_frames=num_frames,
        num_clips=num_clips,
        psnr=means["psnr"],
        ssim=means["ssim"],
        lpips=means.get("lpips"),
        fvd=None if features is None else _fvd([features]),
    )
    return scores, features


def _frame_scores(pair: Tensor, lpips: LPIPS | None) -> dict[str, Tensor]:
    """The metrics (t,) per frame of a pair (2, 3, t, h, w)."""
    real, made = pair[:1], pair[1:].clamp(-1, 1)
    scores = {"psnr": bounded_psnr(real, made)[0], "ssim": frame_ssim(real, made)[0]}
    if lpips is not None:
        frames = [rearrange(x, "1 c t h w -> t c h w").split(LPIPS_FRAMES) for x in (real, made)]
        scores["lpips"] = torch.cat([lpips(a, b) for a, b in zip(*frames, strict=True)])
    return scores


def _fvd(features: Iterable[Tensor]) -> float | None:
    """The FVD over all clips, given their features (2, clips, d) video by video; None for too few clips."""
    distance = fvd.FrechetVideoDistance()
    for of_video in features:
        distance.update(of_video)
    return distance.compute() if distance.num_clips >= fvd.MIN_CLIPS else None


def _overall(
    videos: list[VideoScores], records: Records, cfg: EvaluationConfig, networks: MetricNetworks
) -> tuple[Scores, Mapping[str, str]]:
    """The overall figures, and the reasons for missing ones."""
    # All clips have the same length, so the number of frames weighs all clips equally.
    weights = [video.num_frames if cfg.protocol == "clips" else 1 for video in videos]

    def mean(metric: str) -> float:
        weighted = (weight * getattr(video, metric) for weight, video in zip(weights, videos, strict=True))
        return sum(weighted) / sum(weights)

    not_computed: dict[str, Any] = dict(networks.not_computed)
    distance = None
    if networks.i3d is not None:
        distance = _fvd(_features(videos, records))
        if distance is None:
            not_computed["fvd"] = f"it needs at least {fvd.MIN_CLIPS} clips; evaluate more or longer videos."
    lpips = None if networks.lpips is None else mean("lpips")
    return Scores(psnr=mean("psnr"), ssim=mean("ssim"), lpips=lpips, fvd=distance), not_computed


def _features(videos: Iterable[VideoScores], records: Records) -> Iterable[Tensor]:
    for video in videos:
        features = records.features(video.name)
        assert features is not None  # a video without features is not finished
        yield features
