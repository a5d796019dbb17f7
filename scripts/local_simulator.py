"""The stand-in for Recall as a process of its own."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.processes import ProcessGroup

if TYPE_CHECKING:
    from collections.abc import Sequence

PROJECT = Path(__file__).resolve().parent.parent


class LocalSimulatorError(RuntimeError):
    """The simulator did not start."""


class LocalSimulator:
    """The simulator on this machine; it ends with this process at the latest.

    Use it as a context manager: entering starts it and waits until it answers, leaving ends it.

    :param log: file for what it prints.
    :param port: port of its API. Default: any unused one.
    :param media_port: port of its media host. Default: any unused one.
    :param arguments: further arguments of `python -m include.simulator`, for example `["--speed", "10"]`.
    """

    def __init__(self, log: Path, *, port: int = 0, media_port: int = 0, arguments: Sequence[str] = ()) -> None:
        self.log = log
        self._command = [sys.executable, "-m", "include.simulator", "--port", str(port)]
        self._command += ["--media-port", str(media_port), *arguments]
        self._group = ProcessGroup(grace=3)
        self._facts: dict[str, Any] = {}

    def __enter__(self) -> LocalSimulator:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Base URL of the API."""
        return str(self._facts["base_url"])

    @property
    def connection(self) -> dict[str, Any]:
        """The Airflow connection to it, in the JSON form's keys."""
        return dict(self._facts["connection"])

    def start(self, timeout: float = 30) -> None:
        """Start it and wait until it has said where it listens.

        :param timeout: seconds.
        :raises LocalSimulatorError: it ended, or said nothing in time.
        """
        env = {**os.environ, "PYTHONPATH": str(PROJECT)}
        self._group.start("simulator", self._command, env=env, cwd=PROJECT, log=self.log)
        deadline = time.monotonic() + timeout
        while not self._facts:
            if problem := self.ended():
                raise LocalSimulatorError(problem)
            if time.monotonic() > deadline:
                raise LocalSimulatorError(f"the simulator did not start within {timeout:g} s: see {self.log}")
            time.sleep(0.05)
            self._facts = self._announcement()

    def stop(self) -> None:
        """End it."""
        self._group.stop()

    def ended(self) -> str | None:
        """Say that it ended by itself, and where its log is; None while it runs."""
        code = self._group.processes["simulator"].poll()
        return None if code is None else f"the simulator ended with code {code}: see {self.log}"

    def _announcement(self) -> dict[str, Any]:
        for line in self.log.read_text(encoding="utf-8").splitlines(keepends=True):
            if line.startswith("{") and line.endswith("\n"):
                facts: dict[str, Any] = json.loads(line)
                return facts
        return {}
