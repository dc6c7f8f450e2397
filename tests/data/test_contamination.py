"""Runs of words that the data shares with evaluation items: found across turns and spellings, and shown."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from nbutils.core.errors import UserError
from nbutils.data.contamination import build_index, loaded_index, rolling, words_of
from tests.data.making import chats, make, messages, write_lines

ITEM = "The quick brown fox jumps over the lazy dog and then runs back into the dark old forest."


@pytest.fixture
def index(tmp_path):
    build_index([("toy item 0", [ITEM]), ("toy item 1", ["too short to have thirteen words"])], 13, tmp_path / "index")
    return loaded_index(str(tmp_path / "index"))


def test_a_planted_run_of_words_is_found_with_item_and_words(index):
    text = f"Well, {ITEM.upper().replace(' ', '  ')}!"
    assert index.matches([["nothing"], [text]]) == [
        "",
        "toy item 0: «the quick brown fox jumps over the lazy dog and then runs back»",
    ]


def test_question_and_answer_in_two_turns_are_found(index):
    half = ITEM.index("lazy")
    assert index.matches([[ITEM[:half], ITEM[half:]]])[0].startswith("toy item 0")


def test_neighbouring_conversations_do_not_add_up(index):
    half = ITEM.index("lazy")
    assert index.matches([[ITEM[:half]], [ITEM[half:]]]) == ["", ""]


def test_nothing_matches_nothing(index):
    assert index.matches([]) == []
    assert index.matches([[], [""], ["one two"]]) == ["", "", ""]


def test_twelve_words_are_no_match(index):
    assert index.matches([[" ".join(words_of(ITEM)[:12])], [" ".join(words_of(ITEM)[:13])]])[0] == ""
    assert index.matches([[" ".join(words_of(ITEM)[1:14])]])[0] != ""


def test_the_index_says_what_it_cannot_find(tmp_path):
    facts = build_index([("a", [ITEM, ITEM]), ("b", ["short"])], 13, tmp_path / "index")
    assert facts == {"items": 2, "items_too_short": 1, "ngrams": len(words_of(ITEM)) - 12, "words": 13}
    assert loaded_index(str(tmp_path / "index")).matches([[]]) == [""]


def test_the_rolling_hash_depends_on_order_and_on_nothing_else():
    words = np.arange(1, 40, dtype=np.uint64)
    whole = rolling(words, 5)
    assert len(whole) == 35 == len(np.unique(whole))
    assert rolling(words[7:12], 5)[0] == whole[7]
    assert rolling(words[7:12][::-1], 5)[0] != whole[7]
    assert len(rolling(words[:4], 5)) == 0


HELLASWAG = """
task: hellaswag
dataset_path: json
dataset_name: null
dataset_kwargs: {{data_files: {{validation: {file}}}}}
output_type: multiple_choice
training_split: null
validation_split: validation
test_split: null
process_docs: !function utils.process_docs
doc_to_text: "{{{{query}}}}"
doc_to_target: "{{{{label}}}}"
doc_to_choice: "choices"
metric_list: [{{metric: acc}}]
"""


def hellaswag(folder: Path, evaldata: Path) -> Path:
    """HellaSwag as a task of the user's: the stock task, but for where its data lies."""
    import lm_eval

    stock = Path(lm_eval.__file__).parent / "tasks" / "hellaswag" / "utils.py"
    folder.mkdir()
    (folder / "utils.py").write_bytes(stock.read_bytes())
    (folder / "validation.jsonl").write_bytes(
        gzip.decompress((evaldata / "hellaswag_validation.jsonl.gz").read_bytes())
    )
    (folder / "hellaswag.yaml").write_text(HELLASWAG.format(file="validation.jsonl"))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("fraction", [0.2, pytest.param(1.0, marks=pytest.mark.soak)])
def test_a_planted_hellaswag_item_is_dropped_and_chitchat_is_hardly_touched(tmp_path, evaldata, fraction):
    folder = hellaswag(tmp_path / "tasks", evaldata)
    item = json.loads((folder / "validation.jsonl").read_text().splitlines()[4_321])
    ending = item["endings"][int(item["label"])]
    planted = [{"messages": messages([("user", item["ctx"]), ("assistant", ending)])}]
    path = write_lines(tmp_path / "rows.jsonl", [*chats(40), *planted])
    datasets = [{"path": "chitchat", "fraction": fraction}, path]
    made = make(tmp_path / "run", datasets, contamination_tasks=["hellaswag"], task_path=str(folder), max_length=1024)
    assert made.summary["contamination"]["items"] == 10_042
    ledger = made.ledger[made.ledger["fate"] == "contaminated"]
    row = ledger[ledger["source"] == path].iloc[0]
    assert (row["index"], len(ledger[ledger["source"] == path])) == (40, 1)
    label, words = row["detail"].split(": ", 1)
    assert label == "hellaswag item 4321"
    assert words.strip("«»") in " ".join(words_of(f"{item['ctx']} {ending}"))
    # Nobody talked about HellaSwag in 2018: what is found in chitchat is found by accident.
    false = ledger[ledger["source"] == "chitchat"]
    judged = made.ledger[(made.ledger["source"] == "chitchat") & made.ledger["fate"].isin(["kept", "contaminated"])]
    print(f"false positives on chitchat: {len(false)} of {len(judged)}", *false["detail"], sep="\n")
    assert len(false) / len(judged) < 0.001


def test_an_unknown_task_is_a_sentence_with_the_nearest_name(tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", chats(40))
    with pytest.raises(UserError, match=r"No task is called 'hellaswagg': did you mean .*hellaswag"):
        make(tmp_path / "run", [path], contamination_tasks=["hellaswagg"])
