"""Training with states: their loss is logged apart, and a store without them is refused."""

from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from small_runs import LIGHTNING_NOISE, config
from stores import METADATA, episode_data, write_episodes

from vidtok_plugin.store.shards import StoredEpisode
from vidtok_plugin.store.writer import TokenStoreWriter
from world_model import TokenDataModule, WorldModel, WorldModelModule

STATE = "model.state={width: 16}"
UNITS = torch.tensor([0.01, 100.0, 0.0])  # the last component is constant


def write_states(folder: Path, *, size: int = 3) -> Path:
    """Codes count up by one per step; each frame's state is the code of its step, in three units."""
    for split in ("train", "validation"):
        writer = TokenStoreWriter(folder, METADATA)
        for number in range(6):
            data = episode_data(12 - number, number)
            codes = data["codes"][:, 0, 0].float()
            data["state"] = (codes[:, None, None].expand(-1, 2, -1) * UNITS + 7)[..., :size].contiguous()
            steps = len(codes)
            entry = StoredEpisode(name=f"{number}.mp4", steps=steps, frames=2 * steps - 2, digest=str(number))
            writer.write_shard(split, [entry], [data])
    return folder


def trainer(cfg: object) -> pl.Trainer:
    return pl.Trainer(**cfg.trainer, logger=False, enable_checkpointing=False, enable_model_summary=False)  # type: ignore[attr-defined]


@LIGHTNING_NOISE
def test_states_are_learned_by_trainer_fit(tmp_path: Path) -> None:
    cfg = config(
        write_states(tmp_path / "tokens"), tmp_path, "model.state={width: 16, weight: 2}", "trainer.max_steps=15"
    )
    module = WorldModelModule(cfg)
    normalization = module.model.state_normalization
    assert normalization is not None and module.model.config.state is not None
    assert module.model.config.state.size == 3
    codes = torch.cat([(number + torch.arange(12 - number)) % 12 for number in range(6)]).double()
    torch.testing.assert_close(normalization.mean.double(), codes.mean() * UNITS.double() + 7)
    expected = codes.std(correction=0) * UNITS.double() + torch.tensor([0.0, 0.0, 1.0])
    torch.testing.assert_close(normalization.std.double(), expected, rtol=1e-4, atol=0)
    run = trainer(cfg)
    run.fit(module, TokenDataModule(cfg))
    logged = run.callback_metrics
    total = logged["train/cross_entropy"] + 2 * logged["train/state_loss"]
    torch.testing.assert_close(logged["train/loss"], total)
    assert logged["val/state_loss"] < 0.01  # at first 0.075, that of copying


def test_stores_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        write_episodes(tmp_path / "without", split, [9, 12])
    with pytest.raises(ValueError, match=r"model\.state needs episodes that have states, and .* split train, has none"):
        WorldModelModule(config(tmp_path / "without", tmp_path, STATE))
    with pytest.raises(ValueError, match=r"model\.state\.size must be 3, the components of the store's states, got 4"):
        WorldModelModule(config(write_states(tmp_path / "tokens"), tmp_path, "model.state={size: 4}"))


def test_a_saved_world_can_be_given_states(tmp_path: Path) -> None:
    store = write_states(tmp_path / "tokens")
    plain = WorldModelModule(config(store, tmp_path)).model
    plain.save_pretrained(tmp_path / "plain")
    model = WorldModelModule(config(store, tmp_path, f"pretrained={tmp_path / 'plain'}", STATE)).model
    assert model.state_normalization is not None and model.state_normalization.std[0] < 0.1
    for name, tensor in plain.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)
    model.state_normalization.mean.fill_(3.0)  # as of another store
    model.save_pretrained(tmp_path / "world")
    again = WorldModelModule(config(store, tmp_path, f"pretrained={tmp_path / 'world'}", STATE)).model
    assert torch.equal(again.state_normalization.mean, model.state_normalization.mean)  # type: ignore[union-attr]
    keys = [f"pretrained={tmp_path / 'world'}", "model.state={width: 16, weight: 0.5}"]
    assert WorldModelModule(config(store, tmp_path, *keys)).model.config.state.weight == 0.5  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=r"architecture of pretrained=.*model\.state"):
        WorldModelModule(config(store, tmp_path, f"pretrained={tmp_path / 'world'}", "model.state={width: 8}"))
    with pytest.raises(ValueError, match=r"architecture of pretrained=.*model\.state"):
        two = write_states(tmp_path / "two", size=2)
        WorldModelModule(config(two, tmp_path, f"pretrained={tmp_path / 'world'}", STATE))


@pytest.mark.slow
@LIGHTNING_NOISE
def test_a_world_with_states_trains_on_play_without_them(tmp_path: Path) -> None:
    """Its head stays as it is."""
    WorldModelModule(config(write_states(tmp_path / "first"), tmp_path, STATE)).model.save_pretrained(
        tmp_path / "world"
    )
    for split in ("train", "validation"):
        write_episodes(tmp_path / "tokens", split, [9, 12])
    cfg = config(tmp_path / "tokens", tmp_path, f"pretrained={tmp_path / 'world'}", STATE, "trainer.max_steps=3")
    module = WorldModelModule(cfg)
    before = WorldModel.from_pretrained(tmp_path / "world").state_dict()
    trainer(cfg).fit(module, TokenDataModule(cfg))
    after = module.model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before if name.startswith("state_"))
    assert not torch.equal(after["step_inputs.place"], before["step_inputs.place"])
