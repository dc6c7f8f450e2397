"""Replies written by llama.cpp: `python -m nbutils chat MODEL.gguf --engine llamacpp`.

It gets token ids and no text: nobody can type a control token here, as people can to llama.cpp's own chat.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import TYPE_CHECKING

from nbutils.chat.models import LoadedModel
from nbutils.core.chat_engine.base import BaseEngine, Request
from nbutils.core.chat_engine.reply import trimmed
from nbutils.core.chat_engine.template import has_own_template
from nbutils.core.chat_engine.window import Plan
from nbutils.core.chatml import IM_END, IM_START
from nbutils.core.errors import UserError
from nbutils.core.files import Json
from nbutils.core.llamacpp import LlamaServer, choice
from nbutils.core.run.layout import Run
from nbutils.core.run.models import ModelRef

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load(name: str) -> LoadedModel:
    """A GGUF file in llama.cpp, which runs until a `LlamaEngine` of it is closed.

    UserError where it is no GGUF file, one that is no chat model, or one that llama.cpp cannot read.
    """
    ref = ModelRef.parse(name)
    if not (ref.gguf and ref.path):
        raise UserError(
            f"--engine llamacpp reads GGUF files, and {name} is none; leave it out, or give a .gguf file (notebook 06 "
            "makes one with gguf: [f16])."
        )
    tokenizer = ref.raw_tokenizer()
    own = has_own_template(tokenizer)
    if not own and not {IM_START, IM_END} <= tokenizer.get_vocab().keys():
        raise UserError(f"{name} holds no chat template and no tokens of ChatML: --engine llamacpp cannot talk to it.")
    server = LlamaServer(ref.path)
    line = f"{name}: {_about(server)['n_params']:,} parameters, llama.cpp on the CPU"
    line += ", talked to in its own chat template" if own else ""
    return LoadedModel(name, server, tokenizer, line, Run.around(ref.path))


class LlamaEngine(BaseEngine):
    """Replies by a `LlamaServer`, which keeps what it has read of the conversation; it is ended by `close`.

    It reads as many tokens as the server allows and the model was trained on, whatever extension is asked for; ahead it
    reads in pauses alone.
    """

    extension = "none"

    def __init__(self, server: LlamaServer, tokenizer: PreTrainedTokenizerBase, _extension: str = "none") -> None:
        allowed = server.ask("props")["default_generation_settings"]["n_ctx"]
        limit = min(int(allowed), int(_about(server)["n_ctx_train"]))
        super().__init__(tokenizer, limit, limit)
        self._server = server

    def write(self, request: Request) -> Iterator[str]:
        """The reply, piece by piece."""
        return trimmed(self._pieces(request))

    def read_ahead(self, plan: Plan, ids: list[int], interrupted: Callable[[], bool]) -> bool:
        """Reads batch by batch. The server keeps what it read before this beside it."""
        with closing(self._server.stream(prompt=ids, n_predict=0, return_progress=True)) as answers:
            return not any(interrupted() for _ in answers)

    def _pieces(self, request: Request) -> Iterator[str]:
        measured, started = request.measured, time.perf_counter()
        self.pause()
        body = choice(request.sampling, self.limit) | {
            "prompt": self.ids(request.messages, request.plan, prompt=True),
            "n_predict": request.sampling.max_new_tokens,
            "seed": request.generator.initial_seed() % (2**32 - 1),  # 2**32 - 1 would be another one each time
        }
        with closing(self._server.stream(**body, timings_per_token=True, return_progress=True)) as answers:
            for answer in answers:
                cost = answer["timings"]
                measured.reused_tokens, measured.read_tokens = cost["cache_n"], cost["prompt_n"]
                measured.new_tokens = answer["tokens_predicted"]
                measured.seconds = time.perf_counter() - started
                if measured.new_tokens:
                    measured.seconds_to_first_token = measured.seconds_to_first_token or measured.seconds
                if answer["stop"]:
                    measured.ended = "length" if answer["stop_type"] == "limit" else "end"
                elif request.stopped():
                    return
                elif measured.new_tokens and self.ends.intersection(answer["tokens"]):
                    measured.ended = "end"
                    return
                left = time.perf_counter()
                yield answer["content"]
                started += time.perf_counter() - left

    def close(self) -> None:
        """Ends the server."""
        super().close()
        self._server.close()


def _about(server: LlamaServer) -> Json:
    return dict(server.ask("v1/models")["data"][0]["meta"])
