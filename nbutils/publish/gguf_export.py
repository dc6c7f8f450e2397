"""The folder `gguf/` of what is published: the files that were asked for, each proven in llama.cpp, and a Modelfile."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from nbutils.core.chat_engine.sampling import Sampling
from nbutils.core.chatml import CHATML, IM_END, Conversation
from nbutils.core.errors import UserError
from nbutils.core.files import Json, read_json, write_json, write_text, written
from nbutils.core.llamacpp import choice, installed
from nbutils.core.run.models import ModelRef
from nbutils.publish.export import GGUF, UNPROVEN
from nbutils.publish.facts import Facts
from nbutils.publish.gguf_parity import Spoken, prove
from nbutils.publish.gguf_writer import check_config, readable_context, vocabulary, write_gguf
from nbutils.publish.settings import KINDS, PublishSettings

HUB = "https://huggingface.co/{}"
PROOF = "proof.json"
"""In that folder: what was made, and what was compared."""

ROLE, CONTENT = "{{ .Role }}", "{{ .Content }}"
OLLAMA = f"{{{{ range .Messages }}}}{CHATML.open(ROLE)}{CONTENT}{IM_END}\n{{{{ end }}}}{CHATML.open('assistant')}"
"""The Modelfile's template: ChatML, and the header of the reply that is asked for.

Ollama's templates are Go's (`text/template`). Its functions trim nothing (`template/template.go`), so white space at
the edges of what people type stays there.
"""

ACTIONS = {
    r"{{ range \.(\w+) }}": r"{% for it in it.\1 %}",
    r"{{ end }}": "{% endfor %}",
    r"{{ (\.\w+) }}": r"{{ it\1 }}",
}
"""Go's actions that are known here → Jinja's."""


def make_gguf(facts: Facts, settings: PublishSettings, folder: Path) -> list[Path]:
    """Makes and proves what `gguf` asks for; returns the files, relative to `folder`. One says what was compared.

    Where llama.cpp is missing the files' names say that they are unproven. UserError where the model cannot be one,
    answers otherwise in llama.cpp, or the disk is full: then nothing is left.
    """
    target, source = folder / GGUF, facts.model_folder
    shutil.rmtree(target, ignore_errors=True)
    if not settings.gguf:
        return []
    ref = ModelRef.parse(str(source))
    words, config = check_convertible(ref), ref.config()
    proven, slug = installed(), re.sub(r"[^\w.-]+", "-", settings.model_name).strip("-.") or "model"
    ending = ".gguf" if proven else UNPROVEN
    # Q8_0 is measured against F16, which is made even where nobody asked for it.
    kinds = [kind for kind in KINDS if kind in settings.gguf or (proven and kind == "f16")]
    made: Json = {
        "architecture": check_config(config),
        "context": readable_context(config),
        "files": {kind: {} for kind in kinds},
    }
    with written(target) as partial:
        partial.mkdir()
        files = {kind: partial / f"{slug}-{kind.upper()}{ending}" for kind in kinds}
        kept = {kind: write_gguf(file, kind, source, words, about(facts, settings)) for kind, file in files.items()}
        if proven:
            made |= prove(files, Spoken(source, facts.held_out, settings))
        for kind, file in files.items():
            made["files"][kind] |= {"name": file.name, "bytes": file.stat().st_size, "kept_f16": kept[kind]}
            if kind not in settings.gguf:
                file.unlink()
                del made["files"][kind]
        check_template(OLLAMA, facts.held_out)
        first = next(iter(made["files"].values()))["name"]
        write_text(partial / "Modelfile", modelfile(first, made["context"], settings.license))
        write_json(partial / PROOF, made)
    return [file.relative_to(folder) for file in sorted(target.iterdir())]


def check_convertible(ref: ModelRef) -> Json:
    """The metadata of a model's tokenizer. UserError where no GGUF file can be made of it; its weights are not read."""
    config = ref.config()
    check_config(config)
    return vocabulary(ref.raw_tokenizer(), config.vocab_size)


def read_gguf(folder: Path) -> Json:
    """What `make_gguf` made in a published folder; {} for nothing."""
    file = folder / GGUF / PROOF
    return dict(read_json(file)) if file.is_file() else {}


def about(facts: Facts, settings: PublishSettings) -> Json:
    """The metadata of a file, by GGUFWriter's names: name, licence, languages, the card's address and the base."""
    found: Json = {"name": settings.model_name, "license": settings.license, "languages": settings.languages}
    if settings.repo_id:
        found["url"] = HUB.format(settings.repo_id)
    if facts.base_kind != "tiny":
        base = facts.hub_base(settings)
        found |= {"base_model_count": 1, "base_model_name": (0, base or Path(facts.base_model).name)}
        if base:
            found["base_model_repo_url"] = (0, HUB.format(base))
    return found


def modelfile(gguf: str, context: int, license: str) -> str:
    """The Modelfile for a GGUF file beside it, with the sampling of the chat."""
    sampling = Sampling()
    lines = choice(sampling, -1) | {"stop": f'"{IM_END}"', "num_predict": sampling.max_new_tokens, "num_ctx": context}
    del lines["samplers"]  # Ollama keeps its own order
    parameters = (f"PARAMETER {name} {value}" for name, value in lines.items())
    return "\n".join([f"FROM ./{gguf}", f'TEMPLATE """{OLLAMA}"""', *parameters, f'LICENSE """{license}"""', ""])


def check_template(template: str, conversations: Sequence[Conversation]) -> None:
    """Renders a template for ten conversations, without their last messages.

    UserError where one is not what the chat writes, but for white space at the edges of messages.
    """
    for number, (*messages, _) in enumerate(conversations[:10]):
        stripped = [{"Role": m["role"], "Content": m["content"].strip()} for m in messages]
        found, expected = render(template, Messages=stripped), CHATML.render(messages) + CHATML.open("assistant")
        if found != expected:
            raise UserError(
                f"The template for Ollama writes held-out conversation {number} as {found[:60]!r}…, the chat as "
                f"{expected[:60]!r}…: nothing was kept; look at OLLAMA in nbutils/publish/gguf_export.py."
            )


def render(template: str, **values: Any) -> str:
    """What Go writes for a template of fields (`.Name`), `range` and `end`: Jinja has the same three, and takes no
    other.
    """
    for go, ours in ACTIONS.items():
        template = re.sub(go, ours, template)
    jinja = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    return jinja.from_string(template).render(it=values)
