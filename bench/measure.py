"""Run one engine as a fresh process and say what it took."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

SAMPLE_SECONDS = 0.02


class EngineError(RuntimeError):
    """An engine failed, or did not deliver."""


@dataclass(frozen=True)
class Cost:
    """What a run took.

    :param wall: seconds from start to end, the interpreter's start included.
    :param cpu: user and system seconds, children included.
    :param peak: bytes of memory, the highest sum of the processes' proportional shares that was seen.
    :param resident: bytes; the most that was ever resident in any one of the processes.
    :param inside: ``wall`` and ``cpu`` seconds of the work alone, without start and imports, where the program says so
        in its last line.
    """

    wall: float
    cpu: float
    peak: int
    resident: int
    inside: dict[str, float] | None


def run(
    command: Sequence[str],
    env: Mapping[str, str],
    *,
    timeout: float = 900,
    prepare: Callable[[], object] | None = None,
) -> Cost:
    """Run a command to its end.

    :param prepare: called in the child before the program starts.
    :raises EngineError: with the end of what it printed, when it failed.
    """
    with tempfile.TemporaryFile() as output:
        started = time.monotonic()
        process = subprocess.Popen(list(command), env=dict(env), stdout=output, stderr=output, preexec_fn=prepare)
        peak = ended = status = 0
        while not ended:
            peak = max(peak, tree_pss(process.pid))
            time.sleep(SAMPLE_SECONDS)
            ended, status, usage = os.wait4(process.pid, os.WNOHANG)
            if not ended and time.monotonic() - started > timeout:
                process.kill()
        wall = time.monotonic() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        said = output.read().decode(errors="replace").strip()
    if process.returncode:
        raise EngineError(f"exit code {process.returncode}: {said[-2000:]}")
    try:
        inside = json.loads(said.rpartition("\n")[2])
    except ValueError:
        inside = None
    return Cost(wall, usage.ru_utime + usage.ru_stime, peak, usage.ru_maxrss * 1024, inside)


def tree_pss(pid: int) -> int:
    """Return the proportional memory of a process and all that it started, in bytes."""
    return sum(pss(one) for one in (pid, *descendants(pid)))


def descendants(pid: int) -> list[int]:
    """List the processes below one."""
    found: list[int] = []
    with suppress(OSError):  # it has just ended
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                found += [child, *descendants(child)]
    return found


def pss(pid: int) -> int:
    """Return the proportional memory of one process, in bytes; nothing once it has ended."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # it has just ended
    return 0
