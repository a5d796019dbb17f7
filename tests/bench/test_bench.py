"""The servers that the engine is measured against answer as real ones, and the engine's bytes arrive."""

from __future__ import annotations

import base64
import hashlib
import os
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zlib
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from bench import ceph, source
from bench.ceph import GatewayEnds
from bench.ends import BUCKET, PLAIN, PROJECT, TLS, Ends, Network
from bench.engines import Job, Workload, ours, peers
from bench.measure import EngineError, descendants, run
from bench.wire import Link
from include.archive.copy import archive_body
from include.archive.errors import ContentConflictError
from include.archive.stores.s3 import S3Store
from include.archive.stores.s3_access import Credentials, Direct, address_of
from include.recall.media import MediaClient, PartSource
from include.recall.models import SignedLink

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from include.archive.copy import StoredPart

SIZE = source.BLOCK + 5000  # so that a file is longer than what it is made of


@pytest.fixture(scope="module")
def content() -> bytes:
    return source.block()


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ends]:
    with Ends(PLAIN, tmp_path_factory.mktemp("ends"), verify=True) as running:
        yield running


def client(ends: Ends) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=ends.sink,
        region_name="us-east-1",
        aws_access_key_id="bench",
        aws_secret_access_key="bench",
        verify=str(ends.authority) if ends.authority else None,
        config=Config(retries={"total_max_attempts": 1}),
    )


def get(url: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    asked = urllib.request.Request(url, headers={name.replace("_", "-"): value for name, value in headers.items()})
    try:
        with urllib.request.urlopen(asked, timeout=30) as reply:
            return reply.status, dict(reply.headers), reply.read()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read()


def test_a_file_is_the_same_each_time_and_differs_from_others(ends: Ends, content: bytes) -> None:
    status, headers, body = get(ends.url(SIZE, 3))
    assert (status, len(body), headers["Content-Length"]) == (200, SIZE, str(SIZE))
    assert body.startswith(b"ID3")
    assert hashlib.sha256(body).hexdigest() == source.sha256(content, 3, SIZE)
    assert source.sha256(content, 4, SIZE) != source.sha256(content, 3, SIZE)


def test_a_range_is_a_part_of_the_file(ends: Ends) -> None:
    whole = get(ends.url(SIZE, 1))[2]
    # The header alone, across its end, across the end of what files are made of, and to the end.
    for first, last in (0, 0), (5, 20), (source.BLOCK - 4109, source.BLOCK - 4089), (SIZE - 1000, None):
        status, headers, body = get(ends.url(SIZE, 1), Range=f"bytes={first}-{'' if last is None else last}")
        assert status == 206
        assert body == whole[first : SIZE if last is None else last + 1]
        assert headers["Content-Range"] == f"bytes {first}-{first + len(body) - 1}/{SIZE}"


def test_a_range_of_another_version_or_beyond_the_end_is_refused(ends: Ends) -> None:
    etag = get(ends.url(SIZE, 1), Range="bytes=0-0")[1]["ETag"]
    assert get(ends.url(SIZE, 1), Range="bytes=1-1", If_Match=etag)[0] == 206
    assert get(ends.url(SIZE, 1), Range="bytes=1-1", If_Match='"other"')[0] == 412
    assert get(ends.url(SIZE, 1), Range=f"bytes={SIZE}-")[0] == 416


def test_a_link_is_as_slow_as_it_is_told(tmp_path: Path) -> None:
    slow = Link(rate=4 * 2**20, delay=0.2)
    with Ends(Network("slow", slow, slow), tmp_path) as ends:
        started = time.monotonic()
        body = get(ends.url(2**21, 0))[2]
        taken = time.monotonic() - started
        assert 0.6 < taken < 60
        started = time.monotonic()
        client(ends).put_object(Bucket=BUCKET, Key="key", Body=body)
        assert 0.6 < time.monotonic() - started < 60
        assert ends.stored() == {"key": {"bytes": 2**21, "sha256": None}}


@pytest.mark.parametrize("network", [PLAIN, TLS], ids=lambda network: network.name)
def test_bodies_framed_in_chunks_are_stored_without_their_frame(network: Network, tmp_path: Path) -> None:
    data = b"some audio" * 300_000
    with Ends(network, tmp_path, verify=True) as ends:
        client(ends).put_object(Bucket=BUCKET, Key="key", Body=data)
        assert ends.stored() == {"key": {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}}


def test_sizes_are_counted_where_bytes_are_thrown_away(tmp_path: Path) -> None:
    with Ends(PLAIN, tmp_path) as ends:
        client(ends).put_object(Bucket=BUCKET, Key="key", Body=b"x" * 3_000_001)
        assert ends.stored(forget=True) == {"key": {"bytes": 3_000_001, "sha256": None}}
        assert ends.stored() == {}


def test_a_multipart_object_has_its_parts_in_order_and_its_declared_checksum(ends: Ends) -> None:
    s3, parts = client(ends), [b"a" * 100, b"b" * 200]
    place = {"Bucket": BUCKET, "Key": "parts"}
    crc32 = base64.b64encode(zlib.crc32(b"".join(parts)).to_bytes(4, "big")).decode()
    upload = s3.create_multipart_upload(**place, ChecksumAlgorithm="CRC32", ChecksumType="FULL_OBJECT")["UploadId"]
    assert [one["UploadId"] for one in s3.list_multipart_uploads(Bucket=BUCKET)["Uploads"]] == [upload]
    done = []
    for number in (2, 1):
        reply = s3.upload_part(**place, UploadId=upload, PartNumber=number, Body=parts[number - 1])
        done.insert(0, {"PartNumber": number, "ETag": reply["ETag"]})
    complete = {"UploadId": upload, "MultipartUpload": {"Parts": done}, "ChecksumType": "FULL_OBJECT"}
    with pytest.raises(ClientError, match="BadDigest"):
        s3.complete_multipart_upload(**place, **complete, ChecksumCRC32="AAAAAA==")
    s3.complete_multipart_upload(**place, **complete, ChecksumCRC32=crc32)
    assert ends.stored()["parts"]["sha256"] == hashlib.sha256(b"".join(parts)).hexdigest()
    assert s3.head_object(**place, ChecksumMode="ENABLED")["ChecksumCRC32"] == crc32
    assert "Uploads" not in s3.list_multipart_uploads(Bucket=BUCKET)


def test_an_object_is_replaced_only_by_an_unconditional_write(ends: Ends) -> None:
    s3, place = client(ends), {"Bucket": BUCKET, "Key": "taken"}
    s3.put_object(**place, Body=b"first", IfNoneMatch="*")
    with pytest.raises(ClientError, match="PreconditionFailed"):
        s3.put_object(**place, Body=b"second", IfNoneMatch="*")
    assert ends.stored()["taken"]["bytes"] == 5
    s3.put_object(**place, Body=b"replaced")
    assert [one["Size"] for one in s3.list_objects_v2(Bucket=BUCKET, Prefix="tak")["Contents"]] == [8]
    s3.delete_object(**place)
    assert "taken" not in ends.stored()


def test_an_upload_can_be_given_up(ends: Ends) -> None:
    s3, place = client(ends), {"Bucket": BUCKET, "Key": "given-up"}
    upload = s3.create_multipart_upload(**place)["UploadId"]
    s3.abort_multipart_upload(**place, UploadId=upload)
    with pytest.raises(ClientError, match="NoSuchUpload"):
        s3.upload_part(**place, UploadId=upload, PartNumber=1, Body=b"late")


@pytest.mark.parametrize(
    ("network", "workload"),
    [(PLAIN, Workload(12, 100_000)), (TLS, Workload(1, SIZE))],
    ids=["small files, plain", "a large file, TLS"],
)
def test_our_engine_delivers_the_files_of_the_source(
    network: Network, workload: Workload, tmp_path: Path, content: bytes
) -> None:
    with Ends(network, tmp_path, verify=True) as ends:
        job, engine = Job(ends, workload, tmp_path, 4), ours(PROJECT)
        cost = run(engine.command(job), engine.environment(job))
        assert ends.stored() == {
            key: {"bytes": workload.size, "sha256": source.sha256(content, number, workload.size)}
            for number, key in enumerate(job.keys)
        }
    assert 0 < cost.cpu < (os.cpu_count() or 1) * cost.wall + 1
    assert cost.peak > 10_000_000
    assert cost.inside is not None
    assert 0 < cost.inside["cpu"] < cost.cpu


@pytest.mark.skipif(bool(ceph.missing()), reason="Ceph is not installed")
def test_our_engine_delivers_to_a_real_store_that_checks_signatures(tmp_path: Path, content: bytes) -> None:
    with GatewayEnds(tmp_path) as ends:
        job, engine = Job(ends, Workload(2, 9 * 2**20), tmp_path, 2), ours(PROJECT)
        run(engine.command(job), engine.environment(job))
        for number, key in enumerate(job.keys):
            stored = client(ends).get_object(Bucket=BUCKET, Key=key)["Body"].read()
            assert hashlib.sha256(stored).hexdigest() == source.sha256(content, number, 9 * 2**20)
        assert ends.stored(forget=True) == dict.fromkeys(job.keys, {"bytes": 9 * 2**20, "sha256": None})
        assert ends.stored() == {}
        with pytest.raises(EngineError, match="SignatureDoesNotMatch"):
            run(engine.command(job), engine.environment(job) | {"AWS_SECRET_ACCESS_KEY": "another"})
        (upload,) = (one for one in peers()[0] if one.name == "pure upload")
        run(upload.command(job), upload.environment(job))
        assert ends.stored().keys() == set(job.keys)
        keeps_an_archive(ends)


def keeps_an_archive(ends: GatewayEnds) -> None:
    """A real gateway passes the trial, proves what it was given, and replaces nothing."""
    keys = Credentials(ceph.KEY, ceph.KEY)
    access = Direct(
        address=str(address_of(BUCKET, "us-east-1", ends.sink)),
        region="us-east-1",
        keys=lambda: keys,
        make_client=lambda: pytest.fail("no client is needed"),
    )
    store, folder = S3Store(bucket=BUCKET, prefix="archive", access=access), "dt=2026-03-04/recording=r1"
    store.preflight(folder, replacing=True)
    assert list(store.list()) == []

    def archived(number: int) -> StoredPart:
        url = ends.url(3 * 2**20, number)
        media = MediaClient(allowed_hosts=[urlsplit(url).netloc])
        return archive_body(
            PartSource(media, SignedLink(url), lambda: SignedLink(url)),
            store,
            "participant=1/artifact-1/part-1",
            folder=folder,
            source_format="mp3",
            ids={"part-id": str(number)},
            duration=None,
        )

    part = archived(1)
    assert part.verified_by == ["content-length", "store-checksum"]
    with pytest.raises(ContentConflictError):
        archived(2)
    stored = client(ends).get_object(Bucket=BUCKET, Key=f"archive/{folder}/{part.key}")["Body"].read()
    assert hashlib.sha256(stored).hexdigest() == part.sha256
    assert client(ends).list_multipart_uploads(Bucket=BUCKET).get("Uploads", []) == []


def test_the_cost_of_a_run_includes_what_it_started() -> None:
    grab = "import time; kept = bytearray(b'x') * 60_000_000; spent = sum(range(50_000_000)); time.sleep(0.3)"
    cost = run([sys.executable, "-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {grab!r}])"], {})
    assert cost.peak > 60_000_000
    assert cost.cpu > 0.1
    with pytest.raises(EngineError, match="exit code 3: why"):
        run([sys.executable, "-c", "print('why'); raise SystemExit(3)"], {})


def test_tls_of_the_ends_is_trusted_through_their_authority_alone(tmp_path: Path) -> None:
    with Ends(TLS, tmp_path) as ends, pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
        urllib.request.urlopen(ends.url(1, 1), context=ssl.create_default_context(), timeout=10)


def test_processes_that_end_while_they_are_counted_are_left_out() -> None:
    brief = "i=0; while :; do sh -c : & i=$((i+1)); [ $((i%20)) = 0 ] && wait; done"
    with subprocess.Popen(["sh", "-c", brief]) as process:
        counts = [0]
        while len(counts) < 500 or max(counts) < 2:
            counts.append(len(descendants(process.pid)))
        process.kill()
    assert descendants(process.pid) == []
