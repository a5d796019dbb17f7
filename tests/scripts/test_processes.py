from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from scripts.processes import LOOPBACK, ProcessGroup, ReservedPort, is_free, unused_port

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[2]

# Starts a child in a process group and one in a session of their own, and ends on SIGTERM only when told to.
FAMILY = """
import os, signal, subprocess, sys, time
if sys.argv[1] == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
pids = [
    os.getpid(),
    subprocess.Popen(sleep, preexec_fn=lambda: os.setpgid(0, 0)).pid,
    subprocess.Popen(sleep, start_new_session=True).pid,
]
print(*pids, flush=True)
time.sleep(600)
"""
OWNER = """
import os, signal, sys, time
from pathlib import Path
from scripts.processes import ProcessGroup
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whatever these tests were started with, such as nohup
group = ProcessGroup(grace=1)
log = Path(sys.argv[1])
group.start("family", [sys.executable, "-c", sys.argv[2], "polite"], env=os.environ, cwd=Path("/"), log=log)
time.sleep(600)
"""


def until(condition: Callable[[], bool], timeout: float = 60) -> bool:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def family(log: Path) -> list[int]:
    assert until(lambda: log.exists() and log.read_text().endswith("\n"))
    return [int(pid) for pid in log.read_text().split()]


def alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("manner", ["polite", "stubborn"])
def test_stopping_leaves_nothing_of_a_family(manner: str, tmp_path: Path) -> None:
    log = tmp_path / "logs" / "family.log"
    with ProcessGroup(grace=1) as group:
        group.start("family", [sys.executable, "-c", FAMILY, manner], env=os.environ, cwd=tmp_path, log=log)
        pids = family(log)
        assert len(pids) == 3
        assert all(alive(pid) for pid in pids)
    assert until(lambda: not any(alive(pid) for pid in pids))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_nothing_outlives_an_owner_that_is_killed(number: int, tmp_path: Path) -> None:
    log = tmp_path / "family.log"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", OWNER, str(log), FAMILY], env=env) as owner:
        pids = family(log)
        owner.send_signal(number)
    assert until(lambda: not any(alive(pid) for pid in pids))


def test_an_unrelated_process_is_left_alone(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True) as other:
        with ProcessGroup(grace=1) as group:
            group.start("short", [sys.executable, "-c", ""], env=os.environ, cwd=tmp_path, log=tmp_path / "log").wait()
        assert alive(other.pid)
        other.kill()


def test_a_port_that_somebody_listens_on_is_not_taken() -> None:
    with socket.create_server((LOOPBACK, 0)) as server:
        taken = server.getsockname()[1]
        assert not is_free(taken)
        with ReservedPort(taken) as port:
            assert port != taken
            assert is_free(port)


def test_two_runs_never_choose_the_same_port() -> None:
    wanted = unused_port()
    with ReservedPort(wanted) as first, ReservedPort(wanted) as second:
        assert first == wanted
        assert second != wanted
    with ReservedPort(wanted) as again:
        assert again == wanted
