"""Rules that make the server misbehave, requests that it holds, and the journal of all that it was asked."""

from __future__ import annotations

import re
import threading
import time
from typing import TYPE_CHECKING, Any

from tests.strict_s3.wire import S3Error

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.strict_s3.wire import Request

ACTIONS = frozenset({"error", "drop", "delay", "hold", "corrupt", "cut"})
_MEMBERS: dict[str, tuple[type, ...]] = {
    "operation": (str,),
    "key": (str,),
    "skip": (int,),
    "times": (int, type(None)),
    "every": (int,),
    "action": (str,),
    "when": (str,),
    "code": (str,),
    "status": (int,),
    "seconds": (int, float),
    "bytes": (int,),
    "keep_checksum": (bool,),
}


class DropError(Exception):
    """The connection is to be reset, without an answer."""


class Rule:
    """One rule.

    - ``operation`` and ``key``: regular expressions; the first must fit the whole name, the second any place.
    - ``skip``: requests that fit and are let through first. ``times``: how often it strikes, default 1, null for ever.
      ``every``: from then on only each n-th request that fits.
    - ``action`` and its members:
      ``error`` (``code``, default SlowDown; ``status``, default that of the code, 200 for an error in a 200 answer),
      ``drop`` (reset the connection; ``bytes``: after so many bytes of the request's body),
      ``delay`` (``seconds``), ``hold`` (until released, at most ``seconds``, default 60),
      ``corrupt`` (store other bytes than were sent and say that all is well; ``keep_checksum``: of what was sent),
      ``cut`` (reset after ``bytes`` of the answer's body).
    - ``when``: ``before`` (default) or ``after`` the work, for ``error``, ``drop``, ``delay`` and ``hold``. Before
      means: with the whole request received and checked, and nothing changed yet.
    """

    def __init__(self, members: Mapping[str, Any]) -> None:
        for name, value in members.items():
            if name not in _MEMBERS or not isinstance(value, _MEMBERS[name]):
                raise ValueError(f"a rule with {name} = {value!r} is not understood")
        self.operation = re.compile(members.get("operation", ".*"))
        self.key = re.compile(members.get("key", ""))
        self.skip: int = members.get("skip", 0)
        self.times: int | None = members.get("times", 1)
        self.every: int = members.get("every", 1)
        self.action: str = members["action"]
        self.when: str = members.get("when", "before")
        self.code: str = members.get("code", "SlowDown")
        self.status: int | None = members.get("status")
        self.seconds: float = members.get("seconds", 60)
        self.bytes: int | None = members.get("bytes")
        self.keep_checksum: bool = members.get("keep_checksum", False)
        self.members = dict(members)
        self.seen = 0
        self.struck = 0
        if self.action not in ACTIONS or self.when not in ("before", "after") or self.every < 1:
            raise ValueError(f"the rule {members!r} is not understood")

    def due(self, operation: str, key: str) -> bool:
        if not self.operation.fullmatch(operation) or not self.key.search(key):
            return False
        self.seen += 1
        if self.seen <= self.skip or (self.seen - self.skip) % self.every:
            return False
        if self.times is not None and self.struck >= self.times:
            return False
        self.struck += 1
        return True


class Faults:
    """The rules in force. Of those that fit a request, the first strikes."""

    def __init__(self) -> None:
        self._lock = threading.Condition()
        self._rules: list[Rule] = []
        self._held: dict[int, dict[str, Any]] = {}
        self._verdicts: dict[int, bool] = {}

    def add(self, rules: list[Mapping[str, Any]]) -> None:
        new = [Rule(members) for members in rules]
        with self._lock:
            self._rules += new

    def clear(self) -> None:
        with self._lock:
            self._rules.clear()

    def describe(self) -> list[dict[str, Any]]:
        with self._lock:
            return [{**rule.members, "seen": rule.seen, "struck": rule.struck} for rule in self._rules]

    def pick(self, operation: str, key: str) -> Rule | None:
        with self._lock:
            return next((rule for rule in self._rules if rule.due(operation, key)), None)

    def strike(self, rule: Rule | None, when: str, entry: dict[str, Any]) -> None:
        """Let a rule do its harm, if this is the moment for it.

        :raises S3Error: to answer with.
        :raises DropError: to end the connection.
        """
        if rule is None or rule.when != when:
            return
        if rule.action == "error":
            raise S3Error(rule.code, "as asked for by a rule", status=rule.status)
        if rule.action == "drop":
            raise DropError
        if rule.action == "delay":
            time.sleep(rule.seconds)
        if rule.action == "hold":
            self._hold(rule, when, entry)

    def held(self) -> list[dict[str, Any]]:
        with self._lock:
            return list(self._held.values())

    def release(self, number: int | None, *, drop: bool) -> list[int]:
        """Let held requests go on; with ``drop`` they end without having done any more."""
        with self._lock:
            numbers = [each for each in self._held if number in (None, each)]
            for each in numbers:
                self._verdicts[each] = drop
                del self._held[each]
            self._lock.notify_all()
            return numbers

    def _hold(self, rule: Rule, when: str, entry: dict[str, Any]) -> None:
        number = entry["number"]
        with self._lock:
            self._held[number] = {name: entry[name] for name in ("number", "operation", "key", "bytes")}
            self._held[number]["when"] = when
            self._lock.wait_for(lambda: number in self._verdicts, timeout=rule.seconds)
            self._held.pop(number, None)
            if self._verdicts.pop(number, False):
                raise DropError


class Journal:
    """Every request, in the order in which they came."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: list[dict[str, Any]] = []
        self._number = 0

    def begin(self, request: Request) -> dict[str, Any]:
        headers = request.headers
        entry: dict[str, Any] = {
            "time": time.time(),
            "method": request.method,
            "bucket": request.bucket,
            "key": request.key,
            "query": sorted(request.query),
            "part": request.query.get("partNumber"),
            "operation": None,
            "conditions": {name: headers[name] for name in ("if-match", "if-none-match") if name in headers},
            "checksums": {
                name: value
                for name, value in headers.items()
                if name.startswith("x-amz-checksum-") or name in ("content-md5", "x-amz-trailer")
            },
            "payload": headers.get("x-amz-content-sha256"),
            "range": headers.get("range"),
            "agent": headers.get("user-agent", ""),
            "bytes": 0,
            "fault": None,
            "done": False,
            "status": None,
            "code": None,
            "sent": 0,
        }
        with self._lock:
            self._number += 1
            entry["number"] = self._number
            self._entries.append(entry)
        return entry

    def entries(self) -> list[dict[str, Any]]:
        with self._lock:
            return [dict(entry) for entry in self._entries]

    def clear(self) -> None:
        with self._lock:
            self._entries.clear()
