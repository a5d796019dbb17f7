"""The operations of S3: which request is which, and what each does."""

from __future__ import annotations

import base64
import hashlib
import re
import time
from dataclasses import dataclass
from email.utils import formatdate
from typing import TYPE_CHECKING, Any
from urllib.parse import quote
from xml.etree import ElementTree

from tests.strict_s3 import checksums
from tests.strict_s3.state import Part, StoredObject, Upload, matches, precondition_failed
from tests.strict_s3.wire import Reply, S3Error, xml

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from tests.strict_s3.faults import Rule
    from tests.strict_s3.state import Blob, Bucket, Intake
    from tests.strict_s3.wire import Request

MIN_PART = 5 * 1024 * 1024
MAX_PARTS = 10_000
MAX_METADATA = 2 * 1024
MAX_KEY = 1024

_KEPT_HEADERS = (
    "cache-control",
    "content-disposition",
    "content-encoding",
    "content-language",
    "content-type",
    "expires",
)
_AMZ_HEADERS = frozenset(
    {
        "x-amz-checksum-algorithm",
        "x-amz-checksum-mode",
        "x-amz-checksum-type",
        "x-amz-content-sha256",
        "x-amz-date",
        "x-amz-decoded-content-length",
        "x-amz-mp-object-size",
        "x-amz-sdk-checksum-algorithm",
        "x-amz-security-token",
        "x-amz-te",
        "x-amz-trailer",
        "x-amz-user-agent",
    }
)


@dataclass(frozen=True, kw_only=True)
class Operation:
    """How a request is recognised. ``needs`` and ``may`` are the names in its query."""

    name: str
    method: str
    on: str
    action: str
    needs: frozenset[str] = frozenset()
    may: frozenset[str] = frozenset()


def _operation(name: str, method: str, on: str, action: str, needs: str = "", may: str = "") -> Operation:
    return Operation(
        name=name, method=method, on=on, action=action, needs=frozenset(needs.split()), may=frozenset(may.split())
    )


OPERATIONS = (
    _operation("HeadBucket", "HEAD", "bucket", "ListBucket"),
    _operation("GetBucketLocation", "GET", "bucket", "GetBucketLocation", "location"),
    _operation(
        "ListObjectsV2",
        "GET",
        "bucket",
        "ListBucket",
        "list-type",
        "prefix delimiter max-keys continuation-token start-after encoding-type fetch-owner",
    ),
    _operation(
        "ListMultipartUploads",
        "GET",
        "bucket",
        "ListBucketMultipartUploads",
        "uploads",
        "prefix delimiter max-uploads key-marker upload-id-marker encoding-type",
    ),
    _operation("PutObject", "PUT", "object", "PutObject"),
    _operation("GetObject", "GET", "object", "GetObject"),
    _operation("HeadObject", "HEAD", "object", "GetObject"),
    _operation("DeleteObject", "DELETE", "object", "DeleteObject"),
    _operation("CreateMultipartUpload", "POST", "object", "PutObject", "uploads"),
    _operation("UploadPart", "PUT", "object", "PutObject", "partNumber uploadId"),
    _operation("CompleteMultipartUpload", "POST", "object", "PutObject", "uploadId"),
    _operation("AbortMultipartUpload", "DELETE", "object", "AbortMultipartUpload", "uploadId"),
    _operation(
        "ListParts",
        "GET",
        "object",
        "ListMultipartUploadParts",
        "uploadId",
        "max-parts part-number-marker encoding-type",
    ),
)


def route(request: Request) -> Operation:
    """Tell what a request asks for.

    :raises S3Error: ``NotImplemented`` for everything that is not in :data:`OPERATIONS`, and for headers that ask for
        more than is done here.
    """
    on = "object" if request.key else "bucket"
    names = {name for name in request.query if not name.startswith("X-Amz-") and name != "x-id"}
    for operation in OPERATIONS:
        fits = operation.needs <= names <= operation.needs | operation.may
        if (operation.method, operation.on) == (request.method, on) and fits:
            break
    else:
        raise S3Error("NotImplemented", f"{request.method} of a {on} with {sorted(names)} is not implemented")
    for name in request.headers:
        known = name in _AMZ_HEADERS or name.startswith(("x-amz-meta-", checksums.HEADER))
        if name.startswith("x-amz-") and not known:
            raise S3Error("NotImplemented", f"{name} implies functionality that is not implemented")
    if len(request.key.encode(errors="surrogateescape")) > MAX_KEY:
        raise S3Error("KeyTooLongError", "Your key is too long")
    return operation


@dataclass(kw_only=True)
class Call:
    """One request, received whole and checked. ``intake`` holds its body."""

    request: Request
    operation: Operation
    bucket: Bucket
    intake: Intake
    folder: Path
    rule: Rule | None
    number: int
    region: str
    conditions: bool
    if_match: bool
    checksums: bool

    @property
    def key(self) -> str:
        return self.request.key

    @property
    def corrupting(self) -> Rule | None:
        return self.rule if self.rule is not None and self.rule.action == "corrupt" else None

    def write_conditions(self) -> Mapping[str, str]:
        headers = self.request.headers
        names = ("if-none-match", *(["if-match"] if self.if_match else [])) if self.conditions else ()
        return {name: headers[name] for name in names if name in headers}

    def blob(self) -> Blob:
        """Return the bytes to keep: those that were sent, unless a rule has it otherwise."""
        blob = self.intake.blob()
        return blob.flipped(0, self.folder) if self.corrupting and blob.size else blob

    def upload(self) -> Upload:
        return self.bucket.upload(self.key, self.request.query["uploadId"])

    def found(self) -> StoredObject:
        stored = self.bucket.objects.get(self.key)
        if stored is None:
            raise S3Error("NoSuchKey", "The specified key does not exist.", Key=self.key)
        return stored


def head_bucket(call: Call) -> Reply:
    return Reply(200, headers={"x-amz-bucket-region": call.region})


def get_bucket_location(call: Call) -> Reply:
    return _document("LocationConstraint", "" if call.region == "us-east-1" else call.region)


def put_object(call: Call) -> Reply:
    headers, metadata = _notes(call.request.headers)
    intake, blob = call.intake, call.blob()
    is_believed = not call.corrupting or call.corrupting.keep_checksum
    stored = StoredObject(
        blobs=(blob,),
        size=blob.size,
        sha256=_sha256(blob.chunks()) if call.corrupting else intake.sha256,
        etag=f'"{intake.md5.hex() if is_believed else _md5(blob.chunks())}"',
        headers=headers,
        metadata=metadata,
        algorithm=intake.algorithm,
        checksum=intake.checksum
        if intake.algorithm is None or is_believed
        else checksums.compute(intake.algorithm, blob.chunks()),
        checksum_type="FULL_OBJECT" if intake.algorithm else None,
    )
    call.bucket.publish(call.key, stored, call.write_conditions(), number=call.number, operation="PutObject")
    return Reply(
        200, headers={"ETag": stored.etag, **_checksum_headers(intake.algorithm, intake.checksum, "FULL_OBJECT")}
    )


def get_object(call: Call) -> Reply:
    stored, headers = call.found(), call.request.headers
    if unknown := {"if-modified-since", "if-unmodified-since", "if-range"}.intersection(headers):
        raise S3Error("NotImplemented", f"{unknown.pop()} is not implemented")
    if "if-match" in headers and not matches(headers["if-match"], stored.etag):
        raise precondition_failed("If-Match")
    modified = formatdate(stored.modified, usegmt=True)
    notes = {"ETag": stored.etag, "Last-Modified": modified}
    if "if-none-match" in headers and matches(headers["if-none-match"], stored.etag):
        return Reply(304, headers=notes)
    span = _range(headers.get("range", ""), stored.size)
    start, end = span or (0, stored.size)
    notes["Accept-Ranges"] = "bytes"
    notes.update(stored.headers)
    notes.update({f"x-amz-meta-{name}": value for name, value in stored.metadata.items()})
    if span:
        notes["Content-Range"] = f"bytes {start}-{end - 1}/{stored.size}"
    elif headers.get("x-amz-checksum-mode", "").upper() == "ENABLED":
        notes.update(_checksum_headers(stored.algorithm, stored.checksum, stored.checksum_type))
    return Reply(206 if span else 200, stored.chunks(start, end), notes, length=end - start)


def delete_object(call: Call) -> Reply:
    call.bucket.delete(call.key, call.request.headers.get("if-match"), number=call.number)
    return Reply(204)


def list_objects(call: Call) -> Reply:
    query = call.request.query
    if query["list-type"] != "2":
        raise S3Error("InvalidArgument", "list-type must be 2")
    limit = _limit(query, "max-keys")
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    token = query.get("continuation-token")
    try:
        after = base64.urlsafe_b64decode(token).decode() if token is not None else query.get("start-after", "")
    except ValueError:
        raise S3Error("InvalidArgument", "The continuation token provided is incorrect") from None
    with call.bucket.lock:
        objects = dict(call.bucket.objects)
    items, more = _page([(key, "") for key in objects], prefix, delimiter, (after, "\U0010ffff"), limit)
    coded = _coder(query)
    contents = []
    for key, group in items:
        if group:
            contents.append(("CommonPrefixes", [("Prefix", coded(key))]))
            continue
        stored = objects[key]
        fields = [("Key", coded(key)), ("LastModified", _iso(stored.modified)), ("ETag", stored.etag)]
        fields += [("Size", str(stored.size)), ("StorageClass", "STANDARD")]
        if stored.algorithm:
            fields += [("ChecksumAlgorithm", stored.algorithm.upper()), ("ChecksumType", str(stored.checksum_type))]
        contents.append(("Contents", fields))
    return _document(
        "ListBucketResult",
        [
            ("Name", call.request.bucket),
            ("Prefix", coded(prefix)),
            ("Delimiter", coded(delimiter) if delimiter else None),
            ("StartAfter", coded(query["start-after"]) if "start-after" in query else None),
            ("ContinuationToken", token),
            ("NextContinuationToken", base64.urlsafe_b64encode(items[-1][0].encode()).decode() if more else None),
            ("KeyCount", len(items)),
            ("MaxKeys", limit),
            ("EncodingType", query.get("encoding-type")),
            ("IsTruncated", more),
            *contents,
        ],
    )


def create_upload(call: Call) -> Reply:
    headers, metadata = _notes(call.request.headers)
    algorithm, kind = checksums.upload_kind(call.request.headers) if call.checksums else (None, None)
    upload = Upload(key=call.key, algorithm=algorithm, checksum_type=kind, headers=headers, metadata=metadata)
    with call.bucket.lock:
        call.bucket.uploads[upload.id] = upload
    reply = _document(
        "InitiateMultipartUploadResult",
        [("Bucket", call.request.bucket), ("Key", call.key), ("UploadId", upload.id)],
    )
    if algorithm:
        reply.headers.update({"x-amz-checksum-algorithm": algorithm.upper(), "x-amz-checksum-type": str(kind)})
    return reply


def upload_part(call: Call) -> Reply:
    number = call.request.query["partNumber"]
    if not re.fullmatch(r"[1-9]\d{0,4}", number) or int(number) > MAX_PARTS:
        raise S3Error("InvalidArgument", "Part number must be an integer between 1 and 10000, inclusive")
    upload, intake = call.upload(), call.intake
    given = checksums.announced(call.request.headers)[0] if call.checksums else None
    # An upload that was begun without an algorithm takes checksums of parts for what they are.
    if upload.algorithm and given != upload.algorithm and (given or upload.checksum_type == "COMPOSITE"):
        message = f"Checksum Type mismatch occurred, expected checksum Type: {upload.algorithm}, actual: {given}"
        raise S3Error("InvalidRequest", message)
    tag = f'"{intake.md5.hex()}"'
    part = Part(blob=call.blob(), etag=tag, algorithm=intake.algorithm, checksum=intake.checksum)
    with call.bucket.lock:
        call.upload().parts[int(number)] = part
    return Reply(200, headers={"ETag": part.etag, **_checksum_headers(intake.algorithm, intake.checksum, None)})


def complete_upload(call: Call) -> Reply:
    upload, headers = call.upload(), call.request.headers
    with call.bucket.lock:
        known = dict(upload.parts)
    wanted = _parse_parts(b"".join(call.intake.blob().chunks()))
    parts = _chosen_parts(upload, known, wanted, strict=call.checksums)
    blobs = tuple(part.blob for part in parts)
    size = sum(blob.size for blob in blobs)
    stated = headers.get("x-amz-mp-object-size")
    if stated is not None and stated != str(size):
        message = f"The provided 'x-amz-mp-object-size' header value {stated} does not match what was computed: {size}"
        raise S3Error("InvalidRequest", message)
    tags = b"".join(bytes.fromhex(part.etag.strip('"')) for part in parts)
    stored = StoredObject(
        blobs=blobs,
        size=size,
        sha256=_sha256(chunk for blob in blobs for chunk in blob.chunks()),
        etag=f'"{hashlib.md5(tags, usedforsecurity=False).hexdigest()}-{len(parts)}"',
        headers=upload.headers,
        metadata=upload.metadata,
        algorithm=upload.algorithm,
        checksum=_whole_checksum(upload, parts),
        checksum_type=upload.checksum_type,
    )
    if call.checksums:
        _check_whole(headers, upload, str(stored.checksum))
    call.bucket.publish(
        call.key,
        stored,
        call.write_conditions(),
        number=call.number,
        operation="CompleteMultipartUpload",
        upload_id=upload.id,
    )
    fields = [("Location", call.request.raw_path), ("Bucket", call.request.bucket), ("Key", call.key)]
    fields.append(("ETag", stored.etag))
    if stored.algorithm:
        fields.append((f"Checksum{stored.algorithm.upper()}", str(stored.checksum)))
        fields.append(("ChecksumType", str(stored.checksum_type)))
    return _document("CompleteMultipartUploadResult", fields)


def abort_upload(call: Call) -> Reply:
    with call.bucket.lock:
        del call.bucket.uploads[call.upload().id]
    return Reply(204)


def list_parts(call: Call) -> Reply:
    query, upload = call.request.query, call.upload()
    limit, marker = _limit(query, "max-parts"), int(query.get("part-number-marker") or 0)
    with call.bucket.lock:
        parts = sorted((number, part) for number, part in upload.parts.items() if number > marker)
    page, more = parts[:limit], len(parts) > limit
    items = []
    for number, part in page:
        fields = [("PartNumber", number), ("LastModified", _iso(part.modified)), ("ETag", part.etag)]
        fields.append(("Size", part.blob.size))
        if upload.algorithm:
            fields.append((f"Checksum{upload.algorithm.upper()}", str(part.checksum)))
        items.append(("Part", fields))
    return _document(
        "ListPartsResult",
        [
            ("Bucket", call.request.bucket),
            ("Key", _coder(query)(upload.key)),
            ("UploadId", upload.id),
            ("PartNumberMarker", marker),
            ("NextPartNumberMarker", page[-1][0] if page else 0),
            ("MaxParts", limit),
            ("IsTruncated", more),
            ("ChecksumAlgorithm", upload.algorithm.upper() if upload.algorithm else None),
            ("ChecksumType", upload.checksum_type),
            *items,
        ],
    )


def list_uploads(call: Call) -> Reply:
    query = call.request.query
    limit, coded = _limit(query, "max-uploads"), _coder(query)
    after = (query.get("key-marker", ""), query.get("upload-id-marker", "\U0010ffff"))
    with call.bucket.lock:
        uploads = {(upload.key, upload.id): upload for upload in call.bucket.uploads.values()}
    items, more = _page(uploads, query.get("prefix", ""), query.get("delimiter", ""), after, limit)
    content: list[tuple[str, Any]] = []
    for key, upload_id in items:
        if (key, upload_id) not in uploads:
            content.append(("CommonPrefixes", [("Prefix", coded(key))]))
            continue
        upload = uploads[key, upload_id]
        fields = [("Key", coded(key)), ("UploadId", upload_id), ("Initiated", _iso(upload.started))]
        if upload.algorithm:
            fields += [("ChecksumAlgorithm", upload.algorithm.upper()), ("ChecksumType", str(upload.checksum_type))]
        content.append(("Upload", fields))
    return _document(
        "ListMultipartUploadsResult",
        [
            ("Bucket", call.request.bucket),
            ("KeyMarker", coded(query.get("key-marker", ""))),
            ("NextKeyMarker", coded(items[-1][0]) if more else None),
            ("NextUploadIdMarker", items[-1][1] if more else None),
            ("Prefix", coded(query.get("prefix", ""))),
            ("MaxUploads", limit),
            ("EncodingType", query.get("encoding-type")),
            ("IsTruncated", more),
            *content,
        ],
    )


HANDLERS = {
    "HeadBucket": head_bucket,
    "GetBucketLocation": get_bucket_location,
    "ListObjectsV2": list_objects,
    "ListMultipartUploads": list_uploads,
    "PutObject": put_object,
    "GetObject": get_object,
    "HeadObject": get_object,
    "DeleteObject": delete_object,
    "CreateMultipartUpload": create_upload,
    "UploadPart": upload_part,
    "CompleteMultipartUpload": complete_upload,
    "AbortMultipartUpload": abort_upload,
    "ListParts": list_parts,
}


def _notes(headers: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    metadata = {name[len("x-amz-meta-") :]: value for name, value in headers.items() if name.startswith("x-amz-meta-")}
    if sum(len(name) + len(value) for name, value in metadata.items()) > MAX_METADATA:
        raise S3Error("MetadataTooLarge", "Your metadata headers exceed the maximum allowed metadata size")
    kept = {name: headers[name] for name in _KEPT_HEADERS if name in headers}
    encodings = [word.strip() for word in kept.pop("content-encoding", "").split(",")]
    if encoding := ",".join(word for word in encodings if word not in ("", "aws-chunked")):
        kept["content-encoding"] = encoding
    return {"content-type": "binary/octet-stream", **kept}, metadata


def _range(header: str, size: int) -> tuple[int, int] | None:
    """Return what a Range header asks for; None when it is to be ignored."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", header)
    if match is None or not (match[1] or match[2]):
        return None
    if not match[1]:
        start, end = max(0, size - int(match[2])), size
    else:
        start, end = int(match[1]), min(size, int(match[2]) + 1 if match[2] else size)
        if match[2] and int(match[2]) < start:
            return None
    if start >= end:
        raise S3Error("InvalidRange", "The requested range is not satisfiable", ActualObjectSize=str(size))
    return start, end


def _parse_parts(document: bytes) -> list[tuple[int, str, dict[str, str]]]:
    try:
        root = ElementTree.fromstring(document)
    except ElementTree.ParseError:
        raise _malformed() from None
    wanted = []
    for item in root:
        fields = {child.tag.rpartition("}")[2]: (child.text or "").strip() for child in item}
        sums = {name[8:].lower(): value for name, value in fields.items() if name.startswith("Checksum")}
        if not fields.get("PartNumber", "").isdigit() or not fields.get("ETag"):
            raise _malformed()
        wanted.append((int(fields["PartNumber"]), fields["ETag"], sums))
    if not wanted or len(wanted) > MAX_PARTS:
        raise _malformed()
    return wanted


def _malformed() -> S3Error:
    return S3Error("MalformedXML", "The XML you provided was not well-formed or did not validate")


def _chosen_parts(
    upload: Upload, known: Mapping[int, Part], wanted: list[tuple[int, str, dict[str, str]]], *, strict: bool
) -> list[Part]:
    numbers = [number for number, _, _ in wanted]
    if any(one >= two for one, two in zip(numbers, numbers[1:], strict=False)):
        raise S3Error("InvalidPartOrder", "The list of parts was not in ascending order.")
    if upload.algorithm and numbers != list(range(1, len(numbers) + 1)):
        raise S3Error("InvalidPartOrder", "Parts with checksums must be numbered from 1 on without a gap.")
    chosen = []
    for number, etag, sums in wanted:
        part = known.get(number)
        if strict and upload.checksum_type == "COMPOSITE" and upload.algorithm not in sums:
            message = f"The complete request must include the checksum for each part; missing for part {number}."
            raise S3Error("InvalidRequest", message)
        differs = part is None or any(value != part.checksum or name != part.algorithm for name, value in sums.items())
        if part is None or etag.strip('"') != part.etag.strip('"') or (strict and differs):
            message = "One or more of the specified parts could not be found, or an ETag or checksum did not match."
            raise S3Error("InvalidPart", message, PartNumber=str(number), UploadId=upload.id)
        chosen.append(part)
    for number, part in zip(numbers[:-1], chosen[:-1], strict=True):
        if part.blob.size < MIN_PART:
            message = "Your proposed upload is smaller than the minimum allowed size"
            raise S3Error("EntityTooSmall", message, ProposedSize=str(part.blob.size), PartNumber=str(number))
    return chosen


def _whole_checksum(upload: Upload, parts: list[Part]) -> str | None:
    if upload.algorithm is None:
        return None
    if upload.checksum_type == "COMPOSITE":
        return checksums.composite(upload.algorithm, (str(part.checksum) for part in parts))
    # Read again, because what a part was said to hold proves nothing.
    return checksums.compute(upload.algorithm, (chunk for part in parts for chunk in part.blob.chunks()))


def _check_whole(headers: Mapping[str, str], upload: Upload, checksum: str) -> None:
    kind = headers.get("x-amz-checksum-type", "").upper()
    if kind and kind != upload.checksum_type:
        message = f"The upload was created with checksum type {upload.checksum_type}, not {kind}."
        raise S3Error("InvalidRequest", message)
    for algorithm in checksums.ALGORITHMS:
        stated = headers.get(checksums.HEADER + algorithm)
        if stated is None:
            continue
        if algorithm != upload.algorithm:
            raise S3Error("InvalidRequest", f"The upload was created with {upload.algorithm}, not with {algorithm}.")
        if upload.checksum_type == "FULL_OBJECT":
            checksums.checked(algorithm, stated)
        # The number of parts behind a composite checksum may be left out.
        if stated not in (checksum, checksum.partition("-")[0]):
            raise S3Error("BadDigest", f"The {algorithm} you specified did not match the calculated checksum.")


def _checksum_headers(algorithm: str | None, checksum: str | None, kind: str | None) -> dict[str, str]:
    if algorithm is None or checksum is None:
        return {}
    return {checksums.HEADER + algorithm: checksum, **({"x-amz-checksum-type": kind} if kind else {})}


def _page(
    names: Iterable[tuple[str, str]], prefix: str, delimiter: str, after: tuple[str, str], limit: int
) -> tuple[list[tuple[str, str]], bool]:
    """Return a page of (key, upload id), groups as (group, "group"), and whether there is more.

    :param after: the last of the page before; a group in this place skips all that is in it.
    """
    page: list[tuple[str, str]] = []
    for key, upload_id in sorted(names, key=lambda name: (name[0].encode(errors="surrogateescape"), name[1])):
        if not key.startswith(prefix):
            continue
        head, found, _ = key[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
        item = (prefix + head + found, "group") if found else (key, upload_id)
        seen = item[0] <= after[0] if found else item <= after
        if seen or (page and page[-1] == item):
            continue
        if len(page) == limit:
            return page, True
        page.append(item)
    return page, False


def _limit(query: Mapping[str, str], name: str) -> int:
    value = query.get(name) or "1000"
    if not re.fullmatch(r"\d{1,9}", value) or not int(value):
        raise S3Error("InvalidArgument", f"{name} is no positive number")
    return min(1000, int(value))


def _coder(query: Mapping[str, str]) -> Any:
    if query.get("encoding-type", "url") != "url":
        raise S3Error("InvalidArgument", "Invalid Encoding Method specified in Request")
    return (lambda text: quote(text, safe="/")) if "encoding-type" in query else (lambda text: text)


def _iso(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(seconds))


def _md5(chunks: Iterable[bytes]) -> str:
    return hashlib.md5(b"".join(chunks), usedforsecurity=False).hexdigest()


def _sha256(chunks: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()


def _document(name: str, content: Any) -> Reply:
    return Reply(200, xml(name, content), {"Content-Type": "application/xml"})
