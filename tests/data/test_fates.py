"""What becomes of a row: one reason, looked for in a fixed order."""

from __future__ import annotations

import pytest

from nbutils.data.fates import FATES, conversation_hash, judge, side_of

U, A, S = "user", "assistant", "system"


@pytest.mark.parametrize(
    ("turns", "fate", "detail"),
    [
        ([(U, "Hi"), (A, "Hello")], "kept", ""),
        ([(S, "Be kind."), (U, "Hi"), (S, "Again."), (A, "Hello")], "kept", ""),
        ([(U, "Hi"), (U, "You there?"), (A, "Yes"), (A, "I am")], "kept", ""),
        ([], "no_user_turn", ""),
        ([(S, "Be kind.")], "no_user_turn", ""),
        ([(A, "Hello")], "no_user_turn", ""),
        ([(U, "Hi")], "no_assistant_turn", ""),
        ([(A, "Hello"), (U, "Hi")], "bad_roles", "the assistant speaks first"),
        ([(A, "Hello"), (U, "Hi"), (A, "How are you?")], "bad_roles", "the assistant speaks first"),
        ([(U, "Hi"), ("tool", "{}"), (A, "Hello")], "bad_roles", "unknown role 'tool'"),
        ([(U, " \n"), (A, "Hello")], "empty_message", "turn 1 (user)"),
        ([(U, "Hi"), (A, "")], "empty_message", "turn 2 (assistant)"),
        (
            [(U, ""), (U, "Hi"), (A, "Hello")],
            "kept",
            "",
        ),  # what is empty vanishes where another message of the role stays
        ([("tool", "")], "no_user_turn", ""),  # the first reason counts
    ],
)
def test_fate_and_detail(turns, fate, detail):
    judged = judge(turns)
    assert (judged.fate, judged.detail) == (fate, detail)


def test_messages_of_one_role_are_joined_and_stripped():
    judged = judge([(S, "x"), (U, " a "), (U, "b\n"), (A, "c"), (S, "y"), (A, "d")])
    assert judged.turns == [(U, "a\nb"), (A, "c\nd")]
    assert judged.characters == 6


def test_a_last_user_turn_is_lost_and_said_so():
    judged = judge([(U, "a"), (A, "b"), (U, "c")])
    assert (judged.turns, judged.fate, judged.lost_last_user_turn) == ([(U, "a"), (A, "b")], "kept", True)
    assert not judge([(U, "a"), (A, "b")]).lost_last_user_turn


def test_an_empty_last_user_turn_costs_nothing():
    assert judge([(U, "a"), (A, "b"), (U, "")]).fate == "kept"


def test_the_reasons_stand_in_the_order_of_the_issue():
    assert FATES == (
        "kept", "malformed", "tool_use", "not_text", "rejected", "no_user_turn", "no_assistant_turn", "bad_roles",
        "empty_message", "outside_vocabulary", "too_long", "duplicate", "contaminated",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("cafe\u0301 au lait", "caf\u00e9  au\tlait\n", True),  # Unicode form and white space
        ("ﬁne", "fine", True),  # compatibility form
        ("a b", "ab", False),
        ("a", "A", False),
        ("a\0b", "a b", False),
    ],
)
def test_the_hash_knows_the_same_turns(one, other, same):
    assert (conversation_hash([(U, one), (A, "x")]) == conversation_hash([(U, other), (A, "x")])) is same


def test_the_hash_keeps_turns_apart():
    assert conversation_hash([(U, "a b"), (A, "c")]) != conversation_hash([(U, "a"), (A, "b c")])
    assert conversation_hash([(U, "a \0 b"), (A, "c")]) != conversation_hash([(U, "a"), (A, "b \0 c")])


def test_sides_are_as_large_as_asked_and_differ_by_seed():
    hashes = [conversation_hash([(U, str(i)), (A, "x")]) for i in range(4_000)]
    share = sum(side_of(h, 0, 0.2) == "eval" for h in hashes) / len(hashes)
    assert 0.18 < share < 0.22
    assert [side_of(h, 0, 0.2) for h in hashes] != [side_of(h, 1, 0.2) for h in hashes]
    # A larger share of evaluation only adds to it.
    assert all(side_of(h, 0, 0.3) == "eval" for h in hashes if side_of(h, 0, 0.2) == "eval")
