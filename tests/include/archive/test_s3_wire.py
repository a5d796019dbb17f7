"""Requests that go to S3 past boto3: where they go, and what becomes of streams that break midway."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from botocore.awsrequest import AWSResponse
from botocore.config import Config

from include.archive.stores import s3 as s3_module
from include.archive.stores.s3_wire import Wire
from tests.include.archive.support import STEM, Archive, FakeSource, audio, run, sha256

if TYPE_CHECKING:
    from tests.strict_s3.process import Process

PART = s3_module.PART_BYTES
KEY = f"{STEM}.ogg"
WHOLE, PARTS = PART - 1, 2 * PART + 1000
"""Sizes of bodies that go in one stream, and in several."""
OPERATIONS = {WHOLE: "PutObject", PARTS: "UploadPart"}


@pytest.mark.parametrize(
    ("bucket", "options"),
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
def test_requests_go_where_boto3_sends_its_own(bucket: str, options: dict[str, Any]) -> None:
    client: Any = boto3.client("s3", aws_access_key_id="testing", aws_secret_access_key="testing", **options)
    seen: list[str] = []

    def answer(request: Any, **_: Any) -> AWSResponse:
        seen.append(request.url)
        return AWSResponse(request.url, 200, {"ETag": "x"}, SimpleNamespace(stream=lambda: []))

    client.meta.events.register("before-send.s3", answer)
    client.head_object(Bucket=bucket, Key="recordings/dt=2026-03-04/ä b.ogg")
    client._endpoint.http_session = SimpleNamespace(send=answer)
    Wire(client, bucket).head("recordings/dt=2026-03-04/ä b.ogg")
    assert seen[0] == seen[1]


@pytest.mark.parametrize("size", [WHOLE, PARTS])
@pytest.mark.parametrize("sent", [1, 300_000, 5_000_000])
def test_a_stream_that_the_store_cuts_is_sent_again(bucket: Archive, strict: Process, size: int, sent: int) -> None:
    strict.faults({"operation": OPERATIONS[size], "skip": size // PARTS, "action": "drop", "bytes": sent})
    source = FakeSource(audio(size))
    assert run(bucket, source).sha256 == sha256(source.data) == sha256(bucket.get(KEY))
    assert bucket.leftovers() == []
    assert source.opened[-1] == ((PART, '"v1"') if size == PARTS else (0, None))
