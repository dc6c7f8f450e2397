"""Sending the published folder to the Hub: looked through for secrets, in one commit, and safe to repeat."""

from __future__ import annotations

import glob
import json
import re
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HTTPError
from huggingface_hub.utils import filter_repo_objects

from nbutils.core.errors import UserError
from nbutils.core.files import Json, shown
from nbutils.core.text import redact, secrets
from nbutils.publish.export import GGUF, MODEL_PATTERNS, NO_PROOF, UNPROVEN, published_files
from nbutils.publish.repeats import check_repeats
from nbutils.publish.settings import PublishSettings

START = rb"(?:(?<![A-Za-z0-9_])|(?<=\\[nrt]))"
"""Where a word begins, also behind a line break or tab as JSON writes it."""

PATTERNS = {
    "a Hugging Face token": START + rb"(?:hf|api_org)\\?_[A-Za-z0-9]{30,}",
    "a GitHub token": START + rb"(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{50,})",
    "an AWS key": START + rb"(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    "a Google key": START + rb"AIza[A-Za-z0-9_-]{35}",
    "a Slack token": START + rb"xox[abprs]-[A-Za-z0-9-]{10,}",
    "an API key": START + rb"sk-[A-Za-z0-9_-]{20,}",
    "a Kaggle key": rb'"key"\s*:\s*"[0-9a-f]{32}"',
    "a Weights & Biases key": rb"(?i)wandb[^\n]{0,20}\b[0-9a-f]{40}\b",
    "a private key": rb"-----BEGIN [A-Z ]*PRIVATE KEY-----",
}
"""What secrets look like, by the prefixes and lengths that their makers document."""

OLD = {
    "model": [
        *MODEL_PATTERNS, "adapter_*", "*.bin", "*.bin.index.json", "generation_config.json", "chat_template*",
    ],
    "space": ["*.gguf"],
}  # fmt: skip
"""Files of a repository that would be read as part of the model: what an earlier push left must not be."""

NOT_TEXT = (".safetensors", ".gguf", ".png", ".wasm")


def upload(folder: Path, files: Sequence[Path], settings: PublishSettings, repeats: Json) -> str:
    """Uploads the files (relative to `folder`) as one commit and returns its address; nothing where push is off.

    Large files go first, by content: after an interruption the next try sends only what the Hub does not hold yet, and
    the repository changes only with the commit at the end. What is there of an earlier model, its figures and its
    evidence, and is gone from the folder, is deleted with it. UserError without a repo_id or token, for secrets, for
    `repeats` that nobody has accepted, for a public repository where `private` is on, and where the Hub refuses.
    """
    return _send(folder, files, settings, repeats, "model") if settings.push else ""


def upload_page(page: Path | None, settings: PublishSettings, repeats: Json) -> str:
    """Uploads the page as a static Space of the model's name, as `upload` does; nothing where push_page is off.

    UserError for an unproven model, and as of `upload`.
    """
    if page is None or not settings.push_page:
        return ""
    if any(page.glob(f"*{UNPROVEN}")):
        raise UserError(NO_PROOF)
    return _send(page, published_files(page), settings, repeats, "space")


def _send(folder: Path, files: Sequence[Path], settings: PublishSettings, repeats: Json, kind: str) -> str:
    token = check_push(settings)
    check_secrets(folder, files)
    check_repeats(repeats, settings)
    try:
        api = huggingface_hub.HfApi(token=token)
        api.create_repo(
            settings.repo_id,
            private=settings.private,
            repo_type=kind,
            space_sdk="static" if kind == "space" else None,
            exist_ok=True,
        )
        if settings.private and api.repo_info(settings.repo_id, repo_type=kind).private is False:
            raise UserError(
                f"{settings.repo_id} is public and private is on: make it private there, or set private to False."
            )
        there = (name for name in api.list_repo_files(settings.repo_id, repo_type=kind) if "/" not in name)
        old = map(glob.escape, filter_repo_objects(there, allow_patterns=OLD[kind]))
        with warnings.catch_warnings(action="ignore"):  # of data files in a model's repository: the scored items
            commit = api.upload_folder(
                repo_id=settings.repo_id,
                repo_type=kind,
                folder_path=folder,
                allow_patterns=[glob.escape(str(file)) for file in files],
                delete_patterns=[*(["figures/*", "run/*", f"{GGUF}/*"] if kind == "model" else []), *old],
                commit_message=f"{settings.model_name}, published by smallchat",
            )
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        reason = redact(" ".join(str(error).split()) or type(error).__name__)
        raise UserError(
            f"{shown(folder)} could not be pushed to {settings.repo_id}: {reason} — nothing changed there; mend that "
            "and run notebook 06 again, which sends only what is missing."
        ) from error
    return str(commit.commit_url)


def check_push(settings: PublishSettings) -> str:
    """The token to push with. UserError without a repo_id or a token."""
    what = "push is on" if settings.push else "push_page is on"
    if not settings.repo_id:
        raise UserError(f"{what} and repo_id is empty: give the Hub's name for the model, such as me/my-model.")
    token = huggingface_hub.get_token()
    if not token:
        raise UserError(f"{what} and there is no token: set HF_TOKEN in the environment, or run `hf auth login`.")
    return token


def check_secrets(folder: Path, files: Iterable[Path]) -> int:
    """Reads every text file; returns how many. UserError names the first file and line that hold a secret.

    Secrets are what PATTERNS describes, and the values of this machine's own secret environment variables.
    """
    own = [form.encode() for value in secrets() for form in {value, json.dumps(value)[1:-1]}]
    values = {"the value of a secret environment variable": b"|".join(map(re.escape, own))} if own else {}
    texts = [file for file in files if file.suffix not in NOT_TEXT]
    for file in texts:
        data = (folder / file).read_bytes()
        for what, pattern in (PATTERNS | values).items():
            if match := re.search(pattern, data):
                line = 1 + data.count(b"\n", 0, match.start())
                raise UserError(
                    f"{file}, line {line}, holds what looks like {what}: nothing was published; remove it from the "
                    "file that it comes from, run that notebook again, and revoke it if it has ever left this machine."
                )
    return len(texts)
