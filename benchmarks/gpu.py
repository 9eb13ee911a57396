"""Speed of GPU-only code: xformers against SDPA, memory formats of convolutions, CUDA graphs in decoding.

    python benchmarks/gpu.py

The benchmarks of the tokenizer and of rollouts also run on a GPU (bf16 by --precision, compiled networks, diffusers in
both memory formats). Contenders take turns; figures are medians of rounds.
"""

import statistics
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from harness import in_turns, make_parser, matmul_rate, ratio, report

from vidtok_plugin.tokenizer.architecture import TimePadding
from vidtok_plugin.tokenizer.network.fast.steps import whole
from vidtok_plugin.tokenizer.network.resampling import SpatialUpsample, TemporalUpsample
from world_model import Decoding, Sampler, WorldModel
from world_model.architecture import TokenSpec, WorldModelConfig
from world_model.generation.generator import StepGenerator
from world_model.transformer.attention import attention
from world_model.transformer.block import TransformerConfig

Work = Callable[[], Any]
DEVICE = "cuda"


def rows_of(section: str, what: str, contenders: Mapping[str, Work], rounds: int, **more: Any) -> list[dict[str, Any]]:
    """Rows of contenders, with their speed relative to the first."""
    seconds = in_turns(contenders, rounds=rounds, warmups=3)
    first = next(iter(contenders))
    return [
        {
            "section": section,
            "what": what,
            "path": name,
            "ms": 1e3 * statistics.median(seconds[name]),
            "times the speed of the first": ratio(seconds[first], seconds[name]),
            **more,
        }
        for name in contenders
    ]


def attention_rows(batch: int, heads: int, queries: int, keys: int, rounds: int) -> list[dict[str, Any]]:
    q = torch.randn(batch, heads, queries, 64, device=DEVICE, dtype=torch.bfloat16)
    k, v = (torch.randn(batch, heads, keys, 64, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    causal = queries > 1  # a single query, as in decoding, attends to all keys
    contenders: dict[str, Work] = {"sdpa": lambda: attention(q, k, v, causal=causal, backend="sdpa")}
    try:
        output = attention(q, k, v, causal=causal, backend="xformers")
    except (ValueError, NotImplementedError) as error:
        print(f"xformers is left out, since it cannot run here: {str(error).splitlines()[0]}")
    else:
        assert (output.float() - contenders["sdpa"]().float()).abs().max() < 0.03
        contenders["xformers"] = lambda: attention(q, k, v, causal=causal, backend="xformers")
    return rows_of("attention, bf16", f"{batch}x{heads}, {queries} of {keys} keys", contenders, rounds)


@torch.no_grad()
def convolution_rows(dtype: torch.dtype, rounds: int) -> list[dict[str, Any]]:
    """A 3x3x3 convolution in both memory formats, and the resampling layers against their definitions."""
    what = "256 channels, 20x64x64"
    x = torch.randn(1, 20, 64, 64, 256, device=DEVICE, dtype=dtype)
    weight = torch.randn(256, 256, 3, 3, 3, device=DEVICE, dtype=dtype)
    last = x.permute(0, 4, 1, 2, 3)
    first, weight_last = last.contiguous(), weight.contiguous(memory_format=torch.channels_last_3d)
    temporal = TemporalUpsample(256, padding=TimePadding.ZEROS, first_frames=1).to(DEVICE, dtype)
    spatial = SpatialUpsample(256).to(DEVICE, dtype)
    weight2 = spatial.conv.weight.contiguous(memory_format=torch.channels_last)

    def plain_in_time() -> torch.Tensor:
        u = F.pad(x.repeat_interleave(2, dim=1), (0, 0, 0, 0, 0, 0, 2, 0)).permute(0, 4, 1, 2, 3)
        return F.conv3d(u, weight_last, padding=(0, 1, 1))

    def plain_in_space() -> torch.Tensor:
        u = F.interpolate(x[0].permute(0, 3, 1, 2), scale_factor=2, mode="nearest")
        return F.conv2d(u, weight2, padding=1)

    layouts: dict[str, Work] = {
        "contiguous": lambda: F.conv3d(first, weight, padding=1),
        "channels_last_3d": lambda: F.conv3d(last, weight_last, padding=1),
    }
    in_time: dict[str, Work] = {"as published": plain_in_time, "ours": lambda: whole(temporal, x)}
    in_space: dict[str, Work] = {"as published": plain_in_space, "ours": lambda: whole(spatial, x)}
    return [
        *rows_of(f"conv3d, {dtype}", what, layouts, rounds),
        *rows_of(f"temporal upsampling, {dtype}", what, in_time, rounds),
        *rows_of(f"spatial upsampling, {dtype}", what, in_space, rounds),
    ]


@torch.no_grad()
def decoding_rows(batch: int, rounds: int) -> list[dict[str, Any]]:
    """Latent steps in raster order, without and with one captured CUDA graph per token."""
    tokens = TokenSpec(codebook_size=1000, height=8, width=8, temporal_factor=4)
    transformer = TransformerConfig(width=512, depth=8, heads=8)
    torch.manual_seed(0)
    model = WorldModel(WorldModelConfig(tokens=tokens, max_steps=16, transformer=transformer)).to(DEVICE).eval()
    past = torch.randint(1000, (batch, 4, 8, 8), device=DEVICE)
    plain, compiled = (
        StepGenerator(model, past, None, Sampler(seed=0), decoding=Decoding(compiled=compiled))
        for compiled in (False, True)
    )
    agree = float((plain.step(None) == compiled.step(None)).float().mean())
    contenders: dict[str, Work] = {"plain": lambda: plain.step(None), "CUDA graphs": lambda: compiled.step(None)}
    rows = rows_of("decoding, TF32", f"512 x 8 layers, batch {batch}", contenders, rounds, agree=agree)
    return [{**row, "tokens/s": batch * 64 / row["ms"] * 1e3} for row in rows]


def main() -> None:
    args = make_parser(__doc__, rounds=7).parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks/gpu.py needs a CUDA device; the other benchmarks run without one.")
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    rows = []
    for dtype in (torch.bfloat16, torch.float32):
        rows += convolution_rows(dtype, args.rounds)
    for batch in (1, 8):
        rows += decoding_rows(batch, args.rounds)
    for shape in ((8, 8, 1024, 1024), (2, 16, 4096, 4096), (8, 8, 1, 4096)):
        rows += attention_rows(*shape, args.rounds)
    rate = matmul_rate(torch.bfloat16, "cuda", 8192)
    report("gpu", rows, args.output, rounds=args.rounds, **{"bf16 matmul FLOP/s": rate})


if __name__ == "__main__":
    main()
