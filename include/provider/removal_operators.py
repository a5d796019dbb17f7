"""Operators of the Dags that remove something: at the source after proof, or a person from the archive."""

from __future__ import annotations

from datetime import date, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowSkipException

from include.errors import CodedError
from include.provider import settings
from include.provider.errors import BadParamsError, RecallRetryPolicy, error_reported
from include.provider.hook import RecallHook
from include.provider.links import ArchiveFolderLink, folder_url
from include.provider.operators import open_ends, show_label
from include.provider.params import given

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from airflow.providers.openlineage.extractors import OperatorLineage
    from airflow.sdk import Context

    from include.provider.purge import Request
    from include.provider.transfer import Ends

LOOK_BACK = timedelta(days=31)
"""How far back a daily run looks, unless it is told; older recordings are found by a run with dates."""

APPROVAL_WAIT = timedelta(days=2)
"""How long a question stands; after that it counts as refused, and the next run asks anew."""


class RecallFindDeletableOperator(BaseOperator):
    """Find settled recordings that Recall still holds, for :class:`RecallDeleteAtSourceOperator`.

    :param recording_id: this one alone (templated).
    :param created_from: first day, ``YYYY-MM-DD``, of recordings to consider; 31 days back when empty (templated).
    :param created_until: last day; today when empty (templated).
    :param plan: only list what could be deleted; also while deletion is switched off (templated).
    :param recall_conn_id: Airflow connection of type ``recall``.
    :param aws_conn_id: connection for an ``s3://`` archive.
    :return: candidates, see :class:`include.provider.deletion.Candidate`. Under the key ``about``: ``scope``, ``plan``,
        ``summary``, ``left_out`` (how many, by reason).
    """

    template_fields: Sequence[str] = ("recording_id", "created_from", "created_until", "plan")
    ui_color = "#e8f0fe"

    def __init__(
        self,
        *,
        recording_id: str = "",
        created_from: str = "",
        created_until: str = "",
        plan: str | bool = False,
        recall_conn_id: str = RecallHook.default_conn_name,
        aws_conn_id: str = "aws_default",
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("retry_policy", RecallRetryPolicy())
        super().__init__(**kwargs)
        self.recording_id = recording_id
        self.created_from = created_from
        self.created_until = created_until
        self.plan = plan
        self.recall_conn_id = recall_conn_id
        self.aws_conn_id = aws_conn_id

    def execute(self, context: Context) -> list[dict[str, Any]]:
        """Look; change nothing."""
        from include.provider.deletion import AUDIO, find, summary, to_dicts

        with error_reported(context):
            plan, scope = is_true(self.plan), settings.DELETE_AT_SOURCE.get()
            if scope == "off" and not plan:
                raise AirflowSkipException("Variable recall_delete_at_source is off")
            scope = AUDIO if scope == "off" else scope
            now = datetime.now(timezone.utc)
            first, last = days(self.created_from, self.created_until)
            found = find(
                open_ends(self.recall_conn_id, self.aws_conn_id),
                created_after=first or now - LOOK_BACK,
                created_before=last or now,
                settled_before=now - timedelta(hours=settings.DELETE_AFTER_HOURS.get()),
                recording_id=given(self.recording_id),
            )
            for reason, ids in found.left_out.items():
                self.log.info("Left out, %s: %d (%s)", reason, len(ids), ", ".join(ids[:20]))
            for one in found.candidates:
                self.log.info("Recording %s: %d parts, %d bytes", one.recording_id, one.parts, one.bytes)
            candidates = to_dicts(found.candidates)
            about = {
                "scope": scope,
                "plan": plan,
                "summary": summary(candidates, scope),
                "left_out": {reason: len(ids) for reason, ids in found.left_out.items()},
            }
            context["ti"].xcom_push(key="about", value=about)
            return candidates


class RecallApprovalOperator(ApprovalOperator):
    """Ask a person in the Airflow UI whether to go on; skip what follows where there is nothing to ask about.

    :param found: what it is about, as the task before returned it (templated).
    :param about: what that task said of it, ``plan`` among it; comes before the texts that quote it (templated).
    :param always: ask whatever the Variable ``recall_delete_needs_approval`` says.
    :return: what Airflow's operator returns, or nothing where nobody needs to be asked.
    """

    template_fields: Sequence[str] = ("found", "about", *ApprovalOperator.template_fields)

    def __init__(self, *, found: Any, about: Any, always: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.found = found
        self.about = about
        self.always = always

    def execute(self, context: Context) -> Any:
        """Ask, unless that is needless."""
        with error_reported(context):
            if self.about["plan"]:
                raise AirflowSkipException("only planned: nothing is changed")
            if not self.found:
                raise AirflowSkipException("nothing to do")
            if not self.always and not settings.DELETE_NEEDS_APPROVAL.get():
                return None
            return super().execute(context)


class RecallDeleteAtSourceOperator(BaseOperator):
    """Delete one recording's audio at Recall, once its copy is proven; see :mod:`include.provider.deletion`.

    :param candidate: one of those that :class:`RecallFindDeletableOperator` found (templated).
    :param about: what it said of them, for the scope that was agreed to (templated).
    :param approval: what the approving task returned (templated).
    :param recall_conn_id: Airflow connection of type ``recall``.
    :param aws_conn_id: connection for an ``s3://`` archive.
    :return: the fields of :class:`include.provider.deletion.Deleted`.
    """

    template_fields: Sequence[str] = ("candidate", "about", "approval")
    operator_extra_links = (ArchiveFolderLink(),)
    ui_color = "#fce8e6"

    def __init__(
        self,
        *,
        candidate: Mapping[str, Any],
        about: Any,
        approval: Any = None,
        recall_conn_id: str = RecallHook.default_conn_name,
        aws_conn_id: str = "aws_default",
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("retry_policy", RecallRetryPolicy())
        super().__init__(**kwargs)
        self.candidate = candidate
        self.about = about
        self.approval = approval
        self.recall_conn_id = recall_conn_id
        self.aws_conn_id = aws_conn_id
        self._deleted: tuple[Ends, str, str] | None = None

    def execute(self, context: Context) -> dict[str, Any]:
        """Prove, then delete."""
        from dataclasses import asdict

        from include.provider.deletion import delete_at_source

        with error_reported(context):
            ends = open_ends(self.recall_conn_id, self.aws_conn_id)
            self.recording = self.candidate  # what a message about a failure is about
            recording_id, folder = self.candidate["recording_id"], self.candidate["folder"]
            show_label(context, recording_id)
            self.folder_url = folder_url(ends.store, folder)
            scope = self.about["scope"]
            if settings.DELETE_AT_SOURCE.get() != scope:
                raise CodedError(
                    f"recording {recording_id} is not deleted: Variable recall_delete_at_source is no longer {scope}, "
                    "as it was when this was planned",
                    code="delete_disabled",
                )
            if not agreed(self.approval) and (self.approval or settings.DELETE_NEEDS_APPROVAL.get()):
                raise CodedError(f"recording {recording_id} is not deleted: nobody has agreed", code="not_approved")
            deleted = delete_at_source(ends, recording_id, folder, scope=scope, approved_by=approver(self.approval))
            self._deleted = ends, recording_id, folder
            self.log.info("Recording %s is deleted at Recall (%s): %s", recording_id, scope, deleted.receipt_uri)
            return asdict(deleted)

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage[Any, Any]:
        """Tell OpenLineage what is gone at Recall, see :mod:`include.provider.lineage`."""
        from include.provider.lineage import deleted, to_openlineage

        return to_openlineage(self._deleted and deleted(*self._deleted))


class RecallFindPersonOperator(BaseOperator):
    """Find one person's audio in the archive, for :class:`RecallPurgeOperator`.

    Whom it is about stands in the run's params ``email``, ``name``, or ``recording_id`` with ``participant_id``, with
    ``created_from`` and ``created_until``. They are read here and handed to nobody, since they are personal data.

    :param aws_conn_id: connection for an ``s3://`` archive.
    :return: matches, see :class:`include.provider.purge.Match`. Under the key ``about``: ``plan``, ``summary``.
    """

    ui_color = "#e8f0fe"

    def __init__(self, *, aws_conn_id: str = "aws_default", **kwargs: Any) -> None:
        kwargs.setdefault("retry_policy", RecallRetryPolicy())
        super().__init__(**kwargs)
        self.aws_conn_id = aws_conn_id

    def execute(self, context: Context) -> list[dict[str, Any]]:
        """Look; change nothing."""
        from dataclasses import asdict

        from include.provider.hook import get_store
        from include.provider.purge import find, summary

        with error_reported(context):
            params = context["params"]
            first, last = days(params.get("created_from") or "", params.get("created_until") or "")
            matches, unsettled = find(get_store(self.aws_conn_id), request_of(params), first, last)
            for one in matches:
                self.log.info(
                    "Recording %s: participants %s, %d parts", one.recording_id, one.participant_ids, one.parts
                )
            found = [asdict(one) for one in matches]
            text = summary(found, len(unsettled), at_source=bool(params.get("at_source")))
            context["ti"].xcom_push(key="about", value={"plan": bool(params.get("plan")), "summary": text})
            return found


class RecallPurgeOperator(BaseOperator):
    """Remove participants of one recording from the archive; see :mod:`include.provider.purge`.

    :param match: one of those that :class:`RecallFindPersonOperator` found (templated).
    :param approval: what the approving task returned; without, nothing is removed (templated).
    :param at_source: delete the recording's separate audio at Recall too, everyone's (templated).
    :param recall_conn_id: Airflow connection of type ``recall``.
    :param aws_conn_id: connection for an ``s3://`` archive.
    :return: the fields of :class:`include.provider.purge.Purged`.
    """

    template_fields: Sequence[str] = ("match", "approval", "at_source")
    operator_extra_links = (ArchiveFolderLink(),)
    ui_color = "#fce8e6"

    def __init__(
        self,
        *,
        match: Mapping[str, Any],
        approval: Any,
        at_source: str | bool = False,
        recall_conn_id: str = RecallHook.default_conn_name,
        aws_conn_id: str = "aws_default",
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("retry_policy", RecallRetryPolicy())
        super().__init__(**kwargs)
        self.match = match
        self.approval = approval
        self.at_source = at_source
        self.recall_conn_id = recall_conn_id
        self.aws_conn_id = aws_conn_id
        self._purged: tuple[Ends, str, str, list[int]] | None = None

    def execute(self, context: Context) -> dict[str, Any]:
        """Rewrite the manifest, then remove the objects, then what is at the source."""
        from dataclasses import asdict

        from include.provider.purge import Purged, purge, purge_at_source

        with error_reported(context):
            ends = open_ends(self.recall_conn_id, self.aws_conn_id)
            self.recording = self.match  # what a message about a failure is about
            recording_id, folder, whom = (self.match[name] for name in ("recording_id", "folder", "participant_ids"))
            show_label(context, recording_id)
            self.folder_url = folder_url(ends.store, folder)
            if not agreed(self.approval):
                raise CodedError(
                    f"nothing of recording {recording_id} is removed: nobody has agreed", code="not_approved"
                )
            objects = purge(ends.store, recording_id, folder, whom)
            gone = []
            if is_true(self.at_source):
                gone = purge_at_source(ends, recording_id, folder, approved_by=approver(self.approval))
            self.log.info("Recording %s: participants %s removed, %d objects", recording_id, whom, objects)
            self._purged = ends, recording_id, folder, list(whom)
            return asdict(Purged(recording_id, list(whom), objects, gone))

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage[Any, Any]:
        """Tell OpenLineage who is no longer in the archive, see :mod:`include.provider.lineage`."""
        from include.provider.lineage import purged, to_openlineage

        return to_openlineage(self._purged and purged(*self._purged))


class RecallPurgeReceiptOperator(BaseOperator):
    """Write the receipt of a purge into the archive, without personal data.

    :param purged: what the mapped tasks returned (templated).
    :param approval: what the approving task returned (templated).
    :param aws_conn_id: connection for an ``s3://`` archive.
    :return: the receipt's address.
    """

    template_fields: Sequence[str] = ("purged", "approval")
    ui_color = "#fef7e0"

    def __init__(self, *, purged: Any, approval: Any, aws_conn_id: str = "aws_default", **kwargs: Any) -> None:
        kwargs.setdefault("retry_policy", RecallRetryPolicy())
        super().__init__(**kwargs)
        self.purged = purged
        self.approval = approval
        self.aws_conn_id = aws_conn_id

    def execute(self, context: Context) -> str:
        """Write it once, however often the task is tried."""
        from include.provider.hook import get_store
        from include.provider.purge import write_receipt

        with error_reported(context):
            uri = write_receipt(
                get_store(self.aws_conn_id),
                request_of(context["params"]),
                list(self.purged),
                run_id=str(context["ti"].run_id),
                approved_by=approver(self.approval),
            )
            self.log.info("The receipt is %s", uri)
            return uri


def request_of(params: Mapping[str, Any]) -> Request:
    """Return whom a run's params are about.

    :raises BadParamsError: not exactly one of an e-mail address, a name, and a participant of a recording.
    """
    from include.provider.purge import Request

    recording_id, participant_id = given(params.get("recording_id")), params.get("participant_id")
    email, name = given(params.get("email")), given(params.get("name"))
    if (recording_id is None) != (participant_id is None):
        raise BadParamsError("recording_id and participant_id go together")
    if sum(one is not None for one in (email, name, recording_id)) != 1:
        raise BadParamsError("exactly one of email, name, and recording_id with participant_id must be given")
    return Request(email, name, recording_id, participant_id)


def agreed(approval: Any) -> bool:
    """Tell whether somebody was asked, and said yes."""
    return isinstance(approval, dict) and approval.get("chosen_options") == [ApprovalOperator.APPROVE]


def approver(approval: Any) -> str | None:
    """Return the id of the user who agreed; ``None`` where nobody was asked."""
    user = approval.get("responded_by_user") if isinstance(approval, dict) else None
    return str(user["id"]) if isinstance(user, dict) else None


def is_true(value: Any) -> bool:
    """Read a param that went through a template."""
    return str(value).strip().lower() in ("true", "1")


def days(first: str, last: str) -> tuple[datetime | None, datetime | None]:
    """Return the beginning of the first day and the end of the last, in UTC; ``None`` where none is given.

    :raises BadParamsError: these are no days, or not in that order.
    """
    moments: list[datetime | None] = []
    for text in (given(first), given(last)):
        try:
            day = None if text is None else date.fromisoformat(text)
        except ValueError:
            raise BadParamsError(f"{text!a} is no day such as 2026-03-04") from None
        moments.append(None if day is None else datetime(day.year, day.month, day.day, tzinfo=timezone.utc))
    begin, end = moments
    end = None if end is None else end + timedelta(days=1)
    if begin is not None and end is not None and begin >= end:
        raise BadParamsError("the last day lies before the first")
    return begin, end
