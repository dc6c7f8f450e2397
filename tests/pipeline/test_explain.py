"""`--explain` says what a run then does, for every state of a stage and every combination of options."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from nbutils.core.errors import UserError
from nbutils.core.files import read_json, write_json
from nbutils.core.run.checkpoints import Checkpoint
from nbutils.core.run.decide import Action
from tests.pipeline.fake import STAGES as THREE
from tests.pipeline.test_run import ALL, Pipeline, edit_cell

STATES = (
    *("absent", "done", "done long", "paused", "interrupted", "interrupted with checkpoints", "no first"),
    *(
        "stale",
        "stale long",
        "stale paused",
        "stale paused code",
        "first stale, second long",
        "first stale, stale long",
    ),
)
OPTIONS: tuple[dict, ...] = (
    *({}, {"accept": True}, {"force": True}, {"allow_paused": True}),
    *({"only": "second"}, {"only": "second", "accept": True}, {"only": "second", "force": True}),
    *({"only": "second", "allow_paused": True}, {"only": "third"}, {"only": "third", "force": True}),
    *({"start": "second"}, {"start": "second", "accept": True}, {"start": "second", "force": True}),
    *({"start": "first"}, {"start": "first", "accept": True}),
)
EXECUTED = {"run", "run again", "set aside and run", "resume", "keep and resume"}
KEPT = {"keep", "keep and resume"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A finished run of the three stages, to be copied."""
    with pytest.MonkeyPatch.context() as patch:
        made = in_folder(tmp_path_factory.mktemp("finished"), patch)
        assert made.go() == ALL
    return made.folder


def in_folder(folder: Path, patch: pytest.MonkeyPatch) -> Pipeline:
    made = Pipeline(folder)
    patch.setenv("NBUTILS_NOTEBOOKS", str(made.notebooks))
    patch.setattr("nbutils.core.stages.STAGES", THREE)
    patch.setenv("NBUTILS_PIPELINE", "tests")
    return made


def bring_about(state: str, pipeline: Pipeline) -> list[str]:
    """Makes the run folder stand so; the parameters that the state needs."""
    second = pipeline.run / "second"
    record = second / "stage.json"
    if "long" in state:
        pipeline.long("second")
    if "paused" in state or "interrupted" in state:
        shutil.rmtree(second / "final")
        status = "paused" if "paused" in state else "running"
        facts = {"step": 2, "fraction": 2 / 3} if status == "paused" else {}
        write_json(record, read_json(record) | {"status": status, "facts": facts, "outputs": {}})
        if state != "interrupted":
            checkpoint = Checkpoint.at(second / "checkpoints", 2)
            checkpoint.partial.mkdir(parents=True)
            (checkpoint.partial / "model.txt").write_text("model after 2")
            checkpoint.seal({}, {})
    if "code" in state:
        edit_cell(pipeline.notebooks / "02_second.ipynb", "steps'", "optimizer steps'")
    elif state.startswith("stale"):
        return ["learning_rate=0.5"]
    for name in {"absent": ["second"], "no first": ["first"]}.get(state, []):
        shutil.rmtree(pipeline.run / name)
    wanted = {"first stale, second long": ["words=4"], "first stale, stale long": ["words=4", "learning_rate=0.5"]}
    return wanted.get(state, [])


@pytest.mark.parametrize("state", STATES)
def test_what_is_explained_is_what_happens(finished, tmp_path, monkeypatch, state):
    compared = 0
    for number, options in enumerate(OPTIONS):
        folder = tmp_path / str(number)
        shutil.copytree(finished / "run", folder / "run")
        pipeline = in_folder(folder, monkeypatch)
        parameters = bring_about(state, pipeline)
        explained = {name: line.partition(" (")[0] for name, line in pipeline.explained(*parameters, **options).items()}
        case = f"{state}, {options}: {explained}"
        executed, refused = [], ""
        try:
            executed = pipeline.go(*parameters, **options)
        except UserError as error:
            refused = str(error)
            executed = pipeline.executed
        stops = {Action.ASK, Action.REFUSE} & set(explained.values())
        unsure = "look again" in explained.values()
        assert unsure or bool(stops) == bool(refused), f"{case}: {refused}"
        assert not stops or ("--accept to keep it" in refused) == (Action.ASK in stops), f"{case}: {refused}"
        for name, action in explained.items():
            if unsure and ALL.index(name) >= list(explained.values()).index("look again"):
                break
            compared += 1
            assert (name in executed) == (action in EXECUTED), f"{case}: {executed}"
            assert len(list(pipeline.run.glob(f"{name}-20*"))) == (action == "set aside and run"), case
            checkpoint = Checkpoint.at(pipeline.run / name / "checkpoints", 2).path
            if action in ("resume", "keep and resume", Action.LEAVE) and state != "interrupted":
                assert checkpoint.is_dir(), case
            elif action in ("run again", "set aside and run"):
                assert not checkpoint.exists(), case
            if action in KEPT:
                assert read_json(pipeline.run / name / "stage.json")["accepted"], case
    assert compared >= len(OPTIONS)
