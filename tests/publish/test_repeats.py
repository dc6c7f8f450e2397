"""Addresses and numbers that the model repeats are found, however they are written, and shown with their places."""

import shutil

import pytest
from datasets import Dataset

from nbutils.core.files import read_json, write_json, write_jsonl
from nbutils.core.run.layout import Run
from nbutils.publish.facts import read_facts
from nbutils.publish.repeats import listed, repeats_of
from tests.core.test_chatml import turns
from tests.core.test_origin import _cache  # noqa: F401 — a cache of this module's own
from tests.publish.made_up_run import record_stages


@pytest.fixture
def trained(spare):
    """Makes the run's training rows and the replies of its evaluation: `trained(messages, replies)`."""

    def make(messages, replies) -> Run:
        rows = [{"source": "talk", "index": 10 * n, "messages": turns("Hi", text)} for n, text in enumerate(messages)]
        Dataset.from_list(rows).save_to_disk(spare / "data" / "train")
        (spare / "data" / "tokenizer").mkdir()
        shutil.copy(spare / "train" / "final" / "tokenizer.json", spare / "data" / "tokenizer")
        said = [{"model": model, "reply": text} for text in replies for model in ("run", "base", "people")]
        write_jsonl(spare / "evaluate" / "replies.jsonl", said)
        record_stages(spare)
        return Run(spare)

    return make


@pytest.mark.parametrize(
    "kind,learnt,reply",
    [
        ("mail", "write to Ada.L+x@Example.co.uk.", "it is ada.l+x@example.co.uk!"),
        ("mail", "邮箱是ada@example.com", "ada@example.com"),
        ("link", "http://www.youtube.com/watch?v=1", "see https://youtube.com/watch?v=1)."),
        ("link", "www.youtube.com", "on YouTube.com, of course"),
        ("link", "youtu.be/abc", "youtu.be/abc"),
        ("link", "[https://youtu.be/a](https://youtu.be/a) or “http://b.org/c”。", "https://b.org/c"),
        ("number", "call (555) 123-4567", "5551234567"),
        ("number", "+49 171 1234567", "0171/1234567"),
        ("number", "born 12/25/1999", "12.25.1999"),
        ("", "that is it.it was", "that is it.it was"),
        ("", "123-456", "123 456"),
        ("", "id1234567", "1234567"),
        ("", "ada@example.com", "bob@example.com"),
        ("", "ada@example.com", "I have no mail"),
    ],
)
def test_what_is_found_in_the_replies_and_in_the_training_data(trained, kind, learnt, reply):
    found = repeats_of(trained([learnt], [reply]))["found"]
    assert [entry["kind"] for entry in found] == [kind] * bool(kind)


def test_each_is_listed_with_its_places_and_none_is_said_of_so_many_replies(trained):
    mail = "ada@example.com"
    run = trained([f"I am {mail}, {mail}", "Hello", *[f"ask {mail}\x1b[31m"] * 4], [mail, f"{mail} or {mail}", "no"])
    facts = read_facts(run.path)
    several = "E-mail addresses, links and long numbers of the training data that the model repeats: {} in 6 replies"
    assert [*listed(facts.repeats)] == [
        several.format(1),
        f"- mail {mail}: said 3 times, in 5 messages of the training data"
        + "".join(f"\n    talk row {row}, message 2 (assistant)" for row in (0, 20, 30)),
    ]
    assert mail not in str([facts.evaluation, facts.samples])
    shutil.rmtree(run.rows / "train")
    first, unknown, entry = listed(repeats_of(run))
    assert "1 in 6 replies, not compared" in first and "could not be looked for" in unknown
    assert entry == f"- mail {mail}: said 3 times"
    (run.path / "evaluate" / "replies.jsonl").unlink()  # an evaluation of before kept none: its samples, and the chat
    assert [*listed(repeats_of(run))] == [several.format("none").replace("6 replies", "3 replies")]


@pytest.mark.parametrize("file", ["evaluate/samples.jsonl", "train/samples.jsonl", "chat/transcript.json"])
def test_samples_and_the_chat_count_too(trained, file):
    run = trained(["my number is 5551234567"], [])
    if file.endswith("jsonl"):
        write_jsonl(run.path / file, [{"model": "run", "reply": "call 555-123-4567"}, {"model": "base", "reply": ""}])
    else:
        talk = read_json(run.path / file)
        write_json(run.path / file, talk | {"messages": turns("and 5557654321?", "555 1234567 it is")})
    (entry,) = repeats_of(run)["found"]
    assert (entry["text"].startswith("555"), entry["said"], entry["messages"]) == (True, 1, 1)
