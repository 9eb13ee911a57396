"""Model cards: what a save writes beside the weights, what it keeps, and the cards of the models that ship."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from PIL import Image
from places import ROOT
from recordings import contents, tiny_adapter, tiny_kl_adapter, write_folder
from training_runs import make_store, make_videos, run_here, settings
from world_models import FLOW, random_model, save_tiny_world

from vidtok_plugin import CardInfo
from vidtok_plugin.common.model_card import PLACE, ModelFacts, is_unedited, load_from, write_card
from vidtok_plugin.store.tokenize import write_store
from vidtok_plugin.video.episodes import find_episodes


def read(folder: Path) -> Any:
    return ModelCard.load(folder / "README.md")


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.new("RGB", (4, 2), "red").save(tmp_path / "made.png")
    return tmp_path / "made.png"


def test_a_card_says_what_is_known_and_what_was_given(tmp_path: Path, picture: Path) -> None:
    info = CardInfo(
        title="Mine",
        license="mit",
        data="My *videos*",
        datasets=("lerobot/pusht",),
        measures={"PSNR | SSIM, dB": 30.12345, "clips": 1200},
        measured="On ten clips.",
        picture=picture,
        caption="a red one",
        tags=("robot",),
    )
    tiny_adapter().tokenizer.save_pretrained(tmp_path / "model", card=info)
    card = read(tmp_path / "model")
    assert card.data.library_name == "vidtok-plugin" and card.data.license == "mit"
    assert card.data.tags == ["vidtok", "video", "video-tokenizer", "fsq", "causal", "robot"]
    assert card.data.datasets == ["lerobot/pusht"]
    for line in (
        "# Mine",
        "![a red one](card.png)",
        "| latents | FSQ, 12 codes (4 x 3 levels) |",
        "| compression | 4 x 8 x 8 (time x height x width) |",
        "My *videos*",
        "On ten clips.",
        "| PSNR \\| SSIM, dB | 30.12 |",
        "| clips | 1,200 |",
        f"tokenizer = VidTok.from_pretrained({PLACE})",
    ):
        assert f"\n{line}\n" in card.content
    assert (tmp_path / "model" / "card.png").read_bytes() == picture.read_bytes()


@pytest.mark.slow
def test_a_card_states_what_nobody_said(tmp_path: Path) -> None:
    tiny_kl_adapter(patch_size=(1, 2, 2)).save_pretrained(tmp_path)
    card = read(tmp_path)
    assert card.data.license is None and "kl" in card.data.tags
    assert "| tokens | patches of 2 x 2 latents, 16 values |" in card.content
    sections = dict(part.split("\n\n", 1) for part in card.text.split("## ")[1:])
    assert sections["Training data"].startswith("Not stated") and sections["Measures"].startswith("None were stated")
    assert "ask before you use it" in sections["License"]


@pytest.mark.slow
def test_the_cards_of_world_models(tmp_path: Path) -> None:
    save_tiny_world(tmp_path / "world")
    text = read(tmp_path / "world").content
    assert f"model, adapter = load_world({PLACE})" in text and "| actions | one of 3 a frame |" in text
    assert "| tokenizer: compression | 4 x 8 x 8 (time x height x width) |" in text
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("README.md")] == ["world/README.md"]
    random_model(FLOW).save_pretrained(tmp_path / "alone")
    text = read(tmp_path / "alone").content
    assert f"model = WorldModel.from_pretrained({PLACE})" in text and "2 x 3 a latent step: patches of 3" in text


def test_an_edited_card_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    facts = ModelFacts(title="It", summary="It is.", tags=(), architecture=[], load="")
    file = tmp_path / "README.md"
    for title in ("first", "second"):  # which replaces the first
        write_card(tmp_path, facts, CardInfo(title=title))
    assert "# second" in file.read_text() and is_unedited(file.read_text())
    file.write_text(file.read_text().replace("second", "edited"))
    with caplog.at_level(logging.INFO, logger="vidtok_plugin"):
        write_card(tmp_path, facts, CardInfo(title="third"))
    assert "# edited" in file.read_text() and "was edited, and is kept" in caplog.text
    assert load_from(file.read_text(), '"user/it"') == file.read_text()


@pytest.mark.slow
def test_a_card_names_its_repository_and_stays_unedited(tmp_path: Path) -> None:
    tiny_adapter().save_pretrained(tmp_path)
    before = (tmp_path / "README.md").read_text()
    named = load_from(before, '"user/it", revision="v2"')
    assert 'TokenizerAdapter.from_pretrained("user/it", revision="v2")' in named and is_unedited(named)
    assert is_unedited(named.replace("\n", "\r\n")), "as git writes it on Windows"


def test_a_save_may_write_no_card(tmp_path: Path) -> None:
    tiny_adapter().tokenizer.save_pretrained(tmp_path, card=False)
    assert sorted(contents(tmp_path)) == ["config.yaml", "model.safetensors"]


def test_a_picture_must_be_an_image_that_is_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"picture must be an image \(.png, .*\), got a.mp4; convert it"):
        CardInfo(picture="a.mp4")
    with pytest.raises(FileNotFoundError, match="there is no picture .*none.png; check the path"):
        tiny_adapter().save_pretrained(tmp_path / "model", card=CardInfo(picture=tmp_path / "none.png"))
    assert not list(tmp_path.rglob("*.safetensors")), "nothing is written"


@pytest.mark.slow
def test_token_stores_have_no_cards(tmp_path: Path) -> None:
    """Their adapters are the same to the byte as those of earlier versions."""
    write_folder(tmp_path / "episodes", {"a": 9})
    write_store(tiny_adapter(), find_episodes(tmp_path / "episodes"), tmp_path / "store")
    assert list(tmp_path.rglob("adapter.yaml")) and not list(tmp_path.rglob("README.md"))


@pytest.mark.slow
def test_the_card_of_a_run_has_its_data_and_its_last_validation(tmp_path: Path) -> None:
    few = ["trainer.max_steps=2", "trainer.val_check_interval=2", "trainer.log_every_n_steps=1"]
    data = {"tokenizer": make_videos(tmp_path / "videos"), "world_model": make_store(tmp_path / "tokens")}
    run_here("tokenizer", settings("tokenizer", data["tokenizer"], tmp_path / "tokenizer", *few))
    run_here("world_model", settings("world_model", data["world_model"], tmp_path / "world", *few))
    for name, folder, measure in (("tokenizer", "videos", "psnr"), ("world", "store", "cross_entropy")):
        text = read(tmp_path / name / "model").content
        assert f"`{folder}`" in text and "2 batches, seed" in text and str(tmp_path) not in text
        assert f"| {measure} | " in text


def test_the_shipped_tokenizer_has_a_card_of_its_own_measures() -> None:
    folder = ROOT / "vidtok_plugin" / "pretrained" / "vidtok_tiny"
    text = (folder / "README.md").read_text(encoding="utf-8")
    scores = json.loads((folder / "training.json").read_text())["held_out_psnr"]
    games = [value for name, value in scores.items() if name != "natural"]
    assert (
        f"| {sum(games) / len(games):.4g} |" in text
        and f"| PSNR, dB, natural video | {scores['natural']:.4g} |" in text
    )
    assert is_unedited(text) and (folder / "card.png").is_file()
    assert "license: mit" in text
