"""The progress bar of a training ends at the batches that it trains, also where it was resumed within an epoch."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from training_runs import fit_here, make_store, settings

from vidtok_plugin import training
from vidtok_plugin.training import runs
from vidtok_plugin.training.batch_bar import BatchBar

pytestmark = pytest.mark.filterwarnings("ignore:The .*_dataloader.* does not have many workers")


class LastCount(pl.Callback):
    """What a training's bar shows after each batch."""

    def __init__(self) -> None:
        self.counts: list[tuple[float, float | None]] = []

    def on_train_end(self, trainer: pl.Trainer, *_: Any) -> None:
        (bar,) = (callback for callback in trainer.callbacks if isinstance(callback, BatchBar))  # type: ignore[attr-defined]
        assert bar.progress is not None and bar.train_progress_bar_id is not None
        (task,) = (task for task in bar.progress.tasks if task.id == bar.train_progress_bar_id)
        self.counts.append((task.completed, task.total))


@pytest.mark.slow
def test_the_bar_ends_at_its_total(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, last = make_store(tmp_path / "tokens"), LastCount()
    shown = ("trainer.enable_progress_bar=true", "checkpoint_every=1")
    for steps in (2, 3):  # of the five batches of an epoch
        fit_here(
            "world_model", settings("world_model", store, tmp_path / "run", *shown, f"trainer.max_steps={steps}"), last
        )
    assert last.counts == [(2, 2), (3, 3)]
    out, err = capsys.readouterr()
    assert "3/3" in err and "3/3" not in out


@pytest.mark.parametrize(
    ("terminal", "config", "progress", "bars"),
    [
        (True, [], True, 1),
        (False, [], True, 0),
        (True, [], False, 0),
        (True, ["trainer.enable_progress_bar=false"], True, 0),
        (False, ["trainer.enable_progress_bar=true"], True, 1),
    ],
)
def test_a_bar_needs_a_terminal_or_a_request(
    terminal: bool, config: list[str], progress: bool, bars: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from training_runs import configure

    monkeypatch.setattr(runs, "shows_progress", lambda: terminal)
    overrides = [text for text in settings("world_model", tmp_path, tmp_path) if "progress_bar" not in text]
    trainer = training.build_trainer(configure("world_model", [*overrides, *config]), progress=progress)
    assert sum(isinstance(callback, pl.callbacks.ProgressBar) for callback in trainer.callbacks) == bars  # type: ignore[attr-defined]
