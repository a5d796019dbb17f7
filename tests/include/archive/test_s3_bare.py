"""Stores that know no trailers, such as Ceph's gateway: bodies go to them as they are, each object in one request."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from include.archive import copy as copy_module
from include.archive import errors
from include.archive.copy import archive_body
from include.archive.stores import s3 as s3_module
from include.archive.stores.s3 import S3Store
from include.archive.stores.s3_wire import BareBody
from tests.include.archive.conftest import BUCKET, make_access, make_client
from tests.include.archive.support import IDS, STEM, CutError, FakeSource, audio, sha256
from tests.strict_s3.process import Process

if TYPE_CHECKING:
    from collections.abc import Iterator

    from include.archive.copy import StoredPart

FOLDER = "dt=2026-03-04/recording=r1"
KEY = f"{FOLDER}/{STEM}.ogg"
SIZES = [s3_module.BUFFER_BYTES + 1, 5_000_000, 3 * s3_module.PART_BYTES + 1]


@pytest.fixture(scope="module")
def server() -> Iterator[Process]:
    with Process("--ceph", bucket=BUCKET, access_key="testing", secret_key="testing") as server:
        yield server


@pytest.fixture
def ceph(server: Process) -> Process:
    server.reset()
    return server


def opened(server: Process) -> S3Store:
    return S3Store(bucket=BUCKET, prefix="", access=make_access(server.endpoint))


def run(store: S3Store, source: FakeSource, **changes: Any) -> StoredPart:
    arguments: dict[str, Any] = {"source_format": "ogg", "ids": IDS, "duration": None, "backoff": 0.0, **changes}
    return archive_body(source, store, STEM, folder=FOLDER, **arguments)


def asked(server: Process) -> list[str]:
    """Name what was asked of the store on behalf of the recording, without the looks at what is there."""
    looks = {"ListObjectsV2", "ListMultipartUploads"}
    return [one["operation"] for one in server.journal() if one["key"] == KEY and one["operation"] not in looks]


def nothing(server: Process) -> bool:
    state = server.state()
    return (state["objects"], state["uploads"]) == ({}, [])


def test_ceph_passes_and_stays_as_it_was(ceph: Process) -> None:
    store = opened(ceph)
    store.preflight(FOLDER, replacing=True)
    assert store.form is BareBody
    assert nothing(ceph)


def test_another_store_that_knows_no_trailers_is_found_out() -> None:
    with Process("--no-trailers", bucket=BUCKET, access_key="testing", secret_key="testing") as server:
        store = opened(server)
        assert run(store, FakeSource(audio(SIZES[1]))).sha256 == sha256(server.content(KEY))
        assert store.form is BareBody
        assert asked(server) == ["PutObject", "PutObject", "HeadObject"]


@pytest.mark.parametrize("lanes", [1, 8])
@pytest.mark.parametrize("size", SIZES)
def test_an_object_goes_in_one_conditional_request(
    ceph: Process, monkeypatch: pytest.MonkeyPatch, size: int, lanes: int
) -> None:
    monkeypatch.setattr(copy_module, "AHEAD_BYTES", 1_000_000)
    monkeypatch.setattr(copy_module, "FAST_SOURCE", 1 << 60)
    part = run(opened(ceph), FakeSource(audio(size)), lanes=copy_module.Lanes(lanes))
    assert part.sha256 == sha256(ceph.content(KEY)) == sha256(audio(size))
    assert part.verified_by == ["content-length", "store-checksum"]
    assert asked(ceph) == ["PutObject", "HeadObject"]
    (put,) = ceph.journal("PutObject")
    assert put["conditions"] == {"if-none-match": "*"}
    assert put["bytes"] == size


def test_what_is_there_is_recognised_or_stays(ceph: Process) -> None:
    data = audio(SIZES[1])
    run(opened(ceph), FakeSource(data))
    source = FakeSource(data)
    assert run(opened(ceph), source).action == "already_present"
    assert source.opened == []
    with pytest.raises(errors.ContentConflictError):
        run(opened(ceph), FakeSource(audio(SIZES[1], seed=1)), ids={**IDS, "part_id": "another"})
    assert ceph.content(KEY) == data


def test_who_comes_second_replaces_nothing(ceph: Process) -> None:
    """Both have looked before the first one stored anything."""
    data, other = audio(SIZES[1]), audio(SIZES[1], seed=1)
    shelf = copy_module.Shelf({})
    run(opened(ceph), FakeSource(data), shelf=shelf)
    assert run(opened(ceph), FakeSource(data), shelf=shelf).action == "already_present"
    with pytest.raises(errors.ContentConflictError):
        run(opened(ceph), FakeSource(other), shelf=shelf)
    assert ceph.content(KEY) == data


@pytest.mark.parametrize(
    ("lanes", "how", "error"),
    [
        (1, {"breaks_at": 5_000_000 - 1}, CutError),
        (8, {"breaks_at": 5_000_000 - 1}, CutError),
        (1, {"checksums": {"sha256": "0" * 64}}, errors.SourceChecksumError),
        (8, {"checksums": {"sha256": "0" * 64}}, errors.SourceChecksumError),
        (1, {"length": 5_000_000 - 1}, errors.SourceCutError),
    ],
)
def test_a_wrong_body_is_never_stored(
    ceph: Process, monkeypatch: pytest.MonkeyPatch, lanes: int, how: dict[str, Any], error: type[Exception]
) -> None:
    """Its last byte isn't sent before all is known to be right."""
    monkeypatch.setattr(copy_module, "AHEAD_BYTES", 1_000_000)
    monkeypatch.setattr(copy_module, "FAST_SOURCE", 1 << 60)
    with pytest.raises(error):
        run(opened(ceph), FakeSource(audio(5_000_000), **how), lanes=copy_module.Lanes(lanes))
    assert nothing(ceph)
    assert not [one for one in ceph.journal("PutObject") if one["done"]]


@pytest.mark.parametrize(
    "fault", [{"action": "error", "code": "SlowDown"}, {"action": "drop", "bytes": 1_000_000}, {"action": "drop"}]
)
def test_a_fault_of_the_store_is_survived(ceph: Process, fault: dict[str, Any]) -> None:
    ceph.faults({"operation": "PutObject", **fault})
    source = FakeSource(audio(SIZES[1]))
    assert run(opened(ceph), source).sha256 == sha256(ceph.content(KEY)) == sha256(source.data)
    assert asked(ceph).count("PutObject") == 2


def test_an_object_that_the_store_spoiled_is_taken_back(ceph: Process) -> None:
    ceph.faults({"operation": "PutObject", "action": "corrupt"})
    with pytest.raises(errors.StoredBytesDifferError):
        run(opened(ceph), FakeSource(audio(SIZES[1])))
    assert nothing(ceph)
    assert "GetObject" in asked(ceph)


def test_an_etag_that_is_no_md5_proves_nothing(ceph: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a store that encrypts with a key of its own."""
    monkeypatch.setattr(BareBody, "_pieces", _with_another_md5(BareBody._pieces))
    part = run(opened(ceph), FakeSource(audio(SIZES[1])))
    assert part.verified_by == ["content-length", "read-back"]
    assert asked(ceph) == ["PutObject", "HeadObject", "GetObject"]


def _with_another_md5(pieces: Any) -> Any:
    def pieces_and_md5(self: BareBody) -> Iterator[Any]:
        yield from pieces(self)
        self.md5 = "0" * 32

    return pieces_and_md5


def test_what_would_take_several_requests_is_refused(ceph: Process) -> None:
    source = FakeSource(audio(s3_module.PART_BYTES + 2), length=None)
    with pytest.raises(errors.ConditionsIgnoredError) as caught:
        run(opened(ceph), source)
    assert caught.value.permanent
    assert nothing(ceph)
    small = FakeSource(audio(s3_module.PART_BYTES - 1), length=None)
    assert run(opened(ceph), small).sha256 == sha256(ceph.content(KEY))


@pytest.mark.parametrize("flags", [(), ("--no-if-match",)])
def test_a_newer_gateway_takes_what_needs_several_requests(flags: tuple[str, ...]) -> None:
    """Though several copies find out at the same time that it heeds conditions."""
    with Process("--ceph-ids", *flags, bucket=BUCKET, access_key="testing", secret_key="testing") as server:
        store = opened(server)
        store.stat(KEY)
        datas = [audio(s3_module.PART_BYTES + 2, seed=number) for number in range(4)]

        def archived(number: int) -> None:
            stem, source = f"participant=1/artifact-1/part-{number}", FakeSource(datas[number], length=None)
            archive_body(source, store, stem, folder=FOLDER, source_format="ogg", ids=IDS, duration=None)

        with ThreadPoolExecutor(4) as threads:
            list(threads.map(archived, range(4)))
        assert len(list(store.list())) == 4
        assert server.state()["uploads"] == []


@pytest.mark.parametrize("length", ["true", None])
def test_nothing_is_replaced_when_only_boto3_is_left(ceph: Process, length: int | None | str) -> None:
    """One refusal that looks like that of another region will do."""
    old = audio(1000)
    run(opened(ceph), FakeSource(old))
    store = opened(ceph)
    store.preflight(FOLDER)
    ceph.faults({"operation": "HeadObject", "action": "error", "code": "AuthorizationHeaderMalformed", "status": 400})
    store.stat(KEY)
    assert store.form is None
    with pytest.raises(errors.ConditionsIgnoredError) as caught:
        run(store, FakeSource(audio(3 * s3_module.PART_BYTES), length=length), shelf=copy_module.Shelf({}))
    assert not caught.value.permanent
    assert ceph.content(KEY) == old
    assert ceph.state()["uploads"] == []


def test_a_stray_refusal_does_not_last(ceph: Process) -> None:
    ceph.faults({"operation": "PutObject", "action": "error", "code": "InvalidRequest", "status": 400})
    store = opened(ceph)
    with pytest.raises(errors.StorageError):
        run(store, FakeSource(audio(SIZES[2])))
    assert run(store, FakeSource(audio(SIZES[2]))).sha256 == sha256(ceph.content(KEY))


def test_the_last_byte_waits_whatever_the_chunks() -> None:
    ended = []

    def chunks() -> Iterator[memoryview]:
        for chunk in (b"ab", b"", b"c", b"d", b""):
            yield memoryview(chunk)
        ended.append(True)

    body, sent = BareBody(chunks(), 4), b""
    for piece in body:
        sent += bytes(piece)
        assert ended or len(sent) < 4
    assert (sent, body.md5) == (b"abcd", hashlib.md5(b"abcd", usedforsecurity=False).hexdigest())


def test_a_damaged_object_is_replaced_and_no_other(ceph: Process) -> None:
    data = audio(SIZES[1])
    part = run(opened(ceph), FakeSource(data))
    ceph.control("POST", "tamper", {"key": KEY, "flip": 800})
    damaged = opened(ceph).stat(KEY)
    assert damaged is not None
    another = replace(damaged, etag='"0123456789abcdef0123456789abcdef"')
    with pytest.raises(errors.ContentConflictError):
        run(opened(ceph), FakeSource(data), expected_sha256=part.sha256, replaces=another)
    assert ceph.content(KEY) != data
    repaired = run(opened(ceph), FakeSource(data), expected_sha256=part.sha256, replaces=damaged)
    assert repaired.sha256 == sha256(ceph.content(KEY)) == sha256(data)


def test_boto3_finds_what_was_stored(ceph: Process) -> None:
    run(opened(ceph), FakeSource(audio(SIZES[0])))
    found = make_client(ceph.endpoint).head_object(Bucket=BUCKET, Key=KEY)
    assert (found["ContentLength"], found["ContentType"]) == (SIZES[0], "audio/ogg")
