"""LPIPS: published values, gradients, and weights from their standard locations."""

import copy
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from metric_networks import golden_lpips
from places import GOLDEN_FILES
from safetensors.torch import load_file
from torch import Tensor

from vidtok_plugin.metrics.lpips import LPIPS, _unit
from vidtok_plugin.metrics.lpips_weights import load_lpips, read_heads

GOLDEN = GOLDEN_FILES / "training.safetensors"
SLICES = {1: (0, 2), 2: (5, 7), 3: (10, 12, 14), 4: (17, 19, 21), 5: (24, 26, 28)}


def frames(seed: int, size: int = 64) -> Tensor:
    noise = np.random.RandomState(seed).standard_normal((2, 3, size, size))
    return torch.from_numpy(noise.astype(np.float32)).clamp(-1, 1)


def test_lpips_equals_the_published_one() -> None:
    distance = golden_lpips()(frames(5), frames(6))
    torch.testing.assert_close(distance, load_file(GOLDEN)["lpips"].flatten(), rtol=2e-5, atol=0.0)


def test_the_distance_is_symmetric_and_zero_for_equal_frames() -> None:
    lpips, a, b = golden_lpips(), frames(5, 16), frames(6, 16)
    assert lpips(a, a).tolist() == [0.0, 0.0]
    torch.testing.assert_close(lpips(a, b), lpips(b, a))
    torch.testing.assert_close(lpips(a, b)[1:], lpips(a[1:], b[1:]))


def test_parameters_have_the_names_of_published_checkpoints() -> None:
    trunk = {f"net.slice{s}.{n}.{p}" for s, places in SLICES.items() for n in places for p in ("weight", "bias")}
    with torch.device("meta"):
        assert set(LPIPS().state_dict()) == trunk | {f"lin{index}.model.1.weight" for index in range(5)}


def test_gradients_equal_finite_differences() -> None:
    lpips = copy.deepcopy(golden_lpips()).double()
    a, b = frames(5, 16).double().requires_grad_(), frames(6, 16).double().requires_grad_()
    direction = torch.randn_like(a)
    for x in (a, b):
        (gradient,) = torch.autograd.grad(lpips(a, b).sum(), x)
        step = 1e-8 * direction
        values = [lpips(a + k * step if x is a else a, b + k * step if x is b else b).sum() for k in (-1, 1)]
        expected = (values[1] - values[0]) / 2e-8
        torch.testing.assert_close((gradient * direction).sum(), expected, rtol=1e-5, atol=1e-9)


def test_zero_features_have_a_finite_gradient() -> None:
    """The square root in the norm has an infinite gradient at 0, and infinity times 0 is NaN."""
    x = torch.zeros(1, 4, 2, 2, requires_grad=True)
    unit = _unit(x)
    unit.square().sum().backward()
    assert x.grad is not None and unit.abs().max() == 0
    assert x.grad.isfinite().all()


def test_lpips_is_frozen_and_training_mode_has_no_effect() -> None:
    lpips, a, b = copy.deepcopy(golden_lpips()), frames(5, 16), frames(6, 16)
    assert not any(parameter.requires_grad for parameter in lpips.parameters())
    assert torch.equal(lpips.train()(a, b), golden_lpips().eval()(a, b))


def test_features_are_compared_in_float32_under_autocast() -> None:
    lpips, a, b = golden_lpips(), frames(5, 32), frames(6, 32)
    with torch.autocast("cpu", torch.bfloat16):
        distance = lpips(a, b)
    assert distance.dtype == torch.float32
    torch.testing.assert_close(distance, lpips(a, b), rtol=0.02, atol=0.0)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((3, 16, 16), (3, 16, 16)), r"\(n, 3, h, w\)"),
        (((1, 3, 16, 16), (1, 3, 16, 32)), r"\(n, 3, h, w\), got \(1, 3, 16, 16\) and \(1, 3, 16, 32\)"),
        (((1, 3, 8, 16), (1, 3, 8, 16)), r"at least 16, got \(8, 16\)"),
    ],
)
def test_invalid_frames_are_an_error(shapes: tuple[tuple[int, ...], ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        golden_lpips()(*(torch.zeros(shape) for shape in shapes))


# Weights


def torchvision_checkpoint() -> dict[str, Tensor]:
    """The golden trunk by torchvision's names, with a classifier, which LPIPS does not use."""
    trunk = {name: value for name, value in golden_lpips().state_dict().items() if name.startswith("net.")}
    by_place = {"features." + name.split(".", 2)[2]: value for name, value in trunk.items()}
    return {**by_place, "classifier.0.weight": torch.zeros(2, 2)}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The checkpoint folder of an empty torch hub, without network access."""

    def download(*_: Any, **__: Any) -> None:
        raise URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", download)
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def test_vgg16_is_found_where_torchvision_caches_it(hub: Path) -> None:
    torch.save(torchvision_checkpoint(), hub / "vgg16-397923af.pth")
    lpips = load_lpips()
    expected = golden_lpips().state_dict() | read_heads()
    assert all(torch.equal(value, expected[name]) for name, value in lpips.state_dict().items())
    assert not torch.equal(lpips(frames(5, 16), frames(6, 16)), golden_lpips()(frames(5, 16), frames(6, 16)))


def test_the_heads_are_those_of_lpips_version_0_1() -> None:
    """The file that VidTok was trained with. Weights are not negative, else LPIPS would not be a distance."""
    heads = read_heads()
    widths = [heads[f"lin{index}.model.1.weight"].shape[1] for index in range(5)]
    assert widths == [64, 128, 256, 512, 512]
    assert all(head.min() >= 0 and head.max() > 0 for head in heads.values())


def test_a_missing_vgg16_is_downloaded_into_the_hub(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def download(url: str, **settings: Any) -> None:
        asked.append((url, settings["check_hash"], settings["weights_only"]))
        torch.save(torchvision_checkpoint(), hub / "vgg16-397923af.pth")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", download)
    assert torch.equal(load_lpips().net["slice1"][0].weight, golden_lpips().net["slice1"][0].weight)
    assert asked == [("https://download.pytorch.org/models/vgg16-397923af.pth", True, True)]


def test_missing_weights_are_an_error_that_says_where_to_fetch_them(hub: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no network.*fetch https://download\.pytorch.*save it as") as error:
        load_lpips()
    assert str(hub / "vgg16-397923af.pth") in str(error.value)
    with pytest.raises(FileNotFoundError, match="there is no file nowhere.pth; fetch https"):
        load_lpips("nowhere.pth")


def test_a_published_vidtok_checkpoint_contains_all_of_lpips(tmp_path: Path) -> None:
    inside = {f"loss.perceptual_loss.{name}": value for name, value in golden_lpips().state_dict().items()}
    inside["loss.perceptual_loss.scaling_layer.shift"] = torch.zeros(1, 3, 1, 1)
    inside["encoder.conv_in.conv.weight"] = torch.zeros(1)
    torch.save({"state_dict": inside, "config": Path("config.yaml")}, tmp_path / "vidtok.ckpt")
    lpips = load_lpips(tmp_path / "vidtok.ckpt")
    assert torch.equal(lpips(frames(5, 16), frames(6, 16)), golden_lpips()(frames(5, 16), frames(6, 16)))


def test_other_or_damaged_files_are_errors(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"encoder.weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"must be torchvision's VGG16 .* or a published VidTok checkpoint"):
        load_lpips(path)
    torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, path)
    with pytest.raises(
        ValueError, match=r"must contain all of VGG16's convolutions, but net\.slice1\.0\.bias is missing"
    ):
        load_lpips(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"weights\.pth is not a complete checkpoint.*; fetch it again"):
        load_lpips(path)
