"""`vidtok-plugin evaluate`: the published protocol on natural video, and resumption."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from metric_networks import ToyI3D, golden_lpips, save_torchscript
from natural_clips import natural_clip
from progress_bars import ended_bars
from rich.console import Console
from torch import Tensor
from toy_tokenizers import toy_tokenizer

from vidtok_plugin import VidTok, cli
from vidtok_plugin.evaluation import evaluate as evaluation
from vidtok_plugin.evaluation.evaluate import EvaluationConfig, default_output, evaluate, published_protocol
from vidtok_plugin.evaluation.networks import MetricNetworks
from vidtok_plugin.evaluation.pairs import read_scaled, resize_as_published, sampled, stream_pairs
from vidtok_plugin.evaluation.report import Report
from vidtok_plugin.metrics.frames import bounded_psnr, frame_ssim
from vidtok_plugin.metrics.fvd import I3D, FrechetVideoDistance
from vidtok_plugin.video.pixels import from_uint8
from vidtok_plugin.video.reading import read_frames, read_in_order
from vidtok_plugin.video.resizing import resize, resize_and_crop
from vidtok_plugin.video.unreadable import UnreadableVideoError
from vidtok_plugin.video.video_file import VideoFile
from vidtok_plugin.video.writing import write_video

FAST = EvaluationConfig(fps=6, size=16, clip_frames=9)
V1_1 = "vidtok_fsq_causal_488_32768_v1_1"
NO_NETWORKS = MetricNetworks(lpips=None, i3d=None, not_computed={"lpips": "no weights", "fvd": "no I3D"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two natural clips: 24 frames at 6 fps, and 63 at 6.25."""
    root = tmp_path_factory.mktemp("videos")
    (root / "street").mkdir()
    shutil.copy(natural_clip("carphone_pristine.mp4"), root / "carphone.mp4")
    shutil.copy(natural_clip("bikes.mp4"), root / "street" / "bikes.mp4")
    return root


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Natural clips of 12 and 21 small frames at 6 fps, for facts that do not depend on their size."""
    root = tmp_path_factory.mktemp("small")
    frames = resize(read_frames(natural_clip("carphone_pristine.mp4"), range(0, 105, 5)), 20, 24)
    write_video(root / "a.mp4", frames[:12], fps=6)
    write_video(root / "sub" / "b.mp4", frames, fps=6)
    return root


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> MetricNetworks:
    i3d = I3D(save_torchscript(ToyI3D(), tmp_path_factory.mktemp("i3d") / "i3d.pt"))
    return MetricNetworks(lpips=golden_lpips(), i3d=i3d, not_computed={})


def tiny() -> VidTok:
    return toy_tokenizer("vidtok_tiny").float()


def run(folder: Path, output: Path, tokenizer: VidTok | None = None, **changes: Any) -> Report:
    settings: dict[str, Any] = {"model": "toy", "cfg": FAST, "networks": NO_NETWORKS, **changes}
    return evaluate(tokenizer or tiny(), folder, output, **settings)


def natural_video(path: Path, step: int, size: int = 16) -> Tensor:
    """Every `step`-th frame of a video (1, 3, t, size, size)."""
    frames = torch.from_numpy(read_frames(path)[::step].copy())
    return resize_as_published(frames, size).movedim(1, 0)[None]


@pytest.fixture(scope="module")
def report(folder: Path, networks: MetricNetworks, tmp_path_factory: pytest.TempPathFactory) -> Report:
    """The natural clips with every metric."""
    return run(folder, tmp_path_factory.mktemp("report"), networks=networks)


# The figures


@torch.no_grad()
def test_figures_of_a_video_are_means_over_its_reconstructed_clips(
    report: Report, folder: Path, networks: MetricNetworks
) -> None:
    carphone, bikes = report.videos
    assert (carphone.name, carphone.num_frames, carphone.num_clips) == ("carphone.mp4", 27, 3)
    assert (bikes.name, bikes.num_frames, bikes.num_clips) == ("street/bikes.mp4", 63, 7)
    assert (round(carphone.fps, 2), bikes.fps) == (5.99, 6.25)
    video = natural_video(folder / "carphone.mp4", 5)
    assert video.shape[2] == 24
    video = torch.cat([video, video[:, :, -1:].expand(-1, -1, 3, -1, -1)], dim=2)  # the last clip is padded
    pairs = [(clip, tiny()(clip).reconstruction.clamp(-1, 1)) for clip in video.split(9, dim=2)]
    assert carphone.psnr == pytest.approx(float(torch.stack([bounded_psnr(*pair) for pair in pairs]).mean()), abs=1e-4)
    assert carphone.ssim == pytest.approx(float(torch.stack([frame_ssim(*pair) for pair in pairs]).mean()), abs=1e-5)
    lpips = torch.stack([golden_lpips()(*(x[0].movedim(1, 0) for x in pair)) for pair in pairs])
    assert carphone.lpips == pytest.approx(float(lpips.mean()), rel=1e-4)
    distance = FrechetVideoDistance()
    assert networks.i3d is not None
    distance.update(torch.stack([torch.cat([networks.i3d(pair[i]) for pair in pairs]) for i in (0, 1)]))
    assert carphone.fvd == pytest.approx(distance.compute(), rel=1e-3)


def test_overall_figures_are_means_over_clips(report: Report) -> None:
    """As published; a mean over videos would give clips of short videos more weight."""
    carphone, bikes = report.videos
    for metric in ("psnr", "ssim", "lpips"):
        expected = (3 * getattr(carphone, metric) + 7 * getattr(bikes, metric)) / 10
        assert getattr(report.overall, metric) == pytest.approx(expected, rel=1e-9)
    assert report.overall.fvd is not None and report.overall.fvd not in (carphone.fvd, bikes.fvd)


@torch.no_grad()
def test_streamed_figures_equal_those_of_the_whole_video(folder: Path, tmp_path: Path) -> None:
    tokenizer = toy_tokenizer(V1_1)
    cfg = replace(published_protocol(tokenizer), fps=6, size=16)
    assert cfg.protocol == "whole"
    report = run(folder, tmp_path, tokenizer, cfg=cfg)
    video = natural_video(folder / "street" / "bikes.mp4", 4)
    made = tokenizer(video).reconstruction.float()
    carphone, bikes = report.videos
    assert (bikes.num_frames, bikes.num_clips) == (63, 4)
    assert bikes.psnr == pytest.approx(float(bounded_psnr(video, made).mean()), abs=1e-4)
    assert bikes.ssim == pytest.approx(float(frame_ssim(video, made).mean()), abs=1e-5)
    assert report.overall.psnr == pytest.approx((carphone.psnr + bikes.psnr) / 2, rel=1e-9)


@torch.no_grad()
def test_a_streamed_video_is_read_only_as_far_as_needed() -> None:
    """Memory must not grow with its length."""
    read = compared = 0
    furthest = 0

    def frames() -> Iterator[Tensor]:
        nonlocal read
        for _ in range(20):
            read += 7
            yield torch.zeros(1, 3, 7, 16, 16)

    for pair in stream_pairs(toy_tokenizer(V1_1), frames()):
        assert pair.shape[:2] == (2, 3)
        furthest = max(furthest, read - compared)
        compared += pair.shape[2]
    assert compared == read == 140
    assert furthest <= 16 + 7 + 8  # a chunk, the rest of a block, and frames that the decoder still holds


def test_a_better_model_has_better_figures(small: Path, tmp_path: Path, networks: MetricNetworks) -> None:
    trained = run(small, tmp_path / "a", VidTok.from_pretrained("vidtok_tiny"), networks=networks).overall
    filled = run(small, tmp_path / "b", networks=networks).overall
    assert trained.psnr > filled.psnr + 3 and trained.ssim > filled.ssim
    assert trained.lpips is not None and filled.lpips is not None and trained.lpips < filled.lpips
    assert trained.fvd is not None and filled.fvd is not None and trained.fvd < filled.fvd


def test_the_protocol_is_the_published_one() -> None:
    causal, plain = EvaluationConfig(), replace(EvaluationConfig(), clip_frames=16)
    assert (causal.fps, causal.size, causal.clip_frames) == (30, 256, 17)
    assert published_protocol(toy_tokenizer("vidtok_fsq_causal_488_32768")) == causal
    assert published_protocol(toy_tokenizer("vidtok_fsq_noncausal_488_262144")) == plain
    assert published_protocol(toy_tokenizer(V1_1)) == replace(causal, protocol="whole")


@pytest.mark.parametrize(("rate", "step"), [(24, 1), (30, 1), (29.97, 1), (50, 2), (60, 2), (120, 4), (10, 1)])
def test_frames_of_faster_videos_are_skipped_and_none_is_repeated(rate: float, step: int) -> None:
    assert sampled(100, rate, 30) == range(0, 100, step)


def test_frames_are_resized_as_by_torchvision() -> None:
    """Each pixel is a mean weighted by a triangle as wide as two target pixels; the result is center-cropped."""

    def weights(source: int, target: int) -> np.ndarray:
        scale = source / target
        reach = max(scale, 1.0)
        offsets = (np.arange(target)[:, None] + 0.5) * scale - (np.arange(source) + 0.5)
        triangle = np.clip(1 - np.abs(offsets) / reach, 0, None)
        return triangle / triangle.sum(1, keepdims=True)

    for height, width, scaled in ((50, 83, (16, 26)), (40, 33, (19, 16)), (12, 20, (16, 26))):
        frames = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), dtype=np.uint8)
        rows, columns = weights(height, scaled[0]), weights(width, scaled[1])
        expected = np.einsum("yh,thwc,xw->tcyx", rows, frames / 127.5 - 1, columns)
        top, left = round((scaled[0] - 16) / 2), round((scaled[1] - 16) / 2)
        cropped = torch.from_numpy(expected[:, :, top : top + 16, left : left + 16]).float()
        torch.testing.assert_close(resize_as_published(torch.from_numpy(frames), 16), cropped, rtol=0.0, atol=1e-5)


@torch.no_grad()
def test_the_resizer_of_training_clips_would_change_the_figures() -> None:
    """It leaves frames sharper, which is why the evaluation has its own. Published figures have two decimals."""
    tokenizer, frames = VidTok.from_pretrained("vidtok_tiny"), read_frames(natural_clip("bigbuckbunny.mp4"), range(5))
    published = resize_as_published(torch.from_numpy(frames), 64).movedim(1, 0)[None]
    by_area = from_uint8(torch.from_numpy(resize_and_crop(frames, 64, 64)))[None]
    psnr = [float(bounded_psnr(video, tokenizer(video).reconstruction).mean()) for video in (published, by_area)]
    assert psnr[0] - psnr[1] > 0.1


def test_blocks_of_a_video_are_its_frames_in_order(folder: Path) -> None:
    path = folder / "carphone.mp4"
    for step in (1, 5, 33):
        blocks = list(read_scaled(VideoFile.at(path), step, 16, torch.device("cpu")))
        assert torch.equal(torch.cat(blocks, dim=2), natural_video(path, step))
        assert max(block.shape[2] for block in blocks) <= 32


# Resumption


class Interrupted(Exception):
    pass


def counted(monkeypatch: pytest.MonkeyPatch, limit: int | None = None) -> list[str]:
    """The names of the videos evaluated from now on; raises Interrupted after `limit` of them."""
    names: list[str] = []
    original = evaluation._evaluate_video

    def evaluate_video(*args: Any, name: str, **kwargs: Any) -> Any:
        if len(names) == limit:
            raise Interrupted
        names.append(name)
        return original(*args, name=name, **kwargs)

    monkeypatch.setattr(evaluation, "_evaluate_video", evaluate_video)
    return names


def content(output: Path) -> dict[str, Any]:
    return json.loads((output / "metrics.json").read_text())


def test_a_resumed_evaluation_has_the_same_result(
    small: Path, tmp_path: Path, networks: MetricNetworks, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(small, tmp_path / "uninterrupted", networks=networks)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        counted(patch, limit=1)
        run(small, tmp_path / "resumed", networks=networks)
    assert not (tmp_path / "resumed" / "metrics.json").exists()
    evaluated = counted(monkeypatch)
    report = run(small, tmp_path / "resumed", networks=networks)
    assert evaluated == ["sub/b.mp4"] and report.overall.fvd is not None
    assert content(tmp_path / "resumed") == content(tmp_path / "uninterrupted")
    run(small, tmp_path / "resumed", networks=networks)
    assert evaluated == ["sub/b.mp4"]


@pytest.mark.parametrize("kept", ["header", "line"])
def test_the_video_of_a_truncated_line_is_evaluated_again(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: str
) -> None:
    run(small, tmp_path)
    path, before = tmp_path / "videos.jsonl", content(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) == 3
    path.write_bytes(lines[0][:50] if kept == "header" else lines[0] + lines[1] + lines[2][:-30])
    evaluated = counted(monkeypatch)
    run(small, tmp_path)
    assert evaluated == (["a.mp4"] if kept == "header" else []) + ["sub/b.mp4"]
    assert path.read_bytes().splitlines(keepends=True) == lines and content(tmp_path) == before


def test_a_damaged_line_in_the_middle_is_an_error(small: Path, tmp_path: Path) -> None:
    run(small, tmp_path)
    path = tmp_path / "videos.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + "no JSON\n" + lines[2])
    with pytest.raises(ValueError, match=r"line 2 of .*videos\.jsonl is not valid JSON; remove the line"):
        run(small, tmp_path)


def test_a_video_without_its_features_is_evaluated_again(
    small: Path, tmp_path: Path, networks: MetricNetworks, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(small, tmp_path, networks=networks)
    before = content(tmp_path)
    (tmp_path / "features" / "a.mp4.safetensors").unlink()
    b = tmp_path / "features" / "sub" / "b.mp4.safetensors"
    b.write_bytes(b.read_bytes()[:-10])
    evaluated = counted(monkeypatch)
    run(small, tmp_path, networks=networks)
    assert evaluated == ["a.mp4", "sub/b.mp4"] and content(tmp_path) == before


def test_other_settings_or_weights_are_an_error(small: Path, tmp_path: Path, networks: MetricNetworks) -> None:
    run(small, tmp_path)
    with pytest.raises(ValueError, match=r"has an evaluation with size 16, not 32; choose another output folder"):
        run(small, tmp_path, cfg=replace(FAST, size=32))
    with pytest.raises(ValueError, match="an evaluation with clip_frames 9, not 17"):
        run(small, tmp_path, cfg=replace(FAST, clip_frames=17))
    with pytest.raises(ValueError, match=r"an evaluation with lpips_hash None, not [0-9a-f]{64}"):
        run(small, tmp_path, networks=networks)
    other = tiny()
    with torch.no_grad():
        next(other.decoder.parameters()).mul_(1.01)
    with pytest.raises(ValueError, match=r"an evaluation with model_hash [0-9a-f]{64}, not [0-9a-f]{64}; choose"):
        run(small, tmp_path, other)


def test_a_changed_video_is_an_error_and_a_new_one_is_added(small: Path, tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    shutil.copy(small / "a.mp4", videos / "a.mp4")
    first = run(videos, tmp_path / "out")
    shutil.copy(small / "sub" / "b.mp4", videos / "b.mp4")
    both = run(videos, tmp_path / "out")
    assert [video.name for video in both.videos] == ["a.mp4", "b.mp4"] and both.videos[0] == first.videos[0]
    (videos / "a.mp4").unlink()
    assert [video.name for video in run(videos, tmp_path / "out").videos] == ["b.mp4"]
    shutil.copy(small / "a.mp4", videos / "b.mp4")
    with pytest.raises(ValueError, match=r"b\.mp4 has changed since it was evaluated into .*; choose another output"):
        run(videos, tmp_path / "out")


# Missing networks and unreadable videos


def test_a_metric_without_its_network_is_not_computed_with_the_reason(small: Path, tmp_path: Path) -> None:
    report = run(small, tmp_path)
    result = content(tmp_path)
    assert result["overall"]["lpips"] is None and result["overall"]["fvd"] is None
    assert all(video["lpips"] is None and video["fvd"] is None for video in result["videos"])
    assert result["not_computed"] == {"lpips": "no weights", "fvd": "no I3D"}
    assert report.notes() == ["LPIPS not computed: no weights", "FVD not computed: no I3D"]


def test_fvd_of_a_single_clip_is_not_computed(small: Path, tmp_path: Path, networks: MetricNetworks) -> None:
    (tmp_path / "videos").mkdir()
    shutil.copy(small / "a.mp4", tmp_path / "videos")
    report = run(tmp_path / "videos", tmp_path / "out", cfg=replace(FAST, clip_frames=12), networks=networks)
    assert report.num_clips == 1 and report.videos[0].fvd is None and report.overall.fvd is None
    assert "at least 2 clips" in report.not_computed["fvd"]


@pytest.fixture
def damaged(small: Path, tmp_path: Path) -> Path:
    """Two videos, and a file that is not a video."""
    videos = tmp_path / "videos"
    videos.mkdir()
    for name in ("a.mp4", "b.mp4"):
        shutil.copy(small / "a.mp4", videos / name)
    (videos / "broken.mp4").write_text("no video")
    return videos


def test_a_damaged_video_is_an_error(damaged: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"broken\.mp4 cannot be read: it is not a video"):
        run(damaged, tmp_path / "out")


def test_damaged_videos_are_skipped_and_listed_on_request(
    damaged: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    report = run(damaged, tmp_path / "out", skip_unreadable=True)
    assert [video.name for video in report.videos] == ["a.mp4", "b.mp4"]
    (name, cause), *others = content(tmp_path / "out")["skipped"].items()
    assert name == "broken.mp4" and "it is not a video" in cause and not others
    assert "skipped: Video" in caplog.text and any("broken.mp4" in note for note in report.notes())
    for name in ("worse.mp4", "worst.mp4"):
        (damaged / name).write_text("no video")
    with pytest.raises(ValueError, match="3 of the 5 videos in .* cannot be read, more than half"):
        run(damaged, tmp_path / "other", skip_unreadable=True)


def test_a_video_whose_frames_are_damaged_is_skipped_too(
    damaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(video: VideoFile, length: int) -> Iterator[np.ndarray]:
        yield from read_in_order(video.path, length)
        if video.name == "b.mp4":
            raise UnreadableVideoError(f"Video {video} cannot be decoded at frames 12..12")

    (damaged / "broken.mp4").unlink()
    monkeypatch.setattr(VideoFile, "blocks", read)
    bars = ended_bars(monkeypatch)
    with pytest.raises(ValueError, match=r"b\.mp4 cannot be decoded at frames"):
        run(damaged, tmp_path / "out")
    report = run(damaged, tmp_path / "out", skip_unreadable=True)
    assert [video.name for video in report.videos] == ["a.mp4"] and list(report.skipped) == ["b.mp4"]
    _, completed, total = bars[-1]
    assert completed == total > 0


def test_invalid_settings_are_errors(small: Path, tmp_path: Path, networks: MetricNetworks) -> None:
    for wrong, message in (
        ({"protocol": "all"}, "protocol must be 'clips' or 'whole', got 'all'"),
        ({"fps": 0}, "fps must be above 0, got 0"),
        ({"size": 8}, "size must be at least 16 .*, got 8"),
        ({"clip_frames": 0}, "clip_frames must be at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(FAST, **wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="size must be a multiple of 8 .*, got 20; the nearest sizes are 16 and 24"):
        run(small, tmp_path, cfg=replace(FAST, size=20))
    with pytest.raises(ValueError, match="clip_frames must be at least 9 for FVD, got 5"):
        run(small, tmp_path, cfg=replace(FAST, clip_frames=5), networks=networks)
    with pytest.raises(ValueError, match="protocol must be clips for a non-causal model"):
        run(small, tmp_path, toy_tokenizer("vidtok_fsq_noncausal_488_262144"), cfg=replace(FAST, protocol="whole"))
    assert not list(tmp_path.iterdir())


def test_a_reconstruction_that_is_not_finite_is_an_error(small: Path, tmp_path: Path) -> None:
    tokenizer = tiny()
    with torch.no_grad():
        next(tokenizer.decoder.parameters()).fill_(torch.nan)
    with pytest.raises(ValueError, match=r"the reconstruction of a\.mp4 must be finite"):
        run(small, tmp_path, tokenizer)


# The table and the command


def printed(report: Report) -> list[str]:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(report.table())
    return capture.get().splitlines()


def test_published_figures_are_shown_for_a_published_name(small: Path, tmp_path: Path) -> None:
    tokenizer = toy_tokenizer("vidtok_fsq_noncausal_488_262144").float()
    report = run(small, tmp_path, tokenizer, model="vidtok_fsq_noncausal_488_262144")
    assert content(tmp_path)["published"] == {"psnr": 30.78, "ssim": 0.889, "lpips": 0.091, "fvd": 132.1}
    rows = [line for line in printed(report) if "published" in line]
    assert len(rows) == 1 and all(value in rows[0] for value in ("30.78", "0.8890", "0.0910", "132.1"))
    assert run(small, tmp_path, tokenizer).published is None


def test_the_table_has_every_video_and_the_overall_figures(report: Report) -> None:
    lines = printed(report)
    for name, scores in [(video.name, video) for video in report.videos] + [("overall", report.overall)]:
        (row,) = (line for line in lines if name in line)
        assert f"{scores.psnr:.2f}" in row and f"{scores.lpips:.4f}" in row and f"{scores.fvd:.1f}" in row
    assert report.notes() == ["FVD is over 10 clips; the fewer clips, the stronger its upward bias."]


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: Any, **__: Any) -> None:
        raise URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", download)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("offline")
def test_the_command_prints_a_table_and_writes_json(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    i3d = save_torchscript(ToyI3D(), tmp_path / "i3d.pt")
    arguments = ["evaluate", str(folder), "--model", "vidtok_tiny", "--fps", "3", "--size", "32", "--i3d", str(i3d)]
    assert cli.main(arguments) == 0
    out, err = capsys.readouterr()
    assert "street/bikes.mp4" in out and "overall" in out and "frames" not in err  # no bar without a terminal
    assert "LPIPS not computed: could not download VGG16 (<urlopen error no network>); fetch https" in out
    output = default_output("vidtok_tiny", folder)
    result = content(output)
    assert 15 < result["overall"]["psnr"] < 40 and 0.2 < result["overall"]["ssim"] < 1
    assert result["overall"]["lpips"] is None and result["overall"]["fvd"] > 0
    assert (result["settings"]["clip_frames"], result["settings"]["protocol"]) == (17, "clips")
    assert f"{output}/metrics.json" in out
    assert cli.main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == result


@pytest.mark.usefixtures("offline")
def test_mistakes_in_the_command_are_one_sentence(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*arguments: str) -> str:
        assert cli.main(["evaluate", *arguments, "--model", "vidtok_tiny"]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        return line

    (tmp_path / "empty").mkdir()
    assert fail(str(tmp_path / "empty")).startswith(f"error: Folder {tmp_path / 'empty'} has no videos")
    assert "doesn't exist" in fail(str(tmp_path / "nowhere"))
    assert "multiple of 8" in fail(str(folder), "--size", "100")
    assert "there is no file" in fail(str(folder), "--i3d", "nowhere.pt")
    assert "there is no file" in fail(str(folder), "--lpips-vgg", "nowhere.pth")
    assert not (tmp_path / "runs").exists()
