"""The demo at toy size, in both its modes, from recorded play to pictures; and the examples that use its model."""

import importlib
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from places import ROOT

from vidtok_plugin import TokenizerAdapter, VidTok
from vidtok_plugin.store.reader import TokenStore
from vidtok_plugin.video.reading import probe, read_frames
from world_model import ActionSpec, TokenSpec, TransformerConfig, WorldModel, WorldModelConfig, load_world
from world_model.measures import Prompts

TOY = (
    "record.train_episodes=2",
    "record.validation_episodes=1",
    "record.test_episodes=1",
    "record.frames_per_episode=120",
    "rollouts.prompts=3",
    "tokenizer_clips=2",
    "tokenizer.trainer.max_steps=2",
    "tokenizer.trainer.val_check_interval=2",
    "tokenizer.trainer.log_every_n_steps=1",
    "tokenizer.trainer.enable_progress_bar=false",
    "tokenizer.data.validation_clips=1",
    "tokenizer.data.clip_length=9",
    "world_model.trainer.max_steps=4",
    "world_model.trainer.val_check_interval=2",
    "world_model.trainer.log_every_n_steps=1",
    "world_model.trainer.enable_progress_bar=false",
)
FROM_SCRATCH = (
    *TOY,
    "from_scratch=true",
    "rollouts.long_prompts=1",
    "world_model.model.transformer.width=32",
    "world_model.model.transformer.depth=1",
    "world_model.model.transformer.heads=2",
)
FROM_A_WORLD = (
    *TOY,
    "rollouts.long_prompts=2",
    "rollouts.long_frames=16",
    "tokenizer.trainer.devices=1",
    "tokenizer.trainer.strategy=auto",
    "world_model.trainer.devices=1",
    "world_model.trainer.strategy=auto",
)
MEASURES = {
    "seconds",
    "tokenizer_psnr",
    "tokenizer_psnr_before",
    "tokenizer_psnr_baseline",
    "codebook_usage",
    "world_model_cross_entropy",
    "unigram_cross_entropy",
    "copy_cross_entropy",
    "rollout_psnr",
    "copy_last_frame_psnr",
    "action_delta_psnr",
    "action_delta_psnr_low",
    "tokens_per_second",
    "frames_per_second",
}


@pytest.fixture(scope="module")
def demo(examples_path: None) -> ModuleType:
    return importlib.import_module("demo")


@pytest.fixture(scope="module")
def run(demo: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished toy run from scratch."""
    output = tmp_path_factory.mktemp("from_scratch")
    assert demo.main([f"output={output}", *FROM_SCRATCH]) == 0
    return output


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained toy world of a game like Boxing."""
    torch.manual_seed(0)
    adapter = TokenizerAdapter(VidTok.from_preset("vidtok_tiny", ch=4, ch_mult=(1, 1, 1, 1), fsq_levels=(4, 3)))
    actions = ActionSpec(kind="discrete", size=18)
    tokens = TokenSpec(codebook_size=12, height=8, width=8, temporal_factor=4, fsq_levels=(4, 3), actions=actions)
    sizes = TransformerConfig(width=24, depth=1, heads=2)
    config = WorldModelConfig(tokens=tokens, corruption=0.1, action_dropout=0.1, transformer=sizes)
    folder = tmp_path_factory.mktemp("world")
    WorldModel(config, adapter.token_hash).save_pretrained(folder, adapter)
    return folder


@pytest.fixture(scope="module")
def run_from_world(demo: ModuleType, world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished toy run that started from the toy world."""
    pytest.importorskip("ale_py")
    output = tmp_path_factory.mktemp("from_world")
    assert demo.main([f"output={output}", f"world={world}", *FROM_A_WORLD]) == 0
    return output


def seconds_of(run: Path) -> dict[str, float]:
    return {mark.stem: json.loads(mark.read_text())["seconds"] for mark in (run / "stages").glob("*.json")}


def assert_numbers(measures: dict[str, object]) -> None:
    assert all(isinstance(value, float | int) and value == value for value in measures.values()), measures


def assert_boxing_measures(boxing: dict[str, object], distances: set[str]) -> None:
    assert set(boxing["distance"]) == distances
    assert set(boxing["psnr_over_copy"]) == {"1_4", "5_8", "9_16"}
    assert_numbers({name: value for name, value in boxing.items() if not isinstance(value, dict)})


@pytest.mark.slow
def test_summary_from_scratch_has_every_measure(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    assert_boxing_measures(summary.pop("boxing"), {"4", "16", "64"})
    assert set(summary) == MEASURES
    assert_numbers(summary)


@pytest.mark.slow
def test_summary_from_a_world_has_every_measure_and_the_token_hash(run_from_world: Path, world: Path) -> None:
    summary = json.loads((run_from_world / "summary.json").read_text())
    assert_boxing_measures(summary.pop("boxing"), {"4", "16"})
    ids = summary.pop("token_ids")
    assert ids["token_hash"] == ids["token_hash_before"] == load_world(world)[0].token_hash
    assert ids["changed"] == 0 and ids["compared"] == 2 * 3 * 64
    assert set(summary) == MEASURES | {"world_model_cross_entropy_before"}
    assert_numbers(summary)


@pytest.mark.slow
def test_a_world_gets_another_decoder_and_other_weights(run_from_world: Path, world: Path) -> None:
    model, adapter = load_world(run_from_world / "world_model" / "model")
    model_before, adapter_before = load_world(world)
    before, after = (a.tokenizer.state_dict() for a in (adapter_before, adapter))
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"decoder"}
    assert model.config == model_before.config
    old, new = (m.step_inputs.place.detach() for m in (model_before, model))
    assert 0 < (new - old).norm() < 0.1 * old.norm()  # it went on from the world's weights


@pytest.mark.slow
def test_a_world_goes_on_with_play_like_its_own(run_from_world: Path) -> None:
    meta = json.loads((run_from_world / "episodes" / "train" / "episode_00000.json").read_text())
    own = OmegaConf.load(ROOT / "configs" / "boxing" / "world.yaml").record
    same = ("env", "size", "frame_skip", "hold", "crf")
    assert meta["policy"] == "BoxingPolicy"
    assert {key: meta["recipe"][key] for key in same} == {key: own[key] for key in same}
    assert meta["recipe"]["seed"] != own.seed


@pytest.mark.slow
@pytest.mark.parametrize("name", ["run", "run_from_world"])
def test_pictures_and_video_are_written(name: str, request: pytest.FixtureRequest) -> None:
    run: Path = request.getfixturevalue(name)
    for picture in ("rollout.png", "reconstruction.png", "curves.png"):
        assert (run / picture).read_bytes().startswith(b"\x89PNG")
    assert probe(run / "rollout.mp4").num_frames > 29


@pytest.mark.slow
def test_store_holds_every_episode_and_the_tokenizers_hash(run: Path) -> None:
    store = TokenStore(run / "tokens")
    clips = -(-119 // 28)  # of 29 frames; each starts with the last frame of the one before
    assert len(store) == 4 * clips
    assert store.metadata.adapter_hash and store.metadata.action_space["size"] == 18
    assert store.steps.max() == 8


@pytest.mark.slow
def test_a_second_run_repeats_nothing(demo: ModuleType, run: Path) -> None:
    before = seconds_of(run)
    episode = run / "episodes" / "train" / "episode_00000.mp4"
    stamp = episode.stat().st_mtime_ns
    assert demo.main([f"output={run}", *FROM_SCRATCH]) == 0
    assert seconds_of(run) == before
    assert episode.stat().st_mtime_ns == stamp


@pytest.mark.slow
def test_the_rollout_example_writes_prompt_and_imagined_frames(run: Path, tmp_path: Path) -> None:
    example = importlib.import_module("rollout")
    episode = run / "episodes" / "test" / "episode_00000.mp4"
    model = str(run / "world_model" / "model")
    arguments = ["--model", model, "--prompt", str(episode), "--output", str(tmp_path / "out.mp4")]
    assert example.main([*arguments, "--frames", "8", "--order", "diagonal", "--diagonal-offset", "2"]) == 0
    assert probe(tmp_path / "out.mp4").num_frames == 13 + 8
    # It is for people, with half the resolution of color.
    assert np.abs(read_frames(tmp_path / "out.mp4", range(13)).astype(int) - read_frames(episode, range(13))).mean() < 6
    assert example.main([*arguments, "--frames", "1000"]) == 2  # there are fewer actions than that


@pytest.mark.slow
def test_the_planning_example_replays_its_plans(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example = importlib.import_module("plan_with_forks")
    sizes = {"frames": 96, "goals": 2, "candidates": 3, "horizon": 8, "random-plans": 2, "iterations": 1}
    arguments = [f"--{name}={value}" for name, value in sizes.items()]
    model, episodes = run / "world_model" / "model", run / "episodes" / "test"
    output = tmp_path / "plans.png"
    assert example.main([f"--model={model}", f"--episodes={episodes}", f"--output={output}", *arguments]) == 0
    assert "nearer than the mean random plan for" in capsys.readouterr().out
    assert output.read_bytes().startswith(b"\x89PNG")
    goals = json.loads(output.with_suffix(".json").read_text())["goals"]
    assert len(goals["planned"]) == len(goals["random_mean"]) == 2
    assert example.main([f"--model={model}", f"--episodes={episodes}", f"--output={output}", "--goals=100000"]) == 2
    assert "lower --frames or record longer ones" in capsys.readouterr().err


@pytest.mark.slow
def test_changed_rollouts_repeat_only_the_last_stage(demo: ModuleType, run: Path) -> None:
    before = seconds_of(run)
    assert demo.main([f"output={run}", *FROM_SCRATCH, "rollouts.sampler.temperature=0"]) == 0
    after = seconds_of(run)
    assert {name for name in after if after[name] != before[name]} == {"rollouts"}


def test_another_game_needs_from_scratch(demo: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main([f"output={tmp_path}", "record.env=ALE/Breakout-v5"]) == 2
    error = capsys.readouterr().err
    assert "record.env must be ALE/Boxing-v5" in error and "add from_scratch=true" in error
    config = importlib.import_module("demo_config")
    assert config.demo_config(["from_scratch=true", "record.env=ALE/Breakout-v5"]).record.env == "ALE/Breakout-v5"


def test_the_play_that_the_world_was_trained_on_is_refused(
    demo: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo.main([f"output={tmp_path}", "record.seed=1000"]) == 2
    assert "record.seed must not be 1000" in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["", "from_scratch=true"])
def test_the_configured_play_has_room_for_all_prompts(examples_path: None, mode: str) -> None:
    cfg = importlib.import_module("demo_config").demo_config([mode] if mode else [])
    for count, frames in (
        (cfg.rollouts.prompts, cfg.rollouts.future_frames),
        (cfg.rollouts.long_prompts, cfg.rollouts.long_frames),
    ):
        per_episode = cfg.record.frames_per_episode // (cfg.rollouts.prompt_frames + frames)
        assert count <= per_episode * cfg.record.test_episodes


@pytest.mark.parametrize("gpu", [False, True])
def test_training_configs_of_both_modes(
    demo: ModuleType, world: Path, monkeypatch: pytest.MonkeyPatch, gpu: bool
) -> None:
    monkeypatch.setattr(demo.torch.cuda, "is_available", lambda: gpu)
    settings = importlib.import_module("demo_config").demo_config
    tokenizer, model = demo.training_configs(settings([f"world={world}"]), ["tokenizer.seed=3"])
    assert (tokenizer.trained, tokenizer.pretrained) == ("decoder", str(world / "adapter" / "tokenizer"))
    assert tokenizer.seed == 3 and model.pretrained == str(world)
    for cfg in (tokenizer, model):
        assert (cfg.trainer["accelerator"], cfg.trainer["devices"]) == (("gpu", 1) if gpu else ("cpu", 2))
    tokenizer, model = demo.training_configs(settings(["from_scratch=true"]), [])
    assert (tokenizer.trained, tokenizer.pretrained, tokenizer.preset) == ("all", None, "vidtok_tiny")
    assert model.pretrained is None and model.model.action_dropout == 0.1


def test_rollouts_are_drawn_as_prompt_real_and_imagined_frames(examples_path: None, tmp_path: Path) -> None:
    """The prompt's last frame is on the left; real frames are above imagined ones, enlarged by a whole number."""
    pictures = importlib.import_module("rollout_pictures")
    real = torch.arange(13 + 8).float()[None, None, :, None, None].expand(1, 3, -1, 16, 16) * 10 / 127.5 - 1
    prompts = Prompts(video=real, actions=None, prompt_frames=13)
    made = real.clone()
    made[:, :, 13:] += 30 / 127.5

    class Result:
        video = made

    pictures.draw_rollout(tmp_path / "rollout.png", prompts, Result, fps=30, game="A game")
    drawn = np.asarray(Image.open(tmp_path / "rollout.png").convert("RGB")).astype(int)
    sheet = pictures.Sheet((16, 16), 1, 2)
    assert sheet.scale == 11 and drawn.shape[:2] == (sheet.pixels[1], sheet.pixels[0])
    above, below = sheet.y(0)

    def level(x: int, y: int) -> int:
        (value,) = {*drawn[y + 20 : y + sheet.height - 20, x + 20 : x + sheet.width - 20].flatten().tolist()}
        return value

    assert level(sheet.x(0), (above + below) // 2) == 120
    assert [level(sheet.x(column), above) for column in (1, 2)] == [160, 200]
    assert [level(sheet.x(column), below) for column in (1, 2)] == [190, 230]
    pictures.write_rollout_video(tmp_path / "rollout.mp4", prompts, Result, fps=30)
    assert probe(tmp_path / "rollout.mp4").num_frames == 13 + 8 - 1 + 15
