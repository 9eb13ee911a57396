"""Continuous actions are normalized by the training split's statistics, which stay inside the model."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_runs import LIGHTNING_NOISE, config
from stores import METADATA
from torch import Tensor
from world_models import CAUSAL, random_actions, random_model, random_tokens

from vidtok_plugin import training
from vidtok_plugin.store.reader import TokenStore
from vidtok_plugin.store.shards import StoredEpisode
from vidtok_plugin.store.statistics import column_statistics
from vidtok_plugin.store.writer import TokenStoreWriter
from world_model.actions import group_actions
from world_model.data import TokenDataModule, WindowDataset, window_actions
from world_model.model import WorldModel
from world_model.training.module import WorldModelModule

F = 2  # frames per latent step
SCALES = torch.tensor([1e-3, 100, 100, 100, 100, 100, 100])
ARM = replace(METADATA, action_space={"kind": "continuous", "size": 7})
CONTINUOUS = CAUSAL["continuous actions"]


def arm_episode(steps: int, seed: int, offset: float = 0.0) -> dict[str, Tensor]:
    """Codes that say where the first component, by far the smallest, moved: 3 to one side and 7 to the other."""
    generator = torch.Generator().manual_seed(seed)
    actions = torch.randn(steps, 1, 7, generator=generator).expand(-1, F, -1) * SCALES
    codes = torch.where(actions[:, 0, 0] > 0, 3, 7)
    num_actions = torch.full((steps,), F, dtype=torch.uint8)
    num_actions[0] = 0
    values = (actions + offset).contiguous()
    values[0] = 0
    return {
        "codes": codes[:, None, None].expand(steps, 2, 3).to(torch.int32).contiguous(),
        "actions": values,
        "num_actions": num_actions,
    }


def write_arm(folder: Path, split: str, seeds: range, offset: float = 0.0, steps: int = 40) -> Path:
    writer = TokenStoreWriter(folder, ARM)
    for seed in seeds:
        entry = StoredEpisode(name=f"{split}{seed}.mp4", steps=steps, frames=1 + (steps - 1) * F, digest=str(seed))
        writer.write_shard(split, [entry], [arm_episode(steps, seed, offset)])
    return folder


@pytest.fixture(scope="module")
def arm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose validation split has other statistics than its training split."""
    folder = tmp_path_factory.mktemp("arm")
    write_arm(folder, "train", range(4), offset=5.0)
    return write_arm(folder, "validation", range(10, 12), offset=-1000.0)


def test_statistics_are_those_of_all_rows() -> None:
    rows = np.random.default_rng(0).normal([0, 1e6, 3], [1e-3, 1, 100], (500, 3))
    found = column_statistics([rows[:100], rows[100:100], rows[100:]], 3)
    np.testing.assert_allclose(found.mean, rows.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.std, rows.std(0), rtol=1e-9)
    nothing = column_statistics([], 2)
    assert (nothing.mean.tolist(), nothing.std.tolist()) == ([0, 0], [1, 1])


def test_a_constant_component_is_centered_and_not_scaled() -> None:
    """Dividing by a deviation of 0 gave NaN; by that of float32's rounding, a million."""
    rows = np.full((1000, 2), 0.1, np.float32)
    rows[:, 1] = 1000
    rows[::2, 1] = np.nextafter(np.float32(1000), np.float32(1001))
    found = column_statistics([rows], 2)
    assert found.std.tolist() == [1, 1] and found.mean == pytest.approx([0.1, 1000], rel=1e-6)


def test_a_stores_statistics_are_those_of_the_actions_that_exist(arm: Path) -> None:
    episodes = [arm_episode(40, seed, 5.0)["actions"][1:] for seed in range(4)]
    known = torch.cat(episodes).flatten(0, 1).double()
    found = TokenStore(arm, "train").action_statistics()
    np.testing.assert_allclose(found.mean, known.mean(0), rtol=1e-6)
    np.testing.assert_allclose(found.std, known.std(0, correction=0), rtol=1e-6)


def first_token_accuracy(model: WorldModel, store: Path, split: str) -> float:
    """How often the first token of a step, before which only its action says where it goes, is the likeliest."""
    windows = WindowDataset(TokenStore(store, split), 4)
    batch = windows.__getitems__(list(range(len(windows))))
    with torch.no_grad():
        scores = model.eval().score(batch["codes"], window_actions(batch))
    assert scores.token_correct is not None
    return scores.token_correct[:, :, 0, 0].float().mean().item()


def statistics(model: WorldModel) -> tuple[Tensor, Tensor]:
    assert model.action_normalization is not None
    return model.action_normalization.mean, model.action_normalization.std


def accuracy_of_a_trained_world(arm: Path, folder: Path, *, as_they_come: bool) -> float:
    fit = ["trainer.max_steps=90", "checkpoint_every=90", "data.batch_size=16", "optimizer.lr=2e-2"]
    cfg = config(arm, folder, *fit)
    torch.manual_seed(0)
    module = WorldModelModule(cfg)
    if as_they_come:
        module.model.set_action_statistics(torch.zeros(7), torch.ones(7))
    training.build_trainer(cfg).fit(module, TokenDataModule(cfg))
    module.model.save_pretrained(folder / "saved")
    write_arm(folder / "other", "test", range(20, 24), offset=5.0)
    return first_token_accuracy(WorldModel.from_pretrained(folder / "saved"), folder / "other", "test")


@LIGHTNING_NOISE
def test_a_world_tells_apart_what_the_smallest_component_does(arm: Path, tmp_path: Path) -> None:
    assert accuracy_of_a_trained_world(arm, tmp_path, as_they_come=False) > 0.95


@LIGHTNING_NOISE
@pytest.mark.slow
def test_without_statistics_the_smallest_component_vanishes(arm: Path, tmp_path: Path) -> None:
    """A component with a deviation of 1e-3 is nothing beside others of 100: the world guesses."""
    assert accuracy_of_a_trained_world(arm, tmp_path, as_they_come=True) < 0.65


@LIGHTNING_NOISE
def test_a_run_keeps_the_statistics_that_it_began_with(arm: Path, tmp_path: Path) -> None:
    """Episodes that are added later would otherwise shift what the weights have learned."""
    store = write_arm(tmp_path / "store", "train", range(2))
    write_arm(store, "validation", range(10, 11))
    mean = TokenStore(store, "train").action_statistics().mean
    first = config(store, tmp_path / "run", "trainer.max_steps=1")
    training.fit(first, WorldModelModule(first), TokenDataModule(first))
    writer = TokenStoreWriter(store, ARM)
    entry = StoredEpisode(name="far.mp4", steps=9, frames=17, digest="far")
    writer.write_shard("train", [entry], [arm_episode(9, 30, offset=5000.0)])
    assert not np.allclose(TokenStore(store, "train").action_statistics().mean, mean)
    longer = config(store, tmp_path / "run", "trainer.max_steps=2")
    module = WorldModelModule(longer)
    training.fit(longer, module, TokenDataModule(longer))
    torch.testing.assert_close(statistics(module.model)[0], torch.from_numpy(mean).float())
    module.model.save_pretrained(tmp_path / "world")
    further = config(store, tmp_path / "further", f"pretrained={tmp_path / 'world'}", "data.window_steps=4")
    torch.testing.assert_close(statistics(WorldModelModule(further).model)[0], torch.from_numpy(mean).float())


def test_a_model_saved_before_there_were_statistics_reads_actions_as_they_are(tmp_path: Path) -> None:
    model = random_model(CONTINUOUS)
    tokens, actions = random_tokens(CONTINUOUS, 2, 4), random_actions(CONTINUOUS, 2, 4)
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["step_inputs.actions.normalize.mean"], weights["step_inputs.actions.normalize.std"]
    save_file(weights, tmp_path / "model.safetensors")
    loaded = WorldModel.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(tokens, actions), model(tokens, actions))
    changed = random_model(CONTINUOUS)
    changed.set_action_statistics(torch.ones(2), torch.full((2,), 3.0))
    changed.load_state_dict(weights)  # a checkpoint of an earlier version
    assert [x.tolist() for x in statistics(changed)] == [[0, 0], [1, 1]]
    save_file(weights | {"step_inputs.actions.normalize.std": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"step_inputs\.actions\.normalize\.std in .* must be above 0, got 0\.0"):
        WorldModel.from_pretrained(tmp_path)


@LIGHTNING_NOISE
def test_a_run_of_an_earlier_version_goes_on(arm: Path, tmp_path: Path) -> None:
    """Its checkpoint has neither statistics nor the newer keys of the config."""
    cfg = config(arm, tmp_path, "trainer.max_steps=1")
    training.fit(cfg, WorldModelModule(cfg), TokenDataModule(cfg))
    (path,) = cfg.checkpoints.glob("*.ckpt")
    content = torch.load(path, weights_only=True)
    for name in ("mean", "std"):
        del content["state_dict"][f"model.step_inputs.actions.normalize.{name}"]
    del content["world_model"]["outcomes"]
    torch.save(content, path)
    longer = config(arm, tmp_path, "trainer.max_steps=2")
    module = WorldModelModule(longer)
    training.fit(longer, module, TokenDataModule(longer))
    assert module.trainer.global_step == 2
    assert statistics(module.model)[1].tolist() == [1] * 7


def test_actions_are_embedded_alike_in_another_precision() -> None:
    """In bfloat16 a mean of 1000.7 is 1000."""
    model = random_model(CONTINUOUS)
    model.set_action_statistics(torch.tensor([1000.7, 0]), torch.tensor([1.0, 1e-3]))
    actions = group_actions(torch.tensor([[[0, 0], [1000.2, 0], [1001.2, 0.0]]]), F)
    embed = model.step_inputs.actions
    assert embed is not None
    high = embed(actions)
    low = embed.to(torch.bfloat16)(actions)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), high, rtol=0.05, atol=0.05)
