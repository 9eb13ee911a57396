"""Weights and statistics that are no numbers, or far more than a model needs, are refused where they are loaded."""

import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from adapters import make
from safetensors.torch import save_file
from torch import Tensor
from toy_tokenizers import toy_tokenizer
from world_models import CONFIG, random_model

from vidtok_plugin import TokenizerAdapter, VidTok
from vidtok_plugin.adapter.saving import STATISTICS_FILE
from world_model.model import WorldModel

FSQ = "vidtok_fsq_causal_488_32768"
CONV = "encoder.conv_in.conv.weight"


def first(value: float) -> Callable[[Tensor], Tensor]:
    return lambda tensor: tensor.index_fill(0, torch.tensor([1]), value)


NUMBERS = {
    "nan": (first(float("nan")), r"finite values of magnitude 1e18 at most, got nan at \(1, 0, 0, 0, 0\)"),
    "infinite": (first(float("-inf")), r"finite values .* got -inf at \(1, 0, 0, 0, 0\)"),
    "huge": (first(1e38), r"finite values .* got 9.99.*e\+37 at \(1, 0, 0, 0, 0\)"),
    "huge float64": (lambda tensor: first(1e300)(tensor.double()), r"finite values .* got 1e\+300"),
    "half nan": (lambda tensor: first(float("nan"))(tensor.half()), r"finite values .* got nan"),
    "int64": (lambda tensor: tensor.long(), "an ordinary tensor of float16, .* or float64, got torch.int64"),
    "bool": (lambda tensor: tensor > 0, "an ordinary tensor of .* got torch.bool"),
    "complex": (lambda tensor: tensor.to(torch.complex64), "an ordinary tensor of .* got torch.complex64"),
    "float8": (lambda tensor: tensor.to(torch.float8_e4m3fn), "an ordinary tensor of .* got torch.float8_e4m3fn"),
}  # fmt: skip


@pytest.mark.parametrize("case", NUMBERS)
def test_weights_that_are_no_numbers_are_named_with_file_and_place(case: str, tmp_path: Path) -> None:
    """A model with NaN loaded, and encoded to index -9223372036854775308; other types were cast."""
    change, message = NUMBERS[case]
    model = toy_tokenizer(FSQ).float()
    model.save_pretrained(tmp_path)
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    weights[CONV] = change(weights[CONV])
    if case == "complex":  # which safetensors cannot hold
        torch.save({"state_dict": weights}, tmp_path / "model.ckpt")
        source, keywords = (
            tmp_path / "model.ckpt",
            {"preset": FSQ, "ch": 4, "ch_mult": (1, 1, 1, 1), "num_res_blocks": 1},
        )
    else:
        save_file(weights, tmp_path / "model.safetensors")
        source, keywords = tmp_path, {}
    with pytest.raises(ValueError, match=rf"^VidTok: {CONV} in \S+ must (have|be) {message}.*; .*[.]$"):
        VidTok.from_pretrained(source, **keywords)


@pytest.mark.parametrize("case", ["nan", "infinite", "huge", "int64"])
def test_a_world_model_with_such_weights_is_refused(case: str, tmp_path: Path) -> None:
    """With NaN it rolled out id 0."""
    model = random_model(CONFIG)
    model.save_pretrained(tmp_path)
    change, message = NUMBERS[case]
    weights = dict(model.state_dict())
    weights["step_inputs.place"] = change(weights["step_inputs.place"]).contiguous()
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(
        ValueError, match=f"^WorldModel: step_inputs.place in .*{message.replace(', 0, 0, 0, 0', ', 0')}"
    ):
        WorldModel.from_pretrained(tmp_path)


def test_a_latent_that_overflows_is_refused_and_no_index_leaves_the_codebook() -> None:
    model = toy_tokenizer(FSQ).float()
    z = torch.zeros(2, 5, 3, 1, 1)
    z[1, 2, 1] = float("inf")
    with pytest.raises(
        ValueError, match="^VidTok: the encoder's output must be finite, got inf for clip 1 at latent step 1"
    ):
        model.regularize(z)
    model.encoder.conv_out.conv.bias.data[0] = float("nan")
    for encode in (model.encode, model.encoder_stream().push):
        with pytest.raises(ValueError, match="output must be finite, got nan for clip 0 at latent step 0; check the"):
            encode(torch.zeros(1, 3, 5, 8, 8))
    z = torch.tensor([float("nan"), float("inf"), -float("inf"), 1e38, 0.0]).expand(1, 5, 5)
    indices = model.regularization(z[..., None, None].clone(), sample=False, with_terms=False).indices
    assert indices.min() >= 0 and indices.max() < model.codebook_size


@pytest.mark.parametrize(
    ("std", "message"),
    [
        (0.0, "latent_std in .* must be at least 1e-09, got 0.0 of channel 1; fit"),
        (-1.0, "latent_std in .* must be at least 1e-09, got -1.0 of channel 1"),
        (1e-40, "latent_std in .* must be at least 1e-09, got 9.99.* of channel 1"),
        (float("nan"), r"latent_std in .* must have finite values .* got nan at \(1,\)"),
        (float("inf"), r"latent_std in .* must have finite values .* got inf at \(1,\)"),
    ],
)
def test_latent_statistics_that_cannot_normalize_are_refused(std: float, message: str, tmp_path: Path) -> None:
    """They gave infinite patches."""
    adapter = make("kl")
    adapter.save_pretrained(tmp_path)
    statistics = {name: tensor.clone() for name, tensor in adapter.state_dict().items()}
    statistics["latent_std"][1] = std
    save_file(statistics, tmp_path / STATISTICS_FILE)
    with pytest.raises(ValueError, match=f"^TokenizerAdapter: {message}"):
        TokenizerAdapter.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"^TokenizerAdapter: {message.replace('in .*', 'in the state_dict')}"):
        adapter.load_state_dict(statistics)


@pytest.mark.parametrize(
    ("statistics", "message"),
    [
        (
            {"latent_mean": torch.zeros(1)},
            r"must hold latent_mean and latent_std of 4 channels, got {'latent_mean': \(1,",
        ),
        (None, "has no latent_statistics.safetensors"),
    ],
)
def test_incomplete_latent_statistics_are_refused(
    statistics: dict[str, Tensor] | None, message: str, tmp_path: Path
) -> None:
    make("kl").save_pretrained(tmp_path)
    (tmp_path / STATISTICS_FILE).unlink()
    if statistics is not None:
        save_file(statistics, tmp_path / STATISTICS_FILE)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        TokenizerAdapter.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("ch: 4000", "those of another architecture: .*conv_in.conv.weight has the shape"),
        ("ch: 1000000000", "ch must be 1 to 65536, got 1000000000"),
        ("num_res_blocks: 1000000", "num_res_blocks must be 1 to 64, got 1000000"),
        ("num_res_blocks: 64", "those of another architecture"),
        ("kl_channels: 65537", "regularizer 'fsq' takes fsq_levels"),
        ("ch_mult: [1, 1, 1, 60000]", "those of another architecture"),
        ("ch_mult: [" + "1, " * 5000 + "1]", "the number of levels in ch_mult must be 1 to 16, got 5001"),
        ("fsq_levels: [8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8]", "must multiply to at most"),
    ],
)
def test_a_config_that_asks_for_more_than_its_weights_allocates_nothing(
    setting: str, message: str, tmp_path: Path
) -> None:
    """`ch: 4000` took 7 GB before the shapes were compared, and a million blocks hung."""
    toy_tokenizer(FSQ).float().save_pretrained(tmp_path)
    config = tmp_path / "config.yaml"
    key = setting.partition(":")[0]
    lines = config.read_text().splitlines()
    begin = next(i for i, line in enumerate(lines) if line.startswith(f"{key}:"))
    end = begin + 1
    while end < len(lines) and lines[end].startswith("-"):
        end += 1
    config.write_text("\n".join([*lines[:begin], setting, *lines[end:]]))
    begun = time.perf_counter()
    with pytest.raises(ValueError, match=message):
        VidTok.from_pretrained(tmp_path)
    assert time.perf_counter() - begun < 30


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("max_steps: 4", "max_steps: 65536", ""),
        ("max_steps: 4", "max_steps: 1000000000", "max_steps must be 1 to 65536"),
        ("depth: 2", "depth: 100000", "depth must be 1 to 512, got 100000"),
        ("depth: 2", "depth: 512", "those of another architecture"),
        ("width: 24", "width: 60000", "those of another architecture"),
        ("codebook_size: 12", "codebook_size: 4294967296", "codebook_size must be 1 to 2147483648"),
    ],
)
def test_a_world_models_config_likewise(old: str, new: str, message: str, tmp_path: Path) -> None:
    random_model(CONFIG).save_pretrained(tmp_path)
    config = tmp_path / "config.yaml"
    text = config.read_text()
    assert old in text
    config.write_text(text.replace(old, new, 1))
    if "65536" in new:  # a long context needs no more weights
        assert WorldModel.from_pretrained(tmp_path).config.max_steps == 65536
        return
    with pytest.raises(ValueError, match=message):
        WorldModel.from_pretrained(tmp_path)


def test_a_safetensors_header_of_90_mb_is_refused_at_once(tmp_path: Path) -> None:
    toy_tokenizer(FSQ).float().save_pretrained(tmp_path)
    with open(tmp_path / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", 90_000_000) + b"{" + b" " * 89_999_999)
    with pytest.raises(
        ValueError, match="must have a safetensors header of at most 10000000 bytes, got 90000000; fetch"
    ):
        VidTok.from_pretrained(tmp_path)


@pytest.mark.parametrize("settings", [{"ch": "4"}, {"ch": float("nan")}, {"channels": 4}, {"regularizer": ["fsq"]}])
def test_a_checkpoints_architecture_is_checked_like_a_config(settings: dict[str, object], tmp_path: Path) -> None:
    content = {"state_dict": {"tokenizer.encoder.x": torch.ones(1)}, "architecture": settings}
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=r"a.ckpt has architecture settings that no model has \(.*\); fetch it again"):
        VidTok.from_pretrained(tmp_path / "a.ckpt")


def test_a_saved_models_config_reads_no_environment_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It did, and the value stood in the error and in stores."""
    monkeypatch.setenv("VIDTOK_SECRET", "hunter2")
    adapter = TokenizerAdapter(toy_tokenizer(FSQ).float())
    adapter.save_pretrained(tmp_path)
    random_model(CONFIG).save_pretrained(tmp_path / "world")
    for file in ("adapter.yaml", "tokenizer/config.yaml", "world/config.yaml"):
        path = tmp_path / file
        before = path.read_text()
        path.write_text(before + "\nextra: ${oc.env:VIDTOK_SECRET}\n")
        with pytest.raises(ValueError, match="must be a plain value, got the interpolation") as caught:
            WorldModel.from_pretrained(path.parent) if "world" in file else TokenizerAdapter.from_pretrained(tmp_path)
        assert "hunter2" not in str(caught.value) and str(path) in str(caught.value)
        path.write_text(before)
