from __future__ import annotations

import base64
import hashlib
import json
import logging
import random
import socket
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from include.recall import media as media_module
from include.recall import transport
from include.recall.errors import (
    RecallConfigError,
    RecallHostNotAllowedError,
    RecallLinkExpiredError,
    RecallMediaCutError,
    RecallMediaForbiddenError,
    RecallMediaSlowError,
    RecallRateLimitError,
    RecallRequestError,
    RecallResponseError,
    RecallSchemaError,
    RecallServerError,
    RecallTooLargeError,
    RecallUnexpectedContentError,
    RecallUnsafeRedirectError,
)
from include.recall.media import LARGEST_DOCUMENT, MediaBody, MediaClient, PartSource, is_public, read_list
from include.recall.models import AudioPart, Participant, SignedLink

if TYPE_CHECKING:
    from collections.abc import Callable

    from include.errors import CodedError
    from include.recall.retry import RetryPolicy
    from tests.include.recall.conftest import Asked, Authority, Clock, Server, Shown

SECRET = "?Signature=CANARY&Expires=1"
AUDIO = random.Random(1).randbytes(300_000)
TAG = '"v1"'


def part(number: int = 1) -> dict[str, Any]:
    return {
        "id": f"part-{number}",
        "participant": None,
        "start_timestamp": {"absolute": None, "relative": 0},
        "duration": 1,
        "download_url": f"https://media.example.com/{number}{SECRET}",
    }


@pytest.fixture
def connect(server: Server, policy: RetryPolicy, authority: Authority) -> Any:
    clients = []

    def connect(**kwargs: Any) -> MediaClient:
        # A bundle of one certificate loads faster than certifi's.
        defaults = {"allowed_hosts": [server.netloc], "retry": policy, "ca_bundle": authority.bundle}
        clients.append(MediaClient(**{**defaults, **kwargs}))
        return clients[-1]

    yield connect
    for client in clients:
        client.close()


@pytest.fixture
def media(connect: Callable[..., MediaClient]) -> MediaClient:
    return connect()


@pytest.fixture
def link(server: Server) -> SignedLink:
    return SignedLink(f"{server.url}/part-1{SECRET}")


def read(body: MediaBody, size: int = 7_000) -> bytes:
    buffer = memoryview(bytearray(size))
    data = b""
    try:
        while count := body.readinto(buffer):
            data += buffer[:count]
        assert body.readinto(buffer) == 0
    finally:
        body.close()
    return data


def ranged(server: Server, asked: Asked, data: bytes = AUDIO, **headers: str) -> bytes:
    """Answer as a store does, with or without a range."""
    headers = {"ETag": TAG, "Content_Type": "audio/x-test", **headers}
    if "range" not in asked.headers:
        return server.reply(200, data, **headers)
    first, _, last = asked.headers["range"].removeprefix("bytes=").partition("-")
    begin, end = int(first), min(int(last or len(data)), len(data) - 1)
    headers["Content_Range"] = f"bytes {begin}-{end}/{len(data)}"
    return server.reply(206, data[begin : end + 1], **headers)


def test_a_body(media: MediaClient, server: Server, link: SignedLink) -> None:
    server.route = lambda asked: ranged(server, asked, Set_Cookie="a=CANARY; Path=/")
    for _ in range(2):
        body = media.open(link)
        assert (body.length, body.offset, body.etag, body.content_type) == (len(AUDIO), 0, TAG, "audio/x-test")
        assert read(body) == AUDIO
    assert server.connections == 1, "connections are reused"
    for asked in server.asked:
        assert asked.target == f"/part-1{SECRET}"
        assert set(asked.headers) == {"host", "user-agent", "accept", "accept-encoding"}
        assert asked.headers["accept-encoding"] == "identity"


def test_a_body_without_bytes(media: MediaClient, server: Server, link: SignedLink) -> None:
    server.forever = server.reply(200, b"")
    body = media.open(link)
    assert (body.length, read(body)) == (0, b"")


def test_a_body_without_length(media: MediaClient, server: Server, link: SignedLink) -> None:
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(one), one) for one in (AUDIO[:9], AUDIO[9:])) + b"0\r\n\r\n"
    server.says(server.raw(b"HTTP/1.1 200 OK\r\n\r\n", AUDIO))
    server.says(server.reply(200, chunks, Transfer_Encoding="chunked", Content_Length=""))
    server.says(server.reply(200, chunks, Transfer_Encoding="chunked", Content_Length="5"))
    for _ in range(3):
        body = media.open(link)
        assert body.length is None
        assert read(body) == AUDIO


def test_chunks_that_are_cut_off(media: MediaClient, server: Server, link: SignedLink) -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    for cut in (b"", b"a", b"a\r\n", b"a\r\n12345", b"a\r\n1234567890", b"a\r\n1234567890\r\n"):
        server.says(server.raw(head + cut))
        with pytest.raises(RecallMediaCutError):
            read(media.open(link))


@pytest.mark.parametrize("at", [0, 1, 6_999, 7_000, 7_001, len(AUDIO) - 1])
@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_a_cut_body_is_never_whole(
    media: MediaClient, server: Server, link: SignedLink, at: int, reset: bool, shown: Shown
) -> None:
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(AUDIO)}\r\n\r\n".encode()
    server.says(server.raw(head + AUDIO[:at], reset=reset))
    with pytest.raises(RecallMediaCutError) as caught:
        read(media.open(link))
    assert (caught.value.code, caught.value.permanent) == ("media_cut", False)
    assert "CANARY" not in shown(caught.value)


def test_headers_that_are_cut_off_are_no_empty_body(media: MediaClient, server: Server, link: SignedLink) -> None:
    server.says(server.raw(b"HTTP/1.1 200 OK\r\nETag: x\r\n"), server.raw(b"HTTP/1.1 200 OK\r\nETa"), server.raw())
    for _ in range(3):
        with pytest.raises(RecallMediaCutError):
            media.open(link)


def test_resuming(media: MediaClient, server: Server, link: SignedLink) -> None:
    server.route = lambda asked: ranged(server, asked, Content_MD5=base64.b64encode(b"x" * 16).decode())
    body = media.open(link, offset=100_000, if_match=TAG)
    assert (body.offset, body.length, body.etag, body.checksums) == (100_000, len(AUDIO), TAG, {})
    assert read(body) == AUDIO[100_000:]
    (asked,) = server.asked
    assert (asked.headers["range"], asked.headers["if-match"]) == ("bytes=100000-", TAG)


def test_resuming_gets_less_than_the_rest(media: MediaClient, server: Server, link: SignedLink) -> None:
    server.forever = server.reply(206, AUDIO[10:20], Content_Range=f"bytes 10-19/{len(AUDIO)}")
    with pytest.raises(RecallMediaCutError, match="byte 20"):
        read(media.open(link, offset=10))


def test_a_resumed_body_of_unknown_total(media: MediaClient, server: Server, link: SignedLink) -> None:
    server.forever = server.reply(206, AUDIO[10:], Content_Range=f"bytes 10-{len(AUDIO) - 1}/*")
    body = media.open(link, offset=10)
    assert body.length == len(AUDIO)
    assert read(body) == AUDIO[10:]


def test_a_range_that_is_ignored_starts_anew(media: MediaClient, server: Server, link: SignedLink) -> None:
    server.forever = server.reply(200, AUDIO, ETag=TAG)
    body = media.open(link, offset=100_000, if_match=TAG)
    assert (body.offset, body.length) == (0, len(AUDIO))
    assert read(body) == AUDIO


@pytest.mark.parametrize("begin", [0, 5])
def test_a_range_with_an_end(media: MediaClient, server: Server, link: SignedLink, begin: int) -> None:
    server.route = lambda asked: ranged(server, asked, Accept_Ranges="bytes")
    for _ in range(3):
        body = media.open(link, offset=begin, if_match=TAG, end=50)
        buffer = memoryview(bytearray(100))
        assert body.readinto(buffer) == 50 - begin
        assert buffer[: 50 - begin] == AUDIO[begin:50]
        assert (body.offset, body.length, body.etag, body.takes_ranges) == (begin, len(AUDIO), TAG, True)
        body.close()
    assert {(asked.headers["range"], asked.headers["if-match"]) for asked in server.asked} == {
        (f"bytes={begin}-49", TAG)
    }
    assert server.connections == 1


@pytest.mark.parametrize(
    "refusal",
    [
        (412, b"", {}),
        (416, b"", {}),
        (206, AUDIO[5:], {"Content_Range": f"bytes 5-{len(AUDIO) - 1}/{len(AUDIO)}"}),
        (206, AUDIO[10:], {"Content_Range": f"bytes 10-{len(AUDIO) - 1}/{len(AUDIO)}", "ETag": '"v2"'}),
        (206, AUDIO[10:], {"Content_Range": "bytes 10-20/5"}),
        (206, AUDIO[10:], {"Content_Range": "pages 1-2/3"}),
        (206, AUDIO[10:], {}),
    ],
)
def test_a_range_that_cannot_be_had_starts_anew(
    media: MediaClient, server: Server, link: SignedLink, refusal: tuple[int, bytes, dict[str, str]]
) -> None:
    status, data, headers = refusal
    server.says(server.reply(status, data, **headers), server.reply(200, AUDIO))
    body = media.open(link, offset=10, if_match=TAG)
    assert body.offset == 0
    assert read(body) == AUDIO
    assert "range" not in server.asked[1].headers
    assert "if-match" not in server.asked[1].headers


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_a_refused_link_may_have_expired(
    media: MediaClient, server: Server, link: SignedLink, status: int, shown: Shown
) -> None:
    server.forever = server.reply(status, b"<Error>CANARY</Error>", WWW_Authenticate="Basic realm=x")
    with pytest.raises(RecallLinkExpiredError) as caught:
        media.open(link)
    assert "CANARY" not in shown(caught.value)
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("status", "cls"), [(429, RecallRateLimitError), (500, RecallServerError), (503, RecallServerError)]
)
def test_a_busy_host(media: MediaClient, server: Server, link: SignedLink, status: int, cls: type[CodedError]) -> None:
    server.forever = server.reply(status, b"", Retry_After="9")
    with pytest.raises(cls) as caught:
        media.open(link)
    assert (caught.value.permanent, caught.value.retry_after) == (False, 9)


@pytest.mark.parametrize(
    "answer",
    [
        (200, {"Content_Encoding": "gzip"}),
        (200, {"Content_Encoding": "br, gzip"}),
        (206, {"Content_Range": "bytes 0-3/4"}),
        (204, {"Content_Length": ""}),
        (304, {"Content_Length": ""}),
        (418, {}),
    ],
)
def test_what_can_be_no_body(
    media: MediaClient, server: Server, link: SignedLink, answer: tuple[int, dict[str, str]]
) -> None:
    status, headers = answer
    server.forever = server.reply(status, b"" if "Content_Length" in headers else b"\x1f\x8b00", **headers)
    with pytest.raises(RecallUnexpectedContentError):
        media.open(link)


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.mark.parametrize(
    ("headers", "stated"),
    [
        ({"Content_MD5": b64(b"m" * 16)}, {"md5": (b"m" * 16).hex()}),
        ({"x_amz_checksum_sha256": b64(b"s" * 32)}, {"sha256": (b"s" * 32).hex()}),
        ({"x_amz_checksum_crc32": b64(b"c" * 4)}, {"crc32": (b"c" * 4).hex()}),
        ({"x_amz_checksum_crc32": b64(b"c" * 4) + "-2"}, {}),
        ({"x_amz_checksum_crc32": b64(b"c" * 4), "x_amz_checksum_type": "COMPOSITE"}, {}),
        ({"x_amz_checksum_crc32": b64(b"c" * 4), "x_amz_checksum_type": "FULL_OBJECT"}, {"crc32": (b"c" * 4).hex()}),
        ({"Digest": f"md5=abc,SHA-256={b64(b's' * 32)}"}, {"sha256": (b"s" * 32).hex()}),
        ({"Repr_Digest": f"sha-512=:AAAA:, sha-256=:{b64(b's' * 32)}:"}, {"sha256": (b"s" * 32).hex()}),
        ({"Content_MD5": "CANARY", "Digest": "sha-256=short"}, {}),
        ({"ETag": '"0123456789abcdef0123456789abcdef"'}, {}),
    ],
)
def test_checksums(
    media: MediaClient, server: Server, link: SignedLink, headers: dict[str, str], stated: dict[str, str]
) -> None:
    server.forever = server.reply(200, b"x", **headers)
    body = media.open(link)
    body.close()
    assert body.checksums == stated


def test_checksums_are_those_of_the_bytes(media: MediaClient, server: Server, link: SignedLink) -> None:
    headers = {
        "Content_MD5": b64(hashlib.md5(AUDIO).digest()),
        "x_amz_checksum_crc32": b64(zlib.crc32(AUDIO).to_bytes(4, "big")),
    }
    server.forever = server.reply(200, AUDIO, **headers)
    body = media.open(link)
    body.close()
    assert body.checksums == {"md5": hashlib.md5(AUDIO).hexdigest(), "crc32": f"{zlib.crc32(AUDIO):08x}"}


def test_weak_tags_are_no_tags(media: MediaClient, server: Server, link: SignedLink) -> None:
    for tag in ('W/"v1"', "v1", '"v"1"'):
        server.says(server.reply(200, b"x", ETag=tag))
        body = media.open(link)
        body.close()
        assert body.etag is None


class Trickle:
    """A reply that takes its time, on a clock that nobody waits for."""

    status = 200
    headers: dict[str, str] = {}  # noqa: RUF012

    def __init__(self, clock: Clock, amount: int, seconds: float) -> None:
        self.clock, self.amount, self.seconds, self.closed = clock, amount, seconds, False
        self.reads = 0
        self._fp = self

    def receive_into(self, buffer: memoryview) -> int:
        self.clock.now += self.seconds
        self.reads += 1
        return min(len(buffer), self.amount) if self.reads <= 600 else 0

    def isclosed(self) -> bool:
        return False

    def release_conn(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


def slow_body(response: Trickle, clock: Clock, *, end: float | None = None) -> MediaBody:
    return MediaBody(response, offset=0, length=None, min_rate=1024, window=30, end=end, clock=clock)  # type: ignore[arg-type]


def test_a_body_below_the_minimum_rate_is_given_up(clock: Clock) -> None:
    response, started = Trickle(clock, amount=1, seconds=1.0), clock.now
    with pytest.raises(RecallMediaSlowError) as caught:
        read(slow_body(response, clock))
    assert clock.now - started == 30
    assert (caught.value.code, caught.value.permanent, response.closed) == ("media_slow", False, True)


def test_a_slow_reader_is_not_held_against_the_source(clock: Clock) -> None:
    body = slow_body(Trickle(clock, amount=512, seconds=0.4), clock)
    buffer = memoryview(bytearray(1024))
    for _ in range(500):
        clock.now += 60
        assert body.readinto(buffer) == 512


def test_a_body_has_a_total_deadline(clock: Clock) -> None:
    body = slow_body(Trickle(clock, amount=20_000, seconds=10.0), clock, end=clock.now + 100)
    with pytest.raises(RecallMediaSlowError, match="in time"):
        read(body, 10**6)


def test_slow_senders_over_the_wire(connect: Callable[..., MediaClient], server: Server, link: SignedLink) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n\r\n"
    impatient = connect(read_timeout=0.3, min_bytes_per_second=100, rate_window=0.3)
    for pieces in ((b"H", b"H"), (head + b"x" * 500, b""), (head, b"x")):
        server.says(server.endless(*pieces))
        before = server.drops
        with pytest.raises(RecallMediaSlowError):
            read(impatient.open(link))
        assert server.drops - before < 200  # ten seconds' worth


def test_redirects_are_followed_without_secrets(
    connect: Callable[..., MediaClient], server: Server, other_server: Server, link: SignedLink
) -> None:
    media = connect(allowed_hosts=[server.netloc, other_server.netloc])
    server.says(
        server.reply(302, Location="/second?x=1", Set_Cookie="a=CANARY"),
        server.reply(307, Location=f"{other_server.url}/third?Signature=OTHER"),
    )
    other_server.forever = other_server.reply(200, AUDIO)
    assert read(media.open(link, offset=0)) == AUDIO
    assert [asked.target for asked in server.asked] == [f"/part-1{SECRET}", "/second?x=1"]
    (asked,) = other_server.asked
    assert set(asked.headers) == {"host", "user-agent", "accept", "accept-encoding"}
    assert "CANARY" not in asked.head


def test_redirects_are_bounded(media: MediaClient, server: Server, link: SignedLink, shown: Shown) -> None:
    server.forever = server.reply(302, Location="/again?Signature=CANARY")
    with pytest.raises(RecallUnsafeRedirectError, match="more than 3") as caught:
        media.open(link)
    assert len(server.asked) == 4
    assert "CANARY" not in shown(caught.value)


FORBIDDEN = [
    "http://169.254.169.254/latest/",
    "https://169.254.169.254/latest/",
    "https://127.0.0.1:{port}/",
    "http://127.0.0.1:{port}/",
    "https://localhost:{port}/",
    "https://0.0.0.0:{port}/",
    "https://[::1]:{port}/",
    "https://[::ffff:127.0.0.1]:{port}/",
    "https://[::ffff:7f00:1]:{port}/",
    "https://[64:ff9b::7f00:1]:{port}/",
    "https://[2002:7f00:1::]:{port}/",
    "https://[fe80::1]:{port}/",
    "https://[fd00::1]:{port}/",
    "https://10.0.0.1/",
    "https://192.168.1.1/",
    "https://100.64.0.1/",
    "https://0xa9fea9fe/",
    "https://2852039166/",
    "https://0177.1:{port}/",
    "https://2130706433:{port}/",
    "https://224.0.0.1/",
    "https://240.0.0.1/",
    "file:///etc/passwd",
    "gopher://127.0.0.1:{port}/",
    "https://user:pass@127.0.0.1:{port}/",
    "https://media.example.com@127.0.0.1:{port}/",
    "https:///nowhere",
    "https://[/",
    "//127.0.0.1:{port}/",
    "https://127.0.0.1:99999/",
    "http://{allowed}\\@127.0.0.1:{port}/",
    "http://127.0.0.1:{port}\\@{allowed}/",
    "http://{allowed}@127.0.0.1:{port}/",
    " http://127.0.0.1:{port}/",
    "https://" + "a" * 70 + ".example/",
]


@pytest.mark.parametrize("target", FORBIDDEN)
def test_forbidden_addresses_are_not_connected_to(
    media: MediaClient, server: Server, other_server: Server, link: SignedLink, target: str, shown: Shown
) -> None:
    target = target.format(port=other_server.port, allowed=server.netloc)
    server.forever = server.reply(302, Location=target)
    with pytest.raises((RecallUnsafeRedirectError, RecallMediaCutError)) as caught:
        media.open(link)
    if isinstance(caught.value, RecallMediaCutError):
        assert "resolved" in caught.value.message
    assert "CANARY" not in shown(caught.value)
    with pytest.raises((RecallHostNotAllowedError, RecallUnsafeRedirectError, RecallMediaCutError)):
        media.open(SignedLink(target))
    assert other_server.connections == 0


def resolving(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> list[str]:
    """Let media.example.com resolve to each of these in turn; return what was looked up."""
    real, looked_up, queue = socket.getaddrinfo, [], list(answers)

    def getaddrinfo(host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
        if host != "media.example.com":
            return real(host, port, *args, **kwargs)
        looked_up.append(host)
        addresses = queue.pop(0) if len(queue) > 1 else queue[0]
        return [one for address in addresses for one in real(address, port, type=socket.SOCK_STREAM)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return looked_up


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["93.184.215.14", "127.0.0.1"], ["::ffff:10.0.0.1"]])
def test_a_public_name_with_a_private_address_is_refused(
    media: MediaClient, other_server: Server, monkeypatch: pytest.MonkeyPatch, addresses: list[str], shown: Shown
) -> None:
    resolving(monkeypatch, addresses)
    with pytest.raises(RecallHostNotAllowedError, match=r"media\.example\.com") as caught:
        media.open(SignedLink(f"https://media.example.com:{other_server.port}/x{SECRET}"))
    assert caught.value.permanent
    assert "CANARY" not in shown(caught.value)
    assert other_server.connections == 0


def test_plain_http_is_for_allowed_hosts(media: MediaClient, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_up = resolving(monkeypatch, ["93.184.215.14"])
    monkeypatch.setattr(transport, "create_connection", lambda *args, **kwargs: pytest.fail("connected"))
    with pytest.raises(RecallHostNotAllowedError, match="without TLS"):
        media.open(SignedLink(f"http://media.example.com/x{SECRET}"))
    assert looked_up == []


def test_the_address_that_was_checked_is_the_one_connected_to(
    media: MediaClient, other_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_up = resolving(monkeypatch, ["93.184.215.14"], ["127.0.0.1"])
    connected: list[Any] = []

    def create_connection(address: Any, *args: Any, **kwargs: Any) -> socket.socket:
        connected.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr(transport, "create_connection", create_connection)
    with pytest.raises(RecallMediaCutError):
        media.open(SignedLink(f"https://media.example.com:{other_server.port}/x"))
    assert connected == [("93.184.215.14", other_server.port)]
    assert len(looked_up) == 1
    assert other_server.connections == 0


def test_tls_is_checked_against_the_name_not_the_address(
    connect: Callable[..., MediaClient],
    tls_server: Callable[..., Server],
    authority: Authority,
    monkeypatch: pytest.MonkeyPatch,
    shown: Shown,
) -> None:
    resolving(monkeypatch, ["127.0.0.1"])
    good, expired, other = tls_server(), tls_server(expired=True), tls_server(name="other.example.com")
    good.forever = good.reply(200, AUDIO)
    media = connect(allowed_hosts=["MEDIA.example.com."], ca_bundle=authority.bundle)
    assert read(media.open(SignedLink(f"https://media.example.com:{good.port}/x"))) == AUDIO
    assert good.asked[0].headers["host"] == f"media.example.com:{good.port}"
    untrusting = connect(allowed_hosts=["media.example.com"], ca_bundle=None)
    for client, server in ((media, expired), (media, other), (untrusting, good)):
        with pytest.raises(RecallRequestError, match="certificate") as caught:
            client.open(SignedLink(f"https://media.example.com:{server.port}/x{SECRET}"))
        assert caught.value.permanent
        assert "CANARY" not in shown(caught.value)
    assert (len(good.asked), expired.asked, other.asked) == (1, [], [])


def test_every_address_of_a_host_is_tried(
    connect: Callable[..., MediaClient], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolving(monkeypatch, ["127.0.0.9", "127.0.0.1"])
    server.forever = server.reply(200, AUDIO)
    media = connect(allowed_hosts=["media.example.com"])
    assert read(media.open(SignedLink(f"http://media.example.com:{server.port}/x"))) == AUDIO


def test_only_the_ports_that_are_allowed_are_connected_to(
    media: MediaClient, server: Server, other_server: Server
) -> None:
    server.forever = server.reply(200, AUDIO)
    assert read(media.open(SignedLink(f"{server.url}/x"))) == AUDIO
    with pytest.raises(RecallHostNotAllowedError, match=other_server.netloc):
        media.open(SignedLink(f"{other_server.url}/x"))
    assert other_server.connections == 0


@pytest.mark.parametrize("entry", ["", "http://h", "h/path", "u@h", "h:port", "h:99999", "[::1", " "])
def test_allowed_hosts_that_are_none(entry: str) -> None:
    with pytest.raises(RecallConfigError):
        MediaClient(allowed_hosts=[entry])


@pytest.mark.parametrize("entry", ["::1", "[::1]", "[::1]:{port}"])
def test_allowed_hosts_may_be_ipv6(connect: Callable[..., MediaClient], entry: str) -> None:
    try:
        listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("no IPv6 here")
    with listener:
        port = listener.getsockname()[1]
        media = connect(allowed_hosts=[entry.format(port=port)], read_timeout=0.05)
        with pytest.raises(RecallMediaSlowError):
            media.open(SignedLink(f"http://[::1]:{port}/x"))


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.215.14", True),
        ("2606:2800:21f:cb07:6820:80da:af6b:8b2c", True),
        ("::ffff:93.184.215.14", True),
        ("64:ff9b::5db8:d70e", True),
        ("2002:5db8:d70e::1", True),
        ("127.0.0.1", False),
        ("169.254.169.254", False),
        ("::", False),
        ("::7f00:1", False),
        ("64:ff9b::7f00:1", False),
        ("64:ff9b:1::7f00:1", False),
        ("2001:0:7f00:1::", False),
        ("fe80::1%lo", False),
        ("ff02::1", False),
        ("fec0::1", False),
        ("255.255.255.255", False),
        ("198.18.0.1", False),
        ("192.0.2.1", False),
    ],
)
def test_public_addresses(address: str, public: bool) -> None:
    assert is_public(address) is public


def test_the_environment_is_ignored(
    media: MediaClient,
    server: Server,
    other_server: Server,
    link: SignedLink,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Any,
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, other_server.url)
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login someone password else\n")
    monkeypatch.setenv("NETRC", str(netrc))
    server.forever = server.reply(200, AUDIO)
    assert read(media.open(link)) == AUDIO
    assert other_server.connections == 0
    assert "authorization" not in server.asked[0].headers


def test_logs_do_not_show_the_signature(
    media: MediaClient, server: Server, link: SignedLink, caplog: pytest.LogCaptureFixture, shown: Shown
) -> None:
    with caplog.at_level(logging.DEBUG):
        server.says(server.reply(302, Location=f"/second{SECRET}"), server.reply(200, AUDIO))
        read(media.open(link))
        server.says(server.raw(b"HTTP/1.1 200 OK\r\nbroken /p?a=CANARY\r\n\r\n"), server.raw(reset=True))
        read(media.open(link))
        with pytest.raises(RecallMediaCutError) as caught:
            media.open(link)
    assert "Starting new HTTP connection" in caplog.text, "urllib3 did log"
    assert "CANARY" not in caplog.text
    assert "CANARY" not in shown(caught.value)


def test_a_parts_list(media: MediaClient, server: Server, link: SignedLink) -> None:
    listed = [part(number) for number in range(3000)]
    listed[7]["participant"] = {"id": 5, "name": "Zoë \ud83d\ude00 \udc00 ] , [", "extra": [[1], {"a": "]"}]}
    server.says(server.reply(200, listed), server.reply(200, b"\xef\xbb\xbf \r\n[ ]\n "))
    parts = media.get_parts(link)
    assert [one.id for one in parts] == [f"part-{number}" for number in range(3000)]
    assert parts[7].participant.name == "Zoë \U0001f600 \udc00 ] , ["
    assert media.get_parts(link) == []
    # Escaped, a lone surrogate is text like any other; as bytes it is no UTF-8.
    server.forever = server.reply(200, json.dumps(listed[:9], ensure_ascii=False).encode("utf-8", "surrogatepass"))
    with pytest.raises(RecallResponseError):
        media.get_parts(link)


def test_a_document_comes_byte_for_byte(media: MediaClient, server: Server, link: SignedLink) -> None:
    body = b' [ {"id": 1, "name": "Ada \\u0045xample"},\r\n{"id":2.50}]\n'
    server.forever = server.reply(200, body)
    assert media.get_document(link, "a list") == body
    assert read_list(body, "a list", lambda entry, path: path) == ["[0]", "[1]"]
    with pytest.raises(RecallSchemaError) as caught:
        read_list(body, "a list", Participant.parse)
    assert caught.value.field == "[1].id"
    server.forever = server.reply(200, [{"id": 1, "name": "Ada Example"}, {"id": 2, "name": None}])
    assert [(one.id, one.name) for one in media.get_participants(link)] == [(1, "Ada Example"), (2, None)]


@pytest.mark.parametrize("body", [b"", b"<html>", b'[{"id": 1}', b"\xff", b"[1] 2"])
def test_a_document_that_is_no_json(media: MediaClient, server: Server, link: SignedLink, body: bytes) -> None:
    server.forever = server.reply(200, body)
    with pytest.raises(RecallResponseError):
        media.get_document(link, "a list")


def test_a_document_of_another_shape_or_size(media: MediaClient, server: Server, link: SignedLink) -> None:
    server.forever = server.reply(200, b'{"detail": "[]"}')
    with pytest.raises(RecallSchemaError):
        media.get_document(link, "a list")
    server.forever = server.reply(200, b"[" + b" " * LARGEST_DOCUMENT + b"]")
    with pytest.raises(RecallTooLargeError):
        media.get_document(link, "a list")


@pytest.mark.parametrize(
    "body",
    [b"", b" ", b"<html>", b"[", b"[{}", b"[1,", b"[,]", b"]", b"[] []", b"{", b"[" * 5000, b"\xff", b"nope", b"[NaN]"],
)
def test_a_parts_list_that_is_no_json(
    media: MediaClient, server: Server, link: SignedLink, body: bytes, shown: Shown
) -> None:
    server.forever = server.reply(200, body)
    with pytest.raises((RecallResponseError, RecallSchemaError)) as caught:
        media.get_parts(link)
    if isinstance(caught.value, RecallSchemaError):
        assert body in (b"[{}", b"[1,")  # the first entry is wrong before the end is missed
    else:
        assert len(server.asked) == 4
    assert "CANARY" not in shown(caught.value)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"parts": []}, ""),
        (None, ""),
        ("text", ""),
        (5, ""),
        ([part(), 5], "[1]"),
        ([part(), part() | {"id": None}], "[1].id"),
        ([part() | {"download_url": 5}], "[0].download_url"),
    ],
)
def test_a_parts_list_of_another_schema(
    media: MediaClient, server: Server, link: SignedLink, body: object, field: str, shown: Shown
) -> None:
    server.forever = server.reply(200, body)
    with pytest.raises(RecallSchemaError) as caught:
        media.get_parts(link)
    assert caught.value.field == field
    assert len(server.asked) == 1
    assert "CANARY" not in shown(caught.value)


def test_a_parts_list_is_fetched_again_after_a_passing_fault(
    media: MediaClient, server: Server, link: SignedLink, clock: Clock
) -> None:
    cut = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n["
    server.says(server.reply(503, b"", Retry_After="2"), server.raw(cut), server.reply(200, [part()]))
    assert len(media.get_parts(link)) == 1
    assert clock.slept[0] >= 2
    server.forever = server.reply(403, b"")
    server.asked.clear()
    with pytest.raises(RecallLinkExpiredError):
        media.get_parts(link)
    assert len(server.asked) == 1


def test_parts_lists_are_bounded(
    media: MediaClient, server: Server, link: SignedLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(media_module, "MOST_PARTS", 100)
    monkeypatch.setattr(media_module, "LARGEST_PARTS_LIST", 3 * 2**20)
    for body in (
        json.dumps([part()] * 101).encode(),
        b"[" + b" " * (4 * 2**20) + b"]",
        b'["' + b"x" * (2 * 2**20) + b'"]',
    ):
        server.says(server.reply(200, body))
        with pytest.raises(RecallTooLargeError) as caught:
            media.get_parts(link)
        assert (caught.value.code, caught.value.permanent) == ("parts_too_large", True)
    server.says(server.reply(200, [part()] * 100))
    assert len(media.get_parts(link)) == 100


def test_a_huge_parts_list_costs_little_memory(media: MediaClient, server: Server, link: SignedLink) -> None:
    def flood(conn: socket.socket) -> None:
        conn.sendall(b"HTTP/1.1 200 OK\r\n\r\n[")
        try:
            while True:
                conn.sendall(b" " * 2**16)
        except OSError:
            pass

    server.forever = flood
    tracemalloc.start()
    try:
        with pytest.raises(RecallTooLargeError):
            media.get_parts(link)
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    finally:
        tracemalloc.stop()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@given(st.lists(json_values, max_size=6), st.integers(1, 7), st.sampled_from([None, 1]))
@settings(max_examples=60)
def test_arrays_are_decoded_whatever_the_chunks(values: list[Any], size: int, indent: int | None) -> None:
    data = json.dumps(values, indent=indent, ensure_ascii=False).encode("utf-8", "surrogatepass")
    chunks = [data[at : at + size] for at in range(0, len(data), size)]
    try:
        expected = json.loads(data.decode())
    except UnicodeDecodeError:
        with pytest.raises(UnicodeDecodeError):
            list(media_module._ArrayReader(iter(chunks)))
    else:
        assert list(media_module._ArrayReader(iter(chunks))) == expected


@given(st.binary(max_size=60) | json_values.map(lambda value: json.dumps(value).encode()), st.integers(1, 9))
@settings(max_examples=100)
def test_no_parts_list_breaks_the_parser(data: bytes, size: int) -> None:
    chunks = iter([data[at : at + size] for at in range(0, len(data), size)])
    try:
        parts = media_module._read_list(chunks, "a parts list", AudioPart.parse)
    except (RecallResponseError, RecallSchemaError):
        return
    assert parts == []


class Links:
    """Gives fresh links and counts them."""

    def __init__(self, server: Server) -> None:
        self.server, self.given = server, 0

    def __call__(self) -> SignedLink:
        self.given += 1
        return SignedLink(f"{self.server.url}/fresh-{self.given}{SECRET}")


def test_an_expired_link_is_replaced_once(media: MediaClient, server: Server, link: SignedLink) -> None:
    fresh = Links(server)
    server.route = lambda asked: (
        ranged(server, asked) if asked.target.startswith("/fresh") else server.reply(403, b"<Error/>")
    )
    source = PartSource(media, link, fresh)
    assert read(source.open()) == AUDIO
    assert read(source.open(5, TAG)) == AUDIO[5:]
    assert fresh.given == 1


def test_a_link_that_is_refused_for_ever(media: MediaClient, server: Server, link: SignedLink, shown: Shown) -> None:
    fresh = Links(server)
    server.forever = server.reply(403, b"<Error/>")
    source = PartSource(media, link, fresh)
    for _ in range(2):
        with pytest.raises(RecallMediaForbiddenError) as caught:
            source.open()
        assert caught.value.permanent
        assert "CANARY" not in shown(caught.value)
    assert fresh.given == 3
    assert len(server.asked) == 5


def test_progress_earns_further_links(media: MediaClient, server: Server, link: SignedLink) -> None:
    fresh = Links(server)
    source = PartSource(media, link, fresh, max_refreshes=1)
    for offset in range(1, 9):
        server.says(server.reply(403, b""), server.reply(206, b"x", Content_Range=f"bytes {offset}-{offset}/9"))
        source.open(offset).close()
    assert fresh.given == 8
    server.forever = server.reply(403, b"")
    with pytest.raises(RecallMediaForbiddenError):
        source.open(8)
    assert fresh.given == 8


def test_ranges_side_by_side_share_a_fresh_link(media: MediaClient, server: Server, link: SignedLink) -> None:
    fresh = Links(server)
    server.route = lambda asked: (
        ranged(server, asked) if asked.target.startswith("/fresh") else server.reply(403, b"<Error/>")
    )
    source = PartSource(media, link, fresh)
    with ThreadPoolExecutor(8) as threads:
        bodies = list(threads.map(lambda begin: source.open(begin, TAG, begin + 10), range(10, 90, 10)))
    assert [body.offset for body in bodies] == list(range(10, 90, 10))
    assert fresh.given == 1
    for body in bodies:
        body.close()


def test_links_that_ranges_renewed_leave_a_new_beginning_its_own(
    media: MediaClient, server: Server, link: SignedLink
) -> None:
    fresh = Links(server)
    source = PartSource(media, link, fresh)
    for begin in (10, 20, 30):
        server.says(
            server.reply(403, b""),
            server.reply(206, AUDIO[begin : begin + 5], Content_Range=f"bytes {begin}-{begin + 4}/{len(AUDIO)}"),
        )
        source.open(begin, None, begin + 5).close()
    server.says(server.reply(403, b""), server.reply(200, AUDIO))
    assert read(source.open()) == AUDIO
    assert fresh.given == 4


def test_two_lengths_of_one_body_are_none(media: MediaClient, server: Server, link: SignedLink) -> None:
    server.forever = server.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 5\r\n\r\nabcde")
    with pytest.raises(RecallMediaCutError):
        media.open(link)


def test_an_endless_length_is_none(media: MediaClient, server: Server, link: SignedLink) -> None:
    server.forever = server.raw(b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\nabcde")
    body = media.open(link)
    assert body.length is None
    assert read(body) == b"abcde"


def test_an_interrupted_body_never_goes_on_without_tls(
    tls_server: Callable[..., Server], connect: Callable[..., MediaClient]
) -> None:
    server = tls_server()
    server.forever = server.reply(200, bytes(4_000_000))
    body = connect(allowed_hosts=[server.netloc]).open(SignedLink(f"{server.url}/a"))
    buffer = memoryview(bytearray(100_000))
    assert body.readinto(buffer)
    body.interrupt()
    came = bytearray()
    with pytest.raises(RecallMediaCutError):
        _rest(body, buffer, came)
    assert not any(came), "ciphertext was taken for the body"


def _rest(body: MediaBody, buffer: memoryview, came: bytearray) -> None:
    while count := body.readinto(buffer):
        came += buffer[:count]


def test_a_range_that_is_refused_for_ever(media: MediaClient, server: Server, link: SignedLink) -> None:
    fresh = Links(server)
    server.route = lambda asked: (
        server.reply(403, b"") if asked.headers["range"] == "bytes=20-29" else ranged(server, asked)
    )
    source = PartSource(media, link, fresh)
    for begin in (10, 30):
        source.open(begin, TAG, begin + 10).close()
        with pytest.raises(RecallMediaForbiddenError):
            source.open(20, TAG, 30)
    assert fresh.given == 6


def test_what_prevents_a_fresh_link_is_what_is_raised(media: MediaClient, server: Server, link: SignedLink) -> None:
    def gone() -> SignedLink:
        raise RecallServerError("no", status=500)

    server.forever = server.reply(403, b"")
    with pytest.raises(RecallServerError):
        PartSource(media, link, gone).open()
