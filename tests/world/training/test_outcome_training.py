"""Training with outcomes: their losses are logged apart, and a store without them is refused."""

from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from small_runs import LIGHTNING_NOISE, config
from stores import METADATA, episode_data, write_episodes

from vidtok_plugin.store.shards import StoredEpisode
from vidtok_plugin.store.writer import TokenStoreWriter
from world_model import TokenDataModule, WorldModel, WorldModelModule
from world_model.measures.teacher_forcing import teacher_forced

OUTCOMES = "model.outcomes={width: 16}"


def write_outcomes(folder: Path, *, scale: float = 1.0) -> Path:
    """Codes count up by one per step; the reward of both frames is 1 (times `scale`) at code 5, the end at code 11."""
    for split in ("train", "validation"):
        writer = TokenStoreWriter(folder, METADATA)
        for number in range(6):
            data = episode_data(12 - number, number)
            codes = data["codes"][:, 0, 0]
            data["rewards"] = scale * (codes == 5).float()[:, None].expand(-1, 2).contiguous()
            data["terminated"] = (codes == 11).to(torch.uint8)
            steps = len(codes)
            entry = StoredEpisode(name=f"{number}.mp4", steps=steps, frames=2 * steps - 2, digest=str(number))
            writer.write_shard(split, [entry], [data])
    return folder


@LIGHTNING_NOISE
def test_outcomes_are_learned_by_trainer_fit(tmp_path: Path) -> None:
    cfg = config(write_outcomes(tmp_path / "tokens"), tmp_path, OUTCOMES, "trainer.max_steps=60")
    module, data = WorldModelModule(cfg), TokenDataModule(cfg)
    trainer = pl.Trainer(**cfg.trainer, logger=False, enable_checkpointing=False, enable_model_summary=False)
    trainer.fit(module, data)
    logged = trainer.callback_metrics
    assert {"train/cross_entropy", "train/reward_loss", "train/end_loss"} <= logged.keys()
    total = logged["train/cross_entropy"] + logged["train/reward_loss"] + logged["train/end_loss"]
    torch.testing.assert_close(logged["train/loss"], total)
    assert logged["val/reward_loss"] < 0.3 and logged["val/end_loss"] < 0.1  # at first log 101 and log 2
    data.setup("validate")
    measured = teacher_forced(module.model.eval(), data.val_dataloader(), None).measured()
    assert measured.values["reward_correlation"] > 0.9 and measured.values["end_auc"] > 0.95
    assert measured.values["reward_squared_error"] < 0.3 * measured.values["reward_squared_error_constant"]


def test_a_store_without_outcomes_is_refused(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        write_episodes(tmp_path / "tokens", split, [9, 12])
    cfg = config(tmp_path / "tokens", tmp_path, OUTCOMES)
    trainer = pl.Trainer(**cfg.trainer, logger=False, enable_checkpointing=False, enable_model_summary=False)
    with pytest.raises(
        ValueError, match=r"model\.outcomes\.rewards needs episodes that have them, .* split train, has"
    ):
        trainer.fit(WorldModelModule(cfg), TokenDataModule(cfg))


def test_rewards_beyond_the_largest_are_refused(tmp_path: Path) -> None:
    cfg = config(write_outcomes(tmp_path / "tokens", scale=-2000), tmp_path, OUTCOMES)
    with pytest.raises(ValueError, match=r"largest_reward must be at least 2000, .* got 1000; raise it"):
        WorldModelModule(cfg)


def test_a_saved_world_can_be_given_a_head_of_outcomes(tmp_path: Path) -> None:
    store = write_outcomes(tmp_path / "tokens")
    plain = WorldModelModule(config(store, tmp_path)).model
    plain.save_pretrained(tmp_path / "plain")
    keys = [f"pretrained={tmp_path / 'plain'}", OUTCOMES]
    model = WorldModelModule(config(store, tmp_path, *keys)).model
    assert model.outcomes is not None
    for name, tensor in plain.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)
    model.save_pretrained(tmp_path / "world")
    again = WorldModel.from_pretrained(tmp_path / "world")
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    keys = [f"pretrained={tmp_path / 'world'}", "model.outcomes={width: 16, reward_weight: 0.5}"]
    assert WorldModelModule(config(store, tmp_path, *keys)).model.config.outcomes.reward_weight == 0.5  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=r"architecture of pretrained=.*model\.outcomes"):
        WorldModelModule(config(store, tmp_path, f"pretrained={tmp_path / 'world'}", "model.outcomes={width: 8}"))


@LIGHTNING_NOISE
def test_a_world_that_predicts_outcomes_trains_on_play_without_them(tmp_path: Path) -> None:
    """Its head stays as it is."""
    WorldModelModule(config(write_outcomes(tmp_path / "first"), tmp_path, OUTCOMES)).model.save_pretrained(
        tmp_path / "world"
    )
    for split in ("train", "validation"):
        write_episodes(tmp_path / "tokens", split, [9, 12])
    keys = [f"pretrained={tmp_path / 'world'}", OUTCOMES, "trainer.max_steps=3"]
    cfg = config(tmp_path / "tokens", tmp_path, *keys)
    module = WorldModelModule(cfg)
    before = {name: tensor.clone() for name, tensor in module.model.state_dict().items()}
    trainer = pl.Trainer(**cfg.trainer, logger=False, enable_checkpointing=False, enable_model_summary=False)
    trainer.fit(module, TokenDataModule(cfg))
    for name, tensor in module.model.state_dict().items():
        if name.startswith("outcomes."):
            assert torch.equal(tensor, before[name])
    assert not torch.equal(module.model.step_inputs.place, before["step_inputs.place"])
