"""The Modelfile for Ollama, and proof that its template writes a conversation as the chat does.

Ollama's templates are Go's (`text/template`). Its functions trim nothing (`template/template.go`), so white space at
the edges of what people type stays there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import islice
from typing import Any

from nbutils.core.chatml import CHATML, IM_END, Conversation
from nbutils.core.errors import UserError
from nbutils.core.files import Json

ROLE, CONTENT = "{{ .Role }}", "{{ .Content }}"
TEMPLATE = f"{{{{- range .Messages }}}}{CHATML.open(ROLE)}{CONTENT}{IM_END}\n{{{{ end }}}}{CHATML.open('assistant')}"
"""ChatML, and the header of the reply that is asked for."""

ACTION = re.compile(r"(?:\s*\{\{-|\{\{)\s(.*?)\s(?:-\}\}\s*|\}\})", re.DOTALL)


def modelfile(gguf: str, sampling: Json, context: int, license: str, template: str = TEMPLATE) -> str:
    """The Modelfile for a GGUF file beside it; `sampling` as in `generation_config.json`."""
    parameters = {
        "stop": f'"{IM_END}"',
        "temperature": sampling["temperature"],
        "top_p": sampling["top_p"],
        "top_k": sampling["top_k"],
        "min_p": 0.0,
        "repeat_penalty": sampling["repetition_penalty"],
        "repeat_last_n": -1,
        "num_predict": sampling["max_new_tokens"],
        "num_ctx": context,
    }
    lines = [f"FROM ./{gguf}", f'TEMPLATE """{template}"""', *(f"PARAMETER {n} {v}" for n, v in parameters.items())]
    return "\n".join([*lines, f'LICENSE """{license}"""', ""])


def check_modelfile(text: str, conversations: Sequence[Conversation], count: int = 10) -> int:
    """Renders the file's template for that many conversations that ask for a reply; returns how many characters.

    UserError where one is not what the chat writes, but for white space at the edges of messages.
    """
    template = text.partition('TEMPLATE """')[2].partition('"""')[0]
    asking = ([*c[:-1]] if c[-1]["role"] == "assistant" else [*c] for c in conversations)
    total = 0
    for number, messages in enumerate(islice(filter(None, asking), count)):
        stripped = [{"Role": m["role"], "Content": m["content"].strip()} for m in messages]
        found, expected = render(template, {"Messages": stripped}), CHATML.render(messages) + CHATML.open("assistant")
        if found != expected:
            raise UserError(
                f"The template for Ollama writes held-out conversation {number} as {found[:60]!r}…, the chat as "
                f"{expected[:60]!r}…: nothing was kept; look at TEMPLATE in nbutils/publish/ollama.py."
            )
        total += len(found)
    return total


def render(template: str, values: Any) -> str:
    """What Go writes for a template of fields (`.Name`), `range` and `end`. UserError for any other action."""
    parts, end = [], 0
    for match in ACTION.finditer(template):
        parts += [template[end : match.start()], match[1]]
        end = match.end()
    return _written([*parts, template[end:], "end"], values)[0]


def _written(parts: list[str], values: Any) -> tuple[str, list[str]]:
    """What a block writes, and what is behind its `end`; in `parts` texts and actions take turns."""
    out = ""
    while True:
        text, action, *parts = parts
        out += text
        word, _, name = action.rpartition(" ")
        if action == "end":
            return out, parts
        if not name.startswith(".") or word not in ("", "range"):
            raise UserError(f"The template for Ollama holds '{action}', which is not known here.")
        if word:
            blocks = [_written(parts, value) for value in values[name[1:]]]
            out, parts = out + "".join(written for written, _ in blocks), blocks[-1][1]
        else:
            out += str(values[name[1:]])
