"""One line in the log for each part that is copied, and a few on the way for a part that takes long."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from include.archive.copy import StoredPart

log = logging.getLogger(__name__)

SECONDS = 30.0
SHARE = 0.1
MIB = 2**20


class Progress:
    """Follows the copy of one part.

    A long one is told about every 30 seconds, or with every tenth of it where that comes later.

    :param participant_id: whose part it is, scoped by the recording.
    :param part_id: the part's id, unique within its artifact.
    :param clock: seconds that never jump.
    """

    def __init__(self, participant_id: int, part_id: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._who, self._part_id = f"Participant {participant_id}", part_id
        self._clock = clock
        self._began = self._told = clock()
        self._told_at = 0

    def __call__(self, count: int, size: int | None) -> None:
        """Take note of how far it is.

        :param count: bytes read so far.
        :param size: bytes in all; ``None`` while nobody knows.
        """
        now = self._clock()
        self._told_at = min(self._told_at, count)  # a copy that had to begin anew
        if now - self._told < SECONDS or (size and count - self._told_at < SHARE * size) or count == size:
            return
        self._told, self._told_at = now, count
        of_all = f" of {size / MIB:.1f} MiB, {count / size:.0%}" if size else " MiB"
        pace = count / MIB / (now - self._began)
        log.info("%s, part %s: %.1f%s, %.2f MiB/s", self._who, self._part_id, count / MIB, of_all, pace)

    def done(self, part: StoredPart) -> float:
        """Say what became of it.

        :return: the seconds that it took.
        """
        seconds = self._clock() - self._began
        if part.action == "stored":
            pace = part.transferred / MIB / max(seconds, 0.001)
            log.info("%s: stored %d bytes in %.2f s (%.2f MiB/s) as %s", self._who, part.bytes, seconds, pace, part.key)
        else:
            log.info("%s: %d bytes are there already as %s", self._who, part.bytes, part.key)
        return seconds
