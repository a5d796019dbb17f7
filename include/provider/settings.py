"""Every setting that a deployment may turn: one table, read when a task runs, each value validated.

A setting is an Airflow Variable, so it can also be given as an environment variable (``AIRFLOW_VAR_RECALL_…``) or by a
secrets backend. Nothing here is read when a Dag file is parsed.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from airflow.sdk import Variable

from include.provider.errors import BadSettingError

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

PROJECT_FOLDER = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Setting(Generic[T]):
    """One Airflow Variable with its default.

    :param name: the Variable's name.
    :param default: what holds when the Variable is unset.
    :param parse: turns the Variable's text into the value; raises :class:`ValueError` with the reason.
    :param doc: what it does, with its unit.
    :param secret: its text may hold a secret, so no message quotes it.
    """

    name: str
    default: T
    parse: Callable[[str], T]
    doc: str
    secret: bool = False

    def get(self) -> T:
        """Read the Variable.

        :raises BadSettingError: the Variable is set to something that it can't mean.
        """
        raw: Any = Variable.get(self.name, default=None)
        if raw is None or str(raw).strip() == "":
            return self.default
        try:
            return self.parse(str(raw).strip())
        except ValueError as error:
            value = "not usable" if self.secret else repr(str(raw)[:80])
            raise BadSettingError(f"Airflow Variable {self.name} is {value}: {error}. {self.doc}") from None


def _number(low: float, high: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise ValueError("not a number") from None
        if not low <= value <= high:
            raise ValueError(f"must be between {low:g} and {high:g}")
        return value

    return parse


def _whole_number(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or not low <= int(text) <= high:
            raise ValueError(f"must be a whole number between {low} and {high}")
        return int(text)

    return parse


def _one_of(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"must be {', '.join(choices[:-1])} or {choices[-1]}")
        return text

    return parse


def _yes_or_no(text: str) -> bool:
    known = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if text.lower() not in known:
        raise ValueError("must be true or false")
    return known[text.lower()]


def _notifiers(text: str) -> tuple[dict[str, Any], ...]:
    try:
        entries = json.loads(text)
    except ValueError:
        raise ValueError("not JSON") from None
    if not isinstance(entries, list):
        raise ValueError("must be a JSON list")
    for entry in entries:
        if not isinstance(entry, dict) or not set(entry) <= {"notifier", "kwargs"}:
            raise ValueError("each entry is an object with notifier and kwargs, nothing else")
        path = entry.get("notifier")
        if not isinstance(path, str) or not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", path):
            raise ValueError("notifier must be the import path of a class")
        if not isinstance(entry.get("kwargs", {}), dict):
            raise ValueError("kwargs must be an object")
    return tuple({"notifier": entry["notifier"], "kwargs": entry.get("kwargs", {})} for entry in entries)


def _archive_uri(text: str) -> str:
    if not text.startswith(("s3://", "file:///")):
        raise ValueError("must be s3://bucket/prefix or file:///absolute/folder")
    return text


ARCHIVE_URI: Setting[str] = Setting(
    "recall_archive_uri",
    (PROJECT_FOLDER / "archive").as_uri(),
    _archive_uri,
    "Where the archive is: s3://bucket/prefix or file:///absolute/folder.",
)
POLL_SECONDS: Setting[float | None] = Setting(
    "recall_poll_seconds",
    None,
    _number(0.1, 3600),
    "Seconds between two looks at a bot that is waited for; unset, it follows what the bot is doing (5 to 60 s).",
)
MEDIA_TIMEOUT_SECONDS: Setting[float] = Setting(
    "recall_media_timeout_seconds",
    3600.0,
    _number(1, 7 * 86400),
    "Seconds to wait for the separate audio once the recording itself is finished.",
)
WAIT_TIMEOUT_SECONDS: Setting[float] = Setting(
    "recall_wait_timeout_seconds",
    86400.0,
    _number(1, 31 * 86400),
    "Seconds for the whole wait, counted from the bot's join time where that lies ahead.",
)
REQUEST_SHARE: Setting[float] = Setting(
    "recall_request_share",
    0.8,
    _number(0.01, 100),
    "Part of Recall's request limits that this machine may use; above 1 only where Recall has raised the limits.",
)
RETENTION_HOURS: Setting[int] = Setting(
    "recall_retention_hours",
    166,
    _whole_number(1, 24 * 3650),
    "Hours that Recall keeps the media of a bot that we send (166 h stays inside the free week).",
)
PCM_RATE: Setting[int] = Setting(
    "recall_pcm_rate",
    16000,
    _whole_number(8000, 192000),
    "Samples per second assumed for headerless PCM (format raw); recorded in the manifest as assumed.",
)
PCM_WIDTH: Setting[int] = Setting(
    "recall_pcm_width",
    2,
    _whole_number(1, 4),
    "Bytes per sample assumed for headerless PCM.",
)
PCM_CHANNELS: Setting[int] = Setting(
    "recall_pcm_channels",
    1,
    _whole_number(1, 8),
    "Channels assumed for headerless PCM.",
)
NOTIFIERS: Setting[tuple[dict[str, Any], ...]] = Setting(
    "recall_notifiers",
    (),
    _notifiers,
    'Whom to tell: a JSON list of {"notifier": "<import path of an Airflow notifier>", "kwargs": {...}}.',
    secret=True,
)
NOTIFY_NAMES: Setting[bool] = Setting(
    "recall_notify_names",
    False,
    _yes_or_no,
    "Whether messages may hold people's names and meetings' titles.",
)
DELETE_AT_SOURCE: Setting[str] = Setting(
    "recall_delete_at_source",
    "off",
    _one_of("off", "audio_separate", "recording"),
    "What delete_at_source deletes at Recall once its copy is proven: nothing, the separate audio, or the recording "
    "with its video, transcripts and all else.",
)
DELETE_AFTER_HOURS: Setting[float] = Setting(
    "recall_delete_after_hours",
    24.0,
    _number(0, 24 * 3650),
    "Hours that a recording has been settled before it is deleted at Recall.",
)
DELETE_NEEDS_APPROVAL: Setting[bool] = Setting(
    "recall_delete_needs_approval",
    True,
    _yes_or_no,
    "Whether a person has to agree before anything is deleted at Recall.",
)

SETTINGS: tuple[Setting[Any], ...] = (
    ARCHIVE_URI,
    POLL_SECONDS,
    MEDIA_TIMEOUT_SECONDS,
    WAIT_TIMEOUT_SECONDS,
    REQUEST_SHARE,
    RETENTION_HOURS,
    PCM_RATE,
    PCM_WIDTH,
    PCM_CHANNELS,
    NOTIFIERS,
    NOTIFY_NAMES,
    DELETE_AT_SOURCE,
    DELETE_AFTER_HOURS,
    DELETE_NEEDS_APPROVAL,
)
"""All settings, in the order of the table in the README (which a test compares with this)."""
