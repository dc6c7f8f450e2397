"""The stage as a whole: everything accounted for, the same result however it is run, and sides that never change."""

import json
import multiprocessing
import os
import signal
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pytest
from datasets import Dataset
from transformers import LlamaConfig

from nbutils.core.chatml import encode
from nbutils.data import filter as filtering
from nbutils.data.display import beside_line, example, fates_table, limits_table
from nbutils.data.fates import as_messages
from nbutils.data.row_batches import Batch, in_order
from nbutils.data.sources import open_source
from nbutils.data.summary import lengths
from tests.core.test_chatml import unigram
from tests.data import making
from tests.data.making import chat, chats, make, make_of, refusal, write_lines
from tests.data.test_containers import rows_of

LONG = [text for i in range(60) for text in (f"Tell me more about number {i}.", f"{i} " * 9)]
ONE_EACH = {
    "malformed": b'{"messages": [}',
    "too_long": chat(*LONG),
    "kept": chat("Is this the same?", "Yes,  the same"),
    "duplicate": chat(" Is this the\tsame?", "Yes, the same\n"),
}
"""A row for each way to a fate: as it is read, by its tokens, by other rows; `test_fates.py` has the reasons."""


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """A run over lines, and over rows of another shape in a Parquet file, two of them twice."""
    folder = tmp_path_factory.mktemp("mixed")
    first = [*ONE_EACH.values(), chat("Lost?", "Never.", "Then why"), *chats(40), *(chat(f"{i}?") for i in range(20))]
    Dataset.from_list([*rows_of("alpaca"), *rows_of("alpaca")[:2]]).to_parquet(folder / "b.parquet")
    return make(folder / "run", [write_lines(folder / "a.jsonl", first), str(folder / "b.parquet")])


def test_every_raw_row_is_in_the_ledger_once_with_one_fate_and_why(mixed):
    first = [*ONE_EACH, *["kept"] * 41, *["no_assistant_turn"] * 20]
    assert mixed.fates == first + ["kept"] * 10 + ["duplicate"] * 2
    assert mixed.ledger["detail"][3] == f"same as {mixed.sources[0].label} row 2"
    lost = mixed.ledger.loc[4, ["lost_last_user_turn", "turns", "characters"]]
    assert lost.tolist() == [True, 2, len("Lost?Never.")]
    assert mixed.summary["trimmed_rows"] == 1


def test_three_drops_of_each_reason_are_kept_to_look_at(mixed):
    fates = mixed.ledger.set_index(["source", "index"])["fate"]
    for reason, found in json.loads((mixed.folder / "samples.json").read_text()).items():
        assert len(found) == min(3, mixed.fates.count(reason))
        assert all(fates[row["source"], row["index"]] == reason for row in found)


def test_a_base_brings_its_own_tokenizer_and_what_that_cannot_write_or_joins_to_a_header_is_said(tmp_path, capsys):
    base, tokenizer = tmp_path / "base", unigram("▁user", "\nZebra", bytes_too=False, chatml=False)
    pieces = len(tokenizer)
    tokenizer.save_pretrained(base)
    LlamaConfig(vocab_size=pieces).save_pretrained(base)
    made = make_of(tmp_path, [*chats(20), chat("Zebra", "Fine"), chat("Hello", "Fine 🙂")], base_model=str(base))
    assert made.fates == ["kept"] * 21 + ["outside_vocabulary"]
    facts = made.summary["tokenizer"]
    assert [facts[name] - pieces for name in ("pieces", "im_start", "im_end", "pad")] == [3, 0, 1, 2]
    assert "read apart" in made.ledger["detail"][20] and "no piece for '🙂'" in made.ledger["detail"][21]
    assert facts["conversations_read_apart"] == 1
    assert "Of 1 conversations texts were read apart" in capsys.readouterr().out


def tree(folder):
    """All that the stage writes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_in_batches_of_any_size_on_any_number_of_processes_and_from_a_stream(mixed, tmp_path, small_batches):
    specs = [source.spec for source in mixed.sources]
    one = make(tmp_path / "one", specs)
    two, stream = (make(tmp_path / str(way), specs, streaming=way, data_processes=2) for way in (False, True))
    assert tree(two.folder) == tree(one.folder)
    for other in (one, stream):
        pd.testing.assert_frame_equal(other.ledger, mixed.ledger)
        assert other.summary["eval_hash"] == mixed.summary["eval_hash"]
    assert stream.summary["datasets"][1]["rows_in_source"] == 12


def test_conversations_that_begin_alike_are_on_one_side_and_a_common_opening_is_named(tmp_path):
    """A row for each answer with all that came before, as people bring it: no held-out row begins as a learnt one."""
    rows = [chat(*(f"{talk}, {i}" for i in range(2 * turns))) for turns in range(1, 5) for talk in range(30)]
    brief = as_messages([("system", "Be brief.")])
    rows += [{"messages": brief + chat(" Good\u00a0 day ", "Hello", f"{i}?", "x")["messages"]} for i in range(8)]
    made = make_of(tmp_path, rows)
    growing, greeted = made.ledger[:120], made.ledger[120:]
    assert (growing.groupby(growing.index % 30)["side"].nunique() == 1).all()
    assert greeted["side"].nunique() == greeted["opening"].nunique() == 1
    common = made.summary["openings"]
    assert [one["rows"] for one in common] == [8] + [4] * 30 and common[0]["index"] == 120
    assert all(words in beside_line(made.summary) for words in ("31 openings", "row 120", "8 rows"))


def test_sides_and_the_evaluation_set_stay_when_rows_are_added_and_copies_cannot_straddle(tmp_path, small_batches):
    """Rows of the training side in front shift every later row into another batch, and change nothing else."""
    rows = chats(150)
    plain = make_of(tmp_path, rows)
    new = make_of(tmp_path, chats(100, "new"), same_tokenizer=True)
    train = [{"messages": row["messages"]} for row in new.rows("train")]
    moved = make_of(tmp_path, rows, same_tokenizer=True, split_seed=1)
    assert moved.ledger["side"].tolist() != plain.ledger["side"].tolist()
    more = make_of(tmp_path, [*train, *rows, *rows[::-1]], same_tokenizer=True, seed=1)
    kept = more.ledger[more.ledger["fate"] == "kept"]
    assert 0 < len(train) < 100
    assert kept["side"].tolist() == ["train"] * len(train) + plain.ledger["side"].tolist()
    assert all(more.summary[name] == plain.summary[name] for name in ("eval", "eval_hash"))


def test_a_larger_fraction_takes_the_same_rows_and_more_and_the_others_are_shown(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", chats(600))
    half, more = (make(tmp_path / "run", [{"path": path, "fraction": fraction}]) for fraction in (0.5, 0.8))
    assert 250 < len(half.ledger) < 350
    assert set(half.ledger["index"]) < set(more.ledger["index"])
    described = half.summary["datasets"][0]
    assert (described["rows"], described["rows_in_source"]) == (len(half.ledger), 600)
    assert f"<th>not taken</th>\n      <td>{600 - len(half.ledger)}</td>" in fates_table(half.summary).data


def test_the_tokenizer_of_the_tiny_model_never_reads_the_evaluation_side(tmp_path):
    rows = chats(80)
    first = make_of(tmp_path, rows)
    held_out = first.ledger.index[first.ledger["side"] == "eval"][1:]
    other = make_of(tmp_path, [row for number, row in enumerate(rows) if number not in held_out])
    assert len(held_out) > 10
    assert other.tokenizer.backend_tokenizer.to_str() == first.tokenizer.backend_tokenizer.to_str()


def test_whole_over_long_conversations_of_the_evaluation_side_are_kept_and_some_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(filtering, "TOO_LONG_ROWS", 20)
    monkeypatch.setattr(filtering, "COUNTED_ROWS", 30)
    rows = [chat(f"Story {i}", *LONG[1:40]) for i in range(40)]
    made = make_of(tmp_path, [*rows, *rows[:20], *chats(40)], eval_fraction=0.8)
    found = made.rows("too_long")
    assert len({json.dumps(row["messages"]) for row in found}) == len(found) == made.summary["too_long"]["rows"] == 20
    assert set(made.ledger["side"][[row["index"] for row in found]]) == {"eval"}
    assert all(row["input_ids"] == encode(made.tokenizer, row["messages"]).input_ids for row in found[:5])
    assert (made.summary["lengths"]["counted"], made.summary["lengths"]["too_long"]) == (30, 60)
    assert "≈" in limits_table(made.summary).to_string()


def test_what_other_limits_would_cost_where_each_long_row_that_was_counted_stands_for_two():
    ledger = pa.table({"fate": ["kept"] * 2 + ["too_long"] * 8, "tokens": [60, 100] + [101] * 8})
    found = lengths(ledger, 100, np.array([600, 600, 1_100, 3_000]))
    shares = ((100, 0.8, 10_600), (512, 0.8, 10_600), (1024, 0.4, 8_200), (2048, 0.2, 6_000))
    for cost, (limit, rows, tokens) in zip(found["limits"], shares, strict=True):
        assert cost == pytest.approx({"limit": limit, "share_of_rows": rows, "share_of_tokens": tokens / 10_760})
    assert sum(found["lengths"]["rows"]) == ledger.num_rows


@pytest.mark.parametrize("number,status", [(signal.SIGINT, 1), (signal.SIGKILL, -signal.SIGKILL)])
def test_stopped_half_way_takes_its_workers_along_leaves_nothing_that_looks_finished_and_starts_again(
    tmp_path, monkeypatch, number, status
):
    rows = chats(1_200)
    made = make_of(tmp_path, rows)
    expected, whole = tree(made.folder), filtering.duplicates_marked
    fork = multiprocessing.get_context("fork")
    half_way = fork.Event()

    def waiting(result, source, first):
        if len(first) >= 1_000:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # `make test &` ignores it
            half_way.set()
            time.sleep(60)
        return whole(result, source, first)

    monkeypatch.setattr(filtering, "duplicates_marked", waiting)
    child = fork.Process(target=make_of, args=(tmp_path, rows), kwargs={"data_processes": 2})
    child.start()
    monkeypatch.undo()
    assert half_way.wait(60)
    workers = psutil.Process(child.pid).children()
    os.kill(child.pid, number)
    child.join()
    assert child.exitcode == status
    assert workers and not psutil.wait_procs(workers, timeout=20)[1]
    assert list(made.folder.glob(".*.partial*"))
    assert not [name for name in filtering.WRITTEN if (made.folder / name).exists()]
    assert tree(make_of(tmp_path, rows).folder) == expected


def test_a_source_that_changes_while_it_is_read_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(making, "open_source", lambda *given: replace(open_source(*given), rows=65))
    assert "had 65 rows when it was opened, and 60" in refusal(make_of, tmp_path, chats(60))


def test_a_killed_worker_is_an_error_in_a_sentence(mixed):
    """As where a read takes more memory than there is."""
    killed = Batch(0, partial(signal.raise_signal, signal.SIGKILL))
    source = replace(mixed.sources[0], batches=lambda: iter([killed]))
    assert "smaller data_processes" in refusal(lambda: list(in_order(print, source, 2)))


def test_the_example_is_a_whole_conversation_with_some_turns_where_there_is_one(tmp_path):
    rows = [*chats(60), chat(*LONG[:12]), chat("?", "a", "b", "c")]
    for some in (rows, rows[:-1]):
        folder = tmp_path / str(len(some))
        Dataset.from_list(some).save_to_disk(folder)
        assert example(folder) == some[-1]
