"""What notebook 05 shows: the chat widget and tables of replies. Nothing here changes what the stage makes."""

from __future__ import annotations

from collections.abc import Sequence

import IPython
import pandas as pd
from IPython.display import HTML, Javascript, display

from nbutils.chat.models import LoadedModel, load
from nbutils.chat.settings import ChatSettings
from nbutils.chat.widget import SCRIPT, ChatWidget, Load
from nbutils.core.charts import whole_table
from nbutils.core.chat_engine.engine import Engine
from nbutils.core.chat_engine.window import Plan
from nbutils.core.chatml import IM_END
from nbutils.core.files import Json
from nbutils.core.run.layout import Run

SHOWN = 300
"""Characters of a reply that a table shows; an untrained model never stops."""

COLUMNS = {
    "read_tokens": "tokens read",
    "reused_tokens": "reused from the cache",
    "new_tokens": "tokens written",
    "ended": "ended by",
    "time_to_first_token": "seconds to the first token",
    "tokens_per_second": "tokens per second",
}
"""What the table of timings shows, and its names for it."""

_shown: dict[str, ChatWidget] = {}
"""The widget of each notebook cell: a cell that runs again closes its old one and takes over the conversation."""


def show_chat(get: Load, names: list[str], model: str, settings: Json, beside: str = "") -> ChatWidget:
    """Shows a live chat below the cell and returns at once; the kernel stays free.

    `names` are the models to pick from, `get` gives the one behind a name. Running the cell again keeps the
    conversation, and with the same arguments what was picked and set too; other cells may show chats of their own.
    """
    cell = _this_cell()
    earlier = _shown.get(cell)
    if earlier is not None:
        earlier.close()  # first: two models and their caches need the room of two
    chat = ChatWidget(get, names, model, settings, beside, earlier)
    if cell:
        _shown[cell] = chat
    display(Javascript(SCRIPT))
    display(chat.root)
    return chat


def live_chat(settings: ChatSettings, loaded: Sequence[LoadedModel]) -> ChatWidget | None:
    """The chat of notebook 05, with every model that the run offers; where `interactive` is off, a line instead."""
    if not settings.interactive:
        print("interactive is off: the scripted conversation above is all there is")
        return None
    run = settings.run_path
    known = {item.name: item for item in loaded}
    names = dict.fromkeys([*known, *Run(run).models(), *settings.peers])

    def get(name: str) -> LoadedModel:
        return known.get(name) or load(name, run)

    return show_chat(get, [*names], loaded[0].name, settings.session_settings())


def as_read(loaded: LoadedModel, transcript: Json) -> str:
    """The first turn and the next message as the model reads them, control tokens and the reply's header included."""
    messages = transcript["messages"][:3]
    ids = Engine(loaded.model, loaded.tokenizer).ids(messages, Plan(0, False), prompt=messages[-1]["role"] == "user")
    return str(loaded.tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def replies_by_setting(replies: dict[str, str]) -> HTML:
    """One reply for each variant of the settings."""
    return _whole_texts(pd.Series(replies, name="reply").to_frame())


def replies_table(transcripts: Sequence[Json]) -> HTML:
    """What each model replied to each message, side by side."""
    replies = {transcript["model"]: _texts(transcript, "assistant") for transcript in transcripts}
    return _whole_texts(pd.DataFrame(replies, index=pd.Index(_texts(transcripts[0], "user"), name="message")))


def timings_table(transcripts: Sequence[Json]) -> pd.DataFrame:
    """Tokens read, reused and written for each reply, and how long a person would have waited."""
    rows = []
    for transcript in transcripts:
        costs = (message["measured"] for message in transcript["messages"] if message["role"] == "assistant")
        for turn, (cost, timing) in enumerate(zip(costs, transcript["timings"], strict=True), 1):
            rows.append(cost | timing | {"model": transcript["model"], "turn": turn})
    table = pd.DataFrame(rows).set_index(["model", "turn"])[list(COLUMNS)].rename(columns=COLUMNS)
    # a reply that was stopped at once has neither a first token nor a speed
    return table.replace({"end": IM_END, "length": "max_new_tokens"}).round(3).astype(object).fillna("–")


def _texts(transcript: Json, role: str) -> list[str]:
    return [message["content"] for message in transcript["messages"] if message["role"] == role]


def _whole_texts(frame: pd.DataFrame) -> HTML:
    """A table of texts."""
    shown = frame.map(lambda text: text[:SHOWN] + "…" * (len(text) > SHOWN))
    return whole_table(shown)


def _this_cell() -> str:
    """JupyterLab's id of the cell that is running; where there is none, its text; nothing outside notebooks."""
    shell = IPython.get_ipython()
    parent = shell.get_parent() if hasattr(shell, "get_parent") else {}
    return str(parent.get("metadata", {}).get("cellId") or parent.get("content", {}).get("code", ""))
