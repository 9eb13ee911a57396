"""Weights convert between our layout, the published one and that of diffusers, bit for bit in every direction."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from toy_tokenizers import TOY, toy_tokenizer
from weight_files import assert_same, make_malicious, published_layout, training_layout

from vidtok_plugin import VidTok, cli, presets
from vidtok_plugin.tokenizer import presets as presets_module
from vidtok_plugin.tokenizer.architecture import Architecture
from vidtok_plugin.tokenizer.presets import Preset
from vidtok_plugin.tokenizer.weights.conversion import Layout, architecture_from_diffusers, convert, diffusers_config
from vidtok_plugin.tokenizer.weights.hub import HOME_VARIABLE

FSQ, KL, V1_0, NONCAUSAL = (
    "vidtok_fsq_causal_488_32768_v1_1",
    "vidtok_kl_causal_288_8chn_v1_1",
    "vidtok_kl_causal_444_4chn",
    "vidtok_fsq_noncausal_488_262144",
)
FOR_DIFFUSERS = [name for name in presets() if name.endswith("_v1_1") or "noncausal" in name]


@pytest.fixture(autouse=True)
def toy_presets(monkeypatch: pytest.MonkeyPatch) -> None:
    """The presets used here at toy width, so that their weights files are small."""
    for name in (FSQ, KL, V1_0, NONCAUSAL):
        toy = VidTok.from_preset(name, **TOY).architecture
        preset = Preset(name=name, architecture=toy, metrics=None, checkpoint=presets()[name].checkpoint)
        monkeypatch.setitem(presets_module._PRESETS, name, preset)


def source(kind: str, model: VidTok, folder: Path) -> Path:
    """Writes the model in one of the layouts that `convert` reads."""
    if kind == "ours":
        model.save_pretrained(folder)
        return folder
    folder.mkdir()
    if kind == "published":
        torch.save(published_layout(model), folder / "source.ckpt")
        return folder / "source.ckpt"
    if kind == "training":
        torch.save(training_layout(model), folder / "source.ckpt")
        return folder / "source.ckpt"
    return convert(source("ours", model, folder / "ours"), folder / "diffusers", to="diffusers")


def load(layout: str, written: Path, preset: str, folder: Path) -> VidTok:
    """Loads the model that was written in `layout`."""
    if layout == "diffusers":
        return VidTok.from_pretrained(convert(written, folder))
    return VidTok.from_pretrained(written, preset=preset if layout == "published" else None)


@pytest.mark.parametrize(
    ("name", "kind", "to"),
    [(FSQ, kind, to) for kind in ("ours", "published", "training", "diffusers") for to in get_args(Layout)]
    + [(KL, "published", "diffusers"), (KL, "diffusers", "published")],
)
def test_every_layout_converts_to_every_other_with_equal_outputs(name: str, kind: str, to: Any, tmp_path: Path) -> None:
    model = toy_tokenizer(name).float()
    written = convert(source(kind, model, tmp_path / "in"), tmp_path / "out", to=to, preset=name)
    assert_same(model, load(to, written, name, tmp_path / "again"))


@pytest.mark.parametrize("name", [V1_0, NONCAUSAL])
def test_v1_0_and_non_causal_models_convert_to_the_published_layout_and_ours(name: str, tmp_path: Path) -> None:
    model = toy_tokenizer(name).float()
    published = convert(source("ours", model, tmp_path / "in"), tmp_path / "published", to="published")
    assert published == tmp_path / "published" / f"{name}.ckpt"
    assert_same(model, VidTok.from_pretrained(convert(published, tmp_path / "ours", preset=name)))


def test_a_published_name_is_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = toy_tokenizer(KL).float()
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path))
    torch.save(published_layout(model), tmp_path / f"{KL}.ckpt")
    assert_same(model, VidTok.from_pretrained(convert(KL, tmp_path / "out")))


def test_the_original_reads_the_published_layout(tmp_path: Path) -> None:
    model = toy_tokenizer(FSQ).float()
    written = convert(source("ours", model, tmp_path / "in"), tmp_path / "out", to="published")
    content = torch.load(written, weights_only=True)
    assert list(content) == ["state_dict"] and list(content["state_dict"]) == list(model.state_dict())


def test_an_architecture_outside_the_presets_converts(tmp_path: Path) -> None:
    model = toy_tokenizer(FSQ, ch=8).float()
    folder = source("ours", model, tmp_path / "in")
    published = convert(folder, tmp_path / "out", to="published")
    assert published.name == "vidtok.ckpt"
    assert_same(model, VidTok.from_pretrained(published, preset=FSQ, ch=8))


# Untrusted files


@pytest.mark.parametrize("kind", ["shell", "exec", "legacy"])
def test_converting_a_checkpoint_runs_no_code_in_it(kind: str, tmp_path: Path) -> None:
    make_malicious(tmp_path / "bad.ckpt", toy_tokenizer(FSQ).float(), kind, tmp_path / "ran")
    if kind == "exec":  # replaced by a stand-in
        convert(tmp_path / "bad.ckpt", tmp_path / "out", preset=FSQ)
        assert_same(toy_tokenizer(FSQ).float(), VidTok.from_pretrained(tmp_path / "out"))
    else:  # system calls are refused anyway, and so is the old format
        with pytest.raises(ValueError, match=r"names code to be run \(\S+\), which is refused"):
            convert(tmp_path / "bad.ckpt", tmp_path / "out", preset=FSQ)
        assert not (tmp_path / "out").exists()
    assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / "bad.ckpt", weights_only=False)
    assert (tmp_path / "ran").exists()  # without the refusal it runs


@pytest.mark.parametrize("value", [torch.optim.SGD, Path("x"), {"a": {Path("y")}}])
def test_weights_that_are_not_tensors_are_refused(value: object, tmp_path: Path) -> None:
    content = published_layout(toy_tokenizer(FSQ).float())
    content["state_dict"]["encoder.conv_in.conv.bias"] = value
    torch.save(content, tmp_path / "bad.ckpt")
    with pytest.raises(ValueError, match=r"bad.ckpt has no weights of a VidTok"):
        convert(tmp_path / "bad.ckpt", tmp_path / "out", preset=FSQ)


# diffusers


@pytest.mark.parametrize("name", FOR_DIFFUSERS)
def test_an_architecture_survives_diffusers_config(name: str) -> None:
    architecture = presets()[name].architecture
    config = json.loads(json.dumps(diffusers_config(architecture)))
    assert architecture_from_diffusers(config) == architecture


def test_levels_equal_to_the_defaults_are_left_implicit() -> None:
    config = diffusers_config(presets()[FSQ].architecture)
    given = {"spatial_ds": [0, 1, 2], "spatial_us": [1, 2, 3], "tempo_ds": [2, 1], "tempo_us": [1, 2]}
    assert architecture_from_diffusers({**config, **given}) == presets()[FSQ].architecture
    assert architecture_from_diffusers({"_class_name": "AutoencoderVidTok"}).kl_channels == 4


@given(
    depth=st.integers(1, 4),
    spatial=st.sets(st.integers(0, 3)),
    temporal=st.tuples(st.sets(st.integers(0, 3)), st.sets(st.integers(0, 3))),
)
def test_any_levels_survive_diffusers_config(
    depth: int, spatial: set[int], temporal: tuple[set[int], set[int]]
) -> None:
    down = tuple(sorted(i for i in spatial if i < depth))
    up = tuple(sorted(depth - 1 - i for i in down))
    count = min(len(levels & set(allowed)) for levels, allowed in zip(temporal, (down, up), strict=True))
    chosen = [
        tuple(sorted(levels & set(allowed))[:count]) for levels, allowed in zip(temporal, (down, up), strict=True)
    ]
    architecture = Architecture(
        regularizer="kl",
        kl_channels=2,
        version="1.1",
        ch_mult=(1,) * depth,
        encoder_spatial_levels=down,
        decoder_spatial_levels=up,
        encoder_temporal_levels=chosen[0],
        decoder_temporal_levels=chosen[1],
    )
    again = architecture_from_diffusers(diffusers_config(architecture))
    for name in ("spatial_down", "spatial_up", "temporal_down", "temporal_up", "ch_mult", "temporal_factor"):
        assert getattr(again, name) == getattr(architecture, name)


def test_a_diffusers_folder_has_a_config_and_weights_by_their_published_names(tmp_path: Path) -> None:
    model = toy_tokenizer(FSQ).float()
    folder = convert(source("ours", model, tmp_path / "in"), tmp_path / "out", to="diffusers")
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "diffusion_pytorch_model.safetensors"]
    weights = load_file(folder / "diffusion_pytorch_model.safetensors")
    assert weights.keys() == model.state_dict().keys()
    config = json.loads((folder / "config.json").read_text())
    assert config["_class_name"] == "AutoencoderVidTok" and config["regularizer"] == "fsq"
    assert (config["z_channels"], config["codebook_size"], config["double_z"], config["ch"]) == (5, 32768, False, 4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"regularizer": "kl", "kl_channels": 4}, "version must be '1.1' or causal false, got a causal v1.0 model"),
        (
            {"regularizer": "fsq", "fsq_levels": (8, 5, 5), "version": "1.1"},
            r"all of fsq_levels must be 8, got \(8, 5, 5\)",
        ),
        (
            {"regularizer": "kl", "kl_channels": 4, "version": "1.1", "encoder_temporal_levels": (2, 3)},
            "temporal levels must be spatial levels as well",
        ),
        (
            {"regularizer": "kl", "kl_channels": 4, "version": "1.1", "decoder_temporal_levels": (0, 1)},
            "temporal levels must be spatial levels as well",
        ),
    ],
)
def test_an_architecture_that_diffusers_cannot_express_is_refused(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    VidTok(Architecture(**{**TOY, **settings})).save_pretrained(tmp_path / "in")
    with pytest.raises(ValueError, match=rf"diffusers' AutoencoderVidTok, {message}; convert it to 'ours' or"):
        convert(tmp_path / "in", tmp_path / "out", to="diffusers")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "AutoencoderKL"}, "_class_name must be AutoencoderVidTok, got AutoencoderKL"),
        ({"norm": "group", "depth": 3}, "unknown diffusers settings: norm, depth"),
        ({"out_channels": 4}, "out_channels must be 3 in this family, got 4"),
        ({"double_z": True}, "double_z must be False in this family, got True"),
        ({"codebook_size": 4096}, "codebook_size must be 32768 in this family, got 4096"),
        ({"regularizer": "vq"}, "regularizer must be 'fsq' or 'kl', got 'vq'"),
        ({"ch": "wide"}, "ch must be a whole number, got 'wide'"),
        ({"tempo_ds": [0]}, "the same number of temporal levels"),
    ],
)
def test_an_unsupported_diffusers_config_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = source("diffusers", toy_tokenizer(FSQ).float(), tmp_path / "in")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(ValueError, match=message):
        convert(folder, tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "config.json is not valid JSON"),
        ("[]", "config.json must be a JSON object, got list; fetch it again"),
        ('{"a":' * 100_000, "config.json is nested too deeply; fetch it again"),
        (
            f'{{"_class_name": "AutoencoderVidTok", "regularizer": "fsq", "z_channels": {10**12}}}',
            "z_channels must be 1 to",
        ),
    ],
)
def test_a_damaged_diffusers_config_is_refused(content: str, message: str, tmp_path: Path) -> None:
    folder = source("diffusers", toy_tokenizer(FSQ).float(), tmp_path / "in")
    (folder / "config.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        convert(folder, tmp_path / "out")


def test_a_diffusers_folder_without_safetensors_is_refused(tmp_path: Path) -> None:
    folder = source("diffusers", toy_tokenizer(FSQ).float(), tmp_path / "in")
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="has no diffusion_pytorch_model.safetensors; save the model as"):
        convert(folder, tmp_path / "out")


def test_loading_a_diffusers_folder_names_the_command_that_converts_it(tmp_path: Path) -> None:
    folder = source("diffusers", toy_tokenizer(FSQ).float(), tmp_path / "in")
    with pytest.raises(FileNotFoundError, match="`vidtok-plugin convert` converts a diffusers folder"):
        VidTok.from_pretrained(folder)


def test_weights_of_another_architecture_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    folder = source("diffusers", toy_tokenizer(FSQ).float(), tmp_path / "in")
    with pytest.raises(ValueError, match=f"stores its architecture, and it is not that of preset='{KL}'"):
        convert(folder, tmp_path / "out", preset=KL)
    checkpoint = source("published", toy_tokenizer(FSQ).float(), tmp_path / "published")
    with pytest.raises(ValueError, match="are those of another architecture"):
        convert(checkpoint, tmp_path / "out", preset=KL)
    assert not (tmp_path / "out").exists()


# The command


def test_the_command_prints_the_path_to_load(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = toy_tokenizer(FSQ).float()
    checkpoint = source("published", model, tmp_path / "in")
    arguments = ["convert", str(checkpoint), "--preset", FSQ, "--output"]
    assert cli.main([*arguments, str(tmp_path / "ours")]) == 0
    assert cli.main([*arguments, str(tmp_path / "published"), "--to", "published"]) == 0
    written = capsys.readouterr().out.split()
    assert written == [str(tmp_path / "ours"), str(tmp_path / "published" / f"{FSQ}.ckpt")]
    assert_same(model, VidTok.from_pretrained(written[0]))
    assert_same(model, VidTok.from_pretrained(written[1], preset=FSQ))


def test_the_command_reports_an_error_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = source("published", toy_tokenizer(V1_0).float(), tmp_path / "in")
    arguments = ["convert", str(checkpoint), "--output", str(tmp_path / "out"), "--to", "diffusers"]
    assert cli.main([*arguments, "--preset", V1_0]) == 2
    assert "error: convert: for diffusers' AutoencoderVidTok, version must be" in capsys.readouterr().err
    assert cli.main(arguments) == 2
    assert "holds only weights; give its architecture by preset=NAME" in capsys.readouterr().err
