"""Token stores of synthetic episodes, for tests that read tokens."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from vidtok_plugin.store.metadata import StoreMetadata
from vidtok_plugin.store.shards import StoredEpisode
from vidtok_plugin.store.writer import TokenStoreWriter

METADATA = StoreMetadata(
    adapter_hash="abc",
    token_hash="def",
    tokenizer={},
    codebook_size=12,
    fsq_levels=(4, 3),
    height=2,
    width=3,
    temporal_factor=2,
    fps=30.0,
    action_space={"kind": "discrete", "size": 5},
)
PATCHES = replace(METADATA, kind="continuous", codebook_size=None, fsq_levels=None, patch_dim=3)


def episode_data(steps: int, first_code: int = 0, patch_dim: int | None = None) -> dict[str, torch.Tensor]:
    """Codes or patches that encode their step, and actions that encode their frame; the last step has one frame."""
    codes = (first_code + torch.arange(steps)) % 12
    frames = torch.arange(2 * steps).view(steps, 2) - 1  # of each step; step 0 is only frame 0
    num_actions = torch.full((steps,), 2, dtype=torch.uint8)
    num_actions[0], num_actions[-1] = 0, 1 if steps > 1 else 0
    grid = codes[:, None, None].expand(steps, 2, 3)
    if patch_dim is None:
        tokens = {"codes": grid.to(torch.int32).contiguous()}
    else:
        tokens = {"patches": (grid[..., None] / 6 - 1).expand(-1, -1, -1, patch_dim).float().contiguous()}
    return tokens | {
        "actions": frames.clamp(min=0) % 5,
        "num_actions": num_actions,
    }


def write_episodes(
    folder: Path, split: str, steps: Sequence[int], *, metadata: StoreMetadata = METADATA, per_shard: int = 2
) -> Path:
    """A split with episodes of these lengths in steps; the codes of episode i count up from i."""
    writer = TokenStoreWriter(folder, metadata)
    for begin in range(0, len(steps), per_shard):
        numbers = range(begin, min(begin + per_shard, len(steps)))
        entries = [
            StoredEpisode(name=f"{i}.mp4", steps=steps[i], frames=2 * steps[i] - 2, digest=str(i)) for i in numbers
        ]
        writer.write_shard(split, entries, [episode_data(steps[i], i, metadata.patch_dim) for i in numbers])
    return folder
