"""PostgreSQL and Redis from the system's packages, as private instances: own data folders, own ports."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from scripts.postgres import Postgres, programs
from scripts.processes import LOOPBACK, ProcessGroup, unused_port

PACKAGES = ("postgresql", "redis-server")


def require() -> None:
    """Install what is missing of both, where that is possible.

    :raises SystemExit: something is missing and can't be installed; the message says what.
    """

    def missing() -> bool:
        return programs() is None or shutil.which("redis-server") is None

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
        self._port = unused_port()
        self._postgres = Postgres(logs, {"fsync": "off"})
        self._group = ProcessGroup()
        self._resources = ExitStack()
        self.database = self._postgres.url
        self.broker = f"redis://:{self._password}@{LOOPBACK}:{self._port}/0"

    def __enter__(self) -> Services:
        try:
            self._folder = Path(self._resources.enter_context(tempfile.TemporaryDirectory(prefix="distributed-")))
            self._resources.callback(self._group.stop)
            self._start_redis()
            self._resources.enter_context(self._postgres)
        except BaseException:
            self._resources.close()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self._resources.close()

    def dump(self, target: Path) -> None:
        """Write all that the database holds into a file, as text."""
        self._postgres.dump(target)

    def _start_redis(self) -> None:
        folder = self._folder / "redis"
        folder.mkdir(mode=0o700)
        settings = {
            "port": self._port,
            "bind": LOOPBACK,
            "dir": folder,
            "save": '""',
            "requirepass": self._password,
        }
        path = folder / "redis.conf"
        path.touch(mode=0o600)
        path.write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
        command = ["redis-server", str(path)]
        self._group.start("redis", command, env=os.environ, cwd=self._folder, log=self._logs / "redis.log")
