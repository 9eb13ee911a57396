"""Video files: reading, writing, recorded episodes, and clips for training."""

from vidtok_plugin.video.batch import Clip, VideoBatch, as_video
from vidtok_plugin.video.clips import ClipDataset
from vidtok_plugin.video.data import VideoDataConfig, VideoDataModule
from vidtok_plugin.video.episode import Episode
from vidtok_plugin.video.episodes import RecordedEpisode, find_episodes, find_videos
from vidtok_plugin.video.opening import open_episodes, open_videos
from vidtok_plugin.video.reading import VideoInfo, probe, read_frames
from vidtok_plugin.video.sources import Source, find_sources
from vidtok_plugin.video.unreadable import UnreadableVideoError, UnreadableVideos
from vidtok_plugin.video.writing import VideoWriter, write_video

__all__ = [
    "Clip",
    "ClipDataset",
    "Episode",
    "RecordedEpisode",
    "Source",
    "UnreadableVideoError",
    "UnreadableVideos",
    "VideoBatch",
    "VideoDataConfig",
    "VideoDataModule",
    "VideoInfo",
    "VideoWriter",
    "as_video",
    "find_episodes",
    "find_sources",
    "find_videos",
    "open_episodes",
    "open_videos",
    "probe",
    "read_frames",
    "write_video",
]
