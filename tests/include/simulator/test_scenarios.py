"""Meetings of any shape, and what the control API tells about them."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
import requests


def artifact_of(ids: dict[str, Any], recording: int = 0, artifact: int = 0) -> str:
    identity: str = ids["recordings"][recording]["artifacts"][artifact]["id"]
    return identity


def test_by_default_a_meeting_has_just_ended(simulator: Any, api: Any) -> None:
    ids = simulator.add_meeting()
    bot = api.get(f"/bot/{ids['bot_id']}/")
    assert bot["status_changes"][-1]["code"] == "done"
    assert bot["recordings"][0]["status"]["code"] == "done"
    assert api.get(f"/audio_separate/{artifact_of(ids)}/")["status"]["code"] == "done"
    assert [part["id"] for part in api.parts(artifact_of(ids))] == ids["recordings"][0]["artifacts"][0]["parts"]


def test_a_past_meeting_has_past_timestamps(simulator: Any, api: Any) -> None:
    ids = simulator.add_meeting(created_at="2026-03-04T09:55:00Z", title="Weekly sync")
    recording = api.get(f"/recording/{ids['recordings'][0]['id']}/")
    assert recording["created_at"] == "2026-03-04T09:55:20.000000Z"
    assert recording["media_shortcuts"]["meeting_metadata"]["data"]["title"] == "Weekly sync"
    assert recording["bot"] == {"id": ids["bot_id"], "metadata": {}}
    assert recording["realtime_endpoints"] == []
    assert recording["desktop_sdk_upload"] is None


def test_ids_can_be_chosen_but_not_twice(simulator: Any, api: Any) -> None:
    meeting = {
        "bot_id": "bot-1",
        "recordings": [{"id": "rec-1", "artifacts": [{"id": "art-1", "parts": [{"id": "p-1"}]}]}],
    }
    ids = simulator.add_meeting(**meeting)
    assert (ids["bot_id"], ids["recordings"][0]["id"], artifact_of(ids)) == ("bot-1", "rec-1", "art-1")
    assert api.parts("art-1")[0]["id"] == "p-1"
    assert len(api.get("/audio_separate/", recording_id="rec-1")["results"]) == 1
    with pytest.raises(requests.HTTPError, match="409"):
        simulator.add_meeting(**meeting)


def test_a_wrong_scenario_is_refused(simulator: Any) -> None:
    for wrong in ({"titel": "x"}, {"pace": 0}, {"metadata": {"a": 1}}, {"recording_config": {"retention": {}}}):
        with pytest.raises(requests.HTTPError, match="422"):
            simulator.add_meeting(**wrong)
    with pytest.raises(requests.HTTPError, match="409"):
        simulator.add_meeting(recordings=[{"artifacts": [{"parts": [{"audio": {"clip": "nobody"}}]}]}])


def test_a_bot_that_fails_has_its_own_timeline(simulator: Any, api: Any) -> None:
    timeline = [
        {"at": 0, "code": "joining_call"},
        {"at": 5, "code": "fatal", "sub_code": "meeting_not_found", "message": "No such meeting"},
    ]
    ids = simulator.add_meeting(timeline=timeline)
    bot = api.get(f"/bot/{ids['bot_id']}/")
    assert [(change["code"], change["sub_code"]) for change in bot["status_changes"]] == [
        ("joining_call", None),
        ("fatal", "meeting_not_found"),
    ]
    assert bot["status_changes"][1]["message"] == "No such meeting"
    assert bot["recordings"] == ids["recordings"] == []


def test_a_live_meeting_plays_at_its_pace(simulator: Any, api: Any) -> None:
    timeline = [{"at": 0, "code": "joining_call"}, {"at": 100, "code": "unheard_of"}, {"at": 200, "code": "done"}]
    ids = simulator.add_meeting(live=True, pace=10, timeline=timeline)

    def codes() -> list[str]:
        return [change["code"] for change in api.get(f"/bot/{ids['bot_id']}/")["status_changes"]]

    assert codes() == ["joining_call"]
    simulator.advance(10)
    assert codes() == ["joining_call", "unheard_of"]
    simulator.advance(10)
    assert codes() == ["joining_call", "unheard_of", "done"]


def test_several_recordings_follow_each_other(simulator: Any, api: Any) -> None:
    artifacts = [{"parts": [{"participant": {"id": 1}, "duration": 30}]}]
    ids = simulator.add_meeting(recordings=[{"artifacts": artifacts}, {"artifacts": artifacts, "title": "Second"}])
    recordings = api.get(f"/bot/{ids['bot_id']}/")["recordings"]
    assert len(recordings) == 2
    assert recordings[0]["started_at"] < recordings[0]["completed_at"] <= recordings[1]["completed_at"]
    assert [one["media_shortcuts"]["meeting_metadata"]["data"]["title"] for one in recordings] == [
        "Quarterly planning",
        "Second",
    ]
    assert (
        len({part["participant"]["id"] for one in ids["recordings"] for part in api.parts(one["artifacts"][0]["id"])})
        == 1
    )


@pytest.mark.parametrize("status", ["failed", "deleted", "paused", "processing", "unheard_of"])
def test_recordings_and_artifacts_end_in_any_status(simulator: Any, api: Any, status: str) -> None:
    ids = simulator.add_meeting(
        recordings=[
            {"status": status, "sub_code": "why"},
            {"artifacts": [{"status": status, "sub_code": "why"}, {"format": "ogg"}]},
        ]
    )
    first, second = (one["id"] for one in ids["recordings"])
    recording = api.get(f"/recording/{first}/")["status"]
    artifact = api.get(f"/audio_separate/{artifact_of(ids, 1)}/")
    other = api.get(f"/audio_separate/{artifact_of(ids, 1, 1)}/")
    assert recording["code"] == artifact["status"]["code"] == status
    if status != "processing":
        assert recording["sub_code"] == artifact["status"]["sub_code"] == "why"
    assert artifact["data"]["download_url"] is None
    assert (other["status"]["code"], other["format"]) == ("done", "ogg")
    assert len(api.get("/audio_separate/", recording_id=second)["results"]) == 2


def test_an_artifact_can_be_listed_late(simulator: Any, api: Any) -> None:
    start = datetime.now(timezone.utc) - timedelta(hours=1)
    artifact = {"listed_after": 4000, "done_after": 4500, "parts": []}
    ids = simulator.add_meeting(created_at=start.isoformat(), recordings=[{"artifacts": [artifact]}])
    assert api.get("/audio_separate/")["results"] == []
    assert api.call("GET", f"/audio_separate/{artifact_of(ids)}/").status_code == 404
    simulator.advance(600)
    assert [one["status"]["code"] for one in api.get("/audio_separate/")["results"]] == ["processing"]
    simulator.advance(600)
    assert api.parts(artifact_of(ids)) == []


def test_expiry_can_be_near_past_or_absent(simulator: Any, api: Any) -> None:
    past = simulator.add_meeting(recordings=[{"expires_at": "2026-01-01T00:00:00Z"}])
    never = simulator.add_meeting()
    assert api.get(f"/recording/{past['recordings'][0]['id']}/")["status"]["code"] == "deleted"
    assert api.get(f"/recording/{never['recordings'][0]['id']}/")["expires_at"] is None


def test_participants_may_be_null_hostile_and_carry_more(simulator: Any, api: Any) -> None:
    names = ["../../etc/passwd", "a/b\\c\x00d", "😀" * 300, "\u202egnp.exe", "", None]
    people = [
        {
            "id": 7,
            "name": name,
            "is_host": None,
            "platform": None,
            "extra_data": {"zoom": {"conf_user_id": "x"}},
            "new": [1],
        }
        for name in names
    ]
    parts: list[dict[str, Any]] = [{"participant": person, "relative": -1.5, "duration": 0} for person in people]
    parts.append({"participant": None, "audio": {"hex": "ff"}})
    parts.append({"participant": {"id": None}, "absolute": "2026-03-04T09:55:41+00:00", "duration": 1.25})
    ids = simulator.add_meeting(recordings=[{"artifacts": [{"parts": parts}]}])
    shown = api.parts(artifact_of(ids))
    assert [part["participant"] for part in shown[:6]] == people
    assert shown[0]["start_timestamp"]["relative"] == -1.5
    assert shown[6]["participant"] is None
    assert shown[7]["participant"] == {"id": None, "name": None, "is_host": None, "platform": None, "extra_data": None}
    assert shown[7]["start_timestamp"]["absolute"] == "2026-03-04T09:55:41+00:00"
    assert shown[7]["duration"] == 1.25


def test_a_name_with_half_a_surrogate_pair_is_in_every_list(simulator: Any, api: Any) -> None:
    parts = [{"participant": {"id": 7, "name": "\udc80lone"}, "duration": 1}]
    ids = simulator.add_meeting(recordings=[{"artifacts": [{"parts": parts}]}])
    links = api.get(f"/recording/{ids['recordings'][0]['id']}/")["media_shortcuts"]["participant_events"]["data"]
    people = requests.get(links["participants_download_url"], timeout=60).json()
    assert [one["name"] for one in people] == ["\udc80lone"]
    for kind in ("participant_events", "speaker_timeline"):
        listed = requests.get(links[f"{kind}_download_url"], timeout=60).json()
        assert {one["participant"]["name"] for one in listed} == {"\udc80lone"}


def test_json_of_every_object_can_be_bent(simulator: Any, api: Any) -> None:
    bend = {"overrides": {"id": 5, "new": {"a": None}}, "omit": ["metadata", "duration"]}
    ids = simulator.add_meeting(
        overrides={"new": 1},
        omit=["recording_config"],
        recordings=[{**bend, "artifacts": [{**bend, "parts": [{**bend, "participant": {"id": 1}}]}]}],
    )
    bot = api.get(f"/bot/{ids['bot_id']}/")
    assert (bot["new"], "recording_config" in bot) == (1, False)
    recording = api.get(f"/recording/{ids['recordings'][0]['id']}/")
    artifact = api.get(f"/audio_separate/{artifact_of(ids)}/")
    part = api.parts(artifact_of(ids))[0]
    for data in (recording, artifact, part):
        assert (data["id"], data["new"], "metadata" in data) == (5, {"a": None}, False)
    assert "duration" not in part


def test_part_ids_can_change_with_each_list(simulator: Any, api: Any) -> None:
    parts = [{"id": "p", "participant": {"id": 1}, "volatile_id": True}]
    artifact_id = artifact_of(simulator.add_meeting(recordings=[{"artifacts": [{"parts": parts}]}]))
    assert [api.parts(artifact_id)[0]["id"] for _ in range(2)] == ["p-1", "p-2"]


def test_audio_comes_in_five_forms(simulator: Any, api: Any) -> None:
    sounds = [
        {"clip": "maria-a"},
        {"clip": "maria-a", "encoded": True},
        {"seed": 1, "bytes": 70_001, "head_hex": "4f676753"},
        {"tone_hz": 440, "seconds": 2.5},
        {"hex": "00ff"},
    ]
    parts = [{"participant": {"id": 1}, "audio": sound} for sound in sounds]
    ids = simulator.add_meeting(recordings=[{"artifacts": [{"parts": parts}]}])
    bodies = [requests.get(part["download_url"], timeout=60).content for part in api.parts(artifact_of(ids))]
    truth = simulator.control("GET", f"/truth/{ids['recordings'][0]['id']}")["artifacts"][0]["parts"]
    assert [hashlib.sha256(body).hexdigest() for body in bodies] == [part["sha256"] for part in truth]
    assert [len(body) for body in bodies[2:]] == [70_001, 80_000, 2]
    assert bodies[1][:4] == bodies[2][:4] == b"OggS"
    assert truth[3]["duration"] == 2.5


def test_a_list_of_parts_can_be_very_long(simulator: Any, api: Any) -> None:
    part = {"participant": {"id": 1}, "audio": {"seed": 0, "bytes": 10}, "repeat": 5000, "spacing": 0.5}
    ids = simulator.add_meeting(recordings=[{"artifacts": [{"parts": [part]}]}])
    assert ids["recordings"][0]["artifacts"][0]["parts_count"] == 5000
    parts = api.parts(artifact_of(ids))
    assert len({part["id"] for part in parts}) == 5000
    assert parts[-1]["start_timestamp"]["relative"] == 2499.5
    bodies = {requests.get(parts[index]["download_url"], timeout=60).content for index in (0, 1, 4999)}
    assert len(bodies) == 3


def test_a_bot_made_later_lives_the_meeting_that_waits_for_it(simulator: Any, api: Any) -> None:
    url = "https://acme.zoom.us/j/42"
    ids = simulator.add_meeting(
        dispatch="on_create", meeting_url=url, timeline=[{"at": 0, "code": "fatal", "sub_code": "meeting_locked"}]
    )
    assert ids == {"meeting_url": url, "dispatch": "on_create"}
    bot = api.get(f"/bot/{api.create(meeting_url=url, metadata={'a': 'b'})['id']}/")
    assert [change["sub_code"] for change in bot["status_changes"]] == ["meeting_locked"]
    assert bot["metadata"] == {"a": "b"}
    assert api.get(f"/bot/{api.create()['id']}/")["status_changes"][0]["code"] == "joining_call"


def test_the_journal_tells_what_was_asked_without_secrets(simulator: Any, api: Any, one_part: Any) -> None:
    url = one_part()["url"]
    simulator.control("DELETE", "/journal")
    api.call("POST", "/bot/", json={"meeting_url": "https://acme.zoom.us/j/1"}, headers={"Idempotency-Key": "k"})
    requests.get(url, headers={"Range": "bytes=10-", "If-Match": "*", "Cookie": "a=b"}, timeout=60)
    first, second = simulator.journal()
    assert (first["number"], first["origin"], first["method"], first["path"]) == (1, "api", "POST", "/api/v1/bot/")
    assert (first["status"], first["authorization"], first["idempotency_key"]) == (201, True, "k")
    assert first["body_bytes"] > 0
    assert {"authorization", "idempotency-key"} <= set(first["headers"])
    assert (second["origin"], second["status"], second["sent"], second["complete"]) == ("media", 206, 99_990, True)
    assert (second["authorization"], second["cookie"], second["range"], second["if_match"]) == (
        False, True, "bytes=10-", "*",
    )  # fmt: skip
    assert "Signature=-" in second["query"]
    assert 0 <= first["time"] <= second["time"]
    text = json.dumps(simulator.journal())
    assert simulator.api_key not in text
    assert url.partition("Signature=")[2][:20] not in text
    assert [entry["origin"] for entry in simulator.journal("media")] == ["media"]
    assert simulator.control("GET", "/journal?since=1")["count"] == 1


def test_state_shows_everything_and_reset_forgets_it(simulator: Any, api: Any) -> None:
    simulator.add_meeting(dispatch="on_create", meeting_url="https://acme.zoom.us/j/9")
    ids = simulator.add_meeting()
    state = simulator.control("GET", "/state")
    assert state["bots"][0]["id"] == ids["bot_id"]
    assert state["bots"][0]["recordings"][0]["artifacts"][0]["parts"] == 9
    assert state["waiting"] == ["https://acme.zoom.us/j/9"]
    simulator.control("POST", "/settings", {"page_size": 1, "speed": 5})
    simulator.reset()
    state = simulator.control("GET", "/state")
    assert (state["bots"], state["waiting"], simulator.journal()) == ([], [], [])
    assert simulator.control("POST", "/settings", {})["page_size"] == 100
    assert simulator.control("GET", "/health")["status"] == "ok"
    assert api.call("GET", f"/bot/{ids['bot_id']}/").status_code == 404
