"""The life of bots, recordings and artifacts on the virtual clock."""

from __future__ import annotations

import uuid
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
import requests

RAW = {"audio_separate_raw": {"metadata": {"purpose": "archive"}}}


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def codes(bot: dict[str, Any]) -> list[str]:
    return [change["code"] for change in bot["status_changes"]]


def test_a_new_bot_echoes_its_request_with_defaults(api: Any) -> None:
    bot = api.create(recording_config={**RAW, "video_mixed_mp4": None}, metadata={"org": "acme"}, bot_name="Archive")
    assert str(uuid.UUID(bot["id"])) == bot["id"]
    assert bot["meeting_url"]["platform"] == "microsoft_teams"
    assert set(bot["meeting_url"]) == {
        "platform", "meeting_id", "meeting_password", "organizer_id", "tenant_id", "message_id", "thread_id",
        "business_meeting_id", "business_meeting_password",
    }  # fmt: skip
    config = bot["recording_config"]
    assert config["audio_separate_raw"] == {"metadata": {"purpose": "archive"}}
    assert config["audio_separate_mp3"] is None
    assert config["video_mixed_mp4"] is None
    assert config["participant_events"] == {}
    assert config["retention"] == {"type": "forever"}
    assert bot["automatic_leave"]["waiting_room_timeout"] == 1200
    assert (bot["metadata"], bot["bot_name"]) == ({"org": "acme"}, "Archive")
    assert (bot["recordings"], bot["calendar_meetings"], bot["slack_team"]) == ([], [], None)
    assert "status" not in bot


@pytest.mark.parametrize(
    ("url", "shape"),
    [
        (
            "https://acme.zoom.us/j/123?pwd=x",
            {"platform": "zoom", "meeting_id": "123", "meeting_password": "x"},
        ),
        ("https://meet.google.com/abc-defg-hij", {"platform": "google_meet", "meeting_id": "abc-defg-hij"}),
        (
            "https://acme.webex.com/meet/room",
            {"platform": "webex", "meeting_subdomain": "acme", "meeting_mtid": None, "meeting_path": "room"},
        ),
        ("https://meetings.example.com/1", None),
    ],
)
def test_meeting_url_is_read_back_as_an_object(api: Any, url: str, shape: dict[str, Any] | None) -> None:
    assert api.create(meeting_url=url)["meeting_url"] == shape


def test_the_demo_plays_through_in_twelve_seconds(simulator: Any, api: Any) -> None:
    bot_id = api.create(recording_config=RAW)["id"]
    seen: list[tuple[str, list[str], list[str]]] = []
    for _ in range(14):
        bot = api.get(f"/bot/{bot_id}/")
        artifacts = api.get("/audio_separate/")["results"]
        seen.append(
            (
                codes(bot)[-1],
                [recording["status"]["code"] for recording in bot["recordings"]],
                [artifact["status"]["code"] for artifact in artifacts],
            )
        )
        assert all(
            (artifact["status"]["code"] == "done") == bool(artifact["data"]["download_url"]) for artifact in artifacts
        )
        simulator.advance(0.95)
    shown = list(dict.fromkeys(code for code, _, _ in seen))
    assert shown[0] == "joining_call"
    assert ("done", ["done"], ["processing"]) in seen
    assert seen[-1] == ("done", ["done"], ["done"])
    assert codes(bot) == [
        "joining_call", "in_waiting_room", "in_call_not_recording", "in_call_recording", "call_ended", "done",
    ]  # fmt: skip
    assert shown == [code for code in codes(bot) if code in shown]
    assert bot["status_changes"][4]["sub_code"] == "timeout_exceeded_everyone_left"
    assert all(set(change) == {"code", "message", "sub_code", "created_at"} for change in bot["status_changes"])


def test_the_demo_meeting_has_six_people_of_whom_one_is_silent(simulator: Any, api: Any) -> None:
    bot_id = api.create(recording_config=RAW)["id"]
    simulator.advance(13)
    recording = api.get(f"/bot/{bot_id}/")["recordings"][0]
    shortcuts = recording["media_shortcuts"]
    assert shortcuts["meeting_metadata"]["data"] == {"title": "Quarterly planning", "zoom": None}
    links = shortcuts["participant_events"]["data"]
    people = requests.get(links["participants_download_url"], timeout=60).json()
    events = requests.get(links["participant_events_download_url"], timeout=60).json()
    timeline = requests.get(links["speaker_timeline_download_url"], timeout=60).json()
    assert [person["name"] for person in people] == [
        "Maria Silva", "Alex Kim", "Alex Kim", "Priya Nair", None, "Sam Okoro",
    ]  # fmt: skip
    assert {event["action"] for event in events} == {"join", "speech_on", "speech_off", "leave"}
    assert [event["timestamp"]["relative"] for event in events] == sorted(
        event["timestamp"]["relative"] for event in events
    )
    artifact = api.get("/audio_separate/", recording_id=recording["id"])["results"][0]
    assert set(artifact) == {"id", "recording", "created_at", "status", "metadata", "data", "format"}
    assert (artifact["format"], artifact["metadata"]) == ("raw", {"purpose": "archive"})
    parts = api.parts(artifact["id"])
    assert len(parts) == len(timeline) == 9
    spoken = [part["participant"]["id"] for part in parts]
    assert set(spoken) == {100, 101, 102, 103, 104}
    rejoined = [part["start_timestamp"]["relative"] for part in parts if part["participant"]["id"] == 103]
    assert rejoined[1] - rejoined[0] > 40
    truth = {
        part["id"]: part for part in simulator.control("GET", f"/truth/{recording['id']}")["artifacts"][0]["parts"]
    }
    for part in parts:
        assert set(part) == {"id", "participant", "start_timestamp", "duration", "download_url"}
        assert truth[part["id"]]["length"] == pytest.approx(part["duration"] * 32_000, abs=32)
        start = moment(recording["started_at"]) + timedelta(seconds=part["start_timestamp"]["relative"])
        assert moment(part["start_timestamp"]["absolute"]) == start


def test_both_kinds_of_audio_make_two_artifacts(simulator: Any, api: Any) -> None:
    api.create(recording_config={"audio_separate_raw": {}, "audio_separate_mp3": {}})
    simulator.advance(13)
    artifacts = {artifact["format"]: artifact for artifact in api.get("/audio_separate/")["results"]}
    assert set(artifacts) == {"raw", "ogg"}
    heads = [requests.get(part["download_url"], timeout=60).content[:4] for part in api.parts(artifacts["ogg"]["id"])]
    assert heads.count(b"OggS") == 8
    assert [head[:2] for head in heads if head != b"OggS"] == [b"\xff\xf3"]


@pytest.mark.parametrize(
    ("config", "recordings"),
    [({}, 1), ({"video_mixed_mp4": {}}, 1), ({**RAW, "retention": None}, 0), (None, 0)],
)
def test_without_the_option_there_is_no_artifact(
    simulator: Any, api: Any, config: dict[str, Any] | None, recordings: int
) -> None:
    bot_id = api.create(recording_config=config)["id"]
    simulator.advance(13)
    bot = api.get(f"/bot/{bot_id}/")
    assert codes(bot)[-1] == "done"
    assert len(bot["recordings"]) == recordings
    assert api.get("/audio_separate/")["results"] == []


def test_join_at_is_respected_and_cleared_when_the_bot_joins(simulator: Any, api: Any) -> None:
    now = moment(simulator.control("GET", "/health")["now"])
    join_at = (now + timedelta(minutes=30)).isoformat()
    bot_id = api.create(join_at=join_at)["id"]
    bot = api.get(f"/bot/{bot_id}/")
    assert (bot["join_at"], bot["status_changes"]) == (join_at, [])
    simulator.advance(1800.5)
    bot = api.get(f"/bot/{bot_id}/")
    assert (bot["join_at"], codes(bot)) == (None, ["joining_call"])
    assert moment(bot["status_changes"][0]["created_at"]) == moment(join_at)


def test_only_a_scheduled_bot_can_be_changed_and_cancelled(simulator: Any, api: Any) -> None:
    later = (datetime.now(timezone.utc) + timedelta(minutes=30)).isoformat()
    soon = (datetime.now(timezone.utc) + timedelta(minutes=5)).isoformat()
    scheduled = api.create(join_at=later, metadata={"a": "b"})["id"]
    changed = api.call("PATCH", f"/bot/{scheduled}/", json={"bot_name": "Other"}).json()
    assert (changed["id"], changed["bot_name"], changed["metadata"]) == (scheduled, "Other", {"a": "b"})
    assert api.call("PATCH", f"/bot/{scheduled}/", json={"metadata": {"a": 1}}).status_code == 400
    assert api.call("DELETE", f"/bot/{scheduled}/").status_code == 204
    assert api.call("GET", f"/bot/{scheduled}/").status_code == 404
    for join_at in (None, soon):
        bot_id = api.create(join_at=join_at)["id"]
        answer = api.call("PATCH", f"/bot/{bot_id}/", json={"bot_name": "Other"})
        assert (answer.status_code, answer.json()["code"]) == (400, "update_bot_failed")
        assert api.call("DELETE", f"/bot/{bot_id}/").status_code == 405


def test_leave_call_ends_the_meeting(simulator: Any, api: Any) -> None:
    bot_id = api.create(recording_config=RAW)["id"]
    simulator.advance(4)
    assert api.call("POST", f"/bot/{bot_id}/leave_call/").status_code == 200
    simulator.advance(2)
    bot = api.get(f"/bot/{bot_id}/")
    assert codes(bot)[-2:] == ["call_ended", "done"]
    assert bot["status_changes"][-2]["sub_code"] == "bot_received_leave_call"
    assert bot["recordings"][0]["status"]["code"] == "done"
    answer = api.call("POST", f"/bot/{bot_id}/leave_call/")
    assert (answer.status_code, answer.json()["code"]) == (400, "cannot_command_completed_bot")
    later = (datetime.now(timezone.utc) + timedelta(minutes=30)).isoformat()
    answer = api.call("POST", f"/bot/{api.create(join_at=later)['id']}/leave_call/")
    assert answer.json()["code"] == "cannot_command_unstarted_bot"


def test_retention_expires_the_media(simulator: Any, api: Any) -> None:
    config = {**RAW, "retention": {"type": "timed", "hours": 1}}
    bot_id = api.create(recording_config=config)["id"]
    simulator.advance(13)
    recording = api.get(f"/bot/{bot_id}/")["recordings"][0]
    assert moment(recording["expires_at"]) - moment(recording["completed_at"]) == timedelta(hours=1)
    artifact_id = api.get("/audio_separate/")["results"][0]["id"]
    url = api.parts(artifact_id)[0]["download_url"]
    simulator.advance(3800)
    bot = api.get(f"/bot/{bot_id}/")
    assert codes(bot)[-1] == "media_expired"
    assert bot["recordings"][0]["status"]["code"] == "deleted"
    artifact = api.get(f"/audio_separate/{artifact_id}/")
    assert (artifact["status"]["code"], artifact["data"]["download_url"]) == ("deleted", None)
    assert requests.get(url, timeout=60).status_code == 404


def test_deleted_media_stay_listed_or_are_gone(simulator: Any, api: Any) -> None:
    ids = simulator.add_meeting()
    recording_id = ids["recordings"][0]["id"]
    artifact_id = ids["recordings"][0]["artifacts"][0]["id"]
    artifact_link = api.get(f"/audio_separate/{artifact_id}/")["data"]["download_url"]
    assert api.call("DELETE", f"/audio_separate/{artifact_id}/").status_code == 204
    assert api.get(f"/audio_separate/{artifact_id}/")["status"]["code"] == "deleted"
    assert api.call("DELETE", f"/audio_separate/{artifact_id}/").status_code == 404
    assert requests.get(artifact_link, timeout=60).status_code == 404
    assert api.get(f"/recording/{recording_id}/")["status"]["code"] == "done"
    assert api.call("DELETE", f"/recording/{recording_id}/").status_code == 204
    assert api.get(f"/recording/{recording_id}/")["status"]["code"] == "deleted"
    simulator.control("POST", "/settings", {"deleted": "gone"})
    assert api.call("GET", f"/recording/{recording_id}/").status_code == 404
    assert api.call("GET", f"/audio_separate/{artifact_id}/").status_code == 404
    assert api.get("/audio_separate/")["results"] == []


def test_delete_media_takes_all_media_of_a_bot(simulator: Any, api: Any) -> None:
    bot_id = simulator.add_meeting()["bot_id"]
    answer = api.call("POST", f"/bot/{bot_id}/delete_media/")
    assert answer.status_code == 200
    assert codes(answer.json())[-1] == "media_expired"
    assert answer.json()["recordings"][0]["status"]["code"] == "deleted"


def test_media_in_processing_cannot_be_deleted(simulator: Any, api: Any) -> None:
    ids = simulator.add_meeting(recordings=[{"status": "processing"}])
    assert api.call("DELETE", f"/recording/{ids['recordings'][0]['id']}/").status_code == 409


def test_metadata_of_recordings_and_artifacts_can_be_changed(simulator: Any, api: Any) -> None:
    recording = simulator.add_meeting()["recordings"][0]
    for path in (f"/recording/{recording['id']}/", f"/audio_separate/{recording['artifacts'][0]['id']}/"):
        assert api.call("PATCH", path, json={"metadata": {"a": "b"}}).json()["metadata"] == {"a": "b"}
        assert api.call("PATCH", path, json={"metadata": {"a": 1}}).status_code == 400


def test_links_to_the_dashboard_lead_somewhere(simulator: Any) -> None:
    bot_id = simulator.add_meeting()["bot_id"]
    page = requests.get(f"{simulator.base_url}/dashboard/explorer/bot/{bot_id}", timeout=60)
    assert page.status_code == 200
    assert bot_id in page.text
    assert "call_ended" in page.text
    assert requests.get(f"{simulator.base_url}/dashboard/explorer/bot/none", timeout=60).status_code == 404
