"""Before anything is published: the folder, read by plain transformers, must do what the chat session does."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from subprocess import PIPE
from typing import Any

from nbutils.core.chat_engine.base import Request
from nbutils.core.chat_engine.engine import Engine
from nbutils.core.chat_engine.sampling import Sampling
from nbutils.core.chat_engine.window import Plan
from nbutils.core.chatml import Conversation, encode, encode_batch
from nbutils.core.errors import UserError
from nbutils.core.files import Json, shown
from nbutils.core.run.models import ModelRef, context_length
from nbutils.core.vocabulary import special_strings
from nbutils.publish import plain_reader

TIE = 1e-4
"""Two scores this close (float32 logits) may change places with the order of additions: that is no difference."""


def check_parity(
    folder: Path, held_out: Path, session_model: Path, *, conversations: int, replies: int, tokens: int
) -> Json:
    """Compares token ids of held-out conversations and greedy replies of `tokens` tokens; returns what was compared.

    `folder` is read by plain transformers in a process of its own, `session_model` by the chat session. UserError says
    in which conversation, and where in it, the two part.
    """
    from datasets import load_from_disk

    rows = load_from_disk(str(held_out))["messages"][:]
    command = [sys.executable, "-I", str(Path(plain_reader.__file__))]
    # The other process starts first, to import its libraries meanwhile; it gets its job when the session's is done.
    with subprocess.Popen(command, stdin=PIPE, stdout=PIPE, stderr=PIPE, text=True, encoding="utf-8") as child:
        ref = ModelRef.parse(str(session_model))
        model, tokenizer = ref.load().eval(), ref.raw_tokenizer()
        texts, written = spelling_none(tokenizer, rows)
        texts = texts[:conversations]
        engine, whole = Engine(model, tokenizer), Plan(0, extended=False)
        sampling = Sampling(greedy=True, max_new_tokens=tokens)
        prompts = beginnings(tokenizer, texts, context_length(model.config) - tokens, replies)
        if not prompts:
            raise UserError(
                f"No reply can be compared before publishing: of the {len(rows)} conversations in {shown(held_out)} "
                f"{written} spell a control token, and in none of {len(texts)} others does the first message leave "
                f"room for {tokens} tokens in the model's context; raise eval_fraction in notebook 01, or lower "
                "parity_tokens."
            )
        ids = [encoding.input_ids for encoding in encode_batch(tokenizer, texts)]
        ours = [list(engine.generate(Request(p, whole, sampling, sampling.generator(0)))) for p in prompts]
        job = {"folder": str(folder), "conversations": texts, "prompts": prompts, "max_new_tokens": tokens}
        out, errors = child.communicate(json.dumps(job))
    if child.returncode != 0:
        last = (errors.strip() or f"exit status {child.returncode}").splitlines()[-1]
        raise UserError(f"Plain transformers cannot read {shown(folder)}: {last}. Nothing was published.")
    theirs = json.loads(out)
    ties = 0
    for what, check, here, there in (
        ("Token ids", "chat_template.jinja and tokenizer.json there", ids, theirs["conversations"]),
        ("Greedy replies", "that the weights there are those of the trained model", ours, theirs["replies"]),
    ):
        for number, (own, read) in enumerate(zip(here, there, strict=True)):
            if own == read["ids"]:
                continue
            index = len(os.path.commonprefix([own, read["ids"]]))  # noqa: RUF071 — of ids, not of paths
            leads = read["leads"][index : index + 1]
            if min(leads, default=TIE) < TIE:
                ties += 1
                continue
            by = "".join(f", whose score leads by {lead:.2g}" for lead in leads)
            session, plain_one = (repr(tokenizer.decode(found[index : index + 1])) for found in (own, read["ids"]))
            raise UserError(
                f"{what} part in held-out conversation {number} at token {index}: the session writes {session}, plain "
                f"transformers with {shown(folder)} {plain_one}{by}. Nothing was published; check {check}."
            )
    return {
        "conversations": len(texts),
        "token_ids": sum(map(len, ids)),
        "left_out_with_control_tokens": written,
        "replies": len(prompts),
        "reply_tokens": sum(map(len, ours)),
        "ties": ties,
    }


def spelling_none(tokenizer: Any, rows: Sequence[Conversation]) -> tuple[list[Conversation], int]:
    """The conversations that spell no control token, and how many others there are.

    The session turns spelled-out control tokens into ordinary text, which a chat template cannot do.
    """
    spelled = re.compile("|".join(map(re.escape, special_strings(tokenizer).values())))
    plain = [row for row in rows if not any(spelled.search(message["content"]) for message in row)]
    return plain, len(rows) - len(plain)


def beginnings(tokenizer: Any, texts: Iterable[Conversation], room: int, count: int) -> list[Conversation]:
    """Up to `count` conversations up to a user's message: the last one that leaves room for a reply."""
    return list(islice(filter(None, (_prompt(tokenizer, text, room) for text in texts)), count))


def _prompt(tokenizer: Any, messages: Conversation, room: int) -> Conversation:
    ends = (messages[:end] for end in range(len(messages), 0, -1) if messages[end - 1]["role"] == "user")
    return next((b for b in ends if len(encode(tokenizer, b, add_generation_prompt=True)) <= room), [])
