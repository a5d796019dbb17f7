"""One simulator for all tests of this folder, reset before each, and a client that sends the key."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import requests

from include.simulator.process import RunningSimulator, running_simulator

if TYPE_CHECKING:
    from collections.abc import Iterator


class Api:
    """The API of a running simulator."""

    def __init__(self, simulator: RunningSimulator) -> None:
        self.base_url = simulator.base_url
        self.session = requests.Session()
        self.session.trust_env = False
        self.session.headers["Authorization"] = simulator.api_key

    def call(self, method: str, path: str, **options: Any) -> requests.Response:
        return self.session.request(method, f"{self.base_url}/api/v1{path}", timeout=60, **options)

    def get(self, path: str, **query: Any) -> Any:
        answer = self.call("GET", path, params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def create(self, **fields: Any) -> Any:
        body = {"meeting_url": "https://teams.microsoft.com/l/meetup-join/19%3ax/0", **fields}
        answer = self.call("POST", "/bot/", json=body)
        assert answer.status_code == 201, answer.text
        return answer.json()

    def parts(self, artifact_id: str) -> list[Any]:
        """Fetch the list of parts, without the key."""
        artifact = self.get(f"/audio_separate/{artifact_id}/")
        answer = requests.get(artifact["data"]["download_url"], timeout=60)
        assert answer.status_code == 200, answer.text
        parts: list[Any] = answer.json()
        return parts


@pytest.fixture(scope="session")
def process() -> Iterator[RunningSimulator]:
    with running_simulator() as simulator:
        yield simulator


@pytest.fixture
def simulator(process: RunningSimulator) -> RunningSimulator:
    process.reset()
    # Only what a test advances passes, however slow the machine is.
    process.control("POST", "/settings", {"speed": 1e-9})
    return process


@pytest.fixture
def api(simulator: RunningSimulator) -> Api:
    return Api(simulator)


@pytest.fixture
def one_part(simulator: RunningSimulator, api: Api) -> Any:
    """Make a finished meeting of one part; give its link, its bytes' truth and the ids."""

    def make(**part: Any) -> dict[str, Any]:
        part.setdefault("audio", {"seed": 7, "bytes": 100_000})
        ids = simulator.add_meeting(recordings=[{"artifacts": [{"parts": [{"participant": {"id": 1}, **part}]}]}])
        recording = ids["recordings"][0]
        listed = api.parts(recording["artifacts"][0]["id"])[0]
        truth = simulator.control("GET", f"/truth/{recording['id']}")["artifacts"][0]["parts"][0]
        return {"url": listed["download_url"], "truth": truth, "part": listed, "recording": recording}

    return make
