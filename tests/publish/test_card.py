"""The model card: every number from a file, metadata that the Hub takes, usage code that runs without `nbutils`."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM

from nbutils.core.errors import UserError
from nbutils.publish.card import render_card
from nbutils.publish.facts import read_facts
from nbutils.publish.metadata import check_card, is_hub_id
from tests.publish.conftest import settings_for


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
    assert check_card(published.folder / "README.md")["model-index"]


def test_hub_ids_are_told_from_folders(tmp_path):
    assert is_hub_id("HuggingFaceTB/smol-smoltalk")
    assert not is_hub_id("tiny") and not is_hub_id(str(tmp_path)) and not is_hub_id("nbutils/core")


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
        "600 optimizer steps",
        "97% end by themselves (98% of the greedy ones)",
        "40% of the sampled replies and 40% of the greedy ones say the same four tokens twice",
        "0% of the sampled replies and 2% of the greedy ones write role headers",
        "| heldout_perplexity (flagged items) | word_perplexity ↓ | 206 | 190.0 [186.2, 193.8] | — |",
        "Each prompt alone:",
        "The same prompts in one conversation:",
        "2 processes in fp32 on the CPU",
    ):
        assert expected in card
    assert "duplicate" not in card  # a reason that met no row
    assert "of another model" not in card


def test_sections_stand_in_order(card):
    found = re.findall(r"^## (.+)$", card, flags=re.MULTILINE)
    before = ["Architecture", "Chat format", "Training", "Data", "Metrics", "Evaluation"]
    assert found == [*before, "Samples", "Limitations", "Use", "Provenance"]


def test_pictures_on_the_card_are_in_the_folder(published, card):
    names = set(re.findall(r'(?:src|srcset)="([^"]+)"', card))
    assert len(names) == 14
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


@pytest.mark.slow
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


NEEDED = {
    "run.json": "02_train_sft",
    "data/summary.json": "01_filter_data",
    "train/settings.json": "02_train_sft",
    "train/metrics.jsonl": "02_train_sft",
    "train/final/config.json": "02_train_sft",
    "train/final/tokenizer.json": "02_train_sft",
    "train/final/tokenizer_config.json": "02_train_sft",
    "train/final/chat_template.jinja": "02_train_sft",
    "train/final/model.safetensors": "02_train_sft",
    "metrics/summary.json": "03_plot_metrics",
    "metrics/figures/loss.png": "03_plot_metrics",
    "metrics/figures/seconds-dark.png": "03_plot_metrics",
    "evaluate/results.json": "04_evaluate",
    "evaluate/samples.jsonl": "04_evaluate",
    "chat/transcript.json": "05_chat",
}


@pytest.mark.parametrize("name", NEEDED)
def test_a_missing_file_is_named_with_its_notebook(published, name):
    file = published.run / name
    aside = file.with_name("aside")
    file.rename(aside)
    try:
        with pytest.raises(UserError) as caught:
            read_facts(published.run)
    finally:
        aside.rename(file)
    assert f"notebooks/{NEEDED[name]}.ipynb" in str(caught.value)
    assert file.name in str(caught.value) or "*.safetensors" in str(caught.value)


def test_a_damaged_file_is_named(published):
    file = published.run / "evaluate" / "results.json"
    before = file.read_bytes()
    file.write_text('{"schema"', encoding="utf-8")
    try:
        with pytest.raises(UserError, match=r"results.json is damaged.*04_evaluate"):
            read_facts(published.run)
    finally:
        file.write_bytes(before)
