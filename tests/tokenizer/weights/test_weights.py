"""Saved weights load unchanged, published ones load by name, and bad files raise one clear error."""

import argparse
import errno
import os
import pickle
import re
from pathlib import Path
from typing import Any

import huggingface_hub
import lightning.pytorch as pl
import pytest
import torch
from huggingface_hub.errors import RevisionNotFoundError
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.callbacks import EMAWeightAveraging
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch.utils.data import DataLoader
from toy_tokenizers import TOY, random_video, toy_tokenizer
from weight_files import Malicious, assert_same, make_malicious, published_layout, training_layout

from vidtok_plugin import VidTok, presets
from vidtok_plugin.tokenizer.objective import ObjectiveConfig
from vidtok_plugin.tokenizer.presets import Preset
from vidtok_plugin.tokenizer.training.module import TokenizerModule, TokenizerRunConfig
from vidtok_plugin.tokenizer.weights import hub, weights
from vidtok_plugin.tokenizer.weights.checkpoints import read_weights
from vidtok_plugin.video.data import VideoDataConfig

FSQ, KL = "vidtok_fsq_causal_488_32768", "vidtok_kl_causal_488_4chn_v1_1"


@pytest.fixture(scope="module", params=[FSQ, KL, "vidtok_fsq_noncausal_488_262144"])
def model(request: pytest.FixtureRequest) -> VidTok:
    return toy_tokenizer(request.param).float()


@pytest.fixture(autouse=True)
def local_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for manually downloaded checkpoints; there is no network."""
    folder = tmp_path_factory.mktemp("local")
    monkeypatch.setenv(hub.HOME_VARIABLE, str(folder))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path_factory.mktemp("hub")))
    return folder


@pytest.fixture
def toy_presets(monkeypatch: pytest.MonkeyPatch) -> None:
    """The presets at toy width, so that their weights files are small."""
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
    """Two presets to guess from: quicker than all."""
    few = {name: presets()[name] for name in (FSQ, "vidtok_tiny")}
    monkeypatch.setattr(weights, "presets", lambda: few)


# What loads


def test_a_saved_model_loads_unchanged(model: VidTok, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "new" / "folder")
    assert sorted(file.name for file in (tmp_path / "new" / "folder").iterdir()) == [
        "README.md",
        "config.yaml",
        "model.safetensors",
    ]
    assert_same(model, VidTok.from_pretrained(tmp_path / "new" / "folder"))
    assert_same(model, VidTok.from_pretrained(str(tmp_path / "new" / "folder")))


def test_saving_replaces_an_earlier_model(model: VidTok, tmp_path: Path) -> None:
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


def test_a_bare_file_of_another_width_loads_with_overrides(tmp_path: Path) -> None:
    model = toy_tokenizer(FSQ).float()
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    assert_same(model, VidTok.from_pretrained(tmp_path / "weights.safetensors", preset=FSQ, **TOY))


def test_the_content_of_a_file_decides_its_format(tmp_path: Path) -> None:
    model = toy_tokenizer(FSQ).float()
    save_file(model.state_dict(), tmp_path / "safetensors.ckpt")
    torch.save(published_layout(model), tmp_path / "checkpoint.safetensors")
    for name in ("safetensors.ckpt", "checkpoint.safetensors"):
        assert_same(model, VidTok.from_pretrained(tmp_path / name, preset=FSQ, **TOY))


@pytest.mark.parametrize("zipped", [True, False])
def test_both_checkpoint_formats_of_torch_load(zipped: bool, tmp_path: Path) -> None:
    model = toy_tokenizer(FSQ).float()
    torch.save(published_layout(model), tmp_path / "old.ckpt", _use_new_zipfile_serialization=zipped)
    assert_same(model, VidTok.from_pretrained(tmp_path / "old.ckpt", preset=FSQ, **TOY))


def test_a_checkpoint_of_our_training_stores_its_architecture(model: VidTok, tmp_path: Path) -> None:
    torch.save(training_layout(model), tmp_path / "last.ckpt")
    assert_same(model, VidTok.from_pretrained(tmp_path / "last.ckpt"))


def test_half_precision_weights_load_into_float32(tmp_path: Path) -> None:
    model = toy_tokenizer(FSQ).half()
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    assert VidTok.from_pretrained(tmp_path / "weights.safetensors", preset=FSQ, **TOY).dtype == torch.float32


# From the hub


@pytest.mark.usefixtures("toy_presets")
@pytest.mark.parametrize("revision", [None, "v2"])
def test_a_published_name_is_downloaded_at_its_revision(
    revision: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, asked = toy_tokenizer(KL).float(), []
    torch.save(published_layout(model), tmp_path / "published.ckpt")

    def download(repository: str, file: str, revision: str | None, **_: Any) -> str:
        asked.append((repository, file, revision))
        return str(tmp_path / "published.ckpt")

    monkeypatch.setattr(hub, "hf_hub_download", download)
    assert_same(model, VidTok.from_pretrained(KL, revision=revision))
    assert asked == [("microsoft/VidTok", f"checkpoints/vidtok_v1_1/{KL}.ckpt", revision)]


def put_into_the_hubs_cache(model: VidTok, revision: str, commit: str) -> None:
    repository = Path(huggingface_hub.constants.HF_HUB_CACHE) / "models--microsoft--VidTok"
    checkpoint = repository / "snapshots" / commit / presets()[FSQ].checkpoint
    for folder in (checkpoint.parent, repository / "refs"):
        folder.mkdir(parents=True, exist_ok=True)
    (repository / "refs" / revision).write_text(commit)
    torch.save(published_layout(model), checkpoint)


@pytest.mark.usefixtures("toy_presets")
def test_offline_a_name_loads_from_the_hubs_cache_at_any_cached_revision() -> None:
    newest, other = (toy_tokenizer(FSQ).float() for _ in range(2))
    other.decoder.conv_out.conv.bias.data += 1
    put_into_the_hubs_cache(newest, "main", "a" * 40)
    put_into_the_hubs_cache(other, "v2", "b" * 40)
    assert_same(newest, VidTok.from_pretrained(FSQ))
    for revision in ("v2", "b" * 40):
        assert_same(other, VidTok.from_pretrained(FSQ, revision=revision))
    with pytest.raises(FileNotFoundError, match=f"resolve/v3/checkpoints/{FSQ}.ckpt by other means and pass its path"):
        VidTok.from_pretrained(FSQ, revision="v3")


@pytest.mark.usefixtures("toy_presets")
def test_without_a_network_the_error_names_the_address_and_a_path_that_works(local_folder: Path) -> None:
    path = local_folder / f"{FSQ}.ckpt"
    address = f"https://huggingface.co/microsoft/VidTok/resolve/main/checkpoints/{FSQ}.ckpt"
    with pytest.raises(FileNotFoundError) as error:
        VidTok.from_pretrained(FSQ)
    message = str(error.value)
    assert all(part in message for part in (address, f"put it at {path}", f"preset='{FSQ}'", "OfflineModeIsEnabled"))
    assert "\n" not in message
    model = toy_tokenizer(FSQ).float()
    torch.save(published_layout(model), path)
    assert_same(model, VidTok.from_pretrained(FSQ))


def test_a_local_file_is_not_used_for_a_pinned_revision(local_folder: Path) -> None:
    torch.save(published_layout(toy_tokenizer(FSQ).float()), local_folder / f"{FSQ}.ckpt")
    with pytest.raises(FileNotFoundError, match="resolve/v2/") as error:
        VidTok.from_pretrained(FSQ, revision="v2")
    assert str(local_folder) not in str(error.value)


def test_the_default_checkpoint_folder_is_in_the_users_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(hub.HOME_VARIABLE)
    assert hub.checkpoint_folder() == Path.home() / ".cache" / "vidtok_plugin"
    monkeypatch.setenv(hub.HOME_VARIABLE, "~/models")
    assert hub.checkpoint_folder() == Path.home() / "models"


@pytest.mark.parametrize("error", [OSError("no route"), TimeoutError(), RuntimeError("from the client")])
def test_any_download_failure_is_one_clear_error(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: str, **__: Any) -> str:
        raise error

    monkeypatch.setattr(hub, "hf_hub_download", fail)
    with pytest.raises(FileNotFoundError, match=rf"{FSQ} is not .* could not be downloaded \({type(error).__name__}\)"):
        VidTok.from_pretrained(FSQ)


@pytest.mark.parametrize("error", [TypeError("a bug"), MemoryError(), NotImplementedError("a bug")])
def test_other_errors_are_no_failed_download(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any exception was called a failed download."""

    def fail(*_: str, **__: Any) -> str:
        raise error

    monkeypatch.setattr(hub, "hf_hub_download", fail)
    with pytest.raises(type(error)) as raised:
        VidTok.from_pretrained(FSQ)
    assert raised.value is error


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
def test_a_cache_that_cannot_be_written_is_named(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: str, **__: Any) -> str:
        raise OSError(code, os.strerror(code), "/cache/hub")

    monkeypatch.setattr(hub, "hf_hub_download", fail)
    with pytest.raises(OSError, match=rf"stored in the hub's cache \(.*{os.strerror(code)}: '/cache/hub'.*HF_HOME"):
        VidTok.from_pretrained(FSQ)


def test_an_unknown_revision_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: str, **__: Any) -> str:
        # Its constructor needs an HTTP response, whose class depends on the version of the hub.
        raise RevisionNotFoundError.__new__(RevisionNotFoundError)

    monkeypatch.setattr(hub, "hf_hub_download", fail)
    with pytest.raises(ValueError, match="microsoft/VidTok on the hub has no revision 'v9'; leave revision out"):
        VidTok.from_pretrained(FSQ, revision="v9")


def test_a_revision_is_refused_for_other_sources(tmp_path: Path) -> None:
    toy_tokenizer(FSQ).save_pretrained(tmp_path)
    for source in ("vidtok_tiny", tmp_path, tmp_path / "model.safetensors"):
        with pytest.raises(
            ValueError,
            match=r"revision='v2' is for published names and hub repositories, and \S+ is none; leave it out",
        ):
            VidTok.from_pretrained(source, revision="v2")


@pytest.mark.usefixtures("toy_presets")
def test_a_file_under_the_wrong_published_name_is_refused(local_folder: Path) -> None:
    torch.save(training_layout(toy_tokenizer(KL)), local_folder / f"{FSQ}.ckpt")
    with pytest.raises(ValueError, match=f"stores its architecture, and it is not that of preset='{FSQ}'"):
        VidTok.from_pretrained(FSQ)


# Averaged weights


class SaveInTheLoop(pl.Callback):
    """Records the raw weights and saves a checkpoint after each batch."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.raw = folder, []

    def on_train_batch_end(self, trainer: pl.Trainer, module: TokenizerModule, *_: Any) -> None:
        self.raw.append({name: value.clone() for name, value in module.tokenizer.state_dict().items()})
        trainer.save_checkpoint(self.folder / f"{trainer.global_step}.ckpt")


def train(folder: Path, *callbacks: pl.Callback) -> SaveInTheLoop:
    """Trains a tokenizer for two batches."""
    cfg = TokenizerRunConfig(
        from_scratch=True,
        architecture=TOY,
        data=VideoDataConfig(train=("unused",), height=16, width=16),
        objective=ObjectiveConfig(perceptual="none", learn_logvar=False, discriminator="none"),
    )
    save = SaveInTheLoop(folder)
    trainer = pl.Trainer(
        max_steps=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*callbacks, save],
    )
    videos = [random_video(5, h=16)[0].float() for _ in range(2)]
    trainer.fit(TokenizerModule(cfg), DataLoader(videos))
    return save


TRAINING_NOISE = pytest.mark.filterwarnings(
    "ignore:The .*_dataloader.* does not have many workers", "ignore:.* but have no `val_dataloader`"
)


@TRAINING_NOISE
def test_a_checkpoint_with_averaged_weights_loads_the_average_by_default(tmp_path: Path) -> None:
    saved = train(tmp_path, EMAWeightAveraging(decay=0.75))
    loaded = {which: VidTok.from_pretrained(tmp_path / "2.ckpt", weights=which) for which in ("ema", "raw", None)}
    for name, raw in loaded["raw"].state_dict().items():
        first, second = (weights[name] for weights in saved.raw)
        assert torch.equal(raw, second)
        torch.testing.assert_close(loaded["ema"].state_dict()[name], 0.75 * first + 0.25 * second)
    weight = "decoder.conv_out.conv.weight"
    assert not torch.equal(loaded["ema"].state_dict()[weight], loaded["raw"].state_dict()[weight])
    assert_same(loaded[None], loaded["ema"])


@TRAINING_NOISE
def test_a_checkpoint_without_averaged_weights_has_only_raw_ones(tmp_path: Path) -> None:
    saved = train(tmp_path)
    for which in ("raw", None):
        loaded = VidTok.from_pretrained(tmp_path / "2.ckpt", weights=which).state_dict()
        assert all(torch.equal(value, saved.raw[1][name]) for name, value in loaded.items())
    with pytest.raises(ValueError, match=r"2.ckpt has no averaged weights \(weights='ema'\); use weights='raw'"):
        VidTok.from_pretrained(tmp_path / "2.ckpt", weights="ema")


def test_the_choice_of_weights_is_refused_for_other_sources(tmp_path: Path) -> None:
    model = toy_tokenizer(FSQ).float()
    model.save_pretrained(tmp_path)
    torch.save(published_layout(model), tmp_path / "published.ckpt")
    for source in (tmp_path, tmp_path / "published.ckpt", "vidtok_tiny"):
        with pytest.raises(ValueError, match="weights='raw' is for checkpoints of our training, and .* leave it"):
            VidTok.from_pretrained(source, preset=None if source == tmp_path else FSQ, weights="raw", **TOY)
    with pytest.raises(ValueError, match="weights must be 'ema' or 'raw', got 'best'"):
        VidTok.from_pretrained(tmp_path, weights="best")


# What does not load


def test_weights_of_another_architecture_are_refused_with_a_guess(tmp_path: Path) -> None:
    tiny = VidTok.from_preset("vidtok_tiny")
    save_file(tiny.state_dict(), tmp_path / "weights.safetensors")
    with pytest.raises(ValueError) as error:
        VidTok.from_pretrained(tmp_path / "weights.safetensors", preset=FSQ, ch=4)
    message = str(error.value)
    assert "are those of another architecture" in message and message.endswith("their shapes match vidtok_tiny.")
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
@pytest.mark.parametrize("name", ["regularization.project_in.weight", "decoder.mid.block_3.bias", "model_ema.decay"])
def test_an_unexpected_weight_beside_the_objectives_is_named(name: str, tmp_path: Path) -> None:
    """No published model has weights in its regularizer, so one that does is another model."""
    content = published_layout(toy_tokenizer(FSQ).float())
    content["state_dict"][name] = torch.ones(3)
    torch.save(content, tmp_path / "weights.ckpt")
    with pytest.raises(ValueError, match=f"of another architecture: {name} is unexpected"):
        VidTok.from_pretrained(tmp_path / "weights.ckpt", preset=FSQ, **TOY)


def test_all_presets_with_matching_shapes_are_named() -> None:
    with torch.device("meta"):
        state_dict = VidTok(presets()[FSQ].architecture).state_dict()
    with pytest.raises(ValueError, match=f"; their shapes match {FSQ}, {FSQ}_v1_1.$"):
        weights.build_strictly(lambda: toy_tokenizer(FSQ), state_dict, "file")
    del state_dict["encoder.conv_out.conv.weight"], state_dict["encoder.conv_out.conv.bias"]
    with pytest.raises(ValueError, match=f"; their shapes are closest to {FSQ}, {FSQ}_v1_1.$"):
        weights.build_strictly(lambda: toy_tokenizer(FSQ), state_dict, "file")


@pytest.mark.usefixtures("few_presets")
def test_a_preset_that_nearly_matches_is_named(tmp_path: Path) -> None:
    state_dict = VidTok.from_preset("vidtok_tiny").state_dict()
    del state_dict["encoder.conv_out.conv.bias"]
    save_file(state_dict, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match="conv.bias is missing; their shapes are closest to vidtok_tiny"):
        VidTok.from_pretrained(tmp_path / "weights.safetensors", preset="vidtok_tiny")


@pytest.mark.usefixtures("few_presets")
def test_a_bare_file_without_its_preset_is_refused_with_a_guess(tmp_path: Path) -> None:
    save_file(VidTok.from_preset("vidtok_tiny").state_dict(), tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match="holds only weights; give its architecture .* match vidtok_tiny"):
        VidTok.from_pretrained(tmp_path / "weights.safetensors")


def test_a_preset_that_contradicts_the_source_is_refused(tmp_path: Path) -> None:
    """v1.0 and v1.1 have the same shapes: the wrong one would load and give wrong video."""
    model = VidTok.from_preset(FSQ, **TOY)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"stores its architecture, and it is not that of preset='{FSQ}_v1_1'"):
        VidTok.from_pretrained(tmp_path, preset=f"{FSQ}_v1_1")


@pytest.mark.parametrize("name", ["weights.ckpt", "weights.pt", "weights.safetensors"])
@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is empty"),
        (b"<html><body>404 Not Found</body></html>", "is neither a PyTorch checkpoint nor .* starts with b'<html>"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is neither .* starts with b'version https:"),
        (b"\x00" * 64, "is neither"),
        (b"{}", "is neither"),
        (b"PK\x03\x04 not quite", "is not a complete checkpoint"),
        (b"\x80\x02 not quite", "is not a complete checkpoint"),
        (b"\x08\x00\x00\x00\x00\x00\x00\x00{not json", "is not a complete safetensors file"),
    ],
    ids=["empty", "web page", "LFS pointer", "zeros", "json", "zip header", "pickle header", "safetensors header"],
)
def test_a_file_of_another_kind_is_one_clear_error(name: str, content: bytes, problem: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"^\S+{re.escape(name)} {problem}.*; fetch it again\.$") as error:
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
def test_a_truncated_file_is_one_clear_error(whole_files: Path, kept: float, name: str) -> None:
    content = (whole_files / f"whole.{name}").read_bytes()
    (whole_files / f"part.{name}").write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ValueError, match=r"^\S+part\.\S+ is (empty|neither|not a complete).*; fetch it again\.$"):
        VidTok.from_pretrained(whole_files / f"part.{name}", preset=FSQ, **TOY)


@settings(max_examples=40)
@given(content=st.binary(max_size=40), pickled=st.booleans())
def test_arbitrary_bytes_are_one_clear_error(whole_files: Path, content: bytes, pickled: bool) -> None:
    """The unpickler raises IndexError, KeyError, TypeError and others."""
    (whole_files / "other.ckpt").write_bytes((b"\x80\x02" if pickled else b"") + content)
    with pytest.raises(ValueError, match=r"^(VidTok: )?\S+other\.ckpt "):
        VidTok.from_pretrained(whole_files / "other.ckpt", preset=FSQ)


@pytest.mark.parametrize("kind", ["shell", "exec", "legacy"])
def test_a_checkpoint_that_would_run_code_is_refused_and_not_run(kind: str, tmp_path: Path) -> None:
    make_malicious(tmp_path / "bad.ckpt", toy_tokenizer(FSQ).float(), kind, tmp_path / "ran")
    with pytest.raises(ValueError, match=r"names code to be run \(\S+\), which is refused; `vidtok-plugin convert` "):
        VidTok.from_pretrained(tmp_path / "bad.ckpt", preset=FSQ, **TOY)
    assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / "bad.ckpt", weights_only=False)
    assert (tmp_path / "ran").exists()  # without the refusal it runs


def test_a_plain_pickle_that_would_run_code_is_refused_and_not_run(tmp_path: Path) -> None:
    bad = pickle.dumps({"callbacks": Malicious(os.system, f"touch {tmp_path / 'ran'}")}, protocol=2)
    (tmp_path / "bad.ckpt").write_bytes(bad)
    with pytest.raises(ValueError, match=r"names code to be run \(posix.system\)"):
        VidTok.from_pretrained(tmp_path / "bad.ckpt", preset=FSQ, **TOY)
    assert not (tmp_path / "ran").exists()
    pickle.loads(bad)
    assert (tmp_path / "ran").exists()  # without the refusal it runs


def test_other_objects_beside_the_weights_are_refused_or_stripped(tmp_path: Path) -> None:
    """The original implementation stores an OmegaConf config in its checkpoints."""
    model = toy_tokenizer(FSQ).float()
    settings = OmegaConf.create({"model": {"ch": 4, "ch_mult": [1, 1, {"a": None}]}, "twice": "${model.ch}"})
    content = {
        **published_layout(model),
        "hyper_parameters": settings,
        "args": argparse.Namespace(folder=tmp_path, number=torch.float16),
    }
    torch.save(content, tmp_path / "training.ckpt")
    with pytest.raises(ValueError, match=r"names code to be run \(\S+\)"):
        VidTok.from_pretrained(tmp_path / "training.ckpt", preset=FSQ, **TOY)
    before = set(torch.serialization.get_safe_globals())
    stripped = read_weights(tmp_path / "training.ckpt", strip_objects=True).state_dict
    assert set(torch.serialization.get_safe_globals()) == before
    assert stripped.keys() == model.state_dict().keys()
    assert all(torch.equal(value, stripped[name]) for name, value in model.state_dict().items())


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
def test_a_checkpoint_of_another_kind_is_refused(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(
        ValueError, match=r"^VidTok: \S+other\.ckpt (is not a checkpoint|has no weights|has architecture settings)"
    ):
        VidTok.from_pretrained(tmp_path / "other.ckpt", preset=FSQ)


@pytest.mark.parametrize("path", ["missing.ckpt", "missing/folder", "missing.safetensors"])
def test_a_missing_path_is_named(path: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"no file or folder '.*{path}'"):
        VidTok.from_pretrained(tmp_path / path)


def test_an_unknown_name_names_the_nearest_preset() -> None:
    with pytest.raises(ValueError, match="no file, folder or preset 'vidtok_tny'; the nearest preset is 'vidtok_tiny'"):
        VidTok.from_pretrained("vidtok_tny")
    with pytest.raises(ValueError, match="no preset 'vidtok_tny'"):  # before the file, which is not there, is read
        VidTok.from_pretrained("anything.ckpt", preset="vidtok_tny")


def test_a_folder_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="has no model.safetensors; it was not written by"):
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
