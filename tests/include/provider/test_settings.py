from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from airflow.sdk.definitions._internal.dag_parsing_context import _airflow_parsing_context_manager
from airflow.sdk.execution_time import comms, task_runner

from include.provider import settings
from include.provider.errors import BadSettingError


@pytest.mark.parametrize("setting", settings.SETTINGS, ids=lambda one: one.name)
def test_unset_and_empty_give_the_default(setting: settings.Setting[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert setting.get() == setting.default
    monkeypatch.setenv(f"AIRFLOW_VAR_{setting.name.upper()}", " ")
    assert setting.get() == setting.default


@pytest.mark.parametrize(
    ("setting", "text", "value"),
    [
        (settings.ARCHIVE_URI, "s3://bucket/prefix", "s3://bucket/prefix"),
        (settings.ARCHIVE_URI, "file:///srv/archive", "file:///srv/archive"),
        (settings.POLL_SECONDS, "2.5", 2.5),
        (settings.REQUEST_SHARE, "0.25", 0.25),
        (settings.WAIT_TIMEOUT_SECONDS, "60", 60.0),
        (settings.PCM_RATE, "8000", 8000),
    ],
)
def test_good_values(setting: settings.Setting[Any], text: str, value: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"AIRFLOW_VAR_{setting.name.upper()}", text)
    assert setting.get() == value


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        (settings.ARCHIVE_URI, "archive"),
        (settings.ARCHIVE_URI, "file://relative"),
        (settings.ARCHIVE_URI, "https://example.org"),
        (settings.POLL_SECONDS, "soon"),
        (settings.POLL_SECONDS, "-1"),
        (settings.POLL_SECONDS, "nan"),
        (settings.REQUEST_SHARE, "0"),
        (settings.REQUEST_SHARE, "1000"),
        (settings.MEDIA_TIMEOUT_SECONDS, "0"),
        (settings.PCM_WIDTH, "2.5"),
        (settings.PCM_CHANNELS, "99"),
        (settings.RETENTION_HOURS, "0"),
    ],
)
def test_bad_values_are_named(setting: settings.Setting[Any], text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"AIRFLOW_VAR_{setting.name.upper()}", text)
    with pytest.raises(BadSettingError, match=setting.name) as caught:
        setting.get()
    assert caught.value.code == "bad_setting"
    assert caught.value.permanent


def test_an_archive_address_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_VAR_RECALL_ARCHIVE_URI", "https://key:canary@bucket.example")
    with pytest.raises(BadSettingError, match="s3://bucket/prefix") as caught:
        settings.ARCHIVE_URI.get()
    assert "canary" not in str(caught.value)


class Asked:
    """A supervisor that has every Variable."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def send(self, message: Any) -> Any:
        self.names.append(message.key)
        return comms.VariableResult(key=message.key, value="900")


def test_a_schedule_is_looked_up_in_the_dag_processor_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    setting, asked = settings.SWEEP_SCHEDULE, Asked()
    assert setting.get_for_dag_file() == setting.default, "a tool that parses the file has nobody to ask"
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", asked, raising=False)
    monkeypatch.setattr(settings.Variable, "get", lambda name, default: asked.send(comms.GetVariable(key=name)).value)
    assert setting.get_for_dag_file() == timedelta(seconds=900)
    assert asked.names == [setting.name]
    with _airflow_parsing_context_manager(dag_id="sweep_recordings", task_id="find_recordings"):
        assert setting.get_for_dag_file() == setting.default, "a task needs no schedule"
    assert asked.names == [setting.name]


def test_a_schedule_in_the_environment_is_read_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    for text, value in (("off", None), ("900", timedelta(seconds=900)), ("*/5 * * * *", "*/5 * * * *")):
        monkeypatch.setenv("AIRFLOW_VAR_RECALL_SWEEP_SCHEDULE", text)
        assert settings.SWEEP_SCHEDULE.get_for_dag_file() == value
