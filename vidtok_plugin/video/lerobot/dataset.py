"""A LeRobot dataset: its info.json, and the list of its episodes with where each of their parts is."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from vidtok_plugin.common.json_files import read_json_object
from vidtok_plugin.video.cameras import Cameras, choose_cameras
from vidtok_plugin.video.episode_meta import MAX_FPS
from vidtok_plugin.video.lerobot.episode import ACTION, SIGNALS, LeRobotEpisode, Segment
from vidtok_plugin.video.lerobot.tables import FIX, column, read_rows, read_table

INFO = Path("meta", "info.json")
EPISODE_TABLES = Path("meta", "episodes")  # a folder in v3.0
VERSIONS = ("v2.0", "v2.1", "v3.0")


def is_lerobot(folder: Path) -> bool:
    """Whether a folder is the root of a LeRobot dataset."""
    return (folder / INFO).is_file()


def open_lerobot(root: Path, camera: Cameras | None = None) -> list[LeRobotEpisode]:
    """The episodes of a dataset, in the order of their `episode_index`.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the camera is unknown, the version is another one, or the tables don't fit together.
    """
    info = Info(root)
    cameras = choose_cameras(camera, info.cameras, f"LeRobot dataset {root}")
    episodes: dict[int, LeRobotEpisode] = {}
    for row in _episode_rows(root, info, cameras):
        index = _integer(row["episode_index"], root, "episode_index")
        if index in episodes:
            raise ValueError(f"LeRobot dataset {root}: its episodes must differ, got episode {index} twice; {FIX}.")
        episodes[index] = _episode(root, info, cameras, index, row)
    missing = sorted(set(range(info.total_episodes)).symmetric_difference(episodes))
    if missing:
        raise ValueError(
            f"LeRobot dataset {root}: it must have the episodes 0..{info.total_episodes - 1}, as its {INFO} says, but "
            f"episode {missing[0]} is {'not expected' if missing[0] in episodes else 'missing'}; {FIX}."
        )
    num_actions = _num_actions(info, {episode.table for episode in episodes.values()})
    return [replace(episodes[index], num_actions=num_actions) for index in sorted(episodes)]


class Info:
    """The values of info.json that are needed, checked."""

    def __init__(self, root: Path) -> None:
        self.path = root / INFO
        values = read_json_object(self.path, FIX)
        self.values = values
        self.version = values.get("codebase_version")
        if self.version not in VERSIONS:
            raise self.invalid(f"codebase_version must be one of {', '.join(VERSIONS)}", self.version)
        fps: Any = values.get("fps")
        if type(fps) not in (int, float) or not 0 < fps <= MAX_FPS:
            raise self.invalid("fps must be a number above 0", fps)
        self.fps = float(fps)
        self.total_episodes = self.integer("total_episodes")
        for name in ("data_path", "video_path"):
            if not isinstance(values.get(name), str):
                raise self.invalid(f"{name} must be a pattern of paths", values.get(name))
        features = values.get("features")
        if not isinstance(features, dict) or not all(isinstance(feature, dict) for feature in features.values()):
            raise self.invalid("features must be an object of objects", features)
        self.features: Mapping[str, Mapping[str, Any]] = features
        self.cameras = [name for name, feature in features.items() if feature.get("dtype") == "video"]
        if not self.cameras:
            kinds = {name: feature.get("dtype") for name, feature in features.items()}
            raise self.invalid("features must have one with dtype video; datasets of single images are not read", kinds)

    def integer(self, name: str) -> int:
        value = self.values.get(name)
        if type(value) is not int or value < 1:
            raise self.invalid(f"{name} must be an integer of at least 1", value)
        return value

    def file(self, pattern: str, **places: Any) -> Path:
        """The path by the pattern `data_path` or `video_path`, relative to the root."""
        try:
            path = PurePosixPath(self.values[pattern].format(**places))
        except (LookupError, ValueError, TypeError, AttributeError) as error:
            raise self.invalid(
                f"{pattern} must be a pattern of {', '.join(places)} ({error!r})", self.values[pattern]
            ) from None
        if path.is_absolute() or ".." in path.parts:
            raise self.invalid(f"{pattern} must lead to files of the dataset", str(path))
        return Path(path)

    def invalid(self, rule: str, value: object) -> ValueError:
        shown = repr(value) if len(repr(value)) <= 200 else f"{value!r:.200}..."
        return ValueError(f"LeRobot dataset: in {self.path}, {rule}, got {shown}; {FIX}.")


def _episode_rows(root: Path, info: Info, cameras: Sequence[str]) -> list[dict[str, Any]]:
    if info.version != "v3.0":
        return read_rows(root / "meta" / "episodes.jsonl", ("episode_index", "length"), ("tasks",))
    files = sorted((root / EPISODE_TABLES).glob("*/*.parquet"))
    if not files:
        raise FileNotFoundError(f"LeRobot dataset: {root / EPISODE_TABLES} has no parquet files; {FIX}.")
    columns = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
    of_videos = [f"videos/{camera}/{name}" for camera in cameras for name in columns]
    needed = ("episode_index", "length", "data/chunk_index", "data/file_index", *of_videos)
    return [row for file in files for row in read_rows(file, needed, ("tasks",))]


def _episode(root: Path, info: Info, cameras: Sequence[str], index: int, row: Mapping[str, Any]) -> LeRobotEpisode:
    length = _integer(row["length"], root, f"length of episode {index}", least=1)
    if info.version == "v3.0":
        places = {name: _integer(row[f"data/{name}"], root, name) for name in ("chunk_index", "file_index")}
    else:
        places = {"episode_chunk": index // info.integer("chunks_size"), "episode_index": index}
    segments = []
    for camera in cameras:
        start = 0.0
        of_video = dict(places)
        if info.version == "v3.0":
            values = {name: row[f"videos/{camera}/{name}"] for name in ("chunk_index", "file_index")}
            of_video = {name: _integer(value, root, name) for name, value in values.items()}
            start, end = (float(row[f"videos/{camera}/{name}"]) for name in ("from_timestamp", "to_timestamp"))
            if not abs(end - start - length / info.fps) < 0.5 / info.fps:
                raise ValueError(
                    f"LeRobot dataset {root}: the video {camera} of episode {index} must last {length / info.fps:.4f} "
                    f"s (length / fps), got {start:.4f} to {end:.4f} s; {FIX}."
                )
        path = root / info.file("video_path", video_key=camera, **of_video)
        segments.append(Segment(camera=camera, path=path, start=start, whole=info.version != "v3.0"))
    texts = row.get("tasks")
    task = "; ".join(map(str, texts)) if isinstance(texts, list) and texts else None
    return LeRobotEpisode(
        path=root,
        index=index,
        num_frames=length,
        fps=info.fps,
        task=task,
        table=root / info.file("data_path", **places),
        segments=tuple(segments),
        signals=tuple(name for name in SIGNALS if name in info.features),
    )


def _num_actions(info: Info, tables: Collection[Path]) -> int | None:
    """The number of choices of discrete actions, single integers, which only the actions themselves tell; else None."""
    feature = info.features.get(ACTION, {})
    if not str(feature.get("dtype")).startswith(("int", "uint")) or list(feature.get("shape") or [1]) != [1]:
        return None
    largest = 0
    for path in sorted(tables):
        table = read_table(path)
        if ACTION not in table.column_names:
            raise ValueError(f"LeRobot dataset: {path} must have the column {ACTION}, as {info.path} says; {FIX}.")
        actions = column(table, ACTION, path)
        if actions.dtype.kind not in "iu" or actions.min(initial=0) < 0:
            raise ValueError(f"LeRobot dataset: {path} must have integers from 0 on as {ACTION}; {FIX}.")
        largest = max(largest, int(actions.max(initial=0)))
    return largest + 1


def _integer(value: object, root: Path, name: str, least: int = 0) -> int:
    if type(value) is not int or value < least:
        raise ValueError(
            f"LeRobot dataset {root}: {name} must be an integer of at least {least} in its list of episodes, got "
            f"{value!r}; {FIX}."
        )
    return value
