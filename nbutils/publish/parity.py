"""Before anything is published: the folder, read by plain transformers, must do what the chat session does."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from subprocess import PIPE

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
from nbutils.publish.facts import Facts
from nbutils.publish.settings import PublishSettings

TIE = 1e-4
"""Two scores this close (float32 logits) may change places with the order of additions: that is no difference."""


class Session:
    """The chat session of a model's folder, and as many held-out `conversations` as the settings say.

    None of them spells a control token, as `left_out` rows do: the session turns that into ordinary text, which a chat
    template cannot do.
    """

    def __init__(self, folder: Path, rows: Sequence[Conversation], settings: PublishSettings) -> None:
        ref, self.settings = ModelRef.parse(str(folder)), settings
        self.model, self.tokenizer = ref.load().eval(), ref.raw_tokenizer()
        spelled = re.compile("|".join(map(re.escape, special_strings(self.tokenizer).values())))
        plain = [row for row in rows if not any(spelled.search(message["content"]) for message in row)]
        self.conversations, self.left_out = plain[: settings.parity_conversations], len(rows) - len(plain)

    def beginnings(self, room: int, count: int) -> list[tuple[Conversation, Conversation]]:
        """Up to `count` conversations, each up to the last message of a user that takes at most `room` tokens with all
        before it, and once more with the reply to that.
        """
        found: list[tuple[Conversation, Conversation]] = []
        for messages in self.conversations:
            asking = (messages[:end] for end in range(len(messages), 0, -1) if messages[end - 1]["role"] == "user")
            fit = (asks for asks in asking if len(self.prompt(asks)) <= room)
            if len(found) < count and (asks := next(fit, None)):
                found.append((asks, messages[: len(asks) + 1]))
        return found

    def prompt(self, messages: Conversation) -> list[int]:
        """Ids up to where the reply to these begins."""
        return encode(self.tokenizer, messages, add_generation_prompt=True).input_ids

    def greedy(self, prompts: Iterable[Conversation], **sampling: float) -> Iterator[tuple[list[int], bool]]:
        """Ids of each reply of up to `parity_tokens` tokens, and whether it ended by itself."""
        engine, whole = Engine(self.model, self.tokenizer), Plan(0, extended=False)
        asked = Sampling(greedy=True, max_new_tokens=self.settings.parity_tokens, **sampling)
        for messages in prompts:
            request = Request(messages, whole, asked, asked.generator(0))
            yield list(engine.generate(request)), request.measured.ended == "end"


def check_parity(facts: Facts, settings: PublishSettings, folder: Path) -> Json:
    """Compares token ids of held-out conversations, and greedy replies; returns what was compared.

    `folder` is read by plain transformers in a process of its own, the run's model by the chat session. UserError says
    in which conversation, and where in it, the two part.
    """
    rows, tokens = facts.held_out, settings.parity_tokens
    command = [sys.executable, "-I", plain_reader.__file__]
    # The other process starts first, to import its libraries meanwhile; it gets its job when the session's is done.
    with subprocess.Popen(command, stdin=PIPE, stdout=PIPE, stderr=PIPE, text=True, encoding="utf-8") as child:
        session = Session(facts.model_folder, rows, settings)
        room, texts = context_length(session.model.config) - tokens, session.conversations
        prompts = [prompt for prompt, _ in session.beginnings(room, settings.parity_replies)]
        if not prompts:
            raise UserError(
                f"No reply can be compared before publishing: of the {len(rows)} held-out conversations "
                f"{session.left_out} spell a control token, and in none of {len(texts)} others does the first message "
                f"leave room for {tokens} tokens in the model's context; raise eval_fraction in notebook 01, or lower "
                "parity_tokens."
            )
        ids = [encoding.input_ids for encoding in encode_batch(session.tokenizer, texts)]
        ours = [reply for reply, _ in session.greedy(prompts)]
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
            here_said, there_said = (repr(session.tokenizer.decode(f[index : index + 1])) for f in (own, read["ids"]))
            raise UserError(
                f"{what} part in held-out conversation {number} at token {index}: the session writes {here_said}, "
                f"plain transformers with {shown(folder)} {there_said}{by}. Nothing was published; check {check}."
            )
    return {
        "conversations": len(texts),
        "token_ids": sum(map(len, ids)),
        "left_out_with_control_tokens": session.left_out,
        "replies": len(prompts),
        "reply_tokens": sum(map(len, ours)),
        "ties": ties,
    }
