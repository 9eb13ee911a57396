"""Video files: reading, writing, recorded episodes, and clips of them to train on."""

from vidtok_plugin.video.clips import ClipDataset, Source, find_sources
from vidtok_plugin.video.data import VideoDataConfig, VideoDataModule
from vidtok_plugin.video.episodes import Episode, find_episodes, find_videos
from vidtok_plugin.video.reading import VideoInfo, probe, read_frames
from vidtok_plugin.video.writing import VideoWriter, write_video

__all__ = [
    "ClipDataset",
    "Episode",
    "Source",
    "VideoDataConfig",
    "VideoDataModule",
    "VideoInfo",
    "VideoWriter",
    "find_episodes",
    "find_sources",
    "find_videos",
    "probe",
    "read_frames",
    "write_video",
]
