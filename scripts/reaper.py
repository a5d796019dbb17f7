"""End the processes of an owner that is gone.

Run as a process of its own, it reads the leaders' process ids from its standard input, one a line. The owner holds the
other end of that pipe, so its end means that the owner has finished or died, however suddenly; whatever still runs is
then ended.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

POLL_SECONDS = 0.05


def end_sessions(leaders: Mapping[int, float], *, grace: float) -> None:
    """End every process of the given sessions: ask the leaders, wait, then kill what is left.

    :param leaders: process id of each session's first process, and when that process was created.
    :param grace: seconds between SIGTERM and SIGKILL.
    """
    found = _members(leaders)
    for process in found:
        if process.pid in leaders:
            _signal(process, signal.SIGTERM)
    deadline = time.monotonic() + grace
    while found and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
        found = _alive(found | _members(leaders))
    # A process may start another one while it is being killed: look again until none is left.
    # At least once, even if this process was held up for longer than the grace.
    deadline = time.monotonic() + grace
    while found:
        for process in found:
            _signal(process, signal.SIGKILL)
        time.sleep(POLL_SECONDS)
        found = _alive(found | _members(leaders))
        if time.monotonic() >= deadline:
            break


def _members(leaders: Mapping[int, float]) -> set[psutil.Process]:
    """Find the processes of the sessions, and their descendants that opened a session of their own."""
    sessions = {pid for pid, created in leaders.items() if not _is_recycled(pid, created)}
    found: set[psutil.Process] = set()
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and os.getsid(process.pid) in sessions:
                found.add(process)
                if process.pid in sessions:
                    found.update(process.children(recursive=True))
        except (psutil.Error, OSError):
            continue
    return _alive(found)


def _is_recycled(pid: int, created: float) -> bool:
    """Tell whether the id belongs to another process by now: then the session that had it is over."""
    try:
        return bool(psutil.Process(pid).create_time() != created)
    except psutil.Error:
        return False


def _alive(processes: Iterable[psutil.Process]) -> set[psutil.Process]:
    alive = set()
    for process in processes:
        try:
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                alive.add(process)
        except psutil.Error:
            continue
    return alive


def _signal(process: psutil.Process, number: int) -> None:
    with suppress(psutil.Error):
        process.send_signal(number)


def main() -> None:
    """Collect process ids until the owner is gone, then end their sessions."""
    grace = float(sys.argv[1])
    leaders: dict[int, float] = {}
    for line in sys.stdin:
        try:
            leaders[int(line)] = psutil.Process(int(line)).create_time()
        except psutil.Error:
            continue
    end_sessions(leaders, grace=grace)


if __name__ == "__main__":
    main()
