from __future__ import annotations

import json
import logging
import socket
import time
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import pytest

from include.recall import transport
from include.recall.client import RecallClient
from include.recall.errors import (
    RecallApiError,
    RecallAuthError,
    RecallBlockedError,
    RecallConfigError,
    RecallError,
    RecallNoBotsError,
    RecallNotFoundError,
    RecallPaginationError,
    RecallPaymentError,
    RecallRateLimitError,
    RecallRequestError,
    RecallResponseError,
    RecallSchemaError,
    RecallServerError,
    RecallUnsafeRedirectError,
)
from include.recall.regions import REGIONS, base_url_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from include.recall.retry import RetryPolicy
    from tests.include.recall.conftest import Asked, Authority, Clock, Server, Shown

KEY = "canary-api-key-0123456789"
BOT: dict[str, Any] = {"id": "bot-1", "status_changes": [], "recordings": [], "metadata": {"request": "r-1"}}


def recording(number: int) -> dict[str, Any]:
    return {"id": f"rec-{number}", "created_at": "2026-03-04T10:00:00Z", "status": {"code": "done"}}


def artifact(number: int, recording_id: str = "rec-1") -> dict[str, Any]:
    return {
        "id": f"art-{number}",
        "recording": {"id": recording_id},
        "created_at": "2026-03-04T10:00:00Z",
        "status": {"code": "processing"},
        "data": {"download_url": None},
        "format": "raw",
    }


@pytest.fixture
def connect(server: Server, policy: RetryPolicy) -> Any:
    clients = []

    def connect(**kwargs: Any) -> RecallClient:
        clients.append(RecallClient(**{"api_key": KEY, "base_url": server.url, "retry": policy, **kwargs}))
        return clients[-1]

    yield connect
    for client in clients:
        client.close()


@pytest.fixture
def client(connect: Callable[..., RecallClient]) -> RecallClient:
    return connect()


def test_a_request_is_what_the_api_expects(connect: Callable[..., RecallClient], server: Server) -> None:
    server.forever = server.reply(200, BOT, Date="Wed, 04 Mar 2026 12:00:00 GMT", Set_Cookie="a=b; Path=/")
    client = connect(api_key=f" {KEY}\n", base_url=f"{server.url}//")
    assert client.server_time is None
    assert client.get_bot("bot-1").id == "bot-1"
    client.get_bot("bot-1")
    assert server.connections == 1, "connections are reused"
    for asked in server.asked:
        assert (asked.method, asked.target) == ("GET", "/api/v1/bot/bot-1/")
        assert asked.headers["authorization"] == KEY
        assert asked.headers["host"] == server.netloc
        assert not {"content-type", "content-length", "transfer-encoding", "cookie"} & set(asked.headers)
    assert client.server_time == datetime(2026, 3, 4, 12, tzinfo=timezone.utc)


def test_creating_a_bot(client: RecallClient, server: Server) -> None:
    server.says(server.reply(201, BOT))
    request = {"meeting_url": "https://meet.example/é", "recording_config": {"audio_separate_raw": {}}}
    assert client.create_bot(request, idempotency_key="key-1").id == "bot-1"
    (asked,) = server.asked
    assert (asked.method, asked.target) == ("POST", "/api/v1/bot/")
    assert asked.headers["content-type"] == "application/json"
    assert asked.headers["idempotency-key"] == "key-1"
    assert json.loads(asked.body) == request


@pytest.mark.parametrize(
    ("status", "cls", "code"),
    [
        (400, RecallApiError, "bad_request"),
        (401, RecallAuthError, "auth_rejected"),
        (402, RecallPaymentError, "payment_required"),
        (403, RecallBlockedError, "request_blocked"),
        (405, RecallApiError, "bad_request"),
        (418, RecallApiError, "bad_request"),
    ],
)
def test_refusals_are_final(
    client: RecallClient, server: Server, clock: Clock, status: int, cls: type[RecallApiError], code: str
) -> None:
    server.forever = server.reply(status, {"detail": "No."}, Retry_After="5")
    with pytest.raises(cls) as caught:
        client.create_bot({}, idempotency_key="k")
    error = caught.value
    assert (error.code, error.status, error.permanent, error.retry_after) == (code, status, True, None)
    assert "No." in error.message
    assert (len(server.asked), clock.slept) == (1, [])


def test_what_a_firewall_says_is_stripped_and_cut(client: RecallClient, server: Server) -> None:
    page = (
        b"<html><style>p{}</style><h1>Blocked &amp; \x00gone</h1>\r\n<p>token=CANARY-1 " + b"x" * 5000 + b"</p></html>"
    )
    server.forever = server.reply(403, page, Content_Type="text/html")
    with pytest.raises(RecallBlockedError) as caught:
        client.get_bot("bot-1")
    said = caught.value.message.split("it said: ")[1]
    assert said.startswith("Blocked & gone token=")
    assert len(said) <= 200
    assert "<" not in said
    assert "CANARY" not in said
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("call", "code"),
    [
        (lambda client: client.get_bot("b-1"), "bot_not_found"),
        (lambda client: client.get_recording("b-1"), "recording_not_found"),
        (lambda client: client.get_audio_separate("b-1"), "artifact_not_found"),
    ],
)
def test_what_is_not_found_is_named(
    client: RecallClient, server: Server, call: Callable[[RecallClient], object], code: str
) -> None:
    server.forever = server.reply(404, {"detail": "Not found."})
    with pytest.raises(RecallNotFoundError) as caught:
        call(client)
    assert (caught.value.code, caught.value.status, caught.value.permanent) == (code, 404, True)
    assert "b-1" in caught.value.message
    assert server.netloc in caught.value.message
    assert "region" in caught.value.message
    assert len(server.asked) == 1


def test_conflicts_are_retried_with_the_same_key(client: RecallClient, server: Server, clock: Clock) -> None:
    server.says(*[server.reply(409, {}) for _ in range(3)], server.reply(201, BOT))
    assert client.create_bot({}, idempotency_key="key-1").id == "bot-1"
    assert [asked.headers["idempotency-key"] for asked in server.asked] == ["key-1"] * 4
    assert clock.slept == sorted(clock.slept)


@pytest.mark.parametrize(
    "headers",
    [
        {"Retry_After": "7"},
        # The server's clock is ten minutes off ours, whatever ours says.
        {"Retry_After": "Wed, 04 Mar 2026 12:10:07 GMT", "Date": "Wed, 04 Mar 2026 12:10:00 GMT"},
    ],
)
def test_rate_limits_are_respected(client: RecallClient, server: Server, clock: Clock, headers: dict[str, str]) -> None:
    server.says(server.reply(429, {}, **headers), server.reply(200, BOT))
    client.get_bot("bot-1")
    (wait,) = clock.slept
    assert 7 <= wait <= 10


def test_a_longer_rate_limit_is_the_callers_business(client: RecallClient, server: Server, clock: Clock) -> None:
    server.forever = server.reply(429, {}, Retry_After="120")
    with pytest.raises(RecallRateLimitError) as caught:
        client.get_bot("bot-1")
    assert (caught.value.retry_after, caught.value.permanent) == (120, False)
    assert (len(server.asked), clock.slept) == (1, [])


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_server_errors_are_retried(client: RecallClient, server: Server, clock: Clock, status: int) -> None:
    server.says(server.reply(status, b"<html>"), server.reply(status, b""), server.reply(200, BOT))
    client.get_bot("bot-1")
    assert len(clock.slept) == 2
    server.forever = server.reply(status, b"")
    with pytest.raises(RecallServerError) as caught:
        client.get_bot("bot-1")
    assert not caught.value.permanent
    assert len(server.asked) <= 9


@pytest.mark.parametrize(("headers", "wait"), [({}, 30), ({"Retry_After": "4"}, 4)])
def test_no_free_bot_is_left_to_the_caller(
    client: RecallClient, server: Server, headers: dict[str, str], wait: float
) -> None:
    server.forever = server.reply(507, {}, **headers)
    with pytest.raises(RecallNoBotsError) as caught:
        client.create_bot({}, idempotency_key="key-1")
    assert (caught.value.code, caught.value.retry_after, caught.value.permanent) == ("no_bots_available", wait, False)
    assert len(server.asked) == 1


UNREADABLE = {
    "cut": lambda server: server.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n" + b'{"id": "bot'),
    "cut without length": lambda server: server.raw(b'HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{"id": "bot'),
    "empty": lambda server: server.reply(200, b""),
    "no content": lambda server: server.raw(b"HTTP/1.1 200 OK\r\n\r\n"),
    "page": lambda server: server.reply(200, b"<html>Captive?a=CANARY</html>", Content_Type="text/html"),
    "array": lambda server: server.reply(200, []),
    "null": lambda server: server.reply(200, b"null"),
    "not a number": lambda server: server.reply(200, b'{"id": NaN}'),
    "deep": lambda server: server.reply(200, b"[" * 100_000),
    "long number": lambda server: server.reply(200, b'{"id": ' + b"9" * 5000 + b"}"),
    "not text": lambda server: server.reply(200, b'{"id": "\xff\xfe"}'),
    "compressed": lambda server: server.reply(200, b"\x1f\x8b\x08\x00", Content_Encoding="gzip"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_unreadable_replies(client: RecallClient, server: Server, name: str, shown: Shown) -> None:
    server.says(*[UNREADABLE[name](server) for _ in range(3)], server.reply(200, BOT))
    if name == "long number" and not hasattr(__import__("sys"), "get_int_max_str_digits"):
        pytest.skip("this Python reads it")
    client.get_bot("bot-1")
    server.forever = UNREADABLE[name](server)
    server.asked.clear()
    with pytest.raises(RecallResponseError) as caught:
        client.get_bot("bot-1")
    assert caught.value.code == "bad_response"
    assert "CANARY" not in shown(caught.value)
    assert len(server.asked) == 4


def test_a_reply_without_end_is_not_read_to_its_end(
    client: RecallClient, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("include.recall.client.LARGEST_REPLY", 1000)
    server.forever = server.reply(200, b'{"id": "' + b"x" * 5000 + b'"}')
    with pytest.raises(RecallResponseError, match="more than 1000"):
        client.get_bot("bot-1")


SLOW = {
    "headers": (b"HTTP/1.1 200 OK\r\n", b"X: y\r\n"),
    "status line": (b"H", b"T"),
    "body": (b"HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n\r\n", b" "),
    "nothing": (b"", b""),
}


@pytest.mark.parametrize("name", SLOW)
def test_a_slow_sender_does_not_outlast_the_deadline(
    connect: Callable[..., RecallClient], server: Server, policy: RetryPolicy, name: str
) -> None:
    server.forever = server.endless(*SLOW[name])
    slow = replace(policy, clock=time.monotonic, sleep=time.sleep, deadline=0.5, base=0.01)
    with pytest.raises(RecallRequestError, match="in time") as caught:
        connect(retry=slow).get_bot("bot-1")
    assert server.drops < 200  # ten seconds' worth, where the read timeout alone would let 600 come
    assert not caught.value.permanent


def test_dead_addresses_share_the_time_of_one(
    connect: Callable[..., RecallClient], policy: RetryPolicy, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = socket.getaddrinfo
    entries = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"192.0.2.{n}", 80)) for n in range(5)]
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *args, **kw: entries if host == "h.example" else real(host, *args, **kw)
    )
    tried = []

    def create_connection(address: tuple[str, int], timeout: float, **kwargs: object) -> socket.socket:
        tried.append(address[0])
        clock.sleep(timeout)
        raise TimeoutError

    monkeypatch.setattr(transport, "create_connection", create_connection)
    monkeypatch.setattr(transport, "time", SimpleNamespace(monotonic=clock))
    client = connect(base_url="http://h.example", connect_timeout=5.0, retry=replace(policy, attempts=1))
    with pytest.raises(RecallRequestError, match="in time"):
        client.get_bot("bot-1")
    assert clock.slept == pytest.approx([1.0] * 5)
    assert tried == [f"192.0.2.{n}" for n in range(5)]


def test_headers_that_are_cut_off_are_no_reply(client: RecallClient, server: Server) -> None:
    server.says(server.raw(b"HTTP/1.1 200 OK\r\nContent-Ty"), server.raw(b"HTTP/1.1 200 OK\r\nX: y\r\n"), server.raw())
    server.forever = server.reply(200, BOT)
    client.get_bot("bot-1")
    assert len(server.asked) == 4


def test_refused_connections_and_unknown_names_are_retried(
    connect: Callable[..., RecallClient], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = socket.getaddrinfo

    def getaddrinfo(host: str, *args: Any, **kwargs: Any) -> Any:
        if host == "nowhere.invalid":  # whatever this machine's name servers make of it, and when
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return real(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))  # and doesn't listen
        refusing = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        for base_url, reason in ((refusing, "refused"), ("http://nowhere.invalid", "resolved")):
            clock.slept.clear()
            with pytest.raises(RecallRequestError, match=reason) as caught:
                connect(base_url=base_url).get_bot("bot-1")
            assert not caught.value.permanent
            assert len(clock.slept) >= 3


def test_a_reset_is_retried(client: RecallClient, server: Server) -> None:
    server.says(server.raw(b"HTTP/1.1 200 OK\r\nContent-Le", reset=True), server.reply(200, BOT))
    client.get_bot("bot-1")
    assert len(server.asked) == 2


def test_certificates_are_checked(
    connect: Callable[..., RecallClient], tls_server: Callable[..., Server], authority: Authority, clock: Clock
) -> None:
    trusted, expired, other = tls_server(), tls_server(expired=True), tls_server(address="127.0.0.2")
    trusted.forever = trusted.reply(200, BOT)
    assert connect(base_url=trusted.url, ca_bundle=authority.bundle).get_bot("bot-1").id == "bot-1"
    for base_url, bundle in ((trusted.url, None), (expired.url, authority.bundle), (other.url, authority.bundle)):
        with pytest.raises(RecallRequestError, match="certificate") as caught:
            connect(base_url=base_url, ca_bundle=bundle).get_bot("bot-1")
        assert caught.value.permanent
        assert (len(trusted.asked), expired.asked, other.asked, clock.slept) == (1, [], [], [])


def test_all_pages_are_read(client: RecallClient, server: Server) -> None:
    pages: dict[str, Any] = {}
    for number in range(100):
        results = [] if number == 50 else [artifact(number)]
        following = f"{server.url}/api/v1/audio_separate/?cursor=c%2B{number + 1}%3D&recording_id=rec-1"
        pages[f"c+{number}="] = {"results": results, "next": following if number < 99 else None, "previous": None}

    def route(asked: Asked) -> bytes:
        query = parse_qs(urlsplit(asked.target).query)
        assert query["recording_id"] == ["rec-1"]
        return server.reply(200, pages[query.get("cursor", ["c+0="])[0]])

    server.route = route
    artifacts = client.list_audio_separate("rec-1")
    assert [one.id for one in artifacts] == [f"art-{number}" for number in range(100) if number != 50]
    assert server.connections == 1


def test_an_interrupted_walk_is_no_list(client: RecallClient, server: Server) -> None:
    following = f"{server.url}/api/v1/audio_separate/?cursor=2"
    server.says(server.reply(200, {"results": [artifact(1)], "next": following}))
    server.forever = server.reply(500, b"")
    with pytest.raises(RecallServerError):
        client.list_audio_separate("rec-1")


@pytest.mark.parametrize(
    "following",
    [
        "{other}/api/v1/audio_separate/?cursor=2",
        "//{other_netloc}/api/v1/audio_separate/?cursor=2",
        "https://{netloc}/api/v1/audio_separate/?cursor=2",
        "http://user@{netloc}/api/v1/audio_separate/?cursor=2",
        "http://{netloc}@{other_netloc}/api/v1/audio_separate/?cursor=2",
        "{url}/api/v1/bot/?cursor=2",
        "{url}/api/v1/audio_separate/../bot/?cursor=2",
        "http://127.0.0.1:99999/api/v1/audio_separate/",
        "file:///etc/passwd",
        "gopher://{netloc}/api/v1/audio_separate/",
        "http://[",
        "?recording_id=rec-1",
        "http://{netloc}\\@{other_netloc}/api/v1/audio_separate/?cursor=2",
        "http://{other_netloc}\\@{netloc}/api/v1/audio_separate/?cursor=2",
        "http://{netloc}#@{other_netloc}/api/v1/audio_separate/?cursor=2",
        "\thttp://{other_netloc}/api/v1/audio_separate/?cursor=2",
    ],
)
def test_pages_elsewhere_are_refused(
    client: RecallClient, server: Server, other_server: Server, following: str
) -> None:
    following = following.format(
        url=server.url, netloc=server.netloc, other=other_server.url, other_netloc=other_server.netloc
    )
    server.forever = server.reply(200, {"results": [artifact(1)], "next": following})
    with pytest.raises(RecallPaginationError) as caught:
        client.list_audio_separate("rec-1")
    assert caught.value.code == "unsafe_pagination_url"
    assert caught.value.permanent
    assert other_server.connections == 0
    assert len(server.asked) == 1


def test_pages_that_never_end_are_refused(
    client: RecallClient, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("include.recall.client.MOST_PAGES", 5)
    counter = iter(range(1000))
    server.route = lambda asked: server.reply(200, {"results": [], "next": f"?cursor={next(counter)}"})
    with pytest.raises(RecallPaginationError, match="doesn't end"):
        client.list_audio_separate("rec-1")
    assert len(server.asked) == 5


def test_bots_are_found_by_metadata(client: RecallClient, server: Server) -> None:
    stranger = BOT | {"id": "bot-2", "metadata": {"request": "other"}}
    server.says(
        server.reply(200, {"count": 3, "results": [BOT, stranger], "next": f"{server.url}/api/v1/bot/?page=2"}),
        server.reply(200, {"count": 3, "results": [BOT | {"id": "bot-3"}], "next": None}),
    )
    assert [bot.id for bot in client.find_bots({"request": "r-1"})] == ["bot-1", "bot-3"]
    assert [asked.target for asked in server.asked] == ["/api/v1/bot/?metadata__request=r-1", "/api/v1/bot/?page=2"]
    with pytest.raises(RecallConfigError):
        client.find_bots({})


def test_recordings_are_listed(client: RecallClient, server: Server) -> None:
    server.says(server.reply(200, {"results": [recording(1)], "next": None}))
    after = datetime(2026, 3, 4, 11, tzinfo=timezone(timedelta(hours=1)))
    (one,) = client.list_recordings("bot-1", created_at_after=after, status_code="done")
    assert (one.id, one.bot_id) == ("rec-1", "bot-1")
    assert parse_qs(urlsplit(server.asked[0].target).query) == {
        "bot_id": ["bot-1"],
        "created_at_after": ["2026-03-04T10:00:00Z"],
        "status_code": ["done"],
    }
    with pytest.raises(RecallConfigError):
        client.list_recordings(created_at_after=datetime(2026, 3, 4))  # noqa: DTZ001


def test_what_belongs_to_another_recording_is_dropped(client: RecallClient, server: Server) -> None:
    server.says(server.reply(200, {"results": [artifact(1, "rec-2"), artifact(2)], "next": None}))
    assert [one.id for one in client.list_audio_separate("rec-1")] == ["art-2"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"items": []}, "results"),
        ({"results": [artifact(1), artifact(2) | {"id": None}]}, "results[1].id"),
        ({"results": [artifact(1) | {"status": {"code": "done"}, "data": {"download_url": 5}}]}, "results[0].data."),
    ],
)
def test_a_changed_schema_is_not_retried(client: RecallClient, server: Server, body: object, field: str) -> None:
    server.forever = server.reply(200, body)
    with pytest.raises(RecallSchemaError) as caught:
        client.list_audio_separate("rec-1")
    assert field in caught.value.message
    assert len(server.asked) == 1


@pytest.mark.parametrize("bad", ["", "../bot", "a/b", "a?b", "x" * 65, "a b", "é", "a\n"])
def test_ids_are_checked_before_anything_is_asked(client: RecallClient, server: Server, bad: str) -> None:
    for call in (
        client.get_bot,
        client.get_recording,
        client.get_audio_separate,
        client.list_audio_separate,
        client.list_recordings,
    ):
        with pytest.raises(RecallConfigError) as caught:
            call(bad)
        assert isinstance(caught.value, ValueError)
    with pytest.raises(RecallConfigError):
        client.create_bot({}, idempotency_key=bad if len(bad) < 65 and not bad.isascii() else "a b")
    assert server.connections == 0


@pytest.mark.parametrize(
    "kwargs",
    [
        {"api_key": " \n"},
        {"api_key": "canary\r\nX-Evil: 1"},
        {"api_key": "canaryé"},
        {"base_url": "ftp://h"},
        {"base_url": "us-west-2.recall.ai"},
        {"base_url": "https://u:canary@h"},
        {"base_url": "https://h?canary=1"},
        {"base_url": "https://h:port"},
        {"base_url": "https://["},
        {"base_url": ""},
    ],
)
def test_settings_that_cannot_be_used(
    connect: Callable[..., RecallClient], kwargs: dict[str, str], shown: Shown
) -> None:
    with pytest.raises(RecallConfigError) as caught:
        connect(**kwargs)
    assert "canary" not in shown(caught.value)


def test_regions() -> None:
    assert [base_url_of(region) for region in REGIONS] == [f"https://{one}.recall.ai" for one in REGIONS]
    with pytest.raises(RecallConfigError, match="us-west-2"):
        base_url_of("mars-north-1")


def test_a_redirect_to_the_slash_form_is_followed(client: RecallClient, server: Server) -> None:
    server.says(server.reply(301, Location="/api/v1/bot/bot-1"), server.reply(200, BOT))
    client.get_bot("bot-1")
    assert [asked.target for asked in server.asked] == ["/api/v1/bot/bot-1/", "/api/v1/bot/bot-1"]


@pytest.mark.parametrize("location", ["{other}/api/v1/bot/bot-1/", "/login", "", "http://[", "/api/v1/bot/bot-1/"])
def test_other_redirects_are_refused(client: RecallClient, server: Server, other_server: Server, location: str) -> None:
    server.forever = server.reply(302, Location=location.format(other=other_server.url))
    with pytest.raises(RecallUnsafeRedirectError):
        client.get_bot("bot-1")
    assert (len(server.asked), other_server.connections) == (1, 0)


def test_a_post_is_never_redirected(client: RecallClient, server: Server) -> None:
    server.forever = server.reply(308, Location="/api/v1/bot")
    with pytest.raises(RecallUnsafeRedirectError):
        client.create_bot({}, idempotency_key="k")
    assert len(server.asked) == 1


def test_two_redirects_are_one_too_many(client: RecallClient, server: Server) -> None:
    server.says(server.reply(302, Location="/api/v1/bot/bot-1"), server.reply(302, Location="/api/v1/bot/bot-1/"))
    with pytest.raises(RecallError):
        client.get_bot("bot-1")
    assert len(server.asked) == 2


def test_the_environment_is_ignored(
    client: RecallClient, server: Server, other_server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, other_server.url)
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login someone password else\n")
    monkeypatch.setenv("NETRC", str(netrc))
    server.forever = server.reply(200, BOT)
    client.get_bot("bot-1")
    assert server.asked[0].headers["authorization"] == KEY
    assert other_server.connections == 0


def test_a_proxy_can_be_configured(connect: Callable[..., RecallClient], other_server: Server) -> None:
    other_server.forever = other_server.raw(b"HTTP/1.1 403 Forbidden\r\n\r\n")
    client = connect(base_url="https://us-west-2.recall.ai", https_proxy=other_server.url)
    with pytest.raises(RecallRequestError):
        client.get_bot("bot-1")
    assert {(asked.method, asked.target) for asked in other_server.asked} == {("CONNECT", "us-west-2.recall.ai:443")}
    assert not any("authorization" in asked.headers for asked in other_server.asked)


def test_neither_logs_nor_errors_show_the_key_or_a_query(
    client: RecallClient, server: Server, caplog: pytest.LogCaptureFixture, shown: Shown
) -> None:
    following = f"{server.url}/api/v1/audio_separate/?cursor=CANARY"
    server.says(server.reply(200, {"results": [], "next": following}), server.raw(reset=True))
    server.says(server.raw(b"HTTP/1.1 500 Oh\r\nbroken /p?a=CANARY\r\n\r\n{}"))
    server.forever = server.reply(400, {"detail": f"see https://x.example/?a=CANARY, Token {KEY}, {KEY}"})
    with caplog.at_level(logging.DEBUG), pytest.raises(RecallApiError) as caught:
        client.list_audio_separate("rec-1")
    assert "/api/v1/audio_separate/" in caplog.text, "urllib3 did log"
    for text in (caplog.text, shown(caught.value)):
        assert "CANARY" not in text
        assert KEY not in text
    server.forever = server.raw(reset=True)
    with pytest.raises(RecallRequestError) as failed:
        client.list_audio_separate("rec-1")
    assert "recording_id=rec" not in shown(failed.value)
    assert KEY not in shown(failed.value) + repr(client)


def test_what_the_library_says_of_a_failure_does_not_hang_on_ours(
    connect: Callable[..., RecallClient], shown: Shown
) -> None:
    """Its text for a refused connection repeats the path and the query."""
    recording_id = "CANARY"
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))  # and doesn't listen
        client = connect(base_url=f"http://127.0.0.1:{deaf.getsockname()[1]}")
        with pytest.raises(RecallRequestError, match="refused") as caught:
            client.list_audio_separate(recording_id)
    assert "CANARY" not in shown(caught.value)


class Budget:
    def __init__(self, *waits: float) -> None:
        self.waits = list(waits)
        self.taken: list[str] = []
        self.paused: list[tuple[str, float]] = []

    def take(self, kind: str, longest: float) -> float:
        self.taken.append(kind)
        return self.waits.pop(0) if self.waits else 0.0

    def pause(self, kind: str, seconds: float) -> None:
        self.paused.append((kind, seconds))


def test_the_budget_is_asked_before_every_request(
    connect: Callable[..., RecallClient], server: Server, clock: Clock
) -> None:
    budget = Budget(0, 12.0)
    client = connect(budget=budget)
    server.says(server.reply(429, {}, Retry_After="7"), server.reply(200, BOT), server.reply(201, BOT))
    server.forever = server.reply(200, {"results": [], "next": None})
    client.get_bot("bot-1")
    client.create_bot({}, idempotency_key="k")
    client.list_recordings()
    assert budget.taken == ["retrieve", "retrieve", "create", "list"]
    assert budget.paused == [("retrieve", 7)]
    assert clock.slept[1:] == [12.0]


def test_a_budget_without_room_is_a_rate_limit(connect: Callable[..., RecallClient], server: Server) -> None:
    with pytest.raises(RecallRateLimitError) as caught:
        connect(budget=Budget(300.0)).get_bot("bot-1")
    assert caught.value.retry_after == 300
    assert server.connections == 0
