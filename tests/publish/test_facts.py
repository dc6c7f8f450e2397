"""What the card is made from: each file that is missing or damaged is named with the notebook that makes it."""

from __future__ import annotations

import pytest

from nbutils.core.errors import UserError
from nbutils.core.files import read_json, sha256_of_file, write_json
from nbutils.core.run.stage import Stage
from nbutils.core.stages import spec
from nbutils.publish.card import render_card
from nbutils.publish.facts import read_facts
from tests.publish.conftest import publish, settings_for
from tests.publish.made_up_run import rewrite

DAMAGED = {
    "data/summary.json": "01_filter_data",
    "data/eval/data-00000-of-00001.arrow": "01_filter_data",
    "train/settings.json": "02_train_sft",
    "train/metrics.jsonl": "02_train_sft",
    "train/final/config.json": "02_train_sft",
    "train/final/tokenizer.json": "02_train_sft",
    "train/final/model.safetensors": "02_train_sft",
    "train/base/source.json": "02_train_sft",
    "metrics/summary.json": "03_plot_metrics",
    "evaluate/results.json": "04_evaluate",
    "evaluate/samples.jsonl": "04_evaluate",
    "chat/transcript.json": "05_chat",
}


def read_through_the_notebook(run):
    """As notebook 06 begins."""
    Stage.begin("publish", settings_for(run))
    return read_facts(run)


def test_each_missing_file_is_named_with_its_notebook(spare):
    """Every file that an earlier stage lists and publish reads, its record too."""
    needed = [
        f"{stage}/{name}"
        for stage in spec("publish").reads
        for name in (*(read_json(spare / stage / "stage.json")["outputs"]), "stage.json")
        if name == "stage.json" or spec("publish").needs(stage, name)
    ]
    assert len(needed) > 50 and {"data/figures/lengths.png", "metrics/figures/loss.svg", "data/eval/dataset_info.json",
                                 "evaluate/items/run--heldout_next_utterance.parquet"} <= set(needed)  # fmt: skip
    for name in needed:
        file, aside = spare / name, spare / "aside"
        file.rename(aside)
        with pytest.raises(UserError) as caught:
            read_through_the_notebook(spare)
        aside.rename(file)
        assert f"notebooks/{spec(name.split('/')[0]).file}" in str(caught.value), name
        assert name in str(caught.value), name


def test_a_run_record_that_is_gone_changes_nothing(spare):
    """`run.json` holds what the last notebook knew; opening notebook 06 writes a new one with its own parameters."""
    before = render_card(read_facts(spare), settings_for(spare))
    (spare / "run.json").unlink()
    facts = read_through_the_notebook(spare)
    assert facts.parameters["base_model"] == "tiny" and facts.parameters["tokens_per_step"] == 1024
    assert render_card(facts, settings_for(spare)) == before


def test_the_card_is_about_the_training_and_not_about_the_last_notebook(spare):
    record = read_json(spare / "chat" / "stage.json")
    other = {"git_commit": "e" * 40, "versions": record["versions"] | {"torch": "2.12.0"}}
    write_json(spare / "chat" / "stage.json", record | other)
    facts = read_through_the_notebook(spare)
    card = render_card(facts, settings_for(spare))
    assert f"| git commit | {'0' * 40} |" in card and "torch 2.13.0 |" in card and "4 cores, 31 GiB" in card
    assert f"| … notebook of chat | git commit {'e' * 40}, torch 2.12.0 |" in card
    assert "notebook of evaluate" not in card


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_named(spare, name):
    (spare / name).write_bytes(b'{"schema"\n\xff\xfe')
    with pytest.raises(UserError, match=rf"{name} is not what its notebook wrote .*damaged.*{DAMAGED[name]}"):
        read_facts(spare)


def test_a_number_that_was_changed_by_hand_does_not_get_on_the_card(spare):
    summary = read_json(spare / "metrics" / "summary.json")
    write_json(spare / "metrics" / "summary.json", summary | {"final": summary["final"] | {"eval_loss": 1.234}})
    with pytest.raises(UserError, match=r"metrics/summary.json is not what its notebook wrote .*03_plot_metrics"):
        read_facts(spare)


def test_parameters_that_two_notebooks_had_differently_are_said(spare):
    record = read_json(spare / "evaluate" / "stage.json")
    write_json(spare / "evaluate" / "stage.json", record | {"parameters": record["parameters"] | {"seed": 9}})
    made = publish(spare)
    card = (made.folder / "README.md").read_text(encoding="utf-8")
    assert "not run with one value of `seed` (0 in data" in card or "`seed` (3 in data" in card
    assert made.facts.parameters["seed"] == 3


def read_by(run, stage, *names):
    """Notes in a stage's record what it read of earlier stages."""
    record = read_json(run / stage / "stage.json")
    inputs = {name: sha256_of_file(run / name) for name in names}
    write_json(run / stage / "stage.json", record | {"inputs": inputs})


@pytest.mark.parametrize(
    ("stage", "name"),
    [
        ("train", "data/summary.json"),
        ("metrics", "train/metrics.jsonl"),
        ("evaluate", "train/final/model.safetensors"),
        ("chat", "train/final/config.json"),
    ],
)
def test_numbers_of_another_training_do_not_get_on_the_card(spare, stage, name):
    """Notebook 02 was run again, and those behind it were not."""
    read_by(spare, stage, name)
    read_facts(spare)
    with (spare / name).open("ab") as file:
        file.write(b"\n")
    rewrite(spare, name)
    with pytest.raises(UserError, match=rf"{stage} belongs to another run: {name} .*{spec(stage).file}"):
        read_facts(spare)
    (spare / name).unlink()
    with pytest.raises(UserError, match=rf"{name} is missing"):
        read_facts(spare)


def test_files_that_the_card_does_not_need_may_be_gone(spare):
    """The base's weights, to save room: the record says which they were."""
    read_by(spare, "evaluate", "train/base/model.safetensors")
    (spare / "train" / "base" / "model.safetensors").unlink()
    read_facts(spare)


def test_work_that_a_person_kept_is_said_on_the_card(spare):
    record = read_json(spare / "evaluate" / "stage.json")
    kept = {"at": "2026-11-02T10:00:00+00:00", "changed": ["upstream file train/final/model.safetensors"]}
    write_json(spare / "evaluate" / "stage.json", record | {"accepted": [kept]})
    card = render_card(read_facts(spare), settings_for(spare))
    assert (
        "The work of `04_evaluate.ipynb` was kept on 2026-11-02 although this had changed since: "
        "upstream file train/final/model.safetensors." in card
    )
