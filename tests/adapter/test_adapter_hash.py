"""The token hash depends only on what determines a video's tokens; has_latent_stats says whether they were fitted."""

from pathlib import Path
from typing import Any

import torch
from adapters import KINDS, make, video
from toy_tokenizers import toy_tokenizer

from vidtok_plugin import TokenizerAdapter


def test_the_token_hash_changes_exactly_when_encoded_tokens_do() -> None:
    def changed(name: str, change: Any, **settings: Any) -> str:
        adapter = make(name, **settings)
        with torch.no_grad():
            change(adapter)
        return adapter.token_hash

    def nothing(_: TokenizerAdapter) -> None:
        pass

    def train_decoder(adapter: TokenizerAdapter) -> None:
        for parameter in adapter.tokenizer.decoder.parameters():
            parameter.add_(1)

    for name in ("fsq", "kl"):
        assert changed(name, train_decoder) == changed(name, nothing)
        assert changed(name, nothing, special_tokens=("bos",)) == changed(name, nothing)
    dropout = TokenizerAdapter(toy_tokenizer(KINDS["fsq"], dropout=0.5).float())
    assert dropout.token_hash == changed("fsq", nothing)
    hashes = [
        changed("fsq", nothing),
        changed("fsq", lambda a: next(a.tokenizer.encoder.parameters())[0].add_(1e-6)),
        TokenizerAdapter(toy_tokenizer("vidtok_fsq_causal_488_32768_v1_1").float()).token_hash,
        changed("kl", nothing),
        changed("kl", nothing, patch_size=(1, 1, 1)),
        changed("kl", lambda a: a.latent_mean[0].add_(1e-6)),
        changed("kl", lambda a: a.latent_std[1].mul_(1.001)),
    ]
    assert len(set(hashes)) == len(hashes)


def test_has_latent_stats_is_true_after_fitting_or_loading(tmp_path: Path) -> None:
    adapter = make("kl")
    adapter.save_pretrained(tmp_path / "unfitted")
    assert not adapter.has_latent_stats
    assert not TokenizerAdapter.from_pretrained(tmp_path / "unfitted").has_latent_stats
    adapter.fit_latent_stats([video()])
    adapter.save_pretrained(tmp_path / "fitted")
    assert adapter.has_latent_stats and TokenizerAdapter.from_pretrained(tmp_path / "fitted").has_latent_stats
    assert not make("fsq").has_latent_stats
