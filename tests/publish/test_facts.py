"""What the card is made from: each file that is missing or damaged is named with the notebook that makes it."""

import re

import pytest

from nbutils.core.errors import UserError
from nbutils.core.files import sha256_of_file
from nbutils.core.run.stage import Stage
from nbutils.core.stages import spec
from nbutils.publish.card import render_card
from nbutils.publish.facts import read_facts
from tests.publish.conftest import settings_for
from tests.publish.made_up_run import rewrite

DAMAGED = {
    "data/summary.json", "data/eval/data-00000-of-00001.arrow", "train/settings.json", "train/metrics.jsonl",
    "train/final/config.json", "train/final/tokenizer.json", "train/final/model.safetensors", "train/base/source.json",
    "metrics/summary.json", "evaluate/results.json", "evaluate/samples.jsonl", "chat/transcript.json",
}  # fmt: skip
LOST = DAMAGED | {
    "data/figures/lengths.png", "metrics/figures/loss.svg", "data/eval/dataset_info.json", "evaluate/comparison.md",
    "evaluate/items/run--heldout_next_utterance.parquet", *(f"{stage}/stage.json" for stage in spec("publish").reads),
}  # fmt: skip


def test_each_file_that_is_missing_or_damaged_is_named_with_its_notebook(spare):
    """Of each kind that publish reads, the records too; as notebook 06 begins."""
    settings = settings_for(spare)
    for name in LOST:
        file, aside = spare / name, spare / "aside"
        notebook = f"notebooks/{spec(name.partition('/')[0]).file}"
        file.rename(aside)
        with pytest.raises(UserError, match=rf"{re.escape(name)}.*{notebook}"):
            Stage.begin("publish", settings)
            read_facts(spare)
        if name in DAMAGED:
            file.write_bytes(b'{"schema"\n\xff\xfe')
            with pytest.raises(UserError, match=rf"{name} is not what its notebook wrote .*damaged.*{notebook}"):
                read_facts(spare)
        aside.rename(file)


def test_the_record_of_the_run_changes_nothing(published, spare):
    """`run.json` holds what the last notebook knew; opening notebook 06 writes a new one with its own parameters."""
    Stage.begin("publish", settings_for(spare))
    facts = read_facts(spare)
    assert facts.parameters["base_model"] == "tiny" and facts.parameters["tokens_per_step"] == 2048
    assert (facts.parameters["seed"], [row["session"] for row in facts.sessions]) == (3, [1])
    assert render_card(facts, published.settings) == published.card


@pytest.mark.parametrize(
    "stage,name",
    [
        ("train", "data/summary.json"),
        ("metrics", "train/metrics.jsonl"),
        ("evaluate", "train/final/model.safetensors"),
        ("chat", "train/final/config.json"),
    ],
)
def test_numbers_of_another_training_do_not_get_on_the_card(spare, stage, name):
    """Notebook 02 was run again, and those behind it were not."""
    rewrite(spare, f"{stage}/stage.json", inputs={name: sha256_of_file(spare / name)})
    read_facts(spare)
    with (spare / name).open("ab") as file:
        file.write(b"\n")
    rewrite(spare, name)
    with pytest.raises(UserError, match=rf"{stage} belongs to another run: {name} .*{spec(stage).file}"):
        read_facts(spare)


def test_files_that_the_card_does_not_need_may_be_gone(spare):
    """The base's weights, to save room: the record says which they were; and what an evaluation could do without."""
    name = "train/base/model.safetensors"
    weights = sha256_of_file(spare / name)
    rewrite(spare, "evaluate/stage.json", inputs={name: weights, "data/train/rows.arrow": "missing"})
    (spare / name).unlink()
    assert f"| weights before training, SHA-256 | `{weights}` |" in render_card(read_facts(spare), settings_for(spare))
