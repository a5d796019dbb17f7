"""Auth, firewall, slashes, validation, idempotency and rate limits."""

from __future__ import annotations

import concurrent.futures
import email.utils
import time
from typing import Any

import pytest
import requests

URL = "https://teams.microsoft.com/l/meetup-join/19%3ax/0"


@pytest.mark.parametrize("form", ["{key}", "Token {key}"])
def test_key_is_accepted_bare_and_with_token(simulator: Any, form: str) -> None:
    headers = {"Authorization": form.format(key=simulator.api_key)}
    assert requests.get(f"{simulator.base_url}/api/v1/bot/", headers=headers, timeout=60).status_code == 200


@pytest.mark.parametrize("value", [None, "wrong", "Bearer simulator-key", "Token", ""])
def test_any_other_key_is_refused(simulator: Any, value: str | None) -> None:
    headers = {} if value is None else {"Authorization": value}
    for path in ("/bot/", "/recording/", "/audio_separate/", "/bot/x/"):
        answer = requests.get(f"{simulator.base_url}/api/v1{path}", headers=headers, timeout=60)
        assert (answer.status_code, answer.json()) == (401, {"detail": "Invalid token."})


def test_both_slash_forms_answer_directly(api: Any) -> None:
    for path in ("/bot", "/bot/", "/recording", "/audio_separate"):
        assert api.call("GET", path, allow_redirects=False).status_code == 200
    assert api.call("POST", "/bot", json={"meeting_url": URL}, allow_redirects=False).status_code == 201


def test_every_answer_has_a_date_of_the_virtual_clock(simulator: Any, api: Any) -> None:
    before = email.utils.parsedate_to_datetime(api.call("GET", "/bot/").headers["Date"])
    simulator.advance(3600)
    after = email.utils.parsedate_to_datetime(api.call("GET", "/bot/nothing/").headers["Date"])
    assert 3600 <= (after - before).total_seconds() < 3610
    assert "Date" in requests.get(f"http://{simulator.media_host}/x", timeout=60).headers


@pytest.mark.parametrize("spoilt", [{"data": b"null"}, {"headers": {"Content-Type": "application/json"}}])
def test_get_with_a_body_or_a_content_type_meets_the_firewall(api: Any, spoilt: dict[str, Any]) -> None:
    answer = api.call("GET", "/bot/", **spoilt)
    assert answer.status_code == 403
    assert answer.headers["Content-Type"].startswith("text/html")
    assert answer.text.startswith("<!DOCTYPE html>")


def test_inside_addresses_in_a_payload_meet_the_firewall(api: Any) -> None:
    for url in ("http://localhost:8080/x", "https://10.0.0.1/x", "http://[::1]/"):
        assert api.call("POST", "/bot/", json={"meeting_url": url}).status_code == 403


def test_unknown_things_are_not_found(api: Any) -> None:
    for path in ("/bot/b0b3d1f8-5f3a-4a3e-9c1d-2f7a8e6c5d40/", "/recording/x/", "/audio_separate/x/", "/nothing/"):
        answer = api.call("GET", path)
        assert (answer.status_code, answer.json()) == (404, {"detail": "Not found."})
    assert api.call("PUT", "/bot/").json() == {"detail": 'Method "PUT" not allowed.'}


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"meeting_url": None}, {"meeting_url": ["This field may not be null."]}),
        ({"meeting_url": "  "}, {"meeting_url": ["This field may not be blank."]}),
        ({"meeting_url": "meeting"}, {"meeting_url": ["Enter a valid URL."]}),
        ({"metadata": {"a": 1}}, {"metadata": {"a": ["Not a valid string."]}}),
        (
            {"metadata": {"a": "x" * 501}},
            {"metadata": {"a": ["Ensure this field has no more than 500 characters."]}},
        ),
        (
            {"recording_config": {"audio_separate_raw": {"metadata": {"a": True}}}},
            {"recording_config": {"audio_separate_raw": {"metadata": {"a": ["Not a valid string."]}}}},
        ),
        (
            {"recording_config": {"audio_separate_raw": "yes"}},
            {"recording_config": {"audio_separate_raw": ["Expected an object or null."]}},
        ),
        (
            {"recording_config": {"retention": {"type": "timed", "hours": 0}}},
            {"recording_config": {"retention": {"hours": ["Ensure this value is greater than or equal to 1."]}}},
        ),
        (
            {"recording_config": {"retention": {"type": "weekly"}}},
            {"recording_config": {"retention": {"type": ['"weekly" is not a valid choice.']}}},
        ),
        (
            {"automatic_leave": {"waiting_room_timeout": 10}},
            {"automatic_leave": {"waiting_room_timeout": ["Ensure this value is greater than or equal to 30."]}},
        ),
        ({"variant": {"webex": "native"}}, {"variant": {"webex": ['"native" is not a valid choice.']}}),
        ({"bot_name": "x" * 101}, {"bot_name": ["Ensure this field has no more than 100 characters."]}),
    ],
)
def test_create_refuses_with_a_field_map(api: Any, fields: dict[str, Any], wrong: dict[str, Any]) -> None:
    answer = api.call("POST", "/bot/", json={"meeting_url": URL, **fields})
    assert (answer.status_code, answer.json()) == (400, wrong)


def test_create_refuses_legacy_fields_missing_urls_and_odd_times(api: Any) -> None:
    answer = api.call("POST", "/bot/", json={"transcription_options": {}, "join_at": ""})
    assert answer.status_code == 400
    assert set(answer.json()) == {"transcription_options", "join_at", "meeting_url"}
    assert answer.json()["transcription_options"][0].startswith("This field is not allowed.")


def test_create_refuses_what_is_no_json_object(api: Any) -> None:
    headers = {"Content-Type": "application/json"}
    assert "JSON parse error" in api.call("POST", "/bot/", data=b"{", headers=headers).json()["detail"]
    assert "non_field_errors" in api.call("POST", "/bot/", json=[1]).json()
    assert api.call("POST", "/bot/", data=b"x", headers={"Content-Type": "text/plain"}).status_code == 415
    assert api.call("POST", "/bot/", data={"meeting_url": URL}).status_code == 201


def test_same_idempotency_key_replays_the_answer_for_an_hour(simulator: Any, api: Any) -> None:
    def create(key: str) -> requests.Response:
        answer: requests.Response = api.call(
            "POST", "/bot/", json={"meeting_url": URL}, headers={"Idempotency-Key": key}
        )
        return answer

    first, again, other = create("a"), create("a"), create("b")
    assert first.status_code == again.status_code == 201
    assert first.content == again.content
    assert other.json()["id"] != first.json()["id"]
    simulator.advance(3601)
    assert create("a").json()["id"] != first.json()["id"]
    assert [entry["replayed"] for entry in simulator.journal("api")] == [False, True, False, False]
    assert len(simulator.control("GET", "/state")["bots"]) == 3


def test_idempotency_key_in_flight_conflicts(simulator: Any, api: Any) -> None:
    simulator.add_faults({"path": "/bot/", "action": {"delay": 10}})
    headers = {"Idempotency-Key": "slow"}

    def create() -> int:
        status: int = requests.post(
            f"{simulator.base_url}/api/v1/bot/",
            json={"meeting_url": URL},
            headers={**headers, "Authorization": simulator.api_key},
            timeout=60,
        ).status_code
        return status

    with concurrent.futures.ThreadPoolExecutor() as pool:
        first = pool.submit(create)
        while not simulator.journal("api"):
            time.sleep(0.02)
        assert create() == 409
        assert first.result() == 201
    assert create() == 201
    assert len(simulator.control("GET", "/state")["bots"]) == 1


def test_507_is_replayed_for_its_key_only(simulator: Any, api: Any) -> None:
    simulator.add_faults(
        {"path": "/bot/", "method": "POST", "action": {"status": 507, "headers": {"Retry-After": "3"}}}
    )
    statuses = [
        api.call("POST", "/bot/", json={"meeting_url": URL}, headers={"Idempotency-Key": key})
        for key in ("a", "a", "b")
    ]
    assert [answer.status_code for answer in statuses] == [507, 507, 201]
    assert [answer.headers.get("Retry-After") for answer in statuses] == ["3", "3", None]


def test_work_done_behind_a_dropped_answer_is_replayed(simulator: Any, api: Any) -> None:
    simulator.add_faults({"path": "/bot/", "method": "POST", "action": {"drop": "after"}})
    options = {"json": {"meeting_url": URL}, "headers": {"Idempotency-Key": "lost"}}
    with pytest.raises(requests.ConnectionError):
        api.call("POST", "/bot/", **options)
    assert api.call("POST", "/bot/", **options).status_code == 201
    assert len(simulator.control("GET", "/state")["bots"]) == 1


@pytest.mark.parametrize(("path", "limit"), [("/bot/", 60), ("/bot/x/", 300)])
def test_requests_above_the_rate_are_throttled(api: Any, path: str, limit: int) -> None:
    statuses = [api.call("GET", path).status_code for _ in range(limit)]
    assert set(statuses) <= {200, 404}
    refused = api.call("GET", path)
    assert refused.status_code == 429
    assert 1 <= int(refused.headers["Retry-After"]) <= 60
    assert refused.json()["detail"].startswith("Request was throttled.")


def test_create_has_a_rate_of_its_own_and_limits_can_be_off(simulator: Any, api: Any) -> None:
    body = {"meeting_url": URL}
    assert {api.call("POST", "/bot/", json=body).status_code for _ in range(60)} == {201}
    assert api.call("POST", "/bot/", json=body).status_code == 429
    assert api.call("GET", "/bot/").status_code == 200
    simulator.control("POST", "/settings", {"rate_limit": False})
    assert api.call("POST", "/bot/", json=body).status_code == 201
