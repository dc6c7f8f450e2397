"""The model card: every number from a file, metadata that the Hub takes, usage code that runs without `nbutils`."""

from __future__ import annotations

import builtins
import os
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from transformers import AutoModelForCausalLM

from nbutils.core.errors import UserError
from nbutils.core.files import read_json
from nbutils.publish.card import quoted, render_card
from nbutils.publish.parity import check_parity
from tests.publish.conftest import publish, settings_for
from tests.publish.made_up_run import as_gpt2, record_stages, rewrite


@pytest.fixture(scope="module")
def card(published) -> str:
    return (published.folder / "README.md").read_text(encoding="utf-8")


def test_metadata_reads_back_with_the_hubs_classes(published):
    data = ModelCard.load(published.folder / "README.md").data
    assert (data.license, data.library_name, data.pipeline_tag) == ("apache-2.0", "transformers", "text-generation")
    assert data.language == ["en"] and {"chatml", "sft"} <= set(data.tags)
    assert data.base_model is None and data.datasets is None  # `tiny` and `chitchat` are not the Hub's
    found = {(r.dataset_name, r.metric_name, r.metric_value) for r in data.eval_results}
    assert found == {("heldout_perplexity", "word_perplexity", 210.5), ("heldout_next_utterance", "acc", 0.31)}
    assert data.to_dict()["model-index"]


def test_parameters_are_those_of_the_model(published, card):
    model = AutoModelForCausalLM.from_pretrained(published.folder)
    assert f"| Parameters | {model.num_parameters():,} |" in card


def test_numbers_come_from_the_files(card):
    for expected in (
        "| `<\\|im_end\\|>` | 331 |",
        "| too long | 80 | 40.0% | 90,000 |",
        "| Evaluation loss, the assistant's tokens | 3.811 |",
        "| heldout_perplexity | word_perplexity ↓ | 206 | 210.5 [206.3, 214.7] | 90,000 [88,200, 91,800] |",
        "this model against its base -89,000 [-91,000, -87,000], better.",
        "A chat model of 1,234,567 parameters: a Llama built",
        "600 optimizer steps",
        "97% end by themselves within 60 tokens (98% of the greedy ones)",
        "| Epochs, at most | 1 |",
        "| Epochs read | 1.00 |",
        "on 100 conversations of `chitchat` with smallchat",
        "4,000 of them the assistant's) were trained on,",
        "40% of the sampled replies and 40% of the greedy ones say the same four tokens twice",
        "0% of the sampled replies and 2% of the greedy ones write role headers",
        "| heldout_perplexity (flagged items) | word_perplexity ↓ | 206 | 190.0 [186.2, 193.8] | — |",
        "Each prompt alone:",
        "The same prompts in one conversation:",
        "with TRL's `SFTTrainer` and DDP: 2 processes in fp32 on the CPU (4 cores, 31 GiB, Linux)",
    ):
        assert expected in card
    assert "duplicate" not in card  # a reason that met no row
    assert "of another model" not in card


def test_a_training_that_read_a_part_is_not_told_as_an_epoch(published):
    """`max_steps` ended it after 17 % of the conversations."""
    facts = published.facts
    given = facts.training | {"settings": facts.training["settings"] | {"max_steps": 36}}
    read = facts.metrics | {"epochs": 0.1706, "total_tokens": 1706}
    card = render_card(replace(facts, training=given, metrics=read), published.settings)
    for expected in (
        "on 17% of the 100 conversations of `chitchat` with smallchat",
        "| Epochs, at most | 1 |",
        "| Optimizer steps, at most | 36 |",
        "| Epochs read | 0.17 |",
        "kept for training, 17% of which the optimizer steps read",
        "have read nothing but 1,706 tokens",
    ):
        assert expected in card
    assert "were trained on" not in card


def test_a_paused_training_is_told_as_far_as_it_is(published):
    """Its last evaluation was before the checkpoint that is published."""
    read = published.facts.metrics | {"steps": 570, "evaluated_step": 500, "epochs": 0.0031}
    card = render_card(replace(published.facts, metrics=read), published.settings)
    for expected in (
        "fine-tuned for 570 optimizer steps on 0.3% of the 100 conversations",
        "| Evaluation loss, the assistant's tokens, at step 500 | 3.811 |",
        "| Perplexity, the assistant's tokens, at step 500 |",
    ):
        assert expected in card


def test_sections_stand_in_order(card):
    found = re.findall(r"^## (.+)$", card, flags=re.MULTILINE)
    before = ["Architecture", "Chat format", "Training", "Data", "Metrics", "Evaluation"]
    assert found == [*before, "Samples", "Limitations", "Use", "Provenance"]


def test_pictures_on_the_card_are_in_the_folder(published, card):
    names = set(re.findall(r'(?:src|srcset)="([^"]+)"', card))
    assert len(names) == 16
    assert all((published.folder / name).is_file() for name in names)
    links = re.findall(r"\]\((run[^)]*)\)", card)
    assert links and all((published.folder / link).exists() for link in links)


def test_the_hub_gets_its_own_light_and_dark_classes(published):
    text = render_card(published.facts, settings_for(published.run, repo_id="me/made-up"))
    assert 'class="hidden dark:block" src="figures/loss-dark.png"' in text and "<picture>" not in text
    assert 'name = "me/made-up"' in text


def test_model_output_cannot_be_markup(card):
    assert "<script>" not in card and "<b>you</b>" not in card
    assert "\\# Not a heading" in card and "\\*how\\*" in card


MARKUP = [
    "a title\n---", "a title\n===", "1. one\n2) two", "- one\n+ two\n* three", "    code\n\n    more code",
    "```\ncode\n```", "~~~\ncode", "# heading", "> quoted", "a | b\n--|--\n1 | 2", "![x](y) [z](w) <u>v</u>",
    "~~gone~~ __bold__ *it* `c`", "$x$ &amp; \\*",
    "http://evil.example www.evil.example me@evil.example <https://evil.example>",
]  # fmt: skip


@pytest.mark.parametrize("text", MARKUP)
def test_a_quotation_is_nothing_but_text(text):
    """Rendered with tables, strike-through and bare links on, as the Hub does."""
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    tokens = parser.parse(quoted(text, "User"))
    kinds = {child.type for token in tokens for child in (token.children or [token])}
    frame = {f"{name}_{side}" for name in ("blockquote", "paragraph", "strong") for side in ("open", "close")}
    assert kinds <= frame | {"text", "softbreak"}
    content = "\n".join(
        "".join(child.content or "\n" for child in token.children if child.nesting == 0)
        for token in tokens
        if token.children
    )
    assert content.split(" ", 1)[1].split() == text.split()


def test_bare_addresses_are_broken_before_a_front_end_makes_links_of_them():
    made = quoted("see http://a.example, HTTPS://b.example, www.c.example or me@d.example", "User")
    assert not re.search(r"https?://|www\.|\w@", made, flags=re.IGNORECASE)


NAMES = ["my talk (1).jsonl", "a|b.jsonl", "`tick`.csv", "``two", "[link](x) #1", "*star* _under_ <b>", "umlaut ü 🙂"]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_is_shown_as_it_is_and_breaks_nothing(spare, name):
    """Of the card, a dataset, the base, a peer and a folder of tasks; what the names are of is not there any more."""
    path = f"/gone/since/{name}"
    record_stages(spare, base_model=path, local=True, datasets=[path], peers=[path], task_path=path)
    summary, results = read_json(spare / "data" / "summary.json"), read_json(spare / "evaluate" / "results.json")
    rewrite(spare, "data/summary.json", summary | {"datasets": [summary["datasets"][0] | {"path": path, "name": name}]})
    models = [*results["models"], {"name": name, "parameters": 1}]
    rewrite(spare, "evaluate/results.json", results | {"models": models})
    card = (publish(spare, model_name=name, tags=[name]).folder / "README.md").read_text(encoding="utf-8")
    data = ModelCard(card).data
    assert (data.model_name, data.tags[-1]) == (name, name) and data.base_model is None and data.datasets is None
    tokens = MarkdownIt("commonmark").enable("table").parse(card.split("\n---\n", 1)[1])
    heading = next(token for token in tokens if token.type == "inline")
    assert {child.type for child in heading.children} <= {"text", "text_special"}
    assert "".join(child.content for child in heading.children) == name
    shown = [child.content for token in tokens for child in token.children or [] if child.type == "code_inline"]
    assert shown.count(name) == 11  # datasets 5, base 3, peer 2, tasks 1
    rows = [line for line in card.splitlines() if line.startswith("|")]
    assert sum(token.type == "tr_open" for token in tokens) == sum(not line.startswith("|---") for line in rows)


def test_a_title_of_several_lines_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"'model_name' is .*no title of one line"):
        settings_for(tmp_path, model_name="a\n---\nb")


def limitation(published, facts) -> str:
    """The first limitation on the card."""
    return render_card(facts, published.settings).split("## Limitations\n\n")[1].splitlines()[0]


def test_limitations_are_what_was_found_out_about_this_model(published):
    facts = published.facts
    begun_at_random = limitation(published, facts)
    assert "began at random" in begun_at_random and "10,000 tokens of conversation" in begun_at_random
    train = facts.stages["train"] | {"parameters": facts.stages["train"]["parameters"] | {"base_model": "me/base"}}
    counted = facts.evaluation | {"models": [{"name": "run", "parameters": 135_000_000}]}
    given = replace(facts, stages=facts.stages | {"train": train}, evaluation=counted)
    assert "was not measured" in limitation(published, given) and "135.0 million" in limitation(published, given)
    asked = {"model": "run", "task": "sciq", "metric": "acc", "value": 0.5, "n": 9, "higher_is_better": True}
    measured = replace(given, evaluation=facts.evaluation | {"scores": [*facts.evaluation["scores"], asked]})
    assert limitation(published, measured).startswith("- Of what it knows, sciq above are all that was measured")


def test_one_process_is_not_called_ddp(published):
    derived = published.facts.training["derived"] | {"world_size": 1}
    facts = replace(published.facts, training=published.facts.training | {"derived": derived})
    assert "`SFTTrainer`: 1 process in fp32" in render_card(facts, published.settings)


def test_a_score_and_its_interval_can_be_computed_again_from_what_is_published(published, card):
    """As the card says: sums of a column and its weight, and percentiles over resampled groups."""
    items = pq.read_table(
        published.folder / "run" / "evaluate-items" / "run--heldout_next_utterance.parquet"
    ).to_pandas()
    value = items["acc"].sum() / items["acc_weight"].sum()
    groups = items.groupby("group")[["acc", "acc_weight"]].sum().to_numpy()
    drawn = groups[np.random.default_rng(5).integers(len(groups), size=(4000, len(groups)))].sum(axis=1)  # (R, 2)
    low, high = np.quantile(drawn[:, 0] / drawn[:, 1], [0.025, 0.975])
    line = next(line for line in card.splitlines() if line.startswith("| heldout_next_utterance | acc"))
    shown = [float(number) for number in re.findall(r"0\.\d+", line)]
    assert shown[0] == pytest.approx(value, abs=5e-4)
    assert shown[1:] == pytest.approx([low, high], abs=0.01)


def test_usage_code_runs_without_nbutils(published, card):
    blocks = re.findall(r"^```python\n(.*?)^```", card, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    guard = "import sys; sys.modules['nbutils'] = None\n"
    program = (
        guard
        + "\n".join(blocks)
        + "\nprint('messages:', len(messages), 'extended:', model.model.rotary_emb is extended)"
    )
    talk = "\n".join(["hello there", "how are you today " * 20, *["what did you see " * 12] * 5, "", ""])
    done = subprocess.run(
        [sys.executable, "-I", "-c", program], cwd=published.folder, input=talk, capture_output=True, text=True,
        timeout=300, env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1]
    assert last.endswith("extended: True")
    assert int(last.split()[-3]) < 14  # the oldest of 14 messages were left out


def test_a_gpt2_is_published_too(spare, monkeypatch, capsys):
    """Its config has names of its own and it has no RoPE: architecture, parity, and the card's code for such models."""
    made = publish(as_gpt2(spare))
    card = (made.folder / "README.md").read_text(encoding="utf-8")
    for expected in (
        "| Layers | 2 |",
        "| Context | 256 tokens |",
        "| Attention heads | 2 |",
        "| Feed-forward size | 256 |",
        "| Embeddings | tied |",
        "| Activation | gelu_new |",
        "base_model: gpt2",
        f"revision {'c' * 40}",
    ):
        assert expected in card
    held_out = made.run / "data" / "eval"
    report = check_parity(made.folder, held_out, made.facts.model_folder, conversations=20, replies=2, tokens=8)
    assert report["replies"] == 2
    code = re.findall(r"^```python\n(.*?)^```", card, flags=re.MULTILINE | re.DOTALL)[1]
    assert "rope" not in code
    talk = iter(["hello there", "what did you see " * 100, *["what did you see " * 10] * 5, ""])
    monkeypatch.setattr(builtins, "input", lambda _: next(talk))
    monkeypatch.chdir(made.folder)
    names: dict = {}
    exec(compile(code, "card", "exec"), names)
    assert names["limit"] == 256 and 0 < len(names["messages"]) < 12  # the oldest turns were left out
    assert capsys.readouterr().out.count("too long for the model") == 1
