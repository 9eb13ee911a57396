"""Weights come back as they were saved, published ones load by name, and bad files end in one clear sentence."""

import os
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from tokenizers import TOY, random_video, toy_tokenizer

from vidtok_plugin import VidTok, presets
from vidtok_plugin.tokenizer import weights
from vidtok_plugin.tokenizer.presets import Preset

FSQ, KL = "vidtok_fsq_causal_488_32768", "vidtok_kl_causal_488_4chn_v1_1"


@pytest.fixture(scope="module", params=[FSQ, KL, "vidtok_fsq_noncausal_488_262144"])
def model(request: pytest.FixtureRequest) -> VidTok:
    return toy_tokenizer(request.param).float()


@pytest.fixture
def toy_presets(monkeypatch: pytest.MonkeyPatch) -> None:
    """The presets at toy width, so that files of their weights are small."""
    from vidtok_plugin.tokenizer import presets as module

    for name in (FSQ, KL):
        toy = VidTok.from_preset(name, **TOY).architecture
        original = presets()[name]
        monkeypatch.setitem(
            module._PRESETS,
            name,
            Preset(name=name, architecture=toy, metrics=None, checkpoint=original.checkpoint),
        )


@pytest.fixture
def few_presets(monkeypatch: pytest.MonkeyPatch) -> None:
    """A guess among two is quicker than among all."""
    few = {name: presets()[name] for name in (FSQ, "vidtok_tiny")}
    monkeypatch.setattr(weights, "presets", lambda: few)


def published_layout(model: VidTok) -> dict[str, Any]:
    """A checkpoint as Lightning wrote the published ones: the objective's weights beside the model's."""
    objective = {
        "loss.logvar": torch.zeros(()),
        "loss.discriminator.main.0.weight": torch.zeros(4, 3, 4, 4),
        "loss.perceptual_loss.lin0.model.1.weight": torch.zeros(1, 4, 1, 1),
    }
    return {"state_dict": {**model.state_dict(), **objective}, "epoch": 3, "global_step": 7, "callbacks": {}}


def assert_same(a: VidTok, b: VidTok) -> None:
    assert a.architecture == b.architecture and not b.training
    assert list(a.state_dict()) == list(b.state_dict())
    assert all(torch.equal(value, b.state_dict()[name]) for name, value in a.state_dict().items())
    video = random_video(5).float()
    with torch.no_grad():
        assert torch.equal(a(video).reconstruction, b(video).reconstruction)


# What loads


def test_a_saved_model_comes_back(model: VidTok, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "new" / "folder")
    assert sorted(file.name for file in (tmp_path / "new" / "folder").iterdir()) == [
        "config.yaml",
        "model.safetensors",
    ]
    assert_same(model, VidTok.from_pretrained(tmp_path / "new" / "folder"))
    assert_same(model, VidTok.from_pretrained(str(tmp_path / "new" / "folder")))


def test_saving_again_replaces_what_was_there(model: VidTok, tmp_path: Path) -> None:
    toy_tokenizer("vidtok_tiny").float().save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    assert_same(model, VidTok.from_pretrained(tmp_path))


@pytest.mark.usefixtures("toy_presets")
@pytest.mark.parametrize("name", [FSQ, KL])
def test_a_published_checkpoint_loads_with_the_objective_beside_it(name: str, tmp_path: Path) -> None:
    model = toy_tokenizer(name).float()
    torch.save(published_layout(model), tmp_path / "published.ckpt")
    assert_same(model, VidTok.from_pretrained(tmp_path / "published.ckpt", preset=name))


@pytest.mark.usefixtures("toy_presets")
def test_a_bare_weights_file_loads_with_its_preset(tmp_path: Path) -> None:
    model = toy_tokenizer(FSQ).float()
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    for name in ("weights.safetensors", "weights.pt"):
        assert_same(model, VidTok.from_pretrained(tmp_path / name, preset=FSQ))


def test_overrides_make_a_bare_file_of_another_width_load(tmp_path: Path) -> None:
    model = toy_tokenizer(FSQ).float()
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    assert_same(model, VidTok.from_pretrained(tmp_path / "weights.safetensors", preset=FSQ, **TOY))


@pytest.mark.usefixtures("toy_presets")
def test_a_published_name_is_fetched_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked = toy_tokenizer(KL).float(), []
    torch.save(published_layout(model), tmp_path / "published.ckpt")

    def fetch(repository: str, file: str) -> str:
        asked.append((repository, file))
        return str(tmp_path / "published.ckpt")

    monkeypatch.setattr(weights, "hf_hub_download", fetch)
    assert_same(model, VidTok.from_pretrained(KL))
    assert asked == [("microsoft/VidTok", f"checkpoints/vidtok_v1_1/{KL}.ckpt")]


def test_a_checkpoint_of_our_own_training_tells_its_architecture(model: VidTok, tmp_path: Path) -> None:
    checkpoint = {
        "state_dict": {f"tokenizer.{name}": value for name, value in model.state_dict().items()},
        "architecture": weights.architecture_settings(model.architecture),
    }
    torch.save(checkpoint, tmp_path / "last.ckpt")
    assert_same(model, VidTok.from_pretrained(tmp_path / "last.ckpt"))


def test_half_precision_weights_load_into_float32(tmp_path: Path) -> None:
    model = toy_tokenizer(FSQ).half()
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    assert VidTok.from_pretrained(tmp_path / "weights.safetensors", preset=FSQ, **TOY).dtype == torch.float32


# What does not


def test_another_architecture_is_named_with_a_guess(tmp_path: Path) -> None:
    tiny = VidTok.from_preset("vidtok_tiny")
    save_file(tiny.state_dict(), tmp_path / "weights.safetensors")
    with pytest.raises(ValueError) as error:
        VidTok.from_pretrained(tmp_path / "weights.safetensors", preset=FSQ, ch=4)
    message = str(error.value)
    assert "are those of another architecture" in message and message.endswith("their shapes fit vidtok_tiny.")
    assert re.search(r"encoder\.\S+ is missing; .* and \d+ more", message) and "\n" not in message


@pytest.mark.usefixtures("few_presets")
def test_a_wrong_shape_is_named_with_both_shapes(tmp_path: Path) -> None:
    model = toy_tokenizer(FSQ).float()
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match=r"decoder.conv_in.conv.weight has the shape \(4, 5, 3, 3, 3\) for \(4, 4, "):
        VidTok.from_pretrained(tmp_path / "weights.safetensors", preset="vidtok_fsq_causal_488_4096", **TOY)


@pytest.mark.usefixtures("few_presets")
def test_a_missing_and_an_unexpected_weight_are_named(tmp_path: Path) -> None:
    state_dict = toy_tokenizer(FSQ).float().state_dict()
    state_dict["decoder.extra.weight"] = state_dict.pop("encoder.conv_out.conv.bias")
    save_file(state_dict, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match="encoder.conv_out.conv.bias is missing; decoder.extra.weight is unexpected"):
        VidTok.from_pretrained(tmp_path / "weights.safetensors", preset=FSQ, **TOY)


@pytest.mark.usefixtures("few_presets")
def test_a_bare_file_without_its_preset_is_refused_with_a_guess(tmp_path: Path) -> None:
    save_file(VidTok.from_preset("vidtok_tiny").state_dict(), tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match="holds weights alone; name its architecture .* fit vidtok_tiny"):
        VidTok.from_pretrained(tmp_path / "weights.safetensors")


def test_a_preset_that_contradicts_the_source_is_refused(tmp_path: Path) -> None:
    """v1.0 and v1.1 have the same shapes: the wrong one would load, and give wrong video."""
    model = VidTok.from_preset(FSQ, **TOY)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"tells its own architecture, which is not that of preset='{FSQ}_v1_1'"):
        VidTok.from_pretrained(tmp_path, preset=f"{FSQ}_v1_1")


@pytest.mark.parametrize("name", ["weights.ckpt", "weights.pt", "weights.safetensors"])
@pytest.mark.parametrize(
    "content",
    [b"", b"<html><body>404 Not Found</body></html>", b"PK\x03\x04 not quite", b"\x00" * 64, b"{}"],
    ids=["empty", "web page", "zip header", "zeros", "json"],
)
def test_a_file_of_something_else_is_one_clear_sentence(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"^VidTok: \S+{re.escape(name)} ") as error:
        VidTok.from_pretrained(tmp_path / name, preset=FSQ)
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def whole_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, model = tmp_path_factory.mktemp("weights"), toy_tokenizer(FSQ).float()
    torch.save(published_layout(model), folder / "whole.ckpt")
    save_file(model.state_dict(), folder / "whole.safetensors")
    return folder


@settings(max_examples=12)
@given(kept=st.floats(0, 1, exclude_max=True), name=st.sampled_from(["ckpt", "safetensors"]))
def test_a_truncated_file_is_one_clear_sentence(whole_files: Path, kept: float, name: str) -> None:
    content = (whole_files / f"whole.{name}").read_bytes()
    (whole_files / f"part.{name}").write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ValueError, match=r"^VidTok: \S+part\.\S+ is no .*; (fetch it again|convert it .*)\.$"):
        VidTok.from_pretrained(whole_files / f"part.{name}", preset=FSQ, **TOY)


@settings(max_examples=40)
@given(content=st.binary(max_size=40), pickled=st.booleans())
def test_any_other_bytes_are_one_clear_sentence(whole_files: Path, content: bytes, pickled: bool) -> None:
    """The unpickler fails in many ways, by IndexError, KeyError, TypeError and others."""
    (whole_files / "other.ckpt").write_bytes((b"\x80\x02" if pickled else b"") + content)
    with pytest.raises(ValueError, match=r"^VidTok: \S+other\.ckpt "):
        VidTok.from_pretrained(whole_files / "other.ckpt", preset=FSQ)


class Malicious:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_that_would_run_code_is_refused_and_not_run(zipped: bool, tmp_path: Path) -> None:
    content = {"state_dict": toy_tokenizer(FSQ).float().state_dict(), "callbacks": Malicious(tmp_path / "ran")}
    if zipped:
        torch.save(content, tmp_path / "bad.ckpt")
    else:
        (tmp_path / "bad.ckpt").write_bytes(pickle.dumps({"callbacks": Malicious(tmp_path / "ran")}))
    with pytest.raises(ValueError, match="arbitrary code .*refused; convert it to safetensors"):
        VidTok.from_pretrained(tmp_path / "bad.ckpt", preset=FSQ, **TOY)
    assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / "bad.ckpt", weights_only=False) if zipped else pickle.loads(
        (tmp_path / "bad.ckpt").read_bytes()
    )
    assert (tmp_path / "ran").exists()  # so it would have


@pytest.mark.parametrize(
    "content",
    [
        [1, 2],
        {},
        torch.ones(3),
        {"state_dict": 3},
        {"state_dict": {}},
        {"state_dict": {"loss.logvar": torch.ones(1)}},
        {"state_dict": {"encoder.conv_in.weight": 3}},
        {"state_dict": {1: torch.ones(1)}},
        {"state_dict": {"tokenizer.head.weight": torch.ones(1)}},
        {"state_dict": {"tokenizer.encoder.x": torch.ones(1)}, "architecture": {"depth": 3}},
    ],
)
def test_a_checkpoint_of_something_else_is_refused(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match=r"^VidTok: \S+other\.ckpt (is no checkpoint|holds no weights|has settings)"):
        VidTok.from_pretrained(tmp_path / "other.ckpt", preset=FSQ)


@pytest.mark.parametrize("path", ["missing.ckpt", "missing/folder", "missing.safetensors"])
def test_a_missing_path_is_named(path: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"no file or folder '.*{path}'"):
        VidTok.from_pretrained(tmp_path / path)


def test_an_unknown_name_names_the_nearest_preset() -> None:
    with pytest.raises(ValueError, match="no preset 'vidtok_tny'; the nearest is 'vidtok_tiny'"):
        VidTok.from_pretrained("vidtok_tny")
    with pytest.raises(ValueError, match="no preset 'vidtok_tny'"):
        VidTok.from_pretrained("anything.ckpt", preset="vidtok_tny")


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="has no model.safetensors; it is no folder written by"):
        VidTok.from_pretrained(tmp_path)
    VidTok.from_preset("vidtok_tiny", **TOY).save_pretrained(tmp_path)
    (tmp_path / "config.yaml").unlink()
    with pytest.raises(FileNotFoundError, match="has no config.yaml"):
        VidTok.from_pretrained(tmp_path)


def test_a_folders_unknown_setting_names_the_nearest(tmp_path: Path) -> None:
    VidTok.from_preset("vidtok_tiny", **TOY).save_pretrained(tmp_path)
    config = tmp_path / "config.yaml"
    config.write_text(config.read_text().replace("ch_mult:", "ch_mul:"))
    with pytest.raises(ValueError, match="unknown key ch_mul .*nearest known key is ch_mult"):
        VidTok.from_pretrained(tmp_path)


@pytest.mark.parametrize("error", [OSError("no route"), ConnectionError("offline"), TimeoutError()])
def test_without_a_network_the_address_is_given(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: str) -> str:
        raise error

    monkeypatch.setattr(weights, "hf_hub_download", fail)
    address = f"https://huggingface.co/microsoft/VidTok/resolve/main/checkpoints/{FSQ}.ckpt"
    with pytest.raises(FileNotFoundError, match=f"could not download {FSQ} .*{address} .*preset='{FSQ}'"):
        VidTok.from_pretrained(FSQ)
