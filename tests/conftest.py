"""Settings of all tests: one thread, fixed seeds, and no GPU tests where there is no GPU."""

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def narrow_discriminators(monkeypatch: pytest.MonkeyPatch) -> None:
    """Discriminators of few channels, for the toy runs of a test."""
    from training_runs import NARROW_WIDTHS

    from vidtok_plugin.tokenizer.objective import discriminators

    monkeypatch.setattr(discriminators, "WIDTHS", NARROW_WIDTHS)
