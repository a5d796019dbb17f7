"""An S3 store that keeps nothing but sizes, as fast as bytes can be thrown away.

Signatures are not checked. A checksum of the whole object that the client declares (with PutObject, its trailer, or
CompleteMultipartUpload) is given back, by PutObject itself and by HeadObject, without being checked: a real store
computes it in its own time, not in the client's. With ``--verify`` bodies are kept, and every declared CRC-32 and
SHA-256 is compared with what is stored: for tests and for the pass that proves the engine's bytes right, not for
measuring.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import itertools
import json
import threading
import time
import zlib
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote, urlsplit
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from bench.wire import Connection, Request, Unchunked, add_options, serve

_CHECKSUM = "x-amz-checksum-"
_ALGORITHMS = ("crc32", "crc32c", "crc64nvme", "sha1", "sha256")


class S3Error(Exception):
    """A refusal: status and S3's own word."""

    def __init__(self, status: int, code: str) -> None:
        super().__init__(code)
        self.status = status
        self.code = code


@dataclass
class Blob:
    """An object, or a part of one."""

    size: int = 0
    etag: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    content: bytearray | None = None


@dataclass
class Upload:
    """A multipart upload under way."""

    key: str
    headers: dict[str, str]
    parts: dict[int, Blob] = field(default_factory=dict)


class Sink:
    """Answers requests; one bucket of any name.

    :param verify: keep what is stored and check what is declared.
    """

    def __init__(self, *, verify: bool) -> None:
        self._verify = verify
        self._lock = threading.Lock()
        self._objects: dict[str, Blob] = {}
        self._uploads: dict[str, Upload] = {}
        self._numbers = itertools.count(1)

    def handle(self, connection: Connection, request: Request) -> None:
        """Answer one request."""
        target = urlsplit(request.target)
        query = dict(parse_qsl(target.query, keep_blank_values=True))
        _, bucket, key = (*unquote(target.path).split("/", 2), "")[:3]
        if request.headers.get("expect", "").lower() == "100-continue":
            connection.sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        blob = self._receive(connection, request)
        time.sleep(connection.link.delay)
        if bucket == "-":
            connection.reply(200, body=self._control(key))
            return
        try:
            status, headers, body = self._answer(request, key, query, blob)
        except S3Error as error:
            text = f"<Error><Code>{error.code}</Code><Message>{error.code}</Message></Error>".encode()
            status, headers, body = error.status, {}, b"" if request.method == "HEAD" else text
        connection.reply(status, headers, body)

    def _control(self, word: str) -> bytes:
        """Report all objects (``/-/state``), or forget everything (``/-/reset``)."""
        with self._lock:
            report = {
                key: {"bytes": blob.size, "sha256": None if blob.content is None else _sha256(blob.content)}
                for key, blob in self._objects.items()
            }
            if word == "reset":
                self._objects.clear()
                self._uploads.clear()
        return json.dumps(report).encode()

    def _receive(self, connection: Connection, request: Request) -> Blob:
        """Read a request's body, whose framing S3 clients like to invent."""
        headers = request.headers
        blob = Blob(headers=dict(headers))
        keep = None
        if self._verify or request.method == "POST":
            blob.content = bytearray()
            keep = blob.content.extend
        pace = connection.link.pace()
        if not headers.get("x-amz-content-sha256", "").startswith("STREAMING-"):
            blob.size = int(headers.get("content-length", 0))
            connection.take(blob.size, keep, pace)
            return blob
        # S3's own chunks, which botocore sends inside of those of HTTP, and others with a length around them.
        body = Unchunked(connection) if headers.get("transfer-encoding") == "chunked" else connection
        while count := int(body.line().partition(b";")[0], 16):
            body.take(count, keep, pace)
            blob.size += count
            body.line()
        while line := body.line():
            name, _, value = line.decode("latin-1").partition(":")
            blob.headers[name.lower()] = value.strip()
        if isinstance(body, Unchunked):
            body.end()
        return blob

    def _answer(
        self, request: Request, key: str, query: dict[str, str], blob: Blob
    ) -> tuple[int, dict[str, str], bytes]:
        what = request.method, *sorted(query.keys() & {"uploads", "uploadId", "partNumber"})
        with self._lock:
            if not key and request.method == "GET":
                return self._list(query)
            if what == ("PUT",):
                return self._put(key, blob)
            if what == ("POST", "uploads"):
                return self._create(key, blob)
            if what == ("PUT", "partNumber", "uploadId"):
                return self._part(query, blob)
            if what == ("POST", "uploadId"):
                return self._complete(key, query["uploadId"], blob)
            if what == ("DELETE", "uploadId"):
                self._upload(query["uploadId"])
                del self._uploads[query["uploadId"]]
                return 204, {}, b""
            if what == ("DELETE",):
                self._objects.pop(key, None)
                return 204, {}, b""
            if what in (("HEAD",), ("GET",)):
                return self._read(request, key)
        raise S3Error(501, "NotImplemented")

    def _check_condition(self, key: str, headers: dict[str, str]) -> None:
        stored = self._objects.get(key)
        if "if-none-match" in headers and stored is not None:
            raise S3Error(412, "PreconditionFailed")
        if "if-match" in headers:
            if stored is None:
                raise S3Error(404, "NoSuchKey")
            if headers["if-match"] not in (stored.etag, "*"):
                raise S3Error(412, "PreconditionFailed")

    def _check_sum(self, blob: Blob) -> None:
        if blob.content is None:
            return
        actual = {"crc32": zlib.crc32(blob.content).to_bytes(4, "big"), "sha256": hashlib.sha256(blob.content).digest()}
        for name, digest in actual.items():
            if blob.headers.get(_CHECKSUM + name, "").encode() not in (b"", base64.b64encode(digest)):
                raise S3Error(400, "BadDigest")

    def _put(self, key: str, blob: Blob) -> tuple[int, dict[str, str], bytes]:
        self._check_condition(key, blob.headers)
        self._check_sum(blob)
        self._store(key, blob)
        return 200, {"ETag": blob.etag, **_checksums(blob)}, b""

    def _store(self, key: str, blob: Blob) -> None:
        blob.etag = self._etag()
        if not self._verify:
            blob.content = None
        self._objects[key] = blob

    def _etag(self) -> str:
        # The form of a multipart object's tag: no client takes it for an MD5.
        return f'"{next(self._numbers):032x}-1"'

    def _create(self, key: str, blob: Blob) -> tuple[int, dict[str, str], bytes]:
        upload_id = f"upload-{next(self._numbers)}"
        self._uploads[upload_id] = Upload(key, blob.headers)
        return _xml("InitiateMultipartUploadResult", f"<Key>{escape(key)}</Key><UploadId>{upload_id}</UploadId>")

    def _upload(self, upload_id: str) -> Upload:
        try:
            return self._uploads[upload_id]
        except KeyError:
            raise S3Error(404, "NoSuchUpload") from None

    def _part(self, query: dict[str, str], blob: Blob) -> tuple[int, dict[str, str], bytes]:
        self._check_sum(blob)
        blob.etag = self._etag()
        self._upload(query["uploadId"]).parts[int(query["partNumber"])] = blob
        return 200, {"ETag": blob.etag}, b""

    def _complete(self, key: str, upload_id: str, asked: Blob) -> tuple[int, dict[str, str], bytes]:
        upload = self._upload(upload_id)
        self._check_condition(key, asked.headers)
        root = ElementTree.fromstring(bytes(asked.content or b""))  # noqa: S314 - from our own processes
        numbers = [int(node.text or 0) for node in root.iter() if node.tag.rpartition("}")[2] == "PartNumber"]
        if not numbers or numbers != sorted(numbers) or not set(numbers) <= upload.parts.keys():
            raise S3Error(400, "InvalidPart")
        parts = [upload.parts[number] for number in numbers]
        declared = {name: value for name, value in asked.headers.items() if name.startswith(_CHECKSUM)}
        whole = Blob(size=sum(part.size for part in parts), headers={**upload.headers, **declared})
        if self._verify:
            whole.content = bytearray().join(part.content or b"" for part in parts)
            self._check_sum(whole)
        if asked.headers.get("x-amz-mp-object-size", str(whole.size)) != str(whole.size):
            raise S3Error(400, "InvalidRequest")
        self._store(key, whole)
        del self._uploads[upload_id]
        return _xml("CompleteMultipartUploadResult", f"<Key>{escape(key)}</Key><ETag>{escape(whole.etag)}</ETag>")

    def _read(self, request: Request, key: str) -> tuple[int, dict[str, str], bytes]:
        blob = self._objects.get(key)
        if blob is None:
            raise S3Error(404, "NoSuchKey")
        notes = {name: value for name, value in blob.headers.items() if name.startswith("x-amz-meta-")}
        headers = {"ETag": blob.etag, "Content-Length": str(blob.size), **notes}
        headers["Content-Type"] = blob.headers.get("content-type", "binary/octet-stream")
        headers["Last-Modified"] = "Mon, 02 Jan 2006 15:04:05 GMT"
        if "x-amz-checksum-mode" in request.headers:
            headers |= _checksums(blob)
        if request.method == "HEAD":
            return 200, headers, b""
        if blob.content is None:
            raise S3Error(501, "NotImplemented")
        return 200, headers, bytes(blob.content)

    def _list(self, query: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        prefix = query.get("prefix", "")
        if "uploads" in query:
            found = [
                f"<Upload><Key>{escape(upload.key)}</Key><UploadId>{upload_id}</UploadId></Upload>"
                for upload_id, upload in self._uploads.items()
                if upload.key.startswith(prefix)
            ]
            return _xml("ListMultipartUploadsResult", "<IsTruncated>false</IsTruncated>" + "".join(found))
        found = [
            f"<Contents><Key>{escape(key)}</Key><Size>{blob.size}</Size><ETag>{escape(blob.etag)}</ETag>"
            "<LastModified>2006-01-02T15:04:05Z</LastModified></Contents>"
            for key, blob in sorted(self._objects.items())
            if key.startswith(prefix)
        ]
        return _xml(
            "ListBucketResult", f"<KeyCount>{len(found)}</KeyCount><IsTruncated>false</IsTruncated>{''.join(found)}"
        )


def _checksums(blob: Blob) -> dict[str, str]:
    sums = {name: blob.headers[name] for one in _ALGORITHMS if (name := _CHECKSUM + one) in blob.headers}
    return {**sums, f"{_CHECKSUM}type": "FULL_OBJECT"} if sums else {}


def _xml(name: str, inside: str) -> tuple[int, dict[str, str], bytes]:
    text = f'<{name} xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{inside}</{name}>'
    return 200, {"Content-Type": "application/xml"}, text.encode()


def _sha256(content: bytearray) -> str:
    return hashlib.sha256(content).hexdigest()


def main() -> None:
    """Serve until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--verify", action="store_true", help="keep and check what is stored")
    add_options(parser)
    options = parser.parse_args()
    serve(Sink(verify=options.verify).handle, options)


if __name__ == "__main__":
    main()
