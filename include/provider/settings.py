"""Every setting that a deployment may turn: one table, read when a task runs, each value validated.

A setting is an Airflow Variable, so it can also be given as an environment variable (``AIRFLOW_VAR_RECALL_…``) or by a
secrets backend. Nothing here is read when a Dag file is parsed, save for a schedule, see :meth:`get_for_dag_file`.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from datetime import timedelta
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
    :param parse: turns the Variable's text into the value; raises :class:`ValueError` with the reason. Its docstring
        says what it takes, as docs/settings.md shows it.
    :param doc: what it does, with its unit.
    :param page: where docs/ says more.
    :param secret: its text may hold a secret, so no message quotes it.
    """

    name: str
    default: T
    parse: Callable[[str], T]
    doc: str
    page: str = ""
    secret: bool = False

    def get_for_dag_file(self) -> T:
        """Read the setting while a Dag file is parsed: an environment variable, or the Variable in the Dag processor.

        Only there does it cost a look-up. Every task parses its Dag file too, and so may any tool, without a
        connection to anything; none of these need what is asked for in this way, such as a schedule.

        :raises BadSettingError: as :meth:`get`; the Dag then shows as an import error.
        """
        from airflow.sdk import get_parsing_context
        from airflow.sdk.execution_time import task_runner

        if f"AIRFLOW_VAR_{self.name.upper()}" in os.environ:
            return self.get()
        in_dag_processor = get_parsing_context().dag_id is None and hasattr(task_runner, "SUPERVISOR_COMMS")
        return self.get() if in_dag_processor else self.default

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
            raise ValueError(f"must be between {low:.15g} and {high:.15g}")
        return value

    parse.__doc__ = f"Take a number from {low:.15g} to {high:.15g}"
    return parse


def _whole_number(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or not low <= int(text) <= high:
            raise ValueError(f"must be a whole number between {low} and {high}")
        return int(text)

    parse.__doc__ = f"Take a whole number from {low} to {high}"
    return parse


def _one_of(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"must be {', '.join(choices[:-1])} or {choices[-1]}")
        return text

    parse.__doc__ = f"Take {', '.join(choices[:-1])} or {choices[-1]}"
    return parse


def _schedule(text: str) -> str | timedelta | None:
    """Take a cron expression of five fields, a number of seconds, or off."""
    if text == "off":
        return None
    if text in ("@hourly", "@daily", "@weekly", "@monthly") or re.fullmatch(
        r"[-0-9A-Za-z*/,]+( [-0-9A-Za-z*/,#?]+){4}", text
    ):
        return text
    if not text.isdecimal():
        raise ValueError("neither off, a cron expression of five fields, nor a number of seconds")
    if not 60 <= int(text) <= 31 * 86400:
        raise ValueError("must be between 60 seconds and 31 days")
    return timedelta(seconds=int(text))


def _patterns(text: str) -> tuple[str, ...]:
    """Take a JSON list of texts, or texts with commas between."""
    if not text.startswith("["):
        return tuple(one.strip() for one in text.split(",") if one.strip())
    try:
        found = json.loads(text)
    except ValueError:
        raise ValueError("not JSON") from None
    if not all(isinstance(one, str) and one.strip() for one in found):
        raise ValueError("must be a list of texts")
    return tuple(one.strip() for one in found)


def _metadata(text: str) -> dict[str, tuple[str, ...]]:
    """Take a JSON object of names, each with a text or a list of texts."""
    try:
        found = json.loads(text)
    except ValueError:
        raise ValueError("not JSON") from None
    if not isinstance(found, dict):
        raise ValueError('must be a JSON object such as {"team": ["sales", "support"]}')
    wanted = {name: [value] if isinstance(value, str) else value for name, value in found.items()}
    if not all(
        isinstance(each, list) and each and all(isinstance(one, str) for one in each) for each in wanted.values()
    ):
        raise ValueError("each value must be a text or a list of texts")
    return {name: tuple(each) for name, each in wanted.items()}


def _name(text: str) -> str:
    """Take a name."""
    return text


def _yes_or_no(text: str) -> bool:
    """Take true, yes or 1, or false, no or 0."""
    known = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if text.lower() not in known:
        raise ValueError("must be true or false")
    return known[text.lower()]


def _kinds(*known: str) -> Callable[[str], tuple[str, ...]]:
    def parse(text: str) -> tuple[str, ...]:
        kinds = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
        if not kinds or not set(kinds) <= set(known):
            raise ValueError(f"must be one or more of {', '.join(known)}, with commas between")
        return kinds

    parse.__doc__ = f"Take one or more of {', '.join(known)}, with commas between"
    return parse


def _notifiers(text: str) -> tuple[dict[str, Any], ...]:
    """Take a JSON list of objects."""
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
    """Take s3://bucket/prefix or file:///absolute/folder."""
    if not text.startswith(("s3://", "file:///")):
        raise ValueError("it begins neither with s3:// nor with file:///")
    return text


ARCHIVE_URI: Setting[str] = Setting(
    "recall_archive_uri",
    (PROJECT_FOLDER / "archive").as_uri(),
    _archive_uri,
    "Where the archive is: s3://bucket/prefix or file:///absolute/folder.",
    page="s3.md",
    secret=True,
)
POLL_SECONDS: Setting[float | None] = Setting(
    "recall_poll_seconds",
    None,
    _number(0.1, 3600),
    "Seconds between two looks at a bot that is waited for; unset, it follows what the bot is doing (5 to 60 s).",
    page="architecture.md#calls-to-the-api",
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
    "Part of Recall's request limits (60 list and 300 retrieve calls a minute) that this machine may use; with several "
    "machines, or other users of the workspace, less. Above 1 only where Recall has raised the limits.",
    page="architecture.md#calls-to-the-api",
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
    "Samples per second assumed for headerless PCM (format raw); the manifest marks it as assumed.",
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
DERIVED_AUDIO: Setting[tuple[str, ...]] = Setting(
    "recall_derived_audio",
    ("aligned", "flac"),
    _kinds("aligned", "flac"),
    "What the Dag derive_audio makes, once it is switched on: aligned tracks, FLAC of each part, or both.",
    page="analysis.md#aligned-tracks-and-flac",
)
KEEP_DOCUMENTS: Setting[bool] = Setting(
    "recall_keep_documents",
    True,
    _yes_or_no,
    "Whether the lists of participants, participant events (chat included) and speaking turns are stored as well.",
    page="analysis.md#what-recall-lists",
)
NOTIFIERS: Setting[tuple[dict[str, Any], ...]] = Setting(
    "recall_notifiers",
    (),
    _notifiers,
    'Whom to tell: a JSON list of {"notifier": "<import path of an Airflow notifier>", "kwargs": {...}}.',
    page="notifications.md",
    secret=True,
)
NOTIFY_NAMES: Setting[bool] = Setting(
    "recall_notify_names",
    False,
    _yes_or_no,
    "Whether messages may hold people's names and meetings' titles.",
    page="notifications.md",
)
DELETE_AT_SOURCE: Setting[str] = Setting(
    "recall_delete_at_source",
    "off",
    _one_of("off", "audio_separate", "recording"),
    "What delete_at_source deletes at Recall once its copy is proven: nothing, the separate audio, or the recording "
    "with its video, transcripts and all else.",
    page="delete.md#at-recall-after-proof",
)
DELETE_AFTER_HOURS: Setting[float] = Setting(
    "recall_delete_after_hours",
    24.0,
    _number(0, 24 * 3650),
    "Hours that a recording has been settled before it is deleted at Recall.",
    page="delete.md#at-recall-after-proof",
)
DELETE_NEEDS_APPROVAL: Setting[bool] = Setting(
    "recall_delete_needs_approval",
    True,
    _yes_or_no,
    "Whether a person has to agree before anything is deleted at Recall.",
    page="delete.md#at-recall-after-proof",
)
SWEEP_SCHEDULE: Setting[str | timedelta | None] = Setting(
    "recall_sweep_schedule",
    "0 * * * *",
    _schedule,
    "When sweep_recordings runs: a cron expression (UTC), a number of seconds, or off.",
    page="sweep.md#schedule",
)
VERIFY_SCHEDULE: Setting[str | timedelta | None] = Setting(
    "recall_verify_schedule",
    "0 2 * * 0",
    _schedule,
    "When verify_archive runs: a cron expression (UTC), a number of seconds, or off.",
    page="verify.md",
)
VERIFY_STALE_HOURS: Setting[float] = Setting(
    "recall_verify_stale_hours",
    48.0,
    _number(1, 24 * 365),
    "Age in hours from which an unfinished upload, or a folder without a manifest, is taken for abandoned.",
    page="verify.md#what-proves-what",
)
SWEEP_OVERLAP_HOURS: Setting[float] = Setting(
    "recall_sweep_overlap_hours",
    36.0,
    _number(1, 24 * 31),
    "How many hours a sweep looks back behind the start of the last complete one; longer than the longest meeting and "
    "what follows it.",
    page="sweep.md#why-no-recording-is-missed",
)
SWEEP_FIRST_DAYS: Setting[float] = Setting(
    "recall_sweep_first_days",
    30.0,
    _number(0.01, 3650),
    "How many days the very first sweep looks back.",
    page="sweep.md#why-no-recording-is-missed",
)
SWEEP_MAX_STARTS: Setting[int] = Setting(
    "recall_sweep_max_starts",
    200,
    _whole_number(1, 10_000),
    "How many runs one sweep starts at most; the rest is started by the next ones.",
    page="sweep.md#what-it-finds",
)
EXPIRY_ALERT_HOURS: Setting[float] = Setting(
    "recall_expiry_alert_hours",
    24.0,
    _number(0, 24 * 365),
    "How many hours before Recall deletes a recording that is not archived a message is sent.",
    page="sweep.md#why-no-recording-is-missed",
)
ONLY_METADATA: Setting[dict[str, tuple[str, ...]]] = Setting(
    "recall_only_metadata",
    {},
    _metadata,
    'Archive only what carries all of this metadata: {"name": "value"} or {"name": ["one", "other"]}; * is a wildcard.',
    page="sweep.md#filters",
)
SKIP_METADATA: Setting[dict[str, tuple[str, ...]]] = Setting(
    "recall_skip_metadata",
    {},
    _metadata,
    "Leave out what carries any of this metadata; the form is that of recall_only_metadata.",
    page="sweep.md#filters",
)
CONSENT_METADATA: Setting[str] = Setting(
    "recall_consent_metadata",
    "",
    _name,
    "Name of the metadata that must be true, yes or 1 for a recording to be archived.",
    page="sweep.md#filters",
)
PLATFORMS: Setting[tuple[str, ...]] = Setting(
    "recall_platforms",
    (),
    _patterns,
    "Archive only meetings of these platforms, in Recall's words, such as zoom, microsoft_teams.",
    page="sweep.md#filters",
)
MIN_MINUTES: Setting[float] = Setting(
    "recall_min_minutes",
    0.0,
    _number(0, 24 * 60),
    "Leave out recordings that are shorter than so many minutes.",
    page="sweep.md#filters",
)
SKIP_TITLES: Setting[tuple[str, ...]] = Setting(
    "recall_skip_titles",
    (),
    _patterns,
    'Leave out meetings with such a title: a JSON list of patterns, such as ["*interview*"]; case is ignored.',
    page="sweep.md#filters",
)
ONLY_PARTICIPANTS: Setting[tuple[str, ...]] = Setting(
    "recall_only_participants",
    (),
    _patterns,
    "Archive only meetings in which everyone is on this list: patterns of e-mail addresses, names or ids.",
    page="sweep.md#filters",
    secret=True,
)
SKIP_PARTICIPANTS: Setting[tuple[str, ...]] = Setting(
    "recall_skip_participants",
    (),
    _patterns,
    "Leave out meetings in which anyone is on this list: patterns of e-mail addresses, names or ids.",
    page="sweep.md#filters",
    secret=True,
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
    KEEP_DOCUMENTS,
    DERIVED_AUDIO,
    NOTIFIERS,
    NOTIFY_NAMES,
    DELETE_AT_SOURCE,
    DELETE_AFTER_HOURS,
    DELETE_NEEDS_APPROVAL,
    SWEEP_SCHEDULE,
    SWEEP_OVERLAP_HOURS,
    SWEEP_FIRST_DAYS,
    SWEEP_MAX_STARTS,
    EXPIRY_ALERT_HOURS,
    VERIFY_SCHEDULE,
    VERIFY_STALE_HOURS,
    ONLY_METADATA,
    SKIP_METADATA,
    CONSENT_METADATA,
    PLATFORMS,
    MIN_MINUTES,
    SKIP_TITLES,
    ONLY_PARTICIPANTS,
    SKIP_PARTICIPANTS,
)
"""All settings, in the order of the table in docs/settings.md, which ``scripts/settings_page.py`` makes of them."""
