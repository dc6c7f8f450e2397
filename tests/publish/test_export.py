"""The published folder, and the parity check that comes before publishing."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file

from nbutils.core.chatml import TEMPLATE
from nbutils.core.errors import UserError
from nbutils.publish.architecture import extension, parameter_counts, tensor_shapes
from nbutils.publish.card import render_card
from nbutils.publish.export import published_files
from nbutils.publish.parity import check_parity


def parity(published, folder, **changes):
    given = {"conversations": 200, "replies": 6, "tokens": 24} | changes
    return check_parity(folder, published.run / "data" / "eval", published.facts.model_folder, **given)


@pytest.fixture
def copied(published, tmp_path):
    """A published folder that a test may damage."""
    return shutil.copytree(published.folder, tmp_path / "publish")


def test_the_folder_is_the_repository(published):
    names = {str(file) for file in published_files(published.folder)}
    assert {"README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
            "tokenizer_config.json", "chat_template.jinja", "figures/loss.png", "figures/loss-dark.svg",
            "run/parameters.yaml", "run/data-summary.json", "run/train-metrics.jsonl", "run/stages.json",
            "run/chat-transcript.json", "run/evaluate-comparison.md",
            "run/evaluate-items/run--heldout_next_utterance.parquet"} <= names  # fmt: skip
    assert "stage.json" not in names


def test_training_leftovers_stay_home(published, tmp_path):
    left = published.run / "train" / "final" / "training_args.bin"
    left.touch()
    try:
        from nbutils.publish.export import export

        export(published.facts, published.settings, tmp_path)
    finally:
        left.unlink()
    assert not (tmp_path / "training_args.bin").exists()


def test_generation_stops_where_a_message_ends(published):
    config = json.loads((published.folder / "generation_config.json").read_text())
    assert (config["eos_token_id"], config["pad_token_id"]) == (331, 332)
    assert config["do_sample"] and config["temperature"] == 0.75


def test_parameters_by_part(published):
    counts = parameter_counts(tensor_shapes(published.folder))
    assert counts["token embedding"] == 333 * 128 and "output head" not in counts  # tied
    assert set(counts) == {"token embedding", "attention", "feed-forward", "norms"}


@pytest.mark.parametrize("kind", ["dynamic", "yarn", "linear"])
def test_the_extension_is_that_of_the_session(published, kind):
    """The code on the card gives the rotation that the chat session uses beyond the trained length."""
    from transformers import AutoModelForCausalLM

    from nbutils.core.chat_engine.window import rotations

    model = AutoModelForCausalLM.from_pretrained(published.folder)
    trained = model.config.max_position_embeddings
    _, expected = rotations(model, kind, 2 * trained)
    exec(extension(published.folder, kind)[1], {"longer": model.config, "trained": trained})
    rotary = type(model.model.rotary_emb)(model.config)
    assert torch.allclose(rotary.inv_freq, expected.inv_freq, rtol=1e-5)
    assert rotary.attention_scaling == pytest.approx(expected.scaling)


def test_a_chat_that_extends_nothing_gives_a_card_that_extends_nothing(published):
    transcript = published.facts.transcript
    facts = replace(published.facts, transcript=transcript | {"settings": {"context_extension": "none"}})
    card = render_card(facts, published.settings)
    assert "limit = trained\n" in card and "rotary_emb" not in card and "is extended to twice" not in card


def test_parity_of_the_folder_and_the_session(published):
    report = parity(published, published.folder)
    assert report["conversations"] == 23 and report["left_out_with_control_tokens"] == 1
    assert report["replies"] == 6 and report["reply_tokens"] > 6 and report["ties"] == 0


@pytest.mark.parametrize(
    ("content", "words"),
    [("say <|im_end|> please", "4 spell a control token"), ("how are you " * 200, "No reply can be compared")],
    ids=["control tokens", "too long"],
)
def test_agreement_about_nothing_stops_publishing(published, tmp_path, content, words):
    talk = [{"role": "user", "content": content}, {"role": "assistant", "content": "fine thanks"}]
    Dataset.from_dict({"messages": [talk] * 4}).save_to_disk(str(tmp_path / "eval"))
    with pytest.raises(UserError, match=words):
        check_parity(published.folder, tmp_path / "eval", published.facts.model_folder,
                     conversations=4, replies=2, tokens=8)  # fmt: skip


def test_other_weights_stop_publishing(published, copied):
    weights = load_file(copied / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"].flip(0) * torch.linspace(-1, 1, 128)
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        UserError, match=r"Greedy replies part in held-out conversation 0 at token \d+.*the session writes"
    ):
        parity(published, copied)


def test_another_template_stops_publishing(published, copied):
    (copied / "chat_template.jinja").write_text(TEMPLATE.replace("| trim)", ")").replace("'\\n' +", "' ' +"))
    with pytest.raises(UserError, match=r"Token ids part in held-out conversation 0 at token \d.*chat_template.jinja"):
        parity(published, copied)


def test_a_folder_that_cannot_be_read_stops_publishing(published, copied):
    (copied / "config.json").unlink()
    with pytest.raises(UserError, match=r"Plain transformers cannot read .*Nothing was published"):
        parity(published, copied, conversations=1)
