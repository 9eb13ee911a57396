"""The examples of other libraries' generators, at toy size: they train, generate and decode."""

import importlib
import re
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image

pytestmark = pytest.mark.slow

TOY = (
    "episodes=1",
    "frames_per_episode=80",
    "train_clips=4",
    "test_clips=2",
    "clip_frames=9",
    "width=32",
    "depth=1",
    "heads=2",
    "steps=4",
    "batch_size=2",
    "tokenizer.data.validation_clips=1",
    "tokenizer.trainer.max_steps=1",
    "tokenizer.trainer.val_check_interval=1",
    "tokenizer.trainer.num_sanity_val_steps=0",
    "tokenizer.trainer.enable_progress_bar=false",
    "tokenizer.pictures=0",
    "tokenizer.curves=false",
    "tokenizer.loggers=[csv]",
)
EXAMPLES = {
    "llama_on_tokens": "transformers",
    "x_transformers_on_factors": "x_transformers",
    "dit_on_patches": "diffusers",
}


@pytest.fixture(scope="module")
def play(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder for recorded play; the first example records it."""
    return tmp_path_factory.mktemp("play")


def load(name: str) -> ModuleType:
    pytest.importorskip(EXAMPLES[name])
    return importlib.import_module(name)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_trains_generates_and_decodes(
    examples_path: None, name: str, play: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert load(name).main([f"play={play}", f"output={tmp_path}", *TOY]) == 0
    out = capsys.readouterr().out
    before, after = map(float, re.search(r"held-out loss: (\S+) before, (\S+) after", out).groups())
    assert after < before
    assert re.search(r"PSNR on 4 frames after a prompt of 5: generated \d+\.\d{3} dB; the mean training frame", out)
    with Image.open(tmp_path / "generated.png") as picture:
        assert picture.size == (5 * 150, 2 * 310)  # two clips, each with the end of the prompt and four frames


def test_a_misspelled_setting_is_named(examples_path: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert load("llama_on_tokens").main(["temperatur=1"]) == 2
    assert "temperature" in capsys.readouterr().err


def test_factors_alternate_in_generated_sequences(examples_path: None) -> None:
    """Also with the cache, where the network returns only the last position's logits."""
    module = load("x_transformers_on_factors")
    layers = module.Decoder(dim=16, depth=1, heads=2, attn_dim_head=8, rotary_pos_emb=True)
    wrapper = module.AutoregressiveWrapper(module.FactorTransformer((5, 3), max_seq_len=40, attn_layers=layers))
    made = wrapper.generate(torch.tensor([[0, 5], [4, 7]]), 30, filter_logits_fn=lambda logits: logits)
    assert (made[:, 0::2] < 5).all() and (made[:, 1::2] >= 5).all() and made.max() == 7
    assert len(made[:, 0::2].unique()) == 5
