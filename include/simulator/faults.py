"""Rules that make either origin misbehave: the input of ``POST /_sim/faults``."""

from __future__ import annotations

import asyncio
import functools
import gzip
import json
import re
from datetime import datetime, timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urljoin

from pydantic import Field, model_validator

from include.simulator.scenario import Audio, Model, Pattern, body_of
from include.simulator.wire import Delivery, Reply

if TYPE_CHECKING:
    from collections.abc import Iterator

FIREWALL_PAGE = (
    "<!DOCTYPE html><html><head><title>403 Forbidden</title></head>"
    "<body><center><h1>403 Forbidden</h1></center><hr></body></html>"
)
PORTAL_PAGE = (
    "<!DOCTYPE html><html><head><title>Sign in</title></head><body><h1>Sign in to the network</h1></body></html>"
)
MEBIBYTE = 1024 * 1024


class Action(Model):
    """What goes wrong. Members combine where that makes sense; all are off by default.

    Before or instead of the work:

    :param delay: seconds to wait first.
    :param drop: reset the connection without an answer, ``before`` or ``after`` doing the work.
    :param status: answer with this status. With ``body`` or without, it replaces the work unless ``after_work``.
    :param body: of that answer: text, or JSON if it is an object or a list. Alone it means status 200.
    :param body_hex: the same, as bytes.
    :param after_work: do the work, then answer ``status`` and ``body`` all the same.
    :param html: answer with an HTML page under this status: the firewall's under 403, else a sign-in page.
    :param redirect: answer 302 to this URL; ``{path}`` and ``{query}`` stand for the request's own.
    :param expired: answer as for an expired link.
    :param bomb: answer with that many MiB of zeros, gzip-encoded.

    To the real answer:

    :param headers: set these, or remove those that are null.
    :param retry_after_date: set ``Retry-After`` to the HTTP date that many seconds after the answer's own ``Date``.
    :param next: ``repeat`` points ``next`` at the same page again; a URL points it there.
    :param set: JSON paths such as ``results.0.id`` to new values.
    :param remove: JSON paths to take out.
    :param truncate: cut the body there, with a ``Content-Length`` that agrees.
    :param content_length: claim this many bytes; ``none`` sends no length; ``chunked`` sends chunks.

    To the media host only:

    :param ignore_range: answer 200 with the whole body to a range request.
    :param etag: send this ``ETag``, quotes included, and check conditions against it.
    :param content: serve these bytes instead.
    :param flip: turn over the lowest bit of the byte at this offset of the whole body; negative counts from the end.

    To the sending:

    :param cut: end the connection after that many bytes of the body, by a reset unless ``reset`` is false.
    :param rate: bytes of the body per second.
    :param head_rate: bytes of status line and headers per second.
    :param stall: stop after that many bytes of the body for ``stall_seconds``, or until the rules are deleted.
    """

    delay: float | None = Field(default=None, ge=0)
    drop: Literal["before", "after"] | None = None
    status: int | None = Field(default=None, ge=200, le=599)
    body: str | dict[str, Any] | list[Any] | None = None
    body_hex: str | None = None
    after_work: bool = False
    html: int | None = None
    redirect: str | None = None
    expired: bool = False
    bomb: int | None = Field(default=None, ge=1)
    headers: dict[str, str | None] = {}
    retry_after_date: float | None = None
    next: str | None = None
    set: dict[str, Any] = {}
    remove: list[str] = []
    truncate: int | None = Field(default=None, ge=0)
    content_length: int | Literal["none", "chunked"] | None = None
    ignore_range: bool = False
    etag: str | None = None
    content: Audio | None = None
    flip: int | None = None
    cut: int | None = Field(default=None, ge=0)
    reset: bool = True
    rate: float | None = Field(default=None, gt=0)
    head_rate: float | None = Field(default=None, gt=0)
    stall: int | None = Field(default=None, ge=0)
    stall_seconds: float = Field(default=3600.0, ge=0)

    @model_validator(mode="after")
    def _does_something(self) -> Action:
        if not self.model_fields_set - {"reset", "stall_seconds", "after_work"}:
            raise ValueError("an action needs at least one member")
        if self.body_hex is not None:
            bytes.fromhex(self.body_hex)
        if self.content is not None:
            body_of(self.content)
        return self

    def instead(self, path: str, query: str) -> Reply | None:
        """Give the answer that replaces the real one, if there is such.

        :param path: of the request.
        :param query: of the request.
        """
        if self.html is not None:
            page = FIREWALL_PAGE if self.html == 403 else PORTAL_PAGE
            return Reply.of(self.html, page, {"Content-Type": "text/html; charset=utf-8"})
        if self.redirect is not None:
            target = self.redirect.replace("{path}", path).replace("{query}", query)
            return Reply.of(self.status or 302, b"", {"Location": target})
        if self.bomb is not None:
            bomb = _Bomb(self.bomb)
            headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
            return Reply(200, headers, bomb, 0, bomb.length, bomb.length)
        if self.body_hex is not None:
            return Reply.of(self.status or 200, bytes.fromhex(self.body_hex), {})
        if self.body is not None:
            return Reply.of(self.status or 200, self.body, {})
        if self.status is not None:
            return Reply.of(self.status, {"detail": "Simulated."}, {})
        return None

    def change(self, reply: Reply, url: str, now: datetime) -> Reply:
        """Change an answer before it is sent.

        :param url: of the request, for a ``next`` that repeats.
        :param now: the virtual moment.
        """
        if self.next is not None or self.set or self.remove:
            reply = self._edit(reply, url)
        if self.truncate is not None:
            reply.stop = min(reply.stop, reply.start + self.truncate)
            reply.length = reply.stop - reply.start
        if self.content_length == "chunked":
            reply.chunked, reply.length = True, None
        elif self.content_length is not None:
            reply.length = None if self.content_length == "none" else self.content_length
        headers = dict(self.headers)
        if self.retry_after_date is not None:
            moment = now.replace(microsecond=0) + timedelta(seconds=self.retry_after_date)
            headers["Retry-After"] = format_datetime(moment, usegmt=True)
        for name, value in headers.items():
            for known in [known for known in reply.headers if known.lower() == name.lower()]:
                del reply.headers[known]
            if value is not None:
                reply.headers[name] = value
        return reply

    def delivery(self, reply: Reply, released: asyncio.Event) -> Delivery:
        """Say how the answer is to be sent."""
        flip = self.flip
        if flip is not None and flip < 0:
            flip += reply.body.length
        return Delivery(
            cut=self.cut,
            reset=self.reset,
            rate=self.rate,
            head_rate=self.head_rate,
            stall=self.stall,
            stall_seconds=self.stall_seconds,
            released=released,
            flip=flip,
        )

    def touches_wire(self) -> bool:
        """Tell whether the sending itself is abnormal."""
        members = (self.cut, self.rate, self.head_rate, self.stall, self.flip, self.content_length)
        return any(member is not None for member in members)

    def _edit(self, reply: Reply, url: str) -> Reply:
        document = json.loads(reply.content())
        if self.next is not None:
            document["next"] = url if self.next == "repeat" else urljoin(url, self.next)
        for path, value in self.set.items():
            *parents, last = path.split(".")
            _member(document, parents)[_key(last)] = value
        for path in self.remove:
            *parents, last = path.split(".")
            del _member(document, parents)[_key(last)]
        return Reply.of(reply.status, document, reply.headers)


class Rule(Model):
    """When something goes wrong. The first rule that matches and is not used up applies.

    :param name: shown in the journal.
    :param origin: ``api`` or ``media``; both by default.
    :param method: any by default.
    :param path: regular expression, searched in path and query; signatures and tokens read ``-`` there.
    :param skip: let that many matching requests through first.
    :param times: apply to that many requests, then no more; null for ever.
    """

    name: str | None = None
    origin: Literal["api", "media"] | None = None
    method: str | None = None
    path: Pattern = ""
    skip: int = Field(default=0, ge=0)
    times: int | None = Field(default=1, ge=1)
    action: Action


class ArmedRule:
    """A rule and how often it has matched and been applied."""

    def __init__(self, rule: Rule, number: int, released: asyncio.Event) -> None:
        self.rule = rule
        self.name = rule.name or f"rule-{number}"
        self.action = rule.action
        self.released = released
        self.matched = 0
        self.applied = 0

    def takes(self, origin: str, method: str, target: str) -> bool:
        """Tell whether a request is to be spoilt, and count it."""
        rule = self.rule
        if rule.origin not in (None, origin) or (rule.method or method).upper() != method:
            return False
        if not re.search(rule.path, target) or (rule.times is not None and self.applied >= rule.times):
            return False
        self.matched += 1
        if self.matched <= rule.skip:
            return False
        self.applied += 1
        return True

    def to_json(self) -> dict[str, Any]:
        """Give the rule and its counts."""
        data = self.rule.model_dump(mode="json", exclude_unset=True)
        return {**data, "name": self.name, "matched": self.matched, "applied": self.applied}


class FaultBook:
    """The rules in force."""

    def __init__(self) -> None:
        self.rules: list[ArmedRule] = []
        self._released = asyncio.Event()
        self._count = 0

    def add(self, rules: list[Rule]) -> None:
        """Put further rules behind those in force."""
        for rule in rules:
            self._count += 1
            self.rules.append(ArmedRule(rule, self._count, self._released))

    def clear(self) -> None:
        """Drop all rules, and let everything go on that a rule has stalled."""
        self._released.set()
        self._released = asyncio.Event()
        self.rules = []
        self._count = 0

    def find(self, origin: str, method: str, target: str) -> ArmedRule | None:
        """Find the rule that a request falls under.

        :param target: path and query without secrets.
        """
        return next((rule for rule in self.rules if rule.takes(origin, method, target)), None)


class _Bomb:
    """Zeros in gzip: members of one MiB each, one after the other."""

    media_type = "application/json"

    def __init__(self, mebibytes: int) -> None:
        self._member = _zeros()
        self._count = mebibytes
        self.length = len(self._member) * mebibytes

    def read(self, start: int, stop: int) -> Iterator[bytes | memoryview]:
        """Yield the members; ranges are not supported."""
        for _ in range(self._count if stop > start else 0):
            yield self._member


@functools.cache
def _zeros() -> bytes:
    return gzip.compress(bytes(MEBIBYTE), mtime=0)


def _key(name: str) -> Any:
    return int(name) if name.lstrip("-").isdigit() else name


def _member(document: Any, path: list[str]) -> Any:
    for name in path:
        document = document[_key(name)]
    return document
