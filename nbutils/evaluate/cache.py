"""Results that are never computed twice: one folder for each question, named by the hash of all that it depends on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nbutils.core.files import read_json, replaced, resolve, sha256_of_json, write_json

SCHEMA = 2


class Cache:
    """Answers by question: `question` is any JSON value, an answer a JSON value and files."""

    def __init__(self, folder: str) -> None:
        self.folder = resolve(folder)

    def path(self, question: Any) -> Path:
        """The folder of a question's answer, whether it is there or not."""
        return self.folder / sha256_of_json({"schema": SCHEMA, **question})[:24]

    def get(self, question: Any) -> Any | None:
        """The answer, or None where there is none yet."""
        file = self.path(question) / "answer.json"
        return read_json(file)["answer"] if file.is_file() else None

    def put(self, question: Any, answer: Any, files: dict[str, bytes] | None = None) -> Path:
        """Stores an answer at once or not at all, and says where."""
        path = self.path(question)
        with replaced(path) as partial:
            partial.mkdir(parents=True)
            for name, content in (files or {}).items():
                (partial / name).write_bytes(content)
            write_json(partial / "answer.json", {"question": question, "answer": answer})
        return path
