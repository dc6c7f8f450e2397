"""Settings of the data stage: what a dataset may be given as, and when an earlier result no longer fits."""

from __future__ import annotations

import pytest

from nbutils.core.errors import UserError
from nbutils.core.notebooks import notebook_path, parameters
from nbutils.core.stages import spec
from nbutils.data.settings import DataSettings
from tests.data.making import chats, settings_for, write_lines


def test_the_notebook_has_every_parameter_and_its_defaults_are_valid():
    cell = parameters(notebook_path(spec("data")))
    assert set(cell) == set(DataSettings.model_fields)
    settings = DataSettings.checked({name: parameter.default for name, parameter in cell.items()})
    assert [dataset.path for dataset in settings.datasets] == ["chitchat"]


def test_a_dataset_is_a_name_or_a_mapping_and_a_pinned_one_draws_the_same_rows(tmp_path):
    whole = {"path": "org/set", "name": "en", "split": "test", "fraction": 0.5, "revision": "abc"}
    revisions = [{"path": "org/set", "revision": digit * 40} for digit in "ab"]
    chitchat, one, *specs = settings_for(tmp_path, ["chitchat", whole, "org/set", *revisions]).datasets
    assert [chitchat.label, one.label] == ["chitchat", "org/set/en[test]@abc"]
    assert len({spec.label for spec in specs}) == 3
    assert len({spec.draw for spec in specs}) == 1


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"datasets": []}, "'datasets'"),
        ({"datasets": ["a", "a"]}, "listed twice"),
        ({"datasets": [{"path": "a", "fraction": 1.5}]}, "fraction"),
        ({"datasets": [{"path": "a", "splt": "x"}]}, "splt"),
        ({"eval_fraction": 0}, "eval_fraction"),
        ({"max_length": 3}, "max_length"),
        ({"contamination_words": 1}, "contamination_words"),
    ],
)
def test_what_is_out_of_range_is_named(tmp_path, given, words):
    with pytest.raises(UserError) as error:
        settings_for(tmp_path, **({"datasets": ["chitchat"]} | given))
    assert words in str(error.value)


def test_other_content_under_the_same_name_is_another_result(tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", chats(3))
    before = settings_for(tmp_path / "run", [path]).result_parameters()
    assert settings_for(tmp_path / "run", [path], seed=5, data_processes=2).result_parameters() == before
    write_lines(tmp_path / "rows.jsonl", chats(4))
    assert settings_for(tmp_path / "run", [path]).result_parameters() != before


@pytest.mark.parametrize("file", ["tasks/toy.yaml", "tasks/data/toy.jsonl", "base/tokenizer.json", "base.gguf"])
def test_other_items_and_another_tokenizer_are_another_result(tmp_path, file):
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    (path.parent / "config.json").write_text("{}")
    base = file.split("/")[0] if file.startswith("base") else "tiny"
    given = {
        "base_model": base if base == "tiny" else str(tmp_path / base),
        "task_path": str(tmp_path / "tasks"),
        "contamination_tasks": ["toy"],
    }
    found = []
    for content in ("a", "bb"):
        path.write_text(content)
        found.append(settings_for(tmp_path / "run", ["chitchat"], **given).result_parameters())
    assert found[0] != found[1]


def test_the_folder_of_tasks_counts_only_where_contamination_is_looked_for(tmp_path):
    (tmp_path / "toy.yaml").write_text("task: toy")
    assert settings_for(tmp_path, ["chitchat"], task_path=str(tmp_path)).result_parameters()["files"] == {}
