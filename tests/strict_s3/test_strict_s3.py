"""The strict S3 server takes what is right and refuses what is wrong; requests are signed by botocore, not by us."""

from __future__ import annotations

import base64
import hashlib
import http.client
import ipaddress
import json
import os
import re
import threading
import time
import urllib.parse
import zlib
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import botocore.auth
import pytest
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.exceptions import ClientError

from tests.strict_s3 import checksums
from tests.strict_s3.policy import Policy
from tests.strict_s3.process import Process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

MIB = 2**20
BODY = b"123456789"
# The check values of the catalogue of CRCs, and what any tool says of the two others.
SUMS = {
    "crc32": base64.b64encode(0xCBF43926.to_bytes(4, "big")).decode(),
    "crc32c": base64.b64encode(0xE3069283.to_bytes(4, "big")).decode(),
    "crc64nvme": base64.b64encode(0xAE8B14860A799888.to_bytes(8, "big")).decode(),
    "sha1": base64.b64encode(hashlib.sha1(BODY).digest()).decode(),
    "sha256": base64.b64encode(hashlib.sha256(BODY).digest()).decode(),
}
MEMBERS = {name: f"Checksum{name.upper()}" for name in SUMS}


@pytest.fixture(scope="module")
def process() -> Iterator[Process]:
    with Process() as server:
        yield server


@pytest.fixture
def server(process: Process) -> Process:
    process.reset()
    return process


def make_client(server: Process, **options: Any) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=server.endpoint,
        region_name=options.pop("region", server.region),
        aws_access_key_id=options.pop("access_key", server.access_key),
        aws_secret_access_key=options.pop("secret_key", server.secret_key),
        verify=options.pop("verify", None),
        config=Config(
            s3={"addressing_style": "path"}, proxies={}, retries={"total_max_attempts": 1}, signature_version="s3v4"
        ),
    )


@pytest.fixture(scope="module")
def shared_client(process: Process) -> Any:
    return make_client(process)


@pytest.fixture
def s3(server: Process, shared_client: Any) -> Any:
    return shared_client


def refused(call: Callable[..., Any], **arguments: Any) -> tuple[str, int]:
    with pytest.raises(ClientError) as caught:
        call(Bucket="archive", **arguments)
    return caught.value.response["Error"]["Code"], caught.value.response["ResponseMetadata"]["HTTPStatusCode"]


@dataclass
class Answer:
    status: int
    headers: Mapping[str, str]
    data: bytes

    @property
    def code(self) -> str | None:
        match = re.search(rb"<Code>(\w+)</Code>", self.data)
        return match[1].decode() if match else None


class Raw:
    """One request by hand: signed as it should be, and then changed as a test likes."""

    def __init__(self, server: Process, method: str, path: str, body: bytes = b"", **headers: str) -> None:
        self.server = server
        self.method = method
        self.target = path
        self.body = body
        self.headers: dict[str, str] = {name.replace("_", "-"): value for name, value in headers.items()}

    def sign(
        self,
        *,
        payload: str | None = None,
        access_key: str | None = None,
        secret_key: str | None = None,
        region: str | None = None,
        age: float = 0,
    ) -> Raw:
        class Auth(botocore.auth.S3SigV4Auth):
            def payload(self, request: Any) -> str:
                return payload or hashlib.sha256(request.body or b"").hexdigest()

        return self._signed(Auth, access_key, secret_key, region, age)

    def presign(self, *, expires: int = 60, age: float = 0) -> Raw:
        class Auth(botocore.auth.S3SigV4QueryAuth):
            def __init__(self, *arguments: Any) -> None:
                super().__init__(*arguments, expires=expires)  # type: ignore[misc]

        return self._signed(Auth, None, None, None, age)

    def _signed(self, auth: Any, access_key: str | None, secret_key: str | None, region: str | None, age: float) -> Raw:
        credentials = Credentials(access_key or self.server.access_key, secret_key or self.server.secret_key)
        data = self.body if issubclass(auth, botocore.auth.S3SigV4Auth) else None
        request = AWSRequest(self.method, self.server.endpoint + self.target, self.headers, data)
        now = datetime.now(timezone.utc).replace(tzinfo=None) - timedelta(seconds=age)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(botocore.auth, "get_current_datetime", lambda *a, **k: now)
            auth(credentials, "s3", region or self.server.region).add_auth(request)
        self.headers = dict(request.headers.items())
        self.target = str(request.url)[len(self.server.endpoint) :]
        return self

    def send(self, **changes: str | None) -> Answer:
        """Send it; ``changes`` to headers come after the signature, None removes one."""
        headers = {**self.headers, **{name.replace("_", "-"): value for name, value in changes.items()}}
        host = urllib.parse.urlsplit(self.server.endpoint)
        connection = http.client.HTTPConnection(host.hostname or "", host.port, timeout=60)
        try:
            connection.putrequest(self.method, self.target, skip_accept_encoding=True)
            if "content-length" not in {name.lower() for name in headers}:
                headers["Content-Length"] = str(len(self.body))
            for name, value in headers.items():
                if value is not None:
                    connection.putheader(name, value)
            connection.endheaders(self.body)
            reply = connection.getresponse()
            return Answer(reply.status, dict(reply.getheaders()), reply.read())
        finally:
            connection.close()


def put(server: Process, body: bytes = BODY, /, **headers: Any) -> Raw:
    return Raw(server, "PUT", "/archive/a.ogg", body, **headers)


# -- what is right passes --------------------------------------------------------------------------------------------


def test_known_check_values() -> None:
    assert {name: checksums.compute(name, [BODY[:4], BODY[4:]]) for name in SUMS} == SUMS


@pytest.mark.parametrize("key", ["a", "a b/c+d%2f~é/=&?#'()*!", "//x", "a/../b", "€/\U0001f600", "x" * 1024])
def test_objects_come_back_as_they_were_sent(s3: Any, server: Process, key: str) -> None:
    notes = {"recording-id": "rec 1", "n": "2"}
    sent = s3.put_object(Bucket="archive", Key=key, Body=BODY, ContentType="audio/ogg", Metadata=notes)
    found = s3.get_object(Bucket="archive", Key=key, ChecksumMode="ENABLED")
    assert found["Body"].read() == BODY
    assert found["ETag"] == sent["ETag"] == f'"{hashlib.md5(BODY).hexdigest()}"'
    assert (found["ContentType"], found["Metadata"], found["ContentLength"]) == ("audio/ogg", notes, len(BODY))
    assert (found["ChecksumCRC32"], found["ChecksumType"]) == (SUMS["crc32"], "FULL_OBJECT")
    assert [item["Key"] for item in s3.list_objects_v2(Bucket="archive")["Contents"]] == [key]
    described = server.state()["objects"][key]
    assert (described["sha256"], described["metadata"]) == (hashlib.sha256(BODY).hexdigest(), notes)
    assert server.content(key) == BODY
    s3.delete_object(Bucket="archive", Key=key)
    assert refused(s3.head_object, Key=key) == ("404", 404)
    assert refused(s3.get_object, Key=key) == ("NoSuchKey", 404)


@pytest.mark.parametrize("name", SUMS)
def test_stated_checksums_are_kept(s3: Any, name: str) -> None:
    sent = s3.put_object(Bucket="archive", Key="a", Body=BODY, **{MEMBERS[name]: SUMS[name]})
    found = s3.head_object(Bucket="archive", Key="a", ChecksumMode="ENABLED")
    assert sent[MEMBERS[name]] == found[MEMBERS[name]] == SUMS[name]
    assert MEMBERS[name] not in s3.head_object(Bucket="archive", Key="a")


def test_ranges_and_conditions_of_reads(s3: Any) -> None:
    etag = s3.put_object(Bucket="archive", Key="a", Body=BODY)["ETag"]
    for asked, data in (("bytes=2-4", b"345"), ("bytes=7-", b"89"), ("bytes=-2", b"89"), ("bytes=0-99", BODY)):
        part = s3.get_object(Bucket="archive", Key="a", Range=asked, IfMatch=etag)
        assert (part["Body"].read(), part["ResponseMetadata"]["HTTPStatusCode"]) == (data, 206)
    assert part["ContentRange"] == "bytes 0-8/9"
    assert s3.get_object(Bucket="archive", Key="a", Range="bytes=x")["Body"].read() == BODY
    assert refused(s3.get_object, Key="a", Range="bytes=9-") == ("InvalidRange", 416)
    assert refused(s3.get_object, Key="a", IfMatch='"other"') == ("PreconditionFailed", 412)
    assert refused(s3.get_object, Key="a", IfNoneMatch=etag) == ("304", 304)
    assert s3.get_object(Bucket="archive", Key="a", IfNoneMatch='"other"')["Body"].read() == BODY


def test_listings(s3: Any, server: Process) -> None:
    keys = sorted(f"d{n % 3}/ü {n:02}" for n in range(20)) + ["e"]
    for key in reversed(keys):
        s3.put_object(Bucket="archive", Key=key, Body=b"")
    for size in (1, 3, 1000):
        pages = s3.get_paginator("list_objects_v2")
        found = pages.paginate(Bucket="archive", PaginationConfig={"PageSize": size})
        assert [item["Key"] for page in found for item in page.get("Contents", [])] == keys
        found = list(pages.paginate(Bucket="archive", Delimiter="/", PaginationConfig={"PageSize": size}))
        assert [item["Prefix"] for page in found for item in page.get("CommonPrefixes", [])] == ["d0/", "d1/", "d2/"]
        assert [item["Key"] for page in found for item in page.get("Contents", [])] == ["e"]
    inner = s3.list_objects_v2(Bucket="archive", Prefix="d1/", StartAfter="d1/ü 10")
    assert [item["Key"] for item in inner["Contents"]] == [key for key in keys if "d1/ü 10" < key < "d2"]
    assert "<Key>d1/ü 01</Key>" in Raw(server, "GET", "/archive?list-type=2&prefix=d1%2F").sign().send().data.decode()
    assert s3.get_bucket_location(Bucket="archive")["LocationConstraint"] is None
    assert s3.head_bucket(Bucket="archive")["BucketRegion"] == "us-east-1"


def upload(s3: Any, *parts: bytes, key: str = "a", **options: Any) -> tuple[str, list[dict[str, Any]]]:
    upload_id = s3.create_multipart_upload(Bucket="archive", Key=key, **options)["UploadId"]
    sent = []
    for number, data in enumerate(parts, 1):
        reply = s3.upload_part(Bucket="archive", Key=key, UploadId=upload_id, PartNumber=number, Body=data)
        sums = {name: reply[name] for name in MEMBERS.values() if name in reply}
        sent.append({"PartNumber": number, "ETag": reply["ETag"], **sums})
    return upload_id, sent


FIRST, LAST = os.urandom(5 * MIB), b"the end"
WHOLE = FIRST + LAST
FULL = {"ChecksumAlgorithm": "CRC32", "ChecksumType": "FULL_OBJECT"}
FULL_CRC32 = base64.b64encode(zlib.crc32(WHOLE).to_bytes(4, "big")).decode()


def complete(s3: Any, upload_id: str, parts: list[dict[str, Any]], **options: Any) -> Any:
    return s3.complete_multipart_upload(
        Bucket="archive", Key="a", UploadId=upload_id, MultipartUpload={"Parts": parts}, **options
    )


def test_multipart_uploads(s3: Any, server: Process) -> None:
    upload_id, parts = upload(s3, FIRST, LAST, Metadata={"x": "y"}, ContentType="audio/ogg", **FULL)
    (listed,) = s3.list_multipart_uploads(Bucket="archive", Prefix="a")["Uploads"]
    assert (listed["UploadId"], listed["ChecksumType"]) == (upload_id, "FULL_OBJECT")
    pages = s3.get_paginator("list_parts").paginate(Bucket="archive", Key="a", UploadId=upload_id, MaxParts=1)
    assert [part["Size"] for page in pages for part in page.get("Parts", [])] == [5 * MIB, 7]
    assert refused(s3.head_object, Key="a") == ("404", 404)
    done = complete(s3, upload_id, parts, ChecksumCRC32=FULL_CRC32, MpuObjectSize=len(WHOLE), **{"IfNoneMatch": "*"})
    tags = hashlib.md5(FIRST).digest() + hashlib.md5(LAST).digest()
    assert done["ETag"] == f'"{hashlib.md5(tags).hexdigest()}-2"'
    assert (done["ChecksumCRC32"], done["ChecksumType"]) == (FULL_CRC32, "FULL_OBJECT")
    found = s3.get_object(Bucket="archive", Key="a", ChecksumMode="ENABLED")
    assert found["Body"].read() == WHOLE
    assert (found["ChecksumCRC32"], found["Metadata"], found["ContentType"]) == (FULL_CRC32, {"x": "y"}, "audio/ogg")
    around = s3.get_object(Bucket="archive", Key="a", Range=f"bytes={5 * MIB - 2}-{5 * MIB + 1}")["Body"].read()
    assert around == WHOLE[5 * MIB - 2 : 5 * MIB + 2]
    assert server.state()["uploads"] == []
    assert server.state()["objects"]["a"]["sha256"] == hashlib.sha256(WHOLE).hexdigest()


def test_composite_checksums(s3: Any) -> None:
    upload_id = s3.create_multipart_upload(Bucket="archive", Key="a", ChecksumAlgorithm="SHA256")["UploadId"]
    parts = []
    for number, data in enumerate((FIRST, LAST), 1):
        digest = base64.b64encode(hashlib.sha256(data).digest()).decode()
        place = {"Bucket": "archive", "Key": "a", "UploadId": upload_id, "PartNumber": number}
        etag = s3.upload_part(**place, Body=data, ChecksumSHA256=digest)["ETag"]
        parts.append({"PartNumber": number, "ETag": etag, "ChecksumSHA256": digest})
    without = [{name: part[name] for name in ("PartNumber", "ETag")} for part in parts]
    call = s3.complete_multipart_upload
    assert refused(call, Key="a", UploadId=upload_id, MultipartUpload={"Parts": without}) == ("InvalidRequest", 400)
    done = complete(s3, upload_id, parts)
    digests = hashlib.sha256(FIRST).digest() + hashlib.sha256(LAST).digest()
    expected = base64.b64encode(hashlib.sha256(digests).digest()).decode() + "-2"
    assert (done["ChecksumSHA256"], done["ChecksumType"]) == (expected, "COMPOSITE")


def test_boto3_as_it_comes_sends_trailers_over_tls(tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    with Process("--tls", certificate, key) as server:
        s3 = make_client(server, verify=certificate)
        s3.put_object(Bucket="archive", Key="small", Body=BODY, IfNoneMatch="*")
        (tmp_path / "large").write_bytes(FIRST * 2)
        s3.upload_file(str(tmp_path / "large"), "archive", "large")
        assert server.content("small") == BODY
        assert server.content("large") == FIRST * 2
        trailing = [entry for entry in server.journal() if "x-amz-trailer" in entry["checksums"]]
        assert {entry["operation"] for entry in trailing} == {"PutObject", "UploadPart"}
        assert {entry["payload"] for entry in trailing} == {"STREAMING-UNSIGNED-PAYLOAD-TRAILER"}
        assert all("x-amz-checksum-crc32" in entry["checksums"] for entry in trailing)
        assert s3.head_object(Bucket="archive", Key="large", ChecksumMode="ENABLED")["ChecksumCRC32"]


def make_certificate(folder: Path) -> tuple[str, str]:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "strict-s3")])
    now = datetime.now(timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    (folder / "certificate.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return str(folder / "certificate.pem"), str(folder / "key.pem")


# -- signatures ------------------------------------------------------------------------------------------------------


def test_hand_made_requests_pass_when_they_are_right(server: Process) -> None:
    assert put(server).sign().send().status == 200
    assert put(server).sign(payload="UNSIGNED-PAYLOAD").send().status == 200
    assert put(server).presign().send().status == 200
    assert Raw(server, "GET", "/archive/a.ogg").presign().send().data == BODY
    assert Raw(server, "GET", "/archive/a.ogg").presign(age=3000, expires=3600).send().data == BODY
    assert put(server).sign(age=14 * 60).send().status == 200


@pytest.mark.parametrize(
    ("options", "code", "status"),
    [
        ({"secret_key": "wrong"}, "SignatureDoesNotMatch", 403),
        ({"access_key": "unknown"}, "InvalidAccessKeyId", 403),
        ({"region": "eu-central-1"}, "AuthorizationHeaderMalformed", 400),
        ({"age": 16 * 60}, "RequestTimeTooSkewed", 403),
        ({"age": -16 * 60}, "RequestTimeTooSkewed", 403),
        ({"payload": "0" * 64}, "XAmzContentSHA256Mismatch", 400),
        ({"payload": "nonsense"}, "InvalidArgument", 400),
        ({"payload": "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"}, "NotImplemented", 501),
    ],
)
def test_wrong_signatures(server: Process, options: dict[str, Any], code: str, status: int) -> None:
    answer = put(server).sign(**options).send()
    assert (answer.status, answer.code) == (status, code)
    assert server.state()["objects"] == {}


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"Content_Type": "text/html"}, "SignatureDoesNotMatch"),
        ({"x_amz_meta_a": "other"}, "SignatureDoesNotMatch"),
        ({"x_amz_meta_a": None}, "SignatureDoesNotMatch"),
        ({"If_None_Match": None}, "SignatureDoesNotMatch"),
        ({"x_amz_meta_b": "new"}, "AccessDenied"),
        ({"X_Amz_Date": "yesterday"}, "AccessDenied"),
        ({"Authorization": None}, "AccessDenied"),
        ({"Authorization": "AWS key:signature"}, "InvalidRequest"),
        ({"Authorization": "AWS4-HMAC-SHA256 nonsense"}, "AuthorizationHeaderMalformed"),
        ({"X_Amz_Content_SHA256": None}, "InvalidRequest"),
    ],
)
def test_altered_heads(server: Process, changes: dict[str, Any], code: str) -> None:
    given = {"Content_Type": "audio/ogg", "x_amz_meta_a": "b", "If_None_Match": "*"}
    request = put(server, **given).sign()
    assert request.send(**changes).code == code
    assert server.state()["objects"] == {}
    assert request.send().status == 200


def test_altered_targets_and_bodies(server: Process) -> None:
    request = put(server).sign()
    request.target = "/archive/b.ogg"
    assert request.send().code == "SignatureDoesNotMatch"
    request.target = "/archive/a.ogg?x-id=PutObject"
    assert request.send().code == "SignatureDoesNotMatch"
    request.target, request.body = "/archive/a.ogg", BODY[::-1]
    assert request.send().code == "XAmzContentSHA256Mismatch"
    request.body, request.method = b"", "DELETE"
    assert request.send().code == "SignatureDoesNotMatch"
    assert server.state()["objects"] == {}


def test_presigned_links(server: Process) -> None:
    assert put(server).sign().send().status == 200

    def get(change: Callable[[str], str] = str, **options: Any) -> str | None:
        request = Raw(server, "GET", "/archive/a.ogg").presign(**options)
        request.target = change(request.target)
        return request.send().code

    assert get() is None
    assert get(age=61) == "AccessDenied"
    assert get(age=120, expires=7 * 24 * 3600 + 1) == "AuthorizationQueryParametersError"
    assert get(age=-16 * 60) == "AccessDenied"
    assert get(lambda url: url.replace("a.ogg", "b.ogg")) == "SignatureDoesNotMatch"
    assert get(lambda url: url.replace("Expires=60", "Expires=6000"), age=61) == "SignatureDoesNotMatch"
    assert get(lambda url: url + "&versionId=1") == "NotImplemented"
    assert get(lambda url: url[:-1] + ("0" if url[-1] != "0" else "1")) == "SignatureDoesNotMatch"
    assert get(lambda url: re.sub("&X-Amz-Expires=60", "", url)) == "AuthorizationQueryParametersError"
    assert Raw(server, "GET", "/archive/a.ogg").presign().send(x_amz_meta_a="b").code == "AccessDenied"
    both = Raw(server, "GET", "/archive/a.ogg").presign()
    assert both.send(Authorization="AWS4-HMAC-SHA256 x").code == "InvalidArgument"
    assert Raw(server, "HEAD", "/archive/a.ogg").presign(age=61).send().status == 403


def test_other_credentials_through_boto3(server: Process) -> None:
    assert refused(make_client(server, secret_key="wrong").put_object, Key="a") == ("SignatureDoesNotMatch", 403)
    assert refused(make_client(server, access_key="wrong").put_object, Key="a") == ("InvalidAccessKeyId", 403)
    assert server.state()["objects"] == {}


# -- digests ---------------------------------------------------------------------------------------------------------


def other(value: str) -> str:
    raw = base64.b64decode(value)
    return base64.b64encode(bytes([raw[0] ^ 1]) + raw[1:]).decode()


@pytest.mark.parametrize("name", SUMS)
@pytest.mark.parametrize("part", [False, True])
def test_wrong_checksums(server: Process, s3: Any, name: str, part: bool) -> None:
    path, header = "/archive/a", f"x_amz_checksum_{name}"
    if part:
        kind = {"ChecksumType": "FULL_OBJECT"} if name == "crc64nvme" else {}
        upload_id, _ = upload(s3, ChecksumAlgorithm=name.upper(), **kind)
        path = f"/archive/a?partNumber=1&uploadId={upload_id}"
    for value, code in ((SUMS[name], None), (other(SUMS[name]), "BadDigest"), ("AAA=", "InvalidRequest")):
        assert Raw(server, "PUT", path, BODY, **{header: value}).sign().send().code == code
    wrong_body = Raw(server, "PUT", path, BODY, **{header: SUMS[name]}).sign(payload="UNSIGNED-PAYLOAD")
    wrong_body.body = b"12345678X"
    assert wrong_body.send().code == "BadDigest"
    if part:
        assert server.state()["uploads"][0]["parts"] == {"1": 9}
    else:
        assert server.content("a") == BODY


def test_wrong_md5(server: Process) -> None:
    md5 = base64.b64encode(hashlib.md5(BODY).digest()).decode()
    assert put(server, Content_MD5=other(md5)).sign().send().code == "BadDigest"
    assert put(server, Content_MD5="AAAA").sign().send().code == "InvalidDigest"
    assert server.state()["objects"] == {}
    assert put(server, Content_MD5=md5).sign().send().status == 200


def test_checksum_headers_that_contradict_each_other(server: Process) -> None:
    two = {"x_amz_checksum_crc32": SUMS["crc32"], "x_amz_checksum_sha1": SUMS["sha1"]}
    assert put(server, **two).sign().send().code == "InvalidRequest"
    assert put(server, x_amz_sdk_checksum_algorithm="CRC32").sign().send().code == "InvalidRequest"
    named = {"x_amz_checksum_crc32": SUMS["crc32"], "x_amz_sdk_checksum_algorithm": "SHA1"}
    assert put(server, **named).sign().send().code == "InvalidRequest"
    assert server.state()["objects"] == {}


def chunked(body: bytes, trailer: str, *, size: int = 4) -> bytes:
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    frames = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    return frames + b"0\r\n" + trailer.encode() + b"\r\n\r\n"


@pytest.mark.parametrize("name", SUMS)
@pytest.mark.parametrize(
    ("trailer", "length", "code"),
    [
        ("x-amz-checksum-{name}:{right}", 9, None),
        ("x-amz-checksum-{name}:{wrong}", 9, "BadDigest"),
        ("x-amz-checksum-{name}:nonsense", 9, "InvalidRequest"),
        ("x-other: 1", 9, "MalformedTrailerError"),
        ("x-amz-checksum-{name}:{right}", 10, "IncompleteBody"),
        ("x-amz-checksum-{name}:{right}", None, "IncompleteBody"),
    ],
)
def test_trailers(server: Process, name: str, trailer: str, length: int | None, code: str | None) -> None:
    sums = trailer.format(name=name, right=SUMS[name], wrong=other(SUMS[name]))
    headers = {"Content_Encoding": "aws-chunked", "x_amz_trailer": f"x-amz-checksum-{name}"}
    if length is not None:
        headers["x_amz_decoded_content_length"] = str(length)
    request = put(server, chunked(BODY, sums), **headers).sign(payload="STREAMING-UNSIGNED-PAYLOAD-TRAILER")
    assert request.send().code == code
    assert ("a.ogg" in server.state()["objects"]) is (code is None)
    if code is None:
        described = server.state()["objects"]["a.ogg"]
        assert (described["checksum"], described["size"]) == (SUMS[name], 9)
        assert "content-encoding" not in described["headers"]


def test_a_connection_goes_on_behind_trailers(server: Process) -> None:
    """Also where the whole is in HTTP's own chunks, as boto3 sends it over TLS: their end belongs to the body."""
    host = urllib.parse.urlsplit(server.endpoint)
    connection = http.client.HTTPConnection(host.hostname or "", host.port, timeout=60)
    headers = {
        "Content-Encoding": "aws-chunked",
        "x-amz-trailer": "x-amz-checksum-crc32",
        "x-amz-decoded-content-length": "9",
        "Transfer-Encoding": "chunked",
    }
    body = chunked(BODY, f"x-amz-checksum-crc32:{SUMS['crc32']}")
    for key in ("one.ogg", "two.ogg"):
        request = Raw(server, "PUT", f"/archive/{key}", body, **headers).sign(
            payload="STREAMING-UNSIGNED-PAYLOAD-TRAILER"
        )
        connection.request("PUT", request.target, iter([body]), request.headers, encode_chunked=True)
        sock = connection.sock
        reply = connection.getresponse()
        assert (reply.status, reply.read(), connection.sock) == (200, b"", sock)
    connection.close()
    assert set(server.state()["objects"]) == {"one.ogg", "two.ogg"}


def test_bodies_without_a_length_and_bodies_that_end_early(server: Process) -> None:
    assert put(server, b"").sign().send(Content_Length=None).status in (200, 411)
    server.reset()
    host = urllib.parse.urlsplit(server.endpoint)
    connection = http.client.HTTPConnection(host.hostname or "", host.port, timeout=60)
    request = put(server).sign()
    connection.putrequest("PUT", "/archive/a.ogg")
    for name, value in request.headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    reply = connection.getresponse()
    assert (reply.status, b"MissingContentLength" in reply.read()) == (411, True)
    connection.close()
    connection = http.client.HTTPConnection(host.hostname or "", host.port, timeout=60)
    connection.putrequest("PUT", "/archive/a.ogg")
    for name, value in {**request.headers, "Content-Length": "9"}.items():
        connection.putheader(name, value)
    connection.endheaders(BODY[:5])
    connection.close()
    deadline = time.monotonic() + 60
    while server.journal()[-1]["code"] != "ClientGoneError":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert server.state()["objects"] == {}


# -- multipart uploads that are wrong --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"ChecksumCRC32": other(FULL_CRC32)}, "BadDigest"),
        ({"ChecksumCRC32": "nonsense"}, "InvalidRequest"),
        ({"ChecksumSHA256": SUMS["sha256"]}, "InvalidRequest"),
        ({"ChecksumType": "COMPOSITE"}, "InvalidRequest"),
        ({"MpuObjectSize": len(WHOLE) + 1}, "InvalidRequest"),
        ({"IfMatch": '"x"'}, "NoSuchKey"),
        ({"IfNoneMatch": '"x"'}, "NotImplemented"),
    ],
)
def test_wrong_completions(s3: Any, server: Process, options: dict[str, Any], code: str) -> None:
    upload_id, parts = upload(s3, FIRST, LAST, **FULL)
    given = {"Key": "a", "UploadId": upload_id, "MultipartUpload": {"Parts": parts}}
    assert refused(s3.complete_multipart_upload, **given, **options)[0] == code
    assert server.state()["objects"] == {}
    complete(s3, upload_id, parts, ChecksumCRC32=FULL_CRC32)
    assert server.content("a") == WHOLE


def test_wrong_lists_of_parts(s3: Any, server: Process) -> None:
    upload_id, parts = upload(s3, FIRST, LAST, FIRST, **FULL)
    one, two, three = parts

    def answer(*given: dict[str, Any], upload_id: str = upload_id, key: str = "a") -> str:
        listed = {"Parts": list(given)}
        return refused(s3.complete_multipart_upload, Key=key, UploadId=upload_id, MultipartUpload=listed)[0]

    assert answer(three, one) == "InvalidPartOrder"
    assert answer(one, one) == "InvalidPartOrder"
    assert answer(one, three) == "InvalidPartOrder"
    assert answer(one, two, three) == "EntityTooSmall"
    assert answer(one, {**two, "ETag": one["ETag"]}) == "InvalidPart"
    assert answer(one, {**two, "ChecksumCRC32": one["ChecksumCRC32"]}) == "InvalidPart"
    assert answer(one, two, three, {**three, "PartNumber": 4}) == "InvalidPart"
    assert answer() == "MalformedXML"
    assert answer(one, upload_id="nonsense") == "NoSuchUpload"
    assert answer(one, key="b") == "NoSuchUpload"
    s3.abort_multipart_upload(Bucket="archive", Key="a", UploadId=upload_id)
    assert answer(one) == "NoSuchUpload"
    assert refused(s3.abort_multipart_upload, Key="a", UploadId=upload_id) == ("NoSuchUpload", 404)
    late = {"Key": "a", "UploadId": upload_id, "PartNumber": 1, "Body": b""}
    assert refused(s3.upload_part, **late) == ("NoSuchUpload", 404)
    assert refused(s3.list_parts, Key="a", UploadId=upload_id) == ("NoSuchUpload", 404)
    assert server.state()["objects"] == {}


def test_a_finished_upload_is_gone(s3: Any) -> None:
    upload_id, parts = upload(s3, LAST, **FULL)
    complete(s3, upload_id, parts)
    given = {"Key": "a", "UploadId": upload_id, "MultipartUpload": {"Parts": parts}}
    assert refused(s3.complete_multipart_upload, **given) == ("NoSuchUpload", 404)


def test_parts_and_uploads_of_the_wrong_kind(s3: Any) -> None:
    create = s3.create_multipart_upload
    assert refused(create, Key="a", ChecksumAlgorithm="SHA256", ChecksumType="FULL_OBJECT")[0] == "InvalidRequest"
    assert refused(create, Key="a", ChecksumAlgorithm="CRC64NVME", ChecksumType="COMPOSITE")[0] == "InvalidRequest"
    upload_id, _ = upload(s3, ChecksumAlgorithm="CRC32")
    part = {"Key": "a", "UploadId": upload_id, "Body": BODY}
    assert refused(s3.upload_part, PartNumber=1, ChecksumSHA256=SUMS["sha256"], **part)[0] == "InvalidRequest"
    assert refused(s3.upload_part, PartNumber=10_001, **part)[0] == "InvalidArgument"
    assert refused(s3.put_object, Key="a", Metadata={"x": "y" * 2048})[0] == "MetadataTooLarge"
    assert refused(s3.put_object, Key="x" * 1025)[0] == "KeyTooLongError"
    assert refused(s3.put_object, Key="a", ACL="public-read")[0] == "NotImplemented"
    with pytest.raises(ClientError, match="NoSuchBucket"):
        s3.put_object(Bucket="other", Key="a")


# -- conditions ------------------------------------------------------------------------------------------------------


def test_conditions_of_writes(s3: Any, server: Process) -> None:
    etag = s3.put_object(Bucket="archive", Key="a", Body=BODY, IfNoneMatch="*")["ETag"]
    assert refused(s3.put_object, Key="a", Body=BODY, IfNoneMatch="*") == ("PreconditionFailed", 412)
    assert refused(s3.put_object, Key="a", Body=b"x", IfMatch='"x"') == ("PreconditionFailed", 412)
    assert refused(s3.put_object, Key="b", Body=b"x", IfMatch=etag) == ("NoSuchKey", 404)
    assert refused(s3.put_object, Key="b", Body=b"x", IfNoneMatch=etag) == ("NotImplemented", 501)
    upload_id, parts = upload(s3, LAST, **FULL)
    given = {"Key": "a", "UploadId": upload_id, "MultipartUpload": {"Parts": parts}}
    assert refused(s3.complete_multipart_upload, IfNoneMatch="*", **given) == ("PreconditionFailed", 412)
    assert refused(s3.complete_multipart_upload, IfMatch='"x"', **given) == ("PreconditionFailed", 412)
    assert server.content("a") == BODY
    assert server.state()["objects"]["a"]["overwritten"] == 0
    complete(s3, upload_id, parts, IfMatch=etag)
    assert server.state()["objects"]["a"]["overwritten"] == 1
    assert server.state()["writes"][-1]["overwrote"] == hashlib.sha256(BODY).hexdigest()
    assert refused(s3.delete_object, Key="a", IfMatch=etag) == ("PreconditionFailed", 412)
    assert refused(s3.delete_object, Key="b", IfMatch="*") == ("PreconditionFailed", 412)
    assert refused(s3.delete_object, Key="b", IfMatch=etag) == ("NoSuchKey", 404)
    s3.delete_object(Bucket="archive", Key="a", IfMatch="*")
    s3.delete_object(Bucket="archive", Key="a")
    assert server.state()["objects"] == {}


def race(requests: list[Raw]) -> list[int]:
    barrier, statuses = threading.Barrier(len(requests)), []

    def send(request: Raw) -> None:
        barrier.wait()
        statuses.append(request.send().status)

    threads = [threading.Thread(target=send, args=(request,)) for request in requests]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(statuses)


def test_of_fifty_puts_one_is_stored(server: Process) -> None:
    requests = [put(server, b"%d" % number, If_None_Match="*").sign() for number in range(50)]
    assert race(requests) == [200] + [412] * 49
    (write,) = server.state()["writes"]
    assert (write["key"], write["overwrote"]) == ("a.ogg", None)
    assert server.content("a.ogg") in {b"%d" % number for number in range(50)}


def test_of_many_completions_one_is_stored(server: Process, s3: Any) -> None:
    requests = []
    for _ in range(12):
        upload_id, parts = upload(s3, LAST, key="a.ogg")
        document = f"<X><Part><PartNumber>1</PartNumber><ETag>{parts[0]['ETag']}</ETag></Part></X>".encode()
        target = f"/archive/a.ogg?uploadId={upload_id}"
        requests.append(Raw(server, "POST", target, document, If_None_Match="*").sign())
    requests += [put(server, If_None_Match="*").sign() for _ in range(12)]
    assert race(requests) == [200] + [412] * 23
    assert len(server.state()["writes"]) == 1


# -- options ---------------------------------------------------------------------------------------------------------


def test_weaker_stores() -> None:
    with Process("--no-conditions", "--no-checksums") as server:
        s3 = make_client(server)
        s3.put_object(Bucket="archive", Key="a", Body=b"1", IfNoneMatch="*")
        s3.put_object(Bucket="archive", Key="a", Body=b"2", IfNoneMatch="*", ChecksumCRC32=SUMS["crc32"])
        assert "ChecksumCRC32" not in s3.head_object(Bucket="archive", Key="a", ChecksumMode="ENABLED")
        assert server.state()["objects"]["a"]["overwritten"] == 1
        upload_id, parts = upload(s3, LAST, **FULL)
        assert "ChecksumCRC32" not in parts[0]
        complete(s3, upload_id, parts, ChecksumCRC32=SUMS["crc32"], IfNoneMatch="*")
        assert server.content("a") == LAST
    with Process("--no-conditions-on-complete") as server:
        s3 = make_client(server)
        s3.put_object(Bucket="archive", Key="a", Body=b"1", IfNoneMatch="*")
        assert refused(s3.put_object, Key="a", IfNoneMatch="*") == ("PreconditionFailed", 412)
        upload_id, parts = upload(s3, LAST, **FULL)
        complete(s3, upload_id, parts, IfNoneMatch="*")
        assert server.content("a") == LAST
    with Process("--no-if-match") as server:
        s3 = make_client(server)
        s3.put_object(Bucket="archive", Key="a", Body=b"1", IfMatch='"x"')
        assert refused(s3.put_object, Key="a", IfNoneMatch="*") == ("PreconditionFailed", 412)
        upload_id, parts = upload(s3, LAST, **FULL)
        complete(s3, upload_id, parts, IfMatch='"x"')
        assert server.content("a") == LAST


POLICY = {
    "Version": "2012-10-17",
    "Statement": [
        {"Effect": "Allow", "Action": ["s3:PutObject", "s3:Get*"], "Resource": "arn:aws:s3:::archive/in/*"},
        {
            "Effect": "Allow",
            "Action": "s3:ListBucket",
            "Resource": "arn:aws:s3:::archive",
            "Condition": {"StringLike": {"s3:prefix": "in/*"}},
        },
        {"Effect": "Deny", "Action": "s3:*", "Resource": "arn:aws:s3:::archive/in/secret/*"},
    ],
}


def test_rights(tmp_path: Path) -> None:
    (tmp_path / "policy.json").write_text(json.dumps(POLICY))
    with Process("--policy", str(tmp_path / "policy.json")) as server:
        s3 = make_client(server)
        s3.put_object(Bucket="archive", Key="in/a", Body=BODY)
        assert s3.get_object(Bucket="archive", Key="in/a")["Body"].read() == BODY
        assert len(s3.list_objects_v2(Bucket="archive", Prefix="in/")["Contents"]) == 1
        upload_id, parts = upload(s3, LAST, key="in/b")
        denied = ("AccessDenied", 403)
        assert refused(s3.abort_multipart_upload, Key="in/b", UploadId=upload_id) == denied
        assert refused(s3.put_object, Key="out/a", Body=BODY) == denied
        assert refused(s3.put_object, Key="in/secret/a", Body=BODY) == denied
        assert refused(s3.delete_object, Key="in/a") == denied
        assert refused(s3.list_objects_v2) == denied
        assert refused(s3.list_objects_v2, Prefix="out/") == denied
        assert refused(s3.list_multipart_uploads) == denied
        assert refused(s3.head_object, Key="in/missing") == ("403", 403)
        assert refused(s3.get_object, Key="in/missing") == denied
        assert list(server.state()["objects"]) == ["in/a"]
    with pytest.raises(ValueError, match="not understood"):
        Policy({"Statement": {"Effect": "Allow", "Action": "*", "NotResource": "x"}})


# -- control ---------------------------------------------------------------------------------------------------------


def test_the_journal_tells_what_was_asked(s3: Any, server: Process) -> None:
    s3.put_object(Bucket="archive", Key="a", Body=BODY, IfNoneMatch="*", ChecksumCRC32=SUMS["crc32"])
    refused(s3.put_object, Key="a", Body=BODY, IfNoneMatch="*")
    s3.get_object(Bucket="archive", Key="a")["Body"].read()
    first, second, third = server.journal()
    assert (first["operation"], first["status"], first["bytes"], first["done"]) == ("PutObject", 200, 9, True)
    assert first["conditions"] == {"if-none-match": "*"}
    assert first["checksums"]["x-amz-checksum-crc32"] == SUMS["crc32"]
    assert (second["status"], second["code"], second["done"]) == (412, "PreconditionFailed", False)
    assert (third["operation"], third["sent"], third["number"] - first["number"]) == ("GetObject", 9, 2)
    server.control("DELETE", "journal")
    assert server.journal() == []


def lost(call: Callable[..., Any], **arguments: Any) -> None:
    with pytest.raises((http.client.HTTPException, OSError)):
        call(**arguments)


def test_faults(s3: Any, server: Process) -> None:
    request = put(server).sign()
    server.faults({"operation": "PutObject", "key": "^a", "skip": 1, "times": 2, "action": "error"})
    assert [request.send().status for _ in range(4)] == [200, 503, 503, 200]
    server.reset()
    server.faults({"operation": "PutObject", "times": None, "every": 2, "action": "error", "code": "InternalError"})
    assert [request.send().status for _ in range(4)] == [200, 500, 200, 500]
    server.reset()
    server.faults({"action": "drop", "times": None})
    lost(request.send)
    assert server.state()["objects"] == {}
    server.reset()
    server.faults({"action": "drop", "when": "after"})
    lost(request.send)
    assert server.content("a.ogg") == BODY
    assert (server.journal()[0]["done"], server.journal()[0]["status"]) == (True, None)
    server.reset()
    server.faults({"action": "drop", "bytes": 4 * MIB})
    lost(put(server, FIRST).sign().send)
    assert 4 * MIB <= server.journal()[0]["bytes"] < 5 * MIB
    server.reset()
    server.faults({"operation": "CompleteMultipartUpload", "action": "error", "status": 200, "code": "InternalError"})
    upload_id, parts = upload(s3, LAST)
    given = {"Key": "a", "UploadId": upload_id, "MultipartUpload": {"Parts": parts}}
    assert refused(s3.complete_multipart_upload, **given)[0] == "InternalError"
    assert len(server.state()["uploads"]) == 1
    server.reset()
    server.faults({"operation": "PutObject", "action": "corrupt"})
    server.faults({"operation": "PutObject", "action": "corrupt", "keep_checksum": True})
    for keep in (False, True):
        sent = s3.put_object(Bucket="archive", Key="a", Body=BODY)
        assert sent["ChecksumCRC32"] == SUMS["crc32"]
        head = s3.head_object(Bucket="archive", Key="a", ChecksumMode="ENABLED")
        assert (head["ChecksumCRC32"] == SUMS["crc32"]) is keep
        assert server.content("a") == b"023456789"
    server.faults({"operation": "GetObject", "action": "cut", "bytes": 4})
    lost(Raw(server, "GET", "/archive/a").sign().send)
    server.faults({"operation": "GetObject", "action": "delay", "seconds": 0.2})
    started = time.monotonic()
    Raw(server, "GET", "/archive/a").sign().send()
    assert time.monotonic() - started >= 0.2


def test_corrupt_parts_show_when_they_are_put_together(s3: Any, server: Process) -> None:
    server.faults({"operation": "UploadPart", "action": "corrupt"})
    upload_id, parts = upload(s3, FIRST, LAST, **FULL)
    given = {"Key": "a", "UploadId": upload_id, "MultipartUpload": {"Parts": parts}}
    assert refused(s3.complete_multipart_upload, ChecksumCRC32=FULL_CRC32, **given) == ("BadDigest", 400)
    assert server.state()["objects"] == {}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("drop", [True, False])
def test_held_requests(server: Process, when: str, drop: bool) -> None:
    server.faults({"operation": "PutObject", "action": "hold", "when": when})
    answers: list[Any] = []

    def send() -> None:
        try:
            answers.append(put(server).sign().send().status)
        except (http.client.HTTPException, OSError):
            answers.append(None)

    thread = threading.Thread(target=send)
    thread.start()
    (held,) = server.wait_held()
    assert (held["operation"], held["key"], held["bytes"], held["when"]) == ("PutObject", "a.ogg", 9, when)
    assert ("a.ogg" in server.state()["objects"]) is (when == "after")
    assert server.control("POST", "release", {"number": held["number"], "drop": drop}) == [held["number"]]
    thread.join()
    assert answers == [None if drop else 200]
    assert ("a.ogg" in server.state()["objects"]) is (when == "after" or not drop)


@pytest.mark.parametrize("body", [BODY, FIRST])
def test_tampering(s3: Any, server: Process, body: bytes) -> None:
    s3.put_object(Bucket="archive", Key="a", Body=body, Metadata={"x": "y"})
    before = s3.head_object(Bucket="archive", Key="a", ChecksumMode="ENABLED")
    server.control("POST", "tamper", {"key": "a", "flip": -1})
    assert server.content("a") == body[:-1] + bytes([body[-1] ^ 0x80])
    server.control("POST", "tamper", {"key": "a", "flip": -1})
    server.control("POST", "tamper", {"key": "a", "flip": 9})
    assert server.content("a") == body[:1] + bytes([body[1] ^ 2]) + body[2:]
    after = s3.head_object(Bucket="archive", Key="a", ChecksumMode="ENABLED")
    for name in ("ETag", "ChecksumCRC32", "LastModified", "Metadata", "ContentLength"):
        assert after[name] == before[name]
    described = server.state()["objects"]["a"]
    assert (described["tampered"], described["sha256"]) == (True, hashlib.sha256(server.content("a")).hexdigest())
    server.control("POST", "tamper", {"key": "a", "replace_base64": "QUI=", "metadata": {"z": "1"}})
    assert server.content("a") == b"AB"
    assert s3.head_object(Bucket="archive", Key="a")["Metadata"] == {"z": "1"}
    server.control("POST", "tamper", {"key": "a", "delete": True})
    assert server.state()["objects"] == {}


def test_rules_that_make_no_sense_are_refused(server: Process) -> None:
    for rule in ({"action": "nonsense"}, {"action": "drop", "wen": "after"}, {"operation": "PutObject"}):
        with pytest.raises(OSError, match="400"):
            server.faults(rule)
    assert server.control("GET", "faults") == []


def test_memory_stays_small_and_files_go(s3: Any, server: Process) -> None:
    def resident() -> int:
        return int(Path(f"/proc/{server.pid}/statm").read_text().split()[1]) * 4096

    s3.put_object(Bucket="archive", Key="a", Body=FIRST)
    before = resident()
    upload_id, parts = upload(s3, *[FIRST * 2] * 8, **FULL)
    server.faults({"operation": "PutObject", "action": "error"})
    assert refused(s3.put_object, Key="a", Body=FIRST) == ("SlowDown", 503)
    complete(s3, upload_id, parts)
    assert resident() - before < 20 * MIB
    folder = Path(server.folder)
    assert len(list(folder.iterdir())) == 8
    server.reset()
    assert list(folder.iterdir()) == []
