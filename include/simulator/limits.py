"""The budget of a workspace: sliding windows, in real time, because clients wait in real time."""

from __future__ import annotations

import math
import time
from collections import deque

WINDOW_SECONDS = 60.0
LIMITS = {"list": 60, "retrieve": 300, "create": 60}


class RateLimiter:
    """Counts requests per class over the last minute."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Start with an empty window."""
        self._seen: dict[str, deque[float]] = {name: deque() for name in LIMITS}

    def refuse(self, kind: str, *, strict: bool) -> int | None:
        """Count a request, and give the seconds to wait when it is one too many.

        :param kind: ``list``, ``retrieve`` or ``create``.
        :param strict: count refused requests too.
        """
        now = time.monotonic()
        seen = self._seen[kind]
        while seen and seen[0] <= now - WINDOW_SECONDS:
            seen.popleft()
        full = len(seen) >= LIMITS[kind]
        if not full or strict:
            seen.append(now)
        if not full:
            return None
        return max(1, math.ceil(seen[-LIMITS[kind]] + WINDOW_SECONDS - now))
