"""What Create Bot accepts, and the defaults that it fills in."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit

from include.simulator.world import parse_time

METADATA_LIMIT = 500
LEGACY_FIELDS = (
    "real_time_media",
    "real_time_transcription",
    "recording_mode",
    "recording_mode_options",
    "transcription_options",
)
ARTIFACT_DEFAULTS: dict[str, Any] = {
    "audio_separate_raw": None,
    "audio_separate_mp3": None,
    "audio_mixed_raw": None,
    "audio_mixed_mp3": None,
    "video_mixed_mp4": {},
    "video_mixed_flv": None,
    "video_separate_png": None,
    "video_separate_h264": None,
    "video_separate_mp4": None,
    "participant_events": {},
    "meeting_metadata": {},
    "transcript": None,
}
RECORDING_DEFAULTS: dict[str, Any] = {
    **ARTIFACT_DEFAULTS,
    "realtime_endpoints": [],
    "retention": {"type": "forever"},
    "video_mixed_layout": "speaker_view",
    "video_mixed_participant_video_when_screenshare": "overlap",
    "start_recording_on": "participant_join",
    "include_bot_in_recording": {"audio": False},
    "metadata": {},
}
RECORDING_CHOICES = {
    "video_mixed_layout": ("speaker_view", "gallery_view", "gallery_view_v2", "audio_only"),
    "video_mixed_participant_video_when_screenshare": ("hide", "beside", "overlap"),
    "start_recording_on": ("call_join", "participant_join", "participant_speak", "manual"),
}
WEB_VARIANTS = ("web", "web_4_core", "web_gpu")
VARIANTS = {
    "zoom": (*WEB_VARIANTS, "native"),
    "google_meet": WEB_VARIANTS,
    "microsoft_teams": WEB_VARIANTS,
    "webex": WEB_VARIANTS,
}
LEAVE_DEFAULTS: dict[str, Any] = {
    "waiting_room_timeout": 1200,
    "noone_joined_timeout": 1200,
    "everyone_left_timeout": {"timeout": 2, "activate_after": None},
    "in_call_not_recording_timeout": 3600,
    "in_call_recording_timeout": None,
    "recording_permission_denied_timeout": 30,
    "silence_detection": {"timeout": 3600, "activate_after": 1200},
    "bot_detection": {"using_participant_events": {"timeout": 600, "activate_after": 1200}},
}
LEAVE_MINIMA = {
    "waiting_room_timeout": 30,
    "noone_joined_timeout": 30,
    "in_call_not_recording_timeout": 1,
    "in_call_recording_timeout": 1,
    "recording_permission_denied_timeout": 1,
}
LEAVE_TIMEOUT_MINIMA = {"everyone_left_timeout": 1, "silence_detection": 10}
PASSED_THROUGH = (
    "output_media",
    "automatic_video_output",
    "automatic_audio_output",
    "chat",
    "zoom",
    "google_meet",
    "breakout_room",
)
# What the firewall of Recall refuses in a payload: addresses of the inside.
INSIDE_ADDRESS = re.compile(rb"https?://(localhost|\d{1,3}(\.\d{1,3}){3}|\[[0-9a-fA-F:]+\])([:/\"?]|$)")

Errors = dict[str, Any]


def check_create(body: dict[str, Any]) -> tuple[dict[str, Any], Errors]:
    """Check the body of Create Bot.

    :return: the fields with the defaults filled in, and what is wrong by field.
    """
    errors: Errors = {
        name: ["This field is not allowed. Use recording_config."] for name in LEGACY_FIELDS if name in body
    }
    request: dict[str, Any] = {name: body.get(name) for name in PASSED_THROUGH}
    checks = {
        "meeting_url": _meeting_url,
        "bot_name": _bot_name,
        "join_at": _join_at,
        "metadata": _metadata,
        "recording_config": _recording_config,
        "automatic_leave": _automatic_leave,
        "variant": _variant,
    }
    for name, check in checks.items():
        missing = name not in body
        try:
            request[name] = check(None if missing else body[name], missing)
        except InvalidError as invalid:
            errors[name] = invalid.errors
    return request, errors


def check_update(body: dict[str, Any], current: dict[str, Any]) -> tuple[dict[str, Any], Errors]:
    """Check the body of Update Bot: as for Create Bot, with the present values for what is not named."""
    sent = {name: current[name] for name in current if name not in PASSED_THROUGH}
    passed = {name: current[name] for name in PASSED_THROUGH if name in current}
    return check_create({**passed, **sent, **body})


def check_metadata(value: Any) -> Errors | list[str] | None:
    """Tell what is wrong with metadata, or None."""
    try:
        _metadata(value, False)
    except InvalidError as invalid:
        return invalid.errors
    return None


class InvalidError(Exception):
    """A field that is not as it should be.

    :param errors: a list of messages, or messages by member.
    """

    def __init__(self, errors: Errors | list[str] | str) -> None:
        super().__init__("invalid")
        self.errors: Errors | list[str] = [errors] if isinstance(errors, str) else errors


def _meeting_url(value: Any, missing: bool) -> str:
    if missing:
        raise InvalidError("This field is required.")
    if value is None:
        raise InvalidError("This field may not be null.")
    if not isinstance(value, str) or not value.strip():
        raise InvalidError("This field may not be blank.")
    parts = urlsplit(value.strip())
    if parts.scheme not in ("http", "https") or "." not in (parts.hostname or ""):
        raise InvalidError("Enter a valid URL.")
    return value.strip()


def _bot_name(value: Any, missing: bool) -> str:
    if missing:
        return "Meeting Notetaker"
    if not isinstance(value, str):
        raise InvalidError("Not a valid string.")
    if not value:
        raise InvalidError("This field may not be blank.")
    if len(value) > 100:
        raise InvalidError("Ensure this field has no more than 100 characters.")
    return value


def _join_at(value: Any, missing: bool) -> str | None:
    if missing or value is None:
        return None
    try:
        parse_time(value)
    except (ValueError, TypeError, AttributeError):
        message = (
            "Datetime has wrong format. Use one of these formats instead: "
            "YYYY-MM-DDThh:mm[:ss[.uuuuuu]][+HH:MM|-HH:MM|Z]."
        )
        raise InvalidError(message) from None
    return str(value)


def _metadata(value: Any, missing: bool) -> dict[str, str | None]:
    if missing or value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidError(f'Expected a dictionary of items but got type "{type(value).__name__}".')
    errors: Errors = {}
    for key, item in value.items():
        if item is not None and not isinstance(item, str):
            errors[key] = ["Not a valid string."]
        elif item is not None and len(item) > METADATA_LIMIT:
            errors[key] = [f"Ensure this field has no more than {METADATA_LIMIT} characters."]
    if errors:
        raise InvalidError(errors)
    return dict(value)


def _recording_config(value: Any, missing: bool) -> dict[str, Any] | None:
    if missing:
        value = {}
    if value is None:
        return None
    if not isinstance(value, dict):
        raise InvalidError("Expected an object or null.")
    errors: Errors = {kind: wrong for kind in ARTIFACT_DEFAULTS if (wrong := _artifact(value.get(kind))) is not None}
    for name, choices in RECORDING_CHOICES.items():
        if name in value and value[name] not in choices:
            errors[name] = [f'"{value[name]}" is not a valid choice.']
    others = {
        "metadata": check_metadata(value.get("metadata")),
        "retention": _retention(value.get("retention", {"type": "forever"})),
    }
    errors.update((name, wrong) for name, wrong in others.items() if wrong is not None)
    if value.get("video_separate_mp4") is not None and value.get("video_mixed_layout") != "gallery_view_v2":
        errors["video_separate_mp4"] = ["video_mixed_layout must be gallery_view_v2."]
    if errors:
        raise InvalidError(errors)
    config = {**RECORDING_DEFAULTS, **value}
    if config["retention"] is not None and config["retention"]["type"] == "timed":
        config["retention"] = {"type": "timed", "hours": config["retention"].get("hours", 168)}
    return config


def _artifact(value: Any) -> Errors | list[str] | None:
    if value is not None and not isinstance(value, dict):
        return ["Expected an object or null."]
    wrong = check_metadata((value or {}).get("metadata"))
    return None if wrong is None else {"metadata": wrong}


def _retention(value: Any) -> Errors | list[str] | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        return ["Expected an object or null."]
    if value.get("type") not in ("timed", "forever"):
        return {"type": [f'"{value.get("type")}" is not a valid choice.']}
    hours = value.get("hours", 168)
    if value["type"] == "timed" and (not isinstance(hours, int) or isinstance(hours, bool)):
        return {"hours": ["A valid integer is required."]}
    if value["type"] == "timed" and hours < 1:
        return {"hours": ["Ensure this value is greater than or equal to 1."]}
    return None


def _automatic_leave(value: Any, missing: bool) -> dict[str, Any]:
    if missing or value is None:
        return dict(LEAVE_DEFAULTS)
    if not isinstance(value, dict):
        raise InvalidError("Expected an object or null.")
    errors: Errors = {}
    for name, minimum in LEAVE_MINIMA.items():
        wrong = _at_least(value.get(name), minimum)
        if wrong is not None:
            errors[name] = wrong
    for name, minimum in LEAVE_TIMEOUT_MINIMA.items():
        member = value.get(name)
        wrong = _at_least(member.get("timeout") if isinstance(member, dict) else member, minimum)
        if wrong is not None:
            errors[name] = {"timeout": wrong}
    if errors:
        raise InvalidError(errors)
    return {**LEAVE_DEFAULTS, **value}


def _at_least(value: Any, minimum: int) -> list[str] | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        return ["A valid integer is required."]
    return [f"Ensure this value is greater than or equal to {minimum}."] if value < minimum else None


def _variant(value: Any, missing: bool) -> dict[str, Any] | None:
    if missing or value is None:
        return None
    if not isinstance(value, dict):
        raise InvalidError("Expected an object or null.")
    errors: Errors = {}
    for platform, choices in VARIANTS.items():
        chosen = value.get(platform)
        if chosen is not None and chosen not in choices:
            errors[platform] = [f'"{chosen}" is not a valid choice.']
    if errors:
        raise InvalidError(errors)
    return dict(value)
