"""`--explain` says what a run then does, for every state of a stage and every combination of options."""

from __future__ import annotations

import shutil

import pytest

from nbutils.core.errors import UserError
from nbutils.core.run.checkpoints import Checkpoint
from nbutils.core.run.decide import Action
from tests.pipeline.conftest import ALL, Pipeline

NEW_RATE = "learning_rate=0.5"
STATES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("absent", "done", "done long", "paused", "interrupted", "interrupted with checkpoints"), ()),
    **dict.fromkeys(("no first", "stale paused code"), ()),
    **dict.fromkeys(("stale", "stale long", "stale paused"), (NEW_RATE,)),
    "first stale, second long": ("words=4",),
    "first stale, stale long": ("words=4", NEW_RATE),
}
"""States of the second stage and the parameters that they need."""
OPTIONS: tuple[dict, ...] = (
    *({}, {"accept": True}, {"force": True}, {"allow_paused": True}),
    *({"only": "second"}, {"only": "second", "accept": True}, {"only": "second", "force": True}),
    *({"only": "second", "allow_paused": True}, {"only": "third"}, {"only": "third", "force": True}),
    *({"start": "second"}, {"start": "second", "accept": True}, {"start": "second", "force": True}),
    *({"start": "first"}, {"start": "first", "accept": True}),
)
EXECUTED = {"run", "run again", "set aside and run", "resume", "keep and resume"}
KEPT = {"keep", "keep and resume"}


def bring_about(state: str, pipeline: Pipeline) -> None:
    """Makes the run folder stand so."""
    second = pipeline.run / "second"
    if "long" in state:
        pipeline.record("second", work_seconds=3600)
    if "paused" in state or "interrupted" in state:
        shutil.rmtree(second / "final")
        status = "paused" if "paused" in state else "running"
        facts = {"step": 2, "fraction": 2 / 3} if status == "paused" else {}
        pipeline.record("second", status=status, facts=facts, outputs={})
        if state != "interrupted":
            checkpoint = Checkpoint.at(second / "checkpoints", 2)
            checkpoint.partial.mkdir(parents=True)
            (checkpoint.partial / "model.txt").write_text("model after 2")
            checkpoint.seal({}, {})
    if "code" in state:
        pipeline.edit("02_second.ipynb", "steps'", "optimizer steps'")
    if gone := {"absent": "second", "no first": "first"}.get(state):
        shutil.rmtree(pipeline.run / gone)


@pytest.mark.parametrize("state", STATES)
def test_what_is_explained_is_what_happens(done, tmp_path, state):
    compared, parameters = 0, STATES[state]
    bring_about(state, done)
    before = done.run.rename(tmp_path / "before")
    for options in OPTIONS:
        shutil.copytree(before, done.run)
        explained = {name: line.partition(" (")[0] for name, line in done.explained(*parameters, **options).items()}
        case = f"{state}, {options}: {explained}"
        refused = ""
        try:
            done.go(*parameters, **options)
        except UserError as error:
            refused = str(error)
        stops = {Action.ASK, Action.REFUSE} & set(explained.values())
        unsure = "look again" in explained.values()
        assert unsure or bool(stops) == bool(refused), f"{case}: {refused}"
        assert not stops or ("--accept to keep it" in refused) == (Action.ASK in stops), f"{case}: {refused}"
        for name, action in explained.items():
            if unsure and ALL.index(name) >= list(explained.values()).index("look again"):
                break
            compared += 1
            assert (name in done.executed) == (action in EXECUTED), f"{case}: {done.executed}"
            assert len(done.aside(name)) == (action == "set aside and run"), case
            checkpoint = Checkpoint.at(done.run / name / "checkpoints", 2).path
            if action in ("resume", "keep and resume", Action.LEAVE) and state != "interrupted":
                assert checkpoint.is_dir(), case
            elif action in ("run again", "set aside and run"):
                assert not checkpoint.exists(), case
            if action in KEPT:
                assert done.record(name)["accepted"], case
        shutil.rmtree(done.run)
    assert compared >= len(OPTIONS)
