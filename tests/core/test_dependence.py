"""What each real stage depends on: parameters of its notebook, files of earlier stages, files outside the run, code."""

import os
from contextlib import suppress

import pytest

from nbutils.core.errors import UserError
from nbutils.core.files import hash_of, local_hashes, write_text
from nbutils.core.notebooks import notebook_path, parameters
from nbutils.core.run.key import changes, normalised, upstream_hashes
from nbutils.core.run.layout import Run
from nbutils.core.run.models import TOKENIZER_FILES, files_of
from nbutils.core.run.state import in_short
from nbutils.core.stages import STAGES, spec
from nbutils.pipeline.parameters import settings_of
from tests.metrics.histories import write_done

STEERING = {
    "data": {"run_dir", "seed", "data_processes"},
    "train": {"run_dir", "log_steps", "checkpoint_steps", "checkpoints_kept", "processes", "budget_minutes",
              "pause_after_steps", "report_to", "plain_loop_steps", "cooldown_fraction"},  # this one under wsd is not
    "metrics": {"run_dir"},
    "evaluate": {"run_dir", "tokens_per_batch", "processes", "cache_dir"},
    "chat": {"run_dir", "interactive", "peers"},
    "publish": {"run_dir", "private", "wllama_dir", "accept_repeats"},
}  # fmt: skip
"""By hand, not from the settings: a parameter that is marked as steering by mistake would keep stale results."""

OTHERS = (
    True, False, 1, 7, 1000, 0.6, 2.5, [], ["de"], ["another"], ["f16"], {"adam_beta1": 0.5},
    "another", "someone/else", "mit", "constant", "sgd", "assistant", "all", "fp16", "yarn", "last", "drop", "never",
)  # fmt: skip
"""Values that might stand in a parameter's place; a stage refuses what it does not know."""


@pytest.mark.parametrize("stage", STAGES)
def test_every_parameter_is_in_the_key_but_those_that_only_steer(stage, tmp_path):
    kind, steering = stage.settings_class(), set()
    defaults = {n: p.default for n, p in parameters(notebook_path(stage)).items()} | {"run_dir": str(tmp_path)}
    before = kind.checked(defaults).result_parameters()
    for name, default in defaults.items():
        after = []
        for value in (value for value in OTHERS if type(value) is type(default) and value != default):
            with suppress(UserError):
                after.append(kind.checked(defaults | {name: value}).result_parameters())
        assert after, f"no other value for {name} was found"
        # One of them may come to the same (`auto` and what it stands for), but not all.
        if all(found == before for found in after):
            steering.add(name)
    assert steering == STEERING[stage.name]


READERS = {
    "data/train/data-00000-of-00001.arrow": {"train", "evaluate", "publish"},
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
    "train/samples.jsonl": {"publish"},
    "train/heldout.parquet": set(),
    "train/progress.jsonl": set(),
    "train/checkpoints/step-000500/model.safetensors": set(),
    "train/checkpoints/step-000500/manifest.json": set(),
    "train/checkpoints/step-000100/manifest.json": set(),
    "metrics/figures/loss.png": {"publish"},
    "metrics/summary.json": {"publish"},
    "evaluate/results.json": {"publish"},
    "evaluate/comparison.md": {"publish"},
    "evaluate/samples.jsonl": {"publish"},
    "evaluate/replies.jsonl": {"publish"},
    "evaluate/items/heldout_perplexity.parquet": {"publish"},
    "chat/transcript.json": {"publish"},
}
"""Files of a run, and the stages that read them."""


@pytest.fixture
def run(tmp_path):
    """A finished run."""
    for name in READERS:
        write_text(tmp_path / name, name)
    for stage in STAGES[:-1]:
        write_done(tmp_path / stage.name)
    return tmp_path


def keys(run):
    """Of each stage the hashes of what it reads."""
    return {stage.name: upstream_hashes(stage, Run(run)) for stage in STAGES}


def stale(run, name):
    """The stages whose key changes with a file."""
    before = keys(run)
    (run / name).write_text("changed by hand")
    return {stage for stage, found in keys(run).items() if found != before[stage]}


def test_every_file_is_in_the_key_of_the_stages_that_read_it_and_of_no_other(run):
    assert {name: stale(run, name) for name in READERS} == READERS


def test_the_newest_checkpoint_of_a_paused_training_is_read_too(run):
    write_done(run / "train", status="paused")
    readers = stale(run, "train/checkpoints/step-000500/model.safetensors")
    assert readers == {"metrics", "evaluate", "chat", "publish"}


def test_a_change_is_told_by_its_name_inside_a_mapping_or_list_and_many_in_short():
    def parts(word, **files):
        parameters = {"prompts": ["word", word], "files": {"one": "a"} | files}
        return {"code": "", "parameters": parameters, "modules": {}, "upstream": files}

    assert list(map(str, changes(parts("old"), parts("new", two="b")))) == [
        "parameter prompts.1 ('old' → 'new')",
        "file outside the run two (None → 'b')",
        "upstream file two",
    ]
    assert in_short(["a", "b", "c", "d", "e", "f"]) == "a; b; c; d and 2 more"


# Files outside the run: another content under the same name is another input

FILES = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer.model", "tokenizer_config.json"}


def model(folder):
    """Files of the names that a model's folder has, and two that are not the model's."""
    for name in (*FILES, "optimizer.pt", "runs/events.json"):
        write_text(folder / name, f"{folder.name} {name}")
    return folder


def test_a_file_is_read_again_only_where_it_has_changed(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("one")
    before, stat = hash_of(file), file.stat()
    file.write_text("two")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert hash_of(file) == before  # not looked into: as old and as large as before
    os.utime(file)
    assert hash_of(file) != before


def test_which_files_count(tmp_path):
    folder = model(tmp_path / "model")
    assert set(files_of(folder)) == FILES
    assert set(files_of(folder, TOKENIZER_FILES)) == FILES - {"model.safetensors"}
    (tmp_path / "model.gguf").write_text("quantised")
    assert set(files_of(tmp_path / "model.gguf", TOKENIZER_FILES)) == {"model.gguf"}
    assert files_of("tiny") == files_of("someone/on-the-hub") == files_of("") == {}
    assert list(local_hashes([folder / "runs", tmp_path / "absent", ""])) == [str(folder / "runs" / "events.json")]


@pytest.mark.parametrize(
    "stage,values,file",
    [
        ("data", {"base_model": "model"}, "model/tokenizer.model"),
        ("data", {"datasets": ["rows.jsonl"]}, "rows.jsonl"),
        ("data", {"task_path": "tasks", "contamination_tasks": ["mine"]}, "tasks/mine.yaml"),
        ("train", {"base_model": "model"}, "model/model.safetensors"),
        ("metrics", {"compare_runs": ["other"]}, "other/train/metrics.jsonl"),
        ("evaluate", {"peers": ["model"]}, "model/model.safetensors"),
        ("evaluate", {"task_path": "tasks"}, "tasks/mine.yaml"),
        ("chat", {"model": "model"}, "model/model.safetensors"),
        ("chat", {"compare_with": "model.gguf"}, "model.gguf"),
        ("chat", {"model": "step-000500"}, "run/train/checkpoints/step-000500/model.safetensors"),
    ],
)
def test_the_content_of_what_a_stage_reads_is_part_of_its_key(tmp_path, monkeypatch, stage, values, file):
    monkeypatch.setattr("nbutils.core.files.project_root", lambda: tmp_path)
    model(tmp_path / "model")
    model(tmp_path / "run" / "train" / "checkpoints" / "step-000500")
    for path in ("model.gguf", "rows.jsonl", "tasks/mine.yaml", "other/train/metrics.jsonl"):
        write_text(tmp_path / path, path)
    asked = settings_of(spec(stage), {"run_dir": "run"} | values)
    before = asked.result_parameters()
    assert asked.result_parameters() == before
    (tmp_path / file).write_text("other content")
    assert asked.result_parameters() != before


# Code

ADDS, RAISES = "def f(x):\n    return x + 1\n", "if x:\n    raise UserError(f'{x} is wrong')\n"
DRESSED = '"""Module."""\n# why\ndef f(x):\n    """Adds one."""\n\n    return (x\n            + 1)  # here\n'


@pytest.mark.parametrize(
    "before,after,same",
    [
        (ADDS, DRESSED, True),
        (RAISES, RAISES.replace("is wrong", "was not understood"), True),
        (RAISES, RAISES.replace("if x", "if not x"), False),
        (RAISES, RAISES.replace("UserError", "ValueError"), False),
        ("%matplotlib inline\nx = 1", "%matplotlib widget\nx = 1", False),
    ],
)
def test_code_counts_and_comments_docstrings_layout_and_the_sentences_of_errors_do_not(before, after, same):
    assert (normalised(before) == normalised(after)) is same
