"""The two steps of the sweep: find what is finished and not archived, and start a run for each.

What is known between two sweeps is in the asset state store of :data:`~include.provider.assets.RECALL_MEETINGS`; how
often a recording was tried is known by its run. Everything that costs an import is imported when a task runs.
"""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator, CronDataIntervalTimetable, DeltaDataIntervalTimetable

from include.provider import awaited, metrics, settings
from include.provider.assets import RECALL_MEETINGS
from include.provider.errors import BadParamsError, RecallRetryPolicy, error_reported
from include.provider.hook import RecallHook, get_store
from include.provider.params import given
from include.provider.runs import DAG_ID, conf_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from airflow.sdk import Context

    from include.provider.sweep import Finding, Found, State, Window

WANTED_KEY = "wanted"
"""XCom keys ``wanted_0``, ``wanted_1``, … hold what the first step found, in rows that stay below 48 KiB."""

WANTED_PER_ROW = 250
MOST_IDS = 80
"""How many ids of a kind a summary names; the counts are always of all."""

FIRST_PAUSE = timedelta(hours=1)
LONGEST_PAUSE = timedelta(hours=24)
LAST_HOURS = timedelta(hours=6)
"""So long before its expiry a recording whose run failed is tried again by every sweep."""

ORDER = (
    "would_start",
    "started",
    "running",
    "paused",
    "left_for_next_time",
    "processing",
    "archived",
    "failed_at_source",
    "without_audio",
    "gone",
    "left_out",
    "expiring",
    "expired_before_archive",
)
_MEANING = {
    "would_start": "would be started",
    "started": "started",
    "running": "a run is at it already",
    "paused": "its run failed, tried again later",
    "left_for_next_time": "left for the next sweep",
    "processing": "Recall is still at work on it",
    "archived": "archived",
    "failed_at_source": "Recall failed on its audio",
    "without_audio": "has no separate audio",
    "gone": "was gone before its audio was seen",
    "left_out": "left out by the filters",
    "expiring": "not archived yet and expires soon",
    "expired_before_archive": "expired before it was archived",
}


def sweep_timetable() -> CronDataIntervalTimetable | DeltaDataIntervalTimetable | None:
    """Return when the sweep runs, with the intervals that a backfill takes for its windows; ``None`` for never."""
    when = settings.SWEEP_SCHEDULE.get_for_dag_file()
    if when is None:
        return None
    return CronDataIntervalTimetable(when, "UTC") if isinstance(when, str) else DeltaDataIntervalTimetable(when)


def dates_of(context: Context) -> tuple[datetime, datetime | None] | None:
    """Return the dates that a run is asked to look at, or ``None`` for one that goes on where the last was.

    :raises BadParamsError: the dates don't fit together.
    """
    params, run = context["params"], context.get("dag_run")
    after, before = (_moment(given(params.get(name))) for name in ("created_after", "created_before"))
    if after is None and before is None and run is not None and run.run_type == "backfill":
        after, before = run.data_interval_start, run.data_interval_end
    if after is None:
        if before is not None:
            raise BadParamsError("created_before goes with created_after")
        return None
    if before is not None and before <= after:
        raise BadParamsError("created_before must be later than created_after")
    return after, before


class RecallFindRecordingsOperator(BaseOperator):
    """Find every recording that is finished, wanted and not archived, the soonest to expire first.

    It walks once over the workspace's recordings and once over its separate audio, page by page. How far it came is
    kept only once both walks are complete, so a walk that breaks off is done again, wider. A run with dates looks at
    these alone and remembers what it leaves owed; with ``plan`` nothing is remembered, sent or written.

    :param recall_conn_id: Airflow connection of type ``recall``.
    :param aws_conn_id: connection for an ``s3://`` archive.
    :return: a summary: ``counts``, up to 80 ids of each kind, ``window``, ``calls``. What was found goes into XCom
        rows of its own, for :class:`RecallStartArchivingOperator`.
    """

    ui_color = "#e8f0fe"

    def __init__(
        self, *, recall_conn_id: str = RecallHook.default_conn_name, aws_conn_id: str = "aws_default", **kwargs: Any
    ) -> None:
        kwargs.setdefault("retry_policy", RecallRetryPolicy())
        kwargs.setdefault("inlets", [RECALL_MEETINGS])
        super().__init__(**kwargs)
        self.recall_conn_id = recall_conn_id
        self.aws_conn_id = aws_conn_id

    def execute(self, context: Context) -> dict[str, Any]:
        """Look once at everything."""
        from include.provider.filters import Filters
        from include.provider.sweep import State, find

        with error_reported(context):
            dates, is_plan = dates_of(context), bool(context["params"].get("plan"))
            rows = context["asset_state_store"][RECALL_MEETINGS]
            state = State.load(rows)
            window = self._window(state, dates)
            hook, store = RecallHook(self.recall_conn_id), get_store(self.aws_conn_id)
            client = hook.get_conn()
            finding = find(
                client,
                store,
                window,
                owed=state.owed,
                reason_to_leave_out=Filters.read().reason_to_leave_out,
                alert=timedelta(hours=settings.EXPIRY_ALERT_HOURS.get()),
            )
            sizes = self._measure(finding.wanted, hook) if is_plan else {}
            for number, some in enumerate(_chunks(finding.wanted)):
                row = [_handed_on(one, sizes.get(one.recording.id)) for one in some]
                context["ti"].xcom_push(key=f"{WANTED_KEY}_{number}", value=row)
            if not is_plan:
                if dates is None:
                    self._tell(context, finding, store)
                    State(finding.walked_at, finding.owed).save(rows)
                    metrics.SWEEP_FOUND.set(len(finding.wanted))
                    metrics.SWEEP_OWED.set(len(finding.owed))
                else:
                    settled = {*finding.archived, *finding.failed, *finding.gone, *finding.left_out}
                    owed = {key: one for key, one in {**finding.owed, **state.owed}.items() if key not in settled}
                    replace(state, owed=owed).save(rows)
            summary = _summary(_kinds(finding))
            summary["calls"] = finding.calls
            summary["window"] = [window.after.isoformat(), window.before.isoformat() if window.before else None]
            summary["rows"] = len(_chunks(finding.wanted))
            self.log.info(
                "Looked at %d recordings that began since %s, with %s calls",
                finding.looked_at,
                f"{window.after:%Y-%m-%d %H:%M} UTC",
                " and ".join(f"{number} {kind}" for kind, number in sorted(finding.calls.items())),
            )
            return summary

    def _window(self, state: State, dates: tuple[datetime, datetime | None] | None) -> Window:
        from include.provider.sweep import Window

        if dates is not None:
            return Window(dates[0], dates[1] or datetime.now(timezone.utc))
        return Window.since(
            state,
            now=datetime.now(timezone.utc),
            overlap=timedelta(hours=settings.SWEEP_OVERLAP_HOURS.get()),
            first=timedelta(days=settings.SWEEP_FIRST_DAYS.get()),
        )

    def _tell(self, context: Context, finding: Finding, store: Any) -> None:
        """Send one message for each recording that is about to be lost, or was; leave a note of the latter."""
        from include.provider.notices import Notice, describe, notify
        from include.provider.sweep import keep_lost

        for recording_id in finding.expiring:
            owed = finding.owed[recording_id]
            if owed.told or owed.expires_at is None:
                continue
            expires_at = f"{datetime.fromtimestamp(owed.expires_at, timezone.utc):%Y-%m-%d %H:%M} UTC"
            facts = {"recording_id": recording_id, "code": "expires_soon", "expires_at": expires_at}
            what = f"Recording {recording_id} is not archived, and Recall deletes it at {expires_at}."
            todo = (
                "Recall is still at work on its audio: ask Recall's support, with the recording's id."
                if recording_id in finding.processing
                else f"Look at the run {awaited.run_id_of(recording_id)} of {DAG_ID}: it says what it lacks."
            )
            subject = f"Recording {recording_id} expires at {expires_at} and is not archived"
            notify(context, Notice("expiring", subject, describe(context, what, todo=todo, facts=facts), facts))
            finding.owed[recording_id] = replace(owed, told=True)
        for recording_id, record in finding.lost.items():
            if not keep_lost(store, record):
                continue
            facts = {**record, "code": record["outcome"]}
            what = f"Recording {recording_id} is {record['reason']} at Recall, and was not archived."
            todo = (
                "Nothing brings it back. See why its run failed, or why nobody looked, so that it stays the only one."
            )
            subject = f"Recording {recording_id} was lost before it was archived"
            notify(context, Notice("lost", subject, describe(context, what, todo=todo, facts=facts), facts))

    def _measure(self, wanted: Sequence[Found], hook: RecallHook) -> dict[str, dict[str, Any]]:
        """Return parts, people, seconds and bytes of what would be started, as far as the parts lists tell."""
        from concurrent.futures import ThreadPoolExecutor

        from include.errors import CodedError
        from include.recall.parts import list_parts

        client, media = hook.get_conn(), hook.get_media()
        rate = settings.PCM_RATE.get() * settings.PCM_WIDTH.get() * settings.PCM_CHANNELS.get()

        def measure(found: Found) -> dict[str, Any] | None:
            seconds, people, parts, size = 0.0, set(), 0, 0.0
            try:
                for artifact in found.artifacts:
                    if artifact.status == "done":
                        for part in list_parts(client, media, artifact.id, artifact=artifact).parts:
                            seconds, parts = seconds + part.duration, parts + 1
                            people.add(part.participant.id)
                            size += part.duration * rate if artifact.format == "raw" else float("nan")
            except CodedError as error:
                self.log.warning("The parts of recording %s can't be listed: %s", found.recording.id, error)
                return None
            known = {} if size != size else {"bytes": round(size)}  # a number that isn't one: of unknown size
            return {"participants": len(people), "parts": parts, "audio_seconds": round(seconds, 1), **known}

        first = wanted[: settings.SWEEP_MAX_STARTS.get()]
        with ThreadPoolExecutor(8, "plan") as pool:
            measured = pool.map(measure, first)
            return {one.recording.id: size for one, size in zip(first, measured, strict=True) if size is not None}


class RecallStartArchivingOperator(BaseOperator):
    """Start ``archive_meeting`` for what was found, up to ``recall_sweep_max_starts`` runs; the rest waits its turn.

    The run's id is the recording's, so no two are ever started. A run that failed is cleared and tried again after an
    hour, then two, up to a day; in the last six hours before the recording expires by every sweep. A recording whose
    bot somebody's run is waiting for is left to that run.

    :param found: what :class:`RecallFindRecordingsOperator` returned (templated).
    :return: ``counts`` of every kind, and up to 80 ids of each.
    """

    template_fields: Sequence[str] = ("found",)
    ui_color = "#e6f4ea"

    def __init__(self, *, found: Mapping[str, Any], **kwargs: Any) -> None:
        kwargs.setdefault("retry_policy", RecallRetryPolicy())
        kwargs.setdefault("inlets", [RECALL_MEETINGS])
        super().__init__(**kwargs)
        self.found = found

    def execute(self, context: Context) -> dict[str, Any]:
        """Start the runs, and say what became of everything that was found."""
        with error_reported(context):
            is_plan = bool(context["params"].get("plan"))
            most = settings.SWEEP_MAX_STARTS.get()
            rows = context["asset_state_store"][RECALL_MEETINGS]
            runs = Runs()
            wanted = self._wanted(context)
            done: dict[str, Any] = {kind: [] for kind in ("started", "running", "paused", "left_for_next_time")}
            done["left_out"] = {}
            planned = []
            for one in wanted:
                recording_id = one["recording_id"]
                if len(done["started"]) >= most:
                    done["left_for_next_time"].append(recording_id)
                    continue
                kind, why = self._deal_with(one, runs, rows, is_plan)
                if kind == "left_out":
                    done[kind][recording_id] = why
                else:
                    done[kind].append(recording_id)
                if kind == "started":
                    planned.append(one)
            if is_plan:
                done["would_start"] = done.pop("started")
            summary = _summary(done, self.found)
            self.log.info("%s", _table(summary))
            if not is_plan and dates_of(context) is None:
                for kind, number in summary["counts"].items():
                    metrics.SWEEP.set(number, kind=kind)
            if is_plan:
                summary["plan"] = planned[:MOST_IDS]
                for one in planned:
                    self.log.info("Would start %s", ", ".join(f"{key} {each}" for key, each in one.items()))
            return summary

    def _wanted(self, context: Context) -> list[dict[str, Any]]:
        keys = [f"{WANTED_KEY}_{number}" for number in range(self.found["rows"])]
        pulled = [context["ti"].xcom_pull(task_ids=sorted(self.upstream_task_ids), key=key) for key in keys]
        return [one for rows in pulled for row in rows or () for one in row]

    def _deal_with(self, one: Mapping[str, Any], runs: Runs, rows: Any, is_plan: bool) -> tuple[str, str | None]:
        """Start one recording's run if nothing speaks against it; say what came of it."""
        recording_id = one["recording_id"]
        for subject in filter(None, (one["bot_id"], recording_id)):
            waiting = rows.get(subject)
            if isinstance(waiting, str):
                if runs.is_under_way(waiting):
                    return "running", None
                if not is_plan:
                    rows.delete(subject)
        note = "Started by the sweep." + (f" Recall deletes it at {one['expires_at']}." if one["expires_at"] else "")
        if not is_plan and runs.start(recording_id, note):
            return "started", None
        run = runs.find(awaited.run_id_of(recording_id))
        if run is None:
            return "started", None
        if run.state in ("queued", "running"):
            return "running", None
        left_out = runs.left_out(run.run_id) if run.state == "success" else None
        if left_out is not None:
            from include.provider.filters import Filters

            if left_out["filters"] == Filters.read().mark:
                return "left_out", left_out["reason"]
        elif not _is_due(run, one["expires_at"]):
            return "paused", None
        if not is_plan:
            runs.again(recording_id)
        return "started", None


class Runs:
    """The runs of ``archive_meeting``, through the task's supervisor."""

    def start(self, recording_id: str, note: str) -> bool:
        """Start a recording's run; ``False`` if there is one already, in whatever state."""
        from airflow.sdk.execution_time.comms import ErrorResponse, TriggerDagRun

        answer = self._ask(
            TriggerDagRun(
                dag_id=DAG_ID,
                run_id=awaited.run_id_of(recording_id),
                conf=conf_of(recording_id),
                note=note,
            )
        )
        return not isinstance(answer, ErrorResponse)

    def again(self, recording_id: str) -> None:
        """Clear a recording's run, which is over, so that it begins anew."""
        from airflow.sdk.execution_time.comms import TriggerDagRun

        run_id = awaited.run_id_of(recording_id)
        self._ask(TriggerDagRun(dag_id=DAG_ID, run_id=run_id, conf=conf_of(recording_id), reset_dag_run=True))

    def find(self, run_id: str) -> Any:
        """Return a run, or ``None``."""
        from airflow.sdk.execution_time.comms import GetDagRun, GetDRCount

        # Asking for one that isn't there would be an error in the task's log.
        if not self._ask(GetDRCount(dag_id=DAG_ID, run_ids=[run_id])).count:
            return None
        return self._ask(GetDagRun(dag_id=DAG_ID, run_id=run_id))

    def is_under_way(self, run_id: str) -> bool:
        """Tell whether a run is queued or running."""
        from airflow.sdk.execution_time.comms import GetDRCount

        states = ["queued", "running"]
        return bool(self._ask(GetDRCount(dag_id=DAG_ID, run_ids=[run_id], states=states)).count)

    def left_out(self, run_id: str) -> dict[str, str] | None:
        """Return why the filters ended a run, and which filters; ``None`` if they didn't."""
        from airflow.sdk.execution_time.xcom import XCom

        from include.provider.sensors import LEFT_OUT_KEY

        found: dict[str, str] | None = XCom.get_one(
            run_id=run_id, key=LEFT_OUT_KEY, dag_id=DAG_ID, task_id="wait_for_recordings"
        )
        return found

    def _ask(self, message: Any) -> Any:
        from airflow.sdk.execution_time.task_runner import SUPERVISOR_COMMS

        return SUPERVISOR_COMMS.send(message)


def _is_due(run: Any, expires_at: str | None) -> bool:
    """Tell whether a run that is over without a manifest may be tried again."""
    now = datetime.fromtimestamp(time.time(), timezone.utc)
    if run.end_date is None:
        return True
    if expires_at is not None and datetime.fromisoformat(expires_at) - now < LAST_HOURS:
        return True
    pause: timedelta = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(run.clear_number or 0, 10))
    return bool(now >= run.end_date + pause)


def _handed_on(found: Found, size: Mapping[str, Any] | None) -> dict[str, Any]:
    recording = found.recording
    return {
        "recording_id": recording.id,
        "bot_id": recording.bot_id,
        "expires_at": None if recording.expires_at is None else recording.expires_at.isoformat(timespec="seconds"),
        "minutes": None if found.minutes is None else round(found.minutes, 1),
        **(size or {}),
    }


def _chunks(wanted: Sequence[Found]) -> list[Sequence[Found]]:
    return [wanted[start : start + WANTED_PER_ROW] for start in range(0, len(wanted), WANTED_PER_ROW)]


def _kinds(finding: Finding) -> dict[str, Any]:
    return {
        "processing": finding.processing,
        "archived": finding.archived,
        "failed_at_source": finding.failed,
        "without_audio": finding.without_audio,
        "gone": finding.gone,
        "left_out": finding.left_out,
        "expiring": finding.expiring,
        "expired_before_archive": finding.lost,
    }


def _summary(kinds: Mapping[str, Any], before: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Count the ids of each kind and name the first of them; add to what an earlier step has counted."""
    counts, named = dict((before or {}).get("counts", {})), dict((before or {}).get("ids", {}))
    for kind, some in kinds.items():
        counts[kind] = counts.get(kind, 0) + len(some)
        if isinstance(some, dict):
            named[kind] = dict(list({**named.get(kind, {}), **some}.items())[:MOST_IDS])
        else:
            named[kind] = [*named.get(kind, ()), *some][:MOST_IDS]
    known = [kind for kind in ORDER if kind in counts]
    return {"counts": {kind: counts[kind] for kind in known}, "ids": {kind: named[kind] for kind in known}}


def _table(summary: Mapping[str, Any]) -> str:
    """Return the summary as a person reads it in the log."""
    lines = [f"{'recordings':>10}  what"]
    for kind, count in summary["counts"].items():
        if count:
            lines.append(f"{count:>10}  {_MEANING[kind]}{_examples(summary['ids'][kind])}")
    return "\n".join(lines) if len(lines) > 1 else "no recordings in this window"


def _examples(ids: Sequence[str] | Mapping[str, Any]) -> str:
    """Return the first three ids, with the reason where one is known."""
    reasons = ids if isinstance(ids, dict) else {}
    shown = [f"{one} ({reasons[one]})" if isinstance(reasons.get(one), str) else one for one in list(ids)[:3]]
    return f": {', '.join(shown)}{', …' if len(ids) > 3 else ''}"


def _moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text.replace("Z", "+00:00"))
