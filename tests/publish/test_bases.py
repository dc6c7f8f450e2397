"""Random bases through encoding, doctor, training, chat and card: each works, or is refused in a sentence before."""

import re
from dataclasses import replace

import pytest
import torch

from nbutils.chat.models import load
from nbutils.chat.session import play
from nbutils.core.chatml import encode
from nbutils.core.errors import UserError
from nbutils.core.run.models import ModelRef
from nbutils.core.stages import spec
from nbutils.pipeline.parameters import settings_of
from nbutils.publish.card import render_card
from nbutils.publish.export import export
from nbutils.train.preflight import STOP, run_findings
from nbutils.train.worker import train
from tests.bases import REFUSED, choices, conversations, make_base
from tests.builders import rows_of, save_data
from tests.metrics.histories import write_done
from tests.publish.conftest import settings_for
from tests.train.runs import SMALL

QUICK = {"max_steps": 2, "eval_steps": 0, "checkpoint_steps": 0, "sample_prompts": [], "processes": 1,
         "max_length": 96, "precision": "fp32"}  # fmt: skip
GREEDY = {"greedy": True, "repetition_penalty": 1.0, "max_new_tokens": 6}


def letters(text):
    """What no tokenizer may lose: not its case, and not the space between words."""
    return re.sub(r"\W", "", text).lower()


def write_data(run, base):
    """As notebook 01; UserError for a text that comes back as another."""
    tokenizer = ModelRef.parse(base).tokenizer()
    rows, spaced = rows_of(tokenizer, conversations(12)), []
    for row in rows:
        written = " ".join(f"{message['role']} {message['content']}" for message in row["messages"])
        decoded = tokenizer.decode(row["input_ids"], skip_special_tokens=True)
        assert letters(decoded) == letters(written)
        spaced.append(decoded.split() == written.split())
    assert all(spaced) or not spaced[0]  # white space is lost everywhere, or nowhere
    save_data(run, tokenizer, rows[4:], rows[:4], QUICK["max_length"], base)


def through(settings, facts):
    """Training, chat and card; what the chat says is what plain transformers says."""
    run = settings.run_path
    train(settings, lambda: False)
    given, kept = (ModelRef.parse(name).load() for name in (settings.base_model, str(run / "train" / "base")))
    assert torch.equal(*(model.get_output_embeddings().weight[:90] for model in (given, kept)))
    write_done(run / "train", facts={"step": 2})
    loaded = load(str(run / "train" / "final"))
    said = play(loaded, ["Hello there, number 5", "Are you sure?"], GREEDY)["messages"]
    encoded = encode(loaded.tokenizer, said[:1], add_generation_prompt=True)
    ids = encoded.input_ids
    plain = loaded.tokenizer.apply_chat_template(said[:1], add_generation_prompt=True)
    assert encoded.apart or ids == plain["input_ids"]
    out = loaded.model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=GREEDY["max_new_tokens"])
    reply = loaded.tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True)
    assert letters(reply) == letters(said[1]["content"]), reply
    own = replace(facts, run=run, figures={})
    export(own, settings_for(run), run / "publish")
    card = render_card(own, settings_for(run))
    compile(card.split("```python\n")[2].partition("```")[0], "card", "exec")
    assert card.count("\n## ") == 10
    here = str(run.parent).encode()
    assert not [file for file in (run / "publish").iterdir() if file.is_file() and here in file.read_bytes()]


@pytest.mark.parametrize("seed", [*range(5), *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(5, 105))])
def test_a_base_works_or_is_refused_before_training(published, tmp_path, monkeypatch, seed):
    """Before notebook 02 takes a step, and for what it is."""
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path))  # else the one that a training sets would stay
    chosen = choices(seed)
    base = str(make_base(tmp_path / "base", chosen))
    given = SMALL | QUICK | {"run_dir": str(tmp_path / "run"), "base_model": base}
    settings = settings_of(spec("train"), given)
    refusals = [REFUSED[name] for name in chosen.values() if name in REFUSED]
    try:
        write_data(settings.run_path, base)
        if stops := [finding.text for finding in run_findings(settings) if finding.level == STOP]:
            raise UserError(" ".join(stops))
    except UserError as error:
        assert any(words in str(error) for words in refusals), chosen
    else:
        assert not refusals, chosen
        through(settings, published.facts)
