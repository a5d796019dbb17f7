"""The server: connections, the way of a request through its checks, and the control API."""

from __future__ import annotations

import base64
import binascii
import json
import socket
import socketserver
import struct
import sys
import tempfile
import traceback
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.strict_s3 import checksums, sigv4
from tests.strict_s3.faults import DropError, Faults, Journal
from tests.strict_s3.operations import HANDLERS, Call, Operation, route
from tests.strict_s3.state import Blob, Bucket, Intake
from tests.strict_s3.wire import Body, ClientGoneError, Reply, Request, S3Error

if TYPE_CHECKING:
    import ssl
    from collections.abc import Sequence

    from tests.strict_s3.faults import Rule
    from tests.strict_s3.policy import Policy

CONTROL = "/_strict/"
_SUMMED = frozenset({"PutObject", "UploadPart"})
_CONDITIONAL = frozenset({"PutObject", "CompleteMultipartUpload", "DeleteObject"})
_MEMORY_ONLY = 4 * 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How strict the server is, and for whom.

    :param conditions: honour If-Match and If-None-Match on PutObject and CompleteMultipartUpload.
    :param conditions_on_complete: the same, for CompleteMultipartUpload alone.
    :param if_match: honour If-Match on both.
    :param checksums: know ``x-amz-checksum-*``; without, they are ignored and never returned.
    :param trailers: know what is behind a body; without, all of it is received and then refused.
    :param ceph: give replies ids as Ceph's gateway makes them.
    :param policy: what the one user may do; None for everything.
    """

    credentials: sigv4.Credentials
    buckets: Sequence[str]
    conditions: bool = True
    conditions_on_complete: bool = True
    if_match: bool = True
    checksums: bool = True
    trailers: bool = True
    ceph: bool = False
    policy: Policy | None = None
    tls: ssl.SSLContext | None = None


class StrictS3(socketserver.ThreadingTCPServer):
    """The server. One thread for each connection."""

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256

    def __init__(self, address: tuple[str, int], settings: Settings) -> None:
        self.settings = settings
        self.buckets = {name: Bucket() for name in settings.buckets}
        self.faults = Faults()
        self.journal = Journal()
        self._folder = tempfile.TemporaryDirectory(prefix="strict-s3-")
        self.folder = Path(self._folder.name)
        super().__init__(address, _Connection)

    def server_close(self) -> None:
        super().server_close()
        self._folder.cleanup()

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Connection(socketserver.BaseRequestHandler):
    server: StrictS3
    request: socket.socket

    def handle(self) -> None:
        if self.server.settings.tls is not None:
            self.request = self.server.settings.tls.wrap_socket(self.request, server_side=True)
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.file: Any = self.request.makefile("rb", 256 * 1024)
        try:
            while self._serve_one():
                pass
        except DropError:
            self._reset()
        except (ClientGoneError, OSError):
            pass
        finally:
            self.file.close()
            self.request.close()

    def _reset(self) -> None:
        self.file.close()
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.request.close()

    def _serve_one(self) -> bool:
        try:
            request = Request.read(self.file)
        except S3Error as error:
            self._send(error.reply(), with_body=True)
            return False
        if request is None:
            return False
        if request.path.startswith(CONTROL):
            if request.expects_continue:
                self.request.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            self._send(
                control(self.server, request, b"".join(Body(self.file, request.headers).chunks())), with_body=True
            )
            return True
        entry = self.server.journal.begin(request)
        exchange = _Exchange(self.server, request, entry, self)
        reply, keep = exchange.run()
        keep = keep and request.headers.get("connection", "").lower() != "close"
        entry["status"] = reply.status
        if self.server.settings.ceph:
            reply.headers["x-amz-request-id"] = f"tx{entry['number']:021x}-006b0c873d-100d-default"
        if not keep:
            reply.headers["Connection"] = "close"
        cut = exchange.rule.bytes if exchange.rule is not None and exchange.rule.action == "cut" else None
        entry["sent"] = self._send(reply, with_body=request.method != "HEAD", cut=cut)
        return keep

    def _send(self, reply: Reply, *, with_body: bool, cut: int | None = None) -> int:
        head = reply.head()
        if not with_body or reply.status in (204, 304):
            self.request.sendall(head)
            return 0
        if isinstance(reply.body, bytes) and cut is None:
            self.request.sendall(head + reply.body)
            return len(reply.body)
        self.request.sendall(head)
        sent = 0
        for chunk in [reply.body] if isinstance(reply.body, bytes) else reply.body:
            if cut is not None and sent + len(chunk) > cut:
                self.request.sendall(chunk[: cut - sent])
                raise DropError
            self.request.sendall(chunk)
            sent += len(chunk)
        return sent


class _Exchange:
    """One request and its answer."""

    def __init__(self, server: StrictS3, request: Request, entry: dict[str, Any], connection: _Connection) -> None:
        self._server = server
        self._settings = server.settings
        self._request = request
        self._entry = entry
        self._connection = connection
        self._body: Body | None = None
        self._received = False
        self.rule: Rule | None = None

    def run(self) -> tuple[Reply, bool]:
        """Return the answer, and whether the connection can be used again.

        :raises DropError: when there is to be none.
        """
        try:
            return self._answer(), True
        except S3Error as error:
            self._entry["code"] = error.code
            return error.reply(), self._finish_reading()
        except (ClientGoneError, DropError, OSError) as error:
            self._entry["code"] = type(error).__name__
            raise
        except Exception:  # a defect of this server, which must not look like one of the client
            traceback.print_exc()
            self._entry["code"] = "InternalError"
            return S3Error("InternalError", traceback.format_exc()).reply(), False

    def _answer(self) -> Reply:
        request, entry = self._request, self._entry
        self._body = Body(self._connection.file, request.headers)
        operation = route(request)
        entry["operation"] = operation.name
        payload = sigv4.verify(request, self._settings.credentials)
        self._authorize(operation)
        bucket = self._server.buckets.get(request.bucket)
        if bucket is None:
            raise S3Error("NoSuchBucket", "The specified bucket does not exist", BucketName=request.bucket)
        if operation.name in _SUMMED and not self._body.declared:
            raise S3Error("MissingContentLength", "You must provide the Content-Length HTTP header.")
        self.rule = rule = self._server.faults.pick(operation.name, request.key)
        if rule is not None:
            entry["fault"] = rule.action
        intake = self._receive(self._body, operation, bucket, payload)
        self._server.faults.strike(rule, "before", entry)
        settings = self._settings
        on_complete = settings.conditions_on_complete or operation.name != "CompleteMultipartUpload"
        call = Call(
            request=request,
            operation=operation,
            bucket=bucket,
            intake=intake,
            folder=self._server.folder,
            rule=rule,
            number=entry["number"],
            region=settings.credentials.region,
            conditions=settings.conditions and on_complete,
            if_match=settings.if_match,
            checksums=settings.checksums,
        )
        reply = HANDLERS[operation.name](call)
        entry["done"] = True
        self._server.faults.strike(rule, "after", entry)
        return reply

    def _authorize(self, operation: Operation) -> None:
        if self._settings.policy is not None and not self._allowed(self._settings.policy, operation):
            raise S3Error("AccessDenied", f"Not authorized to perform s3:{operation.action}")

    def _allowed(self, policy: Policy, operation: Operation) -> bool:
        request = self._request
        context = {"prefix": request.query["prefix"]} if "prefix" in request.query else {}
        if not policy.allows(f"s3:{operation.action}", request.bucket, request.key, **context):
            return False
        # A condition on the version that is there needs the right to read it.
        reads = operation.name in _CONDITIONAL and request.headers.get("if-match", "*") != "*"
        if reads and not policy.allows("s3:GetObject", request.bucket, request.key):
            return False
        # Who may not list is not told what is missing.
        bucket = self._server.buckets.get(request.bucket)
        missing = operation.action == "GetObject" and bucket is not None and request.key not in bucket.objects
        return not missing or policy.allows("s3:ListBucket", request.bucket)

    def _receive(self, body: Body, operation: Operation, bucket: Bucket, payload: str) -> Intake:
        algorithm, value = None, None
        if self._settings.checksums and operation.name in _SUMMED:
            algorithm, value = checksums.announced(self._request.headers)
        announced = algorithm
        if self._settings.checksums and operation.name == "UploadPart" and algorithm is None:
            algorithm = bucket.upload(self._request.key, self._request.query["uploadId"]).algorithm
        if self._request.expects_continue:
            self._connection.request.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        intake = Intake(self._server.folder, algorithm)
        rule = self.rule
        limit = rule.bytes if rule is not None and rule.action == "drop" else None
        for chunk in body.chunks():
            intake.write(chunk)
            self._entry["bytes"] = intake.size
            if limit is not None and intake.size >= limit:
                raise DropError
            if operation.name not in _SUMMED and intake.size > _MEMORY_ONLY:
                raise S3Error("MaxMessageLengthExceeded", "Your request was too big.")
        self._received = True
        self._check_payload(payload, intake)
        if announced is not None and value is None:
            value = self._from_trailer(body, announced)
        if announced is not None and value != intake.checksum:
            message = f"The {announced.upper()} you specified did not match the calculated checksum."
            raise S3Error("BadDigest", message)
        return intake

    def _from_trailer(self, body: Body, algorithm: str) -> str:
        value = body.trailers.get(checksums.HEADER + algorithm)
        if value is None:
            raise S3Error("MalformedTrailerError", "The request contained trailing data that was not well-formed")
        checksums.checked(algorithm, value)
        self._entry["checksums"][checksums.HEADER + algorithm] = value
        return value

    def _check_payload(self, payload: str, intake: Intake) -> None:
        believed = (sigv4.UNSIGNED, *([sigv4.STREAMING] if self._settings.trailers else []))
        if payload not in believed and payload != intake.sha256:
            message = "The provided 'x-amz-content-sha256' header does not match what was computed."
            raise S3Error("XAmzContentSHA256Mismatch", message)
        stated = self._request.headers.get("content-md5")
        if stated is None:
            return
        try:
            raw = base64.b64decode(stated, validate=True)
        except binascii.Error:
            raw = b""
        if len(raw) != 16:
            raise S3Error("InvalidDigest", "The Content-MD5 you specified is not valid.")
        if raw != intake.md5:
            raise S3Error("BadDigest", "The Content-MD5 you specified did not match what we received.")

    def _finish_reading(self) -> bool:
        """Read what the client sends all the same; False when the connection is of no further use."""
        if self._received:
            return True
        if self._body is None or self._request.expects_continue and not self._entry["bytes"]:
            return False
        try:
            self._body.drain()
        except (ClientGoneError, S3Error, OSError):
            return False
        return True


def control(server: StrictS3, request: Request, body: bytes) -> Reply:
    """Answer a request to the control API, which knows no credentials.

    - ``GET journal``, ``DELETE journal``: every request, see :class:`tests.strict_s3.faults.Journal`.
    - ``GET state``: by bucket, ``objects``, open ``uploads``, and ``writes``: every success, and what it took away.
    - ``GET object?bucket=&key=``: an object's bytes.
    - ``POST faults`` (a rule or a list), ``GET faults``, ``DELETE faults``: see :class:`tests.strict_s3.faults.Rule`.
    - ``GET held``; ``POST release`` with ``number`` (default all) and ``drop``: see :meth:`Faults.release`.
    - ``POST tamper``: see :func:`tamper`.
    - ``POST reset``: forget everything, objects included.
    """
    name = f"{request.method} {request.path[len(CONTROL) :]}"
    try:
        if name == "GET object":
            stored = server.buckets[request.query["bucket"]].objects[request.query["key"]]
            return Reply(200, stored.chunks(), {"Content-Type": "application/octet-stream"}, length=stored.size)
        result = _control(server, name, json.loads(body or b"{}"))
    except (ValueError, KeyError, TypeError, IndexError) as error:
        return _json(400, {"error": f"{type(error).__name__}: {error}"})
    return _json(404, {"error": f"there is no {name}"}) if result is None else _json(200, result)


def _control(server: StrictS3, name: str, given: Any) -> Any:
    result: Any = {}
    match name:
        case "GET journal":
            result = server.journal.entries()
        case "DELETE journal":
            server.journal.clear()
        case "GET state":
            result = {bucket: each.describe() for bucket, each in server.buckets.items()}
        case "GET faults":
            result = server.faults.describe()
        case "POST faults":
            server.faults.add(given if isinstance(given, list) else [given])
        case "DELETE faults":
            server.faults.clear()
        case "GET held":
            result = server.faults.held()
        case "POST release":
            result = server.faults.release(given.get("number"), drop=given.get("drop", False))
        case "POST tamper":
            tamper(server, **given)
        case "POST reset":
            server.faults.clear()
            server.faults.release(None, drop=True)
            for bucket in server.buckets.values():
                bucket.clear()
            server.journal.clear()
        case _:
            result = None
    return result


def tamper(
    server: StrictS3,
    *,
    key: str,
    bucket: str | None = None,
    flip: int | None = None,
    replace_base64: str | None = None,
    metadata: dict[str, str] | None = None,
    delete: bool = False,
) -> None:
    """Change an object behind everybody's back: its ETag, checksums and date stay as they were.

    :param bucket: default the first.
    :param flip: number of the bit to turn over; counts from the end where negative.
    :param replace_base64: other bytes for it.
    :param metadata: other user metadata for it.
    :param delete: take it away.
    """
    place = server.buckets[bucket if bucket is not None else next(iter(server.buckets))]
    with place.lock:
        old = place.objects[key]
        if delete:
            del place.objects[key]
            return
        new = replace(old, tampered=True, metadata=old.metadata if metadata is None else metadata)
        if flip is not None or replace_base64 is not None:
            new = replace(new, **_other_bytes(server, old, flip, replace_base64))
        place.objects[key] = new


def _other_bytes(server: StrictS3, old: Any, flip: int | None, replace_base64: str | None) -> dict[str, Any]:
    blobs: list[Blob] = list(old.blobs)
    if replace_base64 is not None:
        data = base64.b64decode(replace_base64, validate=True)
        blobs = [Blob(len(data), data=data)]
    if flip is not None:
        place = flip if flip >= 0 else sum(blob.size for blob in blobs) * 8 + flip
        for index, blob in enumerate(blobs):
            if 0 <= place < blob.size * 8:
                blobs[index] = blob.flipped(place, server.folder)
                break
            place -= blob.size * 8
        else:
            raise IndexError(f"there is no bit {flip}")
    whole = Intake(server.folder)
    for blob in blobs:
        for chunk in blob.chunks():
            whole.write(chunk)
    return {"blobs": (whole.blob(),), "size": whole.size, "sha256": whole.sha256}


def _json(status: int, content: Any) -> Reply:
    return Reply(status, json.dumps(content).encode(), {"Content-Type": "application/json"})
