"""What the company does not want to keep."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk.exceptions import AirflowSkipException, TaskDeferred

from include.errors import CodedError
from include.provider import settings
from include.provider.awaited import run_id_of
from include.provider.filters import Filters
from include.provider.sensors import LEFT_OUT_KEY, RecallRecordingSensor
from include.recall.models import Participant, Recording
from tests.include.provider.conftest import LONG_AGO, Context

if TYPE_CHECKING:
    from include.simulator.process import RunningSimulator

ADA = Participant(1, "Ada", True, "desktop", "ada@example.org", None)
NAMELESS = Participant(2, None, None, None, None, None)


def recording(**more: Any) -> Recording:
    data = {
        "id": "r",
        "created_at": "2026-03-04T09:55:00Z",
        "started_at": "2026-03-04T10:00:00Z",
        "completed_at": "2026-03-04T10:04:00Z",
        "status": {"code": "done"},
        "metadata": {"team": "sales", "recording_allowed": " True "},
        "bot": {"id": "b", "metadata": {"team": "bots", "org": "acme"}},
        "media_shortcuts": {"meeting_metadata": {"data": {"title": "Weekly Sync"}}},
    }
    return Recording.parse({**data, **more})


def reason(monkeypatch: pytest.MonkeyPatch, name: str, value: Any, one: Recording, *people: Participant) -> str | None:
    monkeypatch.setenv(f"AIRFLOW_VAR_{name.upper()}", value if isinstance(value, str) else json.dumps(value))
    return Filters.read().reason_to_leave_out(one, lambda: people)


LEAVE_OUT: list[tuple[str, Any, str]] = [
    ("recall_only_metadata", {"team": "support"}, "recall_only_metadata: its team is not what is asked for"),
    ("recall_only_metadata", {"team": "sales", "none": "*"}, "recall_only_metadata: its none is not what is asked for"),
    ("recall_skip_metadata", {"team": ["x", "SAL*"]}, "recall_skip_metadata: team"),
    ("recall_skip_metadata", {"org": "acme"}, "recall_skip_metadata: org"),
    ("recall_consent_metadata", "consent", "recall_consent_metadata: consent is not given"),
    ("recall_consent_metadata", "team", "recall_consent_metadata: team is not given"),
    ("recall_min_minutes", "4.5", "recall_min_minutes: 4.0 minutes"),
    ("recall_skip_titles", ["no", "*SYNC"], "recall_skip_titles: pattern 2"),
    ("recall_skip_titles", "weekly*", "recall_skip_titles: pattern 1"),
    ("recall_skip_participants", "*@EXAMPLE.org", "recall_skip_participants: participant 1"),
    ("recall_skip_participants", ["ada"], "recall_skip_participants: participant 1"),
    ("recall_skip_participants", "2", "recall_skip_participants: participant 2"),
    ("recall_only_participants", "*@example.org", "recall_only_participants: participant 2 is not on the list"),
]
LET_THROUGH: list[tuple[str, Any]] = [
    ("recall_only_metadata", {"team": ["support", "sales"], "org": "*"}),
    ("recall_skip_metadata", {"team": "bots", "none": "*"}),
    ("recall_consent_metadata", "recording_allowed"),
    ("recall_platforms", "zoom"),
    ("recall_min_minutes", "4"),
    ("recall_skip_titles", ["weekly", "sync"]),
    ("recall_skip_participants", "grace, *@example.com"),
    ("recall_only_participants", ["*@example.org", "2"]),
]


@pytest.mark.parametrize(("name", "value", "why"), LEAVE_OUT)
def test_left_out(name: str, value: Any, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert reason(monkeypatch, name, value, recording(), ADA, NAMELESS) == why


@pytest.mark.parametrize(("name", "value"), LET_THROUGH)
def test_let_through(name: str, value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert reason(monkeypatch, name, value, recording(), ADA, NAMELESS) is None
    assert Filters.read()


def test_what_is_not_known_leaves_nothing_out_but_for_consent(monkeypatch: pytest.MonkeyPatch) -> None:
    bare = recording(started_at=None, media_shortcuts={}, metadata=None, bot=None)
    for name, value in (("recall_min_minutes", "60"), ("recall_skip_titles", "*"), ("recall_skip_participants", "*")):
        assert reason(monkeypatch, name, value, bare) is None
    assert reason(monkeypatch, "recall_consent_metadata", "ok", bare)


def test_no_filters_are_none() -> None:
    assert not Filters.read()
    assert Filters.read().reason_to_leave_out(recording()) is None


def test_other_filters_have_another_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Filters.read().mark
    assert before == Filters.read().mark
    monkeypatch.setenv("AIRFLOW_VAR_RECALL_PLATFORMS", "zoom")
    assert Filters.read().mark != before


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        (settings.ONLY_METADATA, "team"),
        (settings.ONLY_METADATA, '["team"]'),
        (settings.SKIP_METADATA, '{"team": 5}'),
        (settings.SKIP_METADATA, '{"team": []}'),
        (settings.SKIP_TITLES, "[1]"),
        (settings.SKIP_TITLES, "[broken"),
        (settings.MIN_MINUTES, "-1"),
        (settings.SWEEP_SCHEDULE, "often"),
        (settings.SWEEP_SCHEDULE, "5"),
        (settings.SWEEP_SCHEDULE, "* * *"),
    ],
)
def test_bad_settings_are_named(setting: Any, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"AIRFLOW_VAR_{setting.name.upper()}", text)
    with pytest.raises(CodedError, match=setting.name):
        setting.get()


def wait(recording_id: str, run_id: str | None = None) -> tuple[Context, Any]:
    context = Context()
    context["run_id"] = run_id or run_id_of(recording_id)
    sensor = RecallRecordingSensor(task_id="wait", recording_id=recording_id)
    return context, lambda: sensor.execute(context)  # type: ignore[arg-type]


def test_a_run_that_nobody_asked_for_is_skipped(simulator: RunningSimulator, monkeypatch: pytest.MonkeyPatch) -> None:
    recording_id = simulator.add_meeting(created_at=LONG_AGO)["recordings"][0]["id"]
    context, execute = wait(recording_id)
    assert execute()
    calls = len(simulator.journal("api"))
    for name, value in (("PLATFORMS", "zoom"), ("SKIP_PARTICIPANTS", "maria*")):
        monkeypatch.setenv(f"AIRFLOW_VAR_RECALL_{name}", value)
        simulator.control("DELETE", "/journal")
        context, execute = wait(recording_id)
        with pytest.raises(AirflowSkipException, match=f"recall_{name.lower()}"):
            execute()
        left_out = context["ti"].pushed[LEFT_OUT_KEY]
        assert left_out["filters"] == Filters.read().mark
        assert left_out["reason"].startswith(f"recall_{name.lower()}")
        paths = [entry["path"] for entry in simulator.journal("api") if "/download/" not in entry["path"]]
        assert len(paths) == calls, "the filters cost no call"
        context, execute = wait(recording_id, "manual__1")
        assert execute(), "what a person asks for is never left out"
        monkeypatch.delenv(f"AIRFLOW_VAR_RECALL_{name}")


def test_a_run_that_waited_is_asked_at_the_end(simulator: RunningSimulator, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = simulator.add_meeting(created_at=LONG_AGO, recordings=[{"status": "processing"}])
    recording_id = ids["recordings"][0]["id"]
    monkeypatch.setenv("AIRFLOW_VAR_RECALL_PLATFORMS", "zoom")
    context, execute = wait(recording_id)
    with pytest.raises(TaskDeferred):
        execute()
    sensor = RecallRecordingSensor(task_id="wait", recording_id=recording_id)
    with pytest.raises(AirflowSkipException, match="microsoft_teams"):
        sensor.resume(context, {"recordings": [{"recording_id": recording_id}]})  # type: ignore[arg-type]


def test_a_run_that_nobody_asked_for_is_skipped_where_there_is_no_separate_audio(simulator: RunningSimulator) -> None:
    config = {"recording_config": {"video_mixed_mp4": {}}, "recordings": [{"artifacts": []}]}
    recording_id = simulator.add_meeting(created_at=LONG_AGO, **config)["recordings"][0]["id"]
    context, execute = wait(recording_id)
    with pytest.raises(AirflowSkipException):
        execute()
    assert "error" not in context["ti"].pushed
    _, execute = wait(recording_id, "manual__1")
    with pytest.raises(CodedError) as caught:
        execute()
    assert caught.value.code == "not_configured"
