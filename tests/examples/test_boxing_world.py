"""The making of the Boxing world at toy size, and the copy of the tree that it runs in."""

import argparse
import importlib
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from places import ROOT

from vidtok_plugin.common.config import load_config
from vidtok_plugin.store.reader import TokenStore
from vidtok_plugin.tokenizer.training.module import TokenizerRunConfig
from world_model import WorldModelRunConfig, load_world
from world_model.rollout.worlds import world_prompts

TOY = (
    "minutes=480",
    "record.train_episodes=2",
    "world_model_episodes=3",
    "longer_episodes=4",
    "outcomes_episodes=5",
    "seeds=[0,1]",
    "record.validation_episodes=1",
    "record.test_episodes=1",
    "record.frames_per_episode=160",
    "tokenizer.compile=false",
    "prompts=2",
    "future_frames=16",
    "clip_frames=17",
    "tokenizer.trainer.max_steps=8",
    "tokenizer.trainer.val_check_interval=8",
    "tokenizer.trainer.log_every_n_steps=1",
    "tokenizer.trainer.devices=1",
    "tokenizer.trainer.strategy=auto",
    "tokenizer.trainer.enable_progress_bar=false",
    "tokenizer.data.validation_clips=1",
    "tokenizer.data.clip_length=9",
    "tokenizer.data.batch_size=1",
    "decoder.trainer.max_steps=8",
    "decoder.trainer.val_check_interval=8",
    "decoder.trainer.log_every_n_steps=1",
    "decoder.trainer.devices=1",
    "decoder.trainer.strategy=auto",
    "decoder.trainer.enable_progress_bar=false",
    "decoder.data.validation_clips=1",
    "decoder.data.clip_length=9",
    "decoder.data.batch_size=1",
    *(
        f"{training}.{setting}"
        for training in ("world_model", "longer", "outcomes", "own_draws")
        for setting in (
            "trainer.max_steps=16",
            "trainer.val_check_interval=8",
            "trainer.log_every_n_steps=1",
            "trainer.devices=1",
            "trainer.strategy=auto",
            "trainer.enable_progress_bar=false",
            "model.max_steps=5",
            "data.window_steps=5",
            "model.transformer.width=32",
            "model.transformer.depth=1",
            "model.transformer.heads=2",
        )
    ),
)


@pytest.fixture(scope="module")
def examples(examples_path: None) -> Callable[[str], ModuleType]:
    return importlib.import_module


@pytest.mark.slow
def test_a_world_is_made_measured_and_exported(
    examples: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ale_py")
    script, evaluation = examples("train_boxing_world"), examples("boxing_evaluation")
    monkeypatch.setattr(evaluation, "CLIP_FRAMES", 17)
    monkeypatch.setattr(evaluation, "SAMPLERS", evaluation.SAMPLERS[:2])
    monkeypatch.setattr(script, "ROOT", tmp_path)  # without .git: no copy of the tree
    argv = ["--minutes", "240", f"output={tmp_path}", *TOY]
    assert script.main(argv) == 0
    exported = tmp_path / "export"
    model, adapter = load_world(exported)
    assert model.token_hash == adapter.token_hash
    measures = json.loads((exported / "measures.json").read_text())
    assert set(measures["psnr_over_copy"]) == {"1_4", "5_8", "9_16"}
    assert set(measures["distance"]) == {"4", "16"}
    summary = json.loads((exported / "training.json").read_text())
    world_models = ("world_model", "longer", "outcomes", "own_draws_0", "own_draws_1")
    trainings = {"tokenizer": 4, "decoder": 4, **dict.fromkeys(world_models, 8)}
    assert summary["batches"] == trainings  # half of the configured ones
    costs = {f"own_draws_{seed}": scores["validation_cost"] for seed, scores in summary["measures_by_seed"].items()}
    assert summary["exported"] == min(costs, key=costs.__getitem__) and len(costs) == 2
    by_seed = summary["measures_by_seed"][summary["exported"][-1]]
    assert measures["cross_entropy"] == by_seed["cross_entropy"]  # the tokens are the same
    assert measures["tokenizer_psnr"] != by_seed["tokenizer_psnr"]  # the decoder is not
    assert len(world_prompts(exported)) == 8
    card = (exported / "README.md").read_text()
    assert "license: mit" in card and f"| {measures['cross_entropy']:.4g} |" in card and "![rows of real" in card
    assert (exported / "card.png").is_file() and not (exported / "adapter" / "README.md").exists()
    assert (tmp_path / "episodes" / "train" / "episode_00004.json").exists()
    assert len(TokenStore(tmp_path / "tokens", "train").episodes) >= 4
    assert set(summary["weights_sha256"]) > {"model.safetensors"}
    times = {path: path.stat().st_mtime_ns for path in exported.rglob("*") if path.is_file()}
    assert script.main(argv) == 0
    assert times == {path: path.stat().st_mtime_ns for path in exported.rglob("*") if path.is_file()}


@pytest.mark.parametrize("gpu", [False, True])
def test_training_configs_load_and_scale_with_the_budget(
    examples: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, gpu: bool
) -> None:
    script = examples("train_boxing_world")
    monkeypatch.setattr(script.torch.cuda, "is_available", lambda: gpu)
    for name, files in script.CONFIG_FILES.items():
        schema = TokenizerRunConfig if files[0] == "tokenizer" else WorldModelRunConfig
        plain = load_config(schema, [ROOT / "configs" / "boxing" / f"{file}.yaml" for file in files])
        whole, half = (script.training_config(name, [f"{name}.seed=3"], {}, ratio) for ratio in (1.0, 0.5))
        assert whole.seed == half.seed == 3
        assert whole.trainer["max_steps"] == plain.trainer["max_steps"] == 2 * half.trainer["max_steps"]
        assert whole.optimizer == plain.optimizer
        assert 2 * half.optimizer.decay_steps == whole.optimizer.decay_steps
        assert (whole.trainer["accelerator"], whole.data.batch_size > plain.data.batch_size) == (
            ("gpu", True) if gpu else ("cpu", False)
        )


def test_a_budget_of_no_time_is_refused(
    examples: Callable[[str], ModuleType],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    script = examples("train_boxing_world")
    monkeypatch.setattr(script, "ROOT", tmp_path)
    assert script.main(["--minutes", "0", f"output={tmp_path}"]) == 2
    assert "--minutes must be above 0, got 0" in capsys.readouterr().err


def test_the_run_uses_the_commit_at_which_it_began(
    examples: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither uncommitted changes nor later commits reach it."""
    script = examples("train_boxing_world")
    root, out = tmp_path / "root", tmp_path / "out"
    file = root / "examples" / "train_boxing_world.py"
    file.parent.mkdir(parents=True)
    out.mkdir()

    def write(version: int) -> None:
        code = f"import pathlib, sys; pathlib.Path({str(out / 'ran')!r}).write_text(f'{version} {{sys.argv[1:]}}')"
        file.write_text(code + f"; sys.exit({version} - 1)")

    def git(*arguments: str) -> None:
        identity = ("-c", "user.name=test", "-c", "user.email=test@example.org")
        subprocess.run(["git", *identity, *arguments], cwd=root, check=True, capture_output=True)

    monkeypatch.setattr(script, "ROOT", root)
    write(1)
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    write(2)
    args = argparse.Namespace(minutes=5.0, overrides=["prompts=2"])
    script.run_in_copy(args, out / "tree")
    assert (out / "ran").read_text() == "1 ['--minutes=5.0', 'prompts=2']"
    git("commit", "-am", "second")
    (out / "ran").unlink()
    script.run_in_copy(args, out / "tree")
    assert (out / "ran").read_text().startswith("1 ")
    with pytest.raises(SystemExit, match="1"):
        script.run_in_copy(args, out / "new_tree")  # a failed run's exit code is passed on
