"""What notebook 05 says of the demo's model; beside `test_demo.py`, so that one process waits for that model."""

from __future__ import annotations

import pytest

from nbutils.chat.models import load
from nbutils.chat.session import play
from nbutils.core.stages import spec
from nbutils.pipeline.parameters import settings_of

pytestmark = pytest.mark.soak


def test_try_this_holds_for_the_demo_model(demo_run):
    final = load("final", demo_run)
    given = settings_of(spec("chat"), {"run_dir": str(demo_run)})

    def replies(**changes) -> list[str]:
        transcript = play(final, given.scripted_messages, given.session_settings() | changes)
        return [m["content"] for m in transcript["messages"][1::2]]

    def words_of(texts: list[str]) -> set[str]:
        return {word for text in texts for word in text.lower().split()}

    dull = replies(greedy=True, repetition_penalty=1.0)
    assert len(set(dull)) < len(dull), "greedy replies resemble each other"
    hot, normal = words_of(replies(temperature=2.0, top_p=1.0)), words_of(replies())
    known = words_of(replies(seed=1) + replies(seed=2) + replies(seed=3))
    assert len(hot & known) / len(hot) < len(normal & known) / len(normal), "hot replies fall apart into stray words"
