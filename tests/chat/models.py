"""Small models for chat tests: random weights with clear preferences, or replies written by the test."""

import copy
import time
from collections.abc import Iterable
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from transformers import GenerationConfig, LlamaForCausalLM, PretrainedConfig, PreTrainedTokenizerFast

from nbutils.chat.session import ChatSession
from nbutils.core.chat_engine.window import rotary_module
from nbutils.core.run.models import train_bpe
from tests.core.test_chatml import turns

GREEDY = {"greedy": True, "repetition_penalty": 1.0, "max_new_tokens": 12}

byte_tokenizer = partial(train_bpe, [], 256)
"""One token per byte: every character beyond ASCII spans several."""


def random_model(tokenizer: PreTrainedTokenizerFast, context: int, kind: type = LlamaForCausalLM, **more):
    """A Llama or another kind, of 2 layers, whose weights are large enough that the next token is rarely a tie."""
    torch.manual_seed(0)
    config = kind.config_class(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.4,
        **more,
    )
    model = kind(config).eval()
    bias = torch.full((len(tokenizer),), -100.0)
    printable = map(chr, range(33, 127))  # valid text, encoded as written
    bias[tokenizer.convert_tokens_to_ids([tokenizer.eos_token, *printable])] = 0
    model.lm_head.bias = torch.nn.Parameter(bias)
    return model


TOKENIZER = byte_tokenizer()
MODEL = random_model(TOKENIZER, context=128)


def chat(model=MODEL, tokenizer=TOKENIZER, **settings) -> ChatSession:
    """A greedy chat with a model of random weights."""
    return ChatSession(model, tokenizer, **GREEDY | settings)


def say(session: ChatSession, *texts: str) -> list[str]:
    """Sends messages; the replies."""
    return ["".join(session.reply(text)) for text in texts]


def contents(messages: list[dict]) -> list[str]:
    """What they say."""
    return [message["content"] for message in messages]


def talk_as_generate(session: ChatSession, *texts: str, **options):
    """Sends messages; each reply has to be that of `model.generate`.

    Without any cache of ours, with the session's rotation and kept turns.
    """
    engine = session.engine
    for text in texts:
        messages = [*session.messages, *turns(text)]
        (reply,) = say(session, text)
        model = copy.deepcopy(engine.model)
        ids = torch.tensor([engine.ids(messages, session.plan, prompt=True)], device=engine.model.device)
        if rotation := engine.rotations[session.plan.extended]:
            rotary = rotary_module(model)
            rotary.rope_type, rotary.inv_freq, rotary.attention_scaling = "default", rotation.inv_freq, rotation.scaling
        config = GenerationConfig(
            **session.sampling.generation_config(), eos_token_id=[*engine.ends], pad_token_id=0, **options
        )
        out = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
        assert reply == engine.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip(), text


class ScriptedModel(torch.nn.Module):
    """A model that gives the replies it was told, one after the other, `seconds` per token; then silence.

    An error among the replies is raised. Reading a prompt takes `reading` seconds.
    """

    def __init__(self, tokenizer, replies: Iterable[Any], seconds=0.0, context=1024, reading=0.0):
        super().__init__()
        self.device = torch.device("cpu")
        self.config = PretrainedConfig(max_position_embeddings=context)
        self.tokenizer, self.replies, self.seconds, self.reading = tokenizer, list(replies), seconds, reading
        self.last = -1

    def forward(self, input_ids: torch.Tensor, past_key_values=None, **_) -> SimpleNamespace:
        if input_ids[0].tolist() != [self.last]:  # a prompt, not the token that was just written
            reply = self.replies.pop(0) if self.replies else ""
            if isinstance(reply, Exception):
                raise reply
            self.script = self.tokenizer(reply, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            time.sleep(self.reading)
        else:
            time.sleep(self.seconds)
        self.last, *self.script = self.script or [self.tokenizer.eos_token_id]
        logits = torch.zeros(1, 1, len(self.tokenizer))
        logits[0, 0, self.last] = 50.0
        return SimpleNamespace(logits=logits)


def scripted_session(*replies, seconds=0.0, context=1024, **settings) -> ChatSession:
    """A chat with a model that gives these replies."""
    return ChatSession(ScriptedModel(TOKENIZER, replies, seconds, context), TOKENIZER, read_ahead=False, **settings)
