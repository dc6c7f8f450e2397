"""What a sweep found: the verdict over the candidates that are whole, what training cost, and the winner's profile."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

import pandas as pd
from IPython.display import Image

from nbutils.core.charts import save
from nbutils.core.errors import UserError
from nbutils.core.files import Json, write_json, write_text, writing
from nbutils.core.run.record import SCHEMA
from nbutils.core.text import counted, first_line, markdown_table
from nbutils.sweep import display
from nbutils.sweep.guard import in_words, losses
from nbutils.sweep.settings import TAKEN, Sweep, TrialPlan, write_profile
from nbutils.sweep.verdict import Candidate, Verdict, judge

VERDICT, FIGURES, FIGURE = "verdict.json", "figures", "losses"
"""In the sweep's folder, the last in that of figures."""
LEADING = 3
"""Candidates that the guard looks at."""


@dataclass(frozen=True)
class Answer:
    """What is known so far; by a trial's label `failed` has why it did, and `lost` what the guard has measured."""

    sweep: Sweep
    verdict: Verdict
    failed: Mapping[str, str]
    left: int
    lost: Mapping[str, list[Json]] = field(default_factory=dict)

    @property
    def sentences(self) -> list[str]:
        """The answer in words."""
        found = [self.verdict.sentence]
        for label, rows in self.lost.items():
            found.append(f"Against its base, {label}: {'; '.join(map(in_words, rows)) or 'nothing was scored'}.")
        found += [f"Failed: {label}. {sentence}" for label, sentence in self.failed.items()]
        if self.left:
            words = counted(len(self.sweep.trials), "trial")
            found.append(f"{self.left} of {words} left: run the same again to go on.")
        return found

    def table(self) -> pd.DataFrame:
        """A row of text for each recipe that is whole, from the best on."""
        return display.table(self.verdict)

    def figure(self) -> Image | None:
        """Draws and keeps the losses; None where no recipe is whole."""
        if not self.verdict.rows:
            return None
        return save(lambda theme: display.figure(self.verdict, theme), self.sweep.out / FIGURES, FIGURE)

    def write(self) -> None:
        """Writes verdict, figure and report into the sweep's folder. UserError where the disk is full."""
        parts = [f"# Sweep of {', '.join(self.sweep.trials[0].values)}", *self.sentences]
        with writing(self.sweep.out):
            if self.figure():
                table = self.table()
                parts[2:2] = [markdown_table([*table], table.to_numpy()), f"![Losses]({FIGURES}/{FIGURE}.png)"]
            facts = {"verdict": asdict(self.verdict), "failed": self.failed, "left": self.left, "lost": self.lost}
            write_json(self.sweep.out / VERDICT, {"schema": SCHEMA, **facts})
            write_text(self.sweep.out / "sweep.md", "\n\n".join(parts) + "\n")

    def take(self) -> None:
        """Writes the best values, with those that all trials share, as a profile, where one is asked for."""
        file = self.sweep.take
        if file and self.verdict.best and not self.left:
            write_profile(file, self.sweep.common | self.verdict.best, f"{TAKEN}{self.verdict.sentence}")

    def guarded(self, say: Callable[[str], None]) -> Answer:
        """The same, with what training has cost the leading recipes, as far as it can be scored."""
        lost: dict[str, list[Json]] = {}
        try:
            for row in self.verdict.rows[:LEADING]:
                trial = next(trial for trial in self.sweep.trials if trial.values == row.values)
                if row.loss is not None:
                    lost[trial.label] = losses(trial.plan, self.sweep.guard, say)
        except (UserError, KeyboardInterrupt) as error:  # all else is known, and what is scored is kept
            say(f"The guard has ended: {first_line(error)}.")
        return replace(self, lost=lost)


def answer(sweep: Sweep, failed: Mapping[str, str]) -> Answer:
    """The answer over the candidates whose trials are all done."""
    done = {trial.label for trial in sweep.trials if trial.state.fits}
    whole = [trials for trials in sweep.candidates if done.issuperset(trial.label for trial in trials)]
    verdict = Verdict({}, [], "There is no verdict before two recipes are whole.")
    if len(whole) > 1:
        try:
            verdict = judge([_measured(trials) for trials in whole])
        except UserError as error:  # the trials that are left run all the same
            verdict = replace(verdict, sentence=str(error))
    return Answer(sweep, verdict, failed, len(sweep.trials) - len(done) - len(failed))


def _measured(trials: Sequence[TrialPlan]) -> Candidate:
    tables = {each.seed: pd.read_parquet(each.run.heldout).set_index(["source", "index"]) for each in trials}
    return Candidate(trials[0].values, tables)
