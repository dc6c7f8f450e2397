"""The two embedded tasks: their YAMLs, and their items, made from the held-out conversations of a run.

Contexts and choices are ChatML text. A context ends with `<|im_end|>`, and each choice brings the newline and the
header in front of its utterance: lm-eval moves white space from the end of a context into the continuation, and so
finds none.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nbutils.core.chatml import CHATML, IM_END
from nbutils.core.errors import UserError
from nbutils.core.files import Json, replaced

EMBEDDED = {
    "heldout_perplexity": "heldout/replies.parquet",
    "heldout_next_utterance": "heldout/next_utterance.parquet",
}
"""Embedded task → the file of its items in the stage's folder, as its YAML names it."""
YAMLS = {name: Path(__file__).with_name(f"{name}.yaml") for name in EMBEDDED}
BY_BYTE = Path(__file__).with_name("heldout_perplexity_by_byte.yaml")
LONGEST_WORDS = 20
"""Mean characters between white space from which a reply is not counted in words."""
MISSING = {
    "heldout_perplexity": "no held-out conversation has a reply of the assistant; raise eval_fraction in notebook 01",
    "heldout_next_utterance": "it takes four different utterances by the same role in held-out conversations, and "
    "there are fewer; raise eval_fraction in notebook 01, or leave the task out where replies are a few labels",
}
"""Embedded task → why it cannot be made, where it has no items."""
ALTERNATIVES = 3
"""Utterances of other conversations beside the true one."""


@dataclass(frozen=True)
class Conversation:
    """A held-out conversation by its row in the eval set; `learn: False` marks replies that are context alone."""

    row: int
    messages: list[Json]

    def turns(self, role: str) -> Iterator[tuple[int, str]]:
        """Turns of a role and their text: those that answer something (never the first), and not as context alone."""
        for turn, message in enumerate(self.messages):
            if turn and message["role"] == role and message.get("learn") is not False:
                yield turn, message["content"].strip()


def read_conversations(data: Path, tokenizer: Any) -> list[Conversation]:
    """The conversations of `data/eval` whose ChatML text reads back as their token ids.

    Those in which a message spells a control token do not (their ids hold ordinary text instead), and stay out.
    """
    from datasets import load_from_disk

    rows = load_from_disk(str(data / "eval"))
    texts = [CHATML.render(messages) for messages in rows["messages"]]
    read = tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"] if texts else []
    end = tokenizer.convert_tokens_to_ids(IM_END)
    found = []
    for number, (row, ids) in enumerate(zip(rows, read, strict=True)):
        if row["input_ids"] == ids:
            learnt = (supervised for token, supervised in zip(ids, row["supervised"], strict=True) if token == end)
            messages = [
                message if own or message["role"] != "assistant" else message | {"learn": False}
                for message, own in zip(row["messages"], learnt, strict=True)
            ]
            found.append(Conversation(number, messages))
    return found


def yamls(conversations: Sequence[Conversation]) -> dict[str, Path]:
    """The embedded tasks' YAMLs; perplexity is by byte where replies have no words (Chinese, Japanese, Thai)."""
    replies = [reply for conversation in conversations for _, reply in conversation.turns("assistant")]
    by_byte = sum(map(len, replies)) > LONGEST_WORDS * sum(len(reply.split()) for reply in replies)
    return YAMLS | ({"heldout_perplexity": BY_BYTE} if by_byte else {})


def write_items(
    folder: Path, task: str, conversations: Sequence[Conversation], selection_items: int, seed: int
) -> None:
    """Writes the items of an embedded task below the stage's folder. UserError where the conversations give none."""
    replies = task == "heldout_perplexity"
    items = list(reply_items(conversations)) if replies else selection(conversations, selection_items, seed)
    if not items:
        raise UserError(MISSING[task])
    with replaced(folder / EMBEDDED[task]) as partial:
        pq.write_table(pa.Table.from_pylist(items), partial)


def reply_perplexity(doc: Json, results: Sequence[tuple[float, bool]]) -> dict[str, tuple[float, int]]:
    """Log-likelihood of a reply with its end of turn, and the number of its words."""
    (header, _), (whole, _) = results
    return {"word_perplexity": (whole - header, doc["words"])}


def reply_perplexity_by_byte(doc: Json, results: Any) -> dict[str, tuple[float, int]]:
    """Log-likelihood of a reply with its end of turn, and the number of its bytes."""
    (found,) = reply_perplexity(doc, results).values()
    return {"byte_perplexity": (found[0], doc["bytes"])}


def reply_items(conversations: Sequence[Conversation]) -> Iterator[Json]:
    """One item for each of the assistant's turns."""
    opening = f"\n{CHATML.open('assistant')}"
    for conversation in conversations:
        for turn, reply in conversation.turns("assistant"):
            asked = _item(conversation, turn, [opening, f"{opening}{reply}{IM_END}"])
            yield asked | {"words": len(reply.split()), "bytes": len(reply.encode())}


def _item(conversation: Conversation, turn: int, choices: list[str]) -> Json:
    context = CHATML.render(conversation.messages[:turn]).removesuffix("\n")
    return {"conversation": conversation.row, "turn": turn, "context": context, "choices": choices}


def selection(conversations: Sequence[Conversation], wanted: int, seed: int) -> list[Json]:
    """At least `wanted` selection items where there are so many turns: whole conversations in a seeded order.

    The assistant's turns come first; the user's fill up where those do not suffice. The three other utterances are
    from other conversations, by the same role, and differ from the true one in more than case and white space.
    """
    rng = random.Random(f"next utterance {seed}")
    shuffled = rng.sample(list(conversations), len(conversations))
    items: list[Json] = []
    for role in ("assistant", "user"):
        pool = [(conversation.row, text) for conversation in shuffled for _, text in conversation.turns(role)]
        for conversation in shuffled:
            if len(items) >= wanted:
                break
            for turn, true in conversation.turns(role):
                utterances = _others(pool, conversation.row, true, rng)
                if len(utterances) == ALTERNATIVES:
                    label = rng.randrange(ALTERNATIVES + 1)
                    utterances.insert(label, true)
                    choices = [f"\n{CHATML.open(role)}{utterance}{IM_END}" for utterance in utterances]
                    items.append(_item(conversation, turn, choices) | {"role": role, "label": label})
    return items


def _others(pool: list[tuple[int, str]], own: int, true: str, rng: random.Random) -> list[str]:
    """Utterances of other conversations, all different; fewer than asked for where there are none."""
    others = {folded(true): ""}
    for row, text in rng.sample(pool, min(len(pool), 200)):
        if row != own and len(others) <= ALTERNATIVES:
            others.setdefault(folded(text), text)
    return list(others.values())[1:]


def folded(text: str) -> str:
    """A text without differences of case and white space."""
    return " ".join(text.casefold().split())
