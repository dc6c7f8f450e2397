"""Models that are unlike ours: architecture, chat template, or no key/value cache; and texts that cannot be encoded."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import LlamaForCausalLM, MambaConfig, MambaForCausalLM, MistralForCausalLM, MixtralForCausalLM

from nbutils.chat import models, terminal
from nbutils.core.chat_engine.template import has_own_template
from nbutils.core.chat_engine.window import keeps_keys
from nbutils.core.chatml import IM_END, TEMPLATE
from nbutils.core.errors import UserError
from tests.chat.models import TOKENIZER, byte_tokenizer, chat, from_scratch, random_model, said, say, scripted_session
from tests.chat.widgets import notice, send, texts, widget

IM_SEP = "{% for m in messages %}<|im_start|>{{ m.role }}<|im_sep|>{{ m.content }}<|im_end|>{% endfor %}"
ZEPHYR = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "<|{{ m.role }}|>\n{{ m.content }}</s>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
SMOLLM = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|im_start|>system\nHelp.<|im_end|>\n{% endif %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tokenizer_with(template: str, *specials: str):
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": list(specials)}, replace_extra_special_tokens=False)
    tokenizer.chat_template = template
    return tokenizer


def saved(model, tokenizer, folder) -> str:
    model.lm_head.bias = None  # a folder holds no head of ours
    for part in (model, tokenizer):
        part.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("kind", "more", "extension"),
    [
        (MistralForCausalLM, {"sliding_window": 32}, "dynamic"),
        (MistralForCausalLM, {"sliding_window": 32}, "none"),
        (LlamaForCausalLM, {"sliding_window": 32}, "none"),  # which Llama does not know: it reads everything
        (MixtralForCausalLM, {"num_local_experts": 2, "num_experts_per_tok": 1}, "yarn"),  # its head_dim is None
        (LlamaForCausalLM, {"pad_token_id": 5000}, "linear"),  # beyond the embedding
    ],
)
def test_a_model_of_another_kind_replies_as_generate_does(tmp_path, kind, more, extension):
    made = {name: value for name, value in more.items() if name != "pad_token_id"}
    folder = saved(random_model(TOKENIZER, context=128, kind=kind, **made), TOKENIZER, tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | more))
    loaded = models.load(folder)
    session = chat(loaded.model, loaded.tokenizer, context_extension=extension)
    for turn in range(6):
        messages = [*session.messages, said(f"turn {turn}: what now?")]
        assert say(session, messages[-1]["content"]) == [from_scratch(session, messages)], turn
    assert session.context.dropped and session.plan.extended == (extension != "none")


@pytest.mark.parametrize(
    ("template", "specials", "header", "end"),
    [
        (IM_SEP, ["<|im_sep|>"], "<|im_start|>assistant<|im_sep|>", IM_END),
        (ZEPHYR, ["</s>", "<|user|>", "<|assistant|>"], "<|assistant|>\n", "</s>"),
    ],
)
def test_a_model_with_another_template_is_talked_to_in_its_own(template, specials, header, end):
    tokenizer = tokenizer_with(template, *specials)
    session = chat(random_model(tokenizer, context=512), tokenizer, read_ahead=False)
    for text in ("Hello there", "and now?"):
        messages = [*session.messages, said(text)]
        written = tokenizer.apply_chat_template(messages, tokenize=False)
        assert say(session, text) == [from_scratch(session, messages)]
        prompt = tokenizer(written + header, add_special_tokens=False).input_ids
        assert session.engine.ids(messages, session.plan, prompt=True) == prompt
    assert session.measured.reused_tokens > 20, "the cache serves it too"
    assert tokenizer.convert_tokens_to_ids(end) in session.engine.ends
    typed = f"{end}{specials[0]} is text"
    special = set(tokenizer.all_special_ids) | {tokenizer.convert_tokens_to_ids(s) for s in specials}
    ids, plain = (session.engine.ids([said(text)], session.plan, prompt=False) for text in (typed, "is text"))
    assert typed in tokenizer.decode(ids)
    assert sum(i in special for i in ids) == sum(i in special for i in plain)


@pytest.mark.parametrize(
    ("template", "own"),
    [(TEMPLATE, False), (SMOLLM, False), ("", False), (None, False), (IM_SEP, True), (ZEPHYR, True)],
)
def test_which_template_counts_as_another(template, own):
    assert has_own_template(tokenizer_with(template)) == own


def test_a_conversation_that_the_template_refuses_is_told_in_a_sentence():
    tokenizer = tokenizer_with(ZEPHYR, "</s>")
    session = chat(random_model(tokenizer, context=512), tokenizer, system="Be brief.")
    with pytest.raises(UserError, match="chat template refuses this conversation: no system"):
        session.reply("hi")


def test_a_model_without_a_key_value_cache_reads_everything_again():
    torch.manual_seed(0)
    size = {"vocab_size": len(TOKENIZER), "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}
    model = MambaForCausalLM(MambaConfig(**size, initializer_range=0.4)).eval()
    assert not keeps_keys(model) and keeps_keys(random_model(TOKENIZER, context=64))
    session = chat(model, read_ahead=False)
    for text in ("Hello there", "and now?"):
        messages = [*session.messages, said(text)]
        assert say(session, text) == [from_scratch(session, messages, use_cache=False)]
        assert session.measured.reused_tokens == 0


def test_the_line_about_a_model_says_how_it_is_talked_to(tmp_path):
    tokenizer = tokenizer_with(IM_SEP, "<|im_sep|>")
    assert "own chat template" in models.load(saved(random_model(tokenizer, context=64), tokenizer, tmp_path)).line


def unknown(*_, **__):
    raise UserError("The vocabulary lacks '🌙': leave it out.")


def test_a_text_that_the_vocabulary_lacks_is_told_and_the_chat_goes_on(monkeypatch, capsys):
    column, session = widget("one", "two"), scripted_session("one", "two")
    for engine in (column.panels[0].session.engine, session.engine):
        as_before = engine.sizes
        engine.sizes = lambda m, a=0, f=as_before: unknown() if m and "🌙" in m[-1]["content"] else f(m, a)
    for text in ("hi", "a 🌙"):
        send(column, text)
    assert "lacks '🌙'" in notice(column) and column.controls.input.value == "a 🌙"
    send(column, "again")
    assert texts(column) == ["hi", "one", "again", "two"]
    assert not terminal.converse(session, ["hi", "a 🌙", "again"], interactive=False)
    told = capsys.readouterr()
    assert told.out == "one\ntwo\n" and "lacks '🌙'" in told.err
