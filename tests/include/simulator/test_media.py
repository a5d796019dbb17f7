"""Signed links, ranges, conditions and headers of the media host; expiry on both."""

from __future__ import annotations

import base64
import hashlib
import re
import zlib
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import psutil
import pytest
import requests


def get(url: str, **headers: str) -> requests.Response:
    return requests.get(url, headers={"Accept-Encoding": "identity", **headers}, timeout=60)


def test_a_body_arrives_whole_with_its_headers(one_part: Any) -> None:
    made = one_part()
    answer = get(made["url"])
    assert answer.status_code == 200
    assert len(answer.content) == made["truth"]["length"] == 100_000
    assert hashlib.sha256(answer.content).hexdigest() == made["truth"]["sha256"]
    assert answer.headers["Content-Length"] == "100000"
    assert answer.headers["ETag"] == f'"{hashlib.md5(answer.content).hexdigest()}"'
    assert answer.headers["Accept-Ranges"] == "bytes"
    assert answer.headers["Content-Type"] == "binary/octet-stream"
    assert {"Last-Modified", "Date", "x-amz-request-id"} <= set(answer.headers)


def test_links_are_signed_and_new_each_time(simulator: Any, api: Any, one_part: Any) -> None:
    made = one_part()
    artifact_id = made["recording"]["artifacts"][0]["id"]
    again = api.parts(artifact_id)[0]
    assert again["id"] == made["part"]["id"]
    assert again["download_url"] != made["url"]
    assert urlsplit(again["download_url"])[:3] == urlsplit(made["url"])[:3]
    assert urlsplit(made["url"]).netloc == simulator.media_host
    assert {"AWSAccessKeyId", "Signature", "Expires"} <= set(parse_qs(urlsplit(made["url"]).query))
    links = {api.get(f"/audio_separate/{artifact_id}/")["data"]["download_url"] for _ in range(3)}
    assert len(links) == 3


@pytest.mark.parametrize(
    ("wanted", "start", "stop"),
    [("bytes=0-0", 0, 1), ("bytes=10-19", 10, 20), ("bytes=99990-", 99990, 100_000), ("bytes=-5", 99995, 100_000),
     ("bytes=65530-65550", 65530, 65551), ("bytes=99999-200000", 99999, 100_000)],
)  # fmt: skip
def test_a_range_is_answered_with_206(one_part: Any, wanted: str, start: int, stop: int) -> None:
    made = one_part()
    whole = get(made["url"]).content
    answer = get(made["url"], Range=wanted)
    assert answer.status_code == 206
    assert answer.headers["Content-Range"] == f"bytes {start}-{stop - 1}/100000"
    assert answer.content == whole[start:stop]


@pytest.mark.parametrize("wanted", ["bytes=100000-", "bytes=200000-300000"])
def test_a_range_behind_the_end_is_answered_with_416(one_part: Any, wanted: str) -> None:
    answer = get(one_part()["url"], Range=wanted)
    assert answer.status_code == 416
    assert answer.headers["Content-Range"] == "bytes */100000"
    assert "<Code>InvalidRange</Code>" in answer.text


@pytest.mark.parametrize("wanted", ["bytes=5-2", "bytes=0-1,4-5", "lines=1-2", "bytes=-"])
def test_a_range_that_s3_ignores_is_answered_with_200(one_part: Any, wanted: str) -> None:
    assert get(one_part()["url"], Range=wanted).status_code == 200


def test_conditions_are_checked(one_part: Any) -> None:
    made = one_part()
    etag = get(made["url"]).headers["ETag"]
    assert get(made["url"], **{"If-Match": etag, "Range": "bytes=1-"}).status_code == 206
    refused = get(made["url"], **{"If-Match": '"other"', "Range": "bytes=1-"})
    assert refused.status_code == 412
    assert "<Code>PreconditionFailed</Code>" in refused.text
    assert get(made["url"], **{"If-Range": etag, "Range": "bytes=1-"}).status_code == 206
    assert get(made["url"], **{"If-Range": '"other"', "Range": "bytes=1-"}).status_code == 200
    assert get(made["url"], **{"If-None-Match": etag}).status_code == 304


def test_etags_can_be_weak_opaque_or_missing(one_part: Any) -> None:
    assert re.fullmatch(r'W/"[0-9a-f]{32}"', get(one_part(etag="weak")["url"]).headers["ETag"])
    assert re.fullmatch(r'"[0-9a-f]{32}-1"', get(one_part(etag="opaque")["url"]).headers["ETag"])
    assert "ETag" not in get(one_part(etag="none")["url"]).headers
    weak = one_part(etag="weak")["url"]
    assert get(weak, **{"If-Match": get(weak).headers["ETag"]}).status_code == 412


def test_checksums_are_stated_on_request(one_part: Any) -> None:
    body = get(one_part()["url"]).content
    expected = {
        "sha256": ("x-amz-checksum-sha256", hashlib.sha256(body).digest()),
        "crc32": ("x-amz-checksum-crc32", zlib.crc32(body).to_bytes(4, "big")),
        "md5": ("Content-MD5", hashlib.md5(body).digest()),
    }
    for kind, (header, digest) in expected.items():
        assert get(one_part(checksum=kind)["url"]).headers[header] == base64.b64encode(digest).decode()


def test_a_body_without_length_ends_with_the_connection(one_part: Any) -> None:
    answer = get(one_part(content_length=False)["url"])
    assert "Content-Length" not in answer.headers
    assert len(answer.content) == 100_000


def test_ranges_and_content_types_can_be_off(one_part: Any) -> None:
    answer = get(one_part(ranges=False, media_type=None)["url"], Range="bytes=10-")
    assert (answer.status_code, len(answer.content)) == (200, 100_000)
    assert "Content-Type" not in answer.headers
    assert get(one_part(media_type="text/html")["url"]).headers["Content-Type"] == "text/html"


def test_an_empty_body_is_empty(one_part: Any) -> None:
    made = one_part(audio={"hex": ""}, duration=3)
    answer = get(made["url"])
    assert (answer.status_code, answer.content, answer.headers["Content-Length"]) == (200, b"", "0")
    assert made["truth"]["sha256"] == hashlib.sha256().hexdigest()


def test_a_key_in_the_request_is_refused_as_s3_does_and_noted(simulator: Any, one_part: Any) -> None:
    made = one_part()
    answer = get(made["url"], Authorization=simulator.api_key)
    assert answer.status_code == 400
    assert "Only one auth mechanism allowed" in answer.text
    assert [entry["authorization"] for entry in simulator.journal("media")] == [True]


def test_a_key_on_a_download_of_the_api_host_is_noted_only(simulator: Any, api: Any) -> None:
    artifact_id = simulator.add_meeting()["recordings"][0]["artifacts"][0]["id"]
    link = api.get(f"/audio_separate/{artifact_id}/")["data"]["download_url"]
    assert get(link, Authorization="anything").status_code == 200
    assert get(link).status_code == 200
    noted = [entry for entry in simulator.journal("api") if "/download/" in entry["path"]]
    assert [entry["authorization"] for entry in noted] == [True, False]
    assert {entry["query"] for entry in noted} == {"token=-"}


def test_the_signature_is_bound_to_get_and_to_the_path(one_part: Any) -> None:
    url = one_part()["url"]
    head = requests.head(url, timeout=60)
    assert (head.status_code, head.content) == (403, b"")
    assert requests.put(url, data=b"x", timeout=60).status_code == 403
    assert "SignatureDoesNotMatch" in get(url.replace("/0-0?", "/0-1?")).text
    assert "SignatureDoesNotMatch" in get(re.sub(r"Expires=\d+", "Expires=9999999999", url)).text
    assert "<Code>AccessDenied</Code>" in get(url.partition("?")[0]).text


def test_expired_links_are_refused_by_both_hosts(simulator: Any, api: Any, one_part: Any) -> None:
    made = one_part()
    artifact_id = made["recording"]["artifacts"][0]["id"]
    outer = api.get(f"/audio_separate/{artifact_id}/")["data"]["download_url"]
    simulator.advance(17_990)
    assert get(outer).status_code == get(made["url"]).status_code == 200
    simulator.advance(20)
    refused = get(outer)
    assert (refused.status_code, refused.json()) == (403, {"detail": "Token has expired."})
    refused = get(made["url"])
    assert refused.status_code == 403
    assert refused.headers["Content-Type"] == "application/xml"
    assert "<Code>AccessDenied</Code><Message>Request has expired</Message>" in refused.text
    assert get(outer.partition("?")[0] + "?token=forged").json() == {"detail": "Invalid token."}
    assert get(api.parts(artifact_id)[0]["download_url"]).status_code == 200


def test_links_of_an_artifact_can_live_shorter(simulator: Any, api: Any) -> None:
    artifact = {"link_seconds": 100, "part_link_seconds": 10, "parts": [{"participant": {"id": 1}}]}
    ids = simulator.add_meeting(recordings=[{"artifacts": [artifact]}])
    artifact_id = ids["recordings"][0]["artifacts"][0]["id"]
    outer = api.get(f"/audio_separate/{artifact_id}/")["data"]["download_url"]
    inner = get(outer).json()[0]["download_url"]
    simulator.advance(12)
    assert (get(outer).status_code, get(inner).status_code) == (200, 403)
    simulator.advance(100)
    assert get(outer).status_code == 403


def test_many_requests_share_a_connection(one_part: Any) -> None:
    url = one_part()["url"]
    with requests.Session() as session:
        for _ in range(3):
            assert session.get(url, timeout=60).status_code == 200
        assert next(iter(session.adapters["http://"].poolmanager.pools._container.values())).num_connections == 1


def test_generated_bytes_are_served_fast_and_in_constant_memory(simulator: Any, one_part: Any) -> None:
    url = one_part(audio={"seed": 1, "bytes": 400 * 1024 * 1024}, relative=0, duration=1)["url"]
    process = psutil.Process(simulator.pid)
    before, received = process.cpu_times(), 0
    with requests.get(url, stream=True, timeout=60) as answer:
        assert answer.headers["ETag"].endswith('-51"')
        for piece in answer.iter_content(1024 * 1024):
            received += len(piece)
    assert received == 400 * 1024 * 1024
    after = process.cpu_times()
    spent = after.user + after.system - before.user - before.system
    assert spent < 10  # of computing; far above any reasonable time: the aim is two seconds
    status = Path(f"/proc/{simulator.pid}/status")
    if status.exists():
        peak = next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        assert peak < 250 * 1024
