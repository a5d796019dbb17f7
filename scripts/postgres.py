"""A private PostgreSQL from the system's packages: its own data folder, its own port."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import subprocess
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.processes import LOOPBACK, ProcessGroup, unused_port

if TYPE_CHECKING:
    from collections.abc import Callable

START_SECONDS = 60.0
_OWNER = "postgres"
"""The unprivileged user that Debian's package makes."""


def programs() -> Path | None:
    """Return the folder of the newest PostgreSQL, if there is one; Debian keeps its programs off the path."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    if found:
        return found[-1].parent
    there = shutil.which("postgres")
    return Path(there).resolve().parent if there else None


class Postgres:
    """A database. Use it as a context manager; it ends with it, and when this process dies.

    :param logs: folder of its log.
    :param options: settings on top of PostgreSQL's own.
    :ivar url: of the database, for SQLAlchemy.
    """

    def __init__(self, logs: Path, options: dict[str, str] | None = None) -> None:
        self._logs = logs
        self._options = options or {}
        self._password = secrets.token_urlsafe(24)
        self._port = unused_port()
        self._group = ProcessGroup()
        self._resources = ExitStack()
        self.url = f"postgresql://airflow:{self._password}@{LOOPBACK}:{self._port}/postgres"

    def __enter__(self) -> Postgres:
        try:
            self._folder = Path(self._resources.enter_context(tempfile.TemporaryDirectory(prefix="postgres-")))
            # What is below is the database's alone; it may pass through here, and sees nothing.
            self._folder.chmod(0o711)
            self._resources.callback(self._group.stop)
            self._make()
            self._start()
        except BaseException:
            self._resources.close()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self._resources.close()

    @property
    def pid(self) -> int:
        """Process id of the server, whose children are the rest of it."""
        return self._group.processes["postgres"].pid

    def dump(self, target: Path) -> None:
        """Write all that the database holds into a file, as text."""
        with target.open("wb") as file:
            done = self._client("pg_dump", "--inserts")
            file.write(done.stdout)
        if done.returncode:
            raise RuntimeError(f"pg_dump failed: {done.stderr.decode()[:500]}")

    def _make(self) -> None:
        found = programs()
        if found is None:
            raise RuntimeError("there is no PostgreSQL on this machine")
        self._programs = found
        home = self._folder / "home"
        home.mkdir(mode=0o700)
        secret = home / "password"
        secret.write_text(self._password)
        if os.geteuid() == 0:
            for path in (home, secret):
                shutil.chown(path, _OWNER, _OWNER)
        self._data = home / "data"  # the folder of a new database must be empty
        words = [
            *("-D", str(self._data), "-U", "airflow", "-E", "UTF8", "--no-sync"),
            *("--auth=scram-sha-256", f"--pwfile={secret}"),
        ]
        command = [*_as_owner(), str(self._programs / "initdb"), *words]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=home)

    def _start(self) -> None:
        options = {
            "port": str(self._port),
            "listen_addresses": LOOPBACK,
            "max_connections": "300",
            "unix_socket_directories": "",
            **self._options,
        }
        words = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        command = [*_as_owner(), str(self._programs / "postgres"), "-D", str(self._data), *words]
        self._group.start("postgres", command, env=os.environ, cwd=self._folder, log=self._logs / "postgres.log")
        self._await(lambda: self._client("psql", "-c", "select 1").returncode == 0)

    def _client(self, program: str, *words: str) -> subprocess.CompletedProcess[bytes]:
        env = {**os.environ, "PGCONNECT_TIMEOUT": "5"}
        command = [str(self._programs / program), *words, "-d", self.url]
        return subprocess.run(command, env=env, capture_output=True, check=False)

    def _await(self, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not ready():
            if time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL did not start in {START_SECONDS:g} s: see {self._logs}")
            time.sleep(0.1)


def _as_owner() -> list[str]:
    """PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return []
    owner = pwd.getpwnam(_OWNER)
    return ["setpriv", f"--reuid={owner.pw_uid}", f"--regid={owner.pw_gid}", "--clear-groups"]
