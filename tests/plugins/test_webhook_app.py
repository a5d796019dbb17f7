"""Webhooks over real sockets, behind a middleware such as Airflow's; their runs are in `test_runs.py`."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import logging
import os
import re
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import requests
import uvicorn
from airflow._shared.plugins_manager import plugins_manager
from fastapi import FastAPI
from starlette.middleware.base import BaseHTTPMiddleware

from include.provider import runs, webhook_app
from include.recall.webhooks import sign, signing_key

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
OLD, NEW = ("whsec_" + base64.b64encode(os.urandom(32)).decode() for _ in range(2))
EVENT = {
    "event": "audio_separate.done",
    "data": {"data": {"code": "done"}, "recording": {"id": "rec-1", "metadata": {}}, "bot": {"id": "bot-1"}},
}
LIMIT = 256 * 1024


def connection(*secrets: str) -> str:
    extra = {"region": "us-east-1", "webhook_secrets": list(secrets)}
    return json.dumps({"conn_type": "recall", "password": "key", "extra": extra})


class Server:
    """The plugin's app behind a middleware such as Airflow's own, in a thread, on a port."""

    def __init__(self, app: FastAPI) -> None:
        async def passed_on(request: Any, call_next: Any) -> Any:
            return await call_next(request)

        root = FastAPI()
        root.mount("/recall", app)
        root.add_middleware(BaseHTTPMiddleware, dispatch=passed_on)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.address = self._listener.getsockname()
        self.url = f"http://127.0.0.1:{self.address[1]}/recall/webhooks"
        self._server = uvicorn.Server(uvicorn.Config(root, log_level="error", lifespan="off"))
        self._thread = threading.Thread(target=self._server.run, args=([self._listener],))
        self._thread.start()

    def stop(self) -> None:
        self._server.should_exit = self._server.force_exit = True
        self._thread.join()

    def post(self, body: bytes | str | dict[str, Any] = EVENT, secret: str = OLD, **options: Any) -> requests.Response:  # type: ignore[assignment]
        raw = body if isinstance(body, bytes) else (body if isinstance(body, str) else json.dumps(body)).encode()
        sent = {**signed(raw, secret, **options), "Content-Type": "application/json"}
        return requests.post(self.url, raw, headers=sent, timeout=30)

    def raw(self, head: str, *pieces: bytes, pause: float = 0.0) -> bytes:
        """Send a request as it stands, and return all of the answer."""
        with socket.create_connection(self.address, timeout=30) as conn:
            conn.sendall(f"POST /recall/webhooks HTTP/1.1\r\nHost: x\r\n{head}\r\n\r\n".encode())
            try:
                for piece in pieces:
                    conn.sendall(piece)
                    time.sleep(pause)
            except OSError:
                pass  # the server has had enough
            answer = b""
            try:
                while chunk := conn.recv(65536):
                    answer += chunk
            except OSError:
                pass
            return answer


def signed(
    raw: bytes, secret: str = OLD, *, at: float = 0, family: str = "webhook", message: str = "m1"
) -> dict[str, str]:
    now = int(time.time() + at)
    return {
        f"{family}-id": message,
        f"{family}-timestamp": str(now),
        f"{family}-signature": sign(message, now, raw, signing_key(secret)),
    }


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None]]:
    """What the database is asked to start, in place of the database."""
    calls: list[tuple[str, str | None]] = []

    def known(recording_id: str, bot_id: str | None) -> str | None:
        calls.append((recording_id, bot_id))
        return None if calls.count((recording_id, bot_id)) == 1 else runs.EXISTS

    monkeypatch.setattr(runs, "known", known)
    monkeypatch.setattr(runs, "start_run", lambda recording_id, user: runs.STARTED)
    return calls


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, started: list[Any]) -> Iterator[Server]:
    monkeypatch.setenv("AIRFLOW_CONN_RECALL_DEFAULT", connection(NEW, OLD))
    monkeypatch.setattr(webhook_app, "SECRETS_SECONDS", 0)
    # However long this process is held up, nobody is called slow whom the test doesn't mean.
    monkeypatch.setattr(webhook_app, "BODY_SECONDS", 600)
    monkeypatch.setattr(webhook_app, "START_SECONDS", 600)
    (plugin,), errors = plugins_manager._load_plugins_from_plugin_directory(str(ROOT / "plugins"))
    assert errors == {}
    running = Server(plugin.fastapi_apps[0]["app"])
    yield running
    running.stop()


# -- what is genuine -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["webhook", "svix"])
@pytest.mark.parametrize("name", ["audio_separate.done", "recording.done"])
def test_a_recording_that_is_ready_starts_its_run(server: Server, started: list[Any], name: str, family: str) -> None:
    reply = server.post({**EVENT, "event": name}, family=family)
    assert (reply.status_code, reply.json()) == (202, {"outcome": "started"})
    assert started == [("rec-1", "bot-1")]
    again = server.post({**EVENT, "event": name}, family=family, message="m2")
    assert (again.status_code, again.json()) == (200, {"outcome": "exists"})


@pytest.mark.parametrize(
    "name", ["bot.done", "recording.failed", "audio_separate.deleted", "transcript.done", "new.one"]
)
def test_other_events_are_noted(server: Server, started: list[Any], name: str) -> None:
    reply = server.post({**EVENT, "event": name})
    assert (reply.status_code, reply.json()) == (200, {"outcome": "noted"})
    assert started == []


@pytest.mark.parametrize("body", ["{", "[]", "{}", '{"event": "recording.done"}', "[" * 100_000])
def test_what_is_signed_and_no_event_is_a_bad_request(server: Server, started: list[Any], body: str) -> None:
    assert server.post(body).status_code == 400
    assert started == []


@pytest.mark.parametrize("identity", ["../../etc/passwd", "a\r\nInjected: 1", "x" * 65, "a?b", "\u202e", {"$ne": 1}])
def test_hostile_ids_start_nothing_and_are_not_logged(
    server: Server, started: list[Any], identity: Any, caplog: pytest.LogCaptureFixture
) -> None:
    for place in ("recording", "bot"):
        data = {**EVENT["data"], place: {"id": identity}}  # type: ignore[dict-item]
        assert server.post({**EVENT, "data": data}).status_code == 400
    assert started == []
    assert str(identity) not in caplog.text
    assert "Injected" not in caplog.text


def test_rotation_needs_no_restart(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def status_of(secret: str) -> int:
        return server.post(secret=secret).status_code // 100

    assert [status_of(OLD), status_of(NEW)] == [2, 2]
    monkeypatch.setenv("AIRFLOW_CONN_RECALL_DEFAULT", connection(NEW))
    assert [status_of(OLD), status_of(NEW)] == [4, 2]
    monkeypatch.setenv("AIRFLOW_CONN_RECALL_DEFAULT", connection("whsec_oops", OLD))
    assert [status_of(OLD), status_of(NEW)] == [2, 4]


def test_a_flood_does_not_ask_for_the_secrets_each_time(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook_app, "SECRETS_SECONDS", 60)
    asked = []
    real = webhook_app.RecallHook.webhook_keys
    monkeypatch.setattr(webhook_app.RecallHook, "webhook_keys", lambda self: asked.append(1) or real(self))
    assert {server.post(secret=OLD if number % 2 else NEW).status_code for number in range(50)} == {200, 202}
    assert len(asked) == 1


@pytest.mark.parametrize(
    "extra", ["{}", '{"webhook_secrets": []}', '{"webhook_secrets": ["whsec_"]}', '{"webhook_secrets": 7}']
)
def test_without_a_secret_everything_is_refused_and_the_log_says_why(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, extra: str
) -> None:
    plain = {"conn_type": "recall", "password": "key", "extra": json.loads(extra)}
    monkeypatch.setenv("AIRFLOW_CONN_RECALL_DEFAULT", json.dumps(plain))
    with caplog.at_level(logging.ERROR):
        assert server.post().status_code == 401
    assert sum("Every webhook is refused" in line for line in caplog.messages) == 1
    assert "webhook_secrets" in caplog.text


def test_secrets_out_of_reach_put_the_sender_off(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Any) -> list[bytes]:
        raise OSError("whsec_secret")

    with monkeypatch.context() as patched:
        patched.setattr(webhook_app, "SECRETS_RETRY_SECONDS", 0)
        patched.setattr(webhook_app.RecallHook, "webhook_keys", fail)
        reply = server.post()
        assert (reply.status_code, reply.json()) == (503, {"error": "secrets_unreadable"})
    assert server.post().status_code == 202


# -- what is not -----------------------------------------------------------------------------------------------------


def test_what_is_not_signed_is_refused(
    server: Server, started: list[Any], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook_app, "REFUSALS_SECONDS", 3600)
    raw = json.dumps(EVENT).encode()
    good = signed(raw)
    stranger = "whsec_" + base64.b64encode(b"a stranger's key").decode()
    forged: list[tuple[dict[str, str], bytes]] = [
        ({}, raw),
        *(({name: value for name, value in good.items() if name != gone}, raw) for gone in good),
        (signed(raw, stranger), raw),
        (signed(raw, at=-600), raw),
        (signed(raw, at=600), raw),
        (good, raw + b" "),
        (good, raw[:-1]),
        (good, b""),
        (good, raw.replace(b"rec-1", b"rec-2")),
        ({**good, "webhook-signature": good["webhook-signature"].replace("v1,", "v2,")}, raw),
        ({**good, "webhook-timestamp": "abc"}, raw),
        ({**good, "webhook-timestamp": str(2**63)}, raw),
        (
            {"webhook-id": "m1", **{name.replace("webhook", "svix"): value for name, value in list(good.items())[1:]}},
            raw,
        ),
    ]
    for headers, body in forged:
        assert requests.post(server.url, body, headers=headers, timeout=10).status_code == 401
    assert started == []
    assert sum("Refused webhooks" in line for line in caplog.messages) == 1
    assert requests.get(server.url, timeout=10).status_code == 405
    assert server.post().status_code == 202


def test_the_documentation_s_try_is_taken(server: Server) -> None:
    text = (ROOT / "docs" / "webhooks.md").read_text("utf-8")
    (program,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    env = {**os.environ, "WEBHOOK_SECRET": OLD, "WEBHOOK_URL": server.url}
    words = [sys.executable, "-c", program]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == '{"outcome":"noted"}\n'


def test_no_cookie_or_token_of_airflow_helps(server: Server) -> None:
    headers = {"Authorization": "Bearer x", "Cookie": "_token=x"}
    assert requests.post(server.url, json=EVENT, headers=headers, timeout=10).status_code == 401


# -- too much --------------------------------------------------------------------------------------------------------


def test_bodies_up_to_the_limit_are_read(server: Server) -> None:
    for size, status in ((LIMIT, 202), (LIMIT + 1, 413), (10 * LIMIT, 413)):
        body = json.dumps(EVENT).encode()
        assert server.post(body + b" " * (size - len(body))).status_code == status


def test_what_declares_too_much_is_refused_unread(server: Server) -> None:
    for length in (str(LIMIT + 1), str(100 * 1024 * 1024), "9" * 18):
        head = "".join(f"{name}: {value}\r\n" for name, value in signed(b"").items())
        answer = server.raw(f"{head}Content-Length: {length}")
        assert answer.startswith(b"HTTP/1.1 413")
        assert b"connection: close" in answer.lower()


def test_chunks_without_end_are_refused_and_little_of_them_is_read(server: Server) -> None:
    head = "".join(f"{name}: {value}\r\n" for name, value in signed(b"").items())
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        while True:
            sent += 16384
            yield b"4000\r\n" + b"x" * 16384 + b"\r\n"

    answer = server.raw(
        f"{head}Transfer-Encoding: chunked", *(piece for piece, _ in zip(endless(), range(2000), strict=False))
    )
    assert answer.startswith(b"HTTP/1.1 413")
    unsigned = server.raw("Transfer-Encoding: chunked", *[b"4000\r\n" + b"x" * 16384 + b"\r\n"] * 2000)
    assert unsigned.startswith(b"HTTP/1.1 401")
    assert b"connection: close" in unsigned.lower()


def test_a_slow_body_is_ended(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook_app, "BODY_SECONDS", 0.5)
    head = "".join(f"{name}: {value}\r\n" for name, value in signed(b"").items())
    before = time.monotonic()
    assert server.raw(f"{head}Content-Length: 1000", *[b"x"] * 600, pause=0.1).startswith(b"HTTP/1.1 408")
    assert time.monotonic() - before < 50, "it was ended before its minute was over"


def test_a_sender_that_hangs_up_harms_nobody(server: Server, started: list[Any]) -> None:
    head = "".join(f"{name}: {value}\r\n" for name, value in signed(b"").items())
    for _ in range(20):
        with socket.create_connection(server.address) as conn:
            conn.sendall(f"POST /recall/webhooks HTTP/1.1\r\nHost: x\r\n{head}Content-Length: 9\r\n\r\nx".encode())
    assert server.post().status_code == 202


def test_many_slow_bodies_cost_little_memory_and_hold_nobody_up(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Longer than the genuine sender below waits, so it can't have waited for them.
    monkeypatch.setattr(webhook_app, "BODY_SECONDS", 60)
    server.post()
    process = psutil.Process()
    before = process.memory_info().rss
    head = "".join(f"{name}: {value}\r\n" for name, value in signed(b"").items())
    start = f"POST /recall/webhooks HTTP/1.1\r\nHost: x\r\n{head}Content-Length: {LIMIT}\r\n\r\n".encode()
    slow = []
    try:
        for _ in range(150):
            conn = socket.create_connection(server.address)
            conn.sendall(start + b"x" * 200_000)
            slow.append(conn)
        assert server.post(message="m9").status_code // 100 == 2
        # 30 MB were sent; the kernel's own buffers are not this process's.
        assert process.memory_info().rss - before < 20 * 1024 * 1024
        answers = [conn.recv(12) for conn in slow[:100]]
        assert answers == [b"HTTP/1.1 408"] * 100
    finally:
        for conn in slow:
            conn.close()


def test_many_headers(server: Server) -> None:
    lines = "\r\n".join(f"x-{number}: y" for number in range(10_000))
    assert server.raw(f"{lines}\r\nContent-Length: 0\r\nConnection: close")[9:12] in {b"401", b"400", b"431"}
    assert server.post().status_code == 202


def test_genuine_events_are_taken_among_forged_ones(server: Server) -> None:
    """How fast, tests/load/webhooks.py measures."""
    done = threading.Event()
    raw = json.dumps(EVENT).encode()
    refused = []

    def forge() -> None:
        with contextlib.closing(http.client.HTTPConnection(*server.address)) as conn:
            while not done.is_set():
                conn.request("POST", "/recall/webhooks", raw, {**signed(raw), "webhook-signature": "v1," + "A" * 43})
                reply = conn.getresponse()
                reply.read()
                refused.append(reply.status)

    with ThreadPoolExecutor(4) as pool:
        for _ in range(4):
            pool.submit(forge)
        try:
            number = 0
            while number < 100 or len(refused) <= 200:
                number += 1
                assert server.post(message=f"g{number}").status_code // 100 == 2
        finally:
            done.set()
    assert set(refused) == {401}
