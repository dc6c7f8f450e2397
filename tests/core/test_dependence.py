"""What each real stage depends on: every parameter of its notebook, and every file that it reads from earlier ones."""

from __future__ import annotations

import typing
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

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


def others(value: Any, annotation: Any) -> list[Any]:
    """Values that might stand in a parameter's place."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int | float):
        return [value + 1, value / 2, value * 2]
    if isinstance(value, list):
        return [[*value, "another"], [*value, "de"], []]
    if isinstance(value, dict):
        return [value | {"adam_beta1": 0.5}]
    return [*(word for word in _literals(annotation) if word != value), f"{value}x", "someone/else", "mit"]


def _literals(annotation: Any) -> list[str]:
    found = [part for part in typing.get_args(annotation) if isinstance(part, str)]
    return found + [word for part in typing.get_args(annotation) for word in _literals(part)]


@pytest.mark.parametrize("stage,name", FIELDS)
def test_a_parameter_is_in_the_key_unless_it_only_steers(stage, name, tmp_path):
    defaults = {n: p.default for n, p in parameters(notebook_path(spec(stage))).items()} | {"run_dir": str(tmp_path)}
    kind = spec(stage).settings_class()
    before, after = kind.checked(defaults), []
    for value in others(defaults[name], kind.model_fields[name].annotation):
        with suppress(ValidationError):
            after.append(kind(**defaults | {name: value}))
    after = [settings for settings in after if getattr(settings, name) != getattr(before, name)]
    assert after, f"no other value for {name} was found"
    same = {settings.result_parameters() == before.result_parameters() for settings in after}
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


def test_every_file_is_in_the_key_of_the_stages_that_read_it_and_of_no_other(tmp_path):
    run = a_run(tmp_path)
    before = keys(run)
    for name, readers in READERS.items():
        (run / name).write_text("changed by hand")
        after = keys(run)
        assert {stage for stage in after if after[stage] != before[stage]} == readers, name
        before = after


def test_the_newest_checkpoint_of_a_paused_training_is_read_too(tmp_path):
    run = a_run(tmp_path, "paused")
    before = keys(run)
    (run / "train/checkpoints/step-000500/model.safetensors").write_text("changed by hand")
    after = keys(run)
    assert {stage for stage in after if after[stage] != before[stage]} == {"metrics", "evaluate", "chat", "publish"}


def test_a_changed_mapping_is_told_key_by_key_and_a_long_value_in_short():
    before = {
        "files": {f"data/{n}.jsonl": f"{n:016x}" for n in range(500)},
        "prompts": ["word"] * 200 + ["old"],
        "b": 1,
    }
    after = before | {"files": before["files"] | {"data/7.jsonl": "f" * 16}, "prompts": ["word"] * 200 + ["new"]}
    parts = [{"code": "", "parameters": values, "modules": {}, "upstream": {}} for values in (before, after)]
    found = sorted(changes(*parts), key=lambda change: change.kind.value)
    assert str(found[0]) == f"file outside the run data/7.jsonl ('{7:016x}' → '{'f' * 16}')"
    assert str(found[1]) == "parameter prompts.200 ('old' → 'new')" and len(found) == 2
    assert len(in_short(found)) < 300
    without = {**parts[0], "parameters": {"prompts": before["prompts"], "b": 1}}
    assert str(changes(parts[0], without)[0]).endswith(" → None)")
