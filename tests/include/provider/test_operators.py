"""The operators of the way into the archive; a task would be handed what they are handed here."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import UserList
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from include.errors import CodedError
from include.provider.assets import RECORDING_ARCHIVED
from include.provider.operators import (
    RecallArchiveParticipantOperator,
    RecallListParticipantAudioOperator,
    RecallSettleRecordingOperator,
)
from include.provider.sensors import RecallRecordingSensor
from tests.include.provider.conftest import LONG_AGO, Context

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from include.simulator.process import RunningSimulator


pytestmark = pytest.mark.usefixtures("no_supervisor")


def found(simulator: RunningSimulator, size: int = 3200, parts: int = 1) -> dict[str, Any]:
    """Make a meeting of one person's parts and return its recording, as the sensor does."""
    part = {"participant": {"id": 1, "name": "Ada"}, "audio": {"seed": 1, "bytes": size}}
    ids = simulator.add_meeting(created_at=LONG_AGO, recordings=[{"artifacts": [{"parts": [part] * parts}]}])
    (recording,) = RecallRecordingSensor(task_id="wait", bot_id=ids["bot_id"]).execute(Context())  # type: ignore[arg-type]
    return recording


def batches(recording: dict[str, Any]) -> list[dict[str, Any]]:
    return RecallListParticipantAudioOperator(task_id="list", recordings=[recording]).execute(Context())  # type: ignore[arg-type]


def archiver(recording: dict[str, Any]) -> RecallArchiveParticipantOperator:
    (batch,) = batches(recording)
    return RecallArchiveParticipantOperator(task_id="archive", batch=batch)


class AtOnce(UserList[Any]):
    """What mapped tasks have returned; Airflow asks its API server for each single item, and once for a slice."""

    def __iter__(self) -> Iterator[Any]:
        raise AssertionError("asked for one by one")

    def __getitem__(self, key: Any) -> Any:
        return self.data[key]


def settle(
    recording: dict[str, Any], receipts: list[Any], try_number: int = 1
) -> tuple[dict[str, Any], list[Any], Any]:
    """Settle; return the result, what the task announces, and what it says there."""
    context, event = Context(try_number=try_number), SimpleNamespace(extra=None)
    context["outlet_events"] = {RECORDING_ARCHIVED: event}
    operator = RecallSettleRecordingOperator(
        task_id="settle",
        recording=recording,
        archived=AtOnce([receipts]),  # type: ignore[arg-type]
        outlets=[RECORDING_ARCHIVED],
    )
    return operator.execute(context), operator.outlets, event.extra  # type: ignore[arg-type]


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def once_spoilt(simulator: RunningSimulator, act: Callable[[], object]) -> threading.Thread:
    """Do something a second after a request has met with a fault."""

    def wait() -> None:
        while not any(entry["fault"] for entry in simulator.journal()):
            time.sleep(0.05)
        time.sleep(1)
        act()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def test_a_killed_task_stops_and_leaves_nothing(simulator: RunningSimulator, tmp_path: Path) -> None:
    operator = archiver(found(simulator, size=20_000_000))
    simulator.add_faults({"origin": "media", "times": None, "action": {"rate": 100_000}})
    killer = once_spoilt(simulator, operator.on_kill)
    context = Context()
    with pytest.raises(CodedError) as caught:
        operator.execute(context)  # type: ignore[arg-type]
    killer.join()
    assert (caught.value.code, caught.value.permanent) == ("stopped", False)
    assert context.error is not None
    assert context.error["code"] == "stopped"
    assert files(tmp_path / "archive") == []


SILENT_BODY = {"origin": "media", "path": "-0", "action": {"stall": 1_500_000}}
SILENT_LIST = {"origin": "api", "path": "^/api/v1/download/", "action": {"stall": 5}}


@pytest.mark.parametrize(("parts", "fault"), [(1, SILENT_BODY), (3, SILENT_BODY), (1, SILENT_LIST)])
def test_a_killed_task_does_not_wait_for_silent_sources(
    simulator: RunningSimulator, tmp_path: Path, parts: int, fault: dict[str, Any]
) -> None:
    operator = archiver(found(simulator, size=2_000_000, parts=parts))
    simulator.add_faults({**fault, "times": None})
    # As Airflow does on SIGTERM; seconds later it kills.
    before = signal.signal(signal.SIGALRM, lambda number, frame: operator.on_kill())
    killer = once_spoilt(simulator, lambda: os.kill(os.getpid(), signal.SIGALRM))
    began = time.monotonic()
    try:
        with pytest.raises(CodedError) as caught:
            operator.execute(Context())  # type: ignore[arg-type]
    finally:
        killer.join()
        signal.signal(signal.SIGALRM, before)
        simulator.reset()
    assert caught.value.code == "stopped"
    assert time.monotonic() - began < 25  # the sources' own patience is thirty seconds
    assert files(tmp_path / "archive") == []
    operator.on_kill()  # once more, as after execution_timeout: there is nothing left to end


def test_a_recording_is_announced_once(simulator: RunningSimulator) -> None:
    recording = found(simulator)
    receipts = archiver(recording).execute(Context())  # type: ignore[arg-type]
    first, announced, said = settle(recording, receipts)
    assert (announced, said) == ([RECORDING_ARCHIVED], first)
    assert batches(recording) == []
    assert settle(recording, []) == (first, [], None)
    # The try that wrote the manifest may have died before it could announce it.
    assert settle(recording, [], try_number=2) == (first, [RECORDING_ARCHIVED], first)


def test_a_recording_that_cannot_be_had_fails_with_its_code(simulator: RunningSimulator, tmp_path: Path) -> None:
    recording = {**found(simulator), "problem": {"code": "media_timeout", "message": "late"}}
    assert batches(recording) == []
    with pytest.raises(CodedError) as caught:
        settle(recording, [])
    assert (caught.value.code, caught.value.permanent) == ("media_timeout", True)
    assert files(tmp_path / "archive") == []


def test_what_is_archived_is_a_success_whatever_became_of_its_source(simulator: RunningSimulator) -> None:
    recording = found(simulator)
    first, _, _ = settle(recording, archiver(recording).execute(Context()))  # type: ignore[arg-type]
    lost = {**recording, "problem": {"code": "media_deleted", "message": "gone"}}
    assert settle(lost, []) == (first, [], None)
