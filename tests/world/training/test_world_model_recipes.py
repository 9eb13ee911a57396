"""The configs in configs/world_model, merged as their comments say, make runs that train."""

from pathlib import Path

import pytest
from places import ROOT
from stores import PATCHES, write_episodes

from vidtok_plugin.common.config import load_config
from world_model import TokenDataModule, WorldModelModule, WorldModelRunConfig
from world_model.data import window_actions, window_tokens

CONFIGS = ROOT / "configs" / "world_model"
RECIPES = {
    "demo from scratch": ["demo_from_scratch"],
    "actions": ["demo_from_scratch", "actions"],
    "masked": ["demo_from_scratch", "masked"],
    "sharded": ["demo_from_scratch", "sharded"],
    "masked and sharded": ["demo_from_scratch", "masked", "sharded"],
}


def test_every_config_is_in_a_recipe() -> None:
    own = {"demo"}  # needs a world; covered by the tests of the demo
    assert {path.stem for path in CONFIGS.glob("*.yaml")} - own == {
        file for files in RECIPES.values() for file in files
    }


@pytest.mark.parametrize("metadata", [None, PATCHES], ids=["codes", "patches"])
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_makes_a_model_that_takes_a_step(name: str, metadata: object, tmp_path: Path) -> None:
    settings = {} if metadata is None else {"metadata": metadata}
    for split in ("train", "validation"):
        write_episodes(tmp_path / "tokens", split, [9, 12], **settings)  # type: ignore[arg-type]
    cfg = load_config(
        WorldModelRunConfig,
        [CONFIGS / f"{file}.yaml" for file in RECIPES[name]],
        [f"data.store={tmp_path / 'tokens'}", f"output={tmp_path}"],
    )
    module, data = WorldModelModule(cfg), TokenDataModule(cfg)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    loss = module.model.train().loss(window_tokens(batch), window_actions(batch), batch["valid"])
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.isfinite() and (cfg.model.prediction == "masked") == ("masked" in name)
