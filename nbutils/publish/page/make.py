"""`publish/page/`: the published model in a page that any static host can hand out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from gguf import GGUFReader, TokenType

from nbutils.core.chat_engine.sampling import Sampling
from nbutils.core.chat_engine.window import KEPT
from nbutils.core.errors import UserError
from nbutils.core.files import Json, link, shown, write_json, write_text, written
from nbutils.core.llamacpp import choice, installed
from nbutils.core.text import first_line, size
from nbutils.publish.export import GGUF, NO_PROOF, PAGE
from nbutils.publish.gguf_export import read_gguf
from nbutils.publish.page.wllama import VERSION, wllama
from nbutils.publish.settings import KINDS, PublishSettings

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
title: {title}
sdk: static
app_file: index.html
license: {license}
models: {models}
---

# {name}

{about}

This folder is a page on which the model talks: it runs in the browser of whoever opens it, and nothing that is typed
there leaves the device. Any static host can hand it out; on this machine:

```
python3 -m http.server --bind 127.0.0.1
```

`wllama.js` and `wllama.wasm` are npm's @wllama/wllama {version} (MIT, `wllama-LICENCE.txt`).
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


def check_size(what: str, count: int) -> None:
    """UserError for a file of so many bytes that no browser reads."""
    if count >= LARGEST:
        raise UserError(f"{what} has {size(count)}, and a browser reads none from 2 GiB on: set page to false.")


def make_page(settings: PublishSettings, folder: Path) -> Path | None:
    """Writes `page/` into the published folder, of its card and a GGUF file, Q8_0 before F16; None where page is off.

    UserError where there is none, for a file that is too large or no GGUF, where the folder can't be written, and as of
    `wllama`; then nothing of it is there.
    """
    if not settings.page:
        return None
    found = [file for kind in reversed(KINDS) for file in (folder / GGUF).glob(f"*-{kind.upper()}.*")]
    if not found:
        raise UserError(NO_MODEL)
    gguf, runtime = found[0], wllama(settings.wllama_dir)
    files = {name: Path(__file__).with_name(name) for name in OURS} | {n: runtime / t for n, t in THEIRS.items()}
    loaded = {"wllama.wasm": files["wllama.wasm"], gguf.name: gguf}
    sentence = (folder / "README.md").read_text(encoding="utf-8").split("\n\n")[2]  # the card's first, below its title
    about = {
        "name": settings.model_name,
        "about": f"{sentence.replace('`', '')} Licence: {settings.license}.",
        "models": [settings.repo_id] if settings.repo_id else [],
        "composes": read_gguf(folder).get("composes", False),
        "files": {name: file.stat().st_size for name, file in loaded.items()},
    }
    chat, title = about | _settings(gguf), json.dumps(settings.model_name, ensure_ascii=False)
    with written(folder / PAGE) as page:
        page.mkdir()
        for name, file in files.items():
            shutil.copyfile(file, page / name)
        link(gguf, page / gguf.name)
        write_json(page / "chat.json", chat)
        write_text(page / "README.md", README.format(**about, title=title, license=settings.license, version=VERSION))
    return folder / PAGE


def _settings(gguf: Path) -> Json:
    """What the page has to know of a GGUF file, and how it samples."""
    check_size(shown(gguf), gguf.stat().st_size)
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
