"""The params of our Dags: their JSON Schema, and what they mean together.

Each value is refused by Airflow itself, with HTTP 400, before a run exists. That exactly one of three is given can't
be said in a schema of single values, so the first task says it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.sdk import Param

from include.provider.errors import BadParamsError, error_reported

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow.sdk import Context

# JSON Schema's `$` may match before a final newline in Python, hence the look-ahead.
_ID = r"^([0-9A-Za-z][0-9A-Za-z_-]{0,63})?$(?!\n)"
_URL = r"^(https://[^\s\x00-\x1f\x7f]+)?$(?!\n)"
_TIME = r"^([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,6})?)?(Z|[+-][0-9]{2}:[0-9]{2}))?$(?!\n)"
_DAY = r"^([0-9]{4}-[0-9]{2}-[0-9]{2})?$(?!\n)"


def _text(title: str, description: str, **schema: Any) -> Param:
    """Return a param that is a string or nothing."""
    return Param(None, type=["null", "string"], title=title, description=description, **schema)


def archive_meeting_params() -> dict[str, Param]:
    """Return the params of the Dag, with the form's texts."""
    return {
        "meeting_url": _text(
            "Meeting URL", "Send a bot into this meeting, then archive what it records.", pattern=_URL, maxLength=2000
        ),
        "bot_id": _text("Bot id", "Archive everything that this bot has recorded or is recording.", pattern=_ID),
        "recording_id": _text("Recording id", "Archive this one recording.", pattern=_ID),
        "bot_name": _text(
            "Bot name", "Only with a meeting URL: the name that the bot shows in the meeting.", maxLength=100
        ),
        "join_at": _text(
            "Join at",
            "Only with a meeting URL: when the bot joins, with a time zone, such as 2026-03-04T09:55:00Z.",
            format="date-time",
            pattern=_TIME,
        ),
    }


def sweep_recordings_params() -> dict[str, Param]:
    """Return the params of ``sweep_recordings``."""
    moment: dict[str, Any] = {"format": "date-time", "pattern": _TIME}
    return {
        "created_after": _text(
            "Created after",
            "Look at recordings that began after this, instead of going on where the last sweep was.",
            **moment,
        ),
        "created_before": _text("Created before", "Only with the one above; now when empty.", **moment),
        "plan": Param(
            False,
            type="boolean",
            title="Plan",
            description="Only list what would be started, its length and size, and what is skipped and why.",
        ),
    }


def derive_audio_params() -> dict[str, Param]:
    """Return the params of ``derive_audio``."""
    return {
        "recording_id": _text(
            "Recording id",
            "This one archived recording; a run that an event started takes the event's.",
            pattern=_ID,
        )
    }


def delete_at_source_params() -> dict[str, Param]:
    """Return the params of ``delete_at_source``."""
    return {
        "recording_id": _text("Recording id", "This one recording; otherwise all in the range.", pattern=_ID),
        **_range("31 days ago", "today"),
        "plan": Param(False, type="boolean", title="Plan only", description="List what would be deleted, and stop."),
    }


def purge_participant_params() -> dict[str, Param]:
    """Return the params of ``purge_participant``."""
    return {
        "email": _text("E-mail address", "Of the person.", maxLength=320),
        "name": _text("Exact name", "As in the meetings.", maxLength=500),
        "recording_id": _text("Recording id", "With the participant id.", pattern=_ID),
        "participant_id": Param(
            None, type=["null", "integer"], title="Participant id", description="Of that recording."
        ),
        **_range("the archive's first", "the archive's last"),
        "plan": Param(True, type="boolean", title="Plan only", description="List what would be removed, and stop."),
        "at_source": Param(
            False,
            type="boolean",
            title="At Recall too",
            description="Delete these recordings' separate audio at Recall as well: as a whole, everyone's.",
        ),
    }


def _range(first: str, last: str) -> dict[str, Param]:
    return {
        name: _text(
            title,
            f"{title} on which recordings began, UTC, such as 2026-03-04. Default: {default}.",
            format="date",
            pattern=_DAY,
        )
        for name, title, default in (("created_from", "First day", first), ("created_until", "Last day", last))
    }


def verify_archive_params() -> dict[str, Param]:
    """Return the params of ``verify_archive``."""
    day: dict[str, Any] = {"format": "date", "pattern": _DAY}
    return {
        "recording_id": _text("Recording id", "This one recording; otherwise all in the range.", pattern=_ID),
        "from": _text("From", "First day, as in the folders' names; the first of all.", **day),
        "to": _text("To", "Last day; the last of all when empty.", **day),
        "mode": Param(
            "full",
            type="string",
            enum=["full", "checksum"],
            title="Mode",
            description="full: every byte is read. checksum: checksums that the store computed are trusted.",
        ),
        "repair": Param(
            True,
            type="boolean",
            title="Repair",
            description="Make good what Recall still has, and remove abandoned uploads; otherwise only report.",
        ),
    }


def given(value: Any) -> str | None:
    """Return a param's value, or ``None`` for all the ways in which a form or a template says "nothing"."""
    text = "" if value is None else str(value).strip()
    return None if text in ("", "None") else text


def refuse_contradictions(context: Context) -> None:
    """Refuse params that don't fit together, before anything is asked of anyone. A ``pre_execute`` of the first task.

    :raises BadParamsError: not exactly one of ``meeting_url``, ``bot_id``, ``recording_id``; or an option that only a
        new bot can have, without a meeting.
    """
    with error_reported(context):
        _check(context["params"])


def _check(params: Mapping[str, Any]) -> None:
    sources = [name for name in ("meeting_url", "bot_id", "recording_id") if given(params.get(name))]
    if len(sources) != 1:
        found = " and ".join(sources) or "none"
        raise BadParamsError(f"exactly one of meeting_url, bot_id and recording_id must be given, found {found}")
    if sources != ["meeting_url"]:
        for name in ("bot_name", "join_at"):
            if given(params.get(name)):
                raise BadParamsError(f"{name} goes with meeting_url only")
