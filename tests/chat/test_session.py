"""What a person relies on in a chat: any sequence of actions gives what a fresh session gives."""

import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import normalizers

from nbutils.chat.settings import in_effect
from nbutils.core.errors import UserError
from nbutils.core.run.models import tiny_model
from nbutils.core.vocabulary import OutsideVocabularyError, lost
from tests.chat.models import MODEL, TOKENIZER, chat, random_model, say, scripted_session
from tests.core.test_chat_engine import WORDS
from tests.core.test_chatml import turns, unigram

actions = (
    st.tuples(st.sampled_from(["reply", "edit"]), st.text("abc <|im_end|>é🌙", min_size=1, max_size=60))
    | st.tuples(st.sampled_from(["stop", "abandon"]), st.integers(0, 6))
    | st.tuples(st.sampled_from(["regenerate", "clear", "restore", "wait"]))
)
LONG = "abc é🌙" * 6


def run(session, action, *value):
    """Does one action; returns the reply that was completed, if any."""
    if action == "restore":
        session.restore(session.transcript())
    elif action == "wait":
        session.engine.wait()
    elif action in ("stop", "abandon"):
        stream = session.reply("tell me more")
        for _ in range(*value):
            next(stream, None)
        if action == "stop":
            session.stop()
            list(stream)
        stream.close()
    else:
        return "".join(getattr(session, action)(*value) or ())
    return ""


def check_sequence(long, steps):
    """Does the actions, behind so many long messages, and then asks for what cannot fit.

    Each reply is that of a fresh session that is told what was said, and what is refused changes nothing.
    """
    session, evictions = chat(), 0
    for step in [("reply", LONG)] * long + steps + [("edit", LONG * 9)]:
        before, dropped = session.transcript(), session.context.dropped
        try:
            reply = run(session, *step)
        except UserError:  # an empty message or one that cannot fit, or nothing to edit yet
            assert session.transcript() == before
            continue
        evictions += session.context.dropped > dropped
        if reply:
            *so_far, asked, answer = session.messages
            fresh = chat(read_ahead=False)
            window = {"turns_dropped": session.context.dropped, "context_limit": session.context.limit}
            fresh.restore({"messages": so_far} | window)
            assert say(fresh, asked["content"]) == [reply] == [answer["content"]]
    session.close()
    assert evictions >= (long > 0)


@given(st.sampled_from([0, 3]), st.lists(actions, min_size=3, max_size=12))
@settings(max_examples=20, deadline=None, derandomize=True)
def test_any_sequence_of_actions_equals_a_fresh_session(long, steps):
    check_sequence(long, steps)


@pytest.mark.soak
@given(st.sampled_from([0, 3]), st.lists(actions, min_size=5, max_size=40))
@settings(max_examples=150, deadline=None)
def test_any_long_sequence_of_actions_equals_a_fresh_session(long, steps):
    check_sequence(long, steps)


def check_interruptions(context, talk):
    """Says each text once so many pieces were read ahead; greedy replies are those of a session that reads all anew."""
    model = random_model(TOKENIZER, context=context)
    session, fresh = (chat(model, read_ahead=ahead) for ahead in (True, False))
    passes = threading.Semaphore(0)
    model.register_forward_hook(lambda *_: passes.release())
    for text, pieces in talk:
        while pieces and passes.acquire(timeout=0.01):
            pieces -= 1
        replies = say(session, text)
        fresh.engine.forget()
        assert say(fresh, text) == replies and fresh.plan == session.plan
        while passes.acquire(blocking=False):
            pass
    session.close()
    assert fresh.context.dropped


said = st.tuples(st.text("abc é🌙", min_size=1, max_size=40).filter(str.strip), st.integers(0, 9))


@given(st.lists(said, min_size=15, max_size=20))
@settings(max_examples=6, deadline=None, derandomize=True)
def test_wherever_reading_ahead_is_interrupted_replies_are_those_of_a_full_reading(talk):
    check_interruptions(128, talk)


@pytest.mark.soak
@given(st.sampled_from([128, 256]), st.lists(said, min_size=30, max_size=40))
@settings(max_examples=15, deadline=None)
def test_wherever_reading_ahead_is_interrupted_long_talks_are_those_of_full_readings(context, talk):
    check_interruptions(context, talk)


def test_a_character_outside_the_vocabulary_is_a_sentence_and_the_chat_continues():
    tokenizer = unigram(bytes_too=False)
    session = chat(random_model(tokenizer, context=128), tokenizer)
    with pytest.raises(OutsideVocabularyError, match="no piece for '🙂' in the text 'Hi 🙂'"):
        session.reply("Hi 🙂")
    assert session.messages == [] and session.context.used == 0
    assert len(say(session, "Hi", "Hi")) == 2


def test_a_reply_holds_no_character_that_its_tokenizer_would_lose():
    """Else the next turn could not read it."""
    tokenizer = unigram(normalizer=normalizers.Nmt())
    wild = {"greedy": False, "temperature": 5.0, "max_new_tokens": 60}
    written = "".join(say(chat(tiny_model(tokenizer, 1024, 0), tokenizer, **wild), "Hi", "Hi", "Hi"))
    assert written and not lost(tokenizer, written)


def test_the_newest_turn_and_the_system_message_always_stay_and_what_goes_next_is_said():
    session = chat(system="Be brief.")
    for turn in range(16):
        dropped, soon = session.context.dropped, session.context.next_dropped
        say(session, f"number {turn}")
        assert session.context.dropped - dropped in (0, soon)
    kept = TOKENIZER.decode(session.engine.ids(session.messages, session.plan, prompt=False))
    assert kept.startswith("<|im_start|>system\nBe brief.") and "number 15" in kept and "number 0" not in kept
    session.clear()
    assert session.messages == [{"role": "system", "content": "Be brief."}]
    assert session.context.dropped == session.context.used == 0


def test_one_reply_at_a_time_of_those_that_somebody_reads():
    session = scripted_session("a long reply")
    session.reply("hello")  # nobody reads this stream, so that it changes nothing
    assert session.messages == []
    stream = session.reply("hi")
    next(stream)
    for action in (lambda: session.reply("there"), session.regenerate, session.clear):
        with pytest.raises(UserError, match="being written"):
            action()
    assert "".join(stream)


def test_a_stop_before_the_first_token_is_not_lost_and_leaves_an_old_reply():
    session = scripted_session("good", "x")
    stream = session.reply("hi")
    session.stop()
    assert list(stream) == []
    assert say(session, "hi") == ["good"]
    before, stream = session.transcript(), session.regenerate()
    session.stop()
    assert list(stream) == [] and session.transcript() == before


def test_settings_change_from_the_next_reply_on():
    session = scripted_session("word " * 20, "word " * 20, max_new_tokens=12)
    stream = session.reply("hi")
    session.sampling = session.sampling.changed(max_new_tokens=60)
    list(stream)
    assert session.measured.new_tokens == 12
    say(session, "and?")
    assert session.measured.new_tokens == 60


def test_a_new_message_interrupts_the_background_reading():
    model = random_model(TOKENIZER, context=2048)
    model.model.layers[0].register_forward_hook(lambda *_: time.sleep(0.02))
    session = chat(model)
    session.restore({"messages": turns("y" * 1000, "x")})
    say(session, "short")
    assert session.measured.read_tokens > 500
    session.close()
    assert not any(thread.name == "chat-reads-ahead" for thread in threading.enumerate())


def test_turns_dropped_for_a_long_message_are_read_again_when_it_is_edited():
    session, other = chat(), chat()
    say(session, *(f"turn {turn}" for turn in range(3)))
    assert session.context.dropped == 0
    say(session, "x" * 200)
    assert session.context.dropped > 0
    other.restore(session.transcript())
    for talk in (session, other):
        assert "".join(talk.edit("short")) and talk.context.dropped == 0
    assert session.messages == other.messages


def test_the_meter_never_shows_more_than_the_limit():
    session = scripted_session(*["x" * 500] * 3, context=256, max_new_tokens=128)
    for turn in range(3):
        for _ in session.reply("y" * (100 - turn)):
            assert session.context.used <= session.context.limit == 256


def test_the_time_of_whoever_reads_the_reply_is_not_the_models():
    session = scripted_session("a few words")
    for _ in session.reply("hi"):
        time.sleep(0.05)
    assert session.measured.new_tokens > 5 and session.measured.seconds < 0.2


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_error_while_reading_ahead_in_pauses_or_between_tokens_is_left_to_the_reply():
    model, failed = random_model(TOKENIZER, context=256), set()
    session, fresh = chat(model), chat(model, read_ahead=False)

    def fail(model, _, given):
        thread, last = threading.current_thread().name, session.messages[-1]
        behind_a_token = last["role"] == "assistant" and last["content"] and given["input_ids"].shape[1] > 1
        if thread == "chat-reads-ahead" or behind_a_token:
            failed.add(thread)
            raise RuntimeError("out of memory")

    replies = say(fresh, *WORDS)
    assert fresh.context.dropped
    model.register_forward_pre_hook(fail, with_kwargs=True)
    first = say(session, WORDS[0])
    session.engine.wait()
    assert first + say(session, *WORDS[1:]) == replies and len(failed) == 2


def test_a_model_that_takes_no_extension_says_none():
    session = scripted_session("x", context_extension="yarn")
    assert session.transcript()["settings"]["context_extension"] == "none"
    assert session.context.limit == session.engine.trained
    why = "context extension: yarn, as asked"
    assert in_effect("yarn", why, MODEL) == why
    told = in_effect("yarn", why, session.engine.model)
    assert "none" in told and "yarn was chosen" in told
