"""Messages to people: a recording failed, has gaps, is about to expire, was deleted.

They go through Airflow's own notifiers (e-mail, Slack, any other), which the deployment names in the Variable
``recall_notifiers``. Sending never fails a task, and holds it for :data:`NOTIFY_SECONDS` at most.
"""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
import html
import inspect
import logging
import re
import threading
import time
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from include.errors import CodedError
from include.provider import settings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow.sdk import BaseNotifier, Context

    from include.archive.manifest import Manifest

log = logging.getLogger(__name__)

NOTIFY_SECONDS = 30.0
"""How long a task waits for all its notifiers together; one that is still sending then goes on for as long as the task
lives."""

REPEAT_SECONDS = 24 * 3600.0
"""How long the same failure of the same task is not told again, however often it is run anew."""

_DEFAULT_KWARGS = {
    "subject": "{{ notice.subject }}",
    "title": "{{ notice.subject }}",
    "html_content": "{{ notice.html }}",
    "text": "{{ notice.subject }}\n\n{{ notice.body }}",
    "message": "{{ notice.subject }}\n\n{{ notice.body }}",
    "body": "{{ notice.body }}",
}
"""What a notifier is given for an argument of this name, if it has one and the setting doesn't say."""

_WEB_ADDRESS = re.compile(r"https?://[^\s<>\"']+")


@dataclass(frozen=True)
class Notice:
    """One message, about one recording where it is about any.

    It holds ids, never links that are signed, and names of people only where ``recall_notify_names`` asks for them.

    :param kind: for whoever sorts messages: ``failed``, ``gaps``, ``expiring``, ``lost``, ``problems``, ``deleted``, …
    :param subject: one line.
    :param body: plain text: what happened, to what, until when, what to do. See :func:`describe`.
    :param facts: the same for machines: ids, a ``code``, times, as JSON can hold them.
    """

    kind: str
    subject: str
    body: str
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # A line break in a subject would be one more header of a mail.
        object.__setattr__(self, "subject", " ".join(self.subject.split())[:200])

    @property
    def html(self) -> str:
        """The body for a mail: escaped, line by line, addresses as links."""
        text = html.escape(self.body)
        linked = _WEB_ADDRESS.sub(lambda found: f'<a href="{found[0]}">{found[0]}</a>', text)
        return "<p>" + linked.replace("\n\n", "</p><p>").replace("\n", "<br>") + "</p>"


def describe(context: Context, what: str, *, todo: str, facts: Mapping[str, Any], names: str | None = None) -> str:
    """Return the body of a message: what happened, to what, what to do, and where to look.

    :param context: the task's; its run is linked.
    :param what: what happened, in a sentence or two.
    :param todo: what to do.
    :param facts: ids, times and addresses, one line each; those that are ``None`` are left out.
    :param names: people's names, shown where ``recall_notify_names`` is true.
    """
    lines = [f"{name.replace('_', ' ').capitalize()}: {value}" for name, value in facts.items() if value is not None]
    if names and settings.NOTIFY_NAMES.get():
        lines.append(names)
    if (run := run_page(context)) is not None:
        lines.append(f"Run: {run}")
    return f"{what}\n\n" + "\n".join(lines) + f"\n\nWhat to do: {todo}"


def run_page(context: Context) -> str | None:
    """Return the address of the context's run in the Airflow UI; ``None`` without a run."""
    from airflow.sdk.configuration import conf

    ti: Any = context.get("ti")
    dag_id, run_id = getattr(ti, "dag_id", None), getattr(ti, "run_id", None)
    if not dag_id or not run_id:
        return None
    base_url = conf.get("api", "base_url", fallback="http://localhost:8080/")
    return f"{base_url.rstrip('/')}/dags/{quote(dag_id)}/runs/{quote(run_id)}"


def notify(context: Context, notice: Notice) -> None:
    """Send a message through all notifiers of the deployment, side by side.

    Whatever goes wrong is logged, by its type alone since its text may hold a secret, and never raised.

    :param context: the task's, which the notifiers' templates are rendered with; ``notice`` is added to it.
    :param notice: the message.
    """
    try:
        configured = settings.NOTIFIERS.get()
    except CodedError as error:
        log.error("No message was sent: %s", error)
        return
    if not configured:
        return
    senders = [
        threading.Thread(
            target=contextvars.copy_context().run, args=(_send, one, {**context, "notice": notice}), daemon=True
        )
        for one in configured
    ]
    for sender in senders:
        sender.start()
    give_up = time.monotonic() + NOTIFY_SECONDS
    for sender, one in zip(senders, configured, strict=True):
        sender.join(max(0.0, give_up - time.monotonic()))
        if sender.is_alive():
            log.error("%s has not sent its message after %.0f s", one["notifier"], NOTIFY_SECONDS)


def notify_failure(context: Context) -> None:
    """Tell that a task has given up: an ``on_failure_callback`` for the tasks whose failure ends a meeting's run.

    The same failure of the same task is told once a day at most.
    """
    try:
        notice = _failure(context)
        if not _told_lately(context, f"{notice.kind}\n{notice.facts['code']}\n{notice.subject}"):
            notify(context, notice)
    except Exception as error:
        log.error("No message was sent about this failure: %s", type(error).__name__)


def notify_gaps(context: Context, manifest: Manifest, folder_page: str) -> None:
    """Tell that a recording was archived, but not all of it, since its source had lost some.

    :param folder_page: the address of the recording's folder.
    """
    try:
        gone = len(manifest.missing)
        facts = {
            "recording_id": manifest.recording.id,
            "bot_id": manifest.recording.bot_id,
            "code": ", ".join(sorted({one.error_code for one in manifest.missing})),
            "archived_parts": len(manifest.parts),
            "missing": gone,
            "expires_at": _moment(manifest.recording.expires_at),
            "archive_folder": folder_page,
        }
        what = (
            f"Recording {manifest.recording.id} is archived with gaps: {gone} "
            f"{'thing' if gone == 1 else 'things'} that Recall listed can't be had any more."
        )
        todo = (
            "Look at the recording's page for what is missing. Nothing brings it back at Recall; whoever needs this "
            "audio should know that it is not complete."
        )
        names = f"Title: {manifest.recording.title}" if manifest.recording.title else None
        body = describe(context, what, todo=todo, facts=facts, names=names)
        notify(context, Notice("gaps", f"Recording {manifest.recording.id} is archived with gaps", body, facts))
    except Exception as error:
        log.error("No message was sent about these gaps: %s", type(error).__name__)


def _failure(context: Context) -> Notice:
    ti: Any = context["ti"]
    task: Any = context.get("task") or getattr(ti, "task", None)
    error: Any = context.get("exception")
    if isinstance(error, CodedError):
        code, message = error.code, error.message
    else:
        # Nobody knows what a stranger's text holds.
        code = "unexpected_error"
        message = f"The task ended with {type(error).__name__ if error is not None else 'no word'}; see its log."
    recording: Any = getattr(task, "recording", None)
    if not hasattr(recording, "get"):
        recording = {}
    params = context.get("params") or {}
    ids = {
        name: recording.get(name) or _text(getattr(task, name, None)) or _text(params.get(name))
        for name in ("recording_id", "bot_id")
    }
    facts = {
        "code": code,
        **ids,
        "dag": ti.dag_id,
        "task": ti.task_id,
        "expires_at": getattr(error, "expires_at", None),
        "bot_page": getattr(task, "bot_url", None) or None,
        "archive_folder": getattr(task, "folder_url", None) or None,
    }
    what = next((f"{name.removesuffix('_id')} {one}" for name, one in ids.items() if one), f"run {ti.run_id}")
    names = f"Task: {context['task_label']}" if context.get("task_label") else None  # type: ignore[typeddict-item]
    todo = (
        "Put right what the message says, then start the run again (Clear, or Trigger with the same params). What is "
        "stored already is neither fetched nor written again."
    )
    subject = f"{ti.dag_id} failed for {what}: {code}"
    return Notice("failed", subject, describe(context, message, todo=todo, facts=facts, names=names), facts)


def _text(value: Any) -> str | None:
    text = str(value or "").strip()
    return None if text in ("", "None") or "{{" in text else text


def _moment(value: Any) -> str | None:
    return None if value is None else value.strftime("%Y-%m-%d %H:%M UTC")


def _told_lately(context: Context, what: str) -> bool:
    """Tell whether this very message went out of this very task a short while ago, and note that it does now."""
    state: Any = context.get("task_state_store")
    if state is None:
        return False
    from airflow.sdk.execution_time.context import NEVER_EXPIRE

    what, now = hashlib.sha256(what.encode()).hexdigest()[:16], time.time()
    told = state.get("notified")
    if isinstance(told, dict) and told.get("what") == what and now - float(told.get("at", 0)) < REPEAT_SECONDS:
        return True
    state.set("notified", {"what": what, "at": now}, retention=NEVER_EXPIRE)
    return False


def _send(configured: Mapping[str, Any], context: Context) -> None:
    try:
        notifier = make_notifier(configured["notifier"], configured["kwargs"])
        # Not by calling it: that logs the text of what goes wrong.
        notifier.context = context
        notifier.render_template_fields(context)
        try:
            notifier.notify(context)
        except NotImplementedError:
            asyncio.run(notifier.async_notify(context))
    except Exception as error:
        reason = error.message if isinstance(error, CodedError) else type(error).__name__
        log.error("%s could not send its message: %s", configured["notifier"], reason)


def make_notifier(path: str, kwargs: Mapping[str, Any]) -> BaseNotifier:
    """Make a notifier of a class that is named.

    :param path: import path of a subclass of Airflow's ``BaseNotifier``.
    :param kwargs: its arguments; those that it has for a message, and that are not given, get the notice's own texts.
    :raises CodedError: ``bad_setting``: there is no such class, or it takes no such arguments.
    """
    from airflow.sdk import BaseNotifier

    module, _, name = path.rpartition(".")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        raise CodedError(f"no class {path} can be imported: is its provider installed?", code="bad_setting") from None
    if not (isinstance(found, type) and issubclass(found, BaseNotifier)):
        raise CodedError(f"{path} is no notifier of Airflow", code="bad_setting")
    known = inspect.signature(found).parameters
    texts = {argument: text for argument, text in _DEFAULT_KWARGS.items() if argument in known}
    try:
        made: BaseNotifier = found(**{**texts, **kwargs})
    except TypeError:
        raise CodedError(
            f"{path} can't be made with {', '.join(kwargs) or 'no arguments'}", code="bad_setting"
        ) from None
    return made
