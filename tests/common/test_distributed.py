"""Statistics over two processes and their gradients equal those of one process with the whole batch."""

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
    """Latents of two clips with different codes, small enough that assignments are soft and gradients flow."""
    z = 0.02 * torch.randn(2, 3, 2, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z[1] += 0.01
    return z


def statistics(z: Tensor) -> dict[str, Tensor]:
    """Statistics of this process's latents, with gradients as they are before DDP averages them."""
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
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    folder = tmp_path_factory.mktemp("processes")
    # A fork server imports the package once for both.
    torch.multiprocessing.get_context("forkserver").set_forkserver_preload(["vidtok_plugin.tokenizer.objective"])
    torch.multiprocessing.start_processes(work, (folder,), nprocs=PROCESSES, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(PROCESSES)]


@pytest.fixture(scope="module")
def whole() -> dict[str, Tensor]:
    assert num_processes() == 1
    return statistics(batch())


@pytest.mark.parametrize("name", ["mean", "lecam"])
def test_statistics_equal_those_of_the_whole_batch_in_every_process(
    name: str, results: list[dict[str, Tensor]], whole: dict[str, Tensor]
) -> None:
    assert torch.equal(results[0][name], results[1][name])
    torch.testing.assert_close(results[0][name], whole[name])


def test_the_mean_entropy_over_processes_equals_that_of_the_whole_batch(
    results: list[dict[str, Tensor]], whole: dict[str, Tensor]
) -> None:
    """The codebook entropy is computed over all processes; the mean of per-process values would differ."""
    torch.testing.assert_close((results[0]["entropy"] + results[1]["entropy"]) / 2, whole["entropy"])
    alone = [statistics(batch()[rank : rank + 1])["entropy"] for rank in range(PROCESSES)]
    assert abs(sum(alone) / 2 - whole["entropy"]) > 1e-2


@pytest.mark.parametrize("name", ["of_mean", "of_entropy"])
def test_gradients_averaged_over_processes_equal_those_of_the_whole_batch(
    name: str, results: list[dict[str, Tensor]], whole: dict[str, Tensor]
) -> None:
    """DDP averages gradients over processes."""
    averaged = torch.cat([result[name] for result in results]) / PROCESSES
    assert whole[name].abs().max() > 1e-6
    torch.testing.assert_close(averaged, whole[name], rtol=1e-6, atol=1e-12)
