"""diffusers' Latte transformer as a video generator: flow matching on the patches of a KL tokenizer.

    python examples/dit_on_patches.py [key=value ...]

The package ships no KL tokenizer, so the example first makes one: vidtok_tiny with Gaussian latents instead of codes.
It takes over all weights that fit (all but the convolutions next to the latents) and is trained on the same play;
`tokenizer.trainer.max_steps=50` and the like change that. The transformer then sees the prompt's steps unchanged and
the other steps as noise, which it learns to move towards the data. Needs the extras `generators` and `demo`.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers import LatteTransformer3DModel
from einops import rearrange
from generator_play import CLIP_BATCH, GeneratorConfig, record_play, report, run_generator, train, tune_tokenizer
from torch import Tensor

from vidtok_plugin import TokenizerAdapter, VideoTokens, VidTok
from vidtok_plugin.common.devices import default_device


@dataclass(frozen=True, kw_only=True)
class DiTExampleConfig(GeneratorConfig):
    output: Path = Path("runs/generators/dit")
    batch_size: int = 8  # a clip has a quarter as many tokens as in the other examples
    kl_channels: int = 8
    euler_steps: int = 25  # from noise to data


def make_kl_tokenizer(cfg: DiTExampleConfig) -> VidTok:
    """A KL tokenizer that starts from the weights of vidtok_tiny that fit, trained on the recorded play."""
    fsq = VidTok.from_pretrained("vidtok_tiny")
    gaussian = {"regularizer": "kl", "fsq_levels": None, "kl_channels": cfg.kl_channels}
    kl = VidTok(replace(fsq.architecture, **gaussian))
    shapes = {name: weight.shape for name, weight in kl.state_dict().items()}
    fitting = {name: weight for name, weight in fsq.state_dict().items() if weight.shape == shapes[name]}
    kl.load_state_dict(fitting, strict=False)
    return tune_tokenizer(cfg, kl)


def continue_play(cfg: DiTExampleConfig) -> None:
    """Make a KL tokenizer, train a Latte on its patches of recorded play, and let it continue held-out prompts."""
    play, device = record_play(cfg), default_device()
    adapter = TokenizerAdapter(make_kl_tokenizer(cfg), patch_size=(1, 2, 2))
    adapter.fit_latent_stats(batch.to(device) for batch in play.train.split(CLIP_BATCH))
    tokens, held_out = play.encode(adapter)
    grid, d, prompt_steps = held_out.grid, adapter.patch_dim, play.prompt_grid(adapter).T
    latte = LatteTransformer3DModel(
        num_attention_heads=cfg.heads,
        attention_head_dim=cfg.width // cfg.heads,
        in_channels=2 * d + 1,  # noisy patches, clean patches of the prompt, and a mask of the prompt
        out_channels=d,
        num_layers=cfg.depth,
        cross_attention_dim=cfg.width,
        sample_size=grid.H,
        patch_size=1,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        activation_fn="gelu-approximate",
        caption_channels=1,
        video_length=grid.T,
    ).to(device)
    is_prompt = (torch.arange(grid.T, device=device) < prompt_steps).float().view(1, 1, -1, 1, 1)

    def data(batch: VideoTokens) -> Tensor:
        return rearrange(batch.patches, "b (t h w) d -> b d t h w", t=grid.T, h=grid.H)

    def velocity(x: Tensor, clean: Tensor, time: Tensor) -> Tensor:
        mask = is_prompt.expand(len(x), 1, *x.shape[2:])
        no_caption = torch.zeros(len(x), 1, 1, device=device)
        return latte(torch.cat([x, clean * mask, mask], dim=1), 1000 * time, no_caption).sample

    def loss(batch: VideoTokens) -> Tensor:
        clean = data(batch)
        noise, time = torch.randn_like(clean), torch.rand(len(clean), device=device)
        x = torch.lerp(noise, clean, time.view(-1, 1, 1, 1, 1))
        error = (velocity(x, clean, time) - (clean - noise)).square()
        return (error * (1 - is_prompt)).mean() / (1 - is_prompt).mean()

    print("losses are squared errors of the velocity, per normalised patch value")
    train(latte, loss, tokens, held_out, cfg)

    clean, x = data(held_out), torch.randn_like(data(held_out))
    with torch.no_grad():
        for step in range(cfg.euler_steps):
            time = torch.full((len(x),), step / cfg.euler_steps, device=device)
            x = x + velocity(x, clean, time) / cfg.euler_steps
    patches = rearrange(torch.where(is_prompt > 0, clean, x), "b d t h w -> b (t h w) d")
    report(play, adapter, held_out, adapter.tokens_from_patches(patches, grid))


def main(argv: Sequence[str] | None = None) -> int:
    return run_generator(DiTExampleConfig, continue_play, argv)


if __name__ == "__main__":
    sys.exit(main())
