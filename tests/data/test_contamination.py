"""Runs of words that the data shares with evaluation items: found across turns and spellings, and shown."""

import json
from types import SimpleNamespace

import pytest

from nbutils.data.contamination import build_index, loaded_index, words_of
from nbutils.data.display import contamination_line, drops_table
from nbutils.evaluate.compare import flagged_items
from tests.data.hellaswag import hellaswag_task
from tests.data.making import chat, chats, make, make_of, write_lines

ITEM = "The quick brown fox jumps over the lazy dog and then runs back into the dark old forest."
OTHER = "On the next morning she packed her bags and took the first train back to her home town."
WORDS = words_of(ITEM)


def indexed(folder, *items):
    build_index([(f"toy item {number}", texts) for number, texts in enumerate(items)], 13, folder / "index")
    return loaded_index(str(folder / "index"))


@pytest.mark.parametrize(
    "conversations,found",
    [
        ([["nothing"], [f"Well, {ITEM.upper().replace(' ', '  ')}!"]], [1]),
        ([[ITEM[:40], ITEM[40:]]], [0]),  # question and answer in two turns
        ([[ITEM[:40]], [ITEM[40:]]], []),  # neighbouring conversations do not add up
        ([[], [""], ["one two"]], []),
        ([[" ".join(WORDS[:12])], [" ".join(WORDS[:13])], [" ".join(WORDS[1:14])]], [1, 2]),
        ([[" ".join(WORDS[::-1])]], []),
    ],
)
def test_a_run_of_thirteen_words_is_found(tmp_path, conversations, found):
    matches = indexed(tmp_path, [ITEM], ["too short to have thirteen words"]).matches(conversations)
    assert {place: match.items for place, match in matches.items()} == {place: ["toy item 0"] for place in found}
    assert indexed(tmp_path, ["too short"]).matches(conversations) == {}


def test_every_item_that_shares_words_is_named_and_the_words_of_the_first_are_shown(tmp_path):
    """Two items with a passage in common, and a third one further on: all three were seen by whoever read the text."""
    index = indexed(tmp_path, [ITEM], [f"{ITEM} Why?", f"{ITEM} How?"], [OTHER])
    many, one = index.matches([[ITEM, "So?", OTHER], [OTHER]]).values()
    assert many.items == ["toy item 0", "toy item 1", "toy item 2"]
    assert many.detail == f"toy item 0: «{' '.join(WORDS[:13])}» (and 2 more)"
    assert one.detail == f"toy item 2: «{' '.join(words_of(OTHER)[:13])}»"


TOY = """
task: toy
dataset_path: json
dataset_kwargs: {data_files: {validation: toy.jsonl}}
output_type: generate_until
validation_split: validation
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: exact_match}]
"""


def test_a_match_is_shown_and_all_its_items_reach_evaluation(tmp_path):
    items = [{"question": asked, "answer": "No."} for asked in ("Hm?", ITEM, f"{ITEM} Why?")]
    write_lines(tmp_path / "tasks" / "toy.jsonl", items)
    (tmp_path / "tasks" / "toy.yaml").write_text(TOY)
    given = {"contamination_tasks": ["toy"], "task_path": str(tmp_path / "tasks")}
    made = make_of(tmp_path, [*chats(40), chat(ITEM, "<b>a</b>")], **given)
    assert made.fates == ["kept"] * 40 + ["contaminated"]
    flagged = flagged_items(made.folder / "ledger.parquet", {"toy": SimpleNamespace(eval_docs=range(3))})
    assert flagged == {"toy": {1, 2}}
    shown = drops_table(json.loads((made.folder / "samples.json").read_text()), made.summary).data
    assert "toy item 1: «the quick brown fox" in shown and "<b>" not in shown.split("assistant", 1)[1][:40]
    assert "with toy: 3 items, 1 too short to be found (fewer than 13 words)" in contamination_line(made.summary)
    assert made.summary["contamination"]["ngrams"] == 6 + 1 + 2, "of the passage, and with what follows it in each"


@pytest.mark.soak
def test_a_planted_hellaswag_item_is_dropped_and_chitchat_is_hardly_touched(tmp_path, evaldata):
    folder = hellaswag_task(tmp_path / "tasks", evaldata)
    item = json.loads((folder / "validation.jsonl").read_text().splitlines()[4_321])
    ending = item["endings"][int(item["label"])]
    path = write_lines(tmp_path / "rows.jsonl", [*chats(40), chat(item["ctx"], ending)])
    given = {"contamination_tasks": ["hellaswag"], "task_path": str(folder)}
    made = make(tmp_path / "run", ["chitchat", path], max_length=1024, **given)
    assert made.summary["contamination"]["items"] == 10_042
    *others, planted = made.ledger[made.ledger["fate"] == "contaminated"].itertuples()
    assert (planted.source, planted.index) == (path, 40)
    assert planted.detail.startswith("hellaswag item 4321: «")
    # Nobody talked about HellaSwag in 2018: what is found in chitchat is found by accident (`make bench` reports it).
    assert len(others) < 0.001 * made.fates.count("kept")
