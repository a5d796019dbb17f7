"""Start processes that never outlive their owner, and find ports for them."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from scripts.reaper import end_sessions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

LOOPBACK = "127.0.0.1"


class ProcessGroup:
    """Processes that end together, and at the latest when the process that started them does.

    Each one leads a session of its own, so that Ctrl-C in a terminal reaches only the owner, and everything that a
    process starts can be found again. Ending is by SIGTERM first, SIGKILL after a grace.

    :param grace: seconds between SIGTERM and SIGKILL. Default 10.
    """

    def __init__(self, *, grace: float = 10.0) -> None:
        self._grace = grace
        self._leaders: dict[int, float] = {}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._reaper: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> ProcessGroup:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    @property
    def processes(self) -> Mapping[str, subprocess.Popen[bytes]]:
        """The processes by name, the ended ones too."""
        return self._processes

    def start(
        self,
        name: str,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path,
        log: Path,
    ) -> subprocess.Popen[bytes]:
        """Start one process.

        :param name: what it is called here; a name that ended may be used again.
        :param command: program and arguments.
        :param env: its whole environment.
        :param cwd: its working folder.
        :param log: file that gets what it prints, made anew.
        """
        reaper = self._reaper or self._start_reaper()
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            process = subprocess.Popen(
                list(command),
                env=dict(env),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        if reaper.stdin is not None:
            reaper.stdin.write(f"{process.pid}\n".encode())
            reaper.stdin.flush()
        self._processes[name] = process
        with suppress(psutil.Error):
            self._leaders[process.pid] = psutil.Process(process.pid).create_time()
        return process

    def forget(self, name: str) -> None:
        """Stop listing a process that has ended."""
        self._processes.pop(name)

    def stop(self) -> None:
        """End all processes and everything that they started; calling it again does nothing."""
        end_sessions(self._leaders, grace=self._grace)
        for process in self._processes.values():
            process.wait()
        self._leaders.clear()
        if self._reaper is not None:
            if self._reaper.stdin is not None:
                self._reaper.stdin.close()
            self._reaper.wait()
            self._reaper = None

    def _start_reaper(self) -> subprocess.Popen[bytes]:
        script = Path(__file__).with_name("reaper.py")
        self._reaper = subprocess.Popen(
            [sys.executable, "-I", str(script), str(self._grace)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        return self._reaper


class ReservedPort:
    """A free port of this machine, kept from other runs of this project until it is released.

    Between choosing a port and listening on it several seconds pass, long enough for a second run to choose the same
    one. A lock on a file in the temporary folder tells it.

    :param preferred: the port to take if it is free; otherwise the next free one of the ten after it, then any.
    """

    def __init__(self, preferred: int) -> None:
        for number in (*range(preferred, preferred + 11), 0):
            lock = _lock_port(number)
            if lock is None:
                continue
            if number == 0:
                self.number = unused_port()
            elif is_free(number):
                self.number = number
            else:
                os.close(lock)
                continue
            self._lock = lock
            return
        raise OSError(f"no port is free from {preferred} on")

    def __enter__(self) -> int:
        return self.number

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def release(self) -> None:
        """Let other runs have the port."""
        os.close(self._lock)


def _lock_port(number: int) -> int | None:
    folder = Path(tempfile.gettempdir()) / f"recall-audio-archive-ports-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    handle = os.open(folder / str(number), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    if number == 0:  # any port: nothing to keep
        return handle
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


def is_free(port: int) -> bool:
    """Tell whether nobody listens on the port and a server could."""
    for family, host in ((socket.AF_INET, LOOPBACK), (socket.AF_INET6, "::1")):
        with suppress(OSError), socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.settimeout(1)
            if probe.connect_ex((host, port)) == 0:
                return False
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def unused_port() -> int:
    """Give a port that the system says is unused."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as server:
        server.bind((LOOPBACK, 0))
        return int(server.getsockname()[1])
