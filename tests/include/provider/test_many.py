"""Many meetings that wait at once, through Airflow's own shared streams."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from typing import TYPE_CHECKING, Any

import pytest

from include.provider.hook import RecallHook
from include.provider.triggers import RecallRecordingTrigger
from include.recall.budget import FileBudget
from include.recall.client import RecallClient
from include.recall.poll import Poller
from include.simulator.process import running_simulator
from tests.include.provider.conftest import LONG_AGO
from tests.load.triggerer import Triggerer, busiest_minute, calls

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterator
    from pathlib import Path

    from include.simulator.process import RunningSimulator


def trigger(bot_id: str | None = None, **arguments: Any) -> RecallRecordingTrigger:
    defaults: dict[str, Any] = {
        "recall_conn_id": "recall_default",
        "bot_id": bot_id,
        "recording_id": None,
        "poll_interval": None,
        "media_timeout": 60.0,
        "wait_timeout": 600.0,
        "started_at": time.time(),
        "request_share": 100.0,
    }
    return RecallRecordingTrigger(**{**defaults, **arguments})


def under_way(simulator: RunningSimulator, count: int, seconds: float = 3600.0) -> list[str]:
    """Make meetings that are being recorded."""
    timeline = [
        {"at": 0, "code": "joining_call"},
        {"at": 1, "code": "in_call_recording"},
        {"at": seconds, "code": "call_ended"},
        {"at": seconds + 2, "code": "done"},
    ]
    part = {"participant": {"id": 1, "name": "Ada"}, "audio": {"seed": 1, "bytes": 320}}
    recordings = [{"artifacts": [{"parts": [part]}]}]
    return [simulator.add_meeting(live=True, timeline=timeline, recordings=recordings)["bot_id"] for _ in range(count)]


@pytest.fixture(autouse=True)
def own_budget(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch) -> Iterator[RunningSimulator]:
    """A simulator that keeps to Recall's limits."""
    with running_simulator() as running:
        monkeypatch.setenv("AIRFLOW_CONN_RECALL_DEFAULT", json.dumps(running.connection))
        yield running


def test_all_share_one_loop_and_each_fires_once(simulator: RunningSimulator) -> None:
    ids = under_way(simulator, 40)
    simulator.advance(60)
    waiting = [trigger(one, poll_interval=0.5) for one in ids]
    gone = trigger("b0b3d1f8-5f3a-4a3e-9c1d-2f7a8e6c5d40")
    (longest,) = under_way(simulator, 1, 7200)
    simulator.advance(60)
    late = trigger(longest, wait_timeout=1.0, poll_interval=0.5)
    twice = trigger(ids[0], poll_interval=0.5)
    everyone = [*waiting, gone, late, twice]
    triggerer = Triggerer()
    simulator.control("DELETE", "/journal")

    async def scene() -> None:
        running = asyncio.ensure_future(triggerer.run(everyone, seconds=120))
        for _ in range(60):
            await asyncio.sleep(1)
            if {40, 41} <= set(triggerer.events):
                break
        assert set(triggerer.events) == {40, 41}
        await asyncio.to_thread(simulator.advance, 4000)
        await running

    began = time.monotonic()
    asyncio.run(scene())
    took = time.monotonic() - began
    assert all(len(triggerer.events[number]) == 1 for number in range(len(everyone)))
    assert triggerer.events[40][0]["error"]["code"] == "bot_not_found"
    (given_up,) = triggerer.events[41][0]["recordings"]
    assert given_up["problem"]["code"] == "wait_timeout"
    for number in (*range(40), 42):
        (recording,) = triggerer.events[number][0]["recordings"]
        assert (recording["bot_id"], recording["problem"]) == (everyone[number].bot_id, None)
    made = calls(simulator.journal())
    # Two triggers of one bot cost as much as one, and one walk tells of all that are recorded.
    assert made["list"] < 12 + took / 0.5
    assert made["retrieve"] < 41 + 2 * 42


def test_a_stream_that_ends_and_begins_again_loses_nobody(simulator: RunningSimulator) -> None:
    """As when a triggerer is started anew, or the last waiting trigger leaves as another one comes."""
    ids = under_way(simulator, 3)
    first, second = Triggerer(), Triggerer()
    waiting = [trigger(one, poll_interval=0.2) for one in ids]
    asyncio.run(first.run(waiting, seconds=1.5))
    assert not first.events
    simulator.advance(4000)
    rebuilt = [RecallRecordingTrigger(**one.serialize()[1]) for one in waiting]
    asyncio.run(second.run(rebuilt, seconds=120))
    assert [len(second.events[number]) for number in range(3)] == [1, 1, 1]


def test_few_are_looked_at_one_by_one(simulator: RunningSimulator) -> None:
    ids = under_way(simulator, 3)
    simulator.advance(60)
    simulator.control("DELETE", "/journal")
    began = time.monotonic()

    async def scene() -> Counter[str]:
        running = asyncio.ensure_future(Triggerer().run([trigger(one, poll_interval=0.4) for one in ids], seconds=120))
        while (made := calls(await asyncio.to_thread(simulator.journal)))["retrieve"] < 20:
            assert not running.done()
            await asyncio.sleep(0.05)
        assert made["retrieve"] <= 3 * (2 + (time.monotonic() - began) / 0.4)
        await asyncio.to_thread(simulator.advance, 4000)
        await running
        return made

    assert asyncio.run(scene())["list"] == 0


def test_what_the_task_saw_is_not_looked_at_again_at_once(simulator: RunningSimulator) -> None:
    ids = under_way(simulator, 20)
    simulator.advance(60)
    simulator.control("DELETE", "/journal")
    seen = {"stage": "in_call_recording", "seen_at": time.time(), "poll_interval": 300.0}
    waiting = [trigger(one, **seen) for one in ids]
    asyncio.run(Triggerer().run(waiting, seconds=2))
    assert calls(simulator.journal()) == {}


def test_a_connection_that_is_wrong_ends_all_waits(simulator: RunningSimulator, monkeypatch: Any) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_RECALL_DEFAULT", json.dumps({"conn_type": "recall"}))
    triggerer = Triggerer()
    asyncio.run(triggerer.run([trigger("a"), trigger("b")], seconds=60))
    assert [triggerer.events[number][0]["error"]["code"] for number in (0, 1)] == ["bad_config"] * 2


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Waiting:
    """Someone who waits, on a clock of the test's."""

    def __init__(self, bot_id: str, clock: Clock) -> None:
        self.bot_id: str | None = bot_id
        self.recording_id: str | None = None
        self.look_by = float("inf")
        self.stage = "in_call_recording"
        self.seen = clock()

    def interval(self, seconds_in_stage: float) -> float:
        return min(60.0, max(5.0, seconds_in_stage / 8))


def test_hundreds_stay_within_half_of_the_share(simulator: RunningSimulator, tmp_path: Path) -> None:
    """Time is the test's own here: the poller's, the budget's and the simulator's clocks are moved together."""
    from include.recall.retry import RetryPolicy

    ids = under_way(simulator, 300, seconds=300)
    simulator.advance(60)
    clock = Clock()
    waiting = {one: Waiting(one, clock) for one in ids}
    client = RecallClient(
        api_key=simulator.api_key,
        base_url=simulator.base_url,
        budget=FileBudget("w", 0.8, folder=tmp_path / "budget", clock=clock),
        retry=RetryPolicy(attempts=1, sleep=clock.sleep, clock=clock),
    )
    poller = Poller(client, 0.8, clock=clock)
    spent: list[tuple[float, dict[str, int]]] = []
    ended: dict[str, float] = {}
    while waiting and clock.now < 1600:
        before = client.calls.copy()
        for (bot_id, _), seen in poller.round(waiting.values()).items():
            if getattr(seen, "is_over", False):
                ended[str(bot_id)] = clock.now
                del waiting[str(bot_id)]
        spent.append((clock.now, dict(client.calls - before)))
        simulator.advance(1.0)
        clock.now += 1.0
    assert not waiting
    # All end at 1240; a walk comes within a minute, then half of the retrieve calls say what became of each.
    assert max(ended.values()) < 1240 + 60 + 300 / 2 + 30
    # A look of the last round may cost one call more than there was room for.
    for kind, most in (("list", 24), ("retrieve", 120 + 64)):
        minutes = (sum(made.get(kind, 0) for at, made in spent if now <= at < now + 60) for now, _ in spent)
        assert max(minutes) <= most
    # One look each, and a few before the first walk.
    assert client.calls["retrieve"] < 450


def test_the_budget_is_everyones(limited: RunningSimulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two hooks, as of two tasks on one machine: what one has sent, the other can't send again."""
    ids = limited.add_meeting(created_at=LONG_AGO)
    monkeypatch.setenv("AIRFLOW_VAR_RECALL_REQUEST_SHARE", "0.05")
    monkeypatch.setattr("include.provider.hook.TURN_SECONDS", 0.5)
    recording_id = ids["recordings"][0]["id"]
    for _ in range(3):
        RecallHook().get_conn().list_audio_separate(recording_id)
    with pytest.raises(Exception, match="share of .* request budget is used up"):
        RecallHook().get_conn().list_audio_separate(recording_id)
    RecallHook().get_conn().get_bot(ids["bot_id"])
    assert busiest_minute(limited.journal(), "list") == 3
