"""Videos for people play anywhere: H.264 of yuv420p with even sizes and declared colors."""

import base64
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
from video_files import written_as

from vidtok_plugin.video import VideoWriter, read_frames, write_video

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
LEFT, RIGHT = (20, 160, 220), (200, 40, 90)
# The size of a video and the colors of a pixel on its left and on its right, as a browser shows them.
SHOWN = """async (url) => {
  const video = document.createElement("video");
  video.muted = true;
  video.src = url;
  document.body.append(video);
  await video.play();
  await new Promise((resolve) => video.requestVideoFrameCallback(resolve));
  const canvas = document.createElement("canvas");
  canvas.width = video.videoWidth;
  canvas.height = video.videoHeight;
  const context = canvas.getContext("2d");
  context.drawImage(video, 0, 0);
  const at = (x) => Array.from(context.getImageData(x, 4, 1, 1).data).slice(0, 3);
  return [video.videoHeight, video.videoWidth, at(4), at(canvas.width - 5)];
}"""


def halves(height: int, width: int, frames: int = 5) -> np.ndarray:
    """Frames of one color on the left and another on the right."""
    video = np.empty((frames, height, width, 3), np.uint8)
    video[:, :, : width // 2], video[:, :, width // 2 :] = LEFT, RIGHT
    return video


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
@pytest.mark.parametrize("size", [(64, 64), (33, 64), (64, 33), (1, 1), (721, 1281)])
def test_sizes_are_even_and_chroma_is_halved(size: tuple[int, int], suffix: str, tmp_path: Path) -> None:
    path, frames = tmp_path / f"a{suffix}", halves(*size, frames=2)
    write_video(path, frames, fps=30, playable=True)
    assert written_as(path) == ("yuv420p", size[0] + size[0] % 2, size[1] + size[1] % 2)
    with av.open(str(path)) as container:
        codec = container.streams.video[0].codec_context
        assert (codec.name, codec.profile) == ("h264", "High")
        # Limited range, BT.601's matrix (as PAL or NTSC has it), and the primaries and curve of BT.709.
        assert codec.color_range == 1 and codec.colorspace in (5, 6)
        assert (codec.color_primaries, codec.color_trc) == (1, 1)


def test_what_is_added_to_an_odd_size_is_the_last_row_and_column(tmp_path: Path) -> None:
    frames = np.zeros((3, 33, 65, 3), np.uint8)
    frames[:, 32], frames[:, :, 64] = 255, 255
    with VideoWriter(tmp_path / "a.mp4", fps=30, playable=True) as writer:
        writer.write(frames[0])
        writer.write(frames[1:])
    shown = read_frames(tmp_path / "a.mp4")
    assert shown.shape == (3, 34, 66, 3)
    assert shown[:, 33].min() > 240 and shown[:, :, 65].min() > 240 and shown[:, :31, :63].max() < 15


def test_recordings_keep_their_size_and_colors(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", halves(33, 65), fps=30)
    assert written_as(tmp_path / "a.mp4") == ("yuv444p", 33, 65)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
def test_a_browser_shows_the_right_colors(tmp_path: Path) -> None:
    """Without declared colors, players take BT.601 for small videos and BT.709 for large ones."""
    from playwright.sync_api import sync_playwright

    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        page = browser.new_page()
        for height, width in ((63, 95), (720, 1280)):
            write_video(tmp_path / "a.mp4", halves(height, width), fps=5, playable=True)
            data = base64.b64encode((tmp_path / "a.mp4").read_bytes()).decode()
            *size, left, right = page.evaluate(SHOWN, f"data:video/mp4;base64,{data}")
            assert size == [height + height % 2, width + width % 2]
            assert np.abs(np.subtract([left, right], [LEFT, RIGHT])).max() <= 4, (height, left, right)
        browser.close()
