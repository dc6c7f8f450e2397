"""Passages of a text in the training data: the same as a search by hand finds, where they stand, and the command."""

import copy
import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.normalizers import NFC

from nbutils.cli import main
from nbutils.core.files import write_text
from nbutils.core.origin.index import Index
from nbutils.core.run.layout import Run
from tests.builders import small_tokenizer
from tests.core.test_chatml import turns
from tests.metrics.histories import write_done


@pytest.fixture(autouse=True, scope="module")
def _cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nbutils.core.origin.index.CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


TOKENIZER = small_tokenizer(["how do you do"], 300)


def run_of(folder, conversations, normalizer=None) -> Run:
    """A run whose training rows are these conversations, rows 0, 10, 20, … of their source."""
    tokenizer = copy.deepcopy(TOKENIZER)
    if normalizer:
        tokenizer.backend_tokenizer.normalizer = normalizer
    rows = [{"source": "talk", "index": 10 * n, "messages": turns(*texts)} for n, texts in enumerate(conversations)]
    folder = Path(folder)
    Dataset.from_list(rows).save_to_disk(folder / "data" / "train")
    tokenizer.save_pretrained(folder / "data" / "tokenizer")
    write_done(folder / "data")
    return Run(folder)


def words_of(text):
    """Each word of a text, behind the visible characters before it."""
    return [f"{signs}|{word} " for signs, word in re.findall(r"([!,]*)(東|[ab]|don't)", "".join(text.split()))]


def by_hand(texts, text):
    """Every run of six words or more that stands in one of the texts, in no longer one, and how often."""
    wanted, said = words_of(text), ["".join(words_of(each)) for each in texts]

    def counted(i, j):
        span = "|" + "".join(wanted[i:j]).partition("|")[2]
        return span, sum(text.startswith(span, at) for text in said for at in range(len(text)))

    ends = [max(j for j in range(i, len(wanted) + 1) if j == i or counted(i, j)[1]) for i in range(len(wanted))]
    return [counted(i, j) for i, j in enumerate(ends) if j - i >= 6 and all(before < j for before in ends[:i])]


TEXT = st.lists(st.sampled_from(["a", "a", "b ", "don't", "! ", ",\n", "東"]), max_size=24).map(" ".join)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=4), st.data())
def test_the_spans_are_those_of_a_search_by_hand(conversations, data):
    texts = [text for pair in conversations for text in pair]
    text = " ".join(data.draw(st.lists(st.sampled_from(texts) | TEXT, min_size=1, max_size=3)))
    with TemporaryDirectory() as name:
        spans = Index(run_of(Path(name), conversations)).trace(text)
        assert [("".join(words_of(span.text)), span.count) for span in spans] == by_hand(texts, text)
        assert all(text[span.start : span.end] == span.text for span in spans)


@pytest.mark.parametrize(
    "text,spans",
    [
        ("I'm fine, thank you very much indeed", ["I'm fine, thank you very much"]),  # other pieces at both ends
        ("Well:I'm\nfine,  thank you very much", ["I'm\nfine,  thank you very much"]),
        ("good,so you don't like any e-mail...ok", ["so you don't like any e-mail"]),
        ("'I'm fine, thank you very much 🙂'", ["I'm fine, thank you very much"]),
        ("I'm fine, thank you very much🙂🙂", ["I'm fine, thank you very much"]),
        ("i'm fine, thank you very much", []),  # case matters
        ("fine, thank you very much", []),  # five words
        ("one two three four five six", []),  # over a border
        ("one two three<|im_end|>\n<|im_start|>assistant\nfour five six", []),
        ("你想去北京看看吗", ["想去北京看看"]),
        ("यहाँ हिन्दी में यह वाक्य काफी लंबा", ["हिन्दी में यह वाक्य काफी लंबा"]),
        ("में यह वाक्य काफी लंबा", []),
        ("an _emphasis_ at the edges of *snake_case*, no?", ["emphasis_ at the edges of *snake_case"]),
        ("_emphasis_ at the edges of snake_case", []),
        ("so cafe\u0301 au lait is very nice", ["caf\u00e9 au lait is very nice"]),
    ],
)
def test_what_a_span_is(text, spans, tmp_path):
    conversations = [
        ["Oh, I'm fine, thank you very much!", "one two three"],
        ["one two three", "four five six", "And so you don't like any e-mail.", "हिन्दी में यह वाक्य काफी लंबा है"],
        ["我想去北京看看", "My caf\u00e9 au lait is very nice"],
        ["emphasis_ at the edges of *snake_case*", "Yes"],
    ]
    index = Index(run_of(tmp_path, conversations, NFC()))
    assert [span.text for span in index.trace(text)] == spans


PLANTED = "the zebra of my aunt sings in tune"
HOSTILE = f"\x1b[31m So {PLANTED}, \x9b2J she says"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of the test's own."""
    monkeypatch.setattr("nbutils.core.origin.index.CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def planted(tmp_path) -> Run:
    return run_of(tmp_path / "run", [["Hi", "Hello"], [PLANTED, f"{PLANTED}? Yes: {PLANTED}"], ["What?", HOSTILE]])


def test_where_a_span_stands_and_how_often(planted):
    index = Index(planted)
    (span,) = index.trace(f"Do you know that {PLANTED}!")
    assert (span.text, span.words, span.count, span.conversations) == (PLANTED, 8, 4, 2)
    assert [place.name for place in index.places(span, 5)] == [
        "talk row 10, message 1 (user)",
        "talk row 20, message 2 (assistant)",
    ]
    (place,) = list(index.places(span, 5))[1:]
    assert place.text == HOSTILE and place.passage(6) == ("…1m So ", PLANTED, ", \x9b2J …")
    assert len(list(index.places(span, 1))) == 1
    assert [index.is_message(text) for text in (PLANTED, f" {PLANTED}\n", f"{PLANTED}?", HOSTILE[8:])] == [
        True, True, False, False,
    ]  # fmt: skip


@pytest.mark.parametrize("damage", [lambda data: data[:-3], lambda data: data[:-3] + b"123", None])
def test_an_index_is_made_once_and_again_where_it_is_damaged(damage, planted, cache):
    Index(planted)
    (file,) = cache.iterdir()
    made, whole = file.stat().st_ino, file.read_bytes()
    assert Index(planted).trace(PLANTED) and file.stat().st_ino == made
    file.write_bytes(damage(whole)) if damage else file.unlink()
    (span,) = Index(planted).trace(PLANTED)
    assert span.count == 4 and [(each, each.read_bytes()) for each in cache.iterdir()] == [(file, whole)]


def test_indexes_that_were_not_used_for_longest_go_and_nobody_loses_what_he_reads(planted, cache, monkeypatch):
    monkeypatch.setattr("nbutils.core.origin.index.KEPT", 3)
    write_text(cache / "index of before" / "text.npy", "")
    index = Index(planted)
    before = [*cache.iterdir()]
    for file in before:
        os.utime(file, (1, file.stat().st_mtime))
    runs = [run_of(planted.path / str(number), [["Hi", f"Hello {number % 3}"]]) for number in range(6)]
    with ThreadPoolExecutor(2) as several:  # they remove what the other sees
        assert not any(other.trace(PLANTED) for other in several.map(Index, runs))
    assert 0 < len([*cache.iterdir()]) <= 3 and not any(old.exists() for old in before)
    assert index.trace(PLANTED)[0].count == Index(planted).trace(PLANTED)[0].count == 4


def test_the_command_tells_a_person_and_a_program(planted, capsys):
    line = ["origin", str(planted.path), "--text", f"Oh: {PLANTED}."]
    assert main(line) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"“{PLANTED}”: 8 words, 4 times in 2 conversations",
        f"  talk row 10, message 1 (user): [{PLANTED}]",
        f"  talk row 20, message 2 (assistant): ␛[31m So [{PLANTED}], \ufffd2J she says",
    ]
    assert main([*line, "--json"]) == 0
    (span,) = json.loads(capsys.readouterr().out)["spans"]
    assert span["start"] == 4 and [place["row"] for place in span["places"]] == [10, 20]
    assert main(["origin", str(planted.path), "--text", f"\udce9 {PLANTED.upper()}"]) == 0
    assert capsys.readouterr().out == "no 6 words in a row stand in the training data\n"


@pytest.mark.parametrize(
    "text,words", [("", "has 0 words"), ("I ! , am . here", "has 3 words"), (PLANTED, "01_filter_data.ipynb")]
)
def test_what_cannot_be_traced_is_one_sentence(text, words, refused, tmp_path):
    assert words in refused("origin", tmp_path / "nothing", "--text", text)


def test_rows_that_are_not_whole_and_an_index_that_cannot_be_written_are_one_sentence(planted, refused, monkeypatch):
    line = ("origin", planted.path, "--text", PLANTED)
    monkeypatch.setattr("nbutils.core.origin.index.CACHE", str(planted.path / "data" / "stage.json"))
    assert "cannot be written" in refused(*line)
    write_done(planted.rows, status="paused")
    assert "no training rows as they were made" in refused(*line)
    write_done(planted.rows)
    (rows,) = (planted.rows / "train").glob("*.arrow")
    for file in (planted.rows / "train" / "state.json", rows):
        whole = file.read_bytes()
        file.write_bytes(whole[:-1])
        assert "no training rows as they were made" in refused(*line)
        file.unlink()
        assert "no training rows as they were made" in refused(*line)
        file.write_bytes(whole)
