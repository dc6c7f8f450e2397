"""What becomes of a row: one reason, looked for in a fixed order."""

import pytest

from nbutils.data.fates import Context, Judged, conversation_hash, judge, side_of

U, A, S = "user", "assistant", "system"
NAMES = {"u": U, "a": A, "c": Context(A), "s": S, "t": "tool"}


@pytest.mark.parametrize(
    "roles,texts,fate,detail",
    [
        ("ua", "HX", "kept", ""),
        ("s", "B", "no_user_turn", ""),
        ("au", "HX", "bad_roles", "the assistant speaks first"),
        ("uta", "HXY", "bad_roles", "unknown role 'tool'"),
        ("uca", "HXY", "bad_roles", "of two turns of one role in a row, one is marked not to be learnt"),
        ("uc", "HX", "rejected", "every answer is marked not to be learnt"),
        ("ua", "\nX", "empty_message", "turn 1 (user)"),
        ("ua", "H ", "empty_message", "turn 2 (assistant)"),
        ("ua", "H\u200b", "empty_message", "turn 2 (assistant)"),
        ("ua", "\u3164X", "empty_message", "turn 1 (user)"),
        ("uua", " HX", "kept", ""),  # what is empty vanishes where another message of the role stays
        ("uau", "HX ", "kept", ""),  # an empty last user turn costs nothing
        ("t", " ", "no_user_turn", ""),  # the first reason counts
    ],
)
def test_fate_and_detail(roles, texts, fate, detail):
    judged = judge([(NAMES[role], text) for role, text in zip(roles, texts, strict=True)])
    assert (judged.fate, judged.detail) == (fate, detail)


@pytest.mark.parametrize("lost", [False, True])
def test_messages_of_one_role_are_joined_and_stripped_and_a_last_user_turn_is_lost(lost):
    judged = judge([(S, "x"), (U, " a "), (U, "b\n"), (A, "c"), (S, "y"), (A, "d"), *[(U, "e")] * lost])
    assert judged == Judged([(U, "a\nb"), (A, "c\nd")], "kept", lost_last_user_turn=lost)


@pytest.mark.parametrize(
    "one,other,same",
    [
        ("cafe\u0301 au lait|x", "caf\u00e9  au\tlait\n|x", True),  # Unicode form and white space
        ("2²|x", "22|x", False),  # compatibility form
        ("a b|x", "ab|x", False),
        ("a|x", "A|x", False),
        ("a\0b|x", "a b|x", False),
        ("a b|c", "a|b c", False),
        ("a \0 b|c", "a|b \0 c", False),
    ],
)
def test_the_hash_knows_the_same_turns_and_keeps_them_apart(one, other, same):
    hashes = {conversation_hash(list(zip((U, A), texts.split("|"), strict=True))) for texts in (one, other)}
    assert (len(hashes) == 1) is same


def test_sides_are_as_large_as_asked():
    openings = list(map(str, range(4_000)))
    fifth, more = ({one for one in openings if side_of(one, 0, share) == "eval"} for share in (0.2, 0.3))
    assert 720 < len(fifth) < 880
    assert fifth < more, "a larger share of evaluation only adds to it"
