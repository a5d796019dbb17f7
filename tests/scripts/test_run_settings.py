from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from scripts.run_settings import DEMO_MEETING, RunSettings, SettingsError

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).resolve().parents[2]
PROJECT = Path("/somewhere/a project")
ACCOUNT = {"RECALL_API_KEY": "canary-key", "RECALL_REGION": "us-east-1"}

WRONG = [
    ({"RECALL_API_KEY": "canary-key", "BOT_ID": "b"}, "RECALL_REGION"),
    ({**ACCOUNT, "RECALL_REGION": "mars-1", "BOT_ID": "b"}, "us-west-2"),
    ({**ACCOUNT, "RECALL_API_KEY": "canary key", "BOT_ID": "b"}, "RECALL_API_KEY"),
    ({**ACCOUNT, "RECALL_API_KEY": "canary\nkey", "BOT_ID": "b"}, "RECALL_API_KEY"),
    ({"RECALL_REGION": "us-east-1"}, "RECALL_API_KEY"),
    (ACCOUNT, "BOT_ID, MEETING_URL or RECORDING_ID"),
    ({**ACCOUNT, "BOT_ID": "a", "RECORDING_ID": "b"}, "exactly one"),
    ({"BOT_ID": "a", "MEETING_URL": "https://zoom.us/j/1"}, "exactly one"),
    ({"BOT_ID": "a"}, "BOT_ID is set without RECALL_API_KEY"),
    ({"RECORDING_ID": "b"}, "RECORDING_ID is set without RECALL_API_KEY"),
    ({**ACCOUNT, "BOT_ID": "../../x"}, "is not an id"),
    ({**ACCOUNT, "RECORDING_ID": "a" * 65}, "is not an id"),
    ({"MEETING_URL": "zoom.us/j/1"}, "MEETING_URL"),
    ({"MEETING_URL": "https://zoom.us/j/1 2"}, "MEETING_URL"),
    ({"MEETING_URL": "https://[zoom"}, "MEETING_URL"),
    ({"ARCHIVE": "backup"}, "ARCHIVE"),
    ({"ARCHIVE": "s3://"}, "ARCHIVE"),
    ({"ARCHIVE": "file://host/folder"}, "ARCHIVE"),
    ({"ARCHIVE": "https://bucket.example/x"}, "ARCHIVE"),
]


def read(env: Mapping[str, str]) -> RunSettings:
    return RunSettings.from_environment(env, PROJECT)


def test_the_demo_is_what_no_settings_mean() -> None:
    settings = read({})
    assert settings.demo
    assert settings.conf == {"meeting_url": DEMO_MEETING}
    assert settings.archive == "file:///somewhere/a%20project/archive"
    assert not settings.once


def test_an_empty_setting_is_no_setting() -> None:
    assert read({"RECALL_API_KEY": " ", "BOT_ID": "", "ARCHIVE": "", "ONCE": ""}) == read({})


@pytest.mark.parametrize(
    ("name", "value", "param"),
    [
        ("BOT_ID", "3e335fee-41c0-4886-bf4c-843b22f5aa76", "bot_id"),
        ("RECORDING_ID", "rec_1", "recording_id"),
        ("MEETING_URL", "https://zoom.us/j/1?pwd=x", "meeting_url"),
    ],
)
def test_an_account_takes_any_of_the_three(name: str, value: str, param: str) -> None:
    settings = read({**ACCOUNT, name: value, "ARCHIVE": "s3://bucket/prefix"})
    assert not settings.demo
    assert settings.conf == {param: value}
    assert settings.uses_s3


def test_the_key_is_stripped_and_never_shown() -> None:
    settings = read({**ACCOUNT, "RECALL_API_KEY": " canary-key\n", "BOT_ID": "b"})
    assert settings.api_key == "canary-key"
    assert "canary" not in repr(settings)


@pytest.mark.parametrize(("value", "once"), [("1", True), ("yes", True), ("0", False), ("false", False)])
def test_once_is_a_switch(value: str, once: bool) -> None:
    assert read({"ONCE": value}).once is once


@pytest.mark.parametrize(("env", "named"), WRONG)
def test_a_wrong_setting_is_one_line_that_names_it(env: dict[str, str], named: str) -> None:
    with pytest.raises(SettingsError) as caught:
        read(env)
    message = str(caught.value)
    assert named in message
    assert "\n" not in message
    assert "canary" not in message


@pytest.mark.parametrize(
    "env",
    [
        {"BOT_ID": "a", "RECORDING_ID": "b"},
        {**ACCOUNT},
        {"ARCHIVE": "s3://bucket/prefix", "AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": "/dev/null"},
    ],
    ids=["two ids", "no id", "no AWS credentials"],
)
def test_the_command_ends_with_code_2_and_one_line_before_anything_starts(env: dict[str, str], tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "run.py")],
        env={"PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "PATH": "/usr/bin:/bin", **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("make run: ")
    assert result.stderr.count("\n") == 1
    assert "canary" not in result.stderr
