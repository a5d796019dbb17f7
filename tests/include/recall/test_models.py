from __future__ import annotations

import copy
import json
import pickle
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from include.recall.errors import RecallSchemaError
from include.recall.models import (
    AudioArtifact,
    AudioPart,
    Bot,
    Participant,
    Recording,
    SignedLink,
    StatusChange,
    parse_page,
    parse_time,
)

LINK = "https://media.example.com/part-1?Signature=CANARY&Expires=1"

RECORDING: dict[str, Any] = {
    "id": "rec-1",
    "created_at": "2026-03-04T09:55:12.001000Z",
    "started_at": "2026-03-04T09:55:40.350000Z",
    "completed_at": None,
    "expires_at": "2026-03-11T08:31:05+00:00",
    "status": {"code": "done", "sub_code": None, "updated_at": "2026-03-04T10:31:05Z"},
    "metadata": {"request": "req-1", "none": None},
    "media_shortcuts": {
        "participant_events": {"data": {"participants_download_url": LINK, "speaker_timeline_download_url": None}},
        "meeting_metadata": {"data": {"title": "Weekly \u202e sync", "zoom": None}},
    },
}
BOT: dict[str, Any] = {
    "id": "bot-1",
    "meeting_url": {"platform": "microsoft_teams", "meeting_id": None},
    "status_changes": [
        {"code": "done", "sub_code": None, "message": None, "created_at": "2026-03-04T10:31:00Z"},
        {"code": "ready", "sub_code": None, "message": None, "created_at": "2026-03-04T11:31:00Z"},
        {"code": "joining_call", "sub_code": "", "message": "hi", "created_at": "2026-03-04T09:55:00.5Z"},
    ],
    "recordings": [RECORDING],
    "metadata": {"org": "acme"},
    "recording_config": {"audio_separate_raw": {}, "audio_separate_mp3": None},
}
ARTIFACT: dict[str, Any] = {
    "id": "art-1",
    "recording": {"id": "rec-1", "metadata": None},
    "created_at": "2026-03-04T09:55:40.350000Z",
    "status": {"code": "done", "sub_code": None, "updated_at": "2026-03-04T10:31:09Z"},
    "metadata": {},
    "data": {"download_url": LINK},
    "format": "raw",
}
PART: dict[str, Any] = {
    "id": "part-1",
    "participant": {
        "id": 100,
        "name": "Ada Example",
        "is_host": True,
        "platform": "desktop",
        "extra_data": {"zoom": {"guest": True}},
        "email": None,
    },
    "start_timestamp": {"absolute": "2026-03-04T09:55:41.1Z", "relative": -0.75},
    "duration": 812.44,
    "download_url": LINK,
}
PARSERS = [(Bot, BOT), (Recording, RECORDING), (AudioArtifact, ARTIFACT), (AudioPart, PART)]


def utc(*args: int) -> datetime:
    return datetime(*args, tzinfo=timezone.utc)


def with_at(sample: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """Return a copy of a sample with another value at a dotted path; ``...`` removes the key."""
    sample = copy.deepcopy(sample)
    target: Any = sample
    *way, last = [int(step) if step.isdigit() else step for step in path.split(".")]
    for step in way:
        target = target[step]
    if value is ...:
        del target[last]
    else:
        target[last] = value
    return sample


def test_bot() -> None:
    bot = Bot.parse(BOT)
    assert bot.status == StatusChange("done", None, None, utc(2026, 3, 4, 10, 31))
    assert bot.is_finished
    assert bot.audio_forms == 1
    assert bot.platform == "microsoft_teams"
    assert bot.metadata == {"org": "acme"}
    (recording,) = bot.recordings
    bot_facts = {"bot_id": "bot-1", "platform": "microsoft_teams", "bot_metadata": {"org": "acme"}}
    assert recording == replace(Recording.parse(RECORDING), **bot_facts)


def test_recording() -> None:
    recording = Recording.parse(RECORDING | {"bot": {"id": "bot-9", "metadata": {}}}, bot_id="bot-1")
    assert recording.bot_id == "bot-9"
    assert recording.created_at == utc(2026, 3, 4, 9, 55, 12, 1000)
    assert recording.completed_at is None
    assert recording.expires_at == utc(2026, 3, 11, 8, 31, 5)
    assert (recording.status, recording.is_settled) == ("done", True)
    assert recording.title == "Weekly \u202e sync"
    assert recording.metadata == {"request": "req-1", "none": None}
    assert recording.documents == {"participants": SignedLink(LINK)}


def test_artifact_and_part() -> None:
    artifact = AudioArtifact.parse(ARTIFACT)
    assert (artifact.recording_id, artifact.status, artifact.format) == ("rec-1", "done", "raw")
    assert artifact.download_url == SignedLink(LINK)
    part = AudioPart.parse(PART)
    assert (part.id, part.start_relative, part.duration) == ("part-1", -0.75, 812.44)
    assert part.start_absolute == utc(2026, 3, 4, 9, 55, 41, 100000)
    assert part.participant == Participant(100, "Ada Example", True, "desktop", None, {"zoom": {"guest": True}})


@pytest.mark.parametrize("codes", [["done"], ["fatal"], ["done", "analysis_done"], ["done", "media_expired"]])
def test_a_bot_is_finished_whatever_follows(codes: list[str]) -> None:
    changes = [{"code": code, "created_at": f"2026-03-04T10:00:0{n}Z"} for n, code in enumerate([*codes, "newer"])]
    bot = Bot.parse(BOT | {"status_changes": changes})
    assert bot.is_finished
    assert bot.status is not None
    assert bot.status.code == "newer"


def test_unknown_statuses_are_kept_and_finish_nothing() -> None:
    change = {"code": "teleporting", "sub_code": "why_not", "message": 5, "created_at": "2026-03-04T10:00:00Z", "x": 1}
    bot = Bot.parse(BOT | {"status_changes": [change], "new_field": [1]})
    assert not bot.is_finished
    assert bot.status == StatusChange("teleporting", "why_not", None, utc(2026, 3, 4, 10))
    recording = Recording.parse(with_at(RECORDING, "status.code", "reticulating"))
    assert (recording.status, recording.is_settled) == ("reticulating", False)
    assert Recording.parse(RECORDING | {"status": None}).status == "unknown"
    assert AudioArtifact.parse(with_at(ARTIFACT, "format", "opus")).format == "opus"


@pytest.mark.parametrize(
    ("config", "asked"),
    [
        ({"audio_separate_raw": {}}, 1),
        ({"audio_separate_raw": {}, "audio_separate_mp3": {}}, 2),
        ({"audio_separate_raw": None, "audio_separate_mp3": {"metadata": {}}}, 1),
        ({"audio_separate_raw": None, "audio_separate_mp3": None}, 0),
        ({"video_mixed_mp4": {}}, 0),
        (None, None),
        (..., None),
    ],
)
def test_what_was_asked_for(config: Any, asked: int | None) -> None:
    assert Bot.parse(with_at(BOT, "recording_config", config)).audio_forms == asked


@pytest.mark.parametrize(
    ("participant", "expected"),
    [
        (None, Participant(-1, None, None, None, None, None)),
        ({}, Participant(-1, None, None, None, None, None)),
        ({"id": None, "name": "x"}, Participant(-1, None, None, None, None, None)),
        ({"id": 7, "name": None, "is_host": None}, Participant(7, None, None, None, None, None)),
        (
            {"id": "7", "name": 5, "is_host": "yes", "platform": [], "email": 1},
            Participant(7, None, None, None, None, None),
        ),
        ({"id": 7, "extra_data": [1]}, Participant(7, None, None, None, None, [1])),
    ],
)
def test_participants_with_nothing_to_say(participant: Any, expected: Participant) -> None:
    assert AudioPart.parse(PART | {"participant": participant}).participant == expected


def test_numeric_part_ids_become_text() -> None:
    assert AudioPart.parse(PART | {"id": 12}).id == "12"


@pytest.mark.parametrize(
    ("cls", "sample", "path", "value", "field"),
    [
        (Bot, BOT, "id", None, "id"),
        (Bot, BOT, "id", 5, "id"),
        (Bot, BOT, "recordings", ..., "recordings"),
        (Bot, BOT, "recordings", None, "recordings"),
        (Bot, BOT, "recordings.0.id", None, "recordings[0].id"),
        (Bot, BOT, "status_changes.1.code", None, "status_changes[1].code"),
        (Bot, BOT, "status_changes.2.created_at", "yesterday", "status_changes[2].created_at"),
        (Recording, RECORDING, "status", ..., "status"),
        (Recording, RECORDING, "status.code", None, "status.code"),
        (Recording, RECORDING, "created_at", None, "created_at"),
        (AudioArtifact, ARTIFACT, "data.download_url", 5, "data.download_url"),
        (AudioArtifact, ARTIFACT, "data.download_url", ..., "data.download_url"),
        (AudioArtifact, ARTIFACT, "data", None, "data"),
        (AudioArtifact, ARTIFACT, "recording.id", None, "recording.id"),
        (AudioPart, PART, "id", None, "id"),
        (AudioPart, PART, "id", "", "id"),
        (AudioPart, PART, "id", True, "id"),
        (AudioPart, PART, "download_url", None, "download_url"),
        (AudioPart, PART, "download_url", 5, "download_url"),
        (AudioPart, PART, "duration", "9", "duration"),
        (AudioPart, PART, "duration", -1, "duration"),
        (AudioPart, PART, "duration", float("nan"), "duration"),
        (AudioPart, PART, "duration", 10**400, "duration"),
        (AudioPart, PART, "start_timestamp", None, "start_timestamp"),
        (AudioPart, PART, "start_timestamp.relative", None, "start_timestamp.relative"),
        (AudioPart, PART, "participant", "Ada", "participant"),
        (AudioPart, PART, "participant.id", "Ada", "participant.id"),
    ],
)
def test_a_changed_schema_names_its_field(cls: Any, sample: dict[str, Any], path: str, value: Any, field: str) -> None:
    with pytest.raises(RecallSchemaError) as caught:
        cls.parse(with_at(sample, path, value), "results[3]")
    assert caught.value.field == f"results[3].{field}"
    assert caught.value.field in caught.value.message
    assert caught.value.permanent
    assert "CANARY" not in str(caught.value)


def test_an_artifact_under_way_needs_no_link() -> None:
    for data in (None, {}, {"download_url": None}):
        artifact = with_at(with_at(ARTIFACT, "status.code", "processing"), "data", data)
        assert AudioArtifact.parse(artifact).download_url is None
    assert AudioArtifact.parse(with_at(ARTIFACT, "data.download_url", None)).download_url is None


def test_pages() -> None:
    assert parse_page({"next": None, "results": [1]}) == ([(1, "results[0]")], None)
    assert parse_page({"next": "", "results": []}) == ([], None)
    assert parse_page({"next": "https://x/?page=2", "results": []})[1] == "https://x/?page=2"
    for page, field in [({"items": []}, "results"), ({"results": {}}, "results"), ({"results": [], "next": 2}, "next")]:
        with pytest.raises(RecallSchemaError, match=field):
            parse_page(page)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-03-04T09:55:12.001000Z", utc(2026, 3, 4, 9, 55, 12, 1000)),
        ("2026-03-04T09:55:12Z", utc(2026, 3, 4, 9, 55, 12)),
        ("2026-03-04T09:55:12.1+00:00", utc(2026, 3, 4, 9, 55, 12, 100000)),
        ("2026-03-04T09:55:12.123456789Z", utc(2026, 3, 4, 9, 55, 12, 123456)),
        ("2026-03-04T11:55:12+0200", utc(2026, 3, 4, 9, 55, 12)),
        ("2026-03-04 09:55:12", utc(2026, 3, 4, 9, 55, 12)),
        ("2026-03-04", None),
        ("2026-02-30T00:00:00Z", None),
        ("0001-01-01T00:00:00+05:00", None),
        ("٢٠٢٦-03-04T09:55:12Z", None),
        ("", None),
    ],
)
def test_times(text: str, expected: datetime | None) -> None:
    assert parse_time(text) == expected


@given(st.text(max_size=40) | st.from_regex(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}.*", fullmatch=True))
@settings(max_examples=60)
def test_no_text_breaks_the_time_parser(text: str) -> None:
    moment = parse_time(text)
    assert moment is None or moment.utcoffset() == timedelta(0)


def test_signed_links_stay_secret() -> None:
    link = SignedLink(LINK)
    part = AudioPart.parse(PART)
    for shown in (repr(link), str(link), f"{link}", f"{link!r:>80}", repr(part), str([part]), repr(vars(part))):
        assert "CANARY" not in shown
        assert "media.example.com" not in shown
    assert link.host == "media.example.com"
    assert SignedLink("https://[").host == ""
    with pytest.raises(TypeError):
        pickle.dumps(part)
    with pytest.raises(TypeError):
        json.dumps({"link": link})
    assert copy.deepcopy(part) == part
    assert copy.copy(link) is link
    assert link == SignedLink(LINK)
    assert hash(link) == hash(SignedLink(LINK))
    assert link != LINK
    assert not hasattr(link, "__dict__")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


def paths_of(sample: Any, prefix: str = "") -> list[str]:
    if not isinstance(sample, (dict, list)):
        return []
    steps = list(sample) if isinstance(sample, dict) else list(map(str, range(len(sample))))
    paths = []
    for step in steps:
        path = f"{prefix}{step}"
        inner = sample[step if isinstance(sample, dict) else int(step)]
        paths += [path, *paths_of(inner, f"{path}.")]
    return paths


@pytest.mark.parametrize(("cls", "sample"), PARSERS, ids=lambda one: getattr(one, "__name__", ""))
@given(data=st.data())
@settings(max_examples=80)
def test_parsers_raise_nothing_but_schema_errors(cls: Any, sample: dict[str, Any], data: st.DataObject) -> None:
    value = data.draw(json_values | st.just(...))
    if data.draw(st.booleans()):
        path = data.draw(st.sampled_from(paths_of(sample)))
        mutant: Any = with_at(sample, path, value)
    else:
        mutant = None if value is ... else value
    try:
        parsed = cls.parse(mutant)
    except RecallSchemaError:
        return
    assert isinstance(parsed.id, str)
    assert parsed.id
    if isinstance(parsed, Bot):
        assert parsed.is_finished in (True, False)
        assert parsed.platform is None or isinstance(parsed.platform, str)
