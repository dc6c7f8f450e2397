"""Sending the published folder to the Hub: one commit, private unless told otherwise, and safe to repeat."""

from __future__ import annotations

import glob
import warnings
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from nbutils.core.errors import UserError
from nbutils.core.files import shown
from nbutils.core.secrets import redact
from nbutils.publish.export import MODEL_PATTERNS
from nbutils.publish.scan import check_secrets
from nbutils.publish.settings import PublishSettings


def push_if_asked(folder: Path, files: Sequence[Path], settings: PublishSettings) -> str:
    """`push` where the parameter of that name is on; returns the commit's address, or nothing."""
    return push(folder, files, settings) if settings.push else ""


def push(folder: Path, files: Sequence[Path], settings: PublishSettings) -> str:
    """Uploads the files (relative to `folder`) as one commit and returns its address.

    Large files go first, by content: after an interruption the next try sends only what the Hub does not hold yet, and
    the repository changes only with the commit at the end. What lies there of an earlier model, its figures and its
    evidence, and is gone from the folder, is deleted with it. UserError without a repo_id or token, for secrets, for a
    public repository where `private` is on, and where the Hub refuses.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HFValidationError, HTTPError  # HTTPError: of the HTTP library that it uses

    if not settings.repo_id:
        raise UserError("push is on and repo_id is empty: give the Hub's name for the model, such as me/my-model.")
    token = get_token()
    if not token:
        raise UserError("push is on and there is no token: set HF_TOKEN in the environment, or run `hf auth login`.")
    check_secrets(folder, files)
    try:
        api = HfApi(token=token)
        api.create_repo(settings.repo_id, private=settings.private, exist_ok=True)
        if settings.private and api.repo_info(settings.repo_id).private is False:
            raise UserError(
                f"{settings.repo_id} is public and private is on: make it private there, or set private to False."
            )
        old = [name for name in api.list_repo_files(settings.repo_id) if _of_a_model(name)]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*commit a data file")  # the scored items, a few kilobytes
            commit = api.upload_folder(
                repo_id=settings.repo_id,
                folder_path=folder,
                allow_patterns=[str(file) for file in files],
                delete_patterns=["figures/*", "run/*", *map(glob.escape, old)],
                commit_message=f"{settings.model_name}, published by smallchat",
            )
    except (HTTPError, HFValidationError, OSError, RuntimeError, ValueError) as error:
        # A ValueError is the Hub's list of what it does not take in the card's metadata, a line for each.
        lines = [line.strip("- ") for line in str(error).splitlines() if line.strip("- ")] or [type(error).__name__]
        reason = redact("; ".join(lines) if isinstance(error, ValueError) else lines[0])
        raise UserError(
            f"{shown(folder)} could not be pushed to {settings.repo_id}: {reason} — nothing changed there; mend that "
            "and run notebook 06 again, which sends only what is missing."
        ) from error
    return str(commit.commit_url)


def _of_a_model(name: str) -> bool:
    """Whether a file of a repository would be read as part of the model: what an earlier push left must not be."""
    others = ("adapter_*", "*.bin", "*.bin.index.json", "*.model", "generation_config.json", "chat_template*")
    return "/" not in name and any(fnmatch(name, pattern) for pattern in (*MODEL_PATTERNS, *others))
