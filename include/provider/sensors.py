"""The sensor that waits until a meeting's separate audio can be fetched."""

from __future__ import annotations

import time
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.sdk import BaseSensorOperator, PokeReturnValue
from airflow.sdk.exceptions import AirflowSkipException

from include.errors import CodedError
from include.provider import awaited, settings
from include.provider.assets import RECALL_MEETINGS
from include.provider.errors import BadParamsError, RecallRetryPolicy, error_reported
from include.provider.hook import RecallHook, folder_of, get_store
from include.provider.links import RecallBotLink
from include.provider.metrics import WAIT
from include.provider.params import given
from include.provider.sealing import SEALED_KEY, sealed_links
from include.provider.triggers import STATUS_KEY, RecallRecordingTrigger

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from airflow.sdk import Context

    from include.recall.models import Recording
    from include.recall.watch import Look

LEFT_OUT_KEY = "left_out"
"""XCom key under which a run that the filters end says why, and which filters these were."""

AUDIO_WAIT_STARTED_KEY = "audio_wait_started_at"


class RecallRecordingSensor(BaseSensorOperator):
    """Wait until every recording of a bot is settled and its separate audio is ready.

    Level-triggered: what is already finished succeeds at the first look, without a trip through the triggerer.
    Otherwise the task defers (or is rescheduled, with ``deferrable=False, mode="reschedule"``) and holds no worker
    slot. Where the meeting is shows in the task's XCom ``bot_status`` and in its log.

    Ends: success, with the list of recordings as XCom; or one of the codes ``not_recorded``, ``bot_fatal``,
    ``not_configured``, ``media_failed``, ``media_deleted``, ``media_expired``, ``media_missing``, ``media_timeout``,
    ``wait_timeout``. A recording that can't be had doesn't keep the others from being archived: it is passed on with
    its problem, and the task fails only where no recording is left, and none is archived already.

    In a run that the sweep or a webhook started, the deployment's filters (:mod:`include.provider.filters`) may leave
    the recording out: the task is skipped, and with it the rest of the run. It is skipped instead of ``not_configured``
    there, too.

    :param bot_id: the bot whose recordings are waited for (templated).
    :param recording_id: one recording alone; then ``bot_id`` is not needed (templated).
    :param recall_conn_id: Airflow connection of type ``recall``, ``recall_default`` by default.
    :param aws_conn_id: connection for an ``s3://`` archive, looked into only where the source has nothing left.
    :param join_at: when the bot joins, ISO 8601; the wait's deadline counts from then (templated).
    :param media_timeout: seconds that separate audio may take once its recording is finished; default: Variable
        ``recall_media_timeout_seconds``.
    :param wait_timeout: seconds for the whole wait; default: Variable ``recall_wait_timeout_seconds``.
    :param deferrable: wait in the triggerer (default).
    :return: a list of ``{"recording_id", "bot_id", "created_at", "problem", "artifact_ids"}``. The links that the last
        look brought go into a row of their own, encrypted (see :mod:`include.provider.sealing`).
    """

    template_fields: Sequence[str] = ("bot_id", "recording_id", "join_at")
    operator_extra_links = (RecallBotLink(),)
    ui_color = "#e8f0fe"

    def __init__(
        self,
        *,
        bot_id: str | None = None,
        recording_id: str | None = None,
        recall_conn_id: str = RecallHook.default_conn_name,
        aws_conn_id: str = "aws_default",
        join_at: str | None = None,
        media_timeout: float | None = None,
        wait_timeout: float | None = None,
        deferrable: bool = True,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("retry_policy", RecallRetryPolicy())
        # Our own deadline ends the wait with a code; Airflow's must never come first.
        kwargs.setdefault("timeout", timedelta(days=365))
        kwargs.setdefault("inlets", [RECALL_MEETINGS])  # where it says what it waits for
        super().__init__(**kwargs)
        self.bot_id = bot_id
        self.recording_id = recording_id
        self.recall_conn_id = recall_conn_id
        self.aws_conn_id = aws_conn_id
        self.join_at = join_at
        self.media_timeout = media_timeout
        self.wait_timeout = wait_timeout
        self.deferrable = deferrable
        self._stage = ""

    def execute(self, context: Context) -> Any:
        """Look once; return if it is over, else wait in the triggerer or by rescheduling."""
        with error_reported(context), _skipped_where_nobody_asked(context):
            self._check()
            if self.bot_id is not None:
                self.bot_url = RecallHook(self.recall_conn_id).dashboard_url(self.bot_id)
            with awaited.waiting_for(context, self._subject):
                if not self.deferrable:
                    return super().execute(context)
                started_at = self._wait_started(context)
                recordings = self._look_and_conclude(context, started_at)
            if recordings is None:
                self._wait_in_triggerer(started_at)
            return recordings

    def poke(self, context: Context) -> bool | PokeReturnValue:
        """Look once, for the reschedule and poke modes."""
        recordings = self._look_and_conclude(context, self._wait_started(context))
        return False if recordings is None else PokeReturnValue(is_done=True, xcom_value=recordings)

    def resume(self, context: Context, event: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        """Take the trigger's one event; anything unknown in it is a failure, never a success."""
        with error_reported(context), _skipped_where_nobody_asked(context):
            self._check()
            with awaited.waiting_for(context, self._subject, announce=False):
                return self._take(context, event)

    def _take(self, context: Context, event: Any) -> list[dict[str, Any]]:
        if not isinstance(event, dict):
            raise CodedError("the trigger came back without an event", code="bad_event", permanent=False)
        if isinstance(error := event.get("error"), dict):
            return self._lost(CodedError(str(error.get("message")), code=str(error.get("code"))))
        recordings = event.get("recordings")
        if not isinstance(recordings, list):
            raise CodedError("the trigger came back with an unknown event", code="bad_event", permanent=False)
        WAIT.took(event.get("waited") or 0.0)
        self._leave_unwanted(context)
        self._hand_on(context, event.get("sealed"))
        return self._conclude(recordings)

    def _leave_unwanted(self, context: Context, recording: Recording | None = None) -> None:
        """End a run that nobody asked for, and whose recording the deployment's filters leave out.

        :param recording: as it was just read, which saves two calls.
        :raises AirflowSkipException: it is left out.
        """
        if self.recording_id is None or not awaited.is_automatic(context):
            return
        from include.provider.filters import Filters

        if not (filters := Filters.read()):
            return
        from include.recall.errors import RecallNotFoundError

        hook = RecallHook(self.recall_conn_id)
        if recording is None:
            recording = hook.get_conn().get_recording(self.recording_id)
            if recording.bot_id is not None:
                with suppress(RecallNotFoundError):
                    recording = recording.of(hook.get_conn().get_bot(recording.bot_id))
        link = recording.documents.get("participants")
        reason = filters.reason_to_leave_out(recording, lambda: hook.get_media().get_participants(link) if link else ())
        if reason is not None:
            context["ti"].xcom_push(key=LEFT_OUT_KEY, value={"reason": reason, "filters": filters.mark})
            context["ti"].xcom_push(key=STATUS_KEY, value=f"left out by {reason}")
            raise AirflowSkipException(f"left out by {reason}")

    def _wait_in_triggerer(self, started_at: float) -> NoReturn:
        wait_timeout = self._wait_timeout()
        self.defer(
            trigger=RecallRecordingTrigger(
                recall_conn_id=self.recall_conn_id,
                bot_id=self.bot_id,
                recording_id=self.recording_id,
                poll_interval=settings.POLL_SECONDS.get(),
                media_timeout=self._media_timeout(),
                wait_timeout=wait_timeout,
                started_at=started_at,
                request_share=settings.REQUEST_SHARE.get(),
                stage=self._stage,
                seen_at=time.time(),
            ),
            method_name="resume",
            # The trigger ends itself with a code; this is for one that was lost.
            timeout=timedelta(seconds=max(0.0, started_at + wait_timeout - time.time()) + 3600),
        )

    @property
    def _subject(self) -> str:
        return self.bot_id or self.recording_id or ""

    def _check(self) -> None:
        self.bot_id = given(self.bot_id)
        self.recording_id = given(self.recording_id)
        if self.bot_id is None and self.recording_id is None:
            raise BadParamsError("nothing to wait for: give meeting_url, bot_id or recording_id")

    def _look_and_conclude(self, context: Context, started_at: float) -> list[dict[str, Any]] | None:
        try:
            seen = self._look(context, started_at)
        except CodedError as error:
            if not error.permanent:
                raise
            return self._lost(error)
        if seen is None:
            return None
        WAIT.took(time.time() - started_at)
        self._leave_unwanted(context, seen.recordings[0].source if seen.recordings else None)
        self._hand_on(context, sealed_links(seen))
        return self._conclude([one.to_dict() for one in seen.recordings])

    def _hand_on(self, context: Context, sealed: Any) -> None:
        """Leave the links that the last look brought, so that the next task needn't ask for them."""
        if sealed:
            context["ti"].xcom_push(key=SEALED_KEY, value=sealed)

    def _look(self, context: Context, started_at: float) -> Look | None:
        from include.recall.watch import give_up_late, look

        seen = look(RecallHook(self.recall_conn_id).get_conn(), bot_id=self.bot_id, recording_id=self.recording_id)
        self._stage = seen.stage
        self.log.info("The meeting is at: %s", seen.stage)
        context["ti"].xcom_push(key=STATUS_KEY, value=seen.stage)
        return give_up_late(
            seen,
            waited=time.time() - started_at,
            wait_timeout=self._wait_timeout(),
            audio_waited=self._audio_waited(context) if seen.waits_for_audio and not self.deferrable else 0.0,
            media_timeout=self._media_timeout(),
        )

    def _conclude(self, recordings: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the recordings unless all are beyond saving and some are not archived either."""
        if bot_id := self.bot_id or next((one["bot_id"] for one in recordings if one.get("bot_id")), None):
            self.bot_url = RecallHook(self.recall_conn_id).dashboard_url(bot_id)
        if all(recording.get("problem") for recording in recordings):
            for recording in recordings:
                if not self._is_archived(recording):
                    problem = recording["problem"]
                    raise CodedError(str(problem["message"]), code=str(problem["code"]))
        return recordings

    def _lost(self, error: CodedError) -> list[dict[str, Any]]:
        """Return the recording if it is archived, whatever has become of its source; else raise the error."""
        if self.recording_id is not None:
            from include.archive.manifest import find

            store = get_store(self.aws_conn_id)
            folder = find(store, self.recording_id)
            if folder is not None:
                self.log.warning("%s. Recording %s is archived, so this is passed over", error, self.recording_id)
                problem = {"code": error.code, "message": error.message}
                return [{"recording_id": self.recording_id, "bot_id": None, "folder": folder, "problem": problem}]
        raise error

    def _is_archived(self, recording: dict[str, Any]) -> bool:
        from include.archive.manifest import load

        return load(get_store(self.aws_conn_id), folder_of(recording)) is not None

    def _media_timeout(self) -> float:
        return settings.MEDIA_TIMEOUT_SECONDS.get() if self.media_timeout is None else self.media_timeout

    def _wait_timeout(self) -> float:
        return settings.WAIT_TIMEOUT_SECONDS.get() if self.wait_timeout is None else self.wait_timeout

    def _wait_started(self, context: Context) -> float:
        now = time.time()
        if self.reschedule:
            first: datetime | None = context["ti"].get_first_reschedule_date(context)
            now = first.timestamp() if first is not None else now
        join_at = given(self.join_at)
        return now if join_at is None else max(now, datetime.fromisoformat(join_at.replace("Z", "+00:00")).timestamp())

    def _audio_waited(self, context: Context) -> float:
        """Return the seconds since only audio was outstanding, remembered across reschedules of this try."""
        store = context["task_state_store"]
        key = f"{AUDIO_WAIT_STARTED_KEY}_{context['ti'].try_number}"
        since = store.get(key)
        if not isinstance(since, (int, float)):
            since = time.time()
            store.set(key, since)
        return max(0.0, time.time() - since)


@contextmanager
def _skipped_where_nobody_asked(context: Context) -> Iterator[None]:
    """End a run as skipped that a webhook started for a recording whose bot was never asked for separate audio."""
    try:
        yield
    except CodedError as error:
        if error.code == "not_configured" and awaited.is_automatic(context):
            context["ti"].xcom_push(key=STATUS_KEY, value="no separate audio was asked for")
            raise AirflowSkipException(error.message) from None
        raise
