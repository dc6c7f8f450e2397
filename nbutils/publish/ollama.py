"""The Modelfile for Ollama, and proof that its template writes a conversation as the chat does.

Ollama's templates are Go's (`text/template`). Its functions trim nothing (`template/template.go`), so white space at
the edges of what people type stays there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import islice
from typing import Any

import jinja2

from nbutils.core.chatml import CHATML, IM_END, Conversation
from nbutils.core.errors import UserError
from nbutils.core.files import Json

ROLE, CONTENT = "{{ .Role }}", "{{ .Content }}"
TEMPLATE = f"{{{{ range .Messages }}}}{CHATML.open(ROLE)}{CONTENT}{IM_END}\n{{{{ end }}}}{CHATML.open('assistant')}"
"""ChatML, and the header of the reply that is asked for."""

ACTION = re.compile(r"\{\{ (?:(range )?\.(\w+)|end) \}\}")


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
    """What Go writes for a template of fields (`.Name`), `range` and `end`: Jinja has the same three.

    UserError for any other action.
    """
    if other := re.search(r"\{\{.*?\}\}", ACTION.sub("", template)):
        raise UserError(f"The template for Ollama holds '{other[0]}', which is not known here.")

    def in_jinja(action: re.Match[str]) -> str:
        loop, name = action.groups()
        if name and not loop:
            return f"{{{{ it.{name} }}}}"
        return f"{{% for it in it.{name} %}}" if loop else "{% endfor %}"

    jinja = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    return jinja.from_string(ACTION.sub(in_jinja, template)).render(it=values)
