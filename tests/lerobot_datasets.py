"""Small LeRobot datasets in the layouts of v3.0 and v2.1, as lerobot writes them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from video_files import smooth_motion, write_file

TASKS = ("push the block", "pull the block")
V3_DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
V3_VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
V2_DATA = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
V2_VIDEO = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"


@dataclass
class Written:
    """A dataset and what was written to it: frames by camera, and the values of each row, episode by episode."""

    root: Path
    frames: list[dict[str, np.ndarray]] = field(default_factory=list)
    rows: list[dict[str, np.ndarray]] = field(default_factory=list)


def write_lerobot(
    root: Path,
    lengths: Sequence[int],
    *,
    version: str = "v3.0",
    codec: str = "libx264",
    fps: int = 10,
    cameras: Mapping[str, tuple[int, int]] | None = None,
    split: Mapping[str, Sequence[Sequence[int]]] | None = None,
    discrete: bool = False,
    rewards: bool = True,
) -> Written:
    """Write a dataset of episodes with these lengths, whose frames show their number over all episodes.

    cameras: sizes (height, width) by name.
    split: of v3.0: for each camera, and for "data" and "episodes", which episodes are in each file; all in one by
        default. The files fill chunks of two.
    """
    cameras = cameras or {"observation.image": (32, 64)}
    written, rng, shown = Written(root), np.random.default_rng(0), 0
    for index, length in enumerate(lengths):
        episode = {}
        for camera, (height, width) in cameras.items():
            episode[camera] = smooth_motion(shown + length, height=height, width=width)[shown:]
        written.frames.append(episode)
        done = np.arange(length) == length - 1
        actions = rng.integers(0, 5, length) if discrete else rng.normal(size=(length, 3)).astype(np.float32)
        rows = {
            "action": actions,
            "observation.state": rng.normal(size=(length, 2)).astype(np.float32),
            "timestamp": (np.arange(length) / fps).astype(np.float32),
            "frame_index": np.arange(length),
            "episode_index": np.full(length, index),
            "index": shown + np.arange(length),
            "task_index": np.full(length, index % 2),
        }
        if rewards:
            rows |= {"next.reward": rng.normal(size=length).astype(np.float32), "next.done": done}
            rows |= {"next.success": done & (index == 1)}
        written.rows.append(rows)
        shown += length
    write = _write_v3 if version == "v3.0" else _write_v2
    write(written, codec, fps, list(cameras), split or {})
    features: dict[str, Any] = {
        camera: {"dtype": "video", "shape": [3, h, w], "names": ["channels", "height", "width"]}
        for camera, (h, w) in cameras.items()
    }
    for name, values in written.rows[0].items():
        features[name] = {"dtype": str(values.dtype), "shape": list(values.shape[1:]) or [1], "names": None}
    info = {
        "codebase_version": version,
        "total_episodes": len(lengths),
        "total_frames": sum(lengths),
        "chunks_size": 2,
        "fps": fps,
        "data_path": V3_DATA if version == "v3.0" else V2_DATA,
        "video_path": V3_VIDEO if version == "v3.0" else V2_VIDEO,
        "features": features,
    }
    (root / "meta" / "info.json").write_text(json.dumps(info))
    return written


def write_table(path: Path, columns: Mapping[str, Any]) -> None:
    """Write a parquet file; arrays (n, k) become lists of k values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for name, values in columns.items():
        flat = isinstance(values, np.ndarray) and values.ndim == 2
        arrays[name] = (
            pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(values.ravel()), values.shape[1])
            if flat
            else pyarrow.array(values)
        )
    pyarrow.parquet.write_table(pyarrow.table(arrays), path)


def edit_table(path: Path, **changed: Any) -> None:
    """Replace columns of a parquet file, or remove those that are None; __ in a name stands for a slash."""
    columns = pyarrow.parquet.read_table(path).to_pydict()
    for name, values in changed.items():
        columns[name.replace("__", "/")] = values
    write_table(path, {name: values for name, values in columns.items() if values is not None})


def edit_info(root: Path, **changed: Any) -> None:
    """Replace values of info.json."""
    path = root / "meta" / "info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


def _write_v3(
    written: Written, codec: str, fps: int, cameras: list[str], split: Mapping[str, Sequence[Sequence[int]]]
) -> None:
    root, everything = written.root, [list(range(len(written.rows)))]
    lengths = [len(rows["index"]) for rows in written.rows]
    listed: list[dict[str, Any]] = [
        {"episode_index": index, "tasks": [TASKS[index % 2]], "length": length} for index, length in enumerate(lengths)
    ]

    def place(number: int) -> dict[str, int]:
        return {"chunk_index": number // 2, "file_index": number % 2}

    for number, members in enumerate(split.get("data", everything)):
        rows = {name: np.concatenate([written.rows[i][name] for i in members]) for name in written.rows[0]}
        write_table(root / V3_DATA.format(**place(number)), rows)
        for index in members:
            listed[index] |= {f"data/{name}": value for name, value in place(number).items()}
    for camera in cameras:
        for number, members in enumerate(split.get(camera, everything)):
            frames = np.concatenate([written.frames[i][camera] for i in members])
            path = root / V3_VIDEO.format(video_key=camera, **place(number))
            _write_video(path, frames, codec, fps)
            start = 0
            for index in members:
                times = {"from_timestamp": start / fps, "to_timestamp": (start + lengths[index]) / fps}
                entries = {**place(number), **times}
                listed[index] |= {f"videos/{camera}/{name}": value for name, value in entries.items()}
                start += lengths[index]
    for number, members in enumerate(split.get("episodes", everything)):
        columns = {name: [listed[i][name] for i in members] for name in listed[0]}
        columns["stats/action/mean"] = [[0.0] for _ in members]
        path = root / "meta" / "episodes" / f"chunk-{number // 2:03d}" / f"file-{number % 2:03d}.parquet"
        write_table(path, columns)
    write_table(root / "meta" / "tasks.parquet", {"task_index": [0, 1], "__index_level_0__": list(TASKS)})


def _write_v2(
    written: Written, codec: str, fps: int, cameras: list[str], split: Mapping[str, Sequence[Sequence[int]]]
) -> None:
    assert not split, "v2.1 has a file for each episode"
    lines = []
    for index, rows in enumerate(written.rows):
        place = {"episode_chunk": index // 2, "episode_index": index}
        write_table(written.root / V2_DATA.format(**place), rows)
        for camera in cameras:
            path = written.root / V2_VIDEO.format(video_key=camera, **place)
            _write_video(path, written.frames[index][camera], codec, fps)
        lines.append({"episode_index": index, "tasks": [TASKS[index % 2]], "length": len(rows["index"])})
    meta = written.root / "meta"
    meta.mkdir(parents=True, exist_ok=True)
    (meta / "episodes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    tasks = [{"task_index": number, "task": task} for number, task in enumerate(TASKS)]
    (meta / "tasks.jsonl").write_text("".join(json.dumps(line) + "\n" for line in tasks))


def _write_video(path: Path, frames: np.ndarray, codec: str, fps: int) -> None:
    options = {"crf": "30"} | ({"preset": "12", "svtav1-params": "lp=1"} if codec == "libsvtav1" else {})
    write_file(path, frames, fps=fps, codec=codec, keyframe_interval=2, options=options)
