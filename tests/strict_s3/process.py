"""The server as a process, and its control API, for tests."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import TracebackType

ROOT = Path(__file__).parents[2]


class Process:
    """A running server. Use as a context manager.

    :param arguments: further arguments of the command line.
    """

    def __init__(
        self,
        *arguments: str,
        bucket: str = "archive",
        access_key: str = "strict-access-key",
        secret_key: str = "strict-secret-key",
        region: str = "us-east-1",
    ) -> None:
        self.bucket = bucket
        self.access_key = access_key
        self.secret_key = secret_key
        self.region = region
        given = {"bucket": bucket, "access-key": access_key, "secret-key": secret_key, "region": region}
        words = [word for name, value in given.items() for word in (f"--{name}", value)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.strict_s3", *words, *arguments],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the S3 server did not start")
        told = json.loads(line)
        self.endpoint: str = told["endpoint"]
        self.folder: str = told["folder"]
        self.pid: int = self._process.pid
        context = ssl._create_unverified_context()
        self._opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )

    def control(self, method: str, name: str, content: Any = None) -> Any:
        """Ask the control API."""
        data = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(f"{self.endpoint}/_strict/{name}", data=data, method=method)
        with self._opener.open(request, timeout=120) as reply:
            return json.load(reply)

    def journal(self, operation: str | None = None) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = self.control("GET", "journal")
        return [entry for entry in entries if operation in (None, entry["operation"])]

    def state(self) -> Any:
        return self.control("GET", "state")[self.bucket]

    def faults(self, *rules: dict[str, Any]) -> None:
        self.control("POST", "faults", list(rules))

    def reset(self) -> None:
        self.control("POST", "reset", {})

    def content(self, key: str) -> bytes:
        """Return an object's bytes, past all of S3."""
        query = urllib.parse.urlencode({"bucket": self.bucket, "key": key}, quote_via=urllib.parse.quote)
        with self._opener.open(f"{self.endpoint}/_strict/object?{query}", timeout=120) as reply:
            data: bytes = reply.read()
            return data

    def wait_held(self, number: int = 1, *, timeout: float = 30) -> list[dict[str, Any]]:
        """Wait until that many requests are held."""
        deadline = time.monotonic() + timeout
        while True:
            held: list[dict[str, Any]] = self.control("GET", "held")
            if len(held) >= number:
                return held
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(held)} requests are held, not {number}")
            time.sleep(0.01)

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(60)
        if self._process.stdout is not None:
            self._process.stdout.close()

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
