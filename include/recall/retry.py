"""The one policy for trying again."""

from __future__ import annotations

import random
import re
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, TypeVar

from include.recall.errors import RecallError, RecallLinkExpiredError, RecallNoBotsError, RecallResponseError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
T = TypeVar("T")

LONGEST_RETRY_AFTER = 3600.0


@dataclass(frozen=True)
class RetryPolicy:
    """Try again while it can help, within one deadline.

    Waits grow from try to try and are spread over their whole range, so that clients that failed together don't come
    back together: the n-th is drawn from ``base * (2**(n-1) - 1)`` to ``base * (2**n - 1)`` seconds. What the server
    asks for is a minimum.

    :param attempts: tries in all.
    :param bad_responses: how often an unreadable reply is taken for a passing fault.
    :param base: seconds that the first wait may last.
    :param longest: seconds that a wait of our own choosing may last.
    :param deadline: seconds for everything, waits included.
    """

    attempts: int = 6
    bad_responses: int = 3
    base: float = 1.0
    longest: float = 30.0
    deadline: float = 60.0
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    draw: Callable[[float, float], float] = random.uniform

    def run(self, attempt: Callable[[float], T]) -> T:
        """Call ``attempt`` until it succeeds, can't, or the deadline is too near to wait.

        :param attempt: gets the deadline, on the policy's clock.
        :raises RecallError: the last failure; its ``retry_after`` is set if the server asked for more than was left.
        """
        end = self.clock() + self.deadline
        unreadable = 0
        for tries in range(1, self.attempts + 1):
            try:
                return attempt(end)
            except RecallError as error:
                failure = error
            unreadable += isinstance(failure, RecallResponseError)
            wait = self.wait_after(failure, tries)
            if (
                tries == self.attempts
                or unreadable > self.bad_responses
                or not _can_help(failure)
                or self.clock() + wait >= end
            ):
                break
            self.sleep(wait)
        raise failure

    def wait_after(self, failure: RecallError, tries: int) -> float:
        """Return the seconds to wait after a failure.

        :param tries: how many tries there were, this failure's included.
        """
        if failure.retry_after is not None:
            return failure.retry_after + self.draw(0.0, min(3.0, 0.1 + failure.retry_after / 4))
        low, high = self.base * (2.0 ** (tries - 1) - 1), self.base * (2.0**tries - 1)
        return self.draw(min(low, self.longest / 2), min(high, self.longest))


def _can_help(failure: RecallError) -> bool:
    if isinstance(failure, (RecallNoBotsError, RecallLinkExpiredError)):
        return False  # helps only with a new idempotency key, or a fresh link: the caller's business
    return isinstance(failure, RecallResponseError) or not failure.permanent


def parse_date(value: str | None) -> datetime | None:
    """Read an HTTP date as UTC; ``None`` if there is none."""
    try:
        moment = parsedate_to_datetime(value or "")
        return moment.replace(tzinfo=moment.tzinfo or timezone.utc).astimezone(timezone.utc)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


def parse_retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that a reply asks to wait, at most an hour; ``None`` if it doesn't.

    A date counts from the reply's own ``Date``, because the local clock may differ from the server's.
    """
    value = (headers.get("Retry-After") or "").strip()
    if re.fullmatch(r"[0-9]{1,300}(\.[0-9]{1,9})?", value):
        return min(float(value), LONGEST_RETRY_AFTER)
    until, now = parse_date(value), parse_date(headers.get("Date"))
    if until is None or now is None:
        return None
    return min(max((until - now).total_seconds(), 0.0), LONGEST_RETRY_AFTER)
