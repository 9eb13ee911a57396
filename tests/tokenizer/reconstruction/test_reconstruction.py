"""A reconstructed video keeps its number of frames, rate and size, and equals the whole clip's reconstruction."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from natural_clips import natural_clip
from places import TESTS
from toy_tokenizers import toy_tokenizer
from video_files import written_as

from vidtok_plugin import VidTok
from vidtok_plugin.cli import main
from vidtok_plugin.metrics.psnr import frame_psnr
from vidtok_plugin.tokenizer.reconstruction.reconstruct import reconstruct_video
from vidtok_plugin.video import probe, read_frames, write_video

FSQ, KL, NONCAUSAL = "vidtok_fsq_causal_488_32768", "vidtok_kl_causal_488_4chn_v1_1", "vidtok_kl_noncausal_488_4chn"


def toy(name: str) -> VidTok:
    model: VidTok = toy_tokenizer(name).float()
    return model


def clip(folder: Path, num_frames: int, h: int = 16, w: int = 32) -> Path:
    path = folder / f"{num_frames}x{h}x{w}.mp4"
    frames = np.random.default_rng(0).integers(0, 256, (num_frames, h, w, 3), dtype=np.uint8)
    write_video(path, frames, fps=12.5)
    return path


def as_video(path: Path) -> torch.Tensor:
    return torch.from_numpy(read_frames(path)).permute(3, 0, 1, 2)[None] / 127.5 - 1


@pytest.mark.parametrize("name", [FSQ, KL, NONCAUSAL])
@pytest.mark.parametrize("num_frames", [1, 8, 18])
def test_all_frames_equal_the_whole_clips_reconstruction(name: str, num_frames: int, tmp_path: Path) -> None:
    model, source = toy(name), clip(tmp_path, num_frames)
    result = reconstruct_video(model, source, tmp_path / "out.mp4", full_color=True)
    written = probe(tmp_path / "out.mp4")
    assert (written.num_frames, written.height, written.width) == (num_frames, 16, 32)
    assert written.fps == pytest.approx(12.5)
    assert result.num_frames == num_frames and result.num_tiles == 1 and result.seam is None
    video = as_video(source)
    with torch.no_grad():
        whole = model(video).reconstruction
    assert result.psnr == pytest.approx(float(frame_psnr(video, whole).mean()), abs=1e-3)
    # The file holds that reconstruction, up to rounding and the codec.
    assert frame_psnr(whole.clamp(-1, 1), as_video(tmp_path / "out.mp4")).mean() > 30


def test_a_long_video_is_one_stream(tmp_path: Path) -> None:
    """Longer than a push, so that the streams' states matter."""
    model, source = toy(KL), clip(tmp_path, 75, 16, 16)
    video = as_video(source)
    with torch.no_grad():
        whole = float(frame_psnr(video, model(video).reconstruction).mean())
    assert reconstruct_video(model, source, tmp_path / "out.mp4").psnr == pytest.approx(whole, abs=1e-3)


def test_sizes_that_are_no_multiple_are_padded_or_cropped(tmp_path: Path) -> None:
    model, source = toy(FSQ), clip(tmp_path, 5, 20, 36)
    with pytest.raises(ValueError, match=r"height must be a multiple of 8 .*--fit pad.* or fit='crop' \(--fit crop\)"):
        reconstruct_video(model, source, tmp_path / "out.mp4")
    assert not (tmp_path / "out.mp4").exists()
    for fit, size in (("pad", (20, 36)), ("crop", (16, 32))):
        reconstruct_video(model, source, tmp_path / "out.mp4", fit=fit)  # type: ignore[arg-type]
        written = probe(tmp_path / "out.mp4")
        assert (written.height, written.width) == size
    with pytest.raises(ValueError, match="fit must be 'pad' or 'crop', got 'stretch'"):
        reconstruct_video(model, source, tmp_path / "out.mp4", fit="stretch")  # type: ignore[arg-type]


@pytest.mark.parametrize(("full_color", "pixels", "height"), [(False, "yuv420p", 20), (True, "yuv444p", 19)])
def test_odd_sizes_are_written_and_made_even_for_players(
    full_color: bool, pixels: str, height: int, tmp_path: Path
) -> None:
    source, output = clip(tmp_path, 3, 19, 33), tmp_path / "out.mp4"
    reconstruct_video(toy(FSQ), source, output, fit="pad", side_by_side=True, full_color=full_color)
    assert written_as(output) == (pixels, height, 66)


def test_side_by_side_has_the_original_on_the_left(tmp_path: Path) -> None:
    source = clip(tmp_path, 5)
    reconstruct_video(toy(FSQ), source, tmp_path / "out.mp4", side_by_side=True, full_color=True)
    both = as_video(tmp_path / "out.mp4")
    assert both.shape[-1] == 64
    assert frame_psnr(as_video(source), both[..., :32]).mean() > 30 > frame_psnr(as_video(source), both[..., 32:]).max()


def test_mistakes_leave_no_file(tmp_path: Path) -> None:
    model, source = toy(FSQ), clip(tmp_path, 5)
    with pytest.raises(ValueError, match="the output must be another file than the video"):
        reconstruct_video(model, source, source)
    with pytest.raises(ValueError, match="memory must be at least"):
        reconstruct_video(model, source, tmp_path / "out.mp4", memory=0.001)
    damaged = tmp_path / "damaged.mp4"
    damaged.write_bytes(source.read_bytes()[:-200])
    with pytest.raises(ValueError, match="damaged"):
        reconstruct_video(model, damaged, tmp_path / "out.mp4")
    assert sorted(path.name for path in tmp_path.iterdir()) == [source.name, "damaged.mp4"]


def test_an_exact_frame_leaves_the_mean_psnr_finite(tmp_path: Path) -> None:
    """Black that decodes to -1 or below is exact: the mean PSNR over the video was infinite."""
    model = toy(FSQ)
    with torch.no_grad():
        for parameter in model.decoder.conv_out.parameters():
            parameter.fill_(-100.0 if parameter.ndim == 1 else 0.0)
    write_video(tmp_path / "black.mp4", np.zeros((5, 16, 16, 3), np.uint8), fps=10)
    assert reconstruct_video(model, tmp_path / "black.mp4", tmp_path / "out.mp4").psnr == pytest.approx(80.0)


def test_a_model_in_training_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must be in eval mode; call its eval\(\) first"):
        reconstruct_video(toy(KL).train(), clip(tmp_path, 5), tmp_path / "out.mp4")


# Natural video


def test_the_command_reconstructs_a_natural_clip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, output, rate = (
        tmp_path / "carphone.mp4",
        tmp_path / "out.mp4",
        probe(natural_clip("carphone_pristine.mp4")).fps,
    )
    write_video(source, read_frames(natural_clip("carphone_pristine.mp4"), range(18)), fps=rate)
    assert main(["reconstruct", str(source), "--model", "vidtok_tiny", "--output", str(output), "--side-by-side"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"{output}: 18 frames, PSNR ")
    assert float(printed.split("PSNR ")[1].split(" dB")[0]) > 20
    before, after = probe(source), probe(output)
    assert (after.num_frames, after.height, after.width) == (before.num_frames, before.height, 2 * before.width)
    assert after.fps == pytest.approx(before.fps, rel=1e-3)


# Memory, in a process of its own

SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from pathlib import Path
from toy_tokenizers import toy_tokenizer
from vidtok_plugin.tokenizer.reconstruction.reconstruct import reconstruct_video
model = toy_tokenizer({name!r}, ch={ch}).float()

def kilobytes(what):
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(what)))

before = kilobytes("VmRSS")
for video, memory in {runs!r}:
    open("/proc/self/clear_refs", "w").write("5")  # resets the peak
    result = reconstruct_video(model, Path(video), Path({output!r}), memory=memory)
    print(1024 * (kilobytes("VmHWM") - before), 1024 * kilobytes("VmHWM"), result.num_tiles)
"""


def measure(runs: list[tuple[str, float | None]], output: Path, *, ch: int) -> list[tuple[int, int, int]]:
    """For each run: peak bytes beyond those at the start, peak bytes in all, and the number of tiles."""
    script = SCRIPT.format(tests=str(TESTS), name=KL, runs=runs, output=str(output), ch=ch)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [tuple(map(int, line.split())) for line in done.stdout.splitlines()]  # type: ignore[misc]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.slow
def test_a_budget_is_kept(tmp_path: Path) -> None:
    video = str(clip(tmp_path, 5, 192, 256))
    ((taken, _, tiles), (whole, _, one)) = measure([(video, 0.15), (video, None)], tmp_path / "out.mp4", ch=16)
    assert tiles > 1 and taken < 0.15e9 < whole and one == 1


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.slow
def test_two_hundred_frames_take_the_memory_of_fifty(tmp_path: Path) -> None:
    runs: list[tuple[str, float | None]] = [(str(clip(tmp_path, length, 32, 32)), None) for length in (20, 50, 200)]
    _, short, long = measure(runs, tmp_path / "out.mp4", ch=4)
    assert long[1] < 1.05 * short[1]
