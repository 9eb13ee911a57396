"""PerceptualLoss: values and gradients of plain LPIPS, in less memory, with weights neither trained nor saved."""

import copy
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from metric_networks import golden_lpips
from torch import Tensor

from vidtok_plugin.tokenizer.objective import Objective, ObjectiveConfig
from vidtok_plugin.tokenizer.objective.perceptual import PerceptualLoss
from vidtok_plugin.tokenizer.reconstruction.memory import LiveBytes


def frames(count: int, size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.rand(2, count, 3, size, size, generator=generator) * 2 - 1
    return a, b.requires_grad_()


@pytest.mark.parametrize("chunk", [1, 2, 99])
def test_values_and_gradients_equal_plain_lpips(chunk: int) -> None:
    a, b = frames(3, 16)
    weights = torch.tensor([1.0, -2.0, 3.0])
    plain = golden_lpips()(a, b)
    (expected,) = torch.autograd.grad((plain * weights).sum(), b)
    ours = PerceptualLoss(lpips=golden_lpips())(a, b, chunk_pixels=chunk * 16 * 16)
    (first,) = torch.autograd.grad((ours * weights).sum(), b, retain_graph=True)  # as for the adaptive weight
    (again,) = torch.autograd.grad((ours * weights).sum(), b)
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(first, expected, rtol=1e-4, atol=1e-7)
    assert torch.equal(first, again) and expected.abs().max() > 1e-5


def test_memory_is_that_of_one_chunk_and_no_activation_is_kept() -> None:
    a, b = frames(8, 32)
    loss, known = PerceptualLoss(lpips=golden_lpips()), [a, b, *golden_lpips().parameters()]

    def count(frames: int) -> LiveBytes:
        with LiveBytes(known) as live:
            loss(a[:frames], b[:frames], chunk_pixels=32 * 32)
        return live

    one, eight = count(1), count(8)
    assert eight.peak < 1.3 * one.peak
    with LiveBytes(known) as live:
        distances = loss(a, b, chunk_pixels=32 * 32)
        kept = live.live
    assert distances.requires_grad
    assert kept == 4 * (b.numel() + len(b))  # gradients and distances, no frames or activations
    with LiveBytes(known) as live:
        distances = golden_lpips()(a, b)
        assert live.live > 100 * kept


def test_no_gradient_is_computed_unless_needed() -> None:
    a, b = frames(2, 16)
    loss = PerceptualLoss(lpips=golden_lpips())
    with torch.no_grad():
        assert not loss(a, b).requires_grad
    assert not loss(a, b.detach()).requires_grad
    torch.testing.assert_close(loss(a, b.detach()), loss(a, b).detach())


def test_float16_gradients_equal_exact_ones_within_rounding() -> None:
    """Without scaling, gradients spread over the pixels of large frames would underflow."""
    a, b = frames(1, 32)
    lpips = copy.deepcopy(golden_lpips())
    for index in range(5):
        lpips.get_parameter(f"lin{index}.model.1.weight").div_(64)  # as for 64 times as many pixels
    loss = PerceptualLoss(lpips=lpips)
    (exact,) = torch.autograd.grad(loss(a, b).sum(), b)
    with torch.autocast("cpu", torch.float16):
        distance = loss(a, b)
    (ours,) = torch.autograd.grad(distance.sum(), b)
    assert distance.dtype == ours.dtype == torch.float32
    cosine = torch.nn.functional.cosine_similarity(ours.flatten(), exact.flatten(), dim=0)
    assert cosine > 0.98 and (ours.norm() / exact.norm()).item() == pytest.approx(1, abs=0.05)


def test_its_weights_are_neither_trained_nor_saved_nor_copied() -> None:
    objective = Objective(ObjectiveConfig(discriminator="none"), lpips=golden_lpips())
    assert [name for name, _ in objective.named_parameters()] == list(objective.state_dict()) == ["logvar"]
    assert objective.perceptual is not None
    assert copy.deepcopy(objective).perceptual.load() is objective.perceptual.load() is golden_lpips()


def test_an_objective_can_be_built_without_the_weights(no_vgg: Path) -> None:
    with torch.device("meta"):
        objective = Objective(ObjectiveConfig())
    assert objective.logvar is not None and objective.logvar.is_meta


def test_missing_weights_are_an_error_with_the_remedies(no_vgg: Path) -> None:
    objective = Objective(ObjectiveConfig())
    with pytest.raises(FileNotFoundError, match=r"fetch https://download\.pytorch.*save it as .*hub") as error:
        objective.load()
    assert "objective.lpips_vgg=FILE" in str(error.value) and "objective.perceptual=none" in str(error.value)
    Objective(ObjectiveConfig(perceptual="none")).load()
    with pytest.raises(FileNotFoundError, match=r"there is no file nowhere\.pth.*objective\.perceptual=none"):
        Objective(ObjectiveConfig(lpips_vgg=Path("nowhere.pth"))).load()


def test_weights_load_from_the_given_file(tmp_path: Path) -> None:
    inside = {f"loss.perceptual_loss.{name}": value for name, value in golden_lpips().state_dict().items()}
    torch.save({"state_dict": inside}, tmp_path / "vidtok.ckpt")
    objective = Objective(ObjectiveConfig(discriminator="none", lpips_vgg=tmp_path / "vidtok.ckpt"))
    objective.load()
    a, b = frames(1, 16)
    assert objective.perceptual is not None
    torch.testing.assert_close(objective.perceptual(a, b), golden_lpips()(a, b))


@pytest.fixture
def no_vgg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty torch hub and no network."""

    def download(*_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", download)
    return tmp_path
