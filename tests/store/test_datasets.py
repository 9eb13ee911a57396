"""Whatever takes a folder of episodes takes other recordings: tokenize, evaluate, training, prompts, rollouts."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from lerobot_datasets import Written, edit_table, write_lerobot
from PIL import Image
from recordings import contents, tiny_adapter, write_episode
from video_files import numbers
from world_models import CONFIG, random_model

from vidtok_plugin import cli, open_episodes
from vidtok_plugin.evaluation.evaluate import EvaluationConfig, evaluate
from vidtok_plugin.evaluation.networks import MetricNetworks
from vidtok_plugin.store.config import TokenizeConfig
from vidtok_plugin.store.folder import FolderConfig, tokenize_folder
from vidtok_plugin.store.reader import TokenStore
from vidtok_plugin.video import ClipDataset, find_sources, probe, read_frames, write_video
from vidtok_plugin.video.pixels import to_uint8
from world_model import cli as world_cli
from world_model.actions import ActionSpec
from world_model.measures.prompts import held_out_prompts, recordings

SIZE = (32, 64)
DATA = "data/chunk-000/file-000.parquet"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """A LeRobot dataset of three episodes; tests do not change it."""
    return write_lerobot(tmp_path_factory.mktemp("lerobot") / "data", [7, 5, 9])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an adapter."""
    folder = tmp_path_factory.mktemp("adapter")
    tiny_adapter().save_pretrained(folder)
    return folder


def tokenize(source: Path, model: Path, output: Path, *more: str) -> TokenStore:
    assert cli.main(["tokenize", str(source), "--model", str(model), "--output", str(output), *more]) == 0
    return TokenStore(output)


def test_a_dataset_is_tokenized_with_its_actions_rewards_and_ends(
    written: Written, model: Path, tmp_path: Path
) -> None:
    store = tokenize(written.root, model, tmp_path / "store")
    assert [episode.name for episode in store.episodes] == [f"episode_{i:06d}" for i in range(3)]
    assert [episode.frames for episode in store.episodes] == [7, 5, 9]
    assert store.metadata.fps == 10.0 and store.metadata.action_space == {"kind": "continuous", "size": 3}
    for index, rows in enumerate(written.rows):
        stored = store.window(index, 0, store.episodes[index].steps)
        own = slice(store.metadata.temporal_factor, store.metadata.temporal_factor + len(rows["index"]) - 1)
        np.testing.assert_array_equal(stored["actions"].flatten(0, 1)[own], rows["action"][:-1])
        np.testing.assert_array_equal(stored["rewards"].flatten()[own], rows["next.reward"][:-1])
        assert bool(stored["terminated"][-1]) == (index == 1)


def test_only_a_changed_episode_of_a_dataset_is_encoded_again(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vidtok_plugin.store import encode as module

    root = write_lerobot(tmp_path / "data", [7, 5, 9]).root
    tokenize(root, model, tmp_path / "store")
    before, encoded, encode = contents(tmp_path / "store"), [], module.encode_episode

    def counted(adapter, source, *arguments):  # type: ignore[no-untyped-def]
        encoded.append(source.name)
        return encode(adapter, source, *arguments)

    monkeypatch.setattr(module, "encode_episode", counted)
    tokenize(root, model, tmp_path / "store")
    assert contents(tmp_path / "store") == before and not encoded
    rewards = np.zeros(21, np.float32)
    rewards[:7] = write_lerobot(tmp_path / "same", [7, 5, 9]).rows[0]["next.reward"]
    edit_table(root / DATA, **{"next.reward": rewards})
    assert cli.main(["tokenize", str(root), "--model", str(model), "--output", str(tmp_path / "store")]) == 2
    tokenize(root, model, tmp_path / "store", "--update")
    assert encoded == ["episode_000001", "episode_000002"]


@pytest.mark.slow
def test_processes_open_the_dataset_themselves(written: Written, model: Path, tmp_path: Path) -> None:
    for processes in ("1", "2"):
        tokenize(written.root, model, tmp_path / processes, "--processes", processes, "--episodes-per-shard", "2")
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def write_npz(folder: Path) -> None:
    np.savez(folder / "a.npz", frames=np.zeros((5, 16, 16, 3), np.uint8), fps=10, actions=np.zeros((5, 2)))


def write_pngs(folder: Path) -> None:
    (folder / "a").mkdir()
    (folder / "a.json").write_text('{"fps": 10}')
    for index in range(5):
        Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(folder / "a" / f"{index}.png")


@pytest.mark.parametrize(("write", "name", "size"), [(write_npz, "a.npz", 2), (write_pngs, "a", None)])
def test_other_recordings_are_tokenized(
    model: Path, tmp_path: Path, write: Callable[[Path], None], name: str, size: int | None
) -> None:
    (tmp_path / "in").mkdir()
    write(tmp_path / "in")
    store = tokenize(tmp_path / "in", model, tmp_path / "store")
    (episode,) = store.episodes
    assert (episode.name, episode.frames, store.metadata.fps) == (name, 5, 10.0)
    assert store.metadata.action_space.get("size") == size


def test_a_png_folder_without_a_rate_is_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    write_pngs(tmp_path / "in")
    (tmp_path / "in" / "a.json").unlink()
    assert cli.main(["tokenize", str(tmp_path / "in"), "--model", str(model), "--output", str(tmp_path / "s")]) == 2
    assert "their rate must be in" in capsys.readouterr().err


def test_names_in_a_store_are_paths_or_file_names_as_before(tmp_path: Path, model: Path) -> None:
    for name in ("a/x", "b"):
        write_episode(tmp_path / "in" / f"{name}.mp4", 5)
    for root, names in ((tmp_path / "in", ["a/x.mp4", "b.mp4"]), (None, ["x.mp4", "b.mp4"])):
        output = tmp_path / str(root is None)
        config = TokenizeConfig(root=root)
        tokenize_folder(FolderConfig(folder=tmp_path / "in", output=output, model=model, processes=1, tokenize=config))
        assert sorted(episode.name for episode in TokenStore(output).episodes) == sorted(names)


def test_a_dataset_is_evaluated_like_its_frames_in_video_files(written: Written, tmp_path: Path) -> None:
    tokenizer = tiny_adapter().tokenizer.float()
    cfg = EvaluationConfig(fps=10, size=64, clip_frames=5)
    networks = MetricNetworks(lpips=None, i3d=None, not_computed={"lpips": "no weights", "fvd": "no I3D"})
    for episode in open_episodes(written.root):
        write_video(tmp_path / "videos" / f"{episode.name}.mp4", episode.read(range(episode.num_frames)), fps=10, crf=0)
    reports = [
        evaluate(tokenizer, source, tmp_path / source.name, model="tiny", cfg=cfg, networks=networks)
        for source in (written.root, tmp_path / "videos")
    ]
    first, second = (report.videos for report in reports)
    assert [video.name for video in first] == [f"episode_{i:06d}" for i in range(3)]
    assert [(v.num_frames, v.fps) for v in first] == [(v.num_frames, v.fps) for v in second]
    assert [v.psnr for v in first] == pytest.approx([v.psnr for v in second], abs=0.05)


def test_training_clips_come_from_a_dataset(written: Written) -> None:
    sources = find_sources([str(written.root)])
    clips = ClipDataset.every(sources, clip_length=5, height=32, width=64)
    shown = [numbers(to_uint8(clip)) for clip in (clips[i] for i in range(len(clips)))]
    assert shown == [list(range(start, start + 5)) for start in (0, 7, 12)]
    assert clips.clip(1).origin.startswith(f"{written.root}, episode_000001, frames 0..4")
    slower = ClipDataset.every(sources, clip_length=3, height=32, width=64, fps=5)
    assert numbers(to_uint8(slower[0])) == [0, 2, 4]


def test_a_camera_is_for_training_data_that_has_several(written: Written, tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", np.zeros((5, 16, 16, 3), np.uint8), fps=10)
    sources = find_sources([str(written.root), str(tmp_path)], camera="observation.image")
    assert [len(source.videos) for source in sources] == [3, 1]
    with pytest.raises(ValueError, match="camera is for datasets with several, but none of .* is one"):
        find_sources([str(tmp_path)], camera="observation.image")


def test_prompts_come_from_a_dataset(written: Written) -> None:
    prompts = held_out_prompts(recordings(written.root, with_actions=True), count=2, prompt_frames=3, future_frames=2)
    assert prompts.actions is not None and prompts.actions.shape == (2, 5, 3)
    assert numbers(to_uint8(prompts.video[0])) == [0, 1, 2, 3, 4]
    without = held_out_prompts(recordings(written.root, with_actions=False), count=1, prompt_frames=3, future_frames=2)
    assert without.actions is None


def test_recordings_without_actions_are_refused_for_a_model_with_actions(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", frames=np.zeros((5, 16, 16, 3), np.uint8))
    with pytest.raises(ValueError, match=r"a\.npz has no actions, which the world model needs"):
        recordings(tmp_path, with_actions=True)
    write_video(tmp_path / "only" / "b.mp4", np.zeros((5, 16, 16, 3), np.uint8), fps=10)
    with pytest.raises(FileNotFoundError, match=r"b\.mp4 has no b\.actions\.npy beside it"):
        recordings(tmp_path / "only", with_actions=True)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a world model of the dataset's actions."""
    adapter = tiny_adapter()
    grid = adapter.grid(1, *SIZE)
    assert CONFIG.tokens is not None
    tokens = replace(
        CONFIG.tokens,
        height=grid.H,
        width=grid.W,
        temporal_factor=adapter.temporal_factor,
        actions=ActionSpec(kind="continuous", size=3),
    )
    folder = tmp_path_factory.mktemp("world")
    random_model(replace(CONFIG, tokens=tokens)).save_pretrained(folder, adapter)
    return folder


def test_a_rollout_continues_an_episode_of_a_dataset(written: Written, world: Path, tmp_path: Path) -> None:
    arguments = ["rollout", "--model", str(world), "--prompt-frames", "5", "--frames", "4"]
    output = tmp_path / "out.mp4"
    dataset = [*arguments, "--prompt", str(written.root), "--output", str(output)]
    assert world_cli.main([*dataset, "--episode", "2"]) == 0
    assert (probe(output).num_frames, probe(output).fps) == (9, 10.0)
    other = tmp_path / "other.mp4"
    np.save(tmp_path / "other.actions.npy", np.zeros((9, 3), np.float32))
    changed = [*arguments, "--prompt", str(written.root), "--episode", "2", "--output", str(other)]
    assert world_cli.main([*changed, "--actions", str(tmp_path / "other.actions.npy")]) == 0
    first, second = read_frames(output), read_frames(other)
    assert np.abs(first[:5].astype(int) - second[:5]).mean() < 2 < np.abs(first[5:].astype(int) - second[5:]).mean()


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ([], "has 3 episodes; choose one with --episode 0 to 2"),
        (["--episode", "7"], "--episode must be in 0..2"),
        (["--episode", "-1"], "--episode must be in 0..2"),
        (["--episode", "0"], "must have an action for each of 9 frames, got 7"),
        (["--episode", "0", "--camera", "none"], "has no camera 'none'; choose from observation.image"),
    ],
)
def test_a_prompt_that_is_not_in_the_dataset_is_refused(
    written: Written, world: Path, tmp_path: Path, more: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["rollout", "--model", str(world), "--prompt-frames", "5", "--frames", "4", *more]
    output = tmp_path / "out.mp4"
    assert world_cli.main([*arguments, "--prompt", str(written.root), "--output", str(output)]) == 2
    assert problem in " ".join(capsys.readouterr().err.split())
    assert not output.exists()
