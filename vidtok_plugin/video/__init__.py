"""Video files: reading, writing, recorded episodes, and clips for training."""

from typing import TYPE_CHECKING

from vidtok_plugin.common.lazy_package import make_lazy

if TYPE_CHECKING:
    from vidtok_plugin.video.batch import Clip as Clip
    from vidtok_plugin.video.batch import VideoBatch as VideoBatch
    from vidtok_plugin.video.batch import as_video as as_video
    from vidtok_plugin.video.clips import ClipDataset as ClipDataset
    from vidtok_plugin.video.data import VideoDataConfig as VideoDataConfig
    from vidtok_plugin.video.data import VideoDataModule as VideoDataModule
    from vidtok_plugin.video.episode import Episode as Episode
    from vidtok_plugin.video.episodes import RecordedEpisode as RecordedEpisode
    from vidtok_plugin.video.episodes import find_episodes as find_episodes
    from vidtok_plugin.video.episodes import find_videos as find_videos
    from vidtok_plugin.video.opening import open_episodes as open_episodes
    from vidtok_plugin.video.opening import open_videos as open_videos
    from vidtok_plugin.video.preparation import Preparation as Preparation
    from vidtok_plugin.video.reading import VideoInfo as VideoInfo
    from vidtok_plugin.video.reading import probe as probe
    from vidtok_plugin.video.reading import read_frames as read_frames
    from vidtok_plugin.video.sources import Source as Source
    from vidtok_plugin.video.sources import find_sources as find_sources
    from vidtok_plugin.video.unreadable import UnreadableVideoError as UnreadableVideoError
    from vidtok_plugin.video.unreadable import UnreadableVideos as UnreadableVideos
    from vidtok_plugin.video.writing import VideoWriter as VideoWriter
    from vidtok_plugin.video.writing import write_video as write_video

__all__ = make_lazy(
    __name__,
    {
        "Clip": "vidtok_plugin.video.batch",
        "ClipDataset": "vidtok_plugin.video.clips",
        "Episode": "vidtok_plugin.video.episode",
        "Preparation": "vidtok_plugin.video.preparation",
        "RecordedEpisode": "vidtok_plugin.video.episodes",
        "Source": "vidtok_plugin.video.sources",
        "UnreadableVideoError": "vidtok_plugin.video.unreadable",
        "UnreadableVideos": "vidtok_plugin.video.unreadable",
        "VideoBatch": "vidtok_plugin.video.batch",
        "VideoDataConfig": "vidtok_plugin.video.data",
        "VideoDataModule": "vidtok_plugin.video.data",
        "VideoInfo": "vidtok_plugin.video.reading",
        "VideoWriter": "vidtok_plugin.video.writing",
        "as_video": "vidtok_plugin.video.batch",
        "find_episodes": "vidtok_plugin.video.episodes",
        "find_sources": "vidtok_plugin.video.sources",
        "find_videos": "vidtok_plugin.video.episodes",
        "open_episodes": "vidtok_plugin.video.opening",
        "open_videos": "vidtok_plugin.video.opening",
        "probe": "vidtok_plugin.video.reading",
        "read_frames": "vidtok_plugin.video.reading",
        "write_video": "vidtok_plugin.video.writing",
    },
    needs={"VideoDataConfig": "lightning", "VideoDataModule": "lightning"},
)
