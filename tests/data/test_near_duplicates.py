"""Conversations that repeat most of another one: the same as a search by brute force, however the stage is run."""

import json
import random

import pandas as pd
import pytest

from nbutils.data import lines, near_duplicates
from nbutils.data.display import drops_table, near_duplicates_line
from tests.data.making import chat, chats, make, make_of, write_lines
from tests.data.test_filter import tree

POOL = random.Random(0).choices([f"word{n}" for n in range(3_000)], k=3_000)


def passages(rng, count):
    """Conversations of passages from a small pool, most of them short, some with a word changed."""
    for _ in range(count):
        words = []
        for _ in range(rng.choice((1, 1, 2, 3))):
            start = rng.randrange(8) * 30
            words += POOL[start : start + rng.choice((5, 12, 30, 60))]
        if rng.random() < 0.5:
            words[rng.randrange(len(words))] = "other"
        cut = rng.randrange(1, len(words))
        yield chat(" ".join(words[:cut]), rng.choice((" ", "\u00a0", "\n")).join(words[cut:]))


def windows(row):
    words = " ".join(message["content"] for message in row["messages"]).split()
    return {tuple(words[at : at + 8]) for at in range(len(words) - 7)}


def by_brute_force(rows, ledger):
    """Place of each near-duplicate → what may be said of it."""
    label, found, kept, held_out = ledger["source"][0], {}, {}, []
    for side in ("eval", "train"):
        for place in ledger.index[(ledger["side"] == side) & ledger["fate"].isin(["kept", "near_duplicate"])]:
            own, found[place] = windows(rows[place]), set()
            for other, theirs in kept.items():
                same = len(own & theirs)
                if own and same / len(own) >= 0.8:
                    found[place].add(f"{same / len(own):.0%} of its windows stand in {label} row {other}")
                if len(theirs) >= 8 and other in held_out and same / len(theirs) >= 0.8:
                    found[place].add(f"it holds {same / len(theirs):.0%} of the windows of {label} row {other}")
            if not found[place]:
                kept[place] = own
        held_out = [*kept]
    return {place: said for place, said in found.items() if said}


@pytest.mark.parametrize("seed", range(4))
def test_one_of_each_group_is_kept_as_brute_force_finds_and_names(tmp_path, seed, small_batches):
    rows = list(passages(random.Random(seed), 150))
    made = make_of(tmp_path, rows, near_duplicates="drop", eval_fraction=0.4)
    expected = by_brute_force(rows, made.ledger)
    assert [n for n, fate in enumerate(made.fates) if fate == "near_duplicate"] == sorted(expected)
    assert len(expected) > 20
    told = {place: made.ledger["detail"][place] for place in expected}
    assert all(words in expected[place] for place, words in told.items())
    assert any(words.startswith("it holds") for words in told.values()), "a held-out one stands in a longer one"
    named = {place: int(words.rsplit(" ", 1)[1]) for place, words in told.items()}
    assert any(there > here for here, there in named.items()), "one to learn gives way to one held out further down"
    for side in ("train", "eval"):
        kept = made.ledger[(made.ledger["fate"] == "kept") & (made.ledger["side"] == side)]
        assert [row["index"] for row in made.rows(side)] == kept["index"].tolist()


@pytest.mark.parametrize("limit", [near_duplicates.LIMIT, 2_000])
def test_the_same_on_two_processes_and_in_other_batches_where_all_windows_fit_and_where_not(
    tmp_path, monkeypatch, limit
):
    monkeypatch.setattr(near_duplicates, "LIMIT", limit)
    path = write_lines(tmp_path / "a.jsonl", passages(random.Random(9), 200))
    one = make(tmp_path / "one", [path], near_duplicates="drop")
    monkeypatch.setattr(lines, "BATCH_ROWS", 7)
    two = make(tmp_path / "two", [path], near_duplicates="drop", data_processes=2)
    pd.testing.assert_frame_equal(one.ledger, two.ledger)  # its file has a group of rows for each batch
    first, second = (
        {name: data for name, data in tree(made.folder).items() if name != "ledger.parquet"} for made in (one, two)
    )
    assert first == second
    assert (one.summary["near_duplicates"]["one_window_in"] > 1) is (limit == 2_000)
    assert one.summary["near_duplicates"]["rows"] == one.fates.count("near_duplicate") > 0


def test_of_windows_that_do_not_fit_some_are_looked_at_and_tell_95_from_60_percent(tmp_path, monkeypatch):
    monkeypatch.setattr(near_duplicates, "LIMIT", 10_000)
    rows = []
    for number in range(60):  # every other row repeats that much of the one before, in one piece
        text = [f"{number}-{place}" for place in range(500)]
        other = [f"{number}+{place}" for place in range(500)]
        same = 25 if number % 2 else 200
        rows += [chat(f"Tell {number}", " ".join(text)), chat(f"Say {number}", " ".join(other[:same] + text[same:]))]
    made = make_of(tmp_path, rows, max_length=8_000, near_duplicates="report", eval_fraction=0.1)
    found = made.summary["near_duplicates"]
    assert (found["rows"], found["looked_at"], found["one_window_in"]) == (30, 120, 8)
    assert "windows looked at" in found["shown"][0]["detail"]
    assert "one in 8 windows" in near_duplicates_line(made.summary)


def test_a_report_counts_and_shows_three_and_changes_nothing_else(tmp_path):
    rows = [*chats(40), *(chat("Tell me a story", f"{' '.join(POOL[:50])} {number}") for number in range(5))]
    path = write_lines(tmp_path / "a.jsonl", rows)
    off, report = (make(tmp_path / mode, [path], near_duplicates=mode) for mode in ("off", "report"))
    files = [tree(made.folder) for made in (off, report)]
    assert {name for name in files[0] if files[0][name] != files[1][name]} == {"summary.json"}
    assert near_duplicates_line(off.summary) == "Near-duplicates were not looked for: near_duplicates is off."
    assert "(report): 4 of 45 conversations share 80 %" in near_duplicates_line(report.summary)
    shown = report.summary["near_duplicates"]["shown"]
    assert len(shown) == 3 and all(one["detail"].endswith(f"{report.sources[0].label} row 40") for one in shown)
    table = drops_table(json.loads(files[1]["samples.json"]), report.summary).data
    assert table.count("near_duplicate (reported, kept)") == 3
    short = make_of(tmp_path / "short", [chat("Hi", "Hello"), chat("Hi", "you")], near_duplicates="drop")
    assert short.fates == ["kept"] * 2 and short.summary["near_duplicates"]["looked_at"] == 0
