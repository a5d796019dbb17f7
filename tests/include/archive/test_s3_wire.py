"""Requests that go to S3 past boto3: where they go, and what becomes of streams that break midway."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from datetime import datetime
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from botocore.awsrequest import AWSRequest, AWSResponse
from botocore.config import Config

from include.archive import errors
from include.archive.copy import Stop
from include.archive.stores import s3 as s3_module
from include.archive.stores.s3 import S3Store
from include.archive.stores.s3_boto3 import ClientAccess
from include.archive.stores.s3_wire import Body, Wire, base64_sha256
from tests.include.archive.conftest import BUCKET, make_client
from tests.include.archive.support import STEM, Archive, FakeSource, audio, run, samples, sha256
from tests.strict_s3.process import Process

if TYPE_CHECKING:
    from collections.abc import Callable

PART = s3_module.PART_BYTES
KEY = f"{STEM}.ogg"
WHOLE, PARTS = PART - 1, 2 * PART + 1000
"""Sizes of bodies that go in one stream, and in several."""
OPERATIONS = {WHOLE: "PutObject", PARTS: "UploadPart"}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("archive", {"region_name": "us-east-1"}),
        ("archive", {"region_name": "eu-central-1"}),
        ("archive", {"region_name": "eu-central-1", "config": Config(signature_version="s3v4")}),
        ("archive", {"region_name": "eu-central-1", "config": Config(s3={"addressing_style": "path"})}),
        ("archive", {"region_name": "eu-central-1", "config": Config(use_dualstack_endpoint=True)}),
        ("archive.with.dots", {"region_name": "eu-central-1"}),
        ("archive", {"region_name": "cn-north-1"}),
        ("archive", {"region_name": "eu-central-1", "endpoint_url": "https://s3.example:9000/base/"}),
        ("archive", {"endpoint_url": "http://127.0.0.1:9000", "region_name": "eu-central-1"}),
    ],
)
def test_requests_go_where_boto3_sends_its_own(name: str, options: dict[str, Any]) -> None:
    client: Any = boto3.client("s3", aws_access_key_id="testing", aws_secret_access_key="testing", **options)
    seen: list[str] = []

    def answer(request: Any, **_: Any) -> AWSResponse:
        seen.append(request.url)
        return AWSResponse(request.url, 200, {"ETag": "x"}, SimpleNamespace(stream=lambda: []))

    client.meta.events.register("before-send.s3", answer)
    client.head_object(Bucket=name, Key="recordings/dt=2026-03-04/ä b.ogg")
    wire = Wire(ClientAccess(client, name))
    wire._transmit = answer  # type: ignore[method-assign]
    wire.head("recordings/dt=2026-03-04/ä b.ogg")
    assert seen[0] == seen[1]


@pytest.mark.parametrize("token", [None, "a/token+with=signs"])
@pytest.mark.parametrize("endpoint", [None, "http://127.0.0.1:9000", "https://s3.example:443/base/"])
@pytest.mark.parametrize("query", [{}, {"uploadId": "a b~c/d+e=&_-", "partNumber": "7"}])
def test_signatures_are_those_that_botocore_makes(
    monkeypatch: pytest.MonkeyPatch, token: str | None, endpoint: str | None, query: dict[str, str]
) -> None:
    keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "aws_session_token": token}
    client: Any = boto3.client("s3", region_name="eu-central-1", endpoint_url=endpoint, **keys)
    seen: list[Any] = []

    def answer(request: Any, **_: Any) -> AWSResponse:
        seen.append(request)
        return AWSResponse(request.url, 200, {"ETag": "x"}, SimpleNamespace(stream=lambda: []))

    client.meta.events.register("before-send.s3", answer)
    headers = {"Content-Type": "audio/ogg", "If-None-Match": "*", "x-amz-meta-note": " two  words "}
    wire = Wire(ClientAccess(client, "archive"))
    wire.put("dt=2026-03-04/ä b~.ogg", b"abc", headers)
    wire.put_stream("dt=2026-03-04/ä b~.ogg", Body(iter([memoryview(b"abc")]), 3), headers, query)
    assert len(seen) == 2
    for request, trailer in zip(seen, ({}, {"checksum": {"request_algorithm": {"in": "trailer"}}}), strict=True):
        moment = datetime.strptime(request.headers["X-Amz-Date"], "%Y%m%dT%H%M%SZ")  # noqa: DTZ007
        monkeypatch.setattr("botocore.auth.get_current_datetime", lambda moment=moment: moment)
        ours = {"Authorization", "X-Amz-Date", "X-Amz-Content-SHA256", "X-Amz-Security-Token", "Content-Length", "Host"}
        again = AWSRequest(
            method="PUT",
            url=request.url,
            headers={name: value for name, value in request.headers.items() if name not in ours},
        )
        again.context.update(trailer, client_config=SimpleNamespace(s3={"payload_signing_enabled": False}))
        client._request_signer.get_auth_instance("s3", "eu-central-1", "s3v4").add_auth(again)
        assert request.headers["Authorization"] == again.headers["Authorization"]


class Proxied(ClientAccess):
    """A bucket behind a proxy, to which only the client's own session knows the way."""

    _is_behind_proxy = True


@pytest.mark.parametrize("size", [1000, WHOLE, PARTS])
def test_what_is_behind_a_proxy_goes_through_the_clients_session(strict: Process, size: int) -> None:
    client: Any = make_client(strict.endpoint)
    send, sent = client._endpoint.http_session.send, []
    client._endpoint.http_session.send = lambda request: sent.append(request.method) or send(request)
    store = S3Store(bucket=BUCKET, prefix="p", access=Proxied(client, BUCKET))
    bucket = SimpleNamespace(store=store)
    store.preflight("recordings")
    assert run(bucket, FakeSource(audio(size))).sha256 == sha256(audio(size))  # type: ignore[arg-type]
    assert run(bucket, FakeSource(audio(size))).action == "already_present"  # type: ignore[arg-type]
    assert [one.key for one in store.list()] == [KEY]
    chunks = list(store.read(KEY))
    assert b"".join(chunks) == audio(size)
    assert max(map(len, chunks)) <= 1024 * 1024
    assert b"".join(store.read(KEY, 900)) == audio(size)[900:]
    assert list(store.read(KEY, size)) == []
    assert len(sent) == len(strict.journal())
    strict.faults({"operation": "GetObject", "times": None, "action": "cut", "bytes": 500})
    with pytest.raises(errors.StorageUnavailableError):
        b"".join(store.read(KEY))
    strict.faults({"operation": "ListObjectsV2", "action": "drop"})
    assert [one.key for one in store.list()] == [KEY]


def test_a_connection_that_broke_is_not_used_again(strict: Process) -> None:
    """Half a body is on it, so the next request would be taken for the rest."""
    client: Any = make_client(strict.endpoint)
    wire = Wire(ClientAccess(client, BUCKET))

    digest = base64_sha256(sha256(b"whole"))

    def breaks() -> Any:
        yield memoryview(b"abc")
        raise errors.StoppedError("told to stop")

    for number in range(3):
        with pytest.raises(errors.StoppedError):
            wire.put_stream(f"a/{number}", Body(breaks(), 6), {"If-None-Match": "*"})
        assert wire.put(f"b/{number}", b"whole", {"If-None-Match": "*", "x-amz-checksum-sha256": digest})
    assert strict.state()["objects"].keys() == {f"b/{number}" for number in range(3)}


@pytest.mark.parametrize("size", [WHOLE, PARTS])
@pytest.mark.parametrize("sent", [1, 300_000, 5_000_000])
def test_a_stream_that_the_store_cuts_is_sent_again(bucket: Archive, strict: Process, size: int, sent: int) -> None:
    strict.faults({"operation": OPERATIONS[size], "skip": size // PARTS, "action": "drop", "bytes": sent})
    source = FakeSource(audio(size))
    assert run(bucket, source).sha256 == sha256(source.data) == sha256(bucket.get(KEY))
    assert bucket.leftovers() == []
    assert source.opened[-1] == ((PART, '"v1"') if size == PARTS else (0, None))


@pytest.mark.parametrize("size", [WHOLE, PARTS])
@pytest.mark.parametrize("growth", [-10, 0, 10])
@pytest.mark.parametrize("etag", ['"v2"', None])
def test_a_source_that_sends_another_body_when_it_is_asked_again(
    bucket: Archive, strict: Process, size: int, growth: int, etag: str | None
) -> None:
    strict.faults({"operation": OPERATIONS[size], "action": "error"})
    other = audio(size + growth, seed=1)
    part = run(bucket, FakeSource(audio(size), later=(other, etag), etag=etag and '"v1"'))
    assert part.sha256 == sha256(other) == sha256(bucket.get(KEY))
    assert bucket.leftovers() == []


@pytest.mark.parametrize("size", [WHOLE, PARTS])
def test_a_page_that_is_sent_instead_when_the_source_is_asked_again(
    bucket: Archive, strict: Process, size: int
) -> None:
    strict.faults({"operation": OPERATIONS[size], "action": "error"})
    page = b"<!DOCTYPE html><html>".ljust(size)
    with pytest.raises(errors.UnexpectedContentError):
        run(bucket, FakeSource(audio(size), later=(page, None), etag=None))
    assert (bucket.keys(), bucket.leftovers()) == ([], [])


@pytest.mark.parametrize("more", [-1, 0, 1, 2])
@pytest.mark.parametrize("part", [0, 1, 2])
def test_samples_that_end_where_a_part_does(bucket: Archive, strict: Process, more: int, part: int) -> None:
    """The last part may hold nothing but the byte that is put behind an odd number of them."""
    strict.faults({"operation": "UploadPart", "skip": part, "action": "error"})
    body = samples(2 * PART - 44 + more)
    stored = run(bucket, FakeSource(body), source_format="raw")
    content = bucket.get(f"{STEM}.wav")
    assert content[44:] == body + bytes(len(body) % 2)
    assert (stored.bytes, stored.sha256) == (len(content), sha256(content))
    assert bucket.leftovers() == []


@pytest.mark.parametrize("length", ["true", None])
def test_a_store_that_never_takes_a_stream_is_given_up(bucket: Archive, strict: Process, length: Any) -> None:
    strict.faults({"operation": "PutObject", "action": "error", "times": None})
    source, stop = FakeSource(samples(WHOLE - 1000), length=length), Stop()
    patience = threading.Timer(20, stop.set)
    patience.start()
    with pytest.raises(errors.StorageUnavailableError):
        run(bucket, source, source_format="raw", stop=stop)
    patience.cancel()
    assert len(source.opened) <= 7
    assert (bucket.keys(), bucket.leftovers()) == ([], [])


@pytest.mark.takes_no_checksums
@pytest.mark.parametrize("size", [WHOLE, PARTS])
@pytest.mark.parametrize(
    ("status", "code"),
    [(400, "XAmzContentSHA256Mismatch"), (403, "SignatureDoesNotMatch"), (400, "InvalidDigest"), (501, "")],
)
def test_a_store_to_which_a_stream_is_only_a_wrong_hash(bucket: Archive, size: int, status: int, code: str) -> None:
    wire: Any = bucket.store._wire  # type: ignore[attr-defined]
    send, page = wire._transmit, f"<Error><Code>{code}</Code></Error>".encode()

    def refuse(request: Any) -> Any:
        if "X-Amz-Trailer" not in request.headers:
            return send(request)
        for _ in request.body:
            continue
        return AWSResponse(request.url, status, {}, SimpleNamespace(stream=lambda: [page]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wire, "_transmit", refuse)
        part = run(bucket, FakeSource(audio(size)))
    assert part.sha256 == sha256(audio(size)) == sha256(bucket.get(KEY))
    assert (bucket.keys(), bucket.leftovers()) == ([KEY], [])


@dataclass
class Watched(FakeSource):
    """Calls ``meanwhile`` once, when it is read from a place on."""

    place: int = 0
    meanwhile: Callable[[], object] = lambda: None

    def open(self, offset: int = 0, if_match: str | None = None) -> Any:
        body = super().open(offset, if_match)
        read = body.readinto

        def readinto(buffer: memoryview) -> int:
            if self.place is not None and body._position >= self.place:
                self.place = None  # type: ignore[assignment]
                self.meanwhile()
            return read(buffer)

        body.readinto = readinto  # type: ignore[method-assign]
        return body


@pytest.mark.parametrize("size", [WHOLE, PARTS])
def test_another_copy_finds_out_midway_that_only_boto3_will_do(bucket: Archive, strict: Process, size: int) -> None:
    strict.faults({"operation": "HeadObject", "key": "elsewhere", "action": "error", "status": 400})
    source = Watched(audio(size), place=min(size, PART) // 2, meanwhile=lambda: bucket.store.stat("elsewhere.ogg"))
    assert run(bucket, source).sha256 == sha256(source.data) == sha256(bucket.get(KEY))
    assert (bucket.keys(), bucket.leftovers()) == ([KEY], [])


def test_credentials_that_expire_before_a_look_are_no_reason_to_give_up(bucket: Archive, strict: Process) -> None:
    strict.faults({"operation": "HeadObject", "action": "error", "code": "ExpiredToken", "times": None})
    with pytest.raises(errors.StorageError) as caught:
        run(bucket, FakeSource(audio(1000)))
    assert not caught.value.permanent


def test_a_refusal_before_the_body_is_the_one_that_is_told() -> None:
    """Such a store closes the connection under the stream, which must not look like a passing fault."""
    with Process(bucket="other", access_key="testing", secret_key="testing") as server:
        store = S3Store(bucket=BUCKET, prefix="", client=make_client(server.endpoint))
        with store.write(KEY, media_type="audio/ogg", size=WHOLE) as writer:
            flow = SimpleNamespace(
                chunks=lambda count: iter([memoryview(audio(count))]),
                mark=lambda: None,
                sha256="0" * 64,
                ways=1,
                check_stop=lambda: None,
                can_keep=False,
            )
            with pytest.raises(errors.NoSuchBucketError):
                writer.take(flow, dict)  # type: ignore[arg-type]
