"""Paging and filters of the three lists."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import requests

DAY = datetime(2026, 3, 4, 10, tzinfo=timezone.utc)


def meetings(simulator: Any, count: int, **members: Any) -> list[dict[str, Any]]:
    """Make meetings on consecutive days."""
    return [
        simulator.add_meeting(created_at=(DAY + timedelta(days=day)).isoformat(), **members) for day in range(count)
    ]


@pytest.mark.parametrize("kind", ["recording", "audio_separate"])
def test_cursor_pages_lead_through_everything_newest_first(simulator: Any, api: Any, kind: str) -> None:
    ids = [made["recordings"][0] for made in meetings(simulator, 5)]
    simulator.control("POST", "/settings", {"page_size": 2})
    wanted = [one["id"] if kind == "recording" else one["artifacts"][0]["id"] for one in reversed(ids)]
    page = api.get(f"/{kind}/", status_code="done")
    pages = [page]
    while page["next"]:
        parts = urlsplit(page["next"])
        assert page["next"].startswith(f"{api.base_url}/api/v1/{kind}/?")
        assert re.search(r"cursor=[^&]*%[0-9A-F]{2}", parts.query)
        assert parse_qs(parts.query)["status_code"] == ["done"]
        page = api.session.get(page["next"], timeout=60).json()
        pages.append(page)
    assert [[one["id"] for one in page["results"]] for page in pages] == [wanted[:2], wanted[2:4], wanted[4:]]
    assert all(set(page) == {"next", "previous", "results"} for page in pages)
    assert pages[0]["previous"] is None
    back = api.session.get(pages[2]["previous"], timeout=60).json()
    assert [one["id"] for one in back["results"]] == wanted[2:4]
    back = api.session.get(back["previous"], timeout=60).json()
    assert [one["id"] for one in back["results"]] == wanted[:2]


def test_cursor_is_stable_while_newer_entries_arrive(simulator: Any, api: Any) -> None:
    old = [made["recordings"][0]["id"] for made in meetings(simulator, 3)]
    simulator.control("POST", "/settings", {"page_size": 2})
    page = api.get("/recording/")
    simulator.add_meeting()
    rest = api.session.get(page["next"], timeout=60).json()
    assert [one["id"] for one in page["results"] + rest["results"]] == list(reversed(old))


def test_a_wrong_cursor_or_page_is_not_found(api: Any) -> None:
    assert api.call("GET", "/recording/", params={"cursor": "?"}).json() == {"detail": "Invalid cursor"}
    for page in ("0", "2", "x"):
        assert api.call("GET", "/bot/", params={"page": page}).json() == {"detail": "Invalid page."}


def test_lists_filter_by_time_parent_and_status(simulator: Any, api: Any) -> None:
    made = meetings(simulator, 3)
    failed = simulator.add_meeting(recordings=[{"status": "failed", "sub_code": "broken"}])
    ids = [one["recordings"][0]["id"] for one in made]

    def found(path: str, **query: Any) -> set[str]:
        results = api.get(path, **query)["results"]
        return {one["recording"]["id"] if "recording" in one else one["id"] for one in results}

    for path in ("/recording/", "/audio_separate/"):
        assert found(path, created_at_after="2026-03-05T00:00:00Z", created_at_before="2026-03-06T00:00:00Z") == {
            ids[1]
        }
        exact = api.get(path, created_at_before="2026-03-05T00:00:00Z")["results"][0]["created_at"]
        assert found(path, created_at_after=exact, created_at_before=exact) == {ids[0]}
    assert found("/audio_separate/", recording_id=ids[2]) == {ids[2]}
    assert found("/recording/", bot_id=made[2]["bot_id"]) == {ids[2]}
    assert found("/recording/", status_code="failed") == {failed["recordings"][0]["id"]}
    assert found("/recording/", status_code="done") == set(ids)
    assert found("/recording/", desktop_sdk_upload_id=ids[0]) == set()


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("/audio_separate/", {"recording_id": "not-a-uuid"}),
        ("/recording/", {"bot_id": "not-a-uuid"}),
        ("/recording/", {"status_code": "deleted"}),
        ("/audio_separate/", {"status_code": "paused"}),
        ("/recording/", {"created_at_after": "yesterday"}),
        ("/bot/", {"join_at_after": "yesterday"}),
    ],
)
def test_wrong_filters_are_refused_by_field(api: Any, path: str, query: dict[str, str]) -> None:
    answer = api.call("GET", path, params=query)
    assert answer.status_code == 400
    assert set(answer.json()) == set(query)


def test_bots_are_listed_by_page_number(simulator: Any, api: Any) -> None:
    made = [one["bot_id"] for one in meetings(simulator, 5, metadata={"org": "acme"})]
    simulator.control("POST", "/settings", {"page_size": 2})
    first = api.get("/bot/", metadata__org="acme")
    second = api.session.get(first["next"], timeout=60).json()
    third = api.session.get(second["next"], timeout=60).json()
    assert [one["id"] for page in (first, second, third) for one in page["results"]] == list(reversed(made))
    assert (first["count"], first["previous"], third["next"]) == (5, None, None)
    assert parse_qs(urlsplit(first["next"]).query) == {"metadata__org": ["acme"], "page": ["2"]}
    assert parse_qs(urlsplit(second["previous"]).query) == {"metadata__org": ["acme"]}


def test_bots_filter_by_metadata_status_platform_and_url(simulator: Any, api: Any) -> None:
    zoom = "https://acme.zoom.us/j/1"
    done = simulator.add_meeting(metadata={"a": "1", "b": "2"})["bot_id"]
    live = simulator.add_meeting(metadata={"a": "1"}, live=True, meeting_url=zoom)["bot_id"]

    def found(query: Any) -> set[str]:
        answer = requests.get(
            f"{api.base_url}/api/v1/bot/", params=query, headers={"Authorization": simulator.api_key}, timeout=60
        )
        return {one["id"] for one in answer.json()["results"]}

    assert found({"metadata__a": "1"}) == {done, live}
    assert found({"metadata__a": "1", "metadata__b": "2"}) == {done}
    assert found({"metadata__a": "x"}) == set()
    assert found({"status": "done"}) == {done}
    assert found([("status", "done"), ("status", "joining_call")]) == {done, live}
    assert found({"platform": "zoom"}) == {live}
    assert found({"meeting_url": zoom}) == {live}
