"""Run the simulator as a process of its own, from a test."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import requests

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

STOP_SECONDS = 10.0
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class RunningSimulator:
    """A simulator that is up.

    :ivar base_url: of the API.
    :ivar media_host: ``host:port`` of the media host.
    :ivar api_key: the key that the API accepts.
    :ivar connection: the Airflow connection to it, as a JSON object.
    :ivar pid: of its process.
    """

    base_url: str
    media_host: str
    api_key: str
    connection: dict[str, Any]
    pid: int

    def control(self, method: str, path: str, body: Any = None) -> Any:
        """Call the control API.

        :param path: below ``/_sim``, for example ``/journal``.
        :param body: JSON to send.
        :return: the JSON of the answer, or None where there is none.
        :raises requests.HTTPError: when the simulator refuses, with its explanation.
        """
        answer = requests.request(method, f"{self.base_url}/_sim{path}", json=body, timeout=60)
        if not answer.ok:
            raise requests.HTTPError(f"{answer.status_code} for {method} {path}: {answer.text}", response=answer)
        return answer.json() if answer.content else None

    def add_meeting(self, **meeting: Any) -> dict[str, Any]:
        """Make a meeting; see :class:`include.simulator.scenario.Meeting` for the members.

        :return: the ids of the bot, its recordings, their artifacts and parts.
        """
        ids: dict[str, Any] = self.control("POST", "/meetings", meeting)
        return ids

    def add_faults(self, *rules: Mapping[str, Any]) -> None:
        """Put rules in force; see :class:`include.simulator.faults.Rule` for the members."""
        self.control("POST", "/faults", list(rules))

    def advance(self, seconds: float) -> None:
        """Move the virtual clock on."""
        self.control("POST", "/advance", {"seconds": seconds})

    def journal(self, origin: str | None = None) -> list[dict[str, Any]]:
        """Give the requests so far.

        :param origin: only those to ``api`` or ``media``.
        """
        entries: list[dict[str, Any]] = self.control("GET", f"/journal?origin={origin}" if origin else "/journal")[
            "entries"
        ]
        return entries

    def reset(self) -> None:
        """Go back to the state at the start."""
        self.control("POST", "/reset")


@contextlib.contextmanager
def running_simulator(*options: str) -> Iterator[RunningSimulator]:
    """Start a simulator on free ports, and end it afterwards.

    :param options: of the command line, for example ``"--no-rate-limit"``.
    """
    command = [sys.executable, "-m", "include.simulator", "--port", "0", "--media-port", "0", *options]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603 - our own module
        try:
            line = process.stdout.readline() if process.stdout else ""
            if not line:
                raise RuntimeError(f"the simulator did not start: exit status {process.wait()}")
            facts = json.loads(line)
            yield RunningSimulator(
                facts["base_url"], facts["media_host"], facts["api_key"], facts["connection"], process.pid
            )
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)
            process.kill()
