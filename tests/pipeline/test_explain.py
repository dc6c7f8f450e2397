"""`--explain` says what a run then does, for every state of a stage and every combination of options."""

import shutil

import pytest

from nbutils.core.errors import UserError
from nbutils.core.run.decide import Action
from tests.train.runs import checkpoint

NEW_RATE = "learning_rate=0.5"
STATES = (
    "absent", "no first", "done", "done long", "paused", "interrupted", "interrupted with checkpoints",
    "stale", "stale long", "stale paused", "other code, paused", "other words, long", "other words, stale long",
)  # fmt: skip
"""States of the second stage; `other words` are of the first, which is stale with them."""
WHICH = ({}, {"only": "second"}, {"only": "third"}, {"start": "second"})
WORDS = ({}, {"accept": True}, {"force": True}, {"allow_paused": True})
OPTIONS = [which | word for which in WHICH for word in WORDS]
EXECUTED = {"run", "run again", "set aside and run", "resume", "keep and resume"}
KEPT = {"keep", "keep and resume"}


def bring_about(state, pipeline):
    """Makes the run folder stand so."""
    second = pipeline.run / "second"
    if "long" in state:
        pipeline.record("second", work_seconds=3600)
    if "paused" in state or "interrupted" in state:
        shutil.rmtree(second / "final")
        status = "paused" if "paused" in state else "running"
        pipeline.record("second", status=status, facts={"step": 2, "fraction": 0.5}, outputs={})
        if state != "interrupted":
            checkpoint(second / "checkpoints", 2)
    if "code" in state:
        pipeline.edit("02_second.ipynb", "steps'", "optimizer steps'")
    if gone := {"absent": "second", "no first": "first"}.get(state):
        shutil.rmtree(pipeline.run / gone)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("state", STATES)
def test_what_is_explained_is_what_happens(done, state, options):
    parameters = ["words=4"] * ("other words" in state) + [NEW_RATE] * ("stale" in state)
    bring_about(state, done)
    explained = {name: line.partition(" (")[0] for name, line in done.explained(*parameters, **options).items()}
    refused = ""
    try:
        done.go(*parameters, **options)
    except UserError as error:
        refused = str(error)
    stops = {Action.ASK, Action.REFUSE} & set(explained.values())
    assert "look again" in explained.values() or bool(stops) == bool(refused), explained
    assert not stops or ("--accept to keep it" in refused) == (Action.ASK in stops), refused
    for name, action in explained.items():
        if action == "look again":  # it depends on what an earlier stage makes; so do those behind it
            break
        assert (name in done.executed) == (action in EXECUTED), explained
        assert len(done.aside(name)) == (action == "set aside and run")
        saved = (done.run / name / "checkpoints" / "step-000002").is_dir()
        if action in ("resume", "keep and resume", Action.LEAVE) and state != "interrupted":
            assert saved
        elif action in ("run again", "set aside and run"):
            assert not saved
        if action in KEPT:
            assert done.record(name)["accepted"]
