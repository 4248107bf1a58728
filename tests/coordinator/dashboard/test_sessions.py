"""What a browser holds instead of a token, and who has to wait."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.dashboard.sessions import SESSION_SECONDS, Sessions, Tries
from coordinator.tokens import Token

SESSIONS = Sessions(b"k" * 32)
TOKEN = Token(id="0123abcd", name="ada", scopes=("read",), sha256="a" * 64, created_unix=0)


def test_a_cookie_stands_for_its_token_until_its_end() -> None:
    cookie, seconds = SESSIONS.cookie(TOKEN, now_unix=1000.5)
    assert seconds == SESSION_SECONDS
    assert TOKEN.sha256 not in cookie
    assert SESSIONS.verdict((TOKEN,), cookie, "read", now_unix=1001) == TOKEN
    assert SESSIONS.verdict((TOKEN,), cookie, "metrics", now_unix=1001) == "scope"
    assert SESSIONS.verdict((TOKEN,), cookie, "read", now_unix=1000 + SESSION_SECONDS) == "expired"
    assert SESSIONS.verdict((TOKEN,), None, "read", now_unix=1001) == "missing"


def test_a_cookie_ends_with_its_token() -> None:
    short = TOKEN.model_copy(update={"expires_unix": 1060.0})
    cookie, seconds = SESSIONS.cookie(short, now_unix=1000)
    assert seconds == 60
    assert SESSIONS.verdict((short,), cookie, "read", now_unix=1060) == "expired"
    assert SESSIONS.verdict((), cookie, "read", now_unix=1001) == "bad"


def test_a_cookie_is_not_for_another_token_of_the_same_name_nor_for_another_process() -> None:
    cookie, _ = SESSIONS.cookie(TOKEN, now_unix=0)
    renewed = TOKEN.model_copy(update={"sha256": "b" * 64})
    assert SESSIONS.verdict((renewed,), cookie, "read", now_unix=1) == "bad"
    assert Sessions(b"x" * 32).verdict((TOKEN,), cookie, "read", now_unix=1) == "bad"


def test_an_end_cannot_be_put_off() -> None:
    token_id, end, seal = SESSIONS.cookie(TOKEN, now_unix=0)[0].split(".")
    assert SESSIONS.verdict((TOKEN,), f"{token_id}.{int(end) + 1}.{seal}", "read", now_unix=1) == "bad"


@given(cookie=st.one_of(st.text(max_size=200), st.from_regex(r"\A0123abcd\.[0-9]{1,12}\.[0-9a-f]{64}\Z")))
def test_nothing_made_up_opens(cookie: str) -> None:
    assert SESSIONS.verdict((TOKEN,), cookie, "read", now_unix=1) == "bad"


def test_who_fails_too_often_waits_and_others_do_not() -> None:
    tries = Tries(limit=3, seconds=60)
    for second in range(3):
        assert not tries.must_wait("10.0.0.1", now=second)
        tries.failed("10.0.0.1", now=second)
    assert tries.must_wait("10.0.0.1", now=59.9)
    assert not tries.must_wait("10.0.0.2", now=3)
    assert not tries.must_wait("10.0.0.1", now=60)


def test_so_many_addresses_are_remembered_and_no_more() -> None:
    tries = Tries(limit=1, seconds=60, max_addresses=2)
    for address in ("a", "b", "a", "c"):
        tries.failed(address, now=0)
    assert [tries.must_wait(address, now=1) for address in "abc"] == [True, False, True]


@pytest.mark.parametrize("now", [0.0, 5e9])
def test_a_cookie_says_nothing_but_id_end_and_seal(now: float) -> None:
    token_id, end, seal = SESSIONS.cookie(TOKEN, now_unix=now)[0].split(".")
    assert (token_id, int(end), len(seal)) == (TOKEN.id, int(now) + SESSION_SECONDS, 64)
