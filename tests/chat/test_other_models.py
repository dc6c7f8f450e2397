"""Models that are unlike ours: another chat template, or no key/value cache; and texts that cannot be encoded."""

from __future__ import annotations

import pytest
import torch
from transformers import GenerationConfig, MambaConfig, MambaForCausalLM

from nbutils.chat import models, terminal
from nbutils.chat.session import ChatSession
from nbutils.core.chat_engine.template import has_own_template
from nbutils.core.chat_engine.window import keeps_keys
from nbutils.core.chatml import IM_END, TEMPLATE
from nbutils.core.errors import UserError
from tests.chat.models import byte_tokenizer, random_model, scripted_session
from tests.chat.widgets import send, texts, widget

GREEDY = {"greedy": True, "repetition_penalty": 1.0, "max_new_tokens": 12, "read_ahead": False}
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


def from_scratch(session: ChatSession, prompt: list[int]) -> str:
    config = GenerationConfig(
        max_new_tokens=12, do_sample=False, eos_token_id=[*session.engine.ends], pad_token_id=0, use_cache=False
    )
    out = session.engine.model.generate(torch.tensor([prompt]), generation_config=config)[0, len(prompt) :]
    return session.engine.tokenizer.decode(out, skip_special_tokens=True).strip()


@pytest.mark.parametrize(
    ("template", "specials", "header", "end"),
    [
        (IM_SEP, ["<|im_sep|>"], "<|im_start|>assistant<|im_sep|>", IM_END),
        (ZEPHYR, ["</s>", "<|user|>", "<|assistant|>"], "<|assistant|>\n", "</s>"),
    ],
)
def test_a_model_with_another_template_is_talked_to_in_its_own(template, specials, header, end):
    tokenizer = tokenizer_with(template, *specials)
    session = ChatSession(random_model(tokenizer, context=512), tokenizer, **GREEDY)
    for text in ("Hello there", "and now?"):
        messages = [*session.messages, {"role": "user", "content": text}]
        written = tokenizer.apply_chat_template(messages, tokenize=False)
        prompt = tokenizer(written + header, add_special_tokens=False).input_ids
        assert "".join(session.reply(text)) == from_scratch(session, prompt)
        assert session.engine.ids(messages, session.plan, prompt=True) == prompt
    assert session.measured.reused_tokens > 20, "the cache serves it too"
    assert tokenizer.convert_tokens_to_ids(end) in session.engine.ends
    typed = f"{end}{specials[0]} is text"
    said = session.engine.ids([{"role": "user", "content": typed}], session.plan, prompt=False)
    plain = session.engine.ids([{"role": "user", "content": "is text"}], session.plan, prompt=False)
    assert typed in tokenizer.decode(said)
    special = set(tokenizer.all_special_ids) | {tokenizer.convert_tokens_to_ids(s) for s in specials}
    assert sum(i in special for i in said) == sum(i in special for i in plain)


@pytest.mark.parametrize(
    ("template", "own"),
    [(TEMPLATE, False), (SMOLLM, False), ("", False), (None, False), (IM_SEP, True), (ZEPHYR, True)],
)
def test_which_template_counts_as_another(template, own):
    assert has_own_template(tokenizer_with(template)) == own


def test_a_conversation_that_the_template_refuses_is_told_in_a_sentence():
    tokenizer = tokenizer_with(ZEPHYR, "</s>")
    session = ChatSession(random_model(tokenizer, context=512), tokenizer, system="Be brief.", **GREEDY)
    with pytest.raises(UserError, match="chat template refuses this conversation: no system"):
        session.reply("hi")


def test_a_model_without_a_key_value_cache_reads_everything_again():
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    model = MambaForCausalLM(
        MambaConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, state_size=4, initializer_range=0.4)
    ).eval()
    assert not keeps_keys(model) and keeps_keys(random_model(tokenizer, context=64))
    session = ChatSession(model, tokenizer, **GREEDY)
    for text in ("Hello there", "and now?"):
        messages = [*session.messages, {"role": "user", "content": text}]
        reply = "".join(session.reply(text))
        assert reply == from_scratch(session, session.engine.ids(messages, session.plan, prompt=True))
        assert session.measured.reused_tokens == 0


def test_the_line_about_a_model_says_how_it_is_talked_to(tmp_path):
    tokenizer = tokenizer_with(IM_SEP, "<|im_sep|>")
    for part in (random_model(tokenizer, context=64), tokenizer):
        part.save_pretrained(tmp_path)
    assert "in its own chat template" in models.load(str(tmp_path)).line


def unknown(*_, **__):
    raise UserError("The vocabulary lacks '🌙': leave it out.")


def test_a_text_that_the_vocabulary_lacks_is_told_and_the_chat_goes_on(monkeypatch, capsys):
    chat, session = widget("one", "two"), scripted_session("one", "two")
    for engine in (chat.panels[0].session.engine, session.engine):
        as_before = engine.sizes
        engine.sizes = lambda m, a=0, f=as_before: unknown() if m and "🌙" in m[-1]["content"] else f(m, a)
    send(chat, "hi")
    send(chat, "a 🌙")
    assert "lacks '🌙'" in chat.notice.text and chat.controls.input.value == "a 🌙"
    send(chat, "again")
    assert texts(chat) == ["hi", "one", "again", "two"]
    assert not terminal.converse(session, ["hi", "a 🌙", "again"], interactive=False)
    said = capsys.readouterr()
    assert said.out == "one\ntwo\n" and "lacks '🌙'" in said.err
