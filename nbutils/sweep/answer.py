"""What a sweep found: the verdict over the candidates that are whole, what training cost, and the winner's profile."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace

import pandas as pd
from IPython.display import Image

from nbutils.core.charts import save
from nbutils.core.errors import UserError
from nbutils.core.files import Json, shown, write_json, write_text
from nbutils.core.run.layout import Run
from nbutils.core.run.record import SCHEMA
from nbutils.core.text import counted, first_line, markdown_table
from nbutils.sweep import display
from nbutils.sweep.guard import in_words, losses
from nbutils.sweep.plan import TAKEN, Sweep, write_profile
from nbutils.sweep.verdict import Trial, Verdict, judge

VERDICT, REPORT, FIGURES, FIGURE = "verdict.json", "sweep.md", "figures", "losses"
"""In the sweep's folder, the last in that of figures."""
LEADING = 3
"""Candidates that the guard looks at."""


def heldout(run: Run) -> pd.DataFrame:
    """What a finished trial loses on each held-out conversation: `loss_sum` (nats) and `tokens` by (source, index).

    UserError where nothing was held out.
    """
    if not run.heldout.is_file():
        raise UserError(f"{shown(run.path)} has no {run.heldout.name}: hold conversations out with eval_fraction.")
    return pd.read_parquet(run.heldout).set_index(["source", "index"])


@dataclass(frozen=True)
class Answer:
    """What is known so far. `failed` has a sentence by trial, `lost` the guard's rows by trial; both by its label.

    `why` says why there is no verdict.
    """

    sweep: Sweep
    verdict: Verdict | None
    why: str
    failed: Mapping[str, str]
    left: int
    lost: Mapping[str, list[Json]]

    @property
    def sentences(self) -> list[str]:
        """The answer in words."""
        found = [self.verdict.sentence if self.verdict else self.why]
        for label, rows in self.lost.items():
            found.append(f"Against its base, {label}: {'; '.join(map(in_words, rows)) or 'nothing was scored'}.")
        found += [f"Failed: {label}. {sentence}" for label, sentence in self.failed.items()]
        if self.left:
            words = counted(len(self.sweep.trials), "trial")
            found.append(f"{self.left} of {words} left: run the same again to go on.")
        return found

    def table(self) -> pd.DataFrame:
        """A row of text for each recipe that is whole, from the best on; empty where there is no verdict."""
        return display.table(self.verdict) if self.verdict else pd.DataFrame()

    def figure(self) -> Image | None:
        """Draws and keeps the losses; None where there is no verdict."""
        verdict = self.verdict
        if verdict is None:
            return None
        return save(lambda theme: display.figure(verdict, theme), self.sweep.out / FIGURES, FIGURE)

    def write(self) -> None:
        """Writes verdict, figure and report into the sweep's folder."""
        found = asdict(self.verdict) if self.verdict else None
        facts = {"verdict": found, "failed": dict(self.failed), "left": self.left, "lost": dict(self.lost)}
        write_json(self.sweep.out / VERDICT, {"schema": SCHEMA, **facts})
        parts = [f"# Sweep of {', '.join(self.sweep.swept)}", *self.sentences]
        if self.figure():
            table = self.table()
            parts[2:2] = [markdown_table([*table], table.to_numpy()), f"![Losses]({FIGURES}/{FIGURE}.png)"]
        write_text(self.sweep.out / REPORT, "\n\n".join(parts) + "\n")

    def take(self) -> None:
        """Writes the best values, with those that all trials share, as a profile, where one is asked for."""
        file = self.sweep.take
        if file and self.verdict and not self.left and self.verdict.best:
            write_profile(file, self.sweep.common | self.verdict.best, f"{TAKEN}{self.verdict.sentence}")

    def guarded(self, say: Callable[[str], None]) -> Answer:
        """The same, with what training has cost the leading recipes, as far as it can be scored."""
        lost: dict[str, list[Json]] = {}
        whole = [row.values for row in self.verdict.rows if row.loss is not None] if self.verdict else []
        try:
            for values in whole[:LEADING]:
                leading = next(trial for trial in self.sweep.trials if trial.values == values)
                lost[leading.label] = losses(leading.plan, self.sweep.guard, say)
        except (UserError, KeyboardInterrupt) as error:  # all else is known, and what is scored is kept
            say(f"The guard has ended: {first_line(error)}.")
        return replace(self, lost=lost)


def answer(sweep: Sweep, failed: Mapping[str, str]) -> Answer:
    """The answer over the candidates whose trials are all done."""
    done = {trial.name for trial in sweep.trials if trial.training.fits}
    whole = [trials for trials in sweep.candidates if all(trial.name in done for trial in trials)]
    verdict, why = None, "There is no verdict before two recipes are whole."
    if len(whole) > 1:
        try:
            verdict = judge([Trial(each.values, each.seed, heldout(each.run)) for trials in whole for each in trials])
        except UserError as error:  # the trials that are left run all the same
            why = str(error)
    sentences = {trial.label: failed[trial.name] for trial in sweep.trials if trial.name in failed}
    return Answer(sweep, verdict, why, sentences, len(sweep.trials) - len(done) - len(failed), {})
