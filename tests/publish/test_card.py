"""The model card: every number from a file, metadata that the Hub takes, usage code that runs without `nbutils`."""

import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from transformers import GPT2Config, GPT2LMHeadModel, set_seed

from nbutils.core.errors import UserError
from nbutils.core.files import read_json
from nbutils.publish.card import quoted, render_card
from tests.publish.conftest import publish, settings_for
from tests.publish.made_up_run import record_stages, rewrite

CARDS = yaml.safe_load(Path(__file__).with_name("cards.yaml").read_text())


def merged(value, change):
    """A value with another one laid over it, key by key."""
    if not (isinstance(value, dict) and isinstance(change, dict)):
        return change
    return value | {name: merged(value.get(name), part) for name, part in change.items()}


@pytest.mark.parametrize("case", CARDS)
def test_the_card_says_what_the_files_hold(published, case):
    wanted = CARDS[case]
    given = {name: merged(getattr(published.facts, name), change) for name, change in wanted["facts"].items()}
    card = render_card(replace(published.facts, **given), published.settings)
    assert [words for words in wanted["says"] if words not in card] == []
    assert [words for words in wanted["never"] if words in card] == []


def test_metadata_reads_back_with_the_hubs_classes(published):
    data = ModelCard.load(published.folder / "README.md").data
    assert (data.license, data.library_name, data.pipeline_tag) == ("apache-2.0", "transformers", "text-generation")
    assert data.language == ["en"] and {"chatml", "sft"} <= set(data.tags)
    assert data.base_model is None and data.datasets is None  # `tiny` and `chitchat` are not the Hub's
    found = {(r.dataset_name, r.metric_name, r.metric_value) for r in data.eval_results}
    assert found == {("heldout_perplexity", "word_perplexity", 210.5), ("heldout_next_utterance", "acc", 0.31)}
    named = settings_for(published.run, base_model_id="me/base", dataset_ids=["me/talk"], repo_id="me/made-up")
    card = render_card(published.facts, named)
    assert (ModelCard(card).data.base_model, ModelCard(card).data.datasets) == ("me/base", ["me/talk"])
    # The Hub has classes of its own for light and dark.
    assert 'class="hidden dark:block" src="figures/loss-dark.png"' in card and "<picture>" not in card
    assert 'name = "me/made-up"' in card


def test_sections_stand_in_order_and_what_they_show_is_in_the_folder(published):
    sections = ["Architecture", "Chat format", "Training", "Data", "Metrics", "Evaluation", "Samples", "Limitations",
                "Use", "Provenance"]  # fmt: skip
    assert re.findall(r"^## (.+)$", published.card, flags=re.MULTILINE) == sections
    names = set(re.findall(r'(?:src|srcset)="([^"]+)"', published.card))
    assert len(names) == 6
    links = re.findall(r"\]\((run[^)]*)\)", published.card)
    assert links and all((published.folder / name).exists() for name in [*names, *links])


@pytest.mark.parametrize("text", [
    "a title\n---", "a title\n===", "1. one\n2) two", "- one\n+ two\n* three", "    code\n\n    more code",
    "```\ncode\n```", "~~~\ncode", "# heading", "> quoted", "a | b\n--|--\n1 | 2", "![x](y) [z](w) <u>v</u>",
    "~~gone~~ __bold__ *it* `c`", "$x$ &amp; \\*",
    "http://evil.example HTTPS://evil.example www.evil.example me@evil.example <https://evil.example>",
])  # fmt: skip
def test_a_quotation_is_nothing_but_text(text):
    """Rendered with tables and strike-through on, as the Hub does, which makes links of bare addresses too."""
    parser, made = MarkdownIt("commonmark").enable(["table", "strikethrough"]), quoted(text, "User")
    assert not re.search(r"https?://|www\.|\w@", made, flags=re.IGNORECASE)
    tokens = parser.parse(made)
    children = [child for token in tokens for child in (token.children or [token])]
    kinds = {child.type.removesuffix("_open").removesuffix("_close") for child in children}
    assert kinds <= {"blockquote", "paragraph", "strong", "text", "softbreak"}
    content = " ".join(child.content for child in children if child.type == "text")
    assert content.split()[1:] == text.split()


def shown_text(line, *kinds):
    """The text of a line that holds nothing else, but for these kinds."""
    assert {child.type for child in line.children} <= {"text", "text_special", *kinds}
    return "".join(child.content for child in line.children)


@pytest.mark.parametrize(
    "name",
    ["my talk (1).jsonl", "a|b.jsonl", "`tick`.csv", "``two", "[link](x) #1", "*star* _under_ <b>", "umlaut ü 🙂"],
)
def test_any_name_is_shown_as_it_is_and_breaks_nothing(spare, name):
    """Of card, dataset, base, peer, folder of tasks, task and metric; what they are of is not there any more."""
    path = f"/gone/since/{name}"
    record_stages(spare, base_model=path, local=True, datasets=[path], peers=[path], task_path=path)
    summary, results = read_json(spare / "data" / "summary.json"), read_json(spare / "evaluate" / "results.json")
    rewrite(spare, "data/summary.json", datasets=[summary["datasets"][0] | {"path": path, "name": name}])
    for kind, number in (("models", -1), ("scores", 0), ("paired", 0)):
        results[kind].append(results[kind][number] | {"name": name, "task": name, "metric": name, "parameters": 1})
    rewrite(spare, "evaluate/results.json", **results | {"left_out": {name: f"because of\n{name}"}})
    made = publish(spare, model_name=name, tags=[name])
    data = ModelCard(made.card).data
    assert (data.model_name, data.tags[-1]) == (name, name) and data.base_model is None and data.datasets is None
    assert [r.dataset_name for r in data.eval_results].count(name) == 1
    tokens = MarkdownIt("commonmark").enable("table").parse(made.card.split("\n---\n", 1)[1])
    assert shown_text(next(token for token in tokens if token.type == "inline")) == name
    shown = [child.content for token in tokens for child in token.children or [] if child.type == "code_inline"]
    assert shown.count(name) == 17  # datasets 5, base 3, peer 2, folder 1, task 4, metric 2
    left_out = next(token for token in tokens if token.content.startswith("Left out: "))
    assert shown_text(left_out, "code_inline") == f"Left out: {name} (because of {name})"
    rows = [line for line in made.card.splitlines() if line.startswith("|")]
    assert sum(token.type == "tr_open" for token in tokens) == sum(not line.startswith("|---") for line in rows)


@pytest.mark.parametrize(
    "words,given",
    {
        "'license' is 'Apache 2.0'.*Did you mean 'apache-2.0'": {"license": "Apache 2.0"},
        "'languages.0' is 'English'": {"languages": ["English"]},
        "'base_model_id' is .*owner/name": {"base_model_id": "models/x y.gguf"},
        "'dataset_ids.0' is 'a/b/c'": {"dataset_ids": ["a/b/c"]},
        "'model_name' is .*one line": {"model_name": "a\n---\nb"},
    }.items(),
)
def test_what_the_hub_or_the_card_cannot_hold_is_refused(tmp_path, words, given):
    with pytest.raises(UserError, match=words):
        settings_for(tmp_path, **given)


def talked(made, monkeypatch, says):
    """Runs the card's code without `nbutils` in the published folder, as somebody who types that; the code's names."""
    typed = iter([*says, ""])
    monkeypatch.setattr("builtins.input", lambda _: next(typed))
    monkeypatch.chdir(made.folder)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    names = {}
    blocks = re.findall(r"^```python\n(.*?)^```", made.card, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    monkeypatch.setitem(sys.modules, "nbutils", None)
    for block in blocks:
        exec(compile(block, "card", "exec"), names)
    return names


def test_usage_code_runs_without_nbutils(published, monkeypatch):
    names = talked(published, monkeypatch, ["hello there", "how are you today " * 20, *["what did you see " * 40] * 2])
    assert names["model"].model.rotary_emb is names["extended"]
    assert len(names["messages"]) < 8  # the oldest of 8 were left out


def test_a_gpt2_is_published_too(spare, monkeypatch, capsys):
    """Its config has names of its own and it has no RoPE: architecture, and the card's code for such models."""
    set_seed(0)
    ids = {"vocab_size": 333, "bos_token_id": None, "eos_token_id": 331, "pad_token_id": 332}  # of its tokenizer
    model = GPT2LMHeadModel(GPT2Config(**ids, n_positions=256, n_embd=64, n_layer=2, n_head=2))
    model.save_pretrained(spare / "train" / "final")
    record_stages(spare)
    made = publish(spare)
    rows = ["Layers | 2", "Context | 256 tokens", "Attention heads | 2", "Feed-forward size | 256",
            "Embeddings | tied", "Activation | gelu_new"]  # fmt: skip
    assert [row for row in rows if f"| {row} |" not in made.card] == []
    assert "rope" not in made.card.split("```python")[2]
    names = talked(made, monkeypatch, ["hello there", "what did you see " * 100, *["what did you see " * 15] * 3])
    assert names["limit"] == 256 and 0 < len(names["messages"]) < 8  # the oldest turns were left out
    assert capsys.readouterr().out.count("too long for the model") == 1
