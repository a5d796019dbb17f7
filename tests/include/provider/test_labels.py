"""When a mapped task is named."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.execution_time import task_runner
from pydantic import BaseModel

from include.errors import CodedError
from include.provider import operators


class Label(BaseModel):
    """What Airflow's own task instance is, where its label is meant."""

    rendered_map_index: str | None = None


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the labels that are told while a task works."""
    labels: list[str] = []
    comms = SimpleNamespace(send=lambda message: labels.append(message.rendered_map_index))
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", comms, raising=False)
    return labels


def test_a_short_task_leaves_it_to_airflow_to_tell_its_label(told: list[str]) -> None:
    context: Any = {"ti": Label()}
    with operators.naming(context) as show:
        show("Ada")
    assert context["task_label"] == "Ada"
    assert context["ti"].rendered_map_index == "Ada"  # told with the outcome, and not before it as well
    assert "Ada" not in repr(context["ti"])
    assert told == []


def test_a_long_task_tells_its_label_once(told: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, "LABEL_SECONDS", 0.05)
    context: Any = {"ti": Label()}
    with operators.naming(context) as show:
        show("Ada")
        give_up = time.monotonic() + 30
        while not told and time.monotonic() < give_up:
            time.sleep(0.01)
        show("Ada")
    assert told == ["Ada"]
    assert context["ti"].rendered_map_index == "Ada"


def break_down() -> None:
    context: Any = {"ti": Label()}
    with operators.naming(context) as show:
        show("Ada")
        raise CodedError("it broke", code="broken")


def test_a_task_that_fails_tells_its_label(told: list[str]) -> None:
    with pytest.raises(CodedError):
        break_down()
    assert told == ["Ada"]


def test_a_label_that_cannot_be_told_is_nothing_to_fail_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def send(message: object) -> None:
        raise EOFError("the supervisor is gone")

    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", SimpleNamespace(send=send), raising=False)
    with pytest.raises(CodedError, match="it broke"):
        break_down()
