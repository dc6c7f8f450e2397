"""The published folder, and the parity check that comes before publishing."""

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from nbutils.core.chat_engine.window import rotation
from nbutils.core.chatml import TEMPLATE
from nbutils.core.errors import UserError
from nbutils.core.files import read_json
from nbutils.core.stages import STAGES
from nbutils.publish.architecture import extension, parameter_counts, tensor_shapes
from nbutils.publish.export import published_files
from nbutils.publish.parity import check_parity
from tests.core.test_chatml import turns
from tests.publish.conftest import publish, read
from tests.publish.made_up_run import record_stages


def test_the_stages_record_and_training_leftovers_stay_home(spare):
    (spare / "train" / "final" / "training_args.bin").touch()
    folder = publish(spare).folder
    (folder / "stage.json").touch()
    assert not {"training_args.bin", "stage.json"} & {str(file) for file in published_files(folder)}
    records = read_json(folder / "run" / "stages.json")
    assert list(records) == [stage.name for stage in STAGES[:-1]] and records["train"]["git_commit"] == "0" * 40


def test_generation_stops_where_a_message_ends(published):
    config = read_json(published.folder / "generation_config.json")
    assert (config["eos_token_id"], config["pad_token_id"]) == (331, 332)
    assert config["do_sample"] and config["temperature"] == 0.75


def test_parameters_by_part(published):
    counts = parameter_counts(tensor_shapes(published.folder))
    assert set(counts) == {"token embedding", "attention", "feed-forward", "norms"}  # the output is tied
    total = AutoModelForCausalLM.from_pretrained(published.folder).num_parameters()
    assert counts["token embedding"] == 333 * 128 and f"| Parameters | {total:,} |" in published.card


@pytest.mark.parametrize("kind", ["dynamic", "yarn", "linear"])
def test_the_extension_is_that_of_the_session(published, kind):
    """The code on the card gives the rotation that the chat session uses beyond the trained length."""
    model = AutoModelForCausalLM.from_pretrained(published.folder)
    trained = model.config.max_position_embeddings
    expected = rotation(model, kind, 2 * trained)
    exec(extension(model.config, kind)[1], {"longer": model.config, "trained": trained})
    rotary = type(model.model.rotary_emb)(model.config)
    assert torch.allclose(rotary.inv_freq, expected.inv_freq, rtol=1e-5)
    assert rotary.attention_scaling == pytest.approx(expected.scaling)


def parity(run, folder):
    """The report of a published folder of a run."""
    made = read(run, parity_replies=3, parity_tokens=12)
    return check_parity(made.facts, made.settings, folder)


def test_parity_of_the_folder_and_the_session(published):
    report = parity(published.run, published.folder)
    compared = {"conversations": 23, "left_out_with_control_tokens": 1, "replies": 3, "ties": 0}
    assert report == report | compared and report["reply_tokens"] > 6


@pytest.mark.parametrize(
    "content,words",
    [("say <|im_end|> please", "4 spell a control token"), ("how are you " * 200, "No reply can be compared")],
    ids=["control tokens", "too long"],
)
def test_agreement_about_nothing_stops_publishing(published, spare, content, words):
    Dataset.from_dict({"messages": [turns(content, "fine thanks")] * 4}).save_to_disk(spare / "data" / "eval")
    record_stages(spare)
    with pytest.raises(UserError, match=words):
        parity(spare, published.folder)


def other_weights(folder):
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = torch.linspace(-1, 1, 128)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def other_template(folder):
    (folder / "chat_template.jinja").write_text(TEMPLATE.replace("| trim)", ")").replace("'\\n' +", "' ' +"))


@pytest.mark.parametrize(
    "spoil,words",
    {
        other_weights: r"Greedy replies part in held-out conversation 0 at token \d+.*the session writes.*weights",
        other_template: r"Token ids part in held-out conversation 0 at token \d.*chat_template.jinja",
        lambda folder: (folder / "config.json").unlink(): r"Plain transformers cannot read .*Nothing was published",
    }.items(),
)
def test_a_folder_that_answers_otherwise_stops_publishing(published, folder, spoil, words):
    spoil(folder)
    with pytest.raises(UserError, match=words):
        parity(published.run, folder)
