"""Texts written with a chat template already: ChatML is taken apart, any other is a reason to drop the row."""

from __future__ import annotations

import re

import pyarrow as pa
import pyarrow.compute as pc

from nbutils.core.chatml import CHATML, IM_START
from nbutils.data.fates import Turn
from nbutils.data.messages import Malformed, role_of

BEGINS = re.compile(
    r"^\s*(?:<s>|<bos>)?\s*(?:(?P<Llama_3><\|start_header_id\|>|<\|begin_of_text\|>)|(?P<Mistral_or_Llama_2>\[INST\])|"
    r"(?P<Gemma><start_of_turn>)|(?P<Zephyr_or_Phi_3><\|user\|>|<\|system\|>)|(?P<DeepSeek><｜User｜>)|"
    r"(?P<Harmony><\|start\|>)|(?P<Alpaca>### Instruction:|Below is an instruction)|"
    r"(?P<Cohere><\|START_OF_TURN_TOKEN\|>)|(?P<Granite><\|start_of_role\|>)|(?P<Llama_4><\|header_start\|>)|"
    r"(?P<OpenAssistant><\|prompter\|>)|(?P<ChatGLM>\[gMASK\])|(?P<Kimi><\|im_user\|>)|"
    r"(?P<OpenChat>GPT4 Correct User:)|"
    r"(?P<Vicuna>### Human:|### User:|A chat between a curious)|(?P<a_transcript>Human:(?s:.*)\n\nAssistant:)|"
    r"(?P<ChatML><\|im_start\|>\s*\w+[\s:](?s:.*)(?:<\|im_end\|>|<\|im_start\|>\s*assistant)"
    r"\s*(?:</s>|<\|endoftext\|>)?\s*$))"
)
"""How a text begins that was written with a template already; Python's `re` and Arrow's RE2 read it alike."""
ENDS = re.compile(
    r"(?:</s>|<eos>|<\|im_end\|>|<\|endoftext\|>|<\|eot_id\|>|<\|end_of_text\|>|<end_of_turn>|<\|end\|>|<\|eot\|>)\s*$"
)
"""How one ends. `</s>` may be HTML's, behind an `<s>`."""


def rendered(text: str) -> list[Turn]:
    """The messages of a text that was written with ChatML, also between other marks of an end; none of any other."""
    text = text.strip().removeprefix("<s>").removesuffix("</s>").removesuffix("<|endoftext|>").strip()
    if IM_START in text:
        text = text.replace("\r\n", "\n")  # of a table that was written on Windows
    found = [(role_of(role), said) for role, said in CHATML.parse(text)]
    return [] if any(IM_START in said for _, said in found) else found  # an end is missing


def refuse_template(text: str) -> None:
    """Malformed for a text that begins or ends as another template writes it."""
    if begins := BEGINS.match(text):
        raise Malformed(
            f"its text was written with the template of {str(begins.lastgroup).replace('_', ' ')} already (it begins "
            f"with {begins[0].strip()[:40]!r}), which would be learnt as ordinary characters; give the text alone, or "
            "messages"
        )
    if (ends := ENDS.search(text)) and not (ends[0].startswith("</s>") and "<s>" in text):
        raise Malformed(
            f"its text ends with {ends[0].strip()}, which would be learnt as ordinary characters; cut it off"
        )


def any_marked(texts: pa.Array) -> bool:
    """Whether `refuse_template` has to look at any of these texts."""
    return any(pc.any(pc.match_substring_regex(texts, each.pattern)).as_py() for each in (BEGINS, ENDS))
