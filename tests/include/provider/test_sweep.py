"""The sweep against a real simulator over HTTP and a real archive; only Airflow's supervisor is stood in for."""

from __future__ import annotations

import json
from collections import Counter
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import requests
from airflow.sdk import BaseNotifier
from airflow.sdk.exceptions import ErrorType
from airflow.sdk.execution_time import comms, task_runner
from airflow.sdk.execution_time.context import AssetStateStoreAccessors

from include.archive.layout import recording_folder
from include.errors import CodedError
from include.provider import sweep
from include.provider.assets import RECALL_MEETINGS
from include.provider.awaited import run_id_of
from include.provider.filters import Filters
from include.provider.hook import get_store
from include.provider.sweep_operators import RecallFindRecordingsOperator, RecallStartArchivingOperator
from tests.include.provider.conftest import Context
from tests.include.provider.test_store import s3  # noqa: F401 - a fixture

if TYPE_CHECKING:
    from include.simulator.process import RunningSimulator
    from tests.strict_s3.process import Process as StrictS3

SMALL = [{"parts": [{"participant": {"id": 1, "name": "Ada"}, "audio": {"seed": 1, "bytes": 3200}}]}]
HOUR = 3600


class Supervisor:
    """What answers a task: the runs of ``archive_meeting``, the rows of the asset, the XComs of other runs."""

    def __init__(self) -> None:
        self.runs: dict[str, Any] = {}
        self.rows: dict[str, str] = {}
        self.left_out: dict[str, Any] = {}
        self.writes = 0
        self.started: list[str] = []

    def send(self, message: Any) -> Any:
        answer: Any = getattr(self, f"on_{type(message).__name__}")(message)
        return answer

    def end(self, recording_id: str, state: str, ended: datetime | None = None) -> None:
        run = self.runs[run_id_of(recording_id)]
        run.state, run.end_date = state, ended or datetime.now(timezone.utc)

    def on_TriggerDagRun(self, message: comms.TriggerDagRun) -> Any:  # noqa: N802
        assert message.dag_id == "archive_meeting"
        assert message.conf == {"recording_id": message.run_id.removeprefix("recording__")}
        if message.run_id in self.runs:
            run = self.runs[message.run_id]
            if not message.reset_dag_run:
                return comms.ErrorResponse(error=ErrorType.DAGRUN_ALREADY_EXISTS)
            assert run.state not in ("queued", "running"), "never clear what is at work"
            run.state, run.clear_number = "queued", run.clear_number + 1
        else:
            self.runs[message.run_id] = SimpleNamespace(
                run_id=message.run_id, state="queued", end_date=None, clear_number=0, note=message.note
            )
        self.started.append(message.run_id.removeprefix("recording__"))
        return comms.OKResponse(ok=True)

    def on_GetDRCount(self, message: comms.GetDRCount) -> Any:  # noqa: N802
        found = [self.runs[one] for one in message.run_ids or () if one in self.runs]
        return comms.DRCount(count=sum(message.states is None or one.state in message.states for one in found))

    def on_GetDagRun(self, message: comms.GetDagRun) -> Any:  # noqa: N802
        return self.runs[message.run_id]

    def on_GetXCom(self, message: comms.GetXCom) -> Any:  # noqa: N802
        return comms.XComResult(key=message.key, value=self.left_out.get(message.run_id))

    def on_GetAssetStateStoreByName(self, message: Any) -> Any:  # noqa: N802
        assert message.name == RECALL_MEETINGS.name
        if message.key not in self.rows:
            return comms.ErrorResponse(error=ErrorType.ASSET_STORE_NOT_FOUND)
        return comms.AssetStateStoreResult(value=json.loads(self.rows[message.key]))

    def on_SetAssetStateStoreByName(self, message: Any) -> None:  # noqa: N802
        self.rows[message.key] = json.dumps(message.value)
        self.writes += 1
        assert len(self.rows[message.key]) < 48 * 1024

    def on_DeleteAssetStateStoreByName(self, message: Any) -> None:  # noqa: N802
        self.rows.pop(message.key, None)
        self.writes += 1


class Catcher(BaseNotifier):
    """Keeps every message."""

    caught: list[Any] = []

    def notify(self, context: Any) -> None:
        Catcher.caught.append(context["notice"])


class Sweeper:
    """Sweeps as the Dag does, one after the other."""

    def __init__(self, simulator: RunningSimulator, supervisor: Supervisor) -> None:
        self.simulator, self.supervisor = simulator, supervisor

    def __call__(self, *, run_type: str = "scheduled", interval: Any = (None, None), **params: Any) -> dict[str, Any]:
        context = self.context(run_type, interval, params)
        found = RecallFindRecordingsOperator(task_id="find").execute(context)  # type: ignore[arg-type]
        self.fits(found)
        after = self.context(run_type, interval, params)
        for key, value in context["ti"].pushed.items():
            self.fits(value)
            after["ti"].others[f"find/{key}"] = [value]
        start = RecallStartArchivingOperator(task_id="start", found=found)
        start.upstream_task_ids = {"find"}
        self.started_before = len(self.supervisor.started)
        summary = start.execute(after)  # type: ignore[arg-type]
        self.fits(summary)
        return {**summary, "calls": found["calls"], "window": found["window"]}

    @property
    def started(self) -> list[str]:
        """The recordings that the last sweep started, in order."""
        return self.supervisor.started[self.started_before :]

    def context(self, run_type: str, interval: Any, params: Any) -> Context:
        context = Context()
        context["asset_state_store"] = AssetStateStoreAccessors([RECALL_MEETINGS])
        context["params"] = params
        start, end = interval
        context["dag_run"] = SimpleNamespace(run_type=run_type, data_interval_start=start, data_interval_end=end)
        return context

    @staticmethod
    def fits(value: Any) -> None:
        assert len(json.dumps(value)) < 48 * 1024

    @property
    def state(self) -> sweep.State:
        return sweep.State.load(AssetStateStoreAccessors([RECALL_MEETINGS]))


@pytest.fixture
def supervisor(monkeypatch: pytest.MonkeyPatch) -> Supervisor:
    found = Supervisor()
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", found, raising=False)
    Catcher.caught = []
    monkeypatch.setenv("AIRFLOW_VAR_RECALL_NOTIFIERS", json.dumps([{"notifier": f"{__name__}.Catcher"}]))
    return found


@pytest.fixture
def run_sweep(simulator: RunningSimulator, supervisor: Supervisor) -> Sweeper:
    return Sweeper(simulator, supervisor)


def ago(hours: float) -> str:
    return (datetime.now(timezone.utc) - timedelta(hours=hours)).isoformat()


def meeting(
    simulator: RunningSimulator, hours_ago: float = 3, *, bot: dict[str, Any] | None = None, **more: Any
) -> str:
    """Make a meeting with one small recording; return the recording's id."""
    recording = {"artifacts": SMALL, **more}
    ids = simulator.add_meeting(created_at=ago(hours_ago), recordings=[recording], **(bot or {}))
    recording_id: str = ids["recordings"][0]["id"]
    return recording_id


def settle(simulator: RunningSimulator, recording_id: str) -> None:
    """Leave a manifest, as a run would."""
    created_at = datetime.fromisoformat(simulator.control("GET", f"/truth/{recording_id}")["created_at"])
    assert get_store().put_if_absent(f"{recording_folder(created_at, recording_id)}/manifest.json", b"{}", "text/plain")


def test_starts_what_is_finished_and_not_archived(
    run_sweep: Sweeper, simulator: RunningSimulator, supervisor: Supervisor
) -> None:
    wanted = meeting(simulator)
    archived, failed = meeting(simulator), meeting(simulator, artifacts=[{"status": "failed", "sub_code": "made_up"}])
    settle(simulator, archived)
    processing, bare = meeting(simulator, status="processing"), meeting(simulator, artifacts=[])
    late_audio = meeting(simulator, artifacts=[{"status": "processing"}])
    done = run_sweep()
    assert run_sweep.started == [wanted]
    assert done["ids"]["started"] == [wanted]
    assert done["ids"]["archived"] == [archived]
    assert done["ids"]["failed_at_source"] == [failed]
    assert done["ids"]["without_audio"] == [bare]
    assert sorted(done["ids"]["processing"]) == sorted([processing, late_audio])
    assert supervisor.runs[run_id_of(wanted)].note.startswith("Started by the sweep.")
    again = run_sweep()
    assert run_sweep.started == []
    assert again["ids"]["running"] == [wanted]
    settle(simulator, wanted)
    assert sorted(run_sweep()["ids"]["archived"]) == sorted([archived, wanted])
    assert run_sweep.state.owed.keys() == {processing, late_audio}


def test_a_late_finisher_is_not_missed(run_sweep: Sweeper, simulator: RunningSimulator) -> None:
    """It began four days before it was done, with sweeps in between."""
    late = meeting(simulator, artifacts=[{**SMALL[0], "done_after": 96 * HOUR}])
    for _ in range(4):
        done = run_sweep()
        assert run_sweep.started == []
        assert done["ids"]["processing"] == [late]
        simulator.advance(24 * HOUR)
    run_sweep()
    assert run_sweep.started == [late]


def test_one_that_begins_before_the_window_and_is_owed_costs_two_calls(
    run_sweep: Sweeper, simulator: RunningSimulator
) -> None:
    old = [meeting(simulator, 100 + number, status="processing") for number in range(sweep.ALONE)]
    run_sweep()
    after = datetime.fromisoformat(run_sweep()["window"][0])
    assert after > datetime.now(timezone.utc) - timedelta(hours=37)
    done = run_sweep()
    assert done["calls"] == {"list": 2 + sweep.ALONE, "retrieve": sweep.ALONE}
    assert sorted(done["ids"]["processing"]) == sorted(old)
    one_more = meeting(simulator, 99, status="processing")
    run_sweep(created_after=ago(200))
    done = run_sweep()
    assert sorted(done["ids"]["processing"]) == sorted([*old, one_more])
    assert datetime.fromisoformat(done["window"][0]) < datetime.now(timezone.utc) - timedelta(hours=98)


def test_an_outage_of_days_is_made_up_for(run_sweep: Sweeper, simulator: RunningSimulator) -> None:
    run_sweep()
    simulator.advance(10 * 24 * HOUR)
    missed = meeting(simulator, -5 * 24)
    run_sweep()
    assert run_sweep.started == [missed]


@pytest.mark.parametrize("path", ["^/api/v1/recording/", "^/api/v1/audio_separate/"])
@pytest.mark.parametrize(
    "fault", [{"next": "repeat"}, {"truncate": 20}, {"next": "http://127.0.0.1:1/api/v1/recording/"}]
)
def test_a_walk_that_breaks_off_leaves_everything_as_it_was(
    run_sweep: Sweeper, simulator: RunningSimulator, supervisor: Supervisor, path: str, fault: dict[str, Any]
) -> None:
    run_sweep()
    before, wanted = dict(supervisor.rows), meeting(simulator)
    simulator.add_faults({"origin": "api", "method": "GET", "path": path, "times": None, "action": fault})
    with pytest.raises(CodedError):
        run_sweep()
    assert supervisor.rows == before
    assert supervisor.runs == {}
    simulator.control("DELETE", "/faults")
    run_sweep()
    assert run_sweep.started == [wanted]


def test_the_soonest_to_expire_first_and_the_rest_next_time(
    run_sweep: Sweeper, simulator: RunningSimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_VAR_RECALL_SWEEP_MAX_STARTS", "2")
    forever = meeting(simulator, 9)
    last, first, second = (meeting(simulator, 3, expires_at=ago(-hours)) for hours in (90, 50, 70))
    done = run_sweep()
    assert run_sweep.started == [first, second]
    assert done["counts"]["left_for_next_time"] == 2
    assert done["ids"]["left_for_next_time"] == [last, forever]
    for one in (first, second):
        settle(simulator, one)
    run_sweep()
    assert run_sweep.started == [last, forever]


def test_a_run_that_failed_is_tried_again_with_growing_pauses(
    run_sweep: Sweeper, simulator: RunningSimulator, supervisor: Supervisor
) -> None:
    wanted = meeting(simulator)
    run_sweep()
    for hours in (1, 2, 4, 8, 16, 24, 24):
        supervisor.end(wanted, "failed", datetime.now(timezone.utc) - timedelta(hours=hours, seconds=-60))
        assert run_sweep()["ids"]["paused"] == [wanted]
        assert run_sweep.started == []
        supervisor.end(wanted, "failed", datetime.now(timezone.utc) - timedelta(hours=hours))
        run_sweep()
        assert run_sweep.started == [wanted]
        assert run_sweep()["ids"]["running"] == [wanted]


def test_close_to_its_expiry_every_sweep_tries_again(
    run_sweep: Sweeper, simulator: RunningSimulator, supervisor: Supervisor
) -> None:
    wanted = meeting(simulator, expires_at=ago(-5))
    for _ in range(3):
        run_sweep()
        assert run_sweep.started == [wanted]
        supervisor.end(wanted, "failed")


def test_what_somebody_waits_for_is_left_to_them(
    run_sweep: Sweeper, simulator: RunningSimulator, supervisor: Supervisor
) -> None:
    ids = simulator.add_meeting(created_at=ago(3), recordings=[{"artifacts": SMALL}])
    bot_id, wanted = ids["bot_id"], ids["recordings"][0]["id"]
    other = meeting(simulator)
    supervisor.rows |= {bot_id: '"manual__1"', other: '"manual__2"'}
    supervisor.runs["manual__1"] = SimpleNamespace(state="running")
    supervisor.runs["manual__2"] = SimpleNamespace(state="queued")
    assert sorted(run_sweep()["ids"]["running"]) == sorted([wanted, other])
    assert supervisor.started == []
    supervisor.runs["manual__1"].state = "failed"
    run_sweep()
    assert run_sweep.started == [wanted]
    assert bot_id not in supervisor.rows, "a row that means nothing any more is removed"


def test_what_is_left_out_is_not_started_and_not_owed(
    run_sweep: Sweeper, simulator: RunningSimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, left = meeting(simulator, metadata={"team": "sales"}), meeting(simulator, metadata={"team": "board"})
    monkeypatch.setenv("AIRFLOW_VAR_RECALL_SKIP_METADATA", '{"team": "board"}')
    done = run_sweep()
    assert run_sweep.started == [kept]
    assert done["ids"]["left_out"] == {left: "recall_skip_metadata: team"}
    assert run_sweep.state.owed.keys() == {kept}
    monkeypatch.delenv("AIRFLOW_VAR_RECALL_SKIP_METADATA")
    run_sweep()
    assert run_sweep.started == [left]


def test_what_its_own_run_left_out_stays_left_out_until_the_filters_change(
    run_sweep: Sweeper, simulator: RunningSimulator, supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_VAR_RECALL_PLATFORMS", "zoom")
    left = meeting(simulator)
    run_sweep()
    supervisor.end(left, "success", datetime(2026, 1, 1, tzinfo=timezone.utc))
    supervisor.left_out[run_id_of(left)] = {"reason": "recall_platforms: x", "filters": Filters.read().mark}
    assert run_sweep()["ids"]["left_out"] == {left: "recall_platforms: x"}
    assert run_sweep.started == []
    monkeypatch.setenv("AIRFLOW_VAR_RECALL_PLATFORMS", "zoom,microsoft_teams")
    run_sweep()
    assert run_sweep.started == [left]


def test_a_plan_changes_nothing(
    run_sweep: Sweeper, simulator: RunningSimulator, supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_VAR_RECALL_SKIP_TITLES", '["*interview*"]')
    near = meeting(simulator, expires_at=ago(-2))
    left = meeting(simulator, title="An Interview, by chance")
    settle(simulator, archived := meeting(simulator))
    before = get_store().stat("lost/none.json"), sorted(one.key for one in get_store().list())
    done = run_sweep(run_type="manual", plan=True)
    assert (supervisor.runs, supervisor.writes, Catcher.caught) == ({}, 0, [])
    assert (get_store().stat("lost/none.json"), sorted(one.key for one in get_store().list())) == before
    assert done["ids"]["would_start"] == [near]
    assert done["ids"]["archived"] == [archived]
    assert done["ids"]["left_out"] == {left: "recall_skip_titles: pattern 1"}
    assert "started" not in done["counts"]
    (planned,) = done["plan"]
    assert (planned["participants"], planned["parts"], planned["bytes"]) == (1, 1, 3200)
    assert planned["minutes"] >= 0
    run_sweep()
    assert run_sweep.started == [near]


def test_dates_and_backfill_look_at_their_own_range(
    run_sweep: Sweeper, simulator: RunningSimulator, supervisor: Supervisor
) -> None:
    run_sweep()
    walked_at = run_sweep.state.walked_at
    old, older, oldest = (meeting(simulator, 24 * days) for days in (40, 50, 60))
    stuck = meeting(simulator, 24 * 45, status="processing")
    run_sweep(run_type="manual", created_after=ago(24 * 55), created_before=ago(24 * 42))
    assert run_sweep.started == [older]
    assert run_sweep.state.walked_at == walked_at
    assert run_sweep.state.owed.keys() == {older, stuck}, "what a range leaves owed, later sweeps look after"
    moment = datetime.now(timezone.utc)
    interval = (moment - timedelta(days=61), moment - timedelta(days=59))
    run_sweep(run_type="backfill", interval=interval)
    assert run_sweep.started == [oldest]
    run_sweep(run_type="manual", created_after=ago(24 * 41))
    assert run_sweep.started == [old]


@pytest.mark.parametrize("params", [{"created_before": ago(1)}, {"created_after": ago(1), "created_before": ago(2)}])
def test_dates_that_do_not_fit_are_refused_before_anything_is_asked(
    run_sweep: Sweeper, simulator: RunningSimulator, params: dict[str, str]
) -> None:
    with pytest.raises(CodedError) as caught:
        run_sweep(**params)
    assert caught.value.code == "bad_params"
    assert simulator.journal("api") == []


def test_a_near_expiry_is_told_once(run_sweep: Sweeper, simulator: RunningSimulator) -> None:
    near, far = meeting(simulator, expires_at=ago(-20)), meeting(simulator, expires_at=ago(-30))
    assert run_sweep()["ids"]["expiring"] == [near]
    assert run_sweep()["ids"]["expiring"] == [near]
    assert [(one.kind, one.facts["recording_id"]) for one in Catcher.caught] == [("expiring", near)]
    simulator.advance(8 * HOUR)
    run_sweep()
    assert [one.facts["recording_id"] for one in Catcher.caught] == [near, far]
    settle(simulator, near)
    assert run_sweep()["ids"]["expiring"] == [far]


@pytest.mark.parametrize("deleted", ["listed", "gone"])
def test_what_expires_before_it_is_archived_is_an_outcome_of_its_own(
    run_sweep: Sweeper, simulator: RunningSimulator, supervisor: Supervisor, deleted: str
) -> None:
    simulator.control("POST", "/settings", {"deleted": deleted})
    expires_at = datetime.now(timezone.utc).replace(microsecond=0) + timedelta(hours=2)
    lost, settled = (meeting(simulator, expires_at=expires_at.isoformat()) for _ in range(2))
    run_sweep()
    settle(simulator, settled)
    supervisor.end(lost, "failed")
    simulator.advance(3 * HOUR)
    done = run_sweep()
    record = done["ids"]["expired_before_archive"][lost]
    assert datetime.fromisoformat(record["lost_at"]) == expires_at
    assert record["reason"] == "expired"
    assert run_sweep.started == []
    assert json.loads(b"".join(get_store().read(f"lost/{lost}.json"))) == record
    assert [one.kind for one in Catcher.caught] == ["expiring", "expiring", "lost"]
    done = run_sweep()
    assert not done["ids"]["expired_before_archive"]
    assert len(Catcher.caught) == 3
    assert run_sweep.state.owed == {}


def test_what_is_deleted_before_it_is_archived_is_lost_when_it_is_noticed(
    run_sweep: Sweeper, simulator: RunningSimulator
) -> None:
    lost = meeting(simulator)
    run_sweep()
    key = {"Authorization": simulator.api_key}
    requests.delete(f"{simulator.base_url}/api/v1/recording/{lost}/", headers=key, timeout=10).raise_for_status()
    record = run_sweep()["ids"]["expired_before_archive"][lost]
    assert record["reason"] == "deleted"
    assert record["lost_at"] == record["noticed_at"]


def test_a_thousand_recordings(
    run_sweep: Sweeper, simulator: RunningSimulator, supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(100):
        recordings = [{"artifacts": SMALL, "expires_at": ago(-200)}] * 10
        simulator.add_meeting(created_at=ago(30), recordings=recordings)
    simulator.control("DELETE", "/journal")
    done = run_sweep()
    calls = Counter(entry["path"].split("?")[0] for entry in simulator.journal("api"))
    assert calls == {"/api/v1/recording/": 10, "/api/v1/audio_separate/": 10}
    assert done["calls"] == {"list": 20}
    assert (done["counts"]["started"], done["counts"]["left_for_next_time"]) == (200, 800)
    assert len(done["ids"]["started"]) == 80
    assert len(run_sweep.state.owed) == 1000
    monkeypatch.setenv("AIRFLOW_VAR_RECALL_SWEEP_MAX_STARTS", "900")
    run_sweep()
    assert len(set(supervisor.started)) == len(supervisor.started) == 1000


def test_an_archive_on_s3(
    s3: StrictS3,  # noqa: F811
    run_sweep: Sweeper,
    simulator: RunningSimulator,
) -> None:
    settle(simulator, archived := meeting(simulator))
    wanted, lost = meeting(simulator), meeting(simulator, expires_at=ago(-1))
    done = run_sweep()
    assert run_sweep.started == [lost, wanted]
    assert done["ids"]["archived"] == [archived]
    simulator.advance(2 * HOUR)
    run_sweep()
    assert get_store().stat(f"lost/{lost}.json") is not None
