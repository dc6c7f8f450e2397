"""Parameters of notebook 03."""

from __future__ import annotations

from nbutils.core.files import Json, local_hashes, resolve
from nbutils.core.run.layout import Run
from nbutils.core.settings import OUTSIDE, Settings


class MetricsSettings(Settings):
    """Parameters of the metrics stage; explained in the notebook's `parameters` cell."""

    compare_runs: list[str]

    @property
    def compared(self) -> list[str]:
        """The folders of the runs to compare, this run first; empty where no other is named."""
        return [self.run_dir, *self.compare_runs] if self.compare_runs else []

    def result_parameters(self) -> Json:
        """The result parameters, and the logs of the compared runs: their curves are part of what comes out."""
        logs = [Run(resolve(run)).training / "metrics.jsonl" for run in self.compare_runs]
        return super().result_parameters() | {OUTSIDE: local_hashes(logs)}
