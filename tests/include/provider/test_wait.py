"""The sensor and its trigger."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk.exceptions import AirflowRescheduleException, TaskDeferred

from include.errors import CodedError
from include.provider.sensors import RecallRecordingSensor
from include.provider.triggers import RecallRecordingTrigger
from tests.include.provider.conftest import LONG_AGO, Context

if TYPE_CHECKING:
    from include.simulator.process import RunningSimulator


def sensor(**arguments: Any) -> RecallRecordingSensor:
    return RecallRecordingSensor(task_id="wait_for_recordings", **arguments)


def wait(context: Context, **arguments: Any) -> Any:
    return sensor(**arguments).execute(context)  # type: ignore[arg-type]


def fire(**arguments: Any) -> Any:
    """Run a trigger until its one event."""
    defaults: dict[str, Any] = {
        "recall_conn_id": "recall_default",
        "bot_id": None,
        "recording_id": None,
        "poll_interval": 0.1,
        "media_timeout": 60.0,
        "wait_timeout": 600.0,
        "started_at": time.time(),
        "request_share": 100.0,
    }
    trigger = RecallRecordingTrigger(**{**defaults, **arguments})

    async def first() -> Any:
        events = [event.payload async for event in trigger.run()]
        assert len(events) == 1
        return events[0]

    return asyncio.run(asyncio.wait_for(first(), 30))


def failure(context: Context, **arguments: Any) -> CodedError:
    with pytest.raises(CodedError) as caught:
        wait(context, **arguments)
    assert context.error is not None
    assert context.error["code"] == caught.value.code
    return caught.value


def test_finished_bot_succeeds_at_the_first_look(simulator: RunningSimulator) -> None:
    ids = simulator.add_meeting(created_at=LONG_AGO)
    (found,) = wait(Context(), bot_id=ids["bot_id"])
    assert (found["recording_id"], found["bot_id"], found["problem"]) == (
        ids["recordings"][0]["id"],
        ids["bot_id"],
        None,
    )
    assert len(simulator.journal()) == 2


def test_one_recording_of_many(simulator: RunningSimulator) -> None:
    ids = simulator.add_meeting(created_at=LONG_AGO, recordings=[{}, {}])
    wanted = ids["recordings"][1]["id"]
    assert [one["recording_id"] for one in wait(Context(), recording_id=wanted)] == [wanted]
    assert len(wait(Context(), bot_id=ids["bot_id"])) == 2


def test_bot_in_call_defers_and_resumes(simulator: RunningSimulator) -> None:
    ids = simulator.add_meeting(live=True)
    context = Context()
    with pytest.raises(TaskDeferred) as deferred:
        wait(context, bot_id=ids["bot_id"])
    path, arguments = deferred.value.trigger.serialize()
    assert path == "include.provider.triggers.RecallRecordingTrigger"
    assert simulator.api_key not in str(arguments)
    assert context["ti"].pushed["bot_status"] == "joining_call"
    simulator.advance(600)
    event = fire(**arguments)
    resumed = Context()
    (found,) = sensor(bot_id=ids["bot_id"]).resume(resumed, event)  # type: ignore[arg-type]
    assert found["recording_id"] == ids["recordings"][0]["id"]


@pytest.mark.parametrize("event", [None, {}, {"status": "success"}, {"recordings": "all"}, "done"])
def test_unknown_events_never_count_as_success(simulator: RunningSimulator, event: Any) -> None:
    context = Context()
    with pytest.raises(CodedError) as caught:
        sensor(bot_id="b").resume(context, event)  # type: ignore[arg-type]
    assert (caught.value.code, caught.value.permanent) == ("bad_event", False)


def test_reschedule_mode_frees_the_slot(simulator: RunningSimulator) -> None:
    ids = simulator.add_meeting(live=True)
    mode = {"bot_id": ids["bot_id"], "deferrable": False, "mode": "reschedule", "poke_interval": 1}
    with pytest.raises(AirflowRescheduleException):
        wait(Context(), **mode)
    simulator.advance(600)
    assert len(wait(Context(), **mode)) == 1


def test_audio_deadline_holds_across_reschedules(simulator: RunningSimulator, monkeypatch: pytest.MonkeyPatch) -> None:
    recordings = [{"artifacts": [{"status": "processing", "parts": []}]}]
    ids = simulator.add_meeting(created_at=LONG_AGO, recordings=recordings)
    mode = {"bot_id": ids["bot_id"], "deferrable": False, "mode": "reschedule", "media_timeout": 100.0}
    context = Context()
    with pytest.raises(AirflowRescheduleException):
        wait(context, **mode)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 101)
    assert failure(context, **mode).code == "media_timeout"


def test_never_asked_for_fails_while_the_meeting_runs(simulator: RunningSimulator) -> None:
    ids = simulator.add_meeting(live=True, recording_config={}, recordings=[{"artifacts": []}])
    error = failure(Context(), bot_id=ids["bot_id"])
    assert (error.code, error.permanent) == ("not_configured", True)
    assert "audio_separate_raw" in error.message


def test_unknown_config_is_waited_for(simulator: RunningSimulator) -> None:
    ids = simulator.add_meeting(live=True, recordings=[{"artifacts": []}], omit=["recording_config"])
    with pytest.raises(TaskDeferred):
        wait(Context(), bot_id=ids["bot_id"])


@pytest.mark.parametrize("status", ["failed", "deleted"])
def test_media_that_is_lost(simulator: RunningSimulator, status: str) -> None:
    recordings = [{"artifacts": [{"status": status, "sub_code": "why", "parts": []}]}]
    ids = simulator.add_meeting(created_at=LONG_AGO, recordings=recordings)
    assert failure(Context(), bot_id=ids["bot_id"]).code == f"media_{status}"


def test_a_lost_recording_does_not_cost_the_other(simulator: RunningSimulator) -> None:
    recordings = [{"status": "failed", "artifacts": []}, {}]
    ids = simulator.add_meeting(created_at=LONG_AGO, recordings=recordings)
    first, second = wait(Context(), bot_id=ids["bot_id"])
    assert first["problem"]["code"] == "media_failed"
    assert second["problem"] is None


def test_audio_that_never_comes(simulator: RunningSimulator) -> None:
    ids = simulator.add_meeting(created_at=LONG_AGO, recordings=[{"artifacts": []}])
    event = fire(bot_id=ids["bot_id"], media_timeout=0.5)
    assert event["recordings"][0]["problem"]["code"] == "media_missing"


def test_late_audio_gives_up_only_what_is_late(simulator: RunningSimulator) -> None:
    recordings = [{"artifacts": [{"status": "processing", "parts": []}]}, {}]
    ids = simulator.add_meeting(created_at=LONG_AGO, recordings=recordings)
    late, ready = fire(bot_id=ids["bot_id"], media_timeout=0.5)["recordings"]
    assert late["problem"]["code"] == "media_timeout"
    assert ready["problem"] is None


def test_whole_wait_ends(simulator: RunningSimulator) -> None:
    ids = simulator.add_meeting(live=True, timeline=[{"at": 0, "code": "in_waiting_room"}], recordings=[])
    event = fire(bot_id=ids["bot_id"], wait_timeout=0.5)
    assert event["error"]["code"] == "wait_timeout"
    assert "in_waiting_room" in event["error"]["message"]


def test_trigger_survives_a_bad_minute(simulator: RunningSimulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("include.recall.retry.RetryPolicy.run", lambda self, attempt: attempt(self.clock() + 10))
    ids = simulator.add_meeting(created_at=LONG_AGO)
    simulator.add_faults({"origin": "api", "times": 3, "action": {"status": 503}})
    assert fire(bot_id=ids["bot_id"])["recordings"][0]["problem"] is None


@pytest.mark.parametrize(("status", "code"), [(401, "auth_rejected"), (404, "bot_not_found")])
def test_trigger_ends_at_a_permanent_error(simulator: RunningSimulator, status: int, code: str) -> None:
    simulator.add_faults({"origin": "api", "times": None, "action": {"status": status, "body": {"detail": "no"}}})
    event = fire(bot_id="b0b3d1f8-5f3a-4a3e-9c1d-2f7a8e6c5d40")
    assert event["error"]["code"] == code
    assert len(simulator.journal()) == 1


def test_trigger_keeps_the_loop_free(simulator: RunningSimulator) -> None:
    """A slow answer holds a thread, never the loop that all triggers share."""
    ids = simulator.add_meeting(created_at=LONG_AGO)
    simulator.add_faults({"origin": "api", "times": 1, "action": {"stall": 0}})
    trigger = RecallRecordingTrigger(
        recall_conn_id="recall_default",
        bot_id=ids["bot_id"],
        recording_id=None,
        poll_interval=0.1,
        media_timeout=60.0,
        wait_timeout=60.0,
        started_at=time.time(),
    )

    async def both() -> None:
        done = asyncio.ensure_future(trigger.run().__anext__())  # type: ignore[attr-defined]
        ticks = 0
        while ticks < 50:
            asked = await asyncio.to_thread(simulator.journal)
            await asyncio.sleep(0.01)
            ticks += bool(asked)
        # All that while, the first answer has been on its way.
        assert len(await asyncio.to_thread(simulator.journal)) == 1
        assert not done.done()
        await asyncio.to_thread(simulator.control, "DELETE", "/faults")
        assert (await done).payload["recordings"]

    asyncio.run(asyncio.wait_for(both(), 120))


def test_nothing_to_wait_for(simulator: RunningSimulator) -> None:
    assert failure(Context(), bot_id="", recording_id="None").code == "bad_params"
    assert simulator.journal() == []
