"""The archive on an S3 server that misbehaves: what it leaves behind, seen past the store's own code."""

from __future__ import annotations

import base64
import hashlib
import re
import threading
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from botocore.awsrequest import AWSResponse

from include.archive import errors
from include.archive.copy import archive_body, survey
from include.archive.stores import s3 as s3_module
from include.archive.stores.s3 import S3Store
from tests.include.archive.conftest import BUCKET, OnlyBoto3, make_client
from tests.include.archive.support import IDS, STEM, Archive, FakeSource, audio, run, sha256, wait_for
from tests.strict_s3.process import Process

PART = s3_module.PART_BYTES
KEY = f"{STEM}.ogg"
SMALL, LARGE = 1000, 2 * PART + 1000
WRITES = {SMALL: "PutObject", LARGE: "CompleteMultipartUpload"}


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda self, context: 0.0)
    monkeypatch.setattr("include.archive.stores.s3.random.uniform", lambda low, high: 0.0)


def stored(strict: Process) -> dict[str, Any]:
    """Describe the one object there is, after looking that nothing else is left and nothing was replaced."""
    state = strict.state()
    assert state["uploads"] == []
    assert [write["overwrote"] for write in state["writes"] if write["operation"] in WRITES.values()] == [None]
    ((key, found),) = state["objects"].items()
    assert key.endswith(KEY)
    assert found["size"] == len(strict.content(key))
    return found


def fault(strict: Process, rule: dict[str, Any]) -> None:
    """Make the server misbehave where recordings are concerned, and not where the store is only tried out."""
    strict.faults({"key": re.escape(KEY), **rule})


def requests(strict: Process, operation: str) -> list[dict[str, Any]]:
    return [entry for entry in strict.journal(operation) if entry["key"].endswith(KEY)]


def nothing(strict: Process) -> bool:
    state = strict.state()
    return (state["objects"], state["uploads"]) == ({}, [])


def test_what_is_stored_is_listed_while_leftovers_are_removed(bucket: Archive, strict: Process) -> None:
    run(bucket, FakeSource(audio(SMALL)))
    writer = bucket.store.write(f"{STEM}-2.ogg", media_type="audio/ogg")
    writer.write(memoryview(audio(PART + 1)))
    listings, found = len(strict.journal("ListObjectsV2")), []
    strict.faults({"operation": "ListMultipartUploads", "action": "hold", "seconds": 60})
    thread = threading.Thread(
        target=lambda: found.append(survey(bucket.store, [STEM.partition("/")[0]], tidy=True)),
    )
    thread.start()
    wait_for(lambda: bool(strict.control("GET", "held")) and len(strict.journal("ListObjectsV2")) > listings)
    strict.control("POST", "release", {})
    thread.join()
    assert found[0].keys == {STEM: [KEY]}
    assert strict.state()["uploads"] == []


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_what_is_sent(bucket: Archive, strict: Process, size: int) -> None:
    data = audio(size)
    part = run(bucket, FakeSource(data))
    found = stored(strict)
    assert part.verified_by == ["content-length", "store-checksum"]
    assert (found["sha256"], found["headers"]["content-type"]) == (sha256(data), "audio/ogg")
    name = "crc32" if size == LARGE else "sha256"
    digest = zlib.crc32(data).to_bytes(4, "big") if size == LARGE else hashlib.sha256(data).digest()
    assert found["checksum"] == base64.b64encode(digest).decode()
    assert (found["checksum_algorithm"], found["checksum_type"]) == (name, "FULL_OBJECT")
    assert part.crc32 == (digest.hex() if size == LARGE else None)
    (final,) = requests(strict, WRITES[size])
    assert final["conditions"] == {"if-none-match": "*"}
    assert final["checksums"][f"x-amz-checksum-{name}"] == found["checksum"]
    if size == LARGE:
        assert final["checksums"]["x-amz-checksum-type"] == "FULL_OBJECT"
        assert [entry["bytes"] for entry in requests(strict, "UploadPart")] == [PART, PART, 1000]
    assert requests(strict, "GetObject") == []


@pytest.mark.parametrize("size", [SMALL, LARGE])
@pytest.mark.parametrize("times", [1, 2, None])
@pytest.mark.parametrize("kind", ["dropped", "500"])
def test_a_lost_answer_is_resolved_by_comparing(
    bucket: Archive, strict: Process, size: int, times: int | None, kind: str
) -> None:
    loss = {"action": "drop"} if kind == "dropped" else {"action": "error", "code": "InternalError"}
    fault(strict, {"operation": WRITES[size], "times": times, "when": "after", **loss})
    data = audio(size)
    part = run(bucket, FakeSource(data))
    assert (part.action, part.sha256) == ("already_present", sha256(data))
    assert stored(strict)["sha256"] == sha256(data)


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_a_lost_answer_of_another_write_is_a_conflict(bucket: Archive, strict: Process, size: int) -> None:
    with bucket.store.write(KEY, media_type="audio/ogg") as writer:
        writer.write(memoryview(audio(size, seed=1)))
        bucket.put(KEY, b"OggS, by somebody else")
        fault(strict, {"operation": WRITES[size], "times": None, "action": "drop"})
        with pytest.raises(errors.AlreadyExistsError):
            writer.commit({})
    assert bucket.get(KEY) == b"OggS, by somebody else"
    assert bucket.leftovers() == []


@pytest.mark.parametrize("operation", ["PutObject", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"])
@pytest.mark.parametrize(
    "rule",
    [
        {"action": "error", "code": "SlowDown"},
        {"action": "error", "code": "InternalError"},
        {"action": "error", "code": "RequestTimeout", "status": 400},
        {"action": "drop"},
    ],
)
def test_a_passing_fault_is_outlived(bucket: Archive, strict: Process, operation: str, rule: dict[str, Any]) -> None:
    fault(strict, {"operation": operation, **rule})
    data = audio(SMALL if operation == "PutObject" else LARGE)
    assert run(bucket, FakeSource(data)).sha256 == sha256(data)
    assert stored(strict)["sha256"] == sha256(data)
    assert len(requests(strict, "UploadPart")) <= 4


def test_a_part_that_is_sent_again_is_fetched_again(bucket: Archive, strict: Process) -> None:
    fault(strict, {"operation": "UploadPart", "skip": 1, "action": "error", "code": "SlowDown"})
    source = FakeSource(audio(LARGE))
    part = run(bucket, source)
    assert (part.sha256, part.source_sha256) == (sha256(source.data), sha256(source.data))
    assert stored(strict)["sha256"] == part.sha256
    assert source.opened == [(0, None), (PART, '"v1"')]


def test_a_part_of_a_source_without_ranges_is_sent_again_from_the_start(bucket: Archive, strict: Process) -> None:
    fault(strict, {"operation": "UploadPart", "skip": 1, "action": "error", "code": "SlowDown"})
    source = FakeSource(audio(LARGE), ranges=False, etag=None)
    assert run(bucket, source).sha256 == sha256(source.data) == stored(strict)["sha256"]
    assert bucket.leftovers() == []


@pytest.mark.takes_no_checksums
@pytest.mark.parametrize("size", [PART - 1, LARGE])
def test_a_store_that_refuses_streams(bucket: Archive, strict: Process, size: int) -> None:
    """Older ones know no checksum behind the body; they get it bare."""
    wire: Any = bucket.store._wire  # type: ignore[attr-defined]
    send = wire._transmit

    def refuse(request: Any) -> Any:
        if "X-Amz-Trailer" in request.headers:
            return AWSResponse(request.url, 411, {}, SimpleNamespace(stream=lambda: [b"<Error/>"]))
        return send(request)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wire, "_transmit", refuse)
        part = run(bucket, FakeSource(audio(size)))
    assert part.sha256 == sha256(audio(size)) == stored(strict)["sha256"]
    assert bucket.leftovers() == []


@pytest.mark.takes_no_checksums
def test_a_store_that_takes_the_form_of_a_stream_for_its_content(bucket: Archive, strict: Process) -> None:
    wire: Any = bucket.store._wire  # type: ignore[attr-defined]
    send, size = wire._transmit, PART - 1

    def misread(request: Any) -> Any:
        if "X-Amz-Trailer" not in request.headers:
            return send(request)
        key = unquote(urlsplit(request.url).path).partition(f"/{BUCKET}/")[2]
        content = b"".join(request.body)
        make_client(strict.endpoint).put_object(
            Bucket=BUCKET, Key=key, Body=content, IfNoneMatch="*", ChecksumAlgorithm="SHA256"
        )
        return AWSResponse(request.url, 200, {"ETag": "x"}, SimpleNamespace(stream=lambda: []))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wire, "_transmit", misread)
        part = run(bucket, FakeSource(audio(size)))
    assert part.sha256 == sha256(audio(size)) == sha256(bucket.get(KEY))
    assert bucket.keys() == [KEY]


@pytest.mark.parametrize("operation", ["PutObject", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"])
def test_a_lasting_fault_leaves_nothing(bucket: Archive, strict: Process, operation: str) -> None:
    fault(strict, {"operation": operation, "times": None, "action": "error", "code": "SlowDown"})
    with pytest.raises(errors.StorageUnavailableError) as caught:
        run(bucket, FakeSource(audio(SMALL if operation == "PutObject" else LARGE)))
    assert not caught.value.permanent
    assert nothing(strict)


def test_an_error_within_a_success_is_an_error(bucket: Archive, strict: Process) -> None:
    rule = {"operation": "CompleteMultipartUpload", "action": "error", "status": 200, "code": "InternalError"}
    fault(strict, {**rule, "times": None})
    with pytest.raises(errors.StorageUnavailableError):
        run(bucket, FakeSource(audio(LARGE)))
    assert nothing(strict)
    strict.control("DELETE", "faults")
    fault(strict, rule)
    run(bucket, FakeSource(audio(LARGE)))
    assert stored(strict)["sha256"] == sha256(audio(LARGE))


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_conflicts_with_other_writes(bucket: Archive, strict: Process, size: int) -> None:
    fault(strict, {"operation": WRITES[size], "action": "error", "code": "ConditionalRequestConflict"})
    run(bucket, FakeSource(audio(size)))
    assert stored(strict)["sha256"] == sha256(audio(size))


@pytest.mark.parametrize(("size", "keep_checksum"), [(SMALL, False), (LARGE, False), (LARGE, True)])
def test_a_store_that_keeps_other_bytes(bucket: Archive, strict: Process, size: int, keep_checksum: bool) -> None:
    """One that also lies about the checksum of a whole object is found out by reading it, see below."""
    operation = "PutObject" if size == SMALL else "UploadPart"
    fault(strict, {"operation": operation, "action": "corrupt", "keep_checksum": keep_checksum})
    with pytest.raises(errors.StoredBytesDifferError) as caught:
        run(bucket, FakeSource(audio(size)))
    assert not caught.value.permanent
    assert nothing(strict)


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_a_body_damaged_on_the_way_is_refused_and_sent_again(
    bucket: Archive, strict: Process, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """Between us and a store without TLS nothing but the checksum watches over the bytes."""
    wire: Any = bucket.store._wire  # type: ignore[attr-defined]
    send, damaged = wire._transmit, []

    def flipped(data: Any) -> bytes:
        return bytes([data[0] ^ 1]) + bytes(data[1:])

    def damage(request: Any) -> Any:
        if not damaged and request.method == "PUT" and ".ogg" in request.url:
            damaged.append(request.url)
            body = request.body
            # The second frame of a stream holds its first bytes.
            request.body = (
                flipped(body)
                if isinstance(body, (bytes, bytearray))
                else (flipped(frame) if number == 1 else frame for number, frame in enumerate(body))
            )
        return send(request)

    monkeypatch.setattr(wire, "_transmit", damage)
    run(bucket, FakeSource(audio(size)))
    assert damaged
    assert [entry["code"] for entry in strict.journal() if entry["bytes"]].count("BadDigest") == 1
    assert stored(strict)["sha256"] == sha256(audio(size))


@pytest.mark.parametrize(
    ("code", "status", "expected"),
    [
        ("IncompleteBody", 400, errors.StorageUnavailableError),
        ("RequestTimeTooSkewed", 403, errors.StorageDeniedError),
        ("InvalidAccessKeyId", 403, errors.StorageDeniedError),
        ("ExpiredToken", 400, errors.StorageDeniedError),
    ],
)
def test_refusals_of_whole_objects(
    bucket: Archive, strict: Process, code: str, status: int, expected: type[errors.StorageError]
) -> None:
    fault(strict, {"operation": "PutObject", "times": None, "action": "error", "code": code, "status": status})
    with pytest.raises(expected):
        run(bucket, FakeSource(audio(SMALL)))
    assert nothing(strict)


def test_the_next_try_aborts_what_a_killed_one_left(bucket: Archive, strict: Process) -> None:
    fault(strict, {"operation": "UploadPart", "skip": 1, "action": "hold"})
    data, outcomes = audio(LARGE), []
    thread = threading.Thread(target=lambda: outcomes.append(run(bucket, FakeSource(data))))
    thread.start()
    try:
        (held,) = strict.wait_held()
        assert (held["operation"], held["bytes"]) == ("UploadPart", PART)
        assert run(bucket, FakeSource(data)).action == "stored"
        assert len(requests(strict, "AbortMultipartUpload")) == 1
    finally:
        strict.control("POST", "release", {})
        thread.join()
    # The one that was not dead after all finds its upload gone and the object there.
    assert [part.action for part in outcomes] == ["already_present"]
    assert stored(strict)["sha256"] == sha256(data)


def test_racing_large_uploads_leave_one_object(strict: Process) -> None:
    bodies = [audio(PART + 1000, seed=seed) for seed in range(8)]
    barrier, outcomes = threading.Barrier(len(bodies)), []

    def write(data: bytes) -> None:
        store = S3Store(bucket=BUCKET, prefix="race", client=make_client(strict.endpoint))
        with store.write(KEY, media_type="audio/ogg", size=len(data)) as writer:
            writer.write(memoryview(data))
            barrier.wait()
            try:
                writer.commit({})
                outcomes.append(sha256(data))
            except errors.AlreadyExistsError:
                pass

    threads = [threading.Thread(target=write, args=(body,)) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 1
    assert stored(strict)["sha256"] == outcomes[0]
    statuses = sorted(entry["status"] for entry in requests(strict, "CompleteMultipartUpload"))
    assert statuses == [200] + [412] * (len(bodies) - 1)


@pytest.mark.parametrize("size", [SMALL, LARGE])
@pytest.mark.parametrize("bit", [0, -1])
def test_flipped_bits_are_found_by_reading(bucket: Archive, s3: Any, strict: Process, size: int, bit: int) -> None:
    run(bucket, FakeSource(audio(size)))
    (key,) = strict.state()["objects"]
    strict.control("POST", "tamper", {"key": key, "flip": bit})
    prefix = key.removesuffix(f"/{KEY}")
    for store in (bucket.store, S3Store(bucket=BUCKET, prefix=prefix, access=OnlyBoto3(s3, BUCKET))):
        with pytest.raises(errors.IntegrityError, match=f"s3://{BUCKET}/{key}: "):
            b"".join(store.read(KEY))


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_a_read_that_is_cut_is_retryable(bucket: Archive, strict: Process, size: int) -> None:
    bucket.put(KEY, audio(size))
    fault(strict, {"operation": "GetObject", "times": None, "action": "cut", "bytes": 500})
    with pytest.raises(errors.StorageUnavailableError) as caught:
        b"".join(bucket.store.read(KEY))
    assert not caught.value.permanent


def test_a_store_without_checksums_is_read_back() -> None:
    with Process("--no-checksums", bucket=BUCKET, access_key="testing", secret_key="testing") as server:
        store = S3Store(bucket=BUCKET, prefix="p", client=make_client(server.endpoint))
        for size in (SMALL, LARGE):
            source, stem = FakeSource(audio(size)), f"{STEM}-{size}"
            part = archive_body(source, store, stem, source_format="ogg", ids=IDS, duration=None)
            assert part.verified_by == ["content-length", "read-back"]
        for operation in ("PutObject", "UploadPart"):
            server.faults({"operation": operation, "action": "corrupt"})
        for size in (SMALL, LARGE):
            source, stem = FakeSource(audio(size)), f"{STEM}-{size}-2"
            with pytest.raises(errors.StoredBytesDifferError):
                archive_body(source, store, stem, source_format="ogg", ids=IDS, duration=None)
        assert len(server.state()["objects"]) == 2
        assert server.state()["uploads"] == []


def documented_rights() -> str:
    """Return the policy that docs/s3.md tells people to use, for our bucket."""
    page = (Path(__file__).parents[3] / "docs" / "s3.md").read_text("utf-8")
    return page.partition("```json\n")[2].partition("```")[0].replace("company-recordings", BUCKET)


def test_few_rights_are_enough(tmp_path: Path) -> None:
    (tmp_path / "policy.json").write_text(documented_rights())
    arguments = ("--policy", str(tmp_path / "policy.json"))
    with Process(*arguments, bucket=BUCKET, access_key="testing", secret_key="testing") as server:
        client = make_client(server.endpoint)

        def archive(prefix: str, size: int) -> str:
            store = S3Store(bucket=BUCKET, prefix=prefix, client=client)
            source = FakeSource(audio(size))
            return archive_body(source, store, f"{STEM}-{size}", source_format="ogg", ids=IDS, duration=None).action

        assert [archive("recordings", size) for size in (SMALL, LARGE) * 2] == ["stored"] * 2 + ["already_present"] * 2
        store = S3Store(bucket=BUCKET, prefix="recordings", client=client)
        store.preflight("dt=2026-03-04/recording=a")
        assert store.put_if_absent("manifest.json", b"{}", "application/json")
        assert not store.put_if_absent("manifest.json", b"{}", "application/json")
        with store.write("a.ogg", media_type="audio/ogg") as writer:
            writer.write(memoryview(audio(PART + 1)))
            assert store.abort_stale("a") == 1
        with store.write("a.ogg", media_type="audio/ogg") as writer:
            writer.commit({})
            writer.withdraw()
        assert [entry["operation"] for entry in server.journal() if entry["code"] == "AccessDenied"] == []
        with pytest.raises(errors.StorageDeniedError):
            archive("elsewhere", SMALL)
