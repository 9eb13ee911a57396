"""VidTok video tokenizers as a plugin for latent world models and video generators."""

from vidtok_plugin.adapter.adapter import TokenizerAdapter
from vidtok_plugin.adapter.tokens import TokenGrid, VideoTokens
from vidtok_plugin.common.primitive_cache import bound_primitive_cache
from vidtok_plugin.common.reference import reference_path
from vidtok_plugin.tokenizer.model import VidTok
from vidtok_plugin.tokenizer.presets import Preset, presets

__all__ = ["Preset", "TokenGrid", "TokenizerAdapter", "VidTok", "VideoTokens", "presets", "reference_path"]

bound_primitive_cache()
