"""Signatures and events, against public vectors and thousands of near misses."""

from __future__ import annotations

import ast
import base64
import hashlib
import hmac
import inspect
import json
import random
import sys
from typing import TYPE_CHECKING, Any

import pytest

from include.recall import webhooks
from include.recall.errors import RecallConfigError, RecallEventError, RecallSignatureError
from include.recall.webhooks import Event, parse, read_headers, sign, signing_key, unwrap, verify

if TYPE_CHECKING:
    from types import FrameType

# The public test vectors: Svix's own example, and one over a whole event.
BODY_B = (
    b'{"event":"audio_separate.done","data":{"data":{"code":"done","sub_code":null,"updated_at":'
    b'"2026-03-04T10:31:09.120000+00:00"},"audio_separate":{"id":"aa0a3c1e-0b6e-4a9f-9a55-0d6f3f8f2a01","metadata":{}},'
    b'"recording":{"id":"7c0e1b52-6c1d-4b77-8d52-3e2c9a6b4f10","metadata":{"archive_job":"weekly"}},'
    b'"bot":{"id":"b0b3d1f8-5f3a-4a3e-9c1d-2f7a8e6c5d40","metadata":{"org":"acme"}}}}'
)
A = (
    "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    "msg_p5jXN8AQM9LWM0D4loKWxJek",
    1614265330,
    b'{"test": 2432232314}',
    "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
)
B = (
    "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=",
    "msg_archive_test_1",
    1772620269,
    BODY_B,
    "v1,V9bFeuct073qnOFKmjjmWeh4fWt454n4L5rBPj/e8Kg=",
)
EMPTY = (*B[:3], b"", "v1,1KX5IpKR5dnQKMeBB3BvvmI8/ZA4igNRwb93JNfa8cE=")
KEY = signing_key(B[0])
OTHER = "whsec_" + base64.b64encode(b"another key of thirty-two bytes!").decode()
NOW = B[2]


def headers(
    message_id: str = B[1], timestamp: Any = B[2], signature: str = B[4], family: str = "webhook"
) -> list[tuple[str, str]]:
    return [(f"{family}-id", message_id), (f"{family}-timestamp", str(timestamp)), (f"{family}-signature", signature)]


def refused(sent: list[tuple[str, str]], body: bytes = BODY_B, keys: Any = (KEY,), now: float = NOW) -> str:
    with pytest.raises(RecallSignatureError) as caught:
        verify(read_headers(sent, now), body, keys)
    return caught.value.code


def accepted(sent: list[tuple[str, str]], body: bytes = BODY_B, keys: Any = (KEY,), now: float = NOW) -> str:
    return verify(read_headers(sent, now), body, keys).message_id


@pytest.mark.parametrize("family", ["webhook", "svix", "Webhook", "SVIX"])
@pytest.mark.parametrize("vector", [A, B, EMPTY])
def test_vectors(vector: tuple[str, str, int, bytes, str], family: str) -> None:
    secret, message_id, timestamp, body, signature = vector
    sent = headers(message_id, timestamp, signature, family)
    assert accepted(sent, body, [signing_key(secret)], timestamp) == message_id
    assert sign(message_id, timestamp, body, signing_key(secret)) == signature


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", [0, 1, 2])
@pytest.mark.parametrize("family", ["webhook", "svix"])
def test_each_header_is_needed(missing: int, family: str) -> None:
    sent = headers(family=family)
    assert refused([one for index, one in enumerate(sent) if index != missing]) == "webhook_unsigned"
    sent[missing] = (sent[missing][0], "")
    assert refused(sent) == "webhook_unsigned"


def test_families_are_never_mixed() -> None:
    ours, legacy = headers(), headers(family="svix")
    for pick in range(1, 7):
        mixed = [legacy[index] if pick & (1 << index) else ours[index] for index in range(3)]
        assert refused(mixed) == "webhook_unsigned"


def test_either_family_is_enough_whatever_the_other_says() -> None:
    for good, bad in (("webhook", "svix"), ("svix", "webhook")):
        for broken in (headers("msg_x", family=bad), headers(timestamp=1, family=bad), headers(family=bad)[:1]):
            assert accepted([*broken, *headers(family=good)]) == B[1]
    # A valid signature in one family, for the id and time of the other.
    crossed = [*headers("msg_x"), *headers(family="svix", signature="v1,AAAA")]
    assert refused(crossed) == "webhook_forged"


def test_a_header_that_is_there_twice_counts_as_missing() -> None:
    for one in headers():
        assert refused([*headers(), one]) == "webhook_unsigned"
        assert refused([(one[0].upper(), "x"), *headers()]) == "webhook_unsigned"


@pytest.mark.parametrize("shift", [-299, -300, 0, 300, 299])
def test_five_minutes_are_tolerated(shift: int) -> None:
    assert accepted(headers(), now=NOW + shift) == B[1]


@pytest.mark.parametrize("shift", [-301, 301, -300.5, 300.5, 86400 * 365])
def test_other_times_are_refused(shift: float) -> None:
    assert refused(headers(), now=NOW + shift) == "webhook_stale"


@pytest.mark.parametrize(
    "text",
    ["abc", "-1", str(2**63), "1" * 5000, "1e9", "1772620269.0", " 1772620269", "+1772620269", "٣", "0x69", "nan"],
)
def test_times_that_are_none_are_refused(text: str) -> None:
    """Even when they are signed: a time that can be read in two ways is none."""
    content = f"{B[1]}.{text}.".encode() + BODY_B
    signature = "v1," + base64.b64encode(hmac.new(KEY, content, hashlib.sha256).digest()).decode()
    assert refused(headers(timestamp=text, signature=signature)) in {"webhook_malformed", "webhook_stale"}


@pytest.mark.parametrize(
    "signature",
    [
        B[4].replace("v1,", "v1a,"),
        B[4].replace("v1,", "v2,"),
        B[4].replace("v1,", "V1,"),
        B[4].replace("v1,", "v1 ,"),
        B[4].replace("v1,", "v1;"),
        B[4].removeprefix("v1,"),
        "v1",
        ",",
    ],
)
def test_other_versions_do_not_count(signature: str) -> None:
    assert refused(headers(signature=signature)) in {"webhook_malformed", "webhook_forged"}


@pytest.mark.parametrize("signature", ["v1,", "v1,=", B[4][:-1], B[4][:-8], B[4] + "=", B[4] + ",", "v1," + "é" * 44])
def test_odd_signatures_are_refused(signature: str) -> None:
    assert refused(headers(signature=signature)) == "webhook_forged"


def test_another_spelling_of_the_same_bytes_is_refused() -> None:
    """Base64 leaves two bits of the last character unused."""
    spelled = B[4].replace("g=", "h=")
    assert base64.b64decode(spelled[3:]) == base64.b64decode(B[4][3:])
    assert refused(headers(signature=spelled)) == "webhook_forged"


def test_thousands_of_near_misses_are_refused() -> None:
    chosen = random.Random(8)
    tried = 0
    for _ in range(3000):
        flipped = bytearray(BODY_B)
        flipped[chosen.randrange(len(flipped))] ^= 1 << chosen.randrange(8)
        cut = BODY_B[: chosen.randrange(len(BODY_B))]
        at = chosen.randrange(len(BODY_B))
        grown = BODY_B[:at] + bytes([chosen.randrange(256)]) + BODY_B[at:]
        for body in (bytes(flipped), cut, grown):
            assert refused(headers(), body) == "webhook_forged"
        raw = bytearray(base64.b64decode(B[4][3:]))
        raw[chosen.randrange(32)] ^= 1 << chosen.randrange(8)
        assert refused(headers(signature="v1," + base64.b64encode(raw).decode())) == "webhook_forged"
        when = chosen.randrange(NOW - 300, NOW + 301)
        if when != NOW:
            assert refused(headers(timestamp=when)) == "webhook_forged"
        tried += 5
    for index in range(len(B[1])):
        assert refused(headers(B[1][:index] + "X" + B[1][index + 1 :])) == "webhook_forged"
    assert tried == 15_000


def test_a_body_written_anew_is_refused() -> None:
    event = json.loads(BODY_B)
    for body in (
        json.dumps(event).encode(),
        json.dumps(event, separators=(",", ":"), sort_keys=True).encode(),
        BODY_B + b"\n",
        BODY_B.decode().encode("utf-16"),
        BODY_B.replace(b"done", b"\\u0064one"),
    ):
        assert refused(headers(), body) == "webhook_forged"


def test_the_parts_of_what_is_signed_can_not_be_moved() -> None:
    content = f"{B[1]}.{B[2]}.".encode() + BODY_B
    for cut in range(1, len(content)):
        for second in (content.find(b".", cut + 1), len(content) - 1):
            message_id, timestamp, body = content[:cut], content[cut + 1 : second], content[second + 1 :]
            if content[cut : cut + 1] != b"." or (message_id, body) == (B[1].encode(), BODY_B):
                continue
            sent = headers(message_id.decode("latin-1"), timestamp.decode("latin-1"))
            assert refused(sent, body) in {"webhook_malformed", "webhook_forged", "webhook_unsigned", "webhook_stale"}


# -- secrets -----------------------------------------------------------------------------------------------------------


def test_any_signature_under_any_active_secret_counts() -> None:
    old, new = KEY, signing_key(OTHER)
    both = f"{sign(B[1], B[2], BODY_B, new)} {B[4]}"
    wrong = "v1,AAAA v2,x v1a,y"
    for keys, signature in (
        ([new, old], B[4]),
        ([old, new], sign(B[1], B[2], BODY_B, new)),
        ([old], both),
        ([new], both),
        ([old], f"{wrong} {B[4]}"),
        ([old], f"{B[4]} {wrong}"),
    ):
        assert accepted(headers(signature=signature), keys=keys) == B[1]
    assert refused(headers(), keys=[new]) == "webhook_forged"
    assert refused(headers(), keys=[]) == "no_webhook_secret"


def test_few_signatures_are_looked_at() -> None:
    assert refused(headers(signature="v1,AAAA " * 16 + B[4])) == "webhook_forged"
    assert accepted(headers(signature="v1,AAAA " * 15 + B[4])) == B[1]


@pytest.mark.parametrize(
    "secret",
    ["", "whsec_", "whsec_AAAA", "whsec_!!!!", "whsec_" + "é" * 40, B[0].removeprefix("whsec_"), "WHSEC_" + B[0]],
)
def test_what_is_no_secret_is_refused_and_not_shown(secret: str) -> None:
    with pytest.raises(RecallConfigError) as caught:
        signing_key(secret)
    assert len(secret) < 8 or secret[6:] not in str(caught.value)


def test_comparing_takes_the_same_steps_wherever_the_first_difference_is() -> None:
    tree = ast.parse(inspect.getsource(webhooks))
    compared = {name.id for node in ast.walk(tree) if isinstance(node, ast.Compare) for name in _names(node)}
    assert not compared & {"expected", "given"}
    assert "hmac.compare_digest(expected, given)" in ast.unparse(tree)
    signature = B[4]
    early, late = "v1,A" + signature[4:], signature[:-2] + "A="
    _steps(early)  # the first call of all may prepare something
    assert _steps(early) == _steps(late) > 100


def _steps(signature: str) -> int:
    """Count the interpreter's instructions until a signature is refused."""
    claims, steps = read_headers(headers(signature=signature), NOW), 0

    def count(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal steps
        frame.f_trace_opcodes = True
        steps += 1
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        verify(claims, BODY_B, [KEY])
    except RecallSignatureError:
        return steps
    finally:
        sys.settrace(before)
    raise AssertionError("not refused")


def _names(node: ast.AST) -> list[ast.Name]:
    return [one for one in ast.walk(node) if isinstance(one, ast.Name)]


# -- events ------------------------------------------------------------------------------------------------------------

RECORDING = "7c0e1b52-6c1d-4b77-8d52-3e2c9a6b4f10"
BOT = "b0b3d1f8-5f3a-4a3e-9c1d-2f7a8e6c5d40"


def event(name: str, **data: Any) -> bytes:
    return json.dumps({"event": name, "data": data}).encode()


@pytest.mark.parametrize(
    ("body", "expected", "starts"),
    [
        (BODY_B, Event("audio_separate.done", RECORDING, BOT), True),
        (
            event("recording.done", recording={"id": RECORDING}, bot=None),
            Event("recording.done", RECORDING, None),
            True,
        ),
        (event("recording.done", recording={"id": "r_1"}), Event("recording.done", "r_1", None), True),
        (event("recording.failed", recording={"id": "r"}, bot={"id": "b"}), Event("recording.failed", "r", "b"), False),
        (event("bot.done", data={"code": "done"}, bot={"id": "b"}), Event("bot.done", None, "b"), False),
        (
            event("bot.status_change", bot_id="b", status={"code": "done", "recording_id": "r"}),
            Event("bot.status_change", "r", "b"),
            False,
        ),
        (event("something.new", what=[1, {"id": "../x"}]), Event("something.new", None, None), False),
        (b'{"event":"audio_separate.processing","data":null}', Event("audio_separate.processing", None, None), False),
        (b'{"event":"x"}', Event("x", None, None), False),
    ],
)
def test_events(body: bytes, expected: Event, starts: bool) -> None:
    assert parse(body) == expected
    assert parse(body).starts == (expected.recording_id if starts else None)


HOSTILE = [
    "../../etc/passwd",
    "a/b",
    "a b",
    "a\r\nb",
    "x" * 65,
    "é",
    "\ud800",
    ".",
    "-a",
    "a?b",
    "a%2fb",
    7,
    True,
    ["a"],
]


@pytest.mark.parametrize("identity", HOSTILE)
@pytest.mark.parametrize("place", ["recording", "bot"])
def test_hostile_ids_are_refused(identity: Any, place: str) -> None:
    data = {"recording": {"id": RECORDING}, "bot": {"id": BOT}, place: {"id": identity}}
    with pytest.raises(RecallEventError) as caught:
        parse(event("recording.done", **data))
    assert str(identity) not in str(caught.value) or len(str(identity)) < 3
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b'"bot.done"',
        b"{",
        b"{}",
        b'{"event":null}',
        b'{"event":""}',
        b'{"event":"a\\nb"}',
        b'{"event":"' + b"x" * 101 + b'"}',
        b'{"event":{"__class__":"os.system"}}',
        b"\xff\xfe",
        b"\xef\xbb\xbf{}",
        '{"event":"bot.done"}'.encode("utf-16"),
        b"[" * 200_000,
        b'{"event":' + b"9" * 100_000 + b"}",
        b'{"event":"x","data":' + b'{"a":' * 60_000,
        b"!!python/object/apply:os.system [id]",
        b"\x80\x04\x95.",
        b'{"event":"recording.done","data":{"bot":{"id":"b"}}}',
        b'{"event":"audio_separate.done","data":[]}',
    ],
)
def test_what_is_no_event_is_refused(body: bytes) -> None:
    with pytest.raises(RecallEventError):
        parse(body)


def test_mutated_events_are_events_or_refused() -> None:
    chosen = random.Random(9)
    outcomes = {"event": 0, "refused": 0}
    for _ in range(10_000):
        body = bytearray(BODY_B)
        for _ in range(chosen.randint(1, 4)):
            body[chosen.randrange(len(body))] = chosen.randrange(256)
        try:
            found = parse(bytes(body))
        except RecallEventError:
            outcomes["refused"] += 1
            continue
        outcomes["event"] += 1
        for identity in (found.recording_id, found.bot_id):
            assert identity is None or set(identity) <= set(
                "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_-"
            )
    assert min(outcomes.values()) > 500


# -- envelopes ---------------------------------------------------------------------------------------------------------


def envelope(**change: Any) -> str:
    whole = {"received_ms": NOW * 1000 + 5, "headers": dict(headers()), "body": base64.b64encode(BODY_B).decode()}
    return json.dumps({**whole, **change})


def test_a_queued_message_is_proven_for_the_time_when_it_came_in() -> None:
    sent, body, received = unwrap(envelope())
    assert accepted(sent, body, now=received) == B[1]
    sent, body, received = unwrap(envelope(received_ms=(NOW + 301) * 1000))
    assert refused(sent, body, now=received) == "webhook_stale"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        "{}",
        BODY_B.decode(),
        envelope(received_ms=None),
        envelope(received_ms="soon"),
        envelope(received_ms=[1]),
        envelope(received_ms=1e999),
        envelope(headers=[]),
        envelope(headers=None),
        envelope(body=7),
        envelope(body="not base64!"),
        envelope(body="é"),
        "[" * 100_000,
    ],
)
def test_what_is_no_envelope_is_refused(text: str) -> None:
    with pytest.raises(RecallEventError):
        unwrap(text)
