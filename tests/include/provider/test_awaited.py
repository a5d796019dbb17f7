"""Which run waits for which bot: written before the wait, gone after it."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType, TaskDeferred
from airflow.sdk.execution_time.comms import ErrorResponse

from include.errors import CodedError
from include.provider import awaited
from include.provider.assets import RECALL_MEETINGS, RECORDING_ARCHIVED
from include.provider.operators import RecallSettleRecordingOperator
from include.provider.sensors import RecallRecordingSensor
from tests.include.provider.conftest import LONG_AGO, Context, StateStore

if TYPE_CHECKING:
    from include.simulator.process import RunningSimulator

pytestmark = pytest.mark.usefixtures("no_supervisor")


class Rows(StateStore):
    """The rows of the asset, which all runs share."""

    def delete(self, key: str) -> None:
        self.values.pop(key, None)


class BrokenRows(Rows):
    """An API server that refuses."""

    def set(self, key: str, value: Any, *, retention: Any = None) -> None:
        raise AirflowRuntimeError(ErrorResponse(error=ErrorType.API_SERVER_ERROR))


def run(rows: StateStore | None, run_id: str = "manual__1") -> Context:
    context = Context()
    context["run_id"] = run_id
    context["asset_state_store"] = {} if rows is None else {RECALL_MEETINGS: rows}
    return context


def wait(context: Context, **arguments: Any) -> Any:
    return RecallRecordingSensor(task_id="wait", **arguments).execute(context)  # type: ignore[arg-type]


def settle(context: Context, recording: dict[str, Any]) -> None:
    context["ti"].try_number = 1
    RecallSettleRecordingOperator(task_id="settle", recording=recording, archived=[]).execute(context)  # type: ignore[arg-type]


def test_who_waits_is_known_until_it_is_settled(simulator: RunningSimulator) -> None:
    ids, rows = simulator.add_meeting(live=True), Rows()
    bot_id = ids["bot_id"]
    with pytest.raises(TaskDeferred):
        wait(run(rows), bot_id=bot_id)
    assert rows.values == {bot_id: "manual__1"}
    simulator.advance(3600)
    (recording,) = wait(run(rows), bot_id=bot_id)
    assert rows.values == {bot_id: "manual__1"}
    lost = {**recording, "problem": {"code": "media_failed", "message": "nothing there"}}
    with pytest.raises(CodedError):
        settle(run(rows), lost)
    assert rows.values == {bot_id: "manual__1"}, "a run that failed doesn't count, whatever stands there"


def test_settling_takes_back_what_is_its_own(simulator: RunningSimulator) -> None:
    ids, rows = simulator.add_meeting(created_at=LONG_AGO, recordings=[{"artifacts": [{"parts": []}]}]), Rows()
    context = run(rows)
    context["outlet_events"] = {RECORDING_ARCHIVED: SimpleNamespace(extra=None)}
    (recording,) = wait(context, recording_id=ids["recordings"][0]["id"])
    rows.values[ids["bot_id"]] = "manual__2"
    assert rows.values == {recording["recording_id"]: "manual__1", ids["bot_id"]: "manual__2"}
    settle(context, recording)
    assert rows.values == {ids["bot_id"]: "manual__2"}


@pytest.mark.parametrize("deferrable", [True, False])
def test_a_wait_that_fails_for_good_takes_it_back(simulator: RunningSimulator, deferrable: bool) -> None:
    ids = simulator.add_meeting(created_at=LONG_AGO, recordings=[])
    rows = Rows()
    with pytest.raises(CodedError):
        wait(run(rows), bot_id=ids["bot_id"], deferrable=deferrable)
    assert rows.values == {}


def test_a_trigger_that_ends_in_failure_takes_it_back(simulator: RunningSimulator) -> None:
    bot_id, rows = simulator.add_meeting(live=True)["bot_id"], Rows()
    with pytest.raises(TaskDeferred):
        wait(run(rows), bot_id=bot_id)
    sensor = RecallRecordingSensor(task_id="wait", bot_id=bot_id)
    with pytest.raises(CodedError):
        sensor.resume(run(rows), {"error": {"code": "bot_fatal", "message": "no"}})  # type: ignore[arg-type]
    assert rows.values == {}


def processing(simulator: RunningSimulator) -> str:
    ids = simulator.add_meeting(created_at=LONG_AGO, recordings=[{"status": "processing"}])
    recording_id: str = ids["recordings"][0]["id"]
    return recording_id


def test_automatic_runs_need_no_row(simulator: RunningSimulator) -> None:
    recording_id, rows = processing(simulator), Rows()
    context = run(rows, awaited.run_id_of(recording_id))
    assert awaited.is_automatic(context)
    with pytest.raises(TaskDeferred):
        wait(context, recording_id=recording_id)
    assert rows.values == {}


@pytest.mark.parametrize("rows", [None, BrokenRows()])
def test_without_rows_the_wait_goes_on(simulator: RunningSimulator, rows: StateStore | None) -> None:
    ids = simulator.add_meeting(created_at=LONG_AGO)
    (found,) = wait(run(rows), bot_id=ids["bot_id"])
    assert json.dumps(found)
