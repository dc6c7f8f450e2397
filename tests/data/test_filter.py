"""The stage as a whole: everything accounted for, the same result however it is run, and sides that never change."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import psutil
import pyarrow as pa
import pytest
from datasets import Dataset
from transformers import LlamaConfig

from nbutils.core.chatml import encode
from nbutils.core.errors import UserError
from nbutils.data import filter as filtering
from nbutils.data.batches import Batch, in_order
from nbutils.data.display import beside_line, example, fates_table, limits_table
from nbutils.data.filter import filter_sources, processes_for
from nbutils.data.row_filter import LEDGER_SCHEMA, SCHEMA, RowFilter, loaded_tokenizer
from nbutils.data.settings import DataSettings
from nbutils.data.sources import open_source
from nbutils.data.summary import write_summary
from tests.core.test_chatml import unigram
from tests.data.making import FIVE, Made, chats, make, messages, rows_of, settings_for, write_lines

LONG = [turn for i in range(60) for turn in (("user", f"Tell me more about number {i}."), ("assistant", f"{i} " * 9))]


def one_of_each() -> list:
    """A row for every fate but `contaminated` and `outside_vocabulary`, then some that are kept."""
    return [
        b'{"messages": [}',
        {"messages": messages([("assistant", "Hello")])},
        {"messages": messages([("user", "Hello")])},
        {"messages": messages([("assistant", "Hello"), ("user", "Hi"), ("assistant", "So?")])},
        {"messages": messages([("user", "Hello"), ("assistant", " ")])},
        {"messages": messages(LONG)},
        {"messages": messages([("user", "Is this the same?"), ("assistant", "Yes,  the same")])},
        {"messages": messages([("user", " Is this the\tsame?"), ("assistant", "Yes, the same\n")])},
        {"messages": messages([("user", "Lost?"), ("assistant", "Never."), ("user", "Then why")])},
        *chats(40),
    ]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Made:
    """A run over two datasets."""
    folder = tmp_path_factory.mktemp("mixed")
    first = write_lines(folder / "first.jsonl", one_of_each())
    second = write_lines(folder / "second.jsonl", [*rows_of("alpaca"), *rows_of("alpaca")[:2]])
    return make(folder / "run", [first, second])


def test_every_raw_row_is_in_the_ledger_once_with_one_fate(mixed):
    first, second = (source.label for source in mixed.sources)
    assert mixed.ledger.groupby("source")["index"].apply(list).to_dict() == {
        first: list(range(49)),
        second: list(range(12)),
    }
    expected = ["malformed", "no_user_turn", "no_assistant_turn", "bad_roles", "empty_message", "too_long", "kept",
                "duplicate", "kept"]  # fmt: skip
    assert mixed.ledger[mixed.ledger["source"] == first]["fate"].tolist() == expected + ["kept"] * 40
    assert mixed.ledger[mixed.ledger["source"] == second]["fate"].tolist() == ["kept"] * 10 + ["duplicate"] * 2


def test_the_summary_reconciles_with_ledger_sets_and_sources(mixed):
    summary, ledger = mixed.summary, mixed.ledger
    assert summary["rows"] == len(ledger) == 61
    for fate, counts in summary["fates"].items():
        rows = ledger[ledger["fate"] == fate]
        assert counts == {"rows": len(rows), "tokens": int(rows["tokens"].sum())}
    for side in ("train", "eval"):
        rows = ledger[(ledger["fate"] == "kept") & (ledger["side"] == side)]
        found = mixed.rows(side)
        assert summary[side]["rows"] == len(rows) == len(found) > 0
        assert summary[side]["tokens"] == rows["tokens"].sum() == sum(len(row["input_ids"]) for row in found)
        assert summary[side]["supervised_tokens"] == rows["supervised_tokens"].sum()
        assert summary[side]["supervised_tokens"] == sum(sum(row["supervised"]) for row in found)
        assert list(zip(rows["source"], rows["index"], strict=True)) == [(r["source"], r["index"]) for r in found]
    assert [(d["rows"], d["rows_in_source"], d["shape"]) for d in summary["datasets"]] == [
        (49, 49, "messages"),
        (12, 12, "alpaca"),
    ]
    assert summary["trimmed_rows"] == 1


def test_kept_rows_are_encoded_as_everywhere_and_none_is_cut(mixed):
    tokenizer = loaded_tokenizer(str(mixed.folder / "tokenizer"))
    for row in mixed.kept.values():
        encoding = encode(tokenizer, row["messages"])
        assert (row["input_ids"], row["supervised"]) == (encoding.input_ids, encoding.supervised)
        assert len(encoding) <= 200
        assert row["messages"][-1]["role"] == "assistant"
    assert list(mixed.rows("train")[0]) == ["source", "index", "messages", "input_ids", "supervised", "context"]


def test_details_tell_why(mixed):
    details = mixed.ledger.set_index(["source", "index"])["detail"]
    first = mixed.sources[0].label
    assert "no JSON" in details[first, 0]
    assert details[first, 3] == "the assistant speaks first"
    assert details[first, 4] == "turn 2 (assistant)"
    assert details[first, 7] == f"same as {first} row 6"
    row = mixed.ledger.iloc[8]
    assert (row["lost_last_user_turn"], row["turns"], row["characters"]) == (True, 2, len("Lost?Never."))


def test_an_over_long_row_is_read_no_further_than_it_must_be(mixed):
    row = mixed.ledger.iloc[5]
    whole = len(encode(loaded_tokenizer(str(mixed.folder / "tokenizer")), messages(LONG)))
    assert row["tokens_is_lower_bound"]
    assert 200 < row["tokens"] < whole
    assert pd.isna(row["supervised_tokens"])
    assert not mixed.ledger.drop(index=5)["tokens_is_lower_bound"].any()


def test_the_ledger_has_the_columns_that_were_promised(mixed):
    promised = ["source", "index", "fate", "detail", "turns", "characters", "tokens", "tokens_is_lower_bound",
                "supervised_tokens", "side", "hash"]  # fmt: skip
    assert set(promised) <= set(mixed.ledger.columns) == set(LEDGER_SCHEMA.names)


@pytest.mark.parametrize("bytes_too", [False, True])
def test_a_text_that_the_vocabulary_cannot_write_or_joins_to_its_header(tmp_path, capsys, bytes_too):
    tokenizer = unigram("▁user", "\nZebra", bytes_too=bytes_too)
    tokenizer.save_pretrained(tmp_path / "base")
    LlamaConfig(vocab_size=len(tokenizer)).save_pretrained(tmp_path / "base")
    rows = [*chats(20), {"messages": messages([("user", "Zebra"), ("assistant", "Fine 🙂")])}]
    made = make(tmp_path / "run", [write_lines(tmp_path / "rows.jsonl", rows)], base_model=str(tmp_path / "base"))
    fates = ["kept"] * 20 + ["kept" if bytes_too else "outside_vocabulary"]
    assert made.ledger["fate"].tolist() == fates
    assert ("read apart" if bytes_too else "no piece for '🙂'") in made.ledger["detail"][20]
    assert made.summary["tokenizer"].get("conversations_read_apart") == (1 if bytes_too else None)
    assert ("Of 1 conversations texts were read apart" in capsys.readouterr().out) == bytes_too


def row_filter(settings: DataSettings, made: Made) -> RowFilter:
    """The filter of a run's first source."""
    return RowFilter(made.sources[0].spec, made.sources[0].shape.name, settings, made.folder)


def tree(folder: Path) -> dict[str, str]:
    """File → hash, of all that the stage writes."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def thousand(tmp_path_factory) -> list[str]:
    """A dataset of 1,600 rows, some of them twice, as JSONL and as Parquet."""
    folder = tmp_path_factory.mktemp("thousand")
    rows = [*chats(700), {"messages": messages(LONG)}, *chats(700), *chats(199, "b")]
    Dataset.from_list(rows).to_parquet(folder / "rows.parquet")
    return [write_lines(folder / "rows.jsonl", rows), str(folder / "rows.parquet")]


def test_the_same_bytes_again_and_on_any_number_of_processes(thousand, tmp_path):
    one = make(tmp_path / "one", thousand[:1])
    again = make(tmp_path / "again", thousand[:1])
    two = make(tmp_path / "two", thousand[:1], data_processes=2)
    assert tree(one.folder) == tree(again.folder) == tree(two.folder)
    assert one.summary["fates"]["duplicate"]["rows"] == 700
    assert one.ledger[one.ledger["fate"] == "duplicate"]["index"].tolist() == list(range(701, 1_401))


def test_streaming_and_files_of_another_kind_give_the_same_sets(thousand, tmp_path):
    lines, parquet = thousand
    sets = [
        make(tmp_path / "a", [lines]),
        make(tmp_path / "b", [parquet], data_processes=2),
        make(tmp_path / "c", [parquet], streaming=True, data_processes=2),
    ]
    assert len({made.summary["eval_hash"] for made in sets}) == 1
    assert len({json.dumps(made.summary["fates"]) for made in sets}) == 1
    assert sets[2].summary["datasets"][0]["rows_in_source"] == 1_600


def test_another_engine_can_run_the_row_filter_unchanged(thousand, tmp_path):
    """`Dataset.map` with two processes gives the stage's result, but for duplicates, which need the order of rows."""
    made = make(tmp_path / "run", thousand[1:])
    settings = settings_for(tmp_path / "run", thousand[1:])
    work = row_filter(settings, made)
    data = Dataset.from_parquet(thousand[1]).with_format("arrow")
    mapped = data.map(
        lambda table, indices: work(table, indices[0]),
        batched=True, batch_size=128, with_indices=True, num_proc=2, remove_columns=["messages"],
    )  # fmt: skip
    found = mapped.with_format("arrow")[:].select(LEDGER_SCHEMA.names).to_pandas()
    expected = made.ledger.copy()
    again = expected["fate"] == "duplicate"
    expected.loc[again, ["fate", "detail"]] = ["kept", ""]
    pd.testing.assert_frame_equal(found, expected, check_dtype=False)


def test_a_side_never_changes_when_rows_are_added_and_copies_cannot_straddle(tmp_path):
    rows = chats(60)
    small = make(tmp_path / "small", [write_lines(tmp_path / "small.jsonl", rows)])
    more = [*chats(100, "new"), *rows[::-1], *rows]
    large = make(tmp_path / "large", [write_lines(tmp_path / "large.jsonl", more)])
    before = small.ledger.set_index("hash")["side"].to_dict()
    kept = large.ledger[large.ledger["fate"] == "kept"]
    assert kept["hash"].is_unique
    after = kept.set_index("hash")["side"].to_dict()
    assert {key: after[key] for key in before} == before
    assert set(before.values()) == {"train", "eval"}


def test_conversations_that_begin_alike_are_on_one_side_and_a_common_opening_is_named(tmp_path):
    """A row for each answer with all that came before, as people bring it: no held-out row begins as a learnt one."""
    turns = {
        talk: [(role, f"{role} {talk}, {i}") for i in range(4) for role in ("user", "assistant")] for talk in range(30)
    }
    rows = [{"messages": messages(turns[talk][: 2 * n])} for n in range(1, 5) for talk in turns]
    said = [("system", "Be brief."), ("user", " Good\u00a0 day "), ("assistant", "Hello")]
    rows += [{"messages": messages([*said, ("user", f"{i}?"), ("assistant", "x")])} for i in range(8)]
    made = make(tmp_path, [write_lines(tmp_path / "growing.jsonl", rows)])
    growing = made.ledger[:120]
    assert (growing.groupby(growing.index % 30).side.nunique() == 1).all() and growing.side.nunique() == 2
    assert made.ledger[120:].side.nunique() == made.ledger[120:].opening.nunique() == 1
    common = made.summary["openings"]
    assert [(one["rows"], one["index"]) for one in common[:2]] == [(8, 120), (4, common[1]["index"])] and len(
        common
    ) == 31
    assert "31 openings" in (line := beside_line(made.summary)) and "row 120" in line and "8 rows" in line


def test_the_hash_of_the_evaluation_set_does_not_depend_on_where_batches_end(tmp_path):
    """Rows of the training side in front shift every later row into another batch, and change nothing else."""
    rows = chats(600)
    plain = make(tmp_path / "run", [write_lines(tmp_path / "plain.jsonl", rows)])
    side = plain.ledger["side"].tolist()
    more = [
        {"messages": messages([("user", f"(again) {m[0]['content']}"), *((x["role"], x["content"]) for x in m[1:])])}
        for m in (row["messages"] for row in rows)
    ]
    probe = make(tmp_path / "run", [write_lines(tmp_path / "probe.jsonl", more)], same_tokenizer=True)
    train = [row for row, where in zip(more, probe.ledger["side"], strict=True) if where == "train"]
    path = write_lines(tmp_path / "longer.jsonl", [*train, *rows])
    longer = make(tmp_path / "run", [path], same_tokenizer=True)
    assert longer.ledger["side"].tolist()[len(train) :] == side
    assert longer.summary["eval"] == plain.summary["eval"]
    assert longer.summary["eval_hash"] == plain.summary["eval_hash"]


def test_split_seed_moves_sides_and_the_seed_of_samples_moves_nothing(tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", one_of_each())
    made = [make(tmp_path / str(i), [path], **v) for i, v in enumerate([{}, {"split_seed": 1}, {"seed": 1}])]
    assert made[0].ledger["side"].tolist() != made[1].ledger["side"].tolist()
    assert made[0].summary == made[2].summary


def test_a_fraction_takes_the_same_rows_wherever_the_file_lies(tmp_path):
    here, there = (
        make(tmp_path / name, [{"path": write_lines(tmp_path / name / "in" / "a.jsonl", chats(200)), "fraction": 0.5}])
        for name in ("here", "there")
    )
    assert list(here.ledger["index"]) == list(there.ledger["index"])


def test_fractions_take_a_stable_share_of_rows(tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", chats(1_000))
    half = make(tmp_path / "half", [{"path": path, "fraction": 0.5}])
    more = make(tmp_path / "more", [{"path": path, "fraction": 0.8}])
    assert 430 < len(half.ledger) < 570
    assert set(half.ledger["index"]) < set(more.ledger["index"])


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_that_a_fraction_leaves_out_are_counted_and_shown(tmp_path, streaming):
    path = str(tmp_path / "rows.parquet")
    Dataset.from_list(chats(1_000)).to_parquet(path)
    made = make(tmp_path / "run", [{"path": path, "fraction": 0.5}], streaming=streaming)
    described, taken = made.summary["datasets"][0], len(made.ledger)
    assert (described["rows"], described["rows_in_source"]) == (taken, 1_000)
    assert made.summary["rows_not_taken"] == 1_000 - taken > 0
    assert f"<th>not taken</th>\n      <td>{1_000 - taken:,}</td>" in fates_table(made.summary).data


def test_the_tokenizer_of_the_tiny_model_never_reads_the_evaluation_side(tmp_path):
    rows = chats(80)
    first = make(tmp_path / "a", [write_lines(tmp_path / "a.jsonl", rows)])
    held_out = set(first.ledger[first.ledger["side"] == "eval"]["index"])
    trained = [row for i, row in enumerate(rows) if i not in held_out]
    second = make(tmp_path / "b", [write_lines(tmp_path / "b.jsonl", [*trained, *(rows[i] for i in held_out)])])
    third = make(tmp_path / "c", [write_lines(tmp_path / "c.jsonl", [*trained, rows[min(held_out)]])])
    files = [(made.folder / "tokenizer" / "tokenizer.json").read_text() for made in (first, second, third)]
    assert files[0] == files[1] == files[2]


def test_whole_over_long_conversations_of_the_evaluation_side_are_kept_apart(tmp_path):
    rows = [{"messages": messages([("user", f"Story {i}"), *LONG[1:]])} for i in range(300)]
    path = write_lines(tmp_path / "a.jsonl", [*rows, *rows[:100], *chats(40)])
    made = make(tmp_path / "run", [path], eval_fraction=0.8)
    found = made.rows("too_long")
    ledger = made.ledger.set_index("index")
    assert len(found) == 200 == made.summary["too_long"]["rows"]
    assert len({json.dumps(row["messages"]) for row in found}) == 200
    assert all(ledger.loc[row["index"], "side"] == "eval" for row in found)
    tokenizer = loaded_tokenizer(str(made.folder / "tokenizer"))
    assert all(row["input_ids"] == encode(tokenizer, row["messages"]).input_ids for row in found[:5])
    assert [row["index"] for row in found] == sorted(row["index"] for row in found)


def test_costs_of_other_limits(tmp_path):
    texts = [("short", 40), ("middle " * 700, 30), ("long " * 1500, 30)]
    rows = [
        {"messages": messages([("user", f"{i} {name[:2]}"), ("assistant", f"{i} {name}")])}
        for name, number in texts
        for i in range(number)
    ]
    path = write_lines(tmp_path / "rows.jsonl", rows)
    low, high = (make(tmp_path / str(n), [path], max_length=n) for n in (256, 4096))
    shares = {cost["limit"]: cost for cost in high.summary["limits"]}
    lengths = high.ledger["tokens"]
    assert len(lengths.dropna()) == 100
    for limit, cost in shares.items():
        assert cost["share_of_rows"] == pytest.approx((lengths > limit).mean())
        assert cost["share_of_tokens"] == pytest.approx(lengths[lengths > limit].sum() / lengths.sum())
    assert shares[512]["share_of_rows"] > shares[1024]["share_of_rows"] > 0
    # All 60 over-long rows fit the sample of 1,000, so the lower limit knows everything too.
    for cost in low.summary["limits"]:
        if cost["limit"] in shares:
            assert cost["share_of_rows"] == pytest.approx(shares[cost["limit"]]["share_of_rows"])
            assert cost["share_of_tokens"] == pytest.approx(shares[cost["limit"]]["share_of_tokens"])
    assert "≈" not in limits_table(low.summary).to_string()


def test_costs_above_the_limit_are_estimates_and_marked_where_only_a_sample_was_counted(tmp_path, monkeypatch):
    words = [3, 30, 300, 600, 900, 1_200]
    rows = [{"messages": messages([("user", f"{i}"), ("assistant", f"{i} " * words[i % 6])])} for i in range(600)]
    path = write_lines(tmp_path / "rows.jsonl", rows)
    exact = make(tmp_path / "run", [path], max_length=100)
    monkeypatch.setattr(filtering, "COUNTED_ROWS", 150)
    sampled = make(tmp_path / "run", [path], max_length=100, same_tokenizer=True)
    lengths = sampled.summary["lengths"]
    assert (lengths["counted"], lengths["too_long"], round(sum(lengths["rows"]))) == (150, 400, 600)
    assert lengths["rows"][:16] == exact.summary["lengths"]["rows"][:16]
    differ = False
    for true, cost in zip(exact.summary["limits"], sampled.summary["limits"], strict=True):
        assert cost["share_of_rows"] == pytest.approx(true["share_of_rows"], abs=0.08)
        assert cost["share_of_tokens"] == pytest.approx(true["share_of_tokens"], abs=0.08)
        differ |= cost["share_of_tokens"] != true["share_of_tokens"]
    assert differ
    assert limits_table(sampled.summary)["share_of_tokens dropped"].str.startswith("≈ ").all()


def test_three_drops_of_each_reason_are_kept_to_look_at(tmp_path):
    rows = [*one_of_each(), *one_of_each()[:5], *({"messages": messages([("user", f"{i}?")])} for i in range(20))]
    made = make(tmp_path / "run", [write_lines(tmp_path / "a.jsonl", rows)])
    samples = json.loads((made.folder / "samples.json").read_text())
    for reason, found in samples.items():
        assert len(found) == min(3, made.summary["fates"][reason]["rows"])
        assert all(made.fate(row["index"]) == reason for row in found)


def test_interrupted_leaves_nothing_that_looks_finished_and_starts_again(tmp_path, monkeypatch):
    path = write_lines(tmp_path / "rows.jsonl", chats(1_200))
    made = make(tmp_path / "run", [path])
    expected = tree(made.folder)

    whole = filtering.duplicates_marked

    def interrupted(result: pa.Table, source: str, first: dict) -> pa.Table:
        if len(first) >= 1_000:
            raise KeyboardInterrupt
        return whole(result, source, first)

    monkeypatch.setattr(filtering, "duplicates_marked", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "run", [path], data_processes=2)
    for name in ("train", "eval", "too_long", "ledger.parquet", "summary.json"):
        assert not (made.folder / name).exists()
    monkeypatch.undo()
    assert tree(make(tmp_path / "run", [path]).folder) == expected


KILLED = """
import os, signal, sys
from pathlib import Path
from nbutils.data import filter as filtering
from tests.data.making import make

whole = filtering.duplicates_marked

def deadly(result, source, first):
    if len(first) >= 3_000:
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(result, source, first)

filtering.duplicates_marked = deadly
make(Path(sys.argv[2]), [sys.argv[1]], data_processes=2)
"""


def test_killed_without_warning_takes_its_workers_along_and_starts_again(tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", chats(6_000))
    done = subprocess.run([sys.executable, "-c", KILLED, path, str(tmp_path / "run")], cwd=Path(__file__).parents[2])
    assert done.returncode == -signal.SIGKILL
    data = tmp_path / "run" / "data"
    assert list(data.glob(".*.partial*"))
    assert not [name for name in ("train", "eval", "ledger.parquet", "summary.json") if (data / name).exists()]

    def left() -> list[int]:
        return [one.pid for one in psutil.process_iter(["cmdline"]) if path in (one.info["cmdline"] or [])]

    deadline = time.monotonic() + 20
    while left() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not left()
    made = make(tmp_path / "run", [path])
    assert made.summary["rows"] == 6_000
    assert not list(data.glob(".*.partial*"))


def test_a_source_that_is_read_in_part_reconciles_too(tmp_path):
    path = Path(write_lines(tmp_path / "a.jsonl", chats(60)))
    settings = settings_for(tmp_path / "run", [{"path": str(path), "fraction": 0.5}])
    made = make(tmp_path / "run", [{"path": str(path), "fraction": 0.5}])
    source = open_source(settings.datasets[0], False)
    write_lines(path, chats(55))
    found = filter_sources(settings, [source], made.folder)
    tokenizer = loaded_tokenizer(str(made.folder / "tokenizer"))
    with pytest.raises(UserError, match="had 60 rows when it was opened, and 55"):
        write_summary(made.folder, settings, [source], tokenizer, found, None)


def test_an_empty_side_is_an_error_in_a_sentence(tmp_path):
    with pytest.raises(UserError, match="No conversation is left for the eval set"):
        make(tmp_path / "run", [write_lines(tmp_path / "a.jsonl", chats(5))], eval_fraction=0.0001)


def test_a_source_that_changes_while_it_is_read_is_noticed(tmp_path):
    path = Path(write_lines(tmp_path / "a.jsonl", chats(30)))
    settings = settings_for(tmp_path / "run", [str(path)])
    made = make(tmp_path / "run", [str(path)])
    source = open_source(settings.datasets[0], False)
    write_lines(path, chats(25))
    found = filter_sources(settings, [source], made.folder)
    tokenizer = loaded_tokenizer(str(made.folder / "tokenizer"))
    with pytest.raises(UserError, match="had 30 rows when it was opened, and 25"):
        write_summary(made.folder, settings, [source], tokenizer, found, None)


def killed() -> pa.Table:
    """Stands for a read that takes more memory than there is."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def test_a_killed_worker_is_an_error_in_a_sentence(tmp_path):
    made = make(tmp_path / "run", [write_lines(tmp_path / "a.jsonl", chats(30))])
    work = row_filter(settings_for(tmp_path / "run", [made.sources[0].spec.path]), made)
    source = replace(made.sources[0], batches=lambda: iter([Batch(0, killed)]))

    with pytest.raises(UserError, match="smaller data_processes"):
        list(in_order(work, source, 2))


def test_the_example_is_a_whole_conversation_with_some_turns_where_there_is_one(tmp_path):
    long = [
        {"messages": messages([("user", f"{i}?"), ("assistant", "a"), ("user", "b"), ("assistant", "c")])}
        for i in range(9)
    ]
    rows = [*chats(60), {"messages": messages(LONG[:12])}, *long]
    made = make(tmp_path / "run", [write_lines(tmp_path / "a.jsonl", rows)])
    assert [m["content"] for m in example(made.folder / "train")["messages"]][1:] == ["a", "b", "c"]
    only_two = make(tmp_path / "two", [write_lines(tmp_path / "b.jsonl", chats(40))])
    assert len(example(only_two.folder / "train")["messages"]) == 2


def test_few_rows_are_not_worth_another_process():
    assert processes_for(0, 100) == 1
    assert processes_for(3, 100) == 3
    assert processes_for(0, None) >= 1


def test_five_shapes_mix(tmp_path):
    paths = [write_lines(tmp_path / f"{shape}.jsonl", rows_of(shape)) for shape in FIVE]
    made = make(tmp_path / "run", paths)
    assert [source.shape.name for source in made.sources] == list(FIVE)
    assert made.ledger["fate"].tolist() == ["kept"] * 50


def test_schema_is_what_the_function_returns(mixed):
    work = row_filter(settings_for(mixed.folder.parent, [mixed.sources[0].spec.path]), mixed)
    batch = next(iter(mixed.sources[0].batches()))
    assert work(batch.read(), 0).schema == SCHEMA
    assert work(batch.read().slice(0, 0), 0).schema == SCHEMA


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece"])
def test_a_base_model_brings_its_own_tokenizer(tmp_path, kind, smollm2_tokenizer_folder):
    from tests.conftest import sentencepiece_tokenizer

    folder = smollm2_tokenizer_folder
    if kind == "sentencepiece":
        folder = tmp_path / "base"
        sentencepiece_tokenizer().save_pretrained(folder)
    base = tmp_path / "model"
    base.mkdir()
    for file in folder.iterdir():
        (base / file.name).write_bytes(file.read_bytes())
    (base / "config.json").write_text('{"model_type": "llama"}')
    path = write_lines(tmp_path / "rows.jsonl", [*chats(30), {"messages": messages(LONG)}])
    made = make(tmp_path / "run", [path], base_model=str(base))
    tokenizer = loaded_tokenizer(str(made.folder / "tokenizer"))
    facts = made.summary["tokenizer"]
    assert facts["pieces"] == len(tokenizer)
    if kind == "sentencepiece":
        assert (facts["im_start"], facts["im_end"], facts["pad"]) == (32000, 32001, 32002)
    for row in made.kept.values():
        assert row["input_ids"] == encode(tokenizer, row["messages"]).input_ids
    assert made.fate(30) == "too_long"
