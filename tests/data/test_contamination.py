"""Runs of words that the data shares with evaluation items: found across turns and spellings, and shown."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest

from nbutils.data.contamination import build_index, loaded_index, rolling, words_of
from nbutils.data.display import contamination_line, drops_table
from nbutils.evaluate.compare import flagged_items
from tests.data.hellaswag import hellaswag_task
from tests.data.making import chat, chats, make, make_of, write_lines

ITEM = "The quick brown fox jumps over the lazy dog and then runs back into the dark old forest."


@pytest.fixture
def index(tmp_path):
    build_index([("toy item 0", [ITEM]), ("toy item 1", ["too short to have thirteen words"])], 13, tmp_path / "index")
    return loaded_index(str(tmp_path / "index"))


@pytest.mark.parametrize(
    ("conversations", "found"),
    [
        ([["nothing"], [f"Well, {ITEM.upper().replace(' ', '  ')}!"]], [False, True]),
        ([[ITEM[:40], ITEM[40:]]], [True]),  # question and answer in two turns
        ([[ITEM[:40]], [ITEM[40:]]], [False, False]),  # neighbouring conversations do not add up
        ([], []),
        ([[], [""], ["one two"]], [False] * 3),
        ([[" ".join(words_of(ITEM)[:12])], [" ".join(words_of(ITEM)[:13])]], [False, True]),
        ([[" ".join(words_of(ITEM)[1:14])]], [True]),
    ],
)
def test_a_run_of_thirteen_words_is_found(index, conversations, found):
    matches = {place: match.items for place, match in index.matches(conversations).items()}
    assert matches == {place: ["toy item 0"] for place, one in enumerate(found) if one}


def test_a_match_shows_the_words(index):
    match = index.matches([[ITEM]])[0]
    assert match.detail == "toy item 0: «the quick brown fox jumps over the lazy dog and then runs back»"


def test_every_item_that_shares_words_is_named(tmp_path):
    """Two items with a passage in common, and a third one further on: all three were seen by whoever read the text."""
    other = "On the next morning she packed her bags and took the first train back to her home town."
    items = [("toy item 0", [ITEM]), ("toy item 1", [f"{ITEM} Why?", f"{ITEM} How?"]), ("toy item 2", [other])]
    facts = build_index(items, 13, tmp_path / "index")
    match = loaded_index(str(tmp_path / "index")).matches([[ITEM, "So?", other]])[0]
    assert match.items == ["toy item 0", "toy item 1", "toy item 2"]
    assert match.detail.endswith("runs back» (and 2 more)")
    assert facts["ngrams"] == len(words_of(ITEM)) - 12 + 2 + len(words_of(other)) - 12


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
    tasks = tmp_path / "tasks"
    items = (("Hm?", "No."), (ITEM, "a"), (ITEM, "b"))
    write_lines(tasks / "toy.jsonl", [{"question": asked, "answer": answer} for asked, answer in items])
    (tasks / "toy.yaml").write_text(TOY)
    made = make_of(tmp_path, [*chats(40), chat(ITEM, "<b>a</b>")], contamination_tasks=["toy"], task_path=str(tasks))
    row = made.ledger.set_index("index").loc[40]
    assert (row["fate"], list(row["matched_items"])) == ("contaminated", ["toy item 1", "toy item 2"])
    assert made.ledger[made.ledger["fate"] == "kept"]["matched_items"].isna().all()
    ledger = made.folder / "ledger.parquet"
    assert flagged_items(ledger, {"toy": SimpleNamespace(eval_docs=range(3))}) == {"toy": {1, 2}}
    assert pq.read_schema(ledger).metadata[b"schema"] == b"1"
    shown = drops_table(json.loads((made.folder / "samples.json").read_text())).data
    assert "toy item 1: «the quick brown fox" in shown and "<b>" not in shown.split("assistant", 1)[1][:40]
    assert "with toy: 3 items, 1 too short to be found (fewer than 13 words)" in contamination_line(made.summary)


def test_the_index_says_what_it_cannot_find(tmp_path):
    facts = build_index([("a", [ITEM, ITEM]), ("b", ["short"])], 13, tmp_path / "index")
    assert facts == {"items": 2, "items_too_short": 1, "ngrams": len(words_of(ITEM)) - 12, "words": 13}
    assert loaded_index(str(tmp_path / "index")).matches([[]]) == {}


def test_the_rolling_hash_depends_on_order_and_on_nothing_else():
    words = np.arange(1, 40, dtype=np.uint64)
    whole = rolling(words, 5)
    assert len(whole) == 35 == len(np.unique(whole))
    assert rolling(words[7:12], 5)[0] == whole[7]
    assert rolling(words[7:12][::-1], 5)[0] != whole[7]
    assert len(rolling(words[:4], 5)) == 0


@pytest.mark.soak
def test_a_planted_hellaswag_item_is_dropped_and_chitchat_is_hardly_touched(tmp_path, evaldata):
    folder = hellaswag_task(tmp_path / "tasks", evaldata)
    item = json.loads((folder / "validation.jsonl").read_text().splitlines()[4_321])
    ending = item["endings"][int(item["label"])]
    path = write_lines(tmp_path / "rows.jsonl", [*chats(40), chat(item["ctx"], ending)])
    given = {"contamination_tasks": ["hellaswag"], "task_path": str(folder)}
    made = make(tmp_path / "run", ["chitchat", path], max_length=1024, **given)
    assert made.summary["contamination"]["items"] == 10_042
    chitchat, planted = (made.ledger[made.ledger["source"] == name] for name in ("chitchat", path))
    (row,) = planted[planted["fate"] == "contaminated"].to_dict("records")
    label, words = row["detail"].split(": ", 1)
    assert (row["index"], label) == (40, "hellaswag item 4321") and label in row["matched_items"]
    assert words.split("»")[0].strip("«") in " ".join(words_of(f"{item['ctx']} {ending}"))
    # Nobody talked about HellaSwag in 2018: what is found in chitchat is found by accident (`make bench` reports it).
    counts = chitchat["fate"].value_counts()
    assert counts.get("contaminated", 0) < 0.001 * counts["kept"]
