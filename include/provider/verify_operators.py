"""Operators of ``verify_archive``: cut the archive into chunks, look each through and repair it, report."""

from __future__ import annotations

import secrets
import threading
from datetime import date, datetime, timezone
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator, CronTriggerTimetable, DeltaTriggerTimetable

from include.provider import metrics, settings
from include.provider.errors import (
    ArchiveDamagedError,
    BadParamsError,
    RecallRetryPolicy,
    VerificationIncompleteError,
    error_reported,
)
from include.provider.hook import RecallHook, get_store
from include.provider.links import VerifyReportLink, page_url
from include.provider.notices import Notice, describe, notify, notify_failure
from include.provider.operators import open_ends, show_label
from include.provider.params import given

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from airflow.sdk import Context

    from include.archive.copy import Stop
    from include.errors import CodedError
    from include.provider.verification import Report, Task


class RecallPlanVerificationOperator(BaseOperator):
    """Cut what is to be verified into chunks of days, at most about 40.

    :param recording_id: one recording alone; else all in the range (templated).
    :param first_day: first day, ``YYYY-MM-DD``, by the recordings' own date; the archive's first if empty (templated).
    :param last_day: last day; the archive's last when empty (templated).
    :param aws_conn_id: connection for an ``s3://`` archive.
    :return: the chunks: ``first`` and ``last`` folder of each.
    """

    template_fields: Sequence[str] = ("recording_id", "first_day", "last_day")
    ui_color = "#e8f0fe"

    def __init__(
        self,
        *,
        recording_id: str = "",
        first_day: str = "",
        last_day: str = "",
        aws_conn_id: str = "aws_default",
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("retry_policy", RecallRetryPolicy())
        super().__init__(**kwargs)
        self.recording_id = recording_id
        self.first_day = first_day
        self.last_day = last_day
        self.aws_conn_id = aws_conn_id

    def execute(self, context: Context) -> list[dict[str, str]]:
        """List the archive's days."""
        from include.provider.verification import plan

        with error_reported(context):
            recording_id, first, last = (given(one) for one in (self.recording_id, self.first_day, self.last_day))
            for day in (first, last):
                _check_day(day)
            if recording_id and (first or last):
                raise BadParamsError("give a recording_id or a range of days, not both")
            if first and last and last < first:
                raise BadParamsError("the last day lies before the first")
            chunks = plan(get_store(self.aws_conn_id), recording_id=recording_id, first_day=first, last_day=last)
            self.log.info("%d chunks to verify", len(chunks))
            return chunks


def _check_day(day: str | None) -> None:
    try:
        if day is not None:
            date.fromisoformat(day)
    except ValueError:
        raise BadParamsError(f"{day!a} is no day such as 2026-03-04") from None


class RecallVerifyArchiveOperator(BaseOperator):
    """Look one chunk of the archive through, object by object, and repair what Recall still has.

    Several objects are read at a time, with memory that depends on neither their size nor their number. What was found
    is stored beside the recordings; clearing the task looks at this chunk again and at no other.

    :param chunk: one of those that :class:`RecallPlanVerificationOperator` returned (templated).
    :param mode: ``full`` (default) reads every byte; ``checksum`` trusts the checksum that the store computed, and
        reads where there is none (templated).
    :param repair: make good what Recall still has; else only report (templated).
    :param recall_conn_id: Airflow connection of type ``recall``; used when there is something to repair.
    :param aws_conn_id: connection for an ``s3://`` archive.
    :return: the chunk, ``details`` (key of what was found) and ``tally``.
    """

    template_fields: Sequence[str] = ("chunk", "mode", "repair")
    ui_color = "#e6f4ea"

    def __init__(
        self,
        *,
        chunk: Mapping[str, str],
        mode: str = "full",
        repair: bool | str = True,
        recall_conn_id: str = RecallHook.default_conn_name,
        aws_conn_id: str = "aws_default",
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("retry_policy", RecallRetryPolicy())
        super().__init__(**kwargs)
        self.chunk = chunk
        self.mode = mode
        self.repair = repair
        self.recall_conn_id = recall_conn_id
        self.aws_conn_id = aws_conn_id
        self._stop: Stop | None = None
        self._working = False

    def execute(self, context: Context) -> dict[str, Any]:
        """Verify the chunk."""
        from include.archive.copy import Stop
        from include.provider.repair import Repairer
        from include.provider.verification import FOLDER, verify_chunk

        with error_reported(context):
            show_label(context, _label(self.chunk))
            self._stop = stop = Stop()
            task = _task(context, self.mode, self.repair)
            repairer = Repairer(lambda: open_ends(self.recall_conn_id, self.aws_conn_id), stop=stop, pcm=_pcm())
            # A try that was killed leaves nothing, one that ended leaves its own.
            key = f"{FOLDER}/{task.run}/{max(0, context['ti'].map_index or 0):02d}-{secrets.token_hex(4)}.jsonl"
            self._working = True
            try:
                done = verify_chunk(get_store(self.aws_conn_id), self.chunk, task, repairer, key=key, stop=stop)
            finally:
                self._working = False
            self.log.info("%s: %s", _label(self.chunk), done["tally"])
            return done

    def on_kill(self) -> None:
        """End the reading and copying; what is half done leaves nothing.

        :raises StoppedError: out of whatever waits, as in :class:`RecallArchiveParticipantOperator`.
        """
        from include.archive.errors import StoppedError

        if self._stop is not None:
            self._stop.set()
        if self._working and threading.current_thread() is threading.main_thread():
            self._working = False
            raise StoppedError("told to stop")


class RecallReportVerificationOperator(BaseOperator):
    """Sum a verification up: a report beside the recordings, a page in the UI, and a message if there was damage.

    Give it ``trigger_rule="all_done"``, so that it tells as well what was not looked at.

    :param chunks: what :class:`RecallPlanVerificationOperator` returned (templated).
    :param results: what the mapped :class:`RecallVerifyArchiveOperator` returned (templated).
    :param scope: what was asked for: ``recording_id``, ``from``, ``to`` (templated).
    :param mode: and ``repair``: as the chunks were given them (templated).
    :param aws_conn_id: connection for an ``s3://`` archive.
    :return: ``report`` (its address), ``unrepaired``, ``totals``.
    """

    template_fields: Sequence[str] = ("chunks", "results", "scope", "mode", "repair")
    operator_extra_links = (VerifyReportLink(),)
    ui_color = "#fef7e0"

    def __init__(
        self,
        *,
        chunks: Sequence[Mapping[str, str]],
        results: Any,
        scope: Mapping[str, str],
        mode: str = "full",
        repair: bool | str = True,
        aws_conn_id: str = "aws_default",
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("retry_policy", RecallRetryPolicy())
        super().__init__(**kwargs)
        self.chunks = chunks
        self.results = results
        self.scope = scope
        self.mode = mode
        self.repair = repair
        self.aws_conn_id = aws_conn_id

    def execute(self, context: Context) -> dict[str, Any]:
        """Write the report; fail where damage is left, or something was not looked at."""
        from include.provider.verification import FOLDER, write_report

        with error_reported(context):
            if self.chunks is None:
                raise VerificationIncompleteError("nothing was verified: the archive's days could not be listed")
            task, store = _task(context, self.mode, self.repair), get_store(self.aws_conn_id)
            report = write_report(
                store,
                task,
                scope={name: given(value) for name, value in self.scope.items()},
                chunks=len(self.chunks),
                results=list(self.results or ()),
                began_at=_began(context),
            )
            self.report_url = page_url(f"{FOLDER}/{task.run}")
            totals = report.document["totals"]
            self.log.info("Report %s: %s", store.uri(report.key), totals)
            metrics.verified(totals, report.unrepaired)
            error = self._verdict(report)
            if report.harmful or error is not None:
                self._tell(context, report, error)
            if error is not None:
                error.is_told = True  # type: ignore[attr-defined]
                raise error
            return {"report": store.uri(report.key), "unrepaired": report.unrepaired, "totals": totals}

    def _verdict(self, report: Report) -> CodedError | None:
        found = report.document["totals"]["found"]
        kinds = ", ".join(f"{number} {kind}" for kind, number in found.items() if kind not in ("extra", "stale"))
        if report.unrepaired:
            return ArchiveDamagedError(
                f"{report.unrepaired} problems are not repaired (found: {kinds}); the report says which and why: "
                f"{self.report_url}"
            )
        if not report.document["complete"]:
            return VerificationIncompleteError(
                f"parts of the archive were not looked at; clear the failed tasks and this one: {self.report_url}"
            )
        return None

    def _tell(self, context: Context, report: Report, error: CodedError | None) -> None:
        document = report.document
        repaired = sum(document["totals"]["repaired"].values())
        facts = {
            "code": error.code if error is not None else "repaired",
            "not_repaired": report.unrepaired,
            "repaired": repaired,
            "recordings": sum(document["totals"]["recordings"].values()),
            "report": self.report_url,
        }
        if error is None:
            subject, todo = (
                f"The archive was damaged, all repaired: {repaired}",
                "Nothing. Disks that do this do it again.",
            )
        else:
            subject = f"The archive is damaged: {report.unrepaired} not repaired"
            todo = "See the report for each object, and docs/verify.md for how to restore one by hand."
            if isinstance(error, VerificationIncompleteError):
                subject, todo = "The archive was not verified to its end", "Clear the failed tasks of the run."
        what = error.message if error is not None else "Damage was found, and made good from what Recall still has."
        notify(context, Notice("problems", subject, describe(context, what, todo=todo, facts=facts), facts))


def notify_failure_untold(context: Context) -> None:
    """Tell of a failure, unless the report's own message did."""
    if not getattr(context.get("exception"), "is_told", False):
        notify_failure(context)


def _task(context: Context, mode: str, repair: bool | str) -> Task:
    from include.archive.verify import MODES
    from include.provider.verification import Task, run_name

    if mode not in MODES:
        raise BadParamsError(f"mode is {mode!a}; it must be {' or '.join(MODES)}")
    return Task(
        run=run_name(_began(context), str(context["run_id"])),
        mode=mode,
        repair=str(repair).strip().lower() in ("true", "1"),
        stale_hours=settings.VERIFY_STALE_HOURS.get(),
    )


def _began(context: Context) -> datetime:
    run: Any = context["dag_run"]
    moment: datetime | None = run.run_after
    return moment or datetime.now(timezone.utc)


def _pcm() -> Any:
    from include.archive.audio import PcmFormat

    return PcmFormat(rate=settings.PCM_RATE.get(), width=settings.PCM_WIDTH.get(), channels=settings.PCM_CHANNELS.get())


def _label(chunk: Mapping[str, str]) -> str:
    first, last = (chunk[name].removeprefix("dt=") for name in ("first", "last"))
    return first if first == last else f"{first} to {last}"


def verify_schedule() -> CronTriggerTimetable | DeltaTriggerTimetable | None:
    """Return when ``verify_archive`` runs; ``None`` for by hand alone."""
    when = settings.VERIFY_SCHEDULE.get_for_dag_file()
    if when is None:
        return None
    return CronTriggerTimetable(when, timezone="UTC") if isinstance(when, str) else DeltaTriggerTimetable(when)
