"""Operators: send a bot, list participants' audio, archive a participant's audio, settle the recording.

Everything that costs an import is imported when a task runs: a Dag file is parsed anew by every mapped task.
"""

from __future__ import annotations

import hashlib
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, cast

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowRuntimeError, AirflowSkipException

from include.errors import CodedError
from include.provider import awaited, metrics, settings
from include.provider.assets import RECORDING_ARCHIVED
from include.provider.errors import ERROR_KEY, RecallRetryPolicy, UnsupportedPlatformError, error_reported
from include.provider.hook import RecallHook, folder_of, get_store
from include.provider.links import ArchiveFolderLink, RecallBotLink, folder_url
from include.provider.params import given

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from airflow.providers.openlineage.extractors import OperatorLineage
    from airflow.sdk import Context

    from include.archive.copy import Stop
    from include.provider.transfer import Batch, Ends, Settled
    from include.recall.client import RecallClient
    from include.recall.models import AudioArtifact, Bot

REPLICATION_SECONDS = 60.0
"""How long Recall may answer 404 for a bot that it has just made."""

LABEL_SECONDS = 3.0
"""How long a mapped task works before its label is told, which otherwise goes with the news that it has ended."""


class RecallCreateBotOperator(BaseOperator):
    """Send a bot into a meeting, exactly one, whatever fails.

    It asks for separate audio, an explicit retention and a variant for the meeting's platform. The Idempotency-Key is
    saved in the task state store before the first request and also put on the bot as metadata, so that a retry, a
    killed worker or a cleared task finds the bot that was sent. Two runs for the same meeting and time share one bot
    as long as it is at work. Killing the task never pulls a bot out of a meeting: there is no ``on_kill``.

    :param meeting_url: where to send the bot; empty skips the task (templated).
    :param bot_name: the name shown in the meeting, 1 to 100 characters; Recall's default when empty (templated).
    :param join_at: when to join, ISO 8601 with a time zone; at once when empty (templated).
    :param recall_conn_id: Airflow connection of type ``recall``.
    :param audio_formats: separate audio to ask for: ``raw`` (default), ``mp3``, or both.
    :param retention_hours: how long Recall keeps the media; default: Variable ``recall_retention_hours``.
    :param variant: bot variant by platform, in place of the default (``native`` on Zoom, ``web_4_core`` elsewhere).
    :param no_bots_timeout: seconds to keep asking while Recall has no bot to spare (507), 600 by default.
    :return: the bot's id.
    """

    template_fields: Sequence[str] = ("meeting_url", "bot_name", "join_at")
    operator_extra_links = (RecallBotLink(),)
    ui_color = "#e6f4ea"

    def __init__(
        self,
        *,
        meeting_url: str,
        bot_name: str | None = None,
        join_at: str | None = None,
        recall_conn_id: str = RecallHook.default_conn_name,
        audio_formats: Sequence[str] = ("raw",),
        retention_hours: int | None = None,
        variant: Mapping[str, str] | None = None,
        no_bots_timeout: float = 600.0,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("retry_policy", RecallRetryPolicy())
        super().__init__(**kwargs)
        self.meeting_url = meeting_url
        self.bot_name = bot_name
        self.join_at = join_at
        self.recall_conn_id = recall_conn_id
        self.audio_formats = audio_formats
        self.retention_hours = retention_hours
        self.variant = variant
        self.no_bots_timeout = no_bots_timeout

    def execute(self, context: Context) -> str:
        """Find the bot that was sent before, or send one."""
        with error_reported(context):
            meeting_url = given(self.meeting_url)
            if meeting_url is None:
                raise AirflowSkipException("no meeting to send a bot into")
            self._refuse_hopeless(meeting_url)
            hook = RecallHook(self.recall_conn_id)
            bot = self._bot_of_this_task(hook.get_conn(), meeting_url, context["task_state_store"])
            self.bot_url = hook.dashboard_url(bot.id)
            self.log.info("Bot %s is on its way", bot.id)
            return bot.id

    def _refuse_hopeless(self, meeting_url: str) -> None:
        from include.recall.support import platform_of, separate_audio_support

        unknown = set(self.audio_formats) - {"raw", "mp3"}
        if unknown or not self.audio_formats:
            raise CodedError(
                f"audio_formats is {list(self.audio_formats)}: ask for raw, mp3 or both, else no audio can be archived",
                code="not_configured",
            )
        platform = platform_of(meeting_url)
        support, reason = separate_audio_support(platform)
        if support == "no":
            raise UnsupportedPlatformError(f"no bot was sent: {platform} has no separate audio. {reason}")
        if support != "yes":
            self.log.warning("Separate audio is uncertain on %s: %s", platform or "this platform", reason)

    def _bot_of_this_task(self, client: RecallClient, meeting_url: str, state: Any) -> Bot:
        if isinstance(sent := state.get("bot_id"), str):
            return self._once_known(client, sent)
        meeting = hashlib.sha256(f"{meeting_url}\n{given(self.join_at) or 'now'}".encode()).hexdigest()
        key = state.get("idempotency_key")
        if isinstance(key, str):
            # An earlier try may have sent the bot and died before it could say so.
            bot = _newest(client.find_bots({"archive_request_id": key}), "archive_request_id", key)
        else:
            bot = _newest(client.find_bots({"archive_meeting": meeting}), "archive_meeting", meeting)
            if bot is None or bot.is_finished:
                # Whoever asks for this meeting at the same moment makes the same key, and so gets the same bot.
                key = _key(meeting, bot.id if bot is not None else "")
                _remember(state, "idempotency_key", key)
                bot = None
        if bot is None:
            bot = self._send(client, meeting_url, meeting, key, state)
        _remember(state, "bot_id", bot.id)
        return self._once_known(client, bot.id)

    def _once_known(self, client: RecallClient, bot_id: str) -> Bot:
        """Fetch a bot of ours. One that was just made may be unknown for a moment, to the tasks that follow as well."""
        from include.recall.errors import RecallNotFoundError

        give_up = time.monotonic() + REPLICATION_SECONDS
        while True:
            try:
                return client.get_bot(bot_id)
            except RecallNotFoundError:
                if time.monotonic() > give_up:
                    raise
            time.sleep(1.0)

    def _send(self, client: RecallClient, meeting_url: str, meeting: str, key: str, state: Any) -> Bot:
        from include.recall.errors import RecallNoBotsError

        give_up = time.monotonic() + self.no_bots_timeout
        while True:
            try:
                return client.create_bot(self._request(meeting_url, meeting, key), idempotency_key=key)
            except RecallNoBotsError as error:
                pause = error.retry_after or 30.0
                if time.monotonic() + pause > give_up:
                    raise
                self.log.info("Recall has no bot to spare, asking again in %.0f s", pause)
                time.sleep(pause)
                # Recall replays a remembered 507 for the old key; no bot exists under it.
                key = _key(key, "507")
                _remember(state, "idempotency_key", key)

    def _request(self, meeting_url: str, meeting: str, key: str) -> dict[str, Any]:
        from include.recall.support import default_variant

        hours = settings.RETENTION_HOURS.get() if self.retention_hours is None else self.retention_hours
        metadata = {"archive_meeting": meeting, "archive_request_id": key}
        request: dict[str, Any] = {
            "meeting_url": meeting_url,
            "metadata": metadata,
            "variant": dict(self.variant) if self.variant is not None else default_variant(),
            "recording_config": {
                **{f"audio_separate_{audio_format}": {} for audio_format in self.audio_formats},
                "participant_events": {},
                "meeting_metadata": {},
                "video_mixed_mp4": None,
                "retention": {"type": "timed", "hours": hours},
                "metadata": metadata,
            },
        }
        for name in ("bot_name", "join_at"):
            if value := given(getattr(self, name)):
                request[name] = value
        return request


def _newest(bots: Iterable[Bot], name: str, value: str) -> Bot | None:
    """Return the youngest bot that really carries the metadata; the filter is the server's word only."""
    mine = [bot for bot in bots if bot.metadata.get(name) == value]
    return max(mine, key=lambda bot: (not bot.is_finished, bot.status.created_at if bot.status else ""), default=None)


def _key(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _remember(state: Any, name: str, value: str) -> None:
    from airflow.sdk.execution_time.context import NEVER_EXPIRE

    state.set(name, value, retention=NEVER_EXPIRE)


class RecallListParticipantAudioOperator(BaseOperator):
    """List the audio of every participant of some recordings, and group it into batches to map over.

    Every artifact and every part is listed. Up to 32 participants, each is a batch of its own; above that at least
    eight share one, and more from 320 participants on, which keeps to about 40 batches. A recording that is settled,
    with all its objects in place, yields no batch and costs no call.

    :param recordings: what :class:`~include.provider.sensors.RecallRecordingSensor` returned.
    :param recall_conn_id: Airflow connection of type ``recall``.
    :param aws_conn_id: connection for an ``s3://`` archive.
    :return: batches: ``recording_id``, ``folder``, ``artifact_ids``, ``participant_ids``, ``pcm``. No names, no links.
    """

    template_fields: Sequence[str] = ("recordings",)
    operator_extra_links = (RecallBotLink(), ArchiveFolderLink())
    ui_color = "#e8f0fe"

    def __init__(
        self,
        *,
        recordings: Sequence[Mapping[str, Any]],
        recall_conn_id: str = RecallHook.default_conn_name,
        aws_conn_id: str = "aws_default",
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("retry_policy", RecallRetryPolicy())
        super().__init__(**kwargs)
        self.recordings = recordings
        self.recall_conn_id = recall_conn_id
        self.aws_conn_id = aws_conn_id

    def execute(self, context: Context) -> list[dict[str, Any]]:
        """List what is not archived yet."""
        from include.archive.audio import PcmFormat
        from include.provider.sealing import SEALED_KEY, seal
        from include.provider.transfer import already_settled, plan

        with error_reported(context):
            ends = open_ends(self.recall_conn_id, self.aws_conn_id)
            wanted: list[tuple[str, str]] = []
            for recording in self.recordings:
                recording_id, folder = recording["recording_id"], folder_of(recording)
                if already_settled(ends.store, folder):
                    self.log.info("Recording %s is archived already", recording_id)
                elif recording["problem"] is None:
                    wanted.append((recording_id, folder))
                else:
                    self.log.warning(
                        "Recording %s can't be archived: %s", recording_id, recording["problem"]["message"]
                    )
            self._leave_links(ends)
            if not wanted:
                return []
            artifact_ids = {one["recording_id"]: one.get("artifact_ids", ()) for one in self.recordings}
            known = unsealed(self, context)
            pcm = PcmFormat(
                rate=settings.PCM_RATE.get(), width=settings.PCM_WIDTH.get(), channels=settings.PCM_CHANNELS.get()
            )
            batches = plan(ends, wanted, pcm=pcm, artifact_ids=artifact_ids, known=known)
            if batches and (sealed := seal(known.values())):
                context["ti"].xcom_push(key=SEALED_KEY, value=sealed)
            self.log.info("%d recordings to archive, in %d batches", len(wanted), len(batches))
            return [batch.to_dict() for batch in batches]

    def _leave_links(self, ends: Ends) -> None:
        if self.recordings:
            self.folder_url = folder_url(ends.store, folder_of(self.recordings[0]))
            if bot_id := self.recordings[0].get("bot_id"):
                self.bot_url = RecallHook(self.recall_conn_id).dashboard_url(bot_id)


class RecallArchiveParticipantOperator(BaseOperator):
    """Archive the audio of one participant of one recording (above 32 participants: of several).

    Each part is streamed from Recall into the archive with flat memory, checked, and never written twice. One part that
    fails doesn't keep the others from being stored. Map it with ``map_index_template="{{ task_label }}"`` and the
    task instances carry the participants' names.

    :param batch: one of the batches that :class:`RecallListParticipantAudioOperator` returned (templated).
    :param recall_conn_id: Airflow connection of type ``recall``.
    :param aws_conn_id: connection for an ``s3://`` archive.
    :return: a receipt for each part, for :class:`RecallSettleRecordingOperator`.
    """

    template_fields: Sequence[str] = ("batch",)
    operator_extra_links = (ArchiveFolderLink(),)
    ui_color = "#e6f4ea"

    def __init__(
        self,
        *,
        batch: Mapping[str, Any],
        recall_conn_id: str = RecallHook.default_conn_name,
        aws_conn_id: str = "aws_default",
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("retry_policy", RecallRetryPolicy())
        super().__init__(**kwargs)
        self.batch = batch
        self.recall_conn_id = recall_conn_id
        self.aws_conn_id = aws_conn_id
        self._stop: Stop | None = None
        self._copying = False
        self._archived: tuple[Ends, Batch, list[dict[str, Any]]] | None = None

    def execute(self, context: Context) -> list[dict[str, Any]]:
        """Copy the batch's parts."""
        from include.archive.copy import Stop
        from include.provider.transfer import Batch, archive, fit_for_xcom

        self._stop = stop = Stop()
        with error_reported(context), naming(context) as show:
            ends = open_ends(self.recall_conn_id, self.aws_conn_id)
            batch = Batch(**self.batch)
            self.folder_url = folder_url(ends.store, batch.folder)
            self._copying = True
            try:
                receipts = archive(
                    ends,
                    batch,
                    stop=stop,
                    show=show,
                    done=metrics.part_done,
                    known=unsealed(self, context),
                )
            finally:
                self._copying = False
            self._archived = ends, batch, receipts
            return fit_for_xcom(receipts)

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage[Any, Any]:
        """Tell OpenLineage what was copied, see :mod:`include.provider.lineage`."""
        from include.provider.lineage import archived, to_openlineage

        # Airflow tells of the task instance as well, whose label is the participants' names. It is stored by now.
        task_instance.rendered_map_index = None
        return to_openlineage(self._archived and archived(*self._archived))

    def on_kill(self) -> None:
        """End the copy, which takes back what it began and fails.

        :raises StoppedError: out of whatever the copy is waiting for, since Airflow calls this from a signal handler
            and kills the task a few seconds later, long before a silent source is given up.
        """
        from include.archive.errors import StoppedError

        if self._stop is not None:
            self._stop.set()
        if self._copying and threading.current_thread() is threading.main_thread():
            self._copying = False
            raise StoppedError("told to stop")


class RecallSettleRecordingOperator(BaseOperator):
    """Write one recording's manifest, last and once, or say what is owed.

    Map it over the sensor's recordings, with ``trigger_rule="all_done"``: it re-reads what the source lists and what
    the store holds, whatever the tasks before it say. With ``outlets=[RECORDING_ARCHIVED]`` it emits one asset event
    per recording, when the manifest is written; a retry emits it again rather than never. With
    ``inlets=[RECALL_MEETINGS]`` it takes back what the sensor noted there (:mod:`include.provider.awaited`).

    :param recording: one of the recordings that the sensor returned (templated).
    :param archived: the receipts of the mapped tasks that succeeded (templated).
    :param recall_conn_id: Airflow connection of type ``recall``.
    :param aws_conn_id: connection for an ``s3://`` archive.
    :return: ``recording_id``, ``outcome``, ``folder``, ``manifest_uri``, ``parts``, ``bytes``.
    """

    template_fields: Sequence[str] = ("recording", "archived")
    operator_extra_links = (RecallBotLink(), ArchiveFolderLink())
    ui_color = "#fef7e0"

    def __init__(
        self,
        *,
        recording: Mapping[str, Any],
        archived: Sequence[Sequence[Mapping[str, Any]]],
        recall_conn_id: str = RecallHook.default_conn_name,
        aws_conn_id: str = "aws_default",
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("retry_policy", RecallRetryPolicy())
        super().__init__(**kwargs)
        self.recording = recording
        self.archived = archived
        self.recall_conn_id = recall_conn_id
        self.aws_conn_id = aws_conn_id
        self._settled: tuple[Ends, Settled] | None = None

    def execute(self, context: Context) -> dict[str, Any]:
        """Settle the recording, or fail with what it lacks."""
        from include.archive.manifest import load
        from include.provider.notices import notify_gaps
        from include.provider.transfer import already_settled, settle

        with error_reported(context):
            ends = open_ends(self.recall_conn_id, self.aws_conn_id)
            recording_id, folder = self.recording["recording_id"], folder_of(self.recording)
            bot_id, problem = self.recording.get("bot_id"), self.recording.get("problem")
            show_label(context, recording_id)
            self.folder_url = folder_url(ends.store, folder)
            if bot_id:
                self.bot_url = RecallHook(self.recall_conn_id).dashboard_url(bot_id)
            settled = already_settled(ends.store, folder)
            if settled is None and problem is not None:
                raise CodedError(problem["message"], code=problem["code"])
            if settled is None or context["ti"].try_number > 1:
                settled = settled or settle(
                    ends,
                    recording_id,
                    folder,
                    bot_id=bot_id,
                    receipts=[receipt for batch in self.archived[:] for receipt in batch],  # [:] asks once for all
                    reasons=self._reasons(context),
                    artifact_ids=self.recording.get("artifact_ids", ()),
                    keep_documents=settings.KEEP_DOCUMENTS.get(),
                )
                metrics.MEETINGS.add(outcome=settled.outcome)
                context["outlet_events"][RECORDING_ARCHIVED].extra = settled.to_dict()
                if settled.outcome == "archived_with_gaps" and (manifest := load(ends.store, folder)) is not None:
                    notify_gaps(context, manifest, self.folder_url)
            else:
                self.outlets = []  # nothing new, so nothing to announce
            self._settled = ends, settled
            awaited.forget(context, bot_id, recording_id)
            self.log.info("Recording %s: %s, %d parts in %s", recording_id, settled.outcome, settled.parts, folder)
            return settled.to_dict()

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage[Any, Any]:
        """Tell OpenLineage what is settled, see :mod:`include.provider.lineage`."""
        from include.provider.lineage import settled, to_openlineage

        return to_openlineage(self._settled and settled(*self._settled))

    def _reasons(self, context: Context) -> dict[tuple[str, str | None], str]:
        """Return the code with which each part, or each whole artifact, failed in the tasks before."""
        reports = context["ti"].xcom_pull(task_ids=sorted(self.upstream_task_ids), key=ERROR_KEY)
        return {
            (one["artifact_id"], one.get("part_id")): one["code"]
            for report in reports or ()
            if report
            for one in report.get("owed", ())
        }


def open_ends(recall_conn_id: str, aws_conn_id: str) -> Ends:
    """Open the two ends of a transfer from Airflow's connections."""
    from include.provider.transfer import Ends

    hook = RecallHook(recall_conn_id)
    return Ends(client=hook.get_conn(), media=hook.get_media(), store=get_store(aws_conn_id))


def unsealed(task: BaseOperator, context: Context) -> dict[str, AudioArtifact]:
    """Return the artifacts whose links the tasks before have left sealed."""
    from include.provider.sealing import SEALED_KEY, unseal

    return unseal(context["ti"].xcom_pull(task_ids=sorted(task.upstream_task_ids), key=SEALED_KEY) or ())


@contextmanager
def naming(context: Context) -> Iterator[Callable[[str], None]]:
    """Give what names the mapped task instance, for a task that may be over before anybody has read its name.

    ``map_index_template="{{ task_label }}"`` renders the name at the end, and Airflow tells it with the outcome. Only a
    task that is still at work after :data:`LABEL_SECONDS`, or fails, costs a call to the API server for it.
    """
    told = ""

    def tell() -> None:
        nonlocal told
        label = str(context.get("task_label", ""))
        if label != told:
            with suppress(AirflowRuntimeError, OSError, EOFError):  # nothing to fail a copy for
                _tell(label)
                told = label

    timer = threading.Timer(LABEL_SECONDS, tell)
    timer.start()
    try:
        yield lambda label: _name(context, label)
    except BaseException:
        tell()  # Airflow leaves it out where the task is to be tried again
        raise
    finally:
        timer.cancel()
        timer.join()


def show_label(context: Context, label: str) -> None:
    """Name the mapped task instance now; at the end Airflow renders the same, as :func:`naming` says."""
    if cast("Any", context["ti"]).rendered_map_index != label:
        _tell(label)
    _name(context, label)


def _tell(label: str) -> None:
    from airflow.sdk.execution_time.comms import SetRenderedMapIndex
    from airflow.sdk.execution_time.task_runner import SUPERVISOR_COMMS

    SUPERVISOR_COMMS.send(SetRenderedMapIndex(rendered_map_index=label))


def _name(context: Context, label: str) -> None:
    """Set what ``{{ task_label }}`` renders, and what Airflow takes for told: it tells only what differs from that.

    It may be names, so it is left out where Airflow logs the whole task instance, as it does with each result.
    """
    cast("dict[str, Any]", context)["task_label"] = label
    ti: Any = context["ti"]
    ti.rendered_map_index = label
    type(ti).model_fields["rendered_map_index"].repr = False
