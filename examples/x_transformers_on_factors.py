"""x-transformers' autoregressive wrapper as a video generator: it continues real play on factored token ids.

    python examples/x_transformers_on_factors.py [key=value ...]

Each id is split into two factors, so the output layer has the sum of their sizes as classes and not the product (1,024
instead of 262,144 for the largest codebooks). A clip is one sequence in which the two kinds of factors alternate; the
second is conditioned on the first. Needs the extras `generators` and `demo` (for recording).
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from generator_play import GeneratorConfig, record_play, report, run_generator, train, tune_tokenizer
from torch import Tensor
from x_transformers import AutoregressiveWrapper, Decoder, TransformerWrapper

from vidtok_plugin import TokenizerAdapter, VideoTokens, VidTok
from vidtok_plugin.common.devices import default_device


@dataclass(frozen=True, kw_only=True)
class FactorsExampleConfig(GeneratorConfig):
    output: Path = Path("runs/generators/x_transformers")
    steps: int = 100  # a clip has twice as many tokens as for the Llama


class FactorTransformer(TransformerWrapper):
    """Predicts the classes of all factors, laid end to end, and masks those of the factors that can't come next."""

    def __init__(self, sizes: Sequence[int], **settings: Any) -> None:
        super().__init__(num_tokens=sum(sizes), **settings)
        kinds = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
        self.register_buffer("is_of_kind", kinds == torch.arange(len(sizes))[:, None])

    def forward(self, x: Tensor, **settings: Any) -> Any:
        out = super().forward(x, **settings)
        logits, *rest = out if isinstance(out, tuple) else (out,)
        positions = torch.arange(x.shape[1] - logits.shape[1], x.shape[1], device=x.device)  # with a cache: the last
        allowed = self.is_of_kind[(positions + 1) % len(self.is_of_kind)]
        logits = logits.masked_fill(~allowed, float("-inf"))
        return (logits, *rest) if isinstance(out, tuple) else logits


def continue_play(cfg: FactorsExampleConfig) -> None:
    """Train x-transformers on the factors of recorded play, and let it continue held-out prompts."""
    play, device = record_play(cfg), default_device()
    adapter = TokenizerAdapter(tune_tokenizer(cfg, VidTok.from_pretrained("vidtok_tiny")))
    tokens, held_out = play.encode(adapter)
    sizes = adapter.factor_sizes
    first_class = torch.tensor([sum(sizes[:k]) for k in range(len(sizes))], device=device)

    def sequences(batch: VideoTokens) -> Tensor:
        return rearrange(adapter.split(batch.ids) + first_class, "b n k -> b (n k)")

    length = len(sizes) * held_out.grid.num_tokens
    per_head = cfg.width // cfg.heads
    layers = Decoder(
        dim=cfg.width,
        depth=cfg.depth,
        heads=cfg.heads,
        attn_dim_head=per_head,
        rotary_pos_emb=True,
        rotary_emb_dim=per_head,
        attn_flash=True,
    )
    model = AutoregressiveWrapper(FactorTransformer(sizes, max_seq_len=length, attn_layers=layers)).to(device)
    print(f"losses are in nats per factor, of {sizes} classes; chance is {torch.tensor(sizes).log().mean():.3f}")
    train(model, lambda batch: model(sequences(batch)), tokens, held_out, cfg)

    prompt = sequences(held_out)[:, : len(sizes) * play.prompt_grid(adapter).num_tokens]
    made = model.generate(
        prompt, length - prompt.shape[1], temperature=cfg.temperature, filter_logits_fn=lambda logits: logits
    )
    factors = rearrange(torch.cat([prompt, made], dim=1), "b (n k) -> b n k", k=len(sizes)) - first_class
    report(play, adapter, held_out, adapter.tokens_from_ids(adapter.join(factors), held_out.grid))


def main(argv: Sequence[str] | None = None) -> int:
    return run_generator(FactorsExampleConfig, continue_play, argv)


if __name__ == "__main__":
    sys.exit(main())
