"""The operators of the Dags that remove something: who has to agree, and what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk.definitions.param import ParamsDict
from airflow.sdk.exceptions import AirflowSkipException

from include.errors import CodedError
from include.provider import removal_operators
from include.provider.params import purge_participant_params
from include.provider.removal_operators import (
    RecallApprovalOperator,
    RecallDeleteAtSourceOperator,
    RecallFindDeletableOperator,
    RecallFindPersonOperator,
    RecallPurgeOperator,
    RecallPurgeReceiptOperator,
    agreed,
    approver,
)
from tests.include.provider.conftest import Context
from tests.include.provider.test_transfer import Meeting, part

if TYPE_CHECKING:
    from pathlib import Path

    from include.simulator.process import RunningSimulator

YES = {"chosen_options": ["Approve"], "responded_by_user": {"id": "admin", "name": "Ada"}}
NO = {"chosen_options": ["Reject"], "responded_by_user": {"id": "admin", "name": "Ada"}}
NOBODY = {"chosen_options": ["Reject"], "responded_by_user": None}


@pytest.fixture(autouse=True)
def _no_supervisor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removal_operators, "show_label", lambda context, label: None)


@pytest.fixture
def meeting(simulator: RunningSimulator, tmp_path: Path) -> Meeting:
    made = Meeting(simulator, tmp_path / "archive", {"parts": [part(1, 1), part(2, 2)]})
    made.run()
    return made


@pytest.fixture
def enabled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_VAR_RECALL_DELETE_AT_SOURCE", "audio_separate")
    monkeypatch.setenv("AIRFLOW_VAR_RECALL_DELETE_AFTER_HOURS", "0")


def deleted(meeting: Meeting) -> int:
    return sum(one["method"] == "DELETE" for one in meeting.simulator.journal("api"))


def find(meeting: Meeting, **more: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    context = Context()
    operator = RecallFindDeletableOperator(task_id="find", created_from="2026-01-01", **more)
    found = operator.execute(context)  # type: ignore[arg-type]
    return found, context["ti"].pushed["about"]


def delete(meeting: Meeting, approval: Any, **about: Any) -> Any:
    found, said = find(meeting)
    operator = RecallDeleteAtSourceOperator(
        task_id="delete", candidate=found[0], about={**said, **about}, approval=approval
    )
    return operator.execute(Context())  # type: ignore[arg-type]


def test_only_a_yes_is_a_yes() -> None:
    assert agreed(YES)
    assert not any(agreed(one) for one in (NO, NOBODY, None, {}, "Approve", {"chosen_options": None}))
    assert approver(YES) == "admin"
    assert approver(NOBODY) is None
    assert approver(None) is None


@pytest.mark.usefixtures("enabled")
@pytest.mark.parametrize("approval", [NO, NOBODY, None])
def test_nothing_is_deleted_unless_somebody_agreed(meeting: Meeting, approval: Any) -> None:
    with pytest.raises(CodedError) as caught:
        delete(meeting, approval)
    assert (caught.value.code, deleted(meeting)) == ("not_approved", 0)


@pytest.mark.usefixtures("enabled")
def test_a_refusal_counts_even_where_nobody_had_to_be_asked(meeting: Meeting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_VAR_RECALL_DELETE_NEEDS_APPROVAL", "false")
    with pytest.raises(CodedError):
        delete(meeting, NO)
    assert deleted(meeting) == 0
    assert delete(meeting, None)["parts"] == 2
    assert deleted(meeting) == 1


@pytest.mark.usefixtures("enabled")
def test_what_was_planned_for_another_scope_is_not_deleted(meeting: Meeting, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CodedError) as caught:
        delete(meeting, YES, scope="recording")
    assert caught.value.code == "delete_disabled"
    monkeypatch.setenv("AIRFLOW_VAR_RECALL_DELETE_AT_SOURCE", "recording")
    with pytest.raises(CodedError) as caught:
        delete(meeting, YES, scope="audio_separate")
    assert (caught.value.code, deleted(meeting)) == ("delete_disabled", 0)


def test_off_by_default_and_planned_all_the_same(meeting: Meeting, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AirflowSkipException):
        find(meeting)
    assert find(meeting, plan="True")[0] == []  # settled a moment ago
    monkeypatch.setenv("AIRFLOW_VAR_RECALL_DELETE_AFTER_HOURS", "0")
    found, about = find(meeting, plan="True")
    assert [one["recording_id"] for one in found] == [meeting.recording_id]
    assert (about["plan"], about["scope"]) == (True, "audio_separate")
    assert "video, transcripts and all else stay" in about["summary"]
    assert "P1" not in about["summary"]
    assert deleted(meeting) == 0


@pytest.mark.parametrize(("found", "plan"), [([{"a": 1}], True), ([], False)])
def test_nobody_is_asked_for_nothing(found: list[Any], plan: bool) -> None:
    operator = RecallApprovalOperator(task_id="approve", found=found, about={"plan": plan}, subject="?")
    with pytest.raises(AirflowSkipException):
        operator.execute(Context())  # type: ignore[arg-type]


def test_who_needs_no_approval_is_not_asked_but_for_a_purge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_VAR_RECALL_DELETE_NEEDS_APPROVAL", "false")
    asked: list[str] = []
    monkeypatch.setattr(removal_operators.ApprovalOperator, "execute", lambda self, context: asked.append(self.task_id))
    for task_id, always in (("delete", False), ("purge", True)):
        operator = RecallApprovalOperator(
            task_id=task_id, found=[{}], about={"plan": False}, subject="?", always=always
        )
        assert operator.execute(Context()) is None  # type: ignore[arg-type]
    assert asked == ["purge"]


@pytest.mark.parametrize("approval", [NO, NOBODY, None])
def test_nobody_is_purged_unless_somebody_agreed(meeting: Meeting, approval: Any) -> None:
    match = {"recording_id": meeting.recording_id, "folder": meeting.folder, "participant_ids": [1]}
    before = meeting.stored()
    with pytest.raises(CodedError) as caught:
        RecallPurgeOperator(task_id="purge", match=match, approval=approval).execute(Context())  # type: ignore[arg-type]
    assert caught.value.code == "not_approved"
    assert meeting.stored() == before
    RecallPurgeOperator(task_id="purge", match=match, approval=YES).execute(Context())  # type: ignore[arg-type]
    assert len(meeting.stored()) == len(before) - 1 - 3  # the audio, and the lists about everyone


def test_a_person_is_found_removed_and_receipted(simulator: RunningSimulator, tmp_path: Path) -> None:
    parts = [
        {
            "participant": {"id": who, "name": f"P{who}", "email": f"p{who}@example.com"},
            "audio": {"seed": who, "bytes": 3200},
        }
        for who in (1, 2)
    ]
    meeting = Meeting(simulator, tmp_path / "archive", {"parts": parts})
    meeting.run()
    given = {"email": "P1@example.com", "created_from": "2026-03-04", "plan": False}
    params = ParamsDict({**purge_participant_params(), **given})
    context = Context()
    context["params"], context["ti"].run_id = params, "manual__1"
    found = RecallFindPersonOperator(task_id="find").execute(context)  # type: ignore[arg-type]
    assert [(one["recording_id"], one["participant_ids"]) for one in found] == [(meeting.recording_id, [1])]
    about = context["ti"].pushed["about"]
    assert about["plan"] is False
    assert "example.com" not in str((found, about))
    purged = RecallPurgeOperator(task_id="purge", match=found[0], approval=YES).execute(Context())  # type: ignore[arg-type]
    assert purged["objects"] == 4  # the audio, and three lists about everyone
    uri = RecallPurgeReceiptOperator(task_id="receipt", purged=[purged], approval=YES).execute(context)  # type: ignore[arg-type]
    (receipt,) = (tmp_path / "archive/receipts/purged").glob("*.json")
    assert uri == receipt.as_uri()
    assert "example.com" not in receipt.read_text()
