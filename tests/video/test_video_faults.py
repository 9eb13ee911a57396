"""Unreadable files: logged once, limited by a budget, and without effect on the other clips."""

import logging
import re
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import Tensor
from video_files import cut_off, moving_noise, overwrite, write_faststart, write_file

from vidtok_plugin.video import (
    UnreadableVideoError,
    UnreadableVideos,
    VideoBatch,
    VideoDataConfig,
    VideoDataModule,
    as_video,
)
from vidtok_plugin.video.batch import Clip, collate_clips

AT_INDEXING = {"cut.mp4", "empty.mp4", "text.mp4"}
WHEN_READ = {"damaged.mp4"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six videos of different sizes, rates and containers, and four unreadable files."""
    root = tmp_path_factory.mktemp("videos")
    write_file(root / "a.mp4", moving_noise(40), fps=30)
    write_file(root / "b.mkv", moving_noise(40, width=64), fps=25, b_frames=2)
    write_file(root / "c.avi", moving_noise(40, height=48), codec="mpeg4")
    write_file(root / "d.mp4", moving_noise(40)[:, :31, :29], pixels="yuv444p")  # odd sizes
    times = np.cumsum(np.random.default_rng(0).integers(20, 60, 40)).tolist()
    write_file(root / "e.mkv", moving_noise(40), times=times)
    write_file(root / "f.mpg", moving_noise(40, width=48), codec="mpeg1video")
    overwrite(write_faststart(root / "damaged.mp4", moving_noise(40)), 0.5, 0.95)
    cut_off(write_faststart(root / "cut.mp4", moving_noise(40)), 0.6)
    (root / "text.mp4").write_text("no video\n" * 50)
    (root / "empty.mp4").touch()
    return root


def config(folder: Path, **changes: Any) -> VideoDataConfig:
    values: dict[str, Any] = {
        "train": (str(folder),),
        "clip_length": 4,
        "height": 24,
        "width": 24,
        "fps": 12.0,
        "crop": "random",
        "horizontal_flip": True,
        "batch_size": 4,
        "clips_per_epoch": 32,
        "max_unreadable_fraction": 0.5,
        "seed": 3,
    }
    return VideoDataConfig(**values | changes)


class Recorder(pl.LightningModule):
    """Learns nothing and records batches and the number of unreadable videos."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[list[str], Tensor]] = []
        self.counts: list[int] = []

    def training_step(self, batch: VideoBatch, batch_idx: int) -> Tensor:
        self.seen.append((batch.origins, batch.video.double().mean(dim=(1, 2, 3, 4))))
        self.counts.append(self.trainer.datamodule.unreadable.count)  # type: ignore[attr-defined]
        return self.weight * as_video(batch).mean()

    def validation_step(self, batch: VideoBatch, batch_idx: int) -> None:
        raise AssertionError("nothing is validated")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(data: VideoDataModule, output: Path, resume: Path | None = None, epochs: int = 2) -> Recorder:
    module = Recorder()
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_epochs=epochs,
        limit_val_batches=0,
        default_root_dir=output,
        enable_checkpointing=False,
    )
    trainer.fit(module, data, ckpt_path=resume, weights_only=True)
    trainer.save_checkpoint(output / "last.ckpt")
    assert data._train_loader is not None
    data._train_loader._iterator = None  # ends the workers now; on garbage collection, PyTorch takes 10 s
    return module


def logged(text: str) -> list[str]:
    """The names of the files that were logged as skipped."""
    return re.findall(r"skipped: Video \S*?([\w-]+\.\w+) ", text)


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
class TestTraining:
    @pytest.mark.parametrize(
        "changes",
        [
            {"num_workers": 2, "read_timeout": 60.0},
            pytest.param({"num_workers": 2}, marks=pytest.mark.slow),
            pytest.param({"read_timeout": 60.0}, marks=pytest.mark.slow),
        ],
    )
    def test_clips_do_not_depend_on_the_reader_and_each_unreadable_file_is_logged_once(
        self, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, changes: dict[str, Any]
    ) -> None:
        expected = fit(VideoDataModule(config(folder)), tmp_path)
        assert sorted(logged(caplog.text)) == sorted(AT_INDEXING | WHEN_READ)
        assert expected.counts[0] >= 3 and expected.counts[-1] == 4
        names = {Path(origin.split(",")[0]).name for origins, _ in expected.seen for origin in origins}
        assert names >= {"a.mp4", "b.mkv", "c.avi", "d.mp4", "e.mkv", "f.mpg"} and not names & AT_INDEXING
        caplog.clear()
        other = fit(VideoDataModule(config(folder, **changes)), tmp_path / "other")
        assert [origins for origins, _ in other.seen] == [origins for origins, _ in expected.seen]
        assert all(torch.equal(one[1], two[1]) for one, two in zip(expected.seen, other.seen, strict=True))
        assert sorted(logged(caplog.text)) == sorted(AT_INDEXING | WHEN_READ)

    def test_a_resumed_run_does_not_log_an_unreadable_file_again(
        self, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        fit(VideoDataModule(config(folder)), tmp_path, epochs=1)
        assert sorted(logged(caplog.text)) == sorted(AT_INDEXING | WHEN_READ)
        caplog.clear()
        data = VideoDataModule(config(folder))
        resumed = fit(data, tmp_path / "resumed", tmp_path / "last.ckpt")
        assert len(resumed.seen) == 8 and logged(caplog.text) == []
        assert data.unreadable.count == 4 and resumed.counts[0] == 4

    # After an error in a worker PyTorch takes 10 s to end the workers.
    @pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
    def test_a_run_over_its_budget_stops_with_the_path_and_the_cause(
        self, folder: Path, tmp_path: Path, workers: int
    ) -> None:
        """Three of ten files are found unreadable when opened, the fourth when read."""
        data = VideoDataModule(config(folder, max_unreadable_fraction=0.3, num_workers=workers))
        with pytest.raises(UnreadableVideoError, match=r"4 of 10 videos.*allows 3\. Video .*damaged\.mp4 .*frames"):
            fit(data, tmp_path)


def test_the_first_unreadable_file_stops_a_run_without_a_budget(folder: Path) -> None:
    with pytest.raises(UnreadableVideoError, match=r"=0 allows 0\. Video .*cut\.mp4 cannot be read: .*truncated"):
        VideoDataModule(config(folder, max_unreadable_fraction=0.0)).setup()


def test_missing_files_of_a_csv_list_are_unreadable(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("videos\na.mp4\nnone.mp4\nb.mkv\n")
    data = VideoDataModule(config(folder, train=(str(tmp_path / "list.csv"),), root=str(folder)))
    data.setup()
    assert list(data.unreadable.found) == [str(folder / "none.mp4")] and data.unreadable.total == 3
    assert "doesn't exist" in data.unreadable.found[str(folder / "none.mp4")]


def test_validation_has_its_own_rate_center_crops_and_replaces_unreadable_clips(folder: Path) -> None:
    data = VideoDataModule(config(folder, validation=(str(folder),), validation_fps=24.0, validation_every=8))
    data.setup()
    (loader,) = [data.val_dataloader()]
    origins = [origin for batch in loader for origin in batch.origins]  # type: ignore[union-attr]
    again = [origin for batch in loader for origin in batch.origins]  # type: ignore[union-attr]
    assert origins == again and len(origins) == len(data.validation_clips or ())
    assert all(origin.endswith("crop center") for origin in origins)
    assert f"{folder / 'a.mp4'}, frames 0 1 2 4, crop center" in origins  # at 0, 1.25, 2.5 and 3.75 frames
    assert str(folder / "damaged.mp4") in data.unreadable.found
    assert len(set(origins)) < len(origins)  # other clips replace those of damaged.mp4


def test_a_budget_is_a_fraction_of_all_videos() -> None:
    unreadable = UnreadableVideos(0.29)
    unreadable.expect(f"{i}.mp4" for i in range(100))
    assert unreadable.add({f"{i}.mp4": "bad" for i in range(29)}) == [f"{i}.mp4" for i in range(29)]
    assert unreadable.add({"3.mp4": "bad"}) == [] and unreadable.count == 29
    with pytest.raises(UnreadableVideoError, match=r"30 of 100 .*=0\.29 allows 29\. worse The log lists"):
        unreadable.add({"29.mp4": "worse"})
    with pytest.raises(ValueError, match="max_fraction must be from 0 up to but not including 1, got 1.0"):
        UnreadableVideos(1.0)


def test_a_video_is_logged_once_also_after_loading_a_state(caplog: pytest.LogCaptureFixture) -> None:
    one, two = UnreadableVideos(0.9), UnreadableVideos(0.9)
    for recorder in (one, two):
        recorder.expect(["a.mp4", "b.mp4", "c.mp4"])
    one.add({"a.mp4": "Video a.mp4 is bad"})
    one.log(), one.log()
    two.load_state_dict(one.state_dict())
    two.add({"a.mp4": "Video a.mp4 is bad", "b.mp4": "Video b.mp4 is bad"})
    two.log()
    assert logged(caplog.text) == ["a.mp4", "b.mp4"]
    with caplog.at_level(logging.WARNING), pytest.raises(UnreadableVideoError, match="3 of 3"):
        two.add({"c.mp4": "Video c.mp4 is bad"})


class TestBatch:
    def test_a_moved_batch_keeps_its_origins(self) -> None:
        clips = [
            Clip(frames=torch.zeros(2, 4, 4, 3, dtype=torch.uint8), origin="a", unreadable={"x": "bad"}),
            Clip(frames=torch.ones(2, 4, 4, 3, dtype=torch.uint8), origin="b", unreadable={"x": "bad", "y": "bad"}),
        ]
        batch = collate_clips(clips)
        assert len(batch) == 2 and batch.origins == ["a", "b"] and batch.unreadable == {"x": "bad", "y": "bad"}
        moved = batch.to("meta", non_blocking=True)
        assert moved.video.is_meta and moved.origins == batch.origins and moved.unreadable == batch.unreadable

    def test_tensors_are_batches_and_other_types_are_errors(self) -> None:
        video = torch.zeros(2, 3, 1, 4, 4)
        frames = torch.zeros(2, 1, 4, 4, 3, dtype=torch.uint8)
        batch = VideoBatch(frames=frames, origins=["a", "b"])
        assert as_video(video) is video and as_video(batch) is batch.video is batch.video
        with pytest.raises(TypeError, match=r"a VideoBatch or a tensor .*got list; give the loader a collate_fn"):
            as_video([video])  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="one entry for each of the 2 clips, got 1"):
            VideoBatch(frames=frames, origins=["a"])
        with pytest.raises(ValueError, match=r"frames must be uint8 of shape \(b, t, h, w, 3\), got torch.float32"):
            VideoBatch(frames=video, origins=["a", "b"])

    def test_video_has_the_order_and_range_of_the_networks(self) -> None:
        frames = torch.arange(2 * 2 * 4 * 4 * 3).view(2, 2, 4, 4, 3).to(torch.uint8)
        frames[0, 1, 2, 3] = torch.tensor([0, 51, 255], dtype=torch.uint8)
        batch = VideoBatch(frames=frames, origins=["a", "b"])
        assert batch.video.shape == (2, 3, 2, 4, 4) and batch.video.is_contiguous()
        assert batch.video[0, :, 1, 2, 3].tolist() == pytest.approx([-1.0, -0.6, 1.0])
        clips = [Clip(frames=clip, origin="") for clip in frames]
        assert torch.equal(torch.stack([clip.video for clip in clips]), batch.video)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fps": 0.0}, "fps must be above 0 or null, got 0"),
        ({"fps": 8.0, "frame_interval": 2}, "fps=8 and frame_interval=2 exclude each other"),
        ({"fps": None, "validation_fps": 8.0, "frame_interval": 2}, "validation_fps=8 and frame_interval=2 exclude"),
        ({"read_timeout": -1.0}, "read_timeout must be above 0 or null"),
        (
            {"max_unreadable_fraction": 1.0},
            "max_unreadable_fraction must be from 0 up to but not including 1, got 1.0; 0.01 allows",
        ),
        ({"crop": "middle"}, "crop must be 'center' or 'random', got 'middle'"),
        ({"reader": "opencv"}, "reader must be 'auto', 'decord', 'pyav' or 'torchcodec', got 'opencv'"),
    ],
)
def test_config_mistakes_are_errors(folder: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(folder, **changes)
