"""VidTok video tokenizers as a plugin for latent world models and video generators."""

from vidtok_plugin.adapter.adapter import TokenizerAdapter
from vidtok_plugin.adapter.tokens import TokenGrid, VideoTokens
from vidtok_plugin.common.primitive_cache import bound_primitive_cache
from vidtok_plugin.common.reference import reference_path
from vidtok_plugin.tokenizer.model import VidTok
from vidtok_plugin.tokenizer.presets import Preset, presets
from vidtok_plugin.video.episode import Episode
from vidtok_plugin.video.opening import open_episodes

__all__ = [
    "Episode",
    "Preset",
    "TokenGrid",
    "TokenizerAdapter",
    "VidTok",
    "VideoTokens",
    "open_episodes",
    "presets",
    "reference_path",
]

bound_primitive_cache()
