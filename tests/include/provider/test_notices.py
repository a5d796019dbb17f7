"""Messages to people, sent over real sockets with Airflow's own notifiers."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import threading
import time
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk import BaseNotifier

from include.archive.manifest import Manifest, MissingPart, RecordingFacts
from include.errors import CodedError
from include.provider import notices, settings
from include.provider.errors import PartsOwedError
from include.provider.notices import Notice, describe, notify, notify_failure, notify_gaps
from tests.include.provider.conftest import Context
from tests.mail_sink import MailSink, mail_sink

if TYPE_CHECKING:
    from collections.abc import Iterator

SMTP = "airflow.providers.smtp.notifications.smtp.SmtpNotifier"
HTTP = "airflow.providers.http.notifications.http.HttpNotifier"
HERE = __name__
ROOT = Path(__file__).resolve().parents[3]
NOTICE = Notice(
    "failed", "Recording r-1 failed", "What <happened>\n\nRun: http://airflow/dags/x?a=1&b=2", {"code": "x"}
)


@pytest.fixture
def mails(monkeypatch: pytest.MonkeyPatch) -> Iterator[MailSink]:
    with mail_sink() as sink:
        monkeypatch.setenv("AIRFLOW_CONN_SMTP_DEFAULT", json.dumps(sink.connection))
        yield sink


@pytest.fixture
def hooks(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """What a webhook of ours was sent."""
    received: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        connection = {"conn_type": "http", "host": f"http://127.0.0.1:{server.server_port}"}
        monkeypatch.setenv("AIRFLOW_CONN_HOOK", json.dumps(connection))
        yield received
        server.shutdown()
        thread.join()


class Broken(BaseNotifier):
    """Fail with a text that nobody should read."""

    def notify(self, context: Any) -> None:
        raise RuntimeError("https://hooks.example/services/T0/B0/hunter2")


class Asynchronous(BaseNotifier):
    """Know the asynchronous way only."""

    template_fields = ("text",)
    sent: list[str] = []  # noqa: RUF012

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text

    async def async_notify(self, context: Any) -> None:
        self.sent.append(self.text)


@pytest.fixture
def configure(monkeypatch: pytest.MonkeyPatch) -> Any:
    def set_to(*entries: dict[str, Any] | str) -> None:
        text = entries[0] if isinstance(entries[0], str) else json.dumps(entries)
        monkeypatch.setenv("AIRFLOW_VAR_RECALL_NOTIFIERS", str(text))

    return set_to


def context(**more: Any) -> Any:
    made = Context()
    made["ti"].dag_id, made["ti"].task_id, made["ti"].run_id = "archive_meeting", "settle", "manual__2026+1"
    made.update(more)
    return made


class Task:
    """What a failed task of ours leaves on itself."""

    recording = {"recording_id": "r-1", "bot_id": "b-1"}  # noqa: RUF012
    folder_url = "http://airflow/recall/archive/dt=2026-03-04/recording=r-1/"


def owed() -> PartsOwedError:
    error = PartsOwedError("recording r-1 is not settled: 1 owed (media_cut)")
    error.expires_at = "2026-03-11T10:00:00+00:00"
    return error


def text_of(mail: Any) -> str:
    return mail.get_body(("html", "plain")).get_content()


def test_a_mail_needs_no_more_than_an_address(mails: MailSink, configure: Any) -> None:
    configure({"notifier": SMTP, "kwargs": {"to": "ops@example.com"}})
    notify(context(), NOTICE)
    (mail,) = mails.mails
    assert (mail["To"], mail["From"], mail["Subject"]) == ("ops@example.com", "airflow@example.com", NOTICE.subject)
    assert "What &lt;happened&gt;" in text_of(mail)
    assert '<a href="http://airflow/dags/x?a=1&amp;b=2">' in text_of(mail)


def test_texts_of_ones_own_to_several(mails: MailSink, hooks: list[dict[str, Any]], configure: Any) -> None:
    configure(
        {"notifier": SMTP, "kwargs": {"to": ["a@example.com", "b@example.com"], "subject": "[{{ notice.kind }}] !"}},
        {"notifier": HTTP, "kwargs": {"http_conn_id": "hook", "json": {"text": "{{ notice.facts.code }}"}}},
    )
    notify(context(), NOTICE)
    assert mails.mails[0]["Subject"] == "[failed] !"
    assert hooks == [{"text": "x"}]


def test_what_is_told_is_text_and_never_a_template(hooks: list[dict[str, Any]], configure: Any) -> None:
    body = "{{ conn.hook.host }} {% raw %}"
    configure({"notifier": HTTP, "kwargs": {"http_conn_id": "hook", "json": {"text": "{{ notice.body }}"}}})
    notify(context(), Notice("failed", "s", body))
    assert hooks == [{"text": body}]


def test_a_subject_is_one_line() -> None:
    assert (
        Notice("failed", "a\r\nBcc: b@example.com" + "x" * 300, "").subject
        == ("a Bcc: b@example.com" + "x" * 300)[:200]
    )


def test_only_asynchronous(configure: Any) -> None:
    configure({"notifier": f"{HERE}.Asynchronous", "kwargs": {}})
    notify(context(), NOTICE)
    assert Asynchronous.sent == [f"{NOTICE.subject}\n\n{NOTICE.body}"]


def test_a_broken_notifier_hurts_nobody(
    mails: MailSink, configure: Any, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    configure(
        {"notifier": f"{HERE}.Broken", "kwargs": {}},
        {"notifier": "no.such.Notifier", "kwargs": {}},
        {"notifier": "json.JSONDecoder", "kwargs": {}},
        {"notifier": SMTP, "kwargs": {"nonsense": "hunter2"}},
        {"notifier": SMTP, "kwargs": {"to": "ops@example.com"}},
    )
    notify(context(), NOTICE)
    assert len(mails.mails) == 1
    said = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(said) == 4
    assert "RuntimeError" in " ".join(said)
    seen = caplog.text + "".join(capfd.readouterr())
    assert "hunter2" not in seen


def test_a_silent_notifier_does_not_hold_the_task(
    mails: MailSink, hooks: list[dict[str, Any]], configure: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notices, "NOTIFY_SECONDS", 1.0)
    patient = {**mails.connection, "extra": {**mails.connection["extra"], "timeout": 600}}
    monkeypatch.setenv("AIRFLOW_CONN_SMTP_DEFAULT", json.dumps(patient))
    mails.greeting.clear()
    configure(
        {"notifier": SMTP, "kwargs": {"to": "ops@example.com"}},
        {"notifier": HTTP, "kwargs": {"http_conn_id": "hook", "json": {"text": "x"}}},
    )
    before = set(threading.enumerate())
    notify(context(), NOTICE)
    # It is back while the silent one is still being waited for.
    silent = [one for one in set(threading.enumerate()) - before if "_send" in repr(one._args)]  # type: ignore[attr-defined]
    assert silent
    give_up = time.monotonic() + 60
    while not hooks and time.monotonic() < give_up:
        time.sleep(0.02)
    assert hooks == [{"text": "x"}]
    assert mails.mails == []


@pytest.mark.parametrize(
    "text",
    [
        "hunter2",
        '{"notifier": "hunter2"}',
        '["hunter2"]',
        '[{"notifier": "hunter2"}]',
        '[{"notifier": "a.B", "kwargs": "hunter2"}]',
        '[{"notifier": "a.B", "token": "hunter2"}]',
        '[{"notifier": "os.system; hunter2"}]',
    ],
)
def test_a_setting_that_means_nothing_is_named_without_its_text(
    text: str, configure: Any, caplog: pytest.LogCaptureFixture
) -> None:
    configure(text)
    notify(context(), NOTICE)
    assert "recall_notifiers" in caplog.text
    assert "hunter2" not in caplog.text


def test_a_failure_says_what_it_is_about_and_where_to_look(mails: MailSink, configure: Any) -> None:
    configure({"notifier": SMTP, "kwargs": {"to": "ops@example.com"}})
    notify_failure(context(task=Task(), exception=owed(), task_label="Ada Example"))
    (mail,) = mails.mails
    assert mail["Subject"] == "archive_meeting failed for recording r-1: parts_owed"
    for expected in (
        "recording r-1 is not settled: 1 owed (media_cut)",
        "Bot id: b-1",
        "Expires at: 2026-03-11T10:00:00+00:00",
        Task.folder_url,
        "/dags/archive_meeting/runs/manual__2026%2B1",
        "What to do:",
    ):
        assert expected in text_of(mail)
    assert "Ada" not in text_of(mail)


def test_names_only_where_they_are_asked_for(mails: MailSink, configure: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    configure({"notifier": SMTP, "kwargs": {"to": "ops@example.com"}})
    created = datetime(2026, 3, 4, tzinfo=timezone.utc)
    gap = MissingPart(artifact_id="a-1", part_id=None, participant_id=None, error_code="media_failed")
    manifest = Manifest.build(
        recording=RecordingFacts(id="r-1", created_at=created, bot_id="b-1", title="Ada and Grace"),
        participants=[],
        parts=[],
        missing=[gap],
    )
    notify_gaps(context(), manifest, Task.folder_url)
    monkeypatch.setenv("AIRFLOW_VAR_RECALL_NOTIFY_NAMES", "true")
    notify_gaps(context(), manifest, Task.folder_url)
    silent, open_ = mails.mails
    assert silent["Subject"] == "Recording r-1 is archived with gaps"
    assert "media_failed" in text_of(silent)
    assert "Ada" not in text_of(silent)
    assert "Title: Ada and Grace" in text_of(open_)


def test_the_same_failure_is_told_once_a_day(mails: MailSink, configure: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    configure({"notifier": SMTP, "kwargs": {"to": "ops@example.com"}})
    failed = context(task=Task(), exception=owed())
    notify_failure(failed)
    notify_failure(failed)
    assert len(mails.mails) == 1
    failed["exception"] = CodedError("no such key", code="auth_rejected")
    notify_failure(failed)
    assert len(mails.mails) == 2
    monkeypatch.setattr(notices, "REPEAT_SECONDS", 0.0)
    notify_failure(failed)
    assert len(mails.mails) == 3


def test_a_strangers_error_is_told_by_its_type(mails: MailSink, configure: Any) -> None:
    configure({"notifier": SMTP, "kwargs": {"to": "ops@example.com"}})
    notify_failure(context(exception=ValueError("hunter2"), params={"bot_id": "b-9"}))
    notify_failure({})  # type: ignore[typeddict-item]
    (mail,) = mails.mails
    assert mail["Subject"] == "archive_meeting failed for bot b-9: unexpected_error"
    assert "ValueError" in text_of(mail)
    assert "hunter2" not in text_of(mail)


def test_nothing_configured_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a thread was started")

    monkeypatch.setattr(threading, "Thread", refuse)
    notify(context(), NOTICE)
    assert "Run:" not in describe({}, "x", todo="y", facts={"empty": None})  # type: ignore[typeddict-item]


def test_the_examples_of_the_docs(
    mails: MailSink, hooks: list[dict[str, Any]], configure: Any, monkeypatch: Any
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_ALERTS", os.environ["AIRFLOW_CONN_HOOK"])
    page = (ROOT / "docs/notifications.md").read_text("utf-8")
    examples = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    for example in examples:
        configure(example)
        (entry,) = settings.NOTIFIERS.get()
        if ".slack." not in entry["notifier"]:  # a provider that development does without
            notify(context(), NOTICE)
    assert len(examples) == 3
    assert [mail["To"] for mail in mails.mails] == ["ops@example.com"]
    assert hooks == [{"kind": "failed", "code": "x", "text": NOTICE.body}]
    configure(examples[0])
    for command in re.findall(r"```sh\n(.*?)```", page, re.DOTALL):
        code = shlex.split(command)[-1]
        subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert [mail["Subject"] for mail in mails.mails] == [NOTICE.subject, "A test"]
