"""VidTok video tokenizers as a plugin for latent world models and video generators."""

from typing import TYPE_CHECKING

from vidtok_plugin.common.lazy_package import make_lazy
from vidtok_plugin.common.primitive_cache import bound_primitive_cache

__version__ = "0.2.0"

if TYPE_CHECKING:
    from vidtok_plugin.adapter.adapter import TokenizerAdapter as TokenizerAdapter
    from vidtok_plugin.adapter.export import ExportedDecoder as ExportedDecoder
    from vidtok_plugin.adapter.export import export_decoder as export_decoder
    from vidtok_plugin.adapter.tokens import TokenGrid as TokenGrid
    from vidtok_plugin.adapter.tokens import VideoTokens as VideoTokens
    from vidtok_plugin.common.model_card import CardInfo as CardInfo
    from vidtok_plugin.common.reference import reference_path as reference_path
    from vidtok_plugin.tokenizer.model import VidTok as VidTok
    from vidtok_plugin.tokenizer.presets import Preset as Preset
    from vidtok_plugin.tokenizer.presets import presets as presets
    from vidtok_plugin.video.episode import Episode as Episode
    from vidtok_plugin.video.opening import open_episodes as open_episodes

__all__ = make_lazy(
    __name__,
    {
        "CardInfo": "vidtok_plugin.common.model_card",
        "Episode": "vidtok_plugin.video.episode",
        "ExportedDecoder": "vidtok_plugin.adapter.export",
        "Preset": "vidtok_plugin.tokenizer.presets",
        "TokenGrid": "vidtok_plugin.adapter.tokens",
        "TokenizerAdapter": "vidtok_plugin.adapter.adapter",
        "VidTok": "vidtok_plugin.tokenizer.model",
        "VideoTokens": "vidtok_plugin.adapter.tokens",
        "export_decoder": "vidtok_plugin.adapter.export",
        "open_episodes": "vidtok_plugin.video.opening",
        "presets": "vidtok_plugin.tokenizer.presets",
        "reference_path": "vidtok_plugin.common.reference",
    },
)

bound_primitive_cache()
