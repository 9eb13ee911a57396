"""TrackioLogger: Hugging Face's trackio as a logger of Lightning, which has none of its own."""

from argparse import Namespace
from collections.abc import Mapping
from typing import Any

import numpy as np
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only


class TrackioLogger(Logger):
    """Logs to a run of trackio, which goes on if there is one of this name in the project.

    trackio's environment variables say where: `TRACKIO_DIR`, or a Space on the hub.

    Raises:
        ModuleNotFoundError: trackio is not installed, when it is first used.
    """

    def __init__(self, project: str, run_name: str) -> None:
        super().__init__()
        self._project, self._run_name = project, run_name
        self._params: dict[str, Any] = {}
        self._run: Any = None

    @property
    def name(self) -> str:
        return self._project

    @property
    def version(self) -> str:
        return self._run_name

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The run of trackio, started at the first use."""
        if self._run is None:
            import trackio

            self._run = trackio.init(
                project=self._project, name=self._run_name, config=self._params, resume="allow", embed=False
            )
        return self._run

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *_: Any, **__: Any) -> None:
        """Before anything else is logged: trackio takes a run's config at its start."""
        self._params = dict(vars(params) if isinstance(params, Namespace) else params)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.experiment.log(dict(metrics), step=step)

    @rank_zero_only
    def log_picture(self, name: str, picture: np.ndarray, step: int) -> None:
        """Logs a picture, uint8 (h, w, 3)."""
        import trackio

        self.experiment.log({name: trackio.Image(picture)}, step=step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Ends the run; what is logged later goes on in it."""
        if self._run is not None:
            import trackio

            trackio.finish()
            self._run = None
