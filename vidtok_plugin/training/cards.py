"""The model card of a run: its data, its last validation, and its newest picture."""

from collections.abc import Sequence
from pathlib import Path

import lightning.pytorch as pl

from vidtok_plugin.common.model_card import CardInfo
from vidtok_plugin.training.config import RunConfig

PICTURES = {"reconstruction-*.png": "validation clips and their reconstructions", "curves.png": "the run's curves"}


def run_card(cfg: RunConfig, trainer: pl.Trainer, sources: Sequence[str | Path]) -> CardInfo:
    """What the card of a run's model says.

    sources: the data, of which the card has the last names only, since folders of a machine are private.
    """
    names = ", ".join(f"`{name}`" for name in dict.fromkeys(Path(str(source)).name for source in sources))
    measures = {
        name.removeprefix("val/"): value.item()
        for name, value in sorted(trainer.callback_metrics.items())
        if name.startswith("val/")
    }
    picture = next((path for pattern in PICTURES for path in sorted(cfg.pictures_folder.glob(pattern))[-1:]), None)
    caption = next((text for pattern, text in PICTURES.items() if picture and picture.match(pattern)), "")
    return CardInfo(
        data=f"{names}; {trainer.global_step:,} batches, seed {cfg.seed}.",
        measures=measures,
        measured="Of the run's last validation.",
        picture=picture,
        caption=caption,
    )
