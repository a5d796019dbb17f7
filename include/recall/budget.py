"""A machine's share of a workspace's request limits, in a file that all processes of the machine go by.

Each request is entered before it is sent, with the moment at which it may go. So a crashed process has at most spent
what it had entered, and nobody needs to know who is still there. Moments are those of the machine's monotonic clock,
which is one for all its processes, and which nobody sets.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import stat
import tempfile
import time
from bisect import insort
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from include.recall.retry import LONGEST_RETRY_AFTER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from include.recall.client import RequestKind

log = logging.getLogger(__name__)

LIMITS: dict[RequestKind, int] = {"create": 60, "list": 60, "retrieve": 300}
"""Requests a minute that Recall allows a workspace."""

WINDOW = 62.0
"""Seconds in which we send no more than a minute's requests: two more, for those that are held up on their way."""


def per_minute(kind: RequestKind, share: float) -> int:
    """Return how many requests a minute a share comes to, one at least."""
    return max(1, int(LIMITS[kind] * share))


class FileBudget:
    """The budget of one workspace on this machine (see :class:`~include.recall.client.RequestBudget`).

    If the file can't be used, which is logged, requests go out unasked, and what then keeps to the limits is the
    ``Retry-After`` of the API.

    :param workspace: what tells the workspace from others, such as base URL and key; only its hash is written.
    :param share: part of Recall's limits that this machine may use; or what tells it, asked with the first request.
    :param folder: where the file is, a folder of this user's alone; ``recall-budget-<uid>`` in the machine's folder for
        temporary files by default.
    """

    def __init__(
        self,
        workspace: str,
        share: float | Callable[[], float],
        *,
        folder: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder or Path(tempfile.gettempdir()) / f"recall-budget-{os.getuid()}"
        self._path = self._folder / hashlib.sha256(workspace.encode()).hexdigest()[:32]
        self._share = share
        self._clock = clock

    def take(self, kind: RequestKind, longest: float) -> float:
        """Enter a request and return the seconds until it may go; nothing is entered if those are above ``longest``."""
        if callable(self._share):
            self._share = self._share()
        limit = per_minute(kind, self._share)
        try:
            with self._entries(kind) as entries:
                now, sent = self._clock(), entries["sent"]
                start = max(now, entries["paused_until"])
                if len(sent) >= limit:
                    start = max(start, sent[-limit] + WINDOW)
                if start - now <= longest:
                    insort(sent, start)
                return float(start - now)
        except OSError as error:
            log.warning("The request budget can't be kept in %s: %s", self._folder, error.strerror)
            return 0.0

    def pause(self, kind: RequestKind, seconds: float) -> None:
        """Let nobody on this machine send such a request for so long."""
        try:
            with self._entries(kind) as entries:
                entries["paused_until"] = max(entries["paused_until"], self._clock() + seconds)
        except OSError as error:
            log.warning("The request budget can't be kept in %s: %s", self._folder, error.strerror)

    @contextmanager
    def _entries(self, kind: RequestKind) -> Iterator[dict[str, Any]]:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        found = self._folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise PermissionError(0, "the folder is not this user's alone")
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            book = _read(os.read(file, 2**20))
            entries = book.setdefault(kind, {"sent": [], "paused_until": 0.0})
            now = self._clock()
            # What lies too far ahead was written before the machine was started anew.
            entries["sent"] = [at for at in entries["sent"] if now - WINDOW < at <= now + LONGEST_RETRY_AFTER + WINDOW]
            if entries["paused_until"] > now + LONGEST_RETRY_AFTER:
                entries["paused_until"] = 0.0
            yield entries
            body = json.dumps(book).encode()
            os.pwrite(file, body, 0)
            os.ftruncate(file, len(body))
        finally:
            os.close(file)


def _read(body: bytes) -> dict[str, Any]:
    """Return what the file says; nothing if its writer was cut short."""
    try:
        book = json.loads(body or b"{}")
        for entries in book.values():
            entries["sent"] = sorted(float(at) for at in entries["sent"])
            entries["paused_until"] = float(entries["paused_until"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
    return book if isinstance(book, dict) else {}
