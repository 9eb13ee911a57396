"""Real play beside imagined play, as a picture and as a video that a newcomer understands at a glance."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont
from matplotlib.lines import Line2D
from pictures import evenly_spaced
from PIL import Image, ImageDraw, ImageFont

from vidtok_plugin.video.pixels import to_uint8
from vidtok_plugin.video.writing import write_video
from world_model.measures import Prompts
from world_model.rollout.rollout import RolloutResult

SHOWN_CLIPS = 3
SHOWN_FRAMES = (4, 8, 16, 32, 48, 64)  # after the prompt
REAL, IMAGINED, GRAY = "#1b7837", "#c2410c", "#555555"
DPI = 100


def draw_rollout(path: Path, prompts: Prompts, result: RolloutResult, *, fps: float, game: str, note: str = "") -> None:
    """A few rollouts: the end of each prompt, then a row of the real frames that followed above a row of imagined ones.

    fps: frames per second of the recording, to give the times.
    game: its name, for the title.
    note: a sentence about the game below the title.
    """
    start = prompts.prompt_frames
    future = prompts.video.shape[2] - start
    columns = [frame for frame in SHOWN_FRAMES if frame <= future] or [future]
    rows = evenly_spaced(range(len(prompts)), SHOWN_CLIPS)
    sheet = Sheet(prompts.video.shape[-2:], len(rows), len(columns))

    sheet.text(sheet.left, 24, f"{game}: the real game, and what the world model imagines", size=19, weight="bold")
    both = (
        f"Both start from the same {start / fps:.1f} seconds of play, the prompt, and get the same button presses. The "
        "world model sees no real frame after the prompt."
    )
    for y, line in ((58, both), (80, note)):
        sheet.text(sheet.left, y, line, size=11.5, color="0.3")
    for index, frame in enumerate(columns):
        middle = sheet.x(index + 1) + sheet.width / 2
        sheet.text(middle, sheet.top - 32, f"{frame / fps:.1f} s later", size=12, ha="center")
        sheet.text(middle, sheet.top - 13, f"frame {frame}", size=9, color="0.45", ha="center")
    for place, row in enumerate(rows):
        real, imagined = to_uint8(prompts.video[row]), to_uint8(result.video[row])
        above, below = sheet.y(place)
        middle = (above + below) / 2
        sheet.frame(sheet.x(0), middle, real[start - 1], "0.45")
        sheet.text(sheet.x(0) + sheet.width / 2, middle - 32, "prompt", size=12, ha="center")
        sheet.text(
            sheet.x(0) + sheet.width / 2, middle - 13, f"last of {start} frames", size=9, color="0.45", ha="center"
        )
        for y, video, color, name in ((above, real, REAL, "real"), (below, imagined, IMAGINED, "imagined")):
            sheet.fork(middle, y, color)
            side = {"rotation": 90, "ha": "center", "color": color, "weight": "bold"}
            sheet.text(sheet.x(1) - 15, y + sheet.height / 2, name, size=12, **side)
            for index, frame in enumerate(columns):
                sheet.frame(sheet.x(index + 1), y, video[start + frame - 1], color)
    sheet.save(path)


class Sheet:
    """A figure laid out in pixels from its upper left corner, so that frames are enlarged by a whole number."""

    left, top, gap, fork_width, between = 24, 150, 8, 76, 34  # pixels

    def __init__(self, frame_size: tuple[int, int], clips: int, columns: int) -> None:
        self.scale = max(1, round(176 / max(frame_size)))
        self.height, self.width = (size * self.scale for size in frame_size)
        pair = 2 * self.height + self.gap
        self.pixels = (
            self.x(columns) + self.width + self.left,
            self.top + clips * pair + (clips - 1) * self.between + self.left,
        )
        self.figure = Figure(figsize=(self.pixels[0] / DPI, self.pixels[1] / DPI), dpi=DPI, facecolor="white")

    def x(self, column: int) -> int:
        """The left edge of a column; column 0 is the prompt."""
        if column == 0:
            return self.left
        return self.left + self.width + self.fork_width + (column - 1) * (self.width + self.gap)

    def y(self, clip: int) -> tuple[int, int]:
        """The upper edges of a clip's two rows."""
        above = self.top + clip * (2 * self.height + self.gap + self.between)
        return above, above + self.height + self.gap

    def frame(self, x: float, y: float, pixels: np.ndarray, color: str) -> None:
        width, height = self.pixels
        axis = self.figure.add_axes(
            (x / width, 1 - (y + self.height) / height, self.width / width, self.height / height)
        )
        axis.imshow(pixels, interpolation="nearest", aspect="auto")
        axis.set_xticks([])
        axis.set_yticks([])
        for spine in axis.spines.values():
            spine.set_color(color)
            spine.set_linewidth(2)

    def text(self, x: float, y: float, text: str, *, size: float, **style: str | float) -> None:
        position = (x / self.pixels[0], 1 - y / self.pixels[1])
        self.figure.text(*position, text, fontsize=size, **{"va": "center", **style})

    def fork(self, start: float, end: float, color: str) -> None:
        """A line from the prompt's frame to the row at `end`."""
        across = (self.x(0) + self.width + 6, self.x(1) - 28)
        down = (start + self.height / 2, end + self.height / 2)
        xs, ys = [x / self.pixels[0] for x in across], [1 - y / self.pixels[1] for y in down]
        self.figure.add_artist(Line2D(xs, ys, color=color, linewidth=2))

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.figure.savefig(path)


def write_rollout_video(path: Path, prompts: Prompts, result: RolloutResult, *, fps: float) -> None:
    """The same rollouts one after another at half speed: the real game on the left, the imagined one on the right."""
    frames = []
    for row in evenly_spaced(range(len(prompts)), SHOWN_CLIPS):
        real, imagined = to_uint8(prompts.video[row]), to_uint8(result.video[row])
        for t, (left, right) in enumerate(zip(real, imagined, strict=True)):
            ahead = (t + 1 - prompts.prompt_frames) / fps
            repeats = 1 if t + 1 < len(real) else int(fps / 2)  # stay on the last frame for a second
            frames += [side_by_side(left, right, ahead)] * repeats
    write_video(path, np.stack(frames), fps=fps / 2, playable=True)


def side_by_side(left: np.ndarray, right: np.ndarray, ahead: float) -> np.ndarray:
    """Two enlarged frames with labels above them; `ahead` is the time in seconds since the end of the prompt."""
    scale, margin, header = max(1, round(320 / max(left.shape[:2]))), 8, 56
    height, width = left.shape[0] * scale, left.shape[1] * scale
    canvas = Image.new("RGB", (2 * width + 3 * margin, height + header + margin), "white")
    draw = ImageDraw.Draw(canvas)
    bold, plain = (
        ImageFont.truetype(findfont(name), size) for name, size in (("DejaVu Sans:bold", 17), ("DejaVu Sans", 13))
    )
    if ahead > 0:
        right_labels = ("imagined", f"{ahead:.1f} s after the prompt", IMAGINED)
    else:
        right_labels = ("prompt", "these frames are given", GRAY)
    sides = ((left, "real", "the same buttons, at half speed", REAL), (right, *right_labels))
    for side, (pixels, title, note, color) in enumerate(sides):
        x = margin + side * (width + margin)
        draw.text((x, 8), title, fill=color, font=bold)
        draw.text((x, 32), note, fill=GRAY, font=plain)
        canvas.paste(Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST), (x, header))
    return np.asarray(canvas)
