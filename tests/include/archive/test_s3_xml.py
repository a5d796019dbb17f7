"""What S3 answers in XML, and what answers in its place."""

from __future__ import annotations

import tracemalloc
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import pytest

from include.archive import errors
from include.archive.stores import s3_xml
from include.archive.stores.s3 import S3Store
from include.archive.stores.s3_access import Reply, UnansweredError
from include.archive.stores.s3_wire import Wire
from tests.include.archive.conftest import BUCKET, make_access

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.strict_s3.process import Process

DECLARED = '<?xml version="1.0" encoding="UTF-8"?>\n'
OBJECT = "<Key>a%2Fb+c%26.json</Key><LastModified>2026-03-04T05:06:07.250Z</LastModified><ETag>&quot;e&quot;</ETag>"
PAGE = (
    f'{DECLARED}<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><EncodingType>url</EncodingType>'
    f"<IsTruncated>true</IsTruncated><NextContinuationToken>t&amp;1</NextContinuationToken>"
    f"<Contents>{OBJECT}<Size>7</Size><Owner><ID>Key</ID></Owner></Contents>"
    "<CommonPrefixes><Prefix>a%2Fd/</Prefix></CommonPrefixes></ListBucketResult>"
)
BOMB = (
    '<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa">'
    + "".join(f'<!ENTITY {one}{one} "{f"&{one};" * 10}">' for one in "a")
    + "]><ListBucketResult>&aa;</ListBucketResult>"
)
NO_PAGES = [
    b"",
    b" \n ",
    b"<html>",
    b"<html></html>",
    PAGE[: len(PAGE) // 2].encode(),
    PAGE.replace("7", "many").encode(),
    PAGE.replace("2026", "soon").encode(),
    b"<ListBucketResult/><ListBucketResult/>",
    b"<ListBucketResult>\xff</ListBucketResult>",
    BOMB.encode(),
    b'<!DOCTYPE a SYSTEM "file:///etc/passwd"><ListBucketResult/>',
    b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><ListBucketResult>&x;</ListBucketResult>',
    b"<a>" * 100_000,
    b"<a>" * 100_000 + b"</a>" * 100_000,
]


def answering(*answers: bytes) -> Callable[[Any], Reply]:
    left = list(answers)
    return lambda request: Reply(200, {}, left.pop(0) if len(left) > 1 else left[0])


def wire_of(*answers: bytes) -> Any:
    wire: Any = Wire(make_access("http://127.0.0.1:1"))
    wire._transmit = answering(*answers)
    return wire


def test_a_page_of_objects() -> None:
    moment = datetime(2026, 3, 4, 5, 6, 7, 250_000, tzinfo=timezone.utc).timestamp()
    page = wire_of(PAGE.encode()).objects("a/", "/", None)
    assert page == ([("a/b c&.json", 7, '"e"', moment)], ["a/d/"], "t&1")
    plain = PAGE.replace("<EncodingType>url</EncodingType>", "").replace("true", "false")
    page = wire_of(plain.encode()).objects("a/", "/", None)
    assert page == ([("a%2Fb+c%26.json", 7, '"e"', moment)], ["a%2Fd/"], None)


@pytest.mark.parametrize("answer", NO_PAGES)
def test_what_is_no_page_is_no_answer(answer: bytes) -> None:
    with pytest.raises(UnansweredError, match="UnreadableReply"):
        wire_of(answer).objects("", "", None)
    with pytest.raises(UnansweredError, match="UnreadableReply"):
        wire_of(answer).create_upload("a", {})


def test_a_small_answer_stays_small() -> None:
    tracemalloc.start()
    for answer in NO_PAGES:
        with pytest.raises(UnansweredError):
            wire_of(answer).objects("", "", None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 2**20


def test_an_upload_without_an_id_was_not_begun() -> None:
    with pytest.raises(UnansweredError):
        wire_of(b"<InitiateMultipartUploadResult/>").create_upload("a", {})


def test_parts_are_named_as_they_are() -> None:
    content = s3_xml.parts([{"PartNumber": 1, "ETag": '"a<&>"', "ChecksumCRC32": "+/=="}])
    root = s3_xml.read(content)
    (part,) = root.all("Part")
    assert (part["PartNumber"], part["ETag"], part["ChecksumCRC32"]) == ("1", '"a<&>"', "+/==")


def test_a_listing_that_turns_in_a_circle_ends() -> None:
    store: Any = S3Store(bucket=BUCKET, prefix="", access=make_access("http://127.0.0.1:1"))
    store._wire._transmit = answering(PAGE.encode())
    with pytest.raises(errors.StorageUnavailableError, match="circle"):
        list(store.list())


@pytest.mark.parametrize("count", [0, 1, 1000, 1001, 2500])
def test_listings_go_on_for_as_many_pages_as_there_are(strict: Process, s3: Any, count: int) -> None:
    """Objects, folders and uploads, of which S3 gives a thousand at a time."""
    access = make_access(strict.endpoint)
    store, wire = S3Store(bucket=BUCKET, prefix="p", access=access), Wire(access)
    keys = sorted(f"d/{number}.bin" for number in range(count))
    for key in keys:
        wire.put(f"p/{key}", b"", {"If-None-Match": "*", "x-amz-checksum-sha256": EMPTY})
    assert [one.key for one in store.list("d/")] == keys
    assert [one.key for one in store.loose("d")] == keys
    assert [one for one, _ in store.each_folder("", "x")] == (["d"] if count else [])
    assert list(store.folders()) == (["d"] if count else [])
    if count <= 1001:
        ids = [store.create_upload(f"u/{number}.bin", media_type="x", metadata={}) for number in range(count)]
        assert sorted(one.mark for one in store.unfinished("u/")) == sorted(ids)
        assert store.abort_stale_below(["u"]) == count


EMPTY = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="
