"""Every way in which the simulator can be told to misbehave."""

from __future__ import annotations

import email.utils
import hashlib
import socket
import time
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests

BROKEN = (requests.ConnectionError, requests.exceptions.ChunkedEncodingError)


def read(url: str, **options: Any) -> tuple[bytes, bool]:
    """Fetch as far as it goes; tell whether the connection broke."""
    received = b""
    try:
        with requests.get(url, stream=True, timeout=60, **options) as answer:
            for piece in answer.raw.stream(4096, decode_content=False):
                received += piece
    except BROKEN:
        return received, True
    except Exception as error:
        if "IncompleteRead" in repr(error) or "reset" in repr(error):
            return received, True
        raise
    return received, False


def exchange(url: str, most: int = 10**9) -> bytes:
    """Send a GET over a bare socket and read until the end, or so many bytes."""
    parts = urlsplit(url)
    received = b""
    with socket.create_connection((parts.hostname, parts.port), timeout=60) as connection:
        connection.sendall(
            f"GET {parts.path}?{parts.query} HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n\r\n".encode()
        )
        while len(received) < most and (piece := connection.recv(min(65536, most - len(received)))):
            received += piece
    return received


def test_rules_match_by_origin_method_and_path_and_count(simulator: Any, api: Any) -> None:
    simulator.add_faults(
        {"name": "second", "origin": "api", "method": "GET", "path": "^/api/v1/bot/", "skip": 1, "times": 2,
         "action": {"status": 503}},
        {"origin": "media", "path": "bot", "action": {"status": 500}},
    )  # fmt: skip
    assert [api.call("GET", "/bot/").status_code for _ in range(5)] == [200, 503, 503, 200, 200]
    assert api.call("GET", "/recording/").status_code == 200
    rule, other = simulator.control("GET", "/faults")["rules"]
    assert (rule["name"], rule["matched"], rule["applied"]) == ("second", 3, 2)
    assert (other["name"], other["applied"]) == ("rule-2", 0)
    assert [entry["fault"] for entry in simulator.journal("api")][:4] == [None, "second", "second", None]
    simulator.add_faults({"times": None, "action": {"status": 500}})
    assert {api.call("GET", "/bot/").status_code for _ in range(5)} == {500}
    simulator.control("DELETE", "/faults")
    assert api.call("GET", "/bot/").status_code == 200


def test_a_wrong_rule_is_refused(simulator: Any) -> None:
    for rule in ({"action": {}}, {"path": "(", "action": {"status": 500}}, {"action": {"stats": 500}},
                 {"action": {"body_hex": "f"}}, {"action": {"content": {"clip": "none"}}}):  # fmt: skip
        with pytest.raises(requests.HTTPError, match="422"):
            simulator.add_faults(rule)


def test_status_headers_and_body(simulator: Any, api: Any) -> None:
    simulator.add_faults(
        {"action": {"status": 429, "headers": {"Retry-After": "7"}, "body": {"detail": "slow down"}}},
        {"action": {"status": 429, "retry_after_date": 30}},
        {"action": {"body": "[]"}},
        {"action": {"body_hex": "ff00", "status": 502}},
        {"action": {"headers": {"Set-Cookie": "a=b", "Content-Type": None}}},
    )
    first = api.call("GET", "/bot/")
    assert (first.status_code, first.headers["Retry-After"], first.json()) == (429, "7", {"detail": "slow down"})
    dated = api.call("GET", "/bot/").headers
    gap = email.utils.parsedate_to_datetime(dated["Retry-After"]) - email.utils.parsedate_to_datetime(dated["Date"])
    assert 29 <= gap.total_seconds() <= 31
    assert api.call("GET", "/bot/").json() == []
    assert api.call("GET", "/bot/").content == b"\xff\x00"
    changed = api.call("GET", "/bot/")
    assert (changed.status_code, changed.headers["Set-Cookie"]) == (200, "a=b")
    assert "Content-Type" not in changed.headers
    assert changed.json()["count"] == 0


def test_delay(simulator: Any, api: Any) -> None:
    simulator.add_faults({"action": {"delay": 0.3}})
    started = time.monotonic()
    assert api.call("GET", "/bot/").status_code == 200
    assert time.monotonic() - started >= 0.3


def test_drop_before_and_after_the_work(simulator: Any, api: Any, one_part: Any) -> None:
    body = {"meeting_url": "https://acme.zoom.us/j/1"}
    for when, bots in (("before", 0), ("after", 1)):
        simulator.add_faults({"method": "POST", "action": {"drop": when}})
        with pytest.raises(requests.ConnectionError):
            api.call("POST", "/bot/", json=body)
        assert len(simulator.control("GET", "/state")["bots"]) == bots
    simulator.add_faults({"method": "POST", "action": {"status": 502, "after_work": True}})
    assert api.call("POST", "/bot/", json=body).status_code == 502
    assert len(simulator.control("GET", "/state")["bots"]) == 2
    url = one_part()["url"]
    simulator.add_faults({"origin": "media", "action": {"drop": "before"}})
    assert read(url) == (b"", True)
    assert simulator.journal("media")[-1]["status"] is None


@pytest.mark.parametrize("reset", [True, False])
@pytest.mark.parametrize("at", [0, 1, 65_535, 65_536, 65_537, 99_999])
def test_cut_after_exactly_so_many_bytes(simulator: Any, one_part: Any, at: int, reset: bool) -> None:
    made = one_part()
    whole = requests.get(made["url"], timeout=60).content
    simulator.add_faults({"origin": "media", "action": {"cut": at, "reset": reset}})
    received, broken = read(made["url"])
    assert broken
    assert received == whole[: len(received)]
    entry = simulator.journal("media")[-1]
    assert (entry["sent"], entry["complete"]) == (at, False)
    rest = requests.get(made["url"], headers={"Range": f"bytes={at}-"}, timeout=60)
    assert rest.content == whole[at:]


def test_a_cut_that_closes_cleanly_delivers_what_was_sent(simulator: Any, one_part: Any) -> None:
    url = one_part()["url"]
    simulator.add_faults({"origin": "media", "action": {"cut": 70_000, "reset": False}})
    head, _, body = exchange(url).partition(b"\r\n\r\n")
    assert b"Content-Length: 100000" in head
    assert len(body) == 70_000


def test_cut_on_the_api(simulator: Any, api: Any) -> None:
    simulator.add_faults({"action": {"cut": 10}})
    with pytest.raises(BROKEN):
        api.call("GET", "/bot/")
    assert simulator.journal("api")[-1]["sent"] == 10
    assert api.call("GET", "/bot/").status_code == 200


def test_truncated_json_has_a_length_that_agrees(simulator: Any, api: Any) -> None:
    simulator.add_faults({"action": {"truncate": 10}})
    answer = api.call("GET", "/bot/")
    assert (len(answer.content), answer.headers["Content-Length"]) == (10, "10")


@pytest.mark.parametrize("origin", ["api", "media"])
def test_wrong_missing_and_chunked_lengths(simulator: Any, api: Any, one_part: Any, origin: str) -> None:
    url = one_part()["url"]
    artifact_id = simulator.control("GET", "/state")["bots"][0]["recordings"][0]["artifacts"][0]["id"]
    if origin == "api":
        url = api.get(f"/audio_separate/{artifact_id}/")["data"]["download_url"]
    whole = requests.get(url, timeout=60)
    long = str(len(whole.content) + 50)
    for claim, header in ((int(long), long), (10, "10"), ("none", None), ("chunked", None)):
        simulator.add_faults({"origin": origin, "action": {"content_length": claim}})
        head, _, body = exchange(url).partition(b"\r\n\r\n")
        stated = [line for line in head.decode().lower().split("\r\n") if line.startswith("content-length")]
        assert stated == ([] if header is None else [f"content-length: {header}"])
        assert ("transfer-encoding: chunked" in head.decode().lower()) == (claim == "chunked")
        assert len(body) >= len(whole.content) - 300
    simulator.add_faults({"origin": "media", "action": {"content_length": "chunked"}})
    assert requests.get(one_part()["url"], timeout=60).content[:5]


def test_slow_bodies_and_slow_heads(simulator: Any, api: Any, one_part: Any) -> None:
    url = one_part(audio={"seed": 1, "bytes": 1000})["url"]
    simulator.add_faults({"origin": "media", "action": {"rate": 2000}})
    started = time.monotonic()
    assert len(requests.get(url, timeout=60).content) == 1000
    assert 0.4 < time.monotonic() - started < 60
    simulator.add_faults({"origin": "api", "action": {"head_rate": 10}})
    started = time.monotonic()
    assert exchange(f"{api.base_url}/api/v1/bot/", 8) == b"HTTP/1.1"
    assert 0.6 < time.monotonic() - started < 60


def test_a_stall_lasts_until_the_rules_are_deleted(simulator: Any, one_part: Any) -> None:
    url = one_part()["url"]
    simulator.add_faults({"origin": "media", "action": {"stall": 50_000}})
    with requests.get(url, stream=True, timeout=60) as answer:
        assert len(answer.raw.read(50_000)) == 50_000
        answer.raw._connection.sock.settimeout(0.3)
        with pytest.raises(Exception, match="timed out"):
            answer.raw.read(1)
    simulator.add_faults({"origin": "media", "action": {"stall": 0, "stall_seconds": 0.2}})
    assert len(requests.get(url, timeout=60).content) == 100_000
    simulator.add_faults({"origin": "media", "action": {"stall": 100_000}})
    with requests.get(url, stream=True, timeout=60) as answer:
        assert len(answer.raw.read(99_000)) == 99_000
        simulator.control("DELETE", "/faults")
        assert len(answer.raw.read()) == 1000


@pytest.mark.parametrize("status", [200, 403])
def test_html_pages(simulator: Any, api: Any, one_part: Any, status: int) -> None:
    url = one_part()["url"]
    simulator.add_faults({"times": 2, "action": {"html": status}})
    for answer in (api.call("GET", "/bot/"), requests.get(url, timeout=60)):
        assert answer.status_code == status
        assert answer.headers["Content-Type"].startswith("text/html")
        assert answer.text.startswith("<!DOCTYPE html>")


def test_redirects(simulator: Any, one_part: Any) -> None:
    made = one_part()
    port = simulator.media_host.rpartition(":")[2]
    simulator.add_faults(
        {"origin": "media", "action": {"redirect": f"http://127.0.0.2:{port}{{path}}?{{query}}"}},
        {"origin": "media", "action": {"redirect": "http://169.254.169.254/x", "status": 307}},
    )
    first = requests.get(made["url"], allow_redirects=False, timeout=60)
    assert first.status_code == 302
    assert first.headers["Location"].endswith(urlsplit(made["url"]).query)
    second = requests.get(made["url"], allow_redirects=False, timeout=60)
    assert (second.status_code, second.headers["Location"]) == (307, "http://169.254.169.254/x")


def test_next_can_repeat_or_lead_elsewhere(simulator: Any, api: Any) -> None:
    simulator.add_faults(
        {"path": "/recording/", "action": {"next": "repeat"}},
        {"path": "/recording/", "action": {"next": "https://elsewhere.example/api/v1/recording/?cursor=x"}},
    )
    assert api.get("/recording/", status_code="done")["next"] == f"{api.base_url}/api/v1/recording/?status_code=done"
    assert api.get("/recording/")["next"] == "https://elsewhere.example/api/v1/recording/?cursor=x"


def test_links_can_be_expired(simulator: Any, api: Any, one_part: Any) -> None:
    made = one_part()
    artifact_id = made["recording"]["artifacts"][0]["id"]
    outer = api.get(f"/audio_separate/{artifact_id}/")["data"]["download_url"]
    simulator.add_faults(
        {"path": "/download/", "action": {"expired": True}}, {"origin": "media", "action": {"expired": True}}
    )
    assert requests.get(outer, timeout=60).json() == {"detail": "Token has expired."}
    assert "Request has expired" in requests.get(made["url"], timeout=60).text
    assert requests.get(outer, timeout=60).status_code == requests.get(made["url"], timeout=60).status_code == 200


def test_json_can_be_bent(simulator: Any, api: Any) -> None:
    simulator.add_meeting()
    simulator.add_faults(
        {"path": "/recording/", "action": {"set": {"results.0.id": None, "extra": 1}, "remove": ["next"]}}
    )
    page = api.get("/recording/")
    assert (page["results"][0]["id"], page["extra"], "next" in page) == (None, 1, False)


def test_media_can_ignore_ranges_flip_bits_and_change(simulator: Any, one_part: Any) -> None:
    url = one_part()["url"]
    whole = requests.get(url, timeout=60)
    simulator.add_faults(
        {"origin": "media", "action": {"ignore_range": True}},
        {"origin": "media", "action": {"flip": 70_000}},
        {"origin": "media", "action": {"flip": -1}},
        {"origin": "media", "action": {"etag": '"other"'}},
        {"origin": "media", "action": {"content": {"seed": 8, "bytes": 100_000}}},
        {"origin": "media", "action": {"headers": {"Content-Type": "audio/ogg"}}},
    )
    answer = requests.get(url, headers={"Range": "bytes=5-"}, timeout=60)
    assert (answer.status_code, answer.content) == (200, whole.content)
    for at in (70_000, 99_999):
        flipped = requests.get(url, timeout=60)
        assert flipped.headers["ETag"] == whole.headers["ETag"]
        assert [n for n, (a, b) in enumerate(zip(flipped.content, whole.content, strict=True)) if a != b] == [at]
    assert requests.get(url, headers={"If-Match": whole.headers["ETag"]}, timeout=60).status_code == 412
    changed = requests.get(url, timeout=60)
    assert len(changed.content) == 100_000
    assert changed.headers["ETag"] == f'"{hashlib.md5(changed.content).hexdigest()}"' != whole.headers["ETag"]
    assert requests.get(url, timeout=60).headers["Content-Type"] == "audio/ogg"


def test_a_compression_bomb(simulator: Any, api: Any) -> None:
    simulator.add_faults({"action": {"bomb": 20}})
    answer = api.call("GET", "/bot/")
    assert answer.headers["Content-Encoding"] == "gzip"
    assert int(answer.headers["Content-Length"]) < 100_000
    assert len(answer.content) == 20 * 1024 * 1024
