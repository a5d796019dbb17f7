"""PostgreSQL and Redis from the system's packages, as private instances: own data folders, own ports."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.processes import LOOPBACK, ProcessGroup, unused_port

if TYPE_CHECKING:
    from collections.abc import Callable

PACKAGES = ("postgresql", "redis-server")
START_SECONDS = 60.0


def _postgres_programs() -> Path | None:
    """Return the folder of the newest PostgreSQL; Debian keeps its programs off the path."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    if found:
        return found[-1].parent
    there = shutil.which("postgres")
    return Path(there).resolve().parent if there else None


def require() -> None:
    """Install what is missing of both, where that is possible.

    :raises SystemExit: something is missing and can't be installed; the message says what.
    """

    def missing() -> bool:
        return _postgres_programs() is None or shutil.which("redis-server") is None

    if not missing():
        return
    if os.geteuid() == 0 and shutil.which("apt-get"):
        print(f"installing {' and '.join(PACKAGES)}", flush=True)
        subprocess.run(["apt-get", "update", "-qq"], check=False)
        install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *PACKAGES]
        subprocess.run(install, check=False, stdout=sys.stderr, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"})
    if missing():
        raise SystemExit(f"PostgreSQL or Redis is missing: run `apt-get install {' '.join(PACKAGES)}` as root first")


class Services:
    """A database and a broker. Use it as a context manager; both end with it, and when this process dies.

    :param logs: folder of their logs.
    :ivar database: URL of the database, for SQLAlchemy.
    :ivar broker: URL of the broker.
    """

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._password = secrets.token_urlsafe(24)
        self._ports = {"postgres": unused_port(), "redis": unused_port()}
        self._group = ProcessGroup()
        self._resources = ExitStack()
        self.database = f"postgresql://airflow:{self._password}@{LOOPBACK}:{self._ports['postgres']}/postgres"
        self.broker = f"redis://:{self._password}@{LOOPBACK}:{self._ports['redis']}/0"

    def __enter__(self) -> Services:
        try:
            self._folder = Path(self._resources.enter_context(tempfile.TemporaryDirectory(prefix="distributed-")))
            # Each service's own folder is below; others may pass through this one, and see nothing.
            self._folder.chmod(0o711)
            self._resources.callback(self._group.stop)
            self._start_redis()
            self._make_database()
            self._start_postgres()
        except BaseException:
            self._resources.close()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self._resources.close()

    def _start_postgres(self) -> None:
        options = {
            "port": self._ports["postgres"],
            "listen_addresses": LOOPBACK,
            "max_connections": 300,
            "fsync": "off",
        }
        words = [
            word
            for name, value in {**options, "unix_socket_directories": ""}.items()
            for word in ("-c", f"{name}={value}")
        ]
        self._start("postgres", [*self._as_owner(), str(self._programs / "postgres"), "-D", str(self._data), *words])
        self._await("PostgreSQL", lambda: self._client("psql", "-c", "select 1").returncode == 0)

    def dump(self, target: Path) -> None:
        """Write all that the database holds into a file, as text."""
        with target.open("wb") as file:
            done = self._client("pg_dump", "--inserts")
            file.write(done.stdout)
        if done.returncode:
            raise RuntimeError(f"pg_dump failed: {done.stderr.decode()[:500]}")

    def _start_redis(self) -> None:
        folder = self._folder / "redis"
        folder.mkdir(mode=0o700)
        settings = {
            "port": self._ports["redis"],
            "bind": LOOPBACK,
            "dir": folder,
            "save": '""',
            "requirepass": self._password,
        }
        path = folder / "redis.conf"
        path.touch(mode=0o600)
        path.write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
        self._start("redis", ["redis-server", str(path)])

    def _make_database(self) -> None:
        programs = _postgres_programs()
        assert programs is not None
        self._programs = programs
        self._data = self._folder / "postgres"
        self._data.mkdir(mode=0o700)
        secret = self._data / "password"
        secret.write_text(self._password)
        if os.geteuid() == 0:
            for path in (self._data, secret):
                shutil.chown(path, _OWNER, _OWNER)
        # The folder of a new database must be empty.
        data = self._data / "data"
        words = [
            "-D",
            str(data),
            "-U",
            "airflow",
            "--auth=scram-sha-256",
            f"--pwfile={secret}",
            "--no-sync",
            "-E",
            "UTF8",
        ]
        subprocess.run(
            [*self._as_owner(), str(self._programs / "initdb"), *words],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=self._data,
        )
        self._data = data

    def _as_owner(self) -> list[str]:
        """PostgreSQL refuses to run as root."""
        if os.geteuid() != 0:
            return []
        owner = pwd.getpwnam(_OWNER)
        return ["setpriv", f"--reuid={owner.pw_uid}", f"--regid={owner.pw_gid}", "--clear-groups"]

    def _client(self, program: str, *words: str) -> subprocess.CompletedProcess[bytes]:
        env = {**os.environ, "PGCONNECT_TIMEOUT": "5"}
        return subprocess.run(
            [str(self._programs / program), *words, "-d", self.database], env=env, capture_output=True, check=False
        )

    def _start(self, name: str, command: list[str]) -> None:
        self._group.start(name, command, env=os.environ, cwd=self._folder, log=self._logs / f"{name}.log")

    def _await(self, what: str, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not ready():
            if time.monotonic() > deadline:
                raise RuntimeError(f"{what} did not start in {START_SECONDS:g} s: see {self._logs}")
            time.sleep(0.1)


_OWNER = "postgres"
"""The unprivileged user that Debian's package makes."""
