from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from include.recall.errors import (
    RecallAuthError,
    RecallConflictError,
    RecallLinkExpiredError,
    RecallNoBotsError,
    RecallRateLimitError,
    RecallRequestError,
    RecallResponseError,
    RecallSchemaError,
    RecallServerError,
)
from include.recall.retry import RetryPolicy, parse_date, parse_retry_after

if TYPE_CHECKING:
    from tests.include.recall.conftest import Clock


class Attempts:
    """Fails with what it is given, then succeeds."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.made = 0

    def __call__(self, end: float) -> str:
        self.made += 1
        if self.failures:
            raise self.failures.pop(0)
        return "done"


def server_errors(count: int) -> list[Exception]:
    return [RecallServerError("x", status=503) for _ in range(count)]


def test_waits_grow_and_are_spread_over_their_whole_range(clock: Clock) -> None:
    first_waits = set()
    for seed in range(20):
        clock.slept.clear()
        policy = RetryPolicy(sleep=clock.sleep, clock=clock, draw=random.Random(seed).uniform)
        assert policy.run(Attempts(*server_errors(4))) == "done"
        assert clock.slept == sorted(clock.slept)
        for exponent, wait in enumerate(clock.slept):
            assert 2**exponent - 1 <= wait <= 2 ** (exponent + 1) - 1
        first_waits.add(clock.slept[0])
    assert max(first_waits) - min(first_waits) > policy.base / 2


def test_attempts_are_bounded(policy: RetryPolicy, clock: Clock) -> None:
    attempts = Attempts(*server_errors(99))
    with pytest.raises(RecallServerError):
        replace(policy, deadline=1e9).run(attempts)
    assert attempts.made == 6
    assert len(clock.slept) == 5


def test_waits_stay_within_the_deadline(policy: RetryPolicy, clock: Clock) -> None:
    with pytest.raises(RecallServerError):
        replace(policy, deadline=10, attempts=100).run(Attempts(*server_errors(99)))
    assert sum(clock.slept) < 10


@pytest.mark.parametrize(
    "failure",
    [
        RecallAuthError("x", status=401),
        RecallSchemaError("x", field="id"),
        RecallRequestError("bad certificate", permanent=True),
        RecallNoBotsError("x", status=507),
        RecallLinkExpiredError("x"),
    ],
)
def test_what_trying_again_cannot_help(policy: RetryPolicy, clock: Clock, failure: Exception) -> None:
    attempts = Attempts(failure)
    with pytest.raises(type(failure)):
        policy.run(attempts)
    assert (attempts.made, clock.slept) == (1, [])


def test_unreadable_replies_are_taken_for_passing_three_times(policy: RetryPolicy) -> None:
    attempts = Attempts(*[RecallResponseError("x") for _ in range(9)])
    with pytest.raises(RecallResponseError) as caught:
        policy.run(attempts)
    assert attempts.made == 4
    assert caught.value.permanent
    assert policy.run(Attempts(*[RecallResponseError("x") for _ in range(3)])) == "done"


@pytest.mark.parametrize("cls", [RecallRateLimitError, RecallConflictError, RecallServerError])
def test_what_the_server_asks_for_is_a_minimum(policy: RetryPolicy, clock: Clock, cls: type) -> None:
    assert policy.run(Attempts(cls("x", status=429, retry_after=7.0))) == "done"
    (wait,) = clock.slept
    assert 7 <= wait <= 10


def test_a_wait_beyond_the_deadline_is_handed_on(policy: RetryPolicy, clock: Clock) -> None:
    with pytest.raises(RecallRateLimitError) as caught:
        policy.run(Attempts(RecallRateLimitError("x", status=429, retry_after=90.0)))
    assert caught.value.retry_after == 90
    assert clock.slept == []


NOON = "Wed, 04 Mar 2026 12:00:00 GMT"


@pytest.mark.parametrize(
    ("value", "date", "expected"),
    [
        ("7", None, 7),
        (" 0 ", None, 0),
        ("1.5", None, 1.5),
        ("99999999999999999999", None, 3600),
        ("-1", None, None),
        ("soon", NOON, None),
        ("", NOON, None),
        (None, NOON, None),
        ("Wed, 04 Mar 2026 12:00:07 GMT", NOON, 7),
        ("Wed, 04 Mar 2026 12:00:07 -0000", NOON, 7),
        ("Wed, 04 Mar 2026 11:00:00 GMT", NOON, 0),
        ("Wed, 04 Mar 2027 11:00:00 GMT", NOON, 3600),
        ("Wed, 04 Mar 2026 12:00:07 GMT", None, None),
        ("Wed, 04 Mar 2026 12:00:07 GMT", "later", None),
    ],
)
def test_retry_after(value: str | None, date: str | None, expected: float | None) -> None:
    headers = {name: text for name, text in (("Retry-After", value), ("Date", date)) if text is not None}
    assert parse_retry_after(headers) == expected


dates = st.datetimes().map(lambda moment: moment.strftime("%a, %d %b %Y %H:%M:%S GMT"))


@given(st.text(max_size=30) | dates, st.text(max_size=30) | dates)
@settings(max_examples=80)
def test_no_header_breaks_the_parser(value: str, date: str) -> None:
    wait = parse_retry_after({"Retry-After": value, "Date": date})
    assert wait is None or 0 <= wait <= 3600
    moment = parse_date(date)
    assert moment is None or moment.tzinfo is not None
