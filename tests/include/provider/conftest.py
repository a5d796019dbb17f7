"""The glue against a real simulator over HTTP; Airflow's own side is what a task would be handed."""

from __future__ import annotations

import json
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import pytest

from include.provider import operators
from include.simulator.process import RunningSimulator, running_simulator

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LONG_AGO = "2026-03-04T09:55:00+00:00"


class TaskInstance:
    """What our code uses of a task instance."""

    def __init__(self, try_number: int = 1) -> None:
        self.try_number = try_number
        self.pushed: dict[str, Any] = {}
        self.others: dict[str, list[Any]] = {}

    def xcom_push(self, key: str, value: Any) -> None:
        json.dumps(value)
        self.pushed[key] = value

    def xcom_pull(self, *, task_ids: list[str], key: str) -> list[Any]:
        return [one for task_id in task_ids for one in self.others.get(f"{task_id}/{key}", [])]

    def get_first_reschedule_date(self, context: Any) -> None:
        return None


class StateStore:
    """A task state store, which outlives tries and clears."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def get(self, key: str, default: Any = None) -> Any:
        return self.values.get(key, default)

    def set(self, key: str, value: Any, *, retention: Any = None) -> None:
        self.values[key] = json.loads(json.dumps(value))


class Context(dict):  # type: ignore[type-arg]
    """A task's context for one try."""

    def __init__(self, state: StateStore | None = None, try_number: int = 1) -> None:
        super().__init__(
            ti=TaskInstance(try_number), task_state_store=state or StateStore(), params={}, run_id="manual__1"
        )

    @property
    def error(self) -> dict[str, Any] | None:
        return self["ti"].pushed.get("error")


@pytest.fixture
def no_supervisor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody takes the names of mapped tasks."""
    monkeypatch.setattr(operators, "naming", lambda context: nullcontext(lambda label: None))
    monkeypatch.setattr(operators, "show_label", lambda context, label: None)


@pytest.fixture(scope="session")
def shared_simulator() -> Iterator[RunningSimulator]:
    with running_simulator("--no-rate-limit") as running:
        yield running


@pytest.fixture
def simulator(
    shared_simulator: RunningSimulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[RunningSimulator]:
    """A clean simulator, the connection to it, and an empty archive."""
    shared_simulator.reset()
    # Only what a test advances passes, however slow the machine is.
    shared_simulator.control("POST", "/settings", {"speed": 1e-9})
    monkeypatch.setenv("AIRFLOW_CONN_RECALL_DEFAULT", json.dumps(shared_simulator.connection))
    monkeypatch.setenv("AIRFLOW_VAR_RECALL_ARCHIVE_URI", (tmp_path / "archive").as_uri())
    monkeypatch.setenv("AIRFLOW_VAR_RECALL_POLL_SECONDS", "0.2")
    monkeypatch.setenv("AIRFLOW_VAR_RECALL_REQUEST_SHARE", "100")  # one simulator serves all tests of a session
    yield shared_simulator
    shared_simulator.control("DELETE", "/faults")
