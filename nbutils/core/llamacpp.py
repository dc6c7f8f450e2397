"""llama.cpp's own server on one GGUF file (PyPI: `xllamacpp`), on this machine's loopback, and asking it.

It runs in a process of its own: where llama.cpp aborts, over a damaged file say, this process lives on; its log is
kept apart, and its memory is free when it is closed. As a program (`python -m nbutils.core.llamacpp`) this module is
that process.
"""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Generator
from contextlib import closing, suppress
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError

from nbutils.core.errors import UserError
from nbutils.core.files import Json, shown

if TYPE_CHECKING:
    from nbutils.core.chat_engine.sampling import Sampling

PACKAGE = "xllamacpp"
VERBOSE = 4
"""llama.cpp's level of logging at which it tells what it reads in a file."""


def choice(sampling: Sampling, context: int) -> Json:
    """The same choice of tokens as part of a request to llama.cpp; the penalty looks back over `context` tokens.

    In a file -1 stands for all that is read; its server takes no such number.
    """
    found: Json = {"repeat_penalty": sampling.repetition_penalty, "repeat_last_n": context}
    if sampling.greedy:
        return found | {"samplers": ["penalties", "top_k"], "top_k": 1}
    found |= {"samplers": ["penalties", "temperature", "top_p"], "top_k": 0, "min_p": 0.0}
    return found | sampling.model_dump(include={"temperature", "top_p"})


def installed() -> bool:
    """Whether llama.cpp is there."""
    return importlib.util.find_spec(PACKAGE) is not None


class LlamaServer:
    """A GGUF file, served; a context manager that ends the server.

    `context`: tokens that it can read at once, by default as many as the file says. Keys and values are kept in
    float32, as transformers keeps those of a float32 model. UserError without the package, or where llama.cpp can't
    read the file.
    """

    def __init__(self, model: Path, context: int = 0) -> None:
        import torch

        if not installed():
            raise UserError(
                f"llama.cpp is not installed, which {shown(model)} is to be read with: `pip install {PACKAGE}` "
                "(34 MB), or leave out what asks for it."
            )
        self.model = model
        self._log = tempfile.TemporaryFile("a+b")  # noqa: SIM115 — closed with the server; read while it is written
        key = secrets.token_hex(16)  # or any page in this machine's browser could ask it
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self._opener.addheaders = [("Authorization", f"Bearer {key}"), ("Content-Type", "application/json")]
        root = str(Path(__file__).parents[2])
        self._process = subprocess.Popen(
            [sys.executable, "-m", "nbutils.core.llamacpp"],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True,
            start_new_session=True,  # a Ctrl-C in the terminal ends a reply, not the server
        )  # fmt: skip
        assert self._process.stdin and self._process.stdout
        job = {"model": str(model), "context": context, "threads": torch.get_num_threads(), "key": key}
        try:
            with suppress(BrokenPipeError):
                self._process.stdin.write(json.dumps(job) + "\n")
                self._process.stdin.flush()
            self._address = self._process.stdout.readline().strip()
            if not self._address:
                self._process.wait()  # it has ended: all is in the log
                raise UserError(
                    f"llama.cpp cannot read {shown(model)}: {self._reason()}; make the file again, or install "
                    f"{PACKAGE} again."
                )
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> LlamaServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the server. What it logged can still be read."""
        self._process.kill()
        self._process.communicate()

    @property
    def log(self) -> list[str]:
        """The lines that llama.cpp has logged so far; each has its level behind its time: D, I, W or E."""
        self._log.seek(0)
        return self._log.read().decode(errors="replace").splitlines()

    @property
    def warnings(self) -> list[str]:
        """What llama.cpp warned of in the file, or found wrong with it: not what it says of single requests."""
        lines = (line.partition(" ")[2] for line in self.log)
        return [line[2:] for line in lines if line[:2] in ("W ", "E ") and line[2:6] not in ("srv ", "slot")]

    def ask(self, endpoint: str, **body: Any) -> Json:
        """The answer of an endpoint of llama.cpp's server (`tokenize`, `completion`, …); without a body, of a GET.

        UserError with llama.cpp's words where it refuses, and where it is gone.
        """
        with closing(self._open(endpoint, body)) as answer:
            return dict(json.load(answer))

    def stream(self, **body: Any) -> Generator[Json]:
        """The pieces of a completion as they are written, each with its `content` and `tokens`.

        Whoever stops reading (and closes the iterator) stops llama.cpp too. UserError as of `ask`, also in the midst.
        """
        opened = self._open("completion", body | {"stream": True, "return_tokens": True})
        with closing(opened) as answer, suppress(OSError, HTTPException):
            for line in answer:
                if line.startswith(b"data: {"):
                    yield (piece := json.loads(line[len(b"data: ") :]))
                    if piece["stop"]:
                        return
        raise UserError(f"llama.cpp with {shown(self.model)} ended in the midst of a reply: {self._reason()}.")

    def _open(self, endpoint: str, body: Json) -> Any:
        data = json.dumps(body).encode() if body else None
        try:
            return self._opener.open(urllib.request.Request(f"{self._address}/{endpoint}", data))
        except HTTPError as error:
            reason = json.loads(error.read() or b"{}").get("error", {}).get("message", error.reason)
        except OSError as error:
            reason = f"{getattr(error, 'reason', error)} ({self._reason()})"
        raise UserError(f"llama.cpp with {shown(self.model)} cannot answer a request to /{endpoint}: {reason}.")

    def _reason(self) -> str:
        """The first error in the log, or its last line."""
        lines = self.log or ["it said nothing"]
        errors = [line.partition(" E ")[2] for line in lines if " E " in line[:20]]
        return " ".join((errors or lines[-1:])[0].split())


def parameters(model: str, context: int) -> Any:
    """xllamacpp's parameters of a server of one conversation at a time that rounds no more than the file does."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.verbosity = model, context, VERBOSE
    params.warmup, params.ui, params.n_parallel = False, False, 1
    params.n_batch = 256  # tokens read at once; between two batches a request can be stopped
    params.cache_ram_mib, params.cache_idle_slots = -1, False  # beside the last prompt, others of one context in all
    params.prefill_assistant = False  # a conversation that ends with a reply is a whole one
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED  # it rounds to F16
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    return params


def main() -> None:
    """The server's own process: serves what standard input says until that is closed, as it is when its parent ends."""
    job = json.loads(sys.stdin.readline())
    import xllamacpp

    params = parameters(job["model"], job["context"])
    params.api_keys = [job["key"]]
    for pool in (params.cpuparams, params.cpuparams_batch):
        pool.n_threads = job["threads"]
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main()
