"""A world model trains by `trainer.fit` on a token store and resumes exactly."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from small_runs import LIGHTNING_NOISE, SMALL, config
from stores import METADATA, PATCHES, write_episodes

from vidtok_plugin import training
from vidtok_plugin.common.config import load_config, to_yaml
from world_model import TokenDataModule, WorldModel, WorldModelModule, WorldModelRunConfig
from world_model.data import window_actions


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tokens")
    write_episodes(root, "train", [9, 12, 5])
    return write_episodes(root, "validation", [7, 2])


@LIGHTNING_NOISE
@pytest.mark.parametrize("muon_lr", ["null", "0.02"])
def test_a_world_model_learns_by_trainer_fit(store: Path, tmp_path: Path, muon_lr: str) -> None:
    """Codes count up by one per step, which is soon learned."""
    cfg = config(store, tmp_path, "trainer.max_steps=20", f"optimizer.muon_lr={muon_lr}")
    module, data = WorldModelModule(cfg), TokenDataModule(cfg)
    trainer = pl.Trainer(**cfg.trainer, logger=False, enable_checkpointing=False, enable_model_summary=False)
    trainer.fit(module, data)
    assert trainer.callback_metrics["val/cross_entropy"] < 0.3  # at first log 12 = 2.5
    assert trainer.callback_metrics["val/accuracy"] > 0.9
    assert module.model.token_hash == "def"


@LIGHTNING_NOISE
@pytest.mark.parametrize("overrides", [[], ["model.corruption=0.1", "model.action_dropout=0.1"]])
@pytest.mark.parametrize("prediction", ["causal", "masked"])
def test_continuous_tokens_are_learned_by_flow_matching(prediction: str, overrides: list[str], tmp_path: Path) -> None:
    for split in ("train", "validation"):
        write_episodes(tmp_path / "tokens", split, [9, 12, 5], metadata=PATCHES)
    settings = [f"model.prediction={prediction}", "trainer.max_steps=20", "model.flow.width=32", *overrides]
    cfg = config(tmp_path / "tokens", tmp_path, *settings)
    module, data = WorldModelModule(cfg), TokenDataModule(cfg)
    trainer = pl.Trainer(**cfg.trainer, logger=False, enable_checkpointing=False, enable_model_summary=False)
    trainer.fit(module, data)
    assert trainer.callback_metrics["val/flow_loss"] < 0.7  # at first 1 plus the mean square of the patches, about 1.3
    assert "val/accuracy" not in trainer.callback_metrics


@LIGHTNING_NOISE
def test_validation_is_the_mean_over_scored_tokens(store: Path, tmp_path: Path) -> None:
    cfg = config(store, tmp_path, "data.validation_batch_size=1")
    module, data = WorldModelModule(cfg), TokenDataModule(cfg)
    trainer = pl.Trainer(**cfg.trainer, logger=False, enable_checkpointing=False, enable_model_summary=False)
    metrics = trainer.validate(module, data, verbose=False)[0]
    losses: list[torch.Tensor] = []
    with torch.no_grad():
        for batch in data.val_dataloader():
            token_losses = module.model.score(batch["codes"], window_actions(batch)).token_losses
            losses.append(token_losses[batch["valid"][:, 1:]].flatten())
    assert torch.cat(losses).shape == (7 * 6,)
    assert metrics["val/cross_entropy"] == pytest.approx(torch.cat(losses).mean().item(), rel=1e-4)


@LIGHTNING_NOISE
def test_a_resumed_run_ends_like_an_uninterrupted_one(store: Path, tmp_path: Path) -> None:
    def run(output: Path, *overrides: str) -> dict[str, Any]:
        cfg = config(store, output, "checkpoint_every=1", *overrides)
        torch.manual_seed(0)
        module = WorldModelModule(cfg)
        last = training.last_checkpoint(cfg.checkpoints)
        training.build_trainer(cfg).fit(module, TokenDataModule(cfg), ckpt_path=last)
        return module.model.state_dict()

    whole = run(tmp_path / "whole", "trainer.max_steps=6")
    run(tmp_path / "resumed", "trainer.max_steps=3")
    resumed = run(tmp_path / "resumed", "trainer.max_steps=6")
    for name, tensor in whole.items():
        torch.testing.assert_close(resumed[name], tensor, rtol=1e-5, atol=1e-6)


@LIGHTNING_NOISE
def test_resuming_with_another_architecture_is_refused(store: Path, tmp_path: Path) -> None:
    cfg = config(store, tmp_path, "trainer.max_steps=1")
    training.fit(cfg, WorldModelModule(cfg), TokenDataModule(cfg))
    other = config(store, tmp_path, "trainer.max_steps=2", "model.code_width=32")
    with pytest.raises(
        ValueError, match=r"must have the architecture of the config, .* model.code_width \(64, not 32\)"
    ):
        training.fit(other, WorldModelModule(other), TokenDataModule(other))
    longer_windows = config(store, tmp_path, "trainer.max_steps=2", "data.window_steps=5")
    training.fit(longer_windows, WorldModelModule(longer_windows), TokenDataModule(longer_windows))


@LIGHTNING_NOISE
def test_a_checkpoint_of_other_tokens_is_refused(store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A run went on in silence on ids of another meaning, or was exported under the new tokenizer's hash."""
    cfg = config(store, tmp_path, "trainer.max_steps=1")
    training.fit(cfg, WorldModelModule(cfg), TokenDataModule(cfg))
    for split in ("train", "validation"):
        write_episodes(tmp_path / "other", split, [9, 12, 5], metadata=replace(METADATA, token_hash="another"))
    for steps in (1, 2):  # a run that has ended, and one that is prolonged
        other = config(tmp_path / "other", tmp_path, f"trainer.max_steps={steps}")
        with pytest.raises(ValueError, match="the tokens that the checkpoint was trained on, def, got another"):
            training.fit(other, WorldModelModule(other), TokenDataModule(other))
    (checkpoint,) = cfg.checkpoints.glob("*.ckpt")
    content = torch.load(checkpoint, weights_only=True)
    del content["token_hash"]
    torch.save(content, checkpoint)  # as an earlier version wrote it
    training.fit(cfg, WorldModelModule(cfg), TokenDataModule(cfg))
    assert "The checkpoint has no token hash, since an earlier version wrote it" in caplog.text


def test_a_config_survives_yaml(store: Path, tmp_path: Path) -> None:
    cfg = config(store, tmp_path, "model.tokens={codebook_size: 12, height: 2, width: 3, temporal_factor: 2}")
    (tmp_path / "cfg.yaml").write_text(to_yaml(cfg))
    assert load_config(WorldModelRunConfig, [tmp_path / "cfg.yaml"]) == cfg


def test_a_causal_model_trains_on_windows_longer_than_its_context(store: Path, tmp_path: Path) -> None:
    """The model knows it, so that its contexts roll, until it is trained on short ones again."""
    cfg = config(store, tmp_path, "data.window_steps=5", "model.corruption=0.1")
    long = WorldModelModule(cfg).model
    assert (long.config.max_steps, long.config.trained_steps) == (4, 5)
    long.save_pretrained(tmp_path / "long")
    assert WorldModel.from_pretrained(tmp_path / "long").config.trained_steps == 5
    for steps, known in ((6, 6), (4, None)):
        keys = [f"data.store={store}", f"pretrained={tmp_path / 'long'}", f"data.window_steps={steps}"]
        assert WorldModelModule(load_config(WorldModelRunConfig, [], keys)).model.config.trained_steps == known
    with pytest.raises(ValueError, match="data.window_steps must be at most model.max_steps for a masked model, 4, "):
        config(store, tmp_path, "data.window_steps=5", "model.prediction=masked")


@pytest.fixture(scope="module")
def pretrained(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretrained")
    torch.manual_seed(5)
    cfg = config(store, folder, "model.corruption=0.1")
    WorldModelModule(cfg).model.save_pretrained(folder / "model")
    return folder / "model"


@pytest.mark.parametrize("overrides", [[], ["model.corruption=0.2", "model.own_draws=0.3", "model.action_dropout=0.4"]])
def test_a_run_starts_from_a_saved_model(store: Path, tmp_path: Path, pretrained: Path, overrides: list[str]) -> None:
    keys = [f"pretrained={pretrained}", "data.window_steps=4"]
    cfg = load_config(WorldModelRunConfig, [], [f"data.store={store}", *(config_keys(overrides)), *keys])
    saved, model = WorldModel.from_pretrained(pretrained), WorldModelModule(cfg).model
    assert all(torch.equal(model.state_dict()[name], weights) for name, weights in saved.state_dict().items())
    assert model.token_hash == saved.token_hash
    assert model.config.own_draws == (0.3 if overrides else 0.0)


def config_keys(rates: list[str]) -> list[str]:
    """The rates with the architecture that they belong to, or nothing: the architecture of the saved model then."""
    return [key for key in SMALL if key.startswith("model.")] + rates if rates else []


@pytest.mark.parametrize(
    ("override", "difference"),
    [
        ("model.transformer.depth=2", r"model.transformer \(.*'depth': 2"),
        ("seed=1", r"model.corruption \(0.0, not 0.1\)"),
    ],
)
def test_a_saved_model_of_another_architecture_is_refused(
    store: Path, tmp_path: Path, pretrained: Path, override: str, difference: str
) -> None:
    cfg = config(store, tmp_path, f"pretrained={pretrained}", override)
    with pytest.raises(ValueError, match=f"architecture of pretrained=.*{difference}"):
        WorldModelModule(cfg)


def test_a_saved_model_of_other_tokens_is_refused(store: Path, tmp_path: Path, pretrained: Path) -> None:
    other = tmp_path / "other"
    model = WorldModel.from_pretrained(pretrained)
    model.token_hash = "another"
    model.save_pretrained(other)
    with pytest.raises(ValueError, match="the store must hold the tokens that pretrained=.* was trained on, another"):
        WorldModelModule(config(store, tmp_path, f"pretrained={other}", "model.corruption=0.1"))
