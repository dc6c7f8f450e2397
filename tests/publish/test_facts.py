"""What the card is made from: each file that is missing or damaged is named with the notebook that makes it."""

from __future__ import annotations

import pytest

from nbutils.core.errors import UserError
from nbutils.core.files import read_json, sha256_of_file, write_json
from nbutils.core.run.stage import Stage
from nbutils.core.stages import spec
from nbutils.publish.card import render_card
from nbutils.publish.facts import read_facts
from tests.publish.conftest import settings_for
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


def test_each_file_that_is_missing_or_damaged_is_named_with_its_notebook(spare):
    """Every file that an earlier stage lists and publish reads, its record too; as notebook 06 begins."""
    publish, settings = spec("publish"), settings_for(spare)
    needed = [
        f"{stage}/{name}"
        for stage in publish.reads
        for name in (*read_json(spare / stage / "stage.json")["outputs"], "stage.json")
        if name == "stage.json" or publish.needs(stage, name)
    ]
    assert len(needed) > 50 and {"data/figures/lengths.png", "metrics/figures/loss.svg", "data/eval/dataset_info.json",
                                 "evaluate/items/run--heldout_next_utterance.parquet"} <= set(needed)  # fmt: skip
    for name in needed:
        file, aside = spare / name, spare / "aside"
        file.rename(aside)
        with pytest.raises(UserError) as caught:
            Stage.begin("publish", settings)
            read_facts(spare)
        assert f"notebooks/{spec(name.split('/')[0]).file}" in str(caught.value) and name in str(caught.value), name
        if name in DAMAGED:
            file.write_bytes(b'{"schema"\n\xff\xfe')
            with pytest.raises(UserError, match=rf"{name} is not what its notebook wrote .*damaged.*{DAMAGED[name]}"):
                read_facts(spare)
        aside.rename(file)
    assert set(DAMAGED) <= set(needed)


def test_the_record_of_the_run_changes_nothing(published, spare):
    """`run.json` holds what the last notebook knew; opening notebook 06 writes a new one with its own parameters."""
    Stage.begin("publish", settings_for(spare))
    facts = read_facts(spare)
    assert facts.parameters["base_model"] == "tiny" and facts.parameters["tokens_per_step"] == 1024
    assert (facts.parameters["seed"], [row["session"] for row in facts.sessions]) == (3, [1])
    assert render_card(facts, published.settings) == published.card


def read_by(run, stage, name):
    """Notes in a stage's record what it read of an earlier stage."""
    record = read_json(run / stage / "stage.json")
    write_json(run / stage / "stage.json", record | {"inputs": {name: sha256_of_file(run / name)}})


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
    record = read_json(spare / "train" / "stage.json")
    weights = record["outputs"]["base/model.safetensors"]["sha256"]
    read_by(spare, "evaluate", "train/base/model.safetensors")
    (spare / "train" / "base" / "model.safetensors").unlink()
    assert f"| weights before training, SHA-256 | `{weights}` |" in render_card(read_facts(spare), settings_for(spare))
