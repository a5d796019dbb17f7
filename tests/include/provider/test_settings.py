from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from include.provider import settings
from include.provider.errors import BadSettingError

README = Path(__file__).resolve().parents[3] / "README.md"


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


def test_the_readme_lists_every_setting() -> None:
    table = README.read_text("utf-8")
    assert all(f"`{setting.name}`" in table for setting in settings.SETTINGS)
