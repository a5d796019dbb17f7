"""What Recall sends: is it genuine, and what is it about? Pure functions of headers, bytes, secrets and the time.

The order of use is the order of trust: :func:`read_headers` looks at the headers alone, so that most of what is forged
is refused before its body is read; :func:`verify` proves the raw bytes; only then does :func:`parse` look into them.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from include.recall.errors import RecallConfigError, RecallEventError, RecallSignatureError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

TOLERANCE_SECONDS = 300
"""How far a message's own time may be from ours, in both directions."""

FAMILIES = ("webhook", "svix")
"""The two spellings of the headers; a message is proven by one of them alone, never by a mixture."""

RECORDING_READY = frozenset({"audio_separate.done", "recording.done"})
"""The events after which a recording's audio may be there; which of them comes first is not documented."""

UNSIGNED = "webhook_unsigned"
_SECRET_PREFIX = "whsec_"  # noqa: S105 - what every secret begins with
_LEAST_KEY_BYTES = 16
_MOST_SIGNATURES = 16
_ID = re.compile(r"[!-~]{1,256}")
_SECONDS = re.compile(r"[0-9]{1,12}")
_EVENT = re.compile(r"[0-9A-Za-z_.-]{1,100}")
_SAFE_ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z_-]{0,63}")


@dataclass(frozen=True)
class Claim:
    """What the headers of one family say: who sent which message when, still to be proven.

    :param message_id: the sender's id of the message, the same whenever it is sent again.
    :param timestamp: seconds since 1970, as they were sent.
    :param signatures: the signatures of version 1, without the version.
    """

    message_id: str
    timestamp: str
    signatures: tuple[bytes, ...]


@dataclass(frozen=True)
class Event:
    """One event; ids that it has none of are ``None``, and those that it has are safe in a path or a run id.

    :param name: for example ``audio_separate.done``; an open set.
    """

    name: str
    recording_id: str | None
    bot_id: str | None

    @property
    def starts(self) -> str | None:
        """The recording whose archiving it starts, or None."""
        return self.recording_id if self.name in RECORDING_READY else None


def signing_key(secret: str) -> bytes:
    """Return the key that a secret stands for.

    :param secret: as Recall's dashboard shows it: ``whsec_`` and base64.
    :raises RecallConfigError: it is no such secret; the message does not show it.
    """
    text = secret.strip()
    if text.startswith(_SECRET_PREFIX):
        try:
            key = base64.b64decode(text[len(_SECRET_PREFIX) :], validate=True)
        except ValueError:
            key = b""
        # An empty key would let everybody sign.
        if len(key) >= _LEAST_KEY_BYTES:
            return key
    raise RecallConfigError(
        f"a webhook secret is not {_SECRET_PREFIX} and the base64 of {_LEAST_KEY_BYTES} bytes or more"
    )


def read_headers(headers: Iterable[tuple[str, str]], now: float) -> list[Claim]:
    """Return what the headers claim, one entry for each whole family of them.

    :param headers: names, in any case, with their values.
    :param now: seconds since 1970.
    :raises RecallSignatureError: no family is whole, of version 1 and within five minutes of now.
    """
    values: dict[str, str | None] = {}
    for name, value in headers:
        lower = name.lower()
        # What is there twice could be read in two ways, so it is not read at all.
        values[lower] = None if lower in values else value
    claims, reasons = [], []
    for family in FAMILIES:
        try:
            claims.append(_claim(values, family, now))
        except RecallSignatureError as error:
            reasons.append(error)
    if not claims:
        # The one that says most: of a family that is there at all.
        raise max(reasons, key=lambda error: error.code != UNSIGNED)
    return claims


def verify(claims: Iterable[Claim], body: bytes, keys: Sequence[bytes]) -> Claim:
    """Return the claim that a signature proves.

    Signatures are compared as text, in constant time: base64 has several spellings of the same bytes.

    :param claims: of :func:`read_headers`.
    :param body: the raw bytes.
    :param keys: all active ones, of :func:`signing_key`.
    :raises RecallSignatureError: no signature of any claim is one under any of the keys.
    """
    for claim in claims:
        content = b"%b.%b.%b" % (claim.message_id.encode("ascii"), claim.timestamp.encode("ascii"), body)
        for key in keys:
            expected = _signature(key, content)
            if any([hmac.compare_digest(expected, given) for given in claim.signatures]):
                return claim
    raise RecallSignatureError(
        "no signature is one under an active secret", code="webhook_forged" if keys else "no_webhook_secret"
    )


def sign(message_id: str, timestamp: int, body: bytes, key: bytes) -> str:
    """Return the signature header's entry that :func:`verify` accepts, for whoever tests a receiver.

    :param timestamp: seconds since 1970.
    :param key: of :func:`signing_key`.
    """
    return f"v1,{_signature(key, b'%b.%d.%b' % (message_id.encode('ascii'), timestamp, body)).decode('ascii')}"


def parse(body: bytes) -> Event:
    """Read a body that :func:`verify` has proven.

    :raises RecallEventError: it is no event; the message holds nothing of it.
    """
    try:
        message = json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError):
        raise RecallEventError("the body is not JSON in UTF-8") from None
    if not isinstance(message, dict) or not isinstance(name := message.get("event"), str) or not _EVENT.fullmatch(name):
        raise RecallEventError("the body has no event name")
    data = _object(message, "data")
    status = _object(data, "status")
    recording_id = _safe_id(
        _object(data, "recording").get("id") or data.get("recording_id") or status.get("recording_id"), "recording"
    )
    event = Event(name, recording_id, _safe_id(_object(data, "bot").get("id") or data.get("bot_id"), "bot"))
    if name in RECORDING_READY and recording_id is None:
        raise RecallEventError(f"{name} names no recording")
    return event


def unwrap(text: str) -> tuple[list[tuple[str, str]], bytes, float]:
    """Take a webhook out of the envelope that a gateway put it into, to send it through a queue.

    The envelope is JSON: ``received_ms``, when the gateway got it, in milliseconds since 1970; ``headers``, an object;
    and ``body``, the base64 of the raw bytes. The signature is as good as ever, and is checked for the time when it
    came in, however long it lay in the queue.

    :return: the headers and the time for :func:`read_headers`, and the body for :func:`verify`.
    :raises RecallEventError: it is no such envelope; the message holds nothing of it.
    """
    try:
        envelope = json.loads(text)
        headers, received = envelope["headers"], envelope["received_ms"]
        body = base64.b64decode(envelope["body"], validate=True)
        pairs = [(str(name), str(value)) for name, value in headers.items()]
        return pairs, body, int(received) / 1000
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        raise RecallEventError("a queued message is not the envelope of a webhook") from None


def _claim(values: Mapping[str, str | None], family: str, now: float) -> Claim:
    message_id, timestamp, signatures = (values.get(f"{family}-{one}") for one in ("id", "timestamp", "signature"))
    if not message_id or not timestamp or not signatures:
        raise RecallSignatureError("the headers of a signature are missing or there twice", code=UNSIGNED)
    if not _ID.fullmatch(message_id) or not _SECONDS.fullmatch(timestamp):
        raise RecallSignatureError("the id or the time is not one", code="webhook_malformed")
    if abs(now - int(timestamp)) > TOLERANCE_SECONDS:
        raise RecallSignatureError("the message is from another time, or a clock is wrong", code="webhook_stale")
    entries = signatures.split(" ", _MOST_SIGNATURES)[:_MOST_SIGNATURES]
    given = tuple(entry[3:].encode("latin-1", "replace") for entry in entries if entry.startswith("v1,"))
    if not given:
        raise RecallSignatureError("there is no signature of version 1", code="webhook_malformed")
    return Claim(message_id, timestamp, given)


def _signature(key: bytes, content: bytes) -> bytes:
    return base64.b64encode(hmac.new(key, content, hashlib.sha256).digest())


def _object(fields: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = fields.get(name)
    return value if isinstance(value, dict) else {}


def _safe_id(value: Any, what: str) -> str | None:
    if value is None or value == "":
        return None
    if not isinstance(value, str) or not _SAFE_ID.fullmatch(value):
        raise RecallEventError(f"the id of the {what} is not one")
    return value
