"""What is counted on a meeting's way into the archive, as a StatsD server and an OpenTelemetry collector receive it."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk._shared.observability.metrics import stats as shared
from airflow.sdk.observability import stats
from airflow.sdk.observability.metrics import stats_utils

from include.errors import CodedError
from include.provider import metrics
from include.provider.sensors import RecallRecordingSensor
from tests.include.provider.conftest import LONG_AGO, Context
from tests.include.provider.test_calls import Run, calls, people
from tests.include.provider.test_wait import fire
from tests.metrics_sink import StatsdSink, otlp_sink, statsd_sink

if TYPE_CHECKING:
    from collections.abc import Iterator

    from include.simulator.process import RunningSimulator

ROOT = Path(__file__).resolve().parents[3]
DOCS = ROOT / "docs/observability.md"

pytestmark = pytest.mark.usefixtures("no_supervisor")


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Return what begins a task's process: it reads the settings anew."""

    def begin(**settings: Any) -> None:
        for name, value in settings.items():
            monkeypatch.setenv(f"AIRFLOW__METRICS__{name.upper()}", str(value))
        if (client := getattr(shared._backend, "statsd", None)) is not None:
            client.close()
        metrics._style.cache_clear()
        metrics._complain.cache_clear()
        stats.initialize(factory=stats_utils.get_stats_factory(), export_legacy_names=True)

    yield begin
    monkeypatch.undo()
    begin()


@pytest.fixture
def statsd(begun: Any) -> Iterator[StatsdSink]:
    """A StatsD server of the plainest kind, to which metrics are sent."""
    with statsd_sink() as sink:
        begun(statsd_on=True, statsd_host="127.0.0.1", statsd_port=sink.port)
        yield sink


def meeting(simulator: RunningSimulator, count: int = 3, **more: Any) -> dict[str, Any]:
    return simulator.add_meeting(created_at=LONG_AGO, recordings=[{"artifacts": [{"parts": people(count)}]}], **more)


def archive(ids: dict[str, Any]) -> dict[str, Any]:
    run = Run(ids["bot_id"])
    (settled,) = run.after_the_wait(run.wait())
    return settled


def test_a_meeting_is_counted(simulator: RunningSimulator, statsd: StatsdSink) -> None:
    settled = archive(meeting(simulator))
    asked = calls(simulator)
    statsd.settle()
    assert statsd.counted() == {
        "recall.parts.stored": 3,
        "recall.bytes": 3 * 320,
        "recall.meetings.archived": 1,
        "recall.api.calls.list.ok": asked["list"],
        "recall.api.calls.retrieve.ok": asked["retrieve"],
    }
    assert settled["bytes"] == 3 * (320 + 44), "what is stored has a header more"
    times = statsd.ours("ms")
    assert {name: len(values) for name, values in times.items()} == {"recall.part_duration": 3, "recall.wait": 1}
    assert all(0 < one < 60_000 for one in times["recall.part_duration"])


def test_what_is_there_already_is_not_copied(simulator: RunningSimulator, statsd: StatsdSink) -> None:
    run = Run(meeting(simulator)["bot_id"])
    recordings = run.wait()
    run.archive(recordings)
    run.archive(recordings)
    statsd.settle()
    counted = statsd.counted()
    assert (counted["recall.parts.stored"], counted["recall.parts.already_present"]) == (3, 3)
    assert counted["recall.bytes"] == 3 * 320
    assert "recall.meetings.archived" not in counted


def test_refused_and_repeated_requests_are_counted(simulator: RunningSimulator, statsd: StatsdSink) -> None:
    ids = meeting(simulator)
    too_many = {"status": 429, "headers": {"Retry-After": "0"}}
    simulator.add_faults({"origin": "api", "path": "^/api/v1/bot/", "times": 1, "action": too_many})
    Run(ids["bot_id"]).wait()
    statsd.settle()
    counted = statsd.counted()
    assert counted["recall.api.calls.retrieve.rate_limited"] == 1
    assert counted["recall.api.calls.retrieve.ok"] == 1
    assert counted["recall.api.retries.retrieve"] == 1


def test_a_failing_task_is_counted_by_its_code(simulator: RunningSimulator, statsd: StatsdSink) -> None:
    timeline = [{"at": 0, "code": "joining_call"}, {"at": 5, "code": "fatal", "sub_code": "meeting_not_found"}]
    ids = simulator.add_meeting(created_at=LONG_AGO, recordings=[], timeline=timeline)
    with pytest.raises(CodedError):
        RecallRecordingSensor(task_id="wait", bot_id=ids["bot_id"]).execute(Context())  # type: ignore[arg-type]
    statsd.settle()
    assert statsd.counted()["recall.errors.bot_fatal"] == 1


def test_the_wait_lasts_as_long_as_the_trigger_says(simulator: RunningSimulator, statsd: StatsdSink) -> None:
    ids = meeting(simulator)
    event = fire(bot_id=ids["bot_id"])
    assert 0 < event["waited"] < 30
    RecallRecordingSensor(task_id="wait", bot_id=ids["bot_id"]).resume(Context(), {**event, "waited": 90.5})  # type: ignore[arg-type]
    statsd.settle()
    assert statsd.ours("ms")["recall.wait"] == [90_500]


def test_a_wait_for_the_budget_is_timed(
    simulator: RunningSimulator, statsd: StatsdSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    from include.provider.hook import RecallHook

    client = RecallHook().get_conn()
    monkeypatch.setattr(client._budget, "take", lambda kind, longest: 0.05)
    client.list_recordings()
    statsd.settle()
    assert statsd.ours("ms") == {"recall.api.turn.list": [50]}


def test_where_there_are_tags_they_are_used(simulator: RunningSimulator, begun: Any) -> None:
    with statsd_sink() as sink:
        begun(statsd_on=True, statsd_host="127.0.0.1", statsd_port=sink.port, statsd_influxdb_enabled=True)
        archive(meeting(simulator))
    counted = sink.counted()
    assert counted["recall.parts,action=stored"] == 3
    assert counted["recall.meetings,outcome=archived"] == 1
    assert counted["recall.api.calls,kind=list,result=ok"] > 0


def test_an_opentelemetry_collector_receives_them() -> None:
    program = """
from airflow.sdk.observability import stats
from airflow.sdk.observability.metrics import stats_utils
stats.initialize(factory=stats_utils.get_stats_factory(), export_legacy_names=True)
from include.provider import metrics
metrics.PARTS.add(2, action="stored")
metrics.PARTS.add(action="stored")
metrics.PART_DURATION.took(1.5)
metrics.SWEEP_OWED.set(4)
"""
    with otlp_sink() as sink:
        environment = {
            "PATH": "",
            "PYTHONPATH": str(ROOT),
            "AIRFLOW__METRICS__OTEL_ON": "True",
            "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": f"http://127.0.0.1:{sink.server_port}/v1/metrics",
        }
        subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=60)
        assert sink.points() == {
            ("airflow.recall.parts", "action=stored"): 3,
            ("airflow.recall.part_duration", ""): 1,
            ("airflow.recall.sweep.owed", ""): 4,
        }


def test_a_verification_is_counted(statsd: StatsdSink) -> None:
    totals = {"objects": 12, "bytes_read": 3400, "found": {"damaged": 2, "extra": 1}, "repaired": {"damaged": 1}}
    metrics.verified(totals, 1)
    statsd.settle()
    assert statsd.counted() == {
        "recall.verify.objects": 12,
        "recall.verify.bytes_read": 3400,
        "recall.verify.problems.damaged": 2,
        "recall.verify.problems.extra": 1,
        "recall.verify.repaired.damaged": 1,
    }
    assert statsd.ours("g") == {"recall.verify.unrepaired": [1]}


def test_nothing_is_touched_where_metrics_are_off(
    simulator: RunningSimulator, begun: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun()
    monkeypatch.setattr(metrics, "import_module", lambda name: pytest.fail(f"{name} is used"))
    assert archive(meeting(simulator))["outcome"] == "archived"


def test_a_broken_metrics_client_breaks_nothing_else(
    simulator: RunningSimulator, begun: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    begun(statsd_on=True)
    monkeypatch.setattr(metrics, "import_module", lambda name: 1 / 0)
    with caplog.at_level(logging.WARNING, metrics.__name__):
        assert archive(meeting(simulator))["outcome"] == "archived"
    assert [one.getMessage() for one in caplog.records if one.name == metrics.__name__] == [
        "Metrics can't be sent: ZeroDivisionError: division by zero"
    ]


def test_the_table_says_what_there_is() -> None:
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in DOCS.read_text("utf-8").splitlines()
        if line.startswith("| `recall.")
    ]
    expected = [
        [f"`{one.name}`", one.type, one.unit, ", ".join(f"`{tag}`" for tag in one.tags) or "–", one.when]
        for one in metrics.METRICS
    ]
    assert rows == expected


def test_the_list_has_every_metric_and_no_tag_grows_without_bound() -> None:
    declared = [one for one in vars(metrics).values() if isinstance(one, metrics.Metric)]
    assert list(metrics.METRICS) == declared
    assert len({one.name for one in declared}) == len(declared)
    assert all(re.fullmatch(r"recall(\.[a-z_]+)+", one.name) for one in declared)
    assert {tag for one in declared for tag in one.tags} == {"action", "outcome", "code", "kind", "result"}
