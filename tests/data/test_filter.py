"""The stage as a whole: everything accounted for, the same result however it is run, and sides that never change."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
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
from nbutils.data import lines
from nbutils.data.display import beside_line, example, fates_table, limits_table
from nbutils.data.filter import filter_sources, processes_for
from nbutils.data.row_batches import Batch, in_order
from nbutils.data.row_filter import LEDGER_SCHEMA, RowFilter
from nbutils.data.summary import write_summary
from tests.conftest import sentencepiece_tokenizer
from tests.core.test_chatml import unigram
from tests.data.making import Made, chat, chats, make, make_of, rows_of, settings_for, write_lines

LONG = [text for i in range(60) for text in (f"Tell me more about number {i}.", f"{i} " * 9)]
ANSWER = {"messages": chat("", "Hello")["messages"][1:]}


def one_of_each() -> list:
    """A row for every fate but `contaminated` and `outside_vocabulary`, then some that are kept."""
    return [
        b'{"messages": [}',
        ANSWER,
        chat("Hello"),
        {"messages": ANSWER["messages"] + chat("Hi", "So?")["messages"]},
        chat("Hello", " "),
        chat(*LONG),
        chat("Is this the same?", "Yes,  the same"),
        chat(" Is this the\tsame?", "Yes, the same\n"),
        chat("Lost?", "Never.", "Then why"),
        *chats(40),
    ]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Made:
    """A run over two datasets."""
    folder = tmp_path_factory.mktemp("mixed")
    first = write_lines(folder / "first.jsonl", one_of_each())
    second = write_lines(folder / "second.jsonl", [*rows_of("alpaca"), *rows_of("alpaca")[:2]])
    return make(folder / "run", [first, second])


def test_every_raw_row_is_in_the_ledger_once_with_one_fate_and_why(mixed):
    first, second = (source.label for source in mixed.sources)
    ledger = mixed.ledger.set_index(["source", "index"])
    assert ledger.index.tolist() == [(first, i) for i in range(49)] + [(second, i) for i in range(12)]
    expected = ["malformed", "no_user_turn", "no_assistant_turn", "bad_roles", "empty_message", "too_long", "kept",
                "duplicate", "kept"]  # fmt: skip
    assert ledger.loc[first, "fate"].tolist() == expected + ["kept"] * 40
    assert ledger.loc[second, "fate"].tolist() == ["kept"] * 10 + ["duplicate"] * 2
    details = ledger.loc[first, "detail"]
    assert "no JSON" in details[0]
    said = ["the assistant speaks first", "turn 2 (assistant)", f"same as {first} row 6"]
    assert details[[3, 4, 7]].tolist() == said
    row = mixed.ledger.iloc[8]
    assert (row["lost_last_user_turn"], row["turns"], row["characters"]) == (True, 2, len("Lost?Never."))
    assert set(mixed.ledger.columns) == set(LEDGER_SCHEMA.names)
    assert mixed.summary["trimmed_rows"] == 1
    described = [(one["rows"], one["rows_in_source"], one["shape"]) for one in mixed.summary["datasets"]]
    assert described == [(49, 49, "messages"), (12, 12, "alpaca")]


def test_what_every_row_holds_and_an_over_long_one_is_read_no_further_than_it_must_be(mixed):
    assert list(mixed.rows("train")[0]) == ["source", "index", "messages", "input_ids", "supervised", "context"]
    row = mixed.ledger.iloc[5]
    assert 200 < row["tokens"] < len(encode(mixed.tokenizer, chat(*LONG)["messages"]))
    assert pd.isna(row["supervised_tokens"])
    assert mixed.ledger["tokens_is_lower_bound"].tolist() == [i == 5 for i in range(61)]


@pytest.mark.parametrize("bytes_too", [False, True])
def test_a_text_that_the_vocabulary_cannot_write_or_joins_to_its_header(tmp_path, capsys, bytes_too):
    tokenizer = unigram("▁user", "\nZebra", bytes_too=bytes_too)
    tokenizer.save_pretrained(tmp_path / "base")
    LlamaConfig(vocab_size=len(tokenizer)).save_pretrained(tmp_path / "base")
    rows = [*chats(20), chat("Zebra", "Fine 🙂")]
    made = make_of(tmp_path, rows, base_model=str(tmp_path / "base"))
    assert made.ledger["fate"].tolist() == ["kept"] * 20 + ["kept" if bytes_too else "outside_vocabulary"]
    assert ("read apart" if bytes_too else "no piece for '🙂'") in made.ledger["detail"][20]
    assert made.summary["tokenizer"].get("conversations_read_apart") == (1 if bytes_too else None)
    assert ("Of 1 conversations texts were read apart" in capsys.readouterr().out) == bytes_too


def row_filter(made: Made) -> RowFilter:
    """The filter of a run's first source."""
    (source, *_) = made.sources
    return RowFilter(source.spec, source.shape, settings_for(made.folder.parent, [source.spec]), made.folder)


def picked(made: Made, *names: str) -> list:
    return [made.summary[name] for name in names]


def tree(folder: Path) -> dict[str, str]:
    """File → hash, of all that the stage writes."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def thousand(tmp_path_factory) -> tuple[Made, str]:
    """A run over 1,600 rows, some of them twice, and these rows as Parquet."""
    folder = tmp_path_factory.mktemp("thousand")
    rows = [*chats(700), chat(*LONG), *chats(700), *chats(199, "b")]
    Dataset.from_list(rows).to_parquet(folder / "rows.parquet")
    return make_of(folder, rows), str(folder / "rows.parquet")


def test_the_same_on_any_number_of_processes_and_from_any_kind_of_file(thousand, tmp_path):
    one, parquet = thousand
    assert one.ledger[one.ledger["fate"] == "duplicate"]["index"].tolist() == list(range(701, 1_401))
    two = make(tmp_path / "two", [one.sources[0].spec], data_processes=2)
    assert tree(one.folder) == tree(two.folder)
    for name, streaming in (("file", False), ("stream", True)):
        made = make(tmp_path / name, [parquet], streaming=streaming, data_processes=2)
        assert picked(made, "eval_hash", "fates") == picked(one, "eval_hash", "fates")
        assert made.summary["datasets"][0]["rows_in_source"] == 1_600


def test_another_engine_can_run_the_row_filter_unchanged(thousand):
    """`Dataset.map` with two processes gives the stage's result, but for duplicates, which need the order of rows."""
    made, parquet = thousand
    work = row_filter(made)
    mapped = Dataset.from_parquet(parquet).with_format("arrow").map(
        lambda table, indices: work(table, indices[0]),
        batched=True, batch_size=128, with_indices=True, num_proc=2, remove_columns=["messages"],
    )  # fmt: skip
    found = mapped.with_format("arrow")[:].select(LEDGER_SCHEMA.names).to_pandas()
    expected = made.ledger.copy()
    expected.loc[expected["fate"] == "duplicate", ["fate", "detail"]] = ["kept", ""]
    pd.testing.assert_frame_equal(found, expected, check_dtype=False)


def test_conversations_that_begin_alike_are_on_one_side_and_a_common_opening_is_named(tmp_path):
    """A row for each answer with all that came before, as people bring it: no held-out row begins as a learnt one."""
    rows = [chat(*(f"{talk}, {i}" for i in range(2 * turns))) for turns in range(1, 5) for talk in range(30)]
    greeted = [chat(" Good\u00a0 day ", "Hello", f"{i}?", "x")["messages"] for i in range(8)]
    rows += [{"messages": [{"role": "system", "content": "Be brief."}, *messages]} for messages in greeted]
    made = make_of(tmp_path, rows)
    growing = made.ledger[:120]
    assert (growing.groupby(growing.index % 30).side.nunique() == 1).all() and growing.side.nunique() == 2
    assert made.ledger[120:].side.nunique() == made.ledger[120:].opening.nunique() == 1
    common = made.summary["openings"]
    assert (common[0]["rows"], common[0]["index"]) == (8, 120)
    assert [one["rows"] for one in common[1:]] == [4] * 30
    assert "31 openings" in (line := beside_line(made.summary)) and "row 120" in line and "8 rows" in line


def test_sides_and_the_evaluation_set_stay_when_rows_are_added_and_copies_cannot_straddle(tmp_path, monkeypatch):
    """Rows of the training side in front shift every later row into another batch, and change nothing else."""
    monkeypatch.setattr(lines, "BATCH_ROWS", 50)
    rows, new = chats(150), chats(100, "new")
    plain = make_of(tmp_path, rows)
    sides = make_of(tmp_path, new, same_tokenizer=True).ledger["side"]
    train = [row for row, side in zip(new, sides, strict=True) if side == "train"]
    more = make_of(tmp_path, [*train, *rows, *rows[::-1]], same_tokenizer=True)
    kept = more.ledger[more.ledger["fate"] == "kept"]
    assert kept["hash"].is_unique and 0 < len(train) < 100
    assert kept["side"].tolist() == ["train"] * len(train) + plain.ledger["side"].tolist()
    assert picked(more, "eval", "eval_hash") == picked(plain, "eval", "eval_hash")


def test_split_seed_moves_sides_and_the_seed_of_samples_moves_nothing(tmp_path):
    plain, moved, same = (make_of(tmp_path, one_of_each(), **v) for v in ({}, {"split_seed": 1}, {"seed": 1}))
    assert plain.ledger["side"].tolist() != moved.ledger["side"].tolist()
    assert plain.summary == same.summary


def test_a_fraction_takes_the_same_rows_wherever_the_file_lies_and_the_others_are_counted_and_shown(tmp_path):
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        Dataset.from_list(chats(1_000)).to_parquet(tmp_path / name / "a.parquet")
    half, moved, more = (
        make(tmp_path / "run", [{"path": str(tmp_path / name / "a.parquet"), "fraction": share}], streaming=streaming)
        for name, share, streaming in (("here", 0.5, False), ("there", 0.5, True), ("here", 0.8, False))
    )
    assert list(half.ledger["index"]) == list(moved.ledger["index"])
    assert set(half.ledger["index"]) < set(more.ledger["index"])
    taken = len(half.ledger)
    assert 430 < taken < 570
    for made in (half, moved):
        described = made.summary["datasets"][0]
        assert (described["rows"], described["rows_in_source"]) == (taken, 1_000)
        assert made.summary["rows_not_taken"] == 1_000 - taken
        assert f"<th>not taken</th>\n      <td>{1_000 - taken:,}</td>" in fates_table(made.summary).data


def test_the_tokenizer_of_the_tiny_model_never_reads_the_evaluation_side(tmp_path):
    rows = chats(80)
    first = make_of(tmp_path / "a", rows)
    held_out = first.ledger[first.ledger["side"] == "eval"]["index"].tolist()
    trained = [row for i, row in enumerate(rows) if i not in held_out]
    others = [make_of(tmp_path / "b", trained + [rows[i] for i in of]) for of in (held_out, held_out[:1])]
    assert len({made.tokenizer.backend_tokenizer.to_str() for made in (first, *others)}) == 1


def test_whole_over_long_conversations_of_the_evaluation_side_are_kept_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(filtering, "TOO_LONG_ROWS", 20)
    rows = [chat(f"Story {i}", *LONG[1:40]) for i in range(40)]
    made = make_of(tmp_path, [*rows, *rows[:20], *chats(40)], eval_fraction=0.8)
    found = made.rows("too_long")
    assert len(found) == 20 == made.summary["too_long"]["rows"]
    assert len({json.dumps(row["messages"]) for row in found}) == 20
    numbers = [row["index"] for row in found]
    assert numbers == sorted(numbers)
    assert set(made.ledger["side"][numbers]) == {"eval"}
    assert all(row["input_ids"] == encode(made.tokenizer, row["messages"]).input_ids for row in found[:5])


def test_costs_of_other_limits_are_exact_or_marked_where_only_a_sample_was_counted(tmp_path, monkeypatch):
    words = [3, 30, 300, 450, 700, 1_200]
    rows = [chat(f"{i}", f"{i} " * words[i % 6]) for i in range(120)]
    tokens = make_of(tmp_path, rows, max_length=9_999).ledger["tokens"]
    exact = make_of(tmp_path, rows, max_length=100, same_tokenizer=True).summary
    monkeypatch.setattr(filtering, "COUNTED_ROWS", 30)
    sampled = make_of(tmp_path, rows, max_length=100, same_tokenizer=True).summary
    assert [cost["limit"] for cost in exact["limits"]] == [100, 512, 1024, 2048]
    for cost, about in zip(exact["limits"], sampled["limits"], strict=True):
        over = tokens > cost["limit"]
        shares = {"share_of_rows": over.mean(), "share_of_tokens": tokens[over].sum() / tokens.sum()}
        assert cost == pytest.approx({"limit": cost["limit"], **shares})
        assert about == pytest.approx(cost, abs=0.15)
    assert sampled["limits"] != exact["limits"]
    assert exact["limits"][1]["share_of_rows"] > exact["limits"][2]["share_of_rows"] > 0
    lengths = sampled["lengths"]
    assert (lengths["counted"], lengths["too_long"], round(sum(lengths["rows"]))) == (30, 80, 120)
    assert lengths["rows"][:16] == exact["lengths"]["rows"][:16]
    assert "≈" not in limits_table(exact).to_string()
    assert limits_table(sampled)["share_of_tokens dropped"].str.startswith("≈ ").all()


def test_three_drops_of_each_reason_are_kept_to_look_at(tmp_path):
    made = make_of(tmp_path, [*one_of_each(), *one_of_each()[:5], *(chat(f"{i}?") for i in range(20))])
    for reason, found in json.loads((made.folder / "samples.json").read_text()).items():
        assert len(found) == min(3, made.summary["fates"][reason]["rows"])
        assert all(made.fate(row["index"]) == reason for row in found)


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("killed", [False, True])
def test_stopped_half_way_leaves_nothing_that_looks_finished_and_starts_again(tmp_path, monkeypatch, killed):
    """Killed without warning, it takes its workers along."""
    rows = chats(1_200)
    made = make_of(tmp_path, rows)
    expected, whole = tree(made.folder), filtering.duplicates_marked

    def deadly(result: pa.Table, source: str, first: dict) -> pa.Table:
        if len(first) >= 1_000:
            if not killed:
                raise KeyboardInterrupt
            (tmp_path / "workers").write_text(json.dumps([one.pid for one in psutil.Process().children()]))
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(result, source, first)

    with monkeypatch.context() as patched:
        patched.setattr(filtering, "duplicates_marked", deadly)
        if killed:
            fork = multiprocessing.get_context("fork").Process
            child = fork(target=make_of, args=(tmp_path, rows), kwargs={"data_processes": 2})
            child.start()
            child.join()
            assert child.exitcode == -signal.SIGKILL
            workers = json.loads((tmp_path / "workers").read_text())
            deadline = time.monotonic() + 20
            while any(map(alive, workers)) and time.monotonic() < deadline:
                time.sleep(0.1)
            assert workers and not any(map(alive, workers))
            assert list(made.folder.glob(".*.partial*"))
        else:
            with pytest.raises(KeyboardInterrupt):
                make_of(tmp_path, rows, data_processes=2)
    assert not [name for name in filtering.WRITTEN if (made.folder / name).exists()]
    assert tree(make_of(tmp_path, rows).folder) == expected


@pytest.mark.parametrize("fraction", [1, 0.5])
def test_a_source_that_changes_while_it_is_read_is_noticed(tmp_path, fraction):
    path = write_lines(tmp_path / "a.jsonl", chats(60))
    settings = settings_for(tmp_path / "run", [{"path": path, "fraction": fraction}])
    made = make(settings.run_path, settings.datasets)
    write_lines(Path(path), chats(55))
    found = filter_sources(settings, made.sources, made.folder)
    with pytest.raises(UserError, match="had 60 rows when it was opened, and 55"):
        write_summary(made.folder, settings, made.sources, made.tokenizer, found, None)


def killed() -> pa.Table:
    """Stands for a read that takes more memory than there is."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def test_a_killed_worker_is_an_error_in_a_sentence(mixed):
    source = replace(mixed.sources[0], batches=lambda: iter([Batch(0, killed)]))
    with pytest.raises(UserError, match="smaller data_processes"):
        list(in_order(row_filter(mixed), source, 2))


def test_the_example_is_a_whole_conversation_with_some_turns_where_there_is_one(mixed, tmp_path):
    rows = [*chats(60), chat(*LONG[:12]), *(chat(f"{i}?", "a", "b", "c") for i in range(9))]
    made = make_of(tmp_path, rows)
    assert [m["content"] for m in example(made.folder / "train")["messages"]][1:] == ["a", "b", "c"]
    assert len(example(mixed.folder / "train")["messages"]) == 2


def test_few_rows_are_not_worth_another_process():
    assert (processes_for(0, 100), processes_for(3, 100)) == (1, 3)
    assert processes_for(0, None) >= 1


def test_a_base_model_brings_its_own_tokenizer(tmp_path):
    sentencepiece_tokenizer().save_pretrained(tmp_path / "base")
    (tmp_path / "base" / "config.json").write_text('{"model_type": "llama"}')
    made = make_of(tmp_path, [*chats(30), chat(*LONG)], base_model=str(tmp_path / "base"))
    facts = made.summary["tokenizer"]
    assert [facts[name] for name in ("pieces", "im_start", "im_end", "pad")] == [32_003, 32_000, 32_001, 32_002]
    for row in made.kept.values():
        assert row["input_ids"] == encode(made.tokenizer, row["messages"]).input_ids
    assert made.fate(30) == "too_long"
