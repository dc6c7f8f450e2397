"""Models that are unlike ours: architecture, chat template, or no key/value cache."""

import threading

import pytest
import torch
from transformers import LlamaForCausalLM, MambaConfig, MambaForCausalLM, MistralForCausalLM, MixtralForCausalLM

from nbutils.chat import models
from nbutils.core.chat_engine.template import has_own_template
from nbutils.core.chat_engine.window import Plan
from nbutils.core.chatml import IM_END
from nbutils.core.errors import UserError
from nbutils.core.files import read_json, write_json
from nbutils.core.vocabulary import special_strings
from tests.chat.models import MODEL, TOKENIZER, byte_tokenizer, chat, random_model, talk_as_generate
from tests.core.test_chatml import turns

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


def tokenizer_with(template, *specials):
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": list(specials)}, replace_extra_special_tokens=False)
    tokenizer.chat_template = template
    return tokenizer


def loaded(folder, model, tokenizer=TOKENIZER, **config):
    """A model that was saved, with these values in its config.json, and loaded again."""
    model.lm_head.bias = None  # a folder holds no head of ours
    for part in (model, tokenizer):
        part.save_pretrained(folder)
    write_json(folder / "config.json", read_json(folder / "config.json") | config)
    return models.load(str(folder))


@pytest.mark.parametrize(
    "kind,made,written,extension",
    [
        (MistralForCausalLM, {}, {"sliding_window": 32}, "dynamic"),
        (MistralForCausalLM, {}, {"sliding_window": 32}, "none"),
        (LlamaForCausalLM, {}, {"sliding_window": 32}, "none"),  # which Llama does not know: it reads everything
        (MixtralForCausalLM, {"num_local_experts": 2, "num_experts_per_tok": 1}, {}, "yarn"),  # its head_dim is None
        (LlamaForCausalLM, {}, {"pad_token_id": 5000}, "linear"),  # beyond the embedding
    ],
)
def test_a_model_of_another_kind_replies_as_generate_does(tmp_path, kind, made, written, extension):
    found = loaded(tmp_path, random_model(TOKENIZER, context=128, kind=kind, **made), **written)
    session = chat(found.model, found.tokenizer, context_extension=extension)
    talk_as_generate(session, *(f"turn {turn}: what now?" for turn in range(6)))
    assert session.context.dropped and session.plan.extended == (extension != "none")


@pytest.mark.parametrize(
    "template,specials,header,end",
    [
        (IM_SEP, ["<|im_sep|>"], "<|im_start|>assistant<|im_sep|>", IM_END),
        (ZEPHYR, ["</s>", "<|user|>", "<|assistant|>"], "<|assistant|>\n", "</s>"),
    ],
)
def test_a_model_with_another_template_is_talked_to_in_its_own(tmp_path, template, specials, header, end):
    tokenizer = tokenizer_with(template, *specials)
    model = random_model(tokenizer, context=512)
    session = chat(model, tokenizer, read_ahead=False)
    talk_as_generate(session, "Hello there", "and now?")
    assert session.measured.reused_tokens > 20, "the cache serves it too"
    assert tokenizer.convert_tokens_to_ids(end) in session.engine.ends
    messages = session.messages[:-1]
    written = tokenizer.apply_chat_template(messages, tokenize=False) + header
    prompt = session.engine.ids(messages, session.plan, prompt=True)
    assert prompt == tokenizer(written, add_special_tokens=False).input_ids
    typed, controls = f"{end}{specials[0]} is text", special_strings(tokenizer)
    ids, plain = (session.engine.ids(turns(text), Plan(0, False), prompt=False) for text in (typed, "is text"))
    assert typed in tokenizer.decode(ids)
    assert sum(i in controls for i in ids) == sum(i in controls for i in plain)
    assert "own chat template" in loaded(tmp_path, model, tokenizer).line


def test_a_template_that_differs_by_a_default_system_message_alone_is_no_other():
    assert not has_own_template(tokenizer_with(SMOLLM))


def test_a_conversation_that_the_template_refuses_is_told_in_a_sentence():
    tokenizer = tokenizer_with(ZEPHYR, "</s>")
    session = chat(MODEL, tokenizer, system="Be brief.")
    with pytest.raises(UserError, match="chat template refuses this conversation: no system"):
        session.reply("hi")


def test_a_model_without_a_key_value_cache_reads_everything_again():
    torch.manual_seed(0)
    size = {"vocab_size": len(TOKENIZER), "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}
    model, readers = MambaForCausalLM(MambaConfig(**size, initializer_range=0.4)), set()
    model.register_forward_pre_hook(lambda *_: readers.add(threading.current_thread().name))
    session = chat(model)
    talk_as_generate(session, "Hello there", "and now?", use_cache=False)
    session.engine.wait()
    assert session.measured.reused_tokens == 0 and readers == {threading.current_thread().name}, "nothing ahead"
