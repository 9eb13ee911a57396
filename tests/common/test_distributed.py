"""Statistics over two processes, and their gradients, are those of one process that has the whole batch."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from vidtok_plugin.common.distributed import mean_over_processes, num_processes
from vidtok_plugin.tokenizer.objective.adversarial import LeCAM
from vidtok_plugin.tokenizer.regularizers import FSQ

PROCESSES = 2
LEVELS = (8, 6, 5)


def batch() -> Tensor:
    """Latents of two clips that use different codes, small enough that tokens are undecided and gradients flow."""
    z = 0.02 * torch.randn(2, 3, 2, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z[1] += 0.01
    return z


def statistics(z: Tensor) -> dict[str, Tensor]:
    """Of this process's latents; gradients as they arrive here, before DDP averages them."""
    x = z.clone().requires_grad_()
    mean = mean_over_processes(x.mean(dim=(0, 2, 3, 4)))
    (of_mean,) = torch.autograd.grad(mean.pow(3).sum(), x)
    x = z.clone().requires_grad_()
    entropy = FSQ(LEVELS)(x, sample=False, with_terms=True).terms["entropy"]
    (of_entropy,) = torch.autograd.grad(entropy, x)
    lecam = LeCAM(0.5)
    lecam.update(z.flatten(1).sum(1), z.flatten(1).prod(1))
    lecam.update(z.flatten(1).sum(1), z.flatten(1).amax(1))
    return {
        "mean": mean.detach(),
        "of_mean": of_mean,
        "entropy": entropy.detach(),
        "of_entropy": of_entropy,
        "lecam": torch.stack([lecam.real, lecam.fake]),
    }


def work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=PROCESSES
    )
    assert num_processes() == PROCESSES
    torch.save(statistics(batch()[rank : rank + 1]), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    folder = tmp_path_factory.mktemp("processes")
    # From a server that imports the package once for both.
    torch.multiprocessing.get_context("forkserver").set_forkserver_preload(["vidtok_plugin.tokenizer.objective"])
    torch.multiprocessing.start_processes(work, (folder,), nprocs=PROCESSES, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(PROCESSES)]


@pytest.fixture(scope="module")
def whole() -> dict[str, Tensor]:
    assert num_processes() == 1
    return statistics(batch())


@pytest.mark.parametrize("name", ["mean", "lecam"])
def test_reduced_statistics_are_the_whole_batch_s_in_every_process(
    name: str, parts: list[dict[str, Tensor]], whole: dict[str, Tensor]
) -> None:
    assert torch.equal(parts[0][name], parts[1][name])
    torch.testing.assert_close(parts[0][name], whole[name])


def test_the_entropy_s_mean_over_processes_is_the_whole_batch_s(
    parts: list[dict[str, Tensor]], whole: dict[str, Tensor]
) -> None:
    """Each process has its own tokens' entropy, and the batch's, which their average alone would overrate."""
    torch.testing.assert_close((parts[0]["entropy"] + parts[1]["entropy"]) / 2, whole["entropy"])
    alone = [statistics(batch()[rank : rank + 1])["entropy"] for rank in range(PROCESSES)]
    assert abs(sum(alone) / 2 - whole["entropy"]) > 1e-2


@pytest.mark.parametrize("name", ["of_mean", "of_entropy"])
def test_gradients_averaged_over_processes_are_the_whole_batch_s(
    name: str, parts: list[dict[str, Tensor]], whole: dict[str, Tensor]
) -> None:
    """DDP divides each process's share by their number."""
    averaged = torch.cat([part[name] for part in parts]) / PROCESSES
    assert whole[name].abs().max() > 1e-6
    torch.testing.assert_close(averaged, whole[name], rtol=1e-6, atol=1e-12)
