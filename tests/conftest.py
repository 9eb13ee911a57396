"""Settings of all tests: one thread, fixed seeds, and no GPU tests where there is no GPU."""

import signal
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

# Scripts that change their whole process: importing the first makes a pretended GPU the default device.
collect_ignore = ["apple_gpu.py", "windows.py"]

torch.set_num_threads(1)
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True, scope="session")
def cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache folder of their own, also of the processes that they start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VIDTOK_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def default_signals() -> Iterator[None]:
    """Python's handlers of SIGINT and SIGTERM; a shell script starts background processes with SIGINT ignored."""
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)
    terminate = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGTERM, terminate)


@pytest.fixture
def narrow_discriminators(monkeypatch: pytest.MonkeyPatch) -> None:
    """Discriminators of few channels, for the toy runs of a test."""
    from training_runs import NARROW_WIDTHS

    from vidtok_plugin.tokenizer.objective import discriminators

    monkeypatch.setattr(discriminators, "WIDTHS", NARROW_WIDTHS)
