"""What was asked of both origins, without the secrets."""

from __future__ import annotations

import re
from collections import deque
from dataclasses import asdict, dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

SECRET_QUERY = re.compile(r"(?i)\b(token|Signature|AWSAccessKeyId|x-amz-security-token)=[^&]*")
LIMIT = 200_000


@dataclass
class Entry:
    """One request.

    :ivar number: counts up from 1 over both origins.
    :ivar time: real seconds since the journal began, when the request's head was complete.
    :ivar origin: ``api`` or ``media``.
    :ivar query: with signatures and tokens replaced by ``-``.
    :ivar headers: names only, lower case, in order of arrival.
    :ivar authorization: whether such a header was there, and ``cookie`` likewise.
    :ivar range: value of ``Range``; ``if_match``, ``if_range`` and ``idempotency_key`` likewise.
    :ivar body_bytes: of the request.
    :ivar status: of the answer; null while there is none, or when the connection was dropped without one.
    :ivar sent: bytes of the answer's body handed to the network.
    :ivar complete: whether the whole answer was sent as it was meant to be.
    :ivar seconds: from head to end of the answer.
    :ivar fault: name of the rule that was applied.
    :ivar replayed: whether an idempotency key brought back an earlier answer.
    """

    number: int
    time: float
    origin: str
    method: str
    path: str
    query: str
    headers: list[str]
    authorization: bool
    cookie: bool
    range: str | None
    if_match: str | None
    if_range: str | None
    idempotency_key: str | None
    body_bytes: int = 0
    status: int | None = None
    sent: int = 0
    complete: bool = False
    seconds: float | None = None
    fault: str | None = None
    replayed: bool = False
    started: float = field(default_factory=monotonic, repr=False)

    def finish(self) -> None:
        """Note the time that the answer took."""
        self.seconds = round(monotonic() - self.started, 6)

    def to_json(self) -> dict[str, Any]:
        """Give the entry as the control API shows it."""
        data = asdict(self)
        del data["started"]
        return data


class Journal:
    """The requests since the start or since it was last emptied, newest 200,000 at most."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget everything and count from 1 again."""
        self.entries: deque[Entry] = deque(maxlen=LIMIT)
        self._since = monotonic()
        self._count = 0

    def open(self, origin: str, method: str, target: tuple[str, str], headers: Iterable[tuple[str, str]]) -> Entry:
        """Note the head of a request.

        :param target: path and query.
        :param headers: names in lower case, and values.
        """
        pairs = list(headers)
        values = dict(pairs)
        self._count += 1
        entry = Entry(
            number=self._count,
            time=round(monotonic() - self._since, 6),
            origin=origin,
            method=method,
            path=target[0],
            query=SECRET_QUERY.sub(r"\1=-", target[1]),
            headers=[name for name, _ in pairs],
            authorization="authorization" in values,
            cookie="cookie" in values,
            range=values.get("range"),
            if_match=values.get("if-match"),
            if_range=values.get("if-range"),
            idempotency_key=values.get("idempotency-key"),
        )
        self.entries.append(entry)
        return entry
