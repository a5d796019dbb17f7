"""The archive in an S3 bucket, or in a store that speaks the same protocol."""

from __future__ import annotations

import base64
import binascii
import hashlib
import logging
import math
import os
import random
import re
import secrets
import threading
import time
import zlib
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from email.utils import parsedate_to_datetime
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any, TypeVar, cast
from urllib.parse import quote, urlencode, urlsplit

from include.archive.errors import (
    AlreadyExistsError,
    ArchiveError,
    ConditionsIgnoredError,
    IntegrityError,
    NoSuchBucketError,
    ObjectMissingError,
    StorageDeniedError,
    StorageError,
    StorageFullError,
    StorageUnavailableError,
    StoredBytesDifferError,
    UploadLostError,
    WrongRegionError,
)
from include.archive.stores.base import ObjectInfo, Unfinished, check_size, checked_key, is_of_stem
from include.archive.stores.courier import Courier, give_up
from include.archive.stores.s3_access import RefusedError, UnansweredError
from include.archive.stores.s3_wire import CHECKSUM, BareBody, Body, Wire, base64_crc32, base64_sha256, combined_crc32

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
    from types import TracebackType

    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

    from include.archive.stores.base import Flow
    from include.archive.stores.s3_access import Access
    from include.archive.stores.s3_boto3 import Boto3
    from include.archive.stores.s3_xml import Listed, Objects, Uploads

log = logging.getLogger(__name__)

PART_BYTES = 8 * 1024 * 1024
"""Smallest part of a multipart upload, and the largest object of unknown length that goes in a single request."""

BUFFER_BYTES = 256 * 1024
"""Up to so many bytes, an object is held until it is complete, and its notes say what it is.

Longer ones are sent while they are read: with many streams at once, what each holds would be most of the memory.
"""

WHOLE_BYTES = 1024 * 1024 * 1024
"""Longest object that is sent in one request while it is read, and so proven by the SHA-256 that the archive wants.

S3 takes 5 GiB; but a fault of the store midway makes all of it come from the source again.
"""

MOST_BARE_BYTES = 5 * 1024 * 1024 * 1024
"""Longest object that is sent in one request to a store that knows no trailers; it is S3's limit."""

STREAM_BYTES = 64 * 1024 * 1024
"""About how long the parts of a longer one are: what a store's fault midway makes it send again."""

FEW_WAYS = 4
"""On so many connections from the source, bytes come no faster than a single one to the store takes them."""

AHEAD_PART_BYTES = 5 * 1024 * 1024
"""About how long the parts are of a body that comes on several connections.

It is S3's least: the bytes of all parts that are under way wait in memory. And it is a multiple of
:data:`include.archive.ahead.PIECE_BYTES`.
"""

MOST_COURIERS = 32
"""How many parts of one object are under way at the same time."""

MAX_PARTS = 10_000
"""S3 takes no more parts than that."""

_MIB = 1024 * 1024
_PARTS_PER_DOUBLING = 1_000
_ATTEMPTS = 5
_PART_ATTEMPTS = 3
_NO_ETAG = '"00000000000000000000000000000000"'

_KINDS: dict[str, type[ArchiveError]] = {
    "AccessDenied": StorageDeniedError,
    "AccountProblem": StorageDeniedError,
    "AllAccessDisabled": StorageDeniedError,
    "Forbidden": StorageDeniedError,
    "InvalidAccessKeyId": StorageDeniedError,
    "InvalidToken": StorageDeniedError,
    "SignatureDoesNotMatch": StorageDeniedError,
    "Unauthorized": StorageDeniedError,
    "NoSuchBucket": NoSuchBucketError,
    "NoSuchKey": ObjectMissingError,
    "NoSuchUpload": UploadLostError,
    "AuthorizationHeaderMalformed": WrongRegionError,
    "IllegalLocationConstraintException": WrongRegionError,
    "PermanentRedirect": WrongRegionError,
    "PreconditionFailed": AlreadyExistsError,
    "QuotaExceeded": StorageFullError,
    "XMinioStorageFull": StorageFullError,
    "BadDigest": StoredBytesDifferError,
    "InvalidDigest": StoredBytesDifferError,
    "XAmzContentChecksumMismatch": StoredBytesDifferError,
    "XAmzContentSHA256Mismatch": StoredBytesDifferError,
    "IncompleteBody": StorageUnavailableError,
    "NotImplemented": StorageError,
    "RequestTimeout": StorageUnavailableError,
}
_KINDS_BY_STATUS: dict[int, type[ArchiveError]] = {
    301: WrongRegionError,
    307: WrongRegionError,
    401: StorageDeniedError,
    403: StorageDeniedError,
    404: ObjectMissingError,
    409: StorageUnavailableError,
    412: AlreadyExistsError,
    429: StorageUnavailableError,
    507: StorageFullError,
}
# A new try of the task fetches new credentials.
_EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"})
# What older stores make of the word that stands where they expect the body's hash.
_TRAILERS_UNKNOWN = frozenset({"InvalidDigest", "SignatureDoesNotMatch", "XAmzContentSHA256Mismatch"})
_NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "TokenRetrievalError")


def stream_bytes(size: int) -> int:
    """Return how long the parts of an object should be that are sent while they are read."""
    return max(STREAM_BYTES, math.ceil(size / MAX_PARTS))


def ahead_part_bytes(size: int) -> int:
    """Return how long the parts of an object should be that comes on several connections."""
    return max(AHEAD_PART_BYTES, math.ceil(size / MAX_PARTS / _MIB) * _MIB)


def part_bytes(size: int | None, number: int) -> int:
    """Return how long a part of a multipart upload should be, so that :data:`MAX_PARTS` always suffice.

    :param size: bytes of the object, where known: its parts are all of one length, in whole MiB.
    :param number: the part's number, from 1. An object of unknown size begins with small parts that double later on.
    """
    if size is None:
        return PART_BYTES << (number - 1) // _PARTS_PER_DOUBLING
    return max(PART_BYTES, math.ceil(size / MAX_PARTS / _MIB) * _MIB)


_Sent = TypeVar("_Sent")
_Page = TypeVar("_Page", "Objects", "Uploads")


_PASSING = (StorageUnavailableError, StoredBytesDifferError)


class StreamsRefusedError(StorageError):
    """The store takes no bodies that are sent while they are read. Nothing was stored."""


class S3Store:
    """Objects in a bucket, below a prefix.

    Every write carries ``If-None-Match: *``, so the store itself refuses to replace an object, whoever is first; a
    repair carries ``If-Match`` with the version that it found damaged.

    :param bucket: the bucket's name.
    :param prefix: where the archive begins in it, without slashes at the ends; may be empty.
    :param client: a boto3 S3 client, whose address, credentials and connections are used. Only what is beyond
        :class:`include.archive.stores.s3_wire.Wire` goes through the client itself, with its own retries.
    :param access: instead of a client: how the bucket is reached.
    :param buffer_bytes: memory for each object that is being written; longer ones are sent while they are read.
    """

    def __init__(
        self,
        *,
        bucket: str,
        prefix: str,
        client: S3Client | None = None,
        access: Access | None = None,
        buffer_bytes: int = BUFFER_BYTES,
    ) -> None:
        if access is None:
            if client is None:
                raise ValueError("a store in S3 takes a client, or an access")
            from include.archive.stores.s3_boto3 import ClientAccess  # brings botocore

            access = ClientAccess(client, bucket)
        self._bucket = bucket
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._access = access
        self.buffer_bytes = buffer_bytes
        self._wire = self._first_wire = Wire(access) if access.is_plain else None
        self._form: type[Body] | None = Body if self._wire is not None else None
        self._heeds_on_completion = False
        self._vouching = threading.Lock()
        self._boto3: Boto3 | None = None
        self._lock = threading.Lock()

    def _through_boto3(self) -> Boto3:
        from include.archive.stores.s3_boto3 import Boto3  # brings botocore

        with self._lock:  # a session of boto3 can't make two clients at once
            if self._boto3 is None:
                self._boto3 = Boto3(self._access.client(), self._bucket)
            return self._boto3

    def preflight(self, folder: str, *, replacing: bool = False) -> None:
        """See :meth:`include.archive.stores.base.Store.preflight`.

        A write on the condition that the object has an impossible ETag must be refused, and then leaves nothing behind.
        Only where it succeeds is there an object for ``If-None-Match`` to refuse; a store that heeds that one will do,
        except for replacing. Ceph's gateway gets each object in one request, so it need not heed conditions on
        completion.
        """
        probe = f"{folder}/probe.bin"
        for operation, write in (("PutObject", self._probe_put), ("CompleteMultipartUpload", self._probe_upload)):
            heeds_match, ignored = self._heeds(probe, write)
            if heeds_match:
                self._heeds_on_completion = operation != "PutObject"
                continue
            if operation != "PutObject" and self.form is BareBody and self._is_ceph:
                continue
            if replacing and not ignored:
                raise ConditionsIgnoredError(
                    f"{self.uri('')}: the store ignores If-Match on {operation}, so a damaged object can't be replaced "
                    "without the risk of replacing a good one; remove it by hand, then it is fetched again"
                )
            if ignored:
                raise ConditionsIgnoredError(
                    f"{self.uri('')}: the store ignores conditions on {operation} and could replace what is archived; "
                    "use a store that heeds If-None-Match, or a newer version of this one"
                )
        self.abort_stale(f"{folder}/probe")  # those of runs that were killed here

    def stat(self, key: str) -> ObjectInfo | None:
        """See :meth:`include.archive.stores.base.Store.stat`."""
        place = self._place(key)
        try:
            headers = self._sent("HeadObject", key, lambda way: way.head(place))
        except ObjectMissingError:
            return None
        prefix = "x-amz-meta-"
        return ObjectInfo(
            key=key,
            size=int(headers["content-length"]),
            metadata={name[len(prefix) :]: value for name, value in headers.items() if name.startswith(prefix)},
            etag=headers["etag"],
            checksums=_checksums(headers),
            modified=parsedate_to_datetime(headers["last-modified"]).timestamp(),
        )

    def _sent(self, operation: str, key: str, send: Callable[[Wire | Boto3], _Sent]) -> _Sent:
        """Send something that can be sent again, without boto3 where that is possible, until it is answered."""
        for attempt in range(_ATTEMPTS):
            wire = self._wire  # which another thread may give up meanwhile
            try:
                with self._errors(operation, key):
                    return send(wire or self._through_boto3())
            except (StorageError, StoredBytesDifferError) as error:
                is_last = attempt == _ATTEMPTS - 1
                if _is_conflict(error):
                    # S3 wants the whole upload anew after a conflict with another write of the same key.
                    if is_last or operation == "CompleteMultipartUpload":
                        raise
                elif wire is not None and _needs_boto3(error):
                    self._wire = self._form = None
                    continue
                elif is_last or not isinstance(error, _PASSING if wire else StoredBytesDifferError):
                    raise  # boto3 has tried again by itself, except for damaged bytes
            time.sleep(random.uniform(0, 0.2 * 2**attempt))  # noqa: S311 - jitter
        raise StorageUnavailableError(f"{operation} {self.uri(key)}: no attempt is left")

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See :meth:`include.archive.stores.base.Store.list`."""
        for page in self._objects(prefix, self._prefix + prefix):
            for one in page.objects:
                # A console "folder" is an empty object whose key ends with a slash.
                if one.key != self._prefix and not one.key.endswith("/"):
                    yield self._listed(one)

    def _objects(self, prefix: str, place: str, delimiter: str = "") -> Iterator[Objects]:
        """Yield each page of a listing of objects.

        :param prefix: what is listed, for messages.
        :param place: the same in the bucket.
        """
        return self._pages(
            "ListObjectsV2", prefix, lambda way, following: way.objects(place, delimiter, following=following)
        )

    def _pages(self, operation: str, prefix: str, ask: Callable[..., _Page]) -> Iterator[_Page]:
        """Yield each page of a listing.

        :param ask: asks for one, given the way to do so and what the page before named as ``following``.
        """
        following: Any = None
        while True:
            page = self._sent(operation, prefix, partial(ask, following=following))
            yield page
            if page.following is None:
                return
            if page.following == following:
                raise StorageUnavailableError(f"{operation} {self.uri(prefix)}: the listing turns in a circle")
            following = page.following

    def _listed(self, one: Listed) -> ObjectInfo:
        return ObjectInfo(key=one.key[len(self._prefix) :], size=one.size, etag=one.etag, modified=one.modified)

    def each_folder(self, folder: str, name: str) -> Iterator[tuple[str, ObjectInfo | None]]:
        """See :meth:`include.archive.stores.base.Store.each_folder`."""
        prefix = f"{folder}/" if folder else ""

        def below(info: ObjectInfo) -> str:
            first, slash, _ = info.key[len(prefix) :].partition("/")
            return prefix + first if slash else ""

        for one, infos in groupby(self.list(prefix), below):
            if one:
                yield one, next((info for info in infos if info.key == f"{one}/{name}"), None)

    def loose(self, folder: str = "") -> Iterator[ObjectInfo]:
        """See :meth:`include.archive.stores.base.Store.loose`."""
        place = f"{self._prefix}{folder}/" if folder else self._prefix
        for page in self._objects(folder, place, "/"):
            yield from (self._listed(one) for one in page.objects if one.key != place)

    def unfinished(self, prefix: str = "") -> Iterator[Unfinished]:
        """See :meth:`include.archive.stores.base.Store.unfinished`."""
        place = self._prefix + prefix
        pages = self._pages(
            "ListMultipartUploads", prefix, lambda way, following: way.uploads(place, following=following)
        )
        for page in pages:
            for one in page.uploads:
                yield Unfinished(key=one.key[len(self._prefix) :], mark=one.upload_id, since=one.since)

    def discard(self, unfinished: Unfinished) -> bool:
        """See :meth:`include.archive.stores.base.Store.discard`."""
        return self.abort_upload(unfinished.key, unfinished.mark)

    def folders(self, folder: str = "") -> Iterator[str]:
        """See :meth:`include.archive.stores.base.Store.folders`."""
        place = f"{self._prefix}{folder}/" if folder else self._prefix
        for page in self._objects(folder, place, "/"):
            yield from (one[len(self._prefix) :].rstrip("/") for one in page.folders)

    def read(self, key: str, start: int = 0) -> Iterator[bytes]:
        """See :meth:`include.archive.stores.base.Store.read`."""
        place = self._place(key)
        try:
            headers, chunks = self._sent("GetObject", key, lambda way: way.get(place, start))
        except StorageError as error:
            if _status_of(error) == 416:
                return
            raise
        checksums = {} if start else _checksums(headers)
        crc32, sha256 = 0, hashlib.sha256()
        with closing(cast("Generator[bytes]", chunks)), self._errors("GetObject", key):
            for chunk in chunks:
                if "crc32" in checksums:
                    crc32 = zlib.crc32(chunk, crc32)
                if "sha256" in checksums:
                    sha256.update(chunk)
                yield chunk
        found = {"crc32": f"{crc32:08x}", "sha256": sha256.hexdigest()}
        if not checksums.items() <= found.items():
            raise IntegrityError(f"{self.uri(key)}: the bytes do not match the store's own checksum")

    def write(
        self,
        key: str,
        *,
        media_type: str,
        size: int | None = None,
        metadata: Mapping[str, str] | None = None,
        replaces: ObjectInfo | None = None,
    ) -> S3Writer:
        """See :meth:`include.archive.stores.base.Store.write`."""
        return S3Writer(
            store=self,
            key=checked_key(key),
            media_type=media_type,
            size=size,
            metadata=metadata or {},
            replaces=replaces,
        )

    def put_if_absent(self, key: str, data: bytes, media_type: str, metadata: Mapping[str, str] | None = None) -> bool:
        """See :meth:`include.archive.stores.base.Store.put_if_absent`."""
        try:
            sha256 = hashlib.sha256(data).hexdigest()
            self.put(key, data, media_type=media_type, metadata=metadata or {}, sha256=sha256)
        except AlreadyExistsError:
            return False
        return True

    def abort_stale(self, *stems: str) -> int:
        """See :meth:`include.archive.stores.base.Store.abort_stale`."""
        beginning = os.path.commonprefix([f"{checked_key(stem)}." for stem in stems])
        return self._abort_uploads(beginning, lambda key, _: any(is_of_stem(key, stem) for stem in stems))

    def abort_stale_below(self, folders: Sequence[str]) -> int:
        """See :meth:`include.archive.stores.base.Store.abort_stale_below`."""
        places = tuple(f"{checked_key(folder)}/" for folder in folders)
        return self._abort_uploads(os.path.commonprefix(places), lambda key, _: key.startswith(places))

    def _abort_uploads(self, prefix: str, is_stale: Callable[[str, str], bool]) -> int:
        """Abort uploads by their key and id."""
        return sum(self.discard(one) for one in self.unfinished(prefix) if is_stale(one.key, one.mark))

    def uri(self, key: str) -> str:
        """See :meth:`include.archive.stores.base.Store.uri`."""
        return f"s3://{self._bucket}/{self._prefix}{key}"

    def browse_url(self, key: str) -> str | None:
        """See :meth:`include.archive.stores.base.Store.browse_url`."""
        host, region = urlsplit(self._access.address).hostname or "", self._access.region
        for suffix, console in (
            (".amazonaws.com", "console.aws.amazon.com"),
            (".amazonaws.com.cn", "console.amazonaws.cn"),
        ):
            if host.endswith(suffix):
                is_object = "." in key.rpartition("/")[2]
                place = self._prefix + key if is_object else f"{self._prefix}{key}".rstrip("/") + "/"
                query = urlencode({"region": region, "prefix": place}, quote_via=quote, safe="/")
                return f"https://{region}.{console}/s3/{'object' if is_object else 'buckets'}/{self._bucket}?{query}"
        return None

    def _place(self, key: str) -> str:
        return self._prefix + checked_key(key)

    def put(
        self,
        key: str,
        data: bytes | memoryview,
        *,
        media_type: str,
        metadata: Mapping[str, str],
        sha256: str,
        replaces: ObjectInfo | None = None,
    ) -> None:
        """Store an object in one request, if its key is free, or still holds the version to be replaced.

        :raises AlreadyExistsError: when the key is taken.
        """
        place, headers = self._place(key), _new_object(media_type, metadata, replaces)
        headers[f"{CHECKSUM}sha256"] = base64_sha256(sha256)
        self._sent("PutObject", key, lambda way: way.put(place, data, headers))

    def put_stream(
        self,
        key: str,
        body: Body,
        *,
        media_type: str,
        metadata: Mapping[str, str],
        replaces: ObjectInfo | None = None,
    ) -> None:
        """Store an object while it is read, if its key is free, or still holds the version to be replaced.

        :raises AlreadyExistsError: when the key is taken.
        """
        self._stream("PutObject", key, body, _new_object(media_type, metadata, replaces), {})

    def upload_stream(self, key: str, upload_id: str, number: int, body: Body) -> CompletedPartTypeDef:
        """Send one part while it is read."""
        reply = self._stream("UploadPart", key, body, {}, {"partNumber": str(number), "uploadId": upload_id})
        return {"PartNumber": number, "ETag": reply["etag"], "ChecksumCRC32": base64_crc32(body.crc32)}

    def _stream(
        self, operation: str, key: str, body: Body, headers: Mapping[str, str], query: Mapping[str, str]
    ) -> Mapping[str, str]:
        wire = self._wire
        if wire is None:
            raise StreamsRefusedError(f"{operation} {self.uri(key)}: only boto3 reaches this bucket")
        with self._errors(operation, key):
            return wire.put_stream(self._place(key), body, headers, query)

    def create_upload(self, key: str, *, media_type: str, metadata: Mapping[str, str]) -> str:
        """Begin a multipart upload whose checksum will cover the whole object."""
        place, attempts = self._place(key), 0
        headers = _headers(media_type, metadata) | {
            f"{CHECKSUM}algorithm": "CRC32",
            f"{CHECKSUM}type": "FULL_OBJECT",
        }

        def send(way: Wire | Boto3) -> tuple[str, bool]:
            nonlocal attempts
            attempts += 1
            return way.create_upload(place, headers)

        upload_id, was_repeated = self._sent("CreateMultipartUpload", key, send)
        if was_repeated or attempts > 1:
            # The first answer may have been lost, and with it the id of an upload that nobody would ever end.
            self._abort_uploads(key, lambda other, mark: other == key and mark != upload_id)
        return upload_id

    def upload_part(self, key: str, upload_id: str, number: int, data: bytes) -> CompletedPartTypeDef:
        """Send one part, again if it was damaged on the way."""
        place, crc32 = self._place(key), base64_crc32(zlib.crc32(data))
        headers = {f"{CHECKSUM}crc32": crc32}
        etag = self._sent("UploadPart", key, lambda way: way.put_part(place, upload_id, number, data, headers))
        return {"PartNumber": number, "ETag": etag, "ChecksumCRC32": crc32}

    def complete_upload(
        self,
        key: str,
        upload_id: str,
        parts: Sequence[CompletedPartTypeDef],
        *,
        size: int,
        crc32: int,
        replaces: ObjectInfo | None = None,
    ) -> None:
        """Make an upload visible, if its parts add up to what was sent and its key is free, or to be replaced.

        :raises AlreadyExistsError: when the key is taken.
        """
        place = self._place(key)
        headers = {
            f"{CHECKSUM}crc32": base64_crc32(crc32),
            f"{CHECKSUM}type": "FULL_OBJECT",
            "x-amz-mp-object-size": str(size),
            **_condition(replaces),
        }
        self._sent("CompleteMultipartUpload", key, lambda way: way.complete_upload(place, upload_id, parts, headers))

    @property
    def form(self) -> type[Body] | None:
        """How bodies are sent while they are read: with trailers, bare, or not at all."""
        return BareBody if self._form is Body and self._is_ceph else self._form

    @property
    def _is_ceph(self) -> bool:
        return self._first_wire is not None and self._first_wire.is_ceph

    def give_up_form(self, form: type[Body]) -> None:
        """Send no more bodies in a form that the store does not take; several threads may find that out."""
        if self.form is form:
            self._form = BareBody if form is Body else None

    def vouch_for_uploads(self, key: str) -> None:
        """Find out, once, whether uploads are completed on condition alone, where a preflight has left that open.

        It leaves it open for Ceph's gateway, and whoever has lost the plain way to a bucket can't tell what that is.

        :param key: of an upload that is wanted.
        :raises ConditionsIgnoredError: when they aren't.
        """
        if not (self._is_ceph or (self._wire is None and self._access.is_plain)):
            return
        with self._vouching:
            if self._heeds_on_completion:
                return
            folder, slash, _ = key.rpartition("/")
            _, ignored = self._heeds(f"{folder}{slash}probe-{secrets.token_hex(8)}.bin", self._probe_upload)
            if ignored:
                raise ConditionsIgnoredError(
                    f"{self.uri(key)}: its length is unknown, or more than 5 GiB, or only boto3 reaches the bucket, so "
                    "it would take several requests; and the store ignores conditions on the last of them, and could "
                    "replace what is archived: use a newer version of the store",
                    permanent=self._wire is not None,
                )
            self._heeds_on_completion = True

    def _heeds(self, probe: str, write: Callable[[str, Mapping[str, str]], bool]) -> tuple[bool, bool]:
        """Tell whether writes heed ``If-Match``, and whether they ignore ``If-None-Match``; leave nothing behind."""
        if not write(probe, {"If-Match": _NO_ETAG}):
            return True, False
        ignored = write(probe, {"If-None-Match": "*"})
        with suppress(StorageError):
            self._delete(probe, {})
        return False, ignored

    def _probe_put(self, probe: str, condition: Mapping[str, str]) -> bool:
        """Tell whether a conditional write succeeded."""
        # Where a bucket locks its objects, S3 takes none without a checksum.
        headers = {f"{CHECKSUM}sha256": base64_sha256(hashlib.sha256(b"").hexdigest()), **condition}
        place = self._place(probe)
        try:
            self._sent("PutObject", probe, lambda way: way.put(place, b"", headers))
        except (AlreadyExistsError, ObjectMissingError):
            return False
        return True

    def _probe_upload(self, probe: str, condition: Mapping[str, str]) -> bool:
        for _ in range(_ATTEMPTS):
            # Another run that tidies up behind its own probe may take this one away.
            with suppress(UploadLostError):
                return self._probe_upload_once(probe, condition)
        raise StorageUnavailableError(f"{self.uri(probe)}: uploads disappear before they are complete")

    def _probe_upload_once(self, probe: str, condition: Mapping[str, str]) -> bool:
        place = self._place(probe)
        upload_id = self.create_upload(probe, media_type="application/octet-stream", metadata={})
        try:
            parts = [self.upload_part(probe, upload_id, 1, b"\0")]
            self._sent(
                "CompleteMultipartUpload", probe, lambda way: way.complete_upload(place, upload_id, parts, condition)
            )
        except (AlreadyExistsError, ObjectMissingError):
            self.abort_upload(probe, upload_id)
            return False
        except BaseException:
            self.abort_upload(probe, upload_id)
            raise
        return True

    def delete(self, info: ObjectInfo) -> None:
        """See :meth:`include.archive.stores.base.Store.delete`."""
        with suppress(ObjectMissingError):
            self._delete(info.key, {"If-Match": info.etag or "*"})

    def _delete(self, key: str, condition: Mapping[str, str]) -> None:
        place = self._place(key)
        self._sent("DeleteObject", key, lambda way: way.delete(place, condition))

    def abort_upload(self, key: str, upload_id: str) -> bool:
        """Remove an unfinished upload; False when it was gone, or the store refused."""
        place = self._place(key)
        try:
            self._sent("AbortMultipartUpload", key, lambda way: way.abort_upload(place, upload_id))
        except UploadLostError:
            return False
        except StorageError as error:
            log.warning("leftover_upload: upload %s of %s stays open (%s)", upload_id, self.uri(key), error.code)
            return False
        return True

    @contextmanager
    def _errors(self, operation: str, key: str) -> Iterator[None]:
        """Turn the store's refusals into what they mean for the archive; the store's own words stay out."""
        doing = f"{operation} {self.uri(key)}"
        try:
            yield
        except RefusedError as error:
            raise _from_reply(error, doing) from error
        except UnansweredError as error:
            if error.reason in _NO_CREDENTIALS:
                raise StorageDeniedError(
                    f"{doing}: no usable credentials ({error.reason}); give the store's connection a login and a "
                    "password, or the machine a role"
                ) from error
            raise StorageUnavailableError(f"{doing}: {error.reason}") from error


class S3Writer:
    """One object being written, see :class:`include.archive.stores.base.Writer`.

    What fits into the store's buffer goes in a single request when it is committed. A longer object of known length is
    sent while it is read: in one request, or as a multipart upload whose completion makes it visible. Where the length
    is unknown, or the store takes no such streams, parts are collected in a buffer of their length.
    """

    def __init__(
        self,
        *,
        store: S3Store,
        key: str,
        media_type: str,
        size: int | None,
        metadata: Mapping[str, str],
        replaces: ObjectInfo | None,
    ) -> None:
        self._store = store
        self._key = key
        self._media_type = media_type
        self._size = size
        self._metadata = dict(metadata)
        self._replaces = replaces
        self._crc: int | None = None
        self._written = 0
        self._upload_id: str | None = None
        self._parts: list[CompletedPartTypeDef] = []
        self._buffer = bytearray()
        self._filled = 0
        self._form = Body
        self._is_streamed = False
        self._md5: str | None = None
        self._committed: ObjectInfo | None = None

    @property
    def crc32(self) -> int | None:
        """See :attr:`include.archive.stores.base.Writer.crc32`."""
        return self._crc

    @property
    def md5(self) -> str | None:
        """See :attr:`include.archive.stores.base.Writer.md5`."""
        return self._md5

    def write(self, data: memoryview) -> None:
        """See :meth:`include.archive.stores.base.Writer.write`."""
        if self._size is not None and self._written + len(data) > self._size:
            check_size(self._key, self._size, self._written + len(data))
        self._written += len(data)
        if len(data) == self._size and self._size <= self._next_part_bytes():
            self._buffer, self._filled = bytearray(data), len(data)  # one copy, without zeros first
            return
        if not self._buffer:
            self._buffer = bytearray(min(self._next_part_bytes(), self._size or self._next_part_bytes()))
        while data:
            # A full buffer waits for one more byte, because an object of exactly one part needs no upload.
            if self._filled == len(self._buffer):
                self._send_part()
            taken = min(len(data), len(self._buffer) - self._filled)
            self._buffer[self._filled : self._filled + taken] = data[:taken]
            self._filled += taken
            data = data[taken:]

    def take(self, flow: Flow, notes: Callable[[], Mapping[str, str]]) -> ObjectInfo:
        """See :meth:`include.archive.stores.base.Writer.take`."""
        size, form = self._size or 0, self._store.form
        if size > self._store.buffer_bytes and form is not None and (form is Body or size <= MOST_BARE_BYTES):
            self._form, self._is_streamed = form, True
            if form is Body and flow.ways > FEW_WAYS and size > AHEAD_PART_BYTES:
                return self._take_side_by_side(flow, notes)
            if form is Body and size > WHOLE_BYTES:
                return self._take_parts(flow, notes)
            return self._take_whole(flow)
        for chunk in flow.chunks():
            self.write(chunk)
        return self._commit(notes(), flow.sha256)

    def _take_whole(self, flow: Flow) -> ObjectInfo:
        def send(body: Body) -> None:
            try:
                self._store.put_stream(
                    self._key,
                    body,
                    media_type=self._media_type,
                    metadata=self._metadata,
                    replaces=self._replaces,
                )
            except StorageUnavailableError:
                self._raise_if_there()
                raise
            self._md5 = body.md5

        self._streamed(flow, self._size or 0, send, lambda: flow.sha256)
        return self._stored()

    def _take_parts(self, flow: Flow, notes: Callable[[], Mapping[str, str]]) -> ObjectInfo:
        size = self._size or 0
        upload_id = self._create_upload()
        while self._written < size:
            count, number = min(stream_bytes(size), size - self._written), len(self._parts) + 1
            send = partial(self._store.upload_stream, self._key, upload_id, number)
            self._add_part(self._streamed(flow, count, send), count)
            self._written += count
        return self.commit(notes())

    def _take_side_by_side(self, flow: Flow, notes: Callable[[], Mapping[str, str]]) -> ObjectInfo:
        """Send several parts at a time, as their bytes come in order: one connection would be as slow as the source's.

        A part that the store does not take is read again, and must be the same.
        """
        size, begun = self._size or 0, 0
        flow.sum_ahead()
        upload_id = self._create_upload()
        under_way: deque[tuple[Courier[CompletedPartTypeDef], int]] = deque()
        threads = ThreadPoolExecutor(MOST_COURIERS, "courier")
        try:
            while begun < size:
                count, number = min(ahead_part_bytes(size), size - begun), len(self._parts) + len(under_way) + 1
                send = partial(self._store.upload_stream, self._key, upload_id, number)
                courier = Courier(count, send)
                under_way.append((courier, begun))
                courier.start(threads)
                courier.carry(flow)
                begun += count
                while under_way and (under_way[0][0].answer.done() or len(under_way) >= MOST_COURIERS):
                    self._arrived(flow, *under_way[0])
                    under_way.popleft()
            while under_way:
                self._arrived(flow, *under_way[0])
                under_way.popleft()
        finally:
            give_up([courier for courier, _ in under_way])
            threads.shutdown(wait=False)
        return self.commit(notes())

    def _arrived(self, flow: Flow, courier: Courier[CompletedPartTypeDef], start: int) -> None:
        """Note a part that was sent; send it anew, as often as it may be, where the store did not take it."""
        send = partial(courier.arrived, flow)
        for attempts_left in range(_PART_ATTEMPTS, -1, -1):
            try:
                part = send()
                break
            except (StorageError, StoredBytesDifferError) as error:
                self._give_up_streams(error)
                if not isinstance(error, _PASSING) or not attempts_left:
                    raise
            time.sleep(random.uniform(0, 0.2 * 2 ** (_PART_ATTEMPTS - attempts_left)))  # noqa: S311 - jitter
            send = partial(courier.again, Body(flow.again(start, courier.body.size), courier.body.size))
        self._add_part(part, courier.body.size)
        self._written += courier.body.size

    def _streamed(
        self, flow: Flow, count: int, send: Callable[[Body], _Sent], sha256: Callable[[], str] | None = None
    ) -> _Sent:
        """Send the next bytes of a flow, as often as the flow can go back to where they begin."""
        flow.mark()
        while True:
            body = self._form(flow.chunks(count), count, sha256)
            try:
                if flow.can_keep:
                    return self._carried(flow, count, send, sha256)
                return send(body)
            except (StorageError, StoredBytesDifferError) as error:
                if body.failure is not None:
                    raise
                self._give_up_streams(error)
                if not isinstance(error, _PASSING):
                    raise
                flow.back(error)

    def _carried(
        self, flow: Flow, count: int, send: Callable[[Body], _Sent], sha256: Callable[[], str] | None
    ) -> _Sent:
        """Send the next bytes of a flow while those that follow are read and hashed."""
        threads = ThreadPoolExecutor(1, "courier")
        courier = Courier(count, send, sha256, self._form)
        try:
            courier.start(threads)
            courier.carry(flow, is_all_wanted=False)
            return courier.arrived(flow)
        finally:
            give_up([courier])
            threads.shutdown(wait=False)

    def _give_up_streams(self, error: ArchiveError) -> None:
        # A bare body is as plain as what is collected, so whoever refuses it refuses that too.
        is_refused = self._form is not BareBody and not self._parts and _refuses_streams(error)
        if is_refused or isinstance(error, StreamsRefusedError):
            self._store.give_up_form(self._form)
            raise UploadLostError(f"{error.message}; it is sent in another form instead") from error

    def commit(self, metadata: Mapping[str, str]) -> ObjectInfo:
        """See :meth:`include.archive.stores.base.Writer.commit`."""
        return self._commit(metadata)

    def _commit(self, metadata: Mapping[str, str], sha256: str | None = None) -> ObjectInfo:
        check_size(self._key, self._size, self._written)
        try:
            if self._upload_id is None:
                content, notes = self._content(), {**self._metadata, **metadata}
                self._store.put(
                    self._key,
                    content,
                    media_type=self._media_type,
                    metadata=notes,
                    sha256=sha256 or hashlib.sha256(content).hexdigest(),
                    replaces=self._replaces,
                )
            else:
                if self._filled:
                    self._send_part()
                self._complete()
        except (StorageUnavailableError, UploadLostError):
            self._raise_if_there()
            raise
        return self._stored()

    def _raise_if_there(self) -> None:
        """Raise AlreadyExistsError if a request succeeded after all and only its answer was lost."""
        info = self._store.stat(self._key)
        if info is not None and (self._replaces is None or info.etag != self._replaces.etag):
            raise AlreadyExistsError(f"{self._store.uri(self._key)} already exists") from None

    def _stored(self) -> ObjectInfo:
        """Ask for what was committed; it is taken back if the store took the form of a stream for its content."""
        self._committed = info = self._store.stat(self._key)
        if info is None:
            raise StorageUnavailableError(f"{self._store.uri(self._key)}: not there although it was just stored")
        if self._is_streamed and info.size != self._size:
            self._store.give_up_form(self._form)
            self.withdraw()
            raise UploadLostError(f"{self._store.uri(self._key)}: the store doesn't understand streams")
        # An ETag is the MD5 of what a store got, unless it encrypts with a key of its own.
        if self._md5 is not None and info.etag == f'"{self._md5}"':
            return replace(info, checksums={**info.checksums, "md5": self._md5})
        return info

    def abort(self) -> None:
        """See :meth:`include.archive.stores.base.Writer.abort`."""
        self._buffer = bytearray()
        if self._upload_id is not None and self._committed is None:
            self._store.abort_upload(self._key, self._upload_id)
            self._upload_id = None

    def withdraw(self) -> None:
        """See :meth:`include.archive.stores.base.Writer.withdraw`."""
        if self._committed is not None and self._replaces is None:
            self._store.delete(self._committed)

    def _next_part_bytes(self) -> int:
        return part_bytes(self._size, len(self._parts) + 1)

    def _content(self) -> bytes:
        # A whole buffer is sent as it stands, without a copy; botocore takes a bytearray, its types do not say so.
        return (
            cast("bytes", self._buffer)
            if self._filled == len(self._buffer)
            else bytes(memoryview(self._buffer)[: self._filled])
        )

    def _create_upload(self) -> str:
        self._store.vouch_for_uploads(self._key)
        self._upload_id = self._store.create_upload(self._key, media_type=self._media_type, metadata=self._metadata)
        return self._upload_id

    def _send_part(self) -> None:
        upload_id = self._upload_id or self._create_upload()
        part = self._store.upload_part(self._key, upload_id, len(self._parts) + 1, self._content())
        self._add_part(part, self._filled)
        self._filled = 0
        if self._next_part_bytes() > len(self._buffer):
            self._buffer = bytearray(self._next_part_bytes())

    def _add_part(self, part: CompletedPartTypeDef, count: int) -> None:
        self._parts.append(part)
        crc32 = int.from_bytes(base64.b64decode(part["ChecksumCRC32"]), "big")
        self._crc = combined_crc32(self._crc or 0, crc32, count)

    def _complete(self) -> None:
        try:
            self._store.complete_upload(
                self._key,
                str(self._upload_id),
                self._parts,
                size=self._written,
                crc32=self._crc or 0,
                replaces=self._replaces,
            )
        except StorageUnavailableError as error:
            if _is_conflict(error):
                # S3 wants the whole upload anew after a conflict with another write of the same key.
                raise UploadLostError(f"{self._store.uri(self._key)}: another write was under way") from error
            raise

    def __enter__(self) -> S3Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()


def _from_reply(error: RefusedError, doing: str) -> ArchiveError:
    status, code = error.status, re.sub(r"[^A-Za-z0-9._-]", "", error.code)[:64]
    message = f"{doing}: {code or 'no code'} (HTTP {status})"
    if code in _EXPIRED:
        return StorageDeniedError(message, permanent=False)
    kind = _KINDS.get(code) or _KINDS_BY_STATUS.get(status)
    if kind is None and status == 400 and code in {"", "400"}:
        return StorageError(message, permanent=False)  # all that a HEAD tells of credentials that have expired
    if kind is None:
        kind = StorageUnavailableError if status >= 500 or status == 200 else StorageError
    return kind(message)


def _status_of(error: ArchiveError) -> int | None:
    cause = error.__cause__
    return cause.status if isinstance(cause, RefusedError) else None


def _is_conflict(error: ArchiveError) -> bool:
    return _status_of(error) == 409


def _needs_boto3(error: ArchiveError) -> bool:
    """Tell whether the bucket lives elsewhere, which boto3 finds out by itself; a refused HEAD may not say so."""
    return isinstance(error, WrongRegionError) or (type(error) is StorageError and _status_of(error) == 400)


def _refuses_streams(error: ArchiveError) -> bool:
    """Tell whether a store has no word for what it was sent."""
    cause = error.__cause__
    if isinstance(cause, RefusedError) and cause.code in _TRAILERS_UNKNOWN:
        return True
    status = _status_of(error)
    malformed = status == 400 and not isinstance(error, _PASSING)
    return malformed or status in {405, 411, 501} or isinstance(error, WrongRegionError)


def _headers(media_type: str, metadata: Mapping[str, str]) -> dict[str, str]:
    return {"Content-Type": media_type, **{f"x-amz-meta-{name}": value for name, value in metadata.items()}}


def _new_object(media_type: str, metadata: Mapping[str, str], replaces: ObjectInfo | None) -> dict[str, str]:
    """Return the headers of an upload that must not replace anything but that one version."""
    return {**_headers(media_type, metadata), **_condition(replaces)}


def _condition(replaces: ObjectInfo | None) -> dict[str, str]:
    return {"If-None-Match": "*"} if replaces is None else {"If-Match": replaces.etag or _NO_ETAG}


def _checksums(headers: Mapping[str, str]) -> dict[str, str]:
    found = {}
    for algorithm in ("crc32", "sha256"):
        value = headers.get(CHECKSUM + algorithm)
        # A composite checksum is one of the parts' checksums, not of the object.
        if value and "-" not in value and headers.get("x-amz-checksum-type", "FULL_OBJECT") == "FULL_OBJECT":
            try:
                found[algorithm] = base64.b64decode(value, validate=True).hex()
            except binascii.Error:
                continue
    return found
