"""`publish/page/`: the published model in a page that any static host can hand out."""

from __future__ import annotations

import shutil
from pathlib import Path

import yaml
from gguf import GGUFReader, TokenType

from nbutils.core.chat_engine.sampling import Sampling
from nbutils.core.chat_engine.window import KEPT
from nbutils.core.errors import UserError
from nbutils.core.files import Json, link, shown, write_json, write_text, written
from nbutils.core.llamacpp import choice, installed
from nbutils.core.run.models import TINY
from nbutils.core.text import first_line, size
from nbutils.publish.export import GGUF, NO_PROOF, PAGE
from nbutils.publish.facts import Facts
from nbutils.publish.gguf_export import HUB, read_gguf
from nbutils.publish.page.wllama import LICENCE, VERSION, wllama
from nbutils.publish.settings import PublishSettings

SPECIAL = TokenType.CONTROL, TokenType.UNKNOWN
"""Tokens that llama.cpp reads in a text where they are spelled out."""

CONTEXT = 2048
"""Tokens that the page's model reads at once, at most: a phone's memory holds the keys and values of each."""

LARGEST = 2**31
"""Bytes of the largest file that llama.cpp reads in a browser (wllama's README)."""

NO_MODEL = "page is on, and there is no GGUF file for it to load: add q8_0 to gguf."

OURS = ("index.html", "page.css", "page.js")
THEIRS = {"wllama.js": "esm/index.min.js", "wllama.wasm": "esm/wasm/wllama.wasm", "wllama-LICENCE.txt": "LICENCE"}
"""Files of the page beside the model, and what those of wllama are called there."""

README = """---
{metadata}---

# {name}

{about}

This folder is a page on which the model talks: it runs in the browser of whoever opens it, and nothing that is typed
there leaves the device. Any static host can hand it out; on this machine:

```
python3 -m http.server --bind 127.0.0.1
```

`wllama.js` and `wllama.wasm` are npm's @wllama/wllama {version} ({licence}, `wllama-LICENCE.txt`).
"""


def check_page(settings: PublishSettings) -> None:
    """Before anything is run: wllama is here, or is downloaded now. UserError where the page could not be made."""
    if not settings.page:
        raise UserError("push_page is on and page is off, so that there is nothing to push: set page to true.")
    if not settings.gguf:
        raise UserError(NO_MODEL)
    if settings.push_page and not installed():
        raise UserError(NO_PROOF)
    wllama(settings.wllama_dir)


def make_page(facts: Facts, settings: PublishSettings, folder: Path) -> Path | None:
    """Writes `page/` into the published folder, of a GGUF file there, Q8_0 before F16; None where page is off.

    UserError where there is none, and as of `write_page` and `wllama`.
    """
    if not settings.page:
        return None
    found = [file for kind in ("Q8_0", "F16") for file in (folder / GGUF).glob(f"*-{kind}.*")]
    if not found:
        raise UserError(NO_MODEL)
    metadata: Json = {
        "title": settings.model_name,
        "sdk": "static",
        "app_file": "index.html",
        "license": settings.license,
    }
    about: Json = {"name": settings.model_name, "about": in_words(facts, settings)}
    about["composes"] = read_gguf(facts.run).get("composes", False)
    if settings.repo_id:
        metadata["models"] = [settings.repo_id]
        about["card"] = HUB.format(settings.repo_id)
    return write_page(folder / PAGE, found[0], about, metadata, wllama(settings.wllama_dir))


def in_words(facts: Facts, settings: PublishSettings) -> str:
    """What the model is, in two sentences."""
    (own,) = [model for model in facts.evaluation["models"] if model["name"] == "run"]
    base = facts.hub_base(settings) or Path(facts.base_model).name
    made = "trained from nothing" if facts.base_kind == TINY else f"fine-tuned from {base}"
    sources = ", ".join(facts.dataset_name(dataset) for dataset in facts.data["datasets"])
    return (
        f"A chat model of {own['parameters']:,} parameters, {made} on {facts.data['train']['rows']:,} conversations of "
        f"{sources} with smallchat. Licence: {settings.license}."
    )


def write_page(page: Path, gguf: Path, about: Json, metadata: Json, runtime: Path) -> Path:
    """The folder `page` with a GGUF file and wllama's files; `about`: name, about and card of the model.

    `metadata` opens its README, as a Space of the Hub wants it. UserError for a file that is too large or no GGUF, and
    where the folder can't be written; then nothing of it is there.
    """
    files = {name: Path(__file__).with_name(name) for name in OURS} | {n: runtime / t for n, t in THEIRS.items()}
    loaded = {"wllama.wasm": files["wllama.wasm"], gguf.name: gguf}
    chat = about | {"files": {name: file.stat().st_size for name, file in loaded.items()}} | _settings(gguf)
    with written(page) as folder:
        folder.mkdir()
        for name, file in files.items():
            shutil.copyfile(file, folder / name)
        link(gguf, folder / gguf.name)
        write_json(folder / "chat.json", chat)
        words = {"metadata": yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True), "version": VERSION}
        write_text(folder / "README.md", README.format(**words, **about, licence=LICENCE))
    return page


def _settings(gguf: Path) -> Json:
    """What the page has to know of a GGUF file, and how it samples."""
    if (bytes_ := gguf.stat().st_size) >= LARGEST:
        raise UserError(f"{shown(gguf)} has {size(bytes_)}, and a browser reads none from 2 GiB on: set page to false.")
    try:
        fields = GGUFReader(gguf).fields
        trained = int(fields[f"{fields['general.architecture'].contents()}.context_length"].contents())
        kinds, tokens = (fields[f"tokenizer.ggml.{name}"] for name in ("token_type", "tokens"))
        specials = [tokens.contents(i).strip() for i, kind in enumerate(kinds.contents()) if kind in SPECIAL]
    except (KeyError, ValueError, IndexError) as error:
        raise UserError(
            f"{shown(gguf)} is no whole GGUF file of a chat model ({first_line(error)}): make it again."
        ) from error
    context, sampling = min(trained, CONTEXT), Sampling()
    return {
        "file": gguf.name,
        "context": context,
        "reply": min(sampling.max_new_tokens, context // 4),
        "kept": KEPT,
        "specials": [token for token in specials if len(token) > 1],
        "sampling": choice(sampling, context),
    }
