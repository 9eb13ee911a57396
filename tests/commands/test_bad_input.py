"""Users' mistakes print one clear sentence with the remedy and exit with code 2."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from places import ROOT

from vidtok_plugin import TokenizerAdapter, VidTok, cli
from vidtok_plugin.store.tokenize import write_store
from vidtok_plugin.video.writing import write_video
from world_model import cli as world_model_cli

Run = Callable[..., str]


@pytest.fixture
def fail(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command that must fail and returns its error message."""

    def run(*argv: str, main: Callable[[list[str]], int] = cli.main) -> str:
        assert main(list(argv)) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        errors = [line for line in lines if line.startswith("error: ")]
        assert len(errors) == 1 and "Traceback" not in "".join(lines)
        return errors[0]

    return run


def fit(folder: Path, output: Path, *overrides: str) -> list[str]:
    data = [f"data.train=[{folder}]", f"data.validation=[{folder}]", "trainer.enable_progress_bar=false"]
    return ["fit", "--config", str(CONFIG), *data, f"output={output}", "trainer.max_steps=1", *overrides]


CONFIG = ROOT / "configs" / "tokenizer" / "demo_from_scratch.yaml"
WORLD_MODEL_CONFIG = CONFIG.parent.parent / "world_model" / "demo_from_scratch.yaml"


def make_video(path: Path, frames: int, size: int = 64) -> Path:
    write_video(path, np.random.default_rng(0).integers(0, 255, (frames, size, size, 3), dtype=np.uint8), fps=30)
    return path


def make_store(folder: Path, tokenizer: VidTok) -> Path:
    video = make_video(folder / "clip.mp4", 40, size=16)
    for split in ("train", "validation"):
        write_store(TokenizerAdapter(tokenizer), [video], folder / "store", split=split)
    return folder / "store"


def tiny(**overrides: object) -> VidTok:
    return VidTok.from_preset("vidtok_tiny", ch=4, ch_mult=(1, 1, 1, 1), **overrides)


def test_missing_folder(fail: Run, tmp_path: Path) -> None:
    assert "doesn't exist" in fail(*fit(tmp_path / "nowhere", tmp_path / "run"))


def test_empty_folder(fail: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert ".mp4" in fail(*fit(tmp_path / "empty", tmp_path / "run"))


def test_file_that_is_not_a_video(fail: Run, tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "broken.mp4").write_text("no video")
    message = fail(*fit(tmp_path / "clips", tmp_path / "run"))
    assert "broken.mp4" in message and "remove or replace" in message


def test_video_too_short_for_the_clip(fail: Run, tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    make_video(tmp_path / "clips" / "short.mp4", 5)
    message = fail(*fit(tmp_path / "clips", tmp_path / "run"))
    assert "short.mp4 has 5 frames, but a clip needs 17 frames" in message


def test_size_that_is_not_a_multiple_of_the_spatial_factor(fail: Run, tmp_path: Path) -> None:
    message = fail(*fit(tmp_path, tmp_path / "run", "data.height=60"))
    assert "multiple of 8" in message and "56 and 64" in message


def test_unsuitable_video_size_names_suitable_sizes(fail: Run, tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    make_video(tmp_path / "clips" / "odd.mp4", 9, size=20)
    arguments = ["tokenize", str(tmp_path / "clips"), "--model", "vidtok_tiny", "--output", str(tmp_path / "store")]
    assert "16 and 24" in fail(*arguments)


def test_unknown_config_key_names_the_nearest(fail: Run, tmp_path: Path) -> None:
    assert "optimizer.lr" in fail(*fit(tmp_path, tmp_path / "run", "optimizer.lrr=1"))


def test_unknown_trainer_key_names_the_nearest(fail: Run, tmp_path: Path) -> None:
    assert "trainer.max_steps" in fail(*fit(tmp_path, tmp_path / "run", "trainer.max_step=1"))


def test_unknown_preset_names_the_nearest(fail: Run, tmp_path: Path) -> None:
    message = fail("reconstruct", "x.mp4", "--model", "vidtok_tin", "--output", str(tmp_path / "out.mp4"))
    assert "vidtok_tiny" in message


def test_store_written_by_another_tokenizer(fail: Run, tmp_path: Path) -> None:
    store = make_store(tmp_path, tiny())
    tiny().save_pretrained(tmp_path / "other")  # other random weights
    message = fail("tokenize", str(tmp_path), "--model", str(tmp_path / "other"), "--output", str(store))
    assert "another tokenizer" in message


def test_checkpoint_of_another_architecture(fail: Run, tmp_path: Path) -> None:
    store = make_store(tmp_path, tiny())
    small = [
        "trainer.log_every_n_steps=1",
        "model.transformer.depth=1",
        "model.transformer.heads=2",
        "trainer.enable_progress_bar=false",
    ]
    arguments = ["fit", "--config", str(WORLD_MODEL_CONFIG), f"data.store={store}", f"output={tmp_path / 'run'}"]
    arguments += ["trainer.max_steps=1", "data.window_steps=4", *small]
    assert world_model_cli.main([*arguments, "model.transformer.width=32"]) == 0
    message = fail(*arguments, "model.transformer.width=64", main=world_model_cli.main)
    assert "architecture" in message


def test_weights_of_another_architecture(fail: Run, tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path / "small")
    video = make_video(tmp_path / "clip.mp4", 9)
    weights = tmp_path / "small" / "model.safetensors"
    arguments = ["reconstruct", str(video), "--model", str(weights), "--output", str(tmp_path / "out.mp4")]
    assert "preset=" in fail(*arguments)
    assert "another architecture" in fail(*arguments, "--preset", "vidtok_tiny")


@pytest.mark.slow
def test_an_error_in_a_loader_worker_is_one_sentence_too(fail: Run, tmp_path: Path) -> None:
    """It was the complete traceback of the worker in one line."""
    folder = tmp_path / "clips"
    folder.mkdir()
    whole = make_video(folder / "whole.mp4", 40)
    (folder / "cut.mp4").write_bytes(whole.read_bytes())
    workers = [
        "data.num_workers=1",
        "data.max_unreadable_fraction=0.0",
        "trainer.max_steps=50",
        "trainer.num_sanity_val_steps=0",
    ]
    damaged = bytearray(whole.read_bytes())
    damaged[len(damaged) // 3 : len(damaged) * 2 // 3] = bytes(len(damaged) * 2 // 3 - len(damaged) // 3)
    (folder / "cut.mp4").write_bytes(damaged)
    message = fail(*fit(folder, tmp_path / "run", *workers))
    assert "cut.mp4" in message and "Caught" not in message and len(message) < 500


def test_a_folder_as_the_output_video(fail: Run, tmp_path: Path) -> None:
    """It was noticed only after the whole video had been reconstructed."""
    video = make_video(tmp_path / "clip.mp4", 5, size=16)
    message = fail("reconstruct", str(video), "--model", "vidtok_tiny", "--output", str(tmp_path))
    assert f"the output must be a file, got the folder {tmp_path}" in message


def test_a_file_as_the_output_folder(fail: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    message = fail("convert", "vidtok_tiny", "--output", str(tmp_path / "file"))
    assert (
        message == f"error: {tmp_path / 'file'}: a file is in the place of a folder on this path; choose another path."
    )


def test_a_split_is_a_plain_name(fail: Run, tmp_path: Path) -> None:
    """Tokens of the split a/b were written, but never found."""
    make_video(tmp_path / "clip.mp4", 5, size=16)
    arguments = ["tokenize", str(tmp_path), "--model", "vidtok_tiny", "--output", str(tmp_path / "store")]
    expected = "split must be a plain name of letters, digits, and . _ - inside, such as train, got 'a/b'"
    assert expected in fail(*arguments, "--split", "a/b")
    assert not (tmp_path / "store").exists()


def test_a_missing_world_model_is_named(fail: Run, tmp_path: Path) -> None:
    """The error named the adapter's file inside the missing folder."""
    arguments = ["rollout", "--model", str(tmp_path / "nowhere"), "--prompt", "x.mp4", "--output", "out.mp4"]
    assert f"there is no folder {tmp_path / 'nowhere'}" in fail(*arguments, main=world_model_cli.main)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ALE/Boxin-v5", "env must be one of gymnasium's Atari games"),
        ("CartPol-v1", "env must be an environment that is registered with gymnasium, got 'CartPol-v1'"),
    ],
)
def test_an_unknown_environment(fail: Run, tmp_path: Path, name: str, message: str) -> None:
    pytest.importorskip("ale_py")
    assert message in fail("record", "--env", name, "--output", str(tmp_path / "play"), main=world_model_cli.main)
