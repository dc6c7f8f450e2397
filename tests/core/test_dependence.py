"""What each real stage depends on: every parameter of its notebook, and every file that it reads from earlier ones."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from nbutils.core.errors import UserError
from nbutils.core.notebooks import notebook_path, parameters
from nbutils.core.run.key import changes, upstream_hashes
from nbutils.core.run.layout import Run
from nbutils.core.run.record import SCHEMA, outputs_of, write_record
from nbutils.core.run.state import in_short
from nbutils.core.stages import STAGES, spec

STEERING = {
    "data": {"run_dir", "seed", "data_processes"},
    "train": {
        *("run_dir", "log_steps", "checkpoint_steps", "checkpoints_kept", "processes", "budget_minutes"),
        *("pause_after_steps", "report_to", "plain_loop_steps"),
    },
    "metrics": {"run_dir"},
    "evaluate": {"run_dir", "tokens_per_batch", "processes", "cache_dir"},
    "chat": {"run_dir", "interactive", "peers"},
    "publish": {"run_dir", "private"},
}
"""By hand, not from the settings: a parameter that is marked as steering by mistake would keep stale results."""

FIELDS = [(stage.name, name) for stage in STAGES for name in stage.settings_class().model_fields]


OTHERS = (
    *(True, False, 1, 7, 1000, 0.6, [], ["de"], ["another"], {"adam_beta1": 0.5}),
    *("another", "someone/else", "mit", "linear", "sgd", "assistant", "all", "fp16", "yarn"),
)
"""Values that might stand in a parameter's place."""


@pytest.mark.parametrize("stage,name", FIELDS)
def test_a_parameter_is_in_the_key_unless_it_only_steers(stage, name, tmp_path):
    kind = spec(stage).settings_class()
    defaults = {n: p.default for n, p in parameters(notebook_path(spec(stage))).items()} | {"run_dir": str(tmp_path)}
    before, after = kind.checked(defaults), []
    for value in (value for value in OTHERS if type(value) is type(defaults[name])):
        with suppress(UserError):
            after.append(kind.checked(defaults | {name: value}))
    same = {
        settings.result_parameters() == before.result_parameters()
        for settings in after
        if getattr(settings, name) != getattr(before, name)
    }
    # One of them may come to the same (`auto` and what it stands for), but not all.
    assert same == {True} if name in STEERING[stage] else False in same


READERS = {
    "data/train/data-00000-of-00001.arrow": {"train"},
    "data/eval/data-00000-of-00001.arrow": {"train", "evaluate", "publish"},
    "data/too_long/data-00000-of-00001.arrow": {"evaluate"},
    "data/tokenizer/tokenizer.json": {"train", "evaluate"},
    "data/ledger.parquet": {"evaluate"},
    "data/summary.json": {"train", "publish"},
    "data/figures/lengths.png": {"publish"},
    "data/samples.json": set(),
    "train/metrics.jsonl": {"metrics", "publish"},
    "train/settings.json": {"metrics", "publish"},
    "train/final/model.safetensors": {"evaluate", "chat", "publish"},
    "train/base/model.safetensors": {"evaluate", "chat"},
    "train/base/source.json": {"evaluate", "chat", "publish"},
    "train/progress.jsonl": set(),
    "train/checkpoints/step-000500/model.safetensors": set(),
    "metrics/figures/loss.png": {"publish"},
    "metrics/summary.json": {"publish"},
    "evaluate/results.json": {"publish"},
    "evaluate/comparison.md": {"publish"},
    "evaluate/samples.jsonl": {"publish"},
    "evaluate/items/heldout_perplexity.parquet": {"publish"},
    "chat/transcript.json": {"publish"},
}
"""Files of a run, and the stages that read them."""


def a_run(run: Path, status: str = "done") -> Path:
    for name in READERS:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(name)
    (run / "train/checkpoints/step-000500/manifest.json").write_text("{}")
    for stage in STAGES[:-1]:
        record = {"schema": SCHEMA, "status": status if stage.name == "train" else "done", "facts": {}}
        write_record(run / stage.name / "stage.json", record | {"outputs": outputs_of(run / stage.name)})
    return run


def keys(run: Path) -> dict[str, dict[str, str]]:
    return {stage.name: upstream_hashes(stage, Run(run)) for stage in STAGES}


def stale(run: Path, name: str) -> set[str]:
    """The stages whose key changes with a file."""
    before = keys(run)
    (run / name).write_text("changed by hand")
    after = keys(run)
    return {stage for stage in after if after[stage] != before[stage]}


def test_every_file_is_in_the_key_of_the_stages_that_read_it_and_of_no_other(tmp_path):
    run = a_run(tmp_path)
    assert {name: stale(run, name) for name in READERS} == READERS


def test_the_newest_checkpoint_of_a_paused_training_is_read_too(tmp_path):
    readers = stale(a_run(tmp_path, "paused"), "train/checkpoints/step-000500/model.safetensors")
    assert readers == {"metrics", "evaluate", "chat", "publish"}


def test_a_change_is_told_by_its_name_inside_a_mapping_or_list_and_many_in_short():
    def parts(word: str, **files: str) -> dict[str, Any]:
        parameters = {"prompts": ["word", word], "files": {"one": "a"} | files}
        return {"code": "", "parameters": parameters, "modules": {}, "upstream": files}

    assert list(map(str, changes(parts("old"), parts("new", two="b")))) == [
        "parameter prompts.1 ('old' → 'new')",
        "file outside the run two (None → 'b')",
        "upstream file two",
    ]
    assert in_short(["a", "b", "c", "d", "e", "f"]) == "a; b; c; d and 2 more"
