"""AWS Signature Version 4, as a server checks it."""

from __future__ import annotations

import calendar
import hashlib
import hmac
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

from tests.strict_s3.wire import S3Error

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tests.strict_s3.wire import Request

ALGORITHM = "AWS4-HMAC-SHA256"
UNSIGNED = "UNSIGNED-PAYLOAD"
STREAMING = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
MAX_SKEW = 15 * 60
MAX_EXPIRES = 7 * 24 * 3600

_AUTHORIZATION = re.compile(rf"{ALGORITHM} +Credential=([^, ]+), *SignedHeaders=([^, ]+), *Signature=([0-9a-f]{{64}})")
_IN_QUERY = ("X-Amz-Algorithm", "X-Amz-Credential", "X-Amz-Date", "X-Amz-Expires", "X-Amz-SignedHeaders")


@dataclass(frozen=True, kw_only=True)
class Credentials:
    access_key: str
    secret_key: str
    region: str


@dataclass(frozen=True, kw_only=True)
class _Claim:
    credential: str
    signed: list[str]
    signature: str
    stamp: str
    payload: str
    pairs: list[tuple[str, str]]


def verify(request: Request, credentials: Credentials) -> str:
    """Check who sent a request and that nobody changed its head.

    :return: what it says of its body: a SHA-256, or one of the words that stand in for one.
    :raises S3Error: when anything is wrong.
    """
    in_query = "X-Amz-Signature" in request.query or "X-Amz-Algorithm" in request.query
    in_header = "authorization" in request.headers
    if in_query and in_header:
        raise S3Error("InvalidArgument", "Only one auth mechanism allowed")
    if not in_query and not in_header:
        raise S3Error("AccessDenied", "Access Denied")
    claim = _from_query(request) if in_query else _from_header(request)
    signed_at = _seconds(claim.stamp)
    _check_scope(claim, credentials, in_query=in_query)
    now = time.time()
    if in_header and abs(now - signed_at) > MAX_SKEW:
        raise S3Error(
            "RequestTimeTooSkewed", "The difference between the request time and the current time is too large."
        )
    for name in request.headers:
        if (name == "host" or name.startswith("x-amz-")) and name not in claim.signed:
            raise S3Error(
                "AccessDenied", "There were headers present in the request which were not signed", HeadersNotSigned=name
            )
    if "host" not in claim.signed:
        raise S3Error("AccessDenied", "The Host header must be signed")
    expected = sign(
        credentials.secret_key,
        scope=claim.credential.partition("/")[2],
        stamp=claim.stamp,
        canonical=canonical_request(
            request.method, request.path, claim.pairs, request.headers, claim.signed, claim.payload
        ),
    )
    if not hmac.compare_digest(expected, claim.signature):
        raise S3Error(
            "SignatureDoesNotMatch",
            "The request signature we calculated does not match the signature you provided.",
        )
    if in_query:
        if signed_at > now + MAX_SKEW:
            raise S3Error("AccessDenied", "Request is not yet valid")
        if now >= signed_at + int(request.query["X-Amz-Expires"]):
            raise S3Error("AccessDenied", "Request has expired")
    if "x-amz-security-token" in request.headers or "X-Amz-Security-Token" in request.query:
        raise S3Error("InvalidToken", "The provided token is malformed or otherwise invalid.")
    return claim.payload


def sign(secret_key: str, *, scope: str, stamp: str, canonical: str) -> str:
    """Return the signature of a canonical request."""
    key = f"AWS4{secret_key}".encode()
    for word in scope.split("/"):
        key = hmac.digest(key, word.encode(), "sha256")
    text = "\n".join([ALGORITHM, stamp, scope, hashlib.sha256(canonical.encode()).hexdigest()])
    return hmac.digest(key, text.encode(), "sha256").hex()


def canonical_request(
    method: str,
    path: str,
    pairs: Iterable[tuple[str, str]],
    headers: Mapping[str, str],
    signed: Iterable[str],
    payload: str,
) -> str:
    """Return the form of a request that is signed."""
    query = "&".join("=".join(pair) for pair in sorted((_quote(name), _quote(value)) for name, value in pairs))
    lines = [f"{name}:{' '.join(headers.get(name, '').split())}\n" for name in signed]
    quoted = quote(path, safe="/-_.~", errors="surrogateescape")
    return "\n".join([method, quoted, query, "".join(lines), ";".join(signed), payload])


def _quote(text: str) -> str:
    return quote(text, safe="-_.~")


def _from_header(request: Request) -> _Claim:
    value = request.headers["authorization"]
    if not value.startswith(ALGORITHM):
        raise S3Error("InvalidRequest", f"Please use {ALGORITHM}.")
    match = _AUTHORIZATION.fullmatch(value)
    if match is None:
        raise S3Error("AuthorizationHeaderMalformed", "The authorization header is malformed")
    payload = request.headers.get("x-amz-content-sha256")
    if payload is None:
        raise S3Error("InvalidRequest", "Missing required header for this request: x-amz-content-sha256")
    if payload.startswith("STREAMING-") and payload != STREAMING:
        raise S3Error("NotImplemented", "Signed chunks are not implemented")
    if payload not in (UNSIGNED, STREAMING) and not re.fullmatch(r"[0-9a-f]{64}", payload):
        raise S3Error("InvalidArgument", "x-amz-content-sha256 must be a SHA-256 or one of the words in its place")
    return _Claim(
        credential=match[1],
        signed=_names(match[2]),
        signature=match[3],
        stamp=request.headers.get("x-amz-date", ""),
        payload=payload,
        pairs=request.pairs,
    )


def _from_query(request: Request) -> _Claim:
    query = request.query
    names = [name for name, _ in request.pairs]
    wrong = [name for name in (*_IN_QUERY, "X-Amz-Signature") if names.count(name) != 1]
    if wrong or query["X-Amz-Algorithm"] != ALGORITHM:
        raise S3Error("AuthorizationQueryParametersError", f"Query-string authentication needs {', '.join(_IN_QUERY)}")
    if not re.fullmatch(r"\d{1,9}", query["X-Amz-Expires"]) or not 0 < int(query["X-Amz-Expires"]) <= MAX_EXPIRES:
        raise S3Error("AuthorizationQueryParametersError", "X-Amz-Expires must be between 1 and 604800")
    return _Claim(
        credential=query["X-Amz-Credential"],
        signed=_names(query["X-Amz-SignedHeaders"]),
        signature=query["X-Amz-Signature"],
        stamp=query["X-Amz-Date"],
        payload=request.headers.get("x-amz-content-sha256", UNSIGNED),
        pairs=[pair for pair in request.pairs if pair[0] != "X-Amz-Signature"],
    )


def _names(text: str) -> list[str]:
    names = text.split(";")
    if names != sorted(set(names)) or text != text.lower():
        raise S3Error("AuthorizationHeaderMalformed", "SignedHeaders must be sorted and in lower case")
    return names


def _seconds(stamp: str) -> int:
    try:
        return calendar.timegm(time.strptime(stamp, "%Y%m%dT%H%M%SZ"))
    except ValueError:
        raise S3Error("AccessDenied", "AWS authentication requires a valid Date or x-amz-date header") from None


def _check_scope(claim: _Claim, credentials: Credentials, *, in_query: bool) -> None:
    malformed = "AuthorizationQueryParametersError" if in_query else "AuthorizationHeaderMalformed"
    words = claim.credential.rsplit("/", 4)
    if len(words) != 5 or words[3:] != ["s3", "aws4_request"] or words[1] != claim.stamp[:8]:
        raise S3Error(malformed, "The credential must be of the form key/date/region/s3/aws4_request")
    if words[0] != credentials.access_key:
        raise S3Error("InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in our records.")
    if words[2] != credentials.region:
        message = f"the region '{words[2]}' is wrong; expecting '{credentials.region}'"
        raise S3Error(malformed, message, Region=credentials.region)
