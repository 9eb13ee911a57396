"""Hugging Face's LlamaForCausalLM as a video generator: it continues real play with its own `generate()`.

    python examples/llama_on_tokens.py [key=value ...]

Each clip is a sequence of token ids between bos and eos. Needs the extras `generators` and `demo` (for recording).
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from generator_play import GeneratorConfig, record_play, report, run_generator, train, tune_tokenizer
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from vidtok_plugin import TokenizerAdapter, VideoTokens, VidTok
from vidtok_plugin.common.devices import default_device


@dataclass(frozen=True, kw_only=True)
class LlamaExampleConfig(GeneratorConfig):
    output: Path = Path("runs/generators/llama")


def continue_play(cfg: LlamaExampleConfig) -> None:
    """Train a Llama on the ids of recorded play, and let it continue held-out prompts."""
    play, device = record_play(cfg), default_device()
    adapter = TokenizerAdapter(tune_tokenizer(cfg, VidTok.from_pretrained("vidtok_tiny")))
    tokens, held_out = play.encode(adapter)
    length, special = held_out.grid.num_tokens + 2, adapter.special_ids
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=adapter.vocab_size,
            hidden_size=cfg.width,
            intermediate_size=3 * cfg.width,
            num_hidden_layers=cfg.depth,
            num_attention_heads=cfg.heads,
            max_position_embeddings=length,
            bos_token_id=special["bos"],
            eos_token_id=special["eos"],
            pad_token_id=special["pad"],
        )
    ).to(device)

    def loss(batch: VideoTokens) -> Tensor:
        sequences = adapter.sequences(batch)
        return llama(input_ids=sequences, labels=sequences).loss

    counts = torch.bincount(tokens.ids.flatten(), minlength=adapter.codebook_size) + 1.0
    unigram = -(counts / counts.sum()).log()[held_out.ids].mean().item()
    print(f"losses are in nats per token; unigram frequencies alone reach {unigram:.3f}")
    train(llama, loss, tokens, held_out, cfg)

    prompt = adapter.sequences(held_out)[:, : 1 + play.prompt_grid(adapter).num_tokens]
    sequences = llama.eval().generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=True,
        temperature=cfg.temperature,
        top_k=0,
        max_length=length,
        min_length=length - 1,
        suppress_tokens=[special["bos"], special["pad"]],
        forced_eos_token_id=special["eos"],
    )
    report(play, adapter, held_out, adapter.tokens_from_sequences(sequences, held_out.grid))


def main(argv: Sequence[str] | None = None) -> int:
    return run_generator(LlamaExampleConfig, continue_play, argv)


if __name__ == "__main__":
    sys.exit(main())
