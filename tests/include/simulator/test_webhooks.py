"""What the simulator tells of its meetings, to a receiver of our own that checks every signature."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from include.recall.errors import RecallSignatureError
from include.recall.webhooks import parse, read_headers, signing_key, verify

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from include.simulator.process import RunningSimulator

SECRET = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
OTHER = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
ALL = {
    *("bot.joining_call", "bot.in_waiting_room", "bot.in_call_not_recording", "bot.in_call_recording"),
    *("bot.call_ended", "bot.done"),
    *("recording.processing", "recording.done", "audio_separate.processing", "audio_separate.done"),
}


@dataclass
class Receiver:
    """Takes deliveries; answers with the next of ``answers``, then with 204."""

    url: str
    answers: list[int] = field(default_factory=list)
    taken: list[tuple[dict[str, str], bytes]] = field(default_factory=list)

    def events(self) -> list[str]:
        return [json.loads(body)["event"] for _, body in self.taken]

    def wait(self, condition: Callable[[], bool], seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, self.events()
            time.sleep(0.02)


@pytest.fixture
def receiver(simulator: RunningSimulator) -> Iterator[Receiver]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            it.taken.append(({name.lower(): value for name, value in self.headers.items()}, body))
            self.send_response(it.answers.pop(0) if it.answers else 204)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            return

    class Server(ThreadingHTTPServer):
        request_queue_size = 128

    with Server(("127.0.0.1", 0), Handler) as server:
        it = Receiver(f"http://127.0.0.1:{server.server_address[1]}/hooks")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        tell(simulator, webhook_url=it.url, webhook_secrets=[SECRET], webhook_retry_speed=10_000)
        yield it
        simulator.reset()
        server.shutdown()
        thread.join()


def tell(simulator: RunningSimulator, **settings: Any) -> None:
    simulator.control("POST", "/settings", settings)


def spoil(simulator: RunningSimulator, *rules: dict[str, Any]) -> None:
    simulator.control("POST", "/webhooks/faults", list(rules))


def deliveries(simulator: RunningSimulator) -> list[dict[str, Any]]:
    return simulator.control("GET", "/webhooks")["deliveries"]  # type: ignore[no-any-return]


def settle(simulator: RunningSimulator, receiver: Receiver) -> None:
    """Wait until the simulator, too, knows what became of what it has sent."""
    receiver.wait(lambda: simulator.control("GET", "/webhooks")["under_way"] == 0)


def meeting(**more: Any) -> dict[str, Any]:
    artifact = {"status": "done", "parts": [{"participant": {"id": 1}, "audio": {"seed": 1, "bytes": 32000}}]}
    return {"recordings": [{"artifacts": [artifact]}], **more}


def is_genuine(headers: dict[str, str], body: bytes, *secrets: str) -> bool:
    try:
        verify(read_headers(headers.items(), time.time()), body, [signing_key(one) for one in secrets or (SECRET,)])
    except RecallSignatureError:
        return False
    return True


def test_a_meeting_is_told_as_it_happens(simulator: RunningSimulator, receiver: Receiver) -> None:
    ids = simulator.add_meeting(**meeting(live=True, metadata={"org": "acme"}))
    receiver.wait(lambda: "bot.joining_call" in receiver.events())
    assert "audio_separate.done" not in receiver.events()
    simulator.advance(3600)
    receiver.wait(lambda: set(receiver.events()) >= ALL)
    assert set(Counter(receiver.events()).values()) == {1}
    assert all(is_genuine(headers, body) for headers, body in receiver.taken)
    (done,) = (json.loads(body) for _, body in receiver.taken if b"audio_separate.done" in body)
    recording = ids["recordings"][0]
    assert set(done["data"]) == {"data", "audio_separate", "recording", "bot"}
    assert done["data"]["bot"] == {"id": ids["bot_id"], "metadata": {"org": "acme"}}
    assert done["data"]["recording"]["id"] == recording["id"]
    assert done["data"]["audio_separate"]["id"] == recording["artifacts"][0]["id"]
    assert done["data"]["data"]["code"] == "done"
    assert parse(json.dumps(done).encode()).starts == recording["id"]
    assert len({headers["webhook-id"] for headers, _ in receiver.taken}) == len(receiver.taken)
    settle(simulator, receiver)
    journal = deliveries(simulator)
    assert [one["status"] for one in journal] == [204] * len(receiver.taken)
    assert {one["recording_id"] for one in journal} == {None, recording["id"]}


def test_failures_late_ones_and_deletions_are_told(simulator: RunningSimulator, receiver: Receiver, api: Any) -> None:
    artifacts = [{"status": "failed", "sub_code": "made_up"}, {"status": "done", "done_after": 500}]
    ids = simulator.add_meeting(live=True, recordings=[{"artifacts": artifacts}])
    simulator.advance(300)
    receiver.wait(lambda: "audio_separate.failed" in receiver.events())
    assert "audio_separate.done" not in receiver.events()
    simulator.advance(500)
    receiver.wait(lambda: "audio_separate.done" in receiver.events())
    assert api.call("DELETE", f"/recording/{ids['recordings'][0]['id']}/").status_code == 204
    receiver.wait(lambda: "recording.deleted" in receiver.events())
    receiver.wait(lambda: receiver.events().count("audio_separate.deleted") == 2)
    assert "bot.media_expired" not in receiver.events()


def test_long_ago_is_not_told(simulator: RunningSimulator, receiver: Receiver) -> None:
    simulator.add_meeting(**meeting(created_at="2026-03-04T09:55:00Z"))
    simulator.add_meeting(**meeting())
    receiver.wait(lambda: len(receiver.taken) >= len(ALL))
    time.sleep(0.3)
    assert len(receiver.taken) == len(ALL)


@pytest.mark.parametrize("family", ["webhook", "svix", "both"])
def test_families_of_headers(simulator: RunningSimulator, receiver: Receiver, family: str) -> None:
    tell(simulator, webhook_headers=family, webhook_secrets=[OTHER, SECRET])
    simulator.add_meeting(**meeting())
    receiver.wait(lambda: len(receiver.taken) >= len(ALL))
    for headers, body in receiver.taken:
        assert {name.split("-")[0] for name in headers if name.endswith("-signature")} == (
            {"webhook", "svix"} if family == "both" else {family}
        )
        assert is_genuine(headers, body, SECRET)
        assert is_genuine(headers, body, OTHER)


def test_without_a_secret_nothing_is_signed(simulator: RunningSimulator, receiver: Receiver) -> None:
    tell(simulator, webhook_secrets=[])
    simulator.add_meeting(**meeting())
    receiver.wait(lambda: len(receiver.taken) >= len(ALL))
    assert not [name for headers, _ in receiver.taken for name in headers if "signature" in name]


def test_what_is_not_taken_is_sent_again_by_the_schedule(simulator: RunningSimulator, receiver: Receiver) -> None:
    receiver.answers = [500, 401, 302, 503, 204]
    spoil(simulator, {"event": "^(?!audio_separate.done)", "times": None, "lose": True})
    simulator.add_meeting(**meeting())
    receiver.wait(lambda: len(receiver.taken) == 5)
    settle(simulator, receiver)
    assert len({headers["webhook-id"] for headers, _ in receiver.taken}) == 1
    tries = [one for one in deliveries(simulator) if one["event"] == "audio_separate.done"]
    assert [(one["attempt"], one["status"]) for one in tries] == [(1, 500), (2, 401), (3, 302), (4, 503), (5, 204)]
    waits = [later["time"] - earlier["time"] for earlier, later in zip(tries, tries[1:], strict=False)]
    assert waits[2] >= 0.18
    assert waits[3] >= 0.72
    assert len(receiver.taken) == 5


def test_it_gives_up_after_eight_attempts(simulator: RunningSimulator, receiver: Receiver) -> None:
    tell(simulator, webhook_retry_speed=1e6)
    receiver.answers = [500] * 1000
    simulator.add_meeting(**meeting())
    receiver.wait(lambda: len(receiver.taken) == 8 * len(ALL))
    settle(simulator, receiver)
    assert len(receiver.taken) == 8 * len(ALL)


def test_a_receiver_that_is_away_is_tried_again(simulator: RunningSimulator, receiver: Receiver) -> None:
    tell(simulator, webhook_url="http://127.0.0.1:9/nobody")
    simulator.add_meeting(**meeting())
    receiver.wait(lambda: len(deliveries(simulator)) >= len(ALL))
    assert {one["status"] for one in deliveries(simulator)} == {None}
    tell(simulator, webhook_url=receiver.url)
    receiver.wait(lambda: set(receiver.events()) >= ALL)


def test_faults(simulator: RunningSimulator, receiver: Receiver) -> None:
    spoil(
        simulator,
        {"event": "^bot.done$", "lose": True},
        {"event": "^recording.done$", "copies": 3},
        {"event": "^audio_separate.done$", "forge": True},
        {"event": "^recording.processing$", "age": 301},
        {"event": "^bot.joining_call$", "delay": 1.0},
    )
    began = time.monotonic()
    simulator.add_meeting(**meeting())
    receiver.wait(lambda: "bot.joining_call" in receiver.events())
    assert time.monotonic() - began >= 1.0
    settle(simulator, receiver)
    assert "bot.done" not in receiver.events()
    assert receiver.events().count("recording.done") == 3
    genuine = {json.loads(body)["event"]: is_genuine(headers, body) for headers, body in receiver.taken}
    assert {name for name, is_so in genuine.items() if not is_so} == {"audio_separate.done", "recording.processing"}
    faults = {one["event"]: one["fault"] for one in deliveries(simulator) if one["fault"]}
    assert faults == {
        "bot.done": "lost",
        "recording.done": "doubled",
        "audio_separate.done": "forged",
        "recording.processing": "stale",
        "bot.joining_call": "delayed",
    }
    assert [rule["applied"] for rule in simulator.control("GET", "/webhooks")["rules"]] == [1] * 5
    simulator.control("DELETE", "/webhooks")
    assert simulator.control("GET", "/webhooks") == {"rules": [], "under_way": 0, "deliveries": []}


def test_chance_is_the_same_every_time(simulator: RunningSimulator, receiver: Receiver) -> None:
    spoil(simulator, {"event": "audio_separate.done", "times": None, "chance": 0.5, "lose": True})
    for _ in range(30):
        simulator.add_meeting(**meeting())
    receiver.wait(lambda: len(deliveries(simulator)) >= 30 * len(ALL))
    (rule,) = simulator.control("GET", "/webhooks")["rules"]
    assert (rule["matched"], rule["applied"]) == (30, 11)


@pytest.mark.parametrize("bad", [{"webhook_secrets": ["x"]}, {"webhook_headers": "x"}, {"webhook_retry_speed": 0}])
def test_wrong_settings_are_refused(simulator: RunningSimulator, bad: dict[str, Any]) -> None:
    with pytest.raises(Exception, match="422"):
        tell(simulator, **bad)


def test_secrets_are_not_shown(simulator: RunningSimulator, receiver: Receiver) -> None:
    shown = json.dumps([simulator.control("POST", "/settings", {}), simulator.control("GET", "/webhooks")])
    assert "whsec_" not in shown
