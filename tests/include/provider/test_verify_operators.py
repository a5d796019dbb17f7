"""The tasks of `verify_archive`, handed what Airflow would hand them."""

from __future__ import annotations

import json
import os
from datetime import datetime, timezone
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from include.archive.copy import Stop
from include.archive.stores import open_store
from include.errors import CodedError
from include.provider import notices, transfer, verification, verify_operators
from include.provider.hook import RecallHook, folder_of
from include.provider.transfer import Ends
from include.provider.verify_operators import (
    RecallPlanVerificationOperator,
    RecallReportVerificationOperator,
    RecallVerifyArchiveOperator,
    notify_failure_untold,
)
from include.recall.watch import look
from tests.include.provider.conftest import LONG_AGO, Context

if TYPE_CHECKING:
    from pathlib import Path

    from include.simulator.process import RunningSimulator

RUN_AFTER = datetime(2026, 11, 22, 2, tzinfo=timezone.utc)


@pytest.fixture(autouse=True)
def labels(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    shown: list[str] = []
    monkeypatch.setattr(verify_operators, "show_label", lambda context, label: shown.append(label))
    return shown


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[notices.Notice]:
    sent: list[notices.Notice] = []
    monkeypatch.setattr(verify_operators, "notify", lambda context, notice: sent.append(notice))
    return sent


class World:
    """An archive with a recording on each of some days."""

    def __init__(self, simulator: RunningSimulator, root: Path, days: int) -> None:
        hook = RecallHook()
        self.root = root
        self.store = open_store(root.as_uri())
        ends = Ends(client=hook.get_conn(), media=hook.get_media(), store=self.store)
        self.recordings: list[str] = []
        self.folders: list[str] = []
        for day in range(days):
            ids = simulator.add_meeting(created_at=LONG_AGO.replace("-04T", f"-{day + 4:02d}T"))
            (found,) = look(ends.client, bot_id=ids["bot_id"]).recordings
            folder, recording_id = folder_of(found.to_dict()), ids["recordings"][0]["id"]
            batches = transfer.plan(ends, [(recording_id, folder)])
            receipts = [one for batch in batches for one in transfer.archive(ends, batch, stop=Stop())]
            transfer.settle(ends, recording_id, folder, bot_id=ids["bot_id"], receipts=receipts, reasons={})
            self.recordings.append(recording_id)
            self.folders.append(folder)

    def part(self, day: int = 0) -> Path:
        return sorted((self.root / self.folders[day]).rglob("*.wav"))[0]

    def damage(self, day: int = 0) -> Path:
        path = self.part(day)
        data = bytearray(path.read_bytes())
        data[-1] ^= 4
        path.write_bytes(data)
        return path

    def reports(self) -> list[tuple[str, dict[str, Any]]]:
        return verification.reports(self.store, 10)


@pytest.fixture
def world(simulator: RunningSimulator, tmp_path: Path) -> World:
    return World(simulator, tmp_path / "archive", 3)


def context(run_id: str = "manual__1", map_index: int = 0) -> Any:
    one = Context()
    one.update(run_id=run_id, dag_run=SimpleNamespace(run_after=RUN_AFTER))
    one["ti"].map_index = map_index
    return one


def plan(**options: Any) -> list[dict[str, str]]:
    return RecallPlanVerificationOperator(task_id="list_days", **options).execute(context())


def verify(chunk: dict[str, str], index: int = 0, **options: Any) -> dict[str, Any]:
    done = RecallVerifyArchiveOperator(task_id="verify", chunk=chunk, **options).execute(context(map_index=index))
    json.dumps(done)
    return done


def report(chunks: Any, results: list[Any], **options: Any) -> tuple[RecallReportVerificationOperator, Any]:
    scope = {"recording_id": "", "from": "", "to": "", **options.pop("scope", {})}
    operator = RecallReportVerificationOperator(
        task_id="report", chunks=chunks, results=results, scope=scope, **options
    )
    return operator, context()


def run(**options: Any) -> dict[str, Any]:
    chunks = plan()
    results = [verify(chunk, index, **options) for index, chunk in enumerate(chunks)]
    operator, given = report(chunks, results, **options)
    return operator.execute(given)


def test_a_sound_archive(world: World, told: list[Any], labels: list[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in world.root.rglob("*.*") if path.is_file()}
    done = run()
    assert done["unrepaired"] == 0
    assert done["totals"]["recordings"] == {"settled": 3}
    assert done["totals"]["manifests"] == {"sha256": 3}
    assert done["totals"]["objects"] == done["totals"]["proofs"]["sha256"]
    assert labels == ["2026-03-04", "2026-03-05", "2026-03-06"]
    assert told == []
    ((name, document),) = world.reports()
    assert name.startswith("20261122t020000z-")
    assert done["report"].endswith(f"reports/verify/{name}/report.json")
    assert (document["complete"], document["problems"], document["scope"]["recording_id"]) == (True, [], None)
    assert len(document["details"]) == 3
    lines = [json.loads(line) for key in document["details"] for line in (world.root / key).read_bytes().splitlines()]
    assert sorted(one["folder"] for one in lines) == sorted(world.folders)
    assert {one["manifest_proof"] for one in lines} == {"sha256"}
    assert all(one["proofs"] == {"sha256": one["objects"]} for one in lines)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_damage_is_repaired_and_told(world: World, told: list[Any]) -> None:
    path = world.part(1)
    good = path.read_bytes()
    world.damage(1)
    world.part(2).unlink()
    (world.root / "stray.txt").write_text("x")
    done = run()
    assert path.read_bytes() == good
    assert done["unrepaired"] == 0
    assert done["totals"]["found"] == {"damaged": 1, "extra": 1, "missing": 1}
    assert done["totals"]["repaired"] == {"damaged": 1, "missing": 1}
    ((_, document),) = world.reports()
    assert sorted((one["kind"], one["action"]) for one in document["problems"]) == [
        ("damaged", "replaced"),
        ("extra", None),
        ("missing", "restored"),
    ]
    (notice,) = told
    assert (notice.kind, notice.facts["repaired"]) == ("problems", 2)
    assert run()["totals"]["found"] == {"extra": 1}
    assert len(told) == 1


def test_what_is_left_fails_the_run_with_its_code(
    world: World, told: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = world.damage(0)
    bad = path.read_bytes()
    chunks = plan()
    results = [verify(chunk, repair="False") for chunk in chunks]
    operator, given = report(chunks, results, repair="False")
    with pytest.raises(CodedError) as caught:
        operator.execute(given)
    assert (caught.value.code, caught.value.permanent) == ("archive_damaged", True)
    assert given.error["code"] == "archive_damaged"
    assert operator.report_url.endswith(f"/recall/archive/reports/verify/{world.reports()[0][0]}/")
    assert "1 damaged" in caught.value.message
    assert path.read_bytes() == bad
    assert [notice.facts["code"] for notice in told] == ["archive_damaged"]
    # Not a second message about the same, but one about anything else.
    others: list[Any] = []
    monkeypatch.setattr(verify_operators, "notify_failure", others.append)
    notify_failure_untold({**given, "exception": caught.value})
    assert others == []
    operator, given = report(None, [])
    with pytest.raises(CodedError) as caught:
        operator.execute(given)
    assert caught.value.code == "verification_incomplete"
    notify_failure_untold({**given, "exception": caught.value})
    assert len(others) == 1


def test_a_cleared_chunk_alone_is_looked_at_again(world: World, told: list[Any]) -> None:
    chunks = plan()
    results = [verify(chunk, index) for index, chunk in enumerate(chunks)]
    operator, given = report(chunks, results[:2])
    with pytest.raises(CodedError) as caught:
        operator.execute(given)
    assert caught.value.code == "verification_incomplete"
    assert world.reports()[0][1]["complete"] is False
    world.damage(2)
    again = verify(chunks[2], 2)
    assert again["tally"]["repaired"] == {"damaged": 1}
    operator, given = report(chunks, [*results[:2], again])
    assert operator.execute(given)["report"].endswith("/report-2.json")
    ((_, document),) = world.reports()  # the last word of the run counts
    assert document["complete"] is True
    assert document["totals"]["recordings"] == {"settled": 3}


def test_a_range_and_one_recording(world: World) -> None:
    days = [folder.split("/")[0] for folder in world.folders]
    assert [chunk["first"] for chunk in plan(first_day="2026-03-05")] == days[1:]
    assert [chunk["last"] for chunk in plan(last_day="2026-03-04")] == days[:1]
    (chunk,) = plan(recording_id=world.recordings[1])
    assert chunk == {"first": world.folders[1], "last": world.folders[1]}
    assert verify(chunk)["tally"]["recordings"] == {"settled": 1}
    (world.root / world.folders[1] / "manifest.json").unlink()
    assert plan(recording_id=world.recordings[1]) == [chunk]


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"first_day": "2026-02-30"}, "bad_params"),
        ({"first_day": "2026-03-05", "last_day": "2026-03-04"}, "bad_params"),
        ({"recording_id": "r", "first_day": "2026-03-05"}, "bad_params"),
        ({"recording_id": "nobody-knows"}, "not_archived"),
    ],
)
def test_bad_params(simulator: RunningSimulator, tmp_path: Path, options: dict[str, str], code: str) -> None:
    with pytest.raises(CodedError) as caught:
        plan(**options)
    assert (caught.value.code, caught.value.permanent) == (code, True)


def test_a_big_archive_is_cut_into_few_chunks(tmp_path: Path) -> None:
    for day in range(1000):
        (tmp_path / f"dt={2020 + day // 336}-{day % 336 // 28 + 1:02d}-{day % 28 + 1:02d}").mkdir()
    store = open_store(tmp_path.as_uri())
    chunks = verification.plan(store, recording_id=None, first_day=None, last_day=None)
    assert len(chunks) == 40
    assert len(json.dumps(chunks)) < 4_000
    days = list(store.folders())
    covered = [day for chunk in chunks for day in days if chunk["first"] <= day <= chunk["last"]]
    assert covered == days


def test_an_empty_archive(simulator: RunningSimulator, tmp_path: Path) -> None:
    assert plan() == []
    operator, given = report([], [])
    assert operator.execute(given)["unrepaired"] == 0


def test_abandoned_uploads_and_folders(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    left = world.root / world.folders[0] / ".tmp-part.wav.0123456789abcdef"
    left.write_bytes(b"x")
    (world.root / world.folders[1] / "manifest.json").unlink()
    totals = run()["totals"]
    assert totals["recordings"] == {"settled": 2, "under_way": 1}
    assert left.exists()
    long_ago = RUN_AFTER.timestamp() - 10 * 86_400
    for path in (left, *(one for one in (world.root / world.folders[1]).rglob("*") if one.is_file())):
        os.utime(path, (long_ago, long_ago))
    totals = run()["totals"]
    assert totals["found"] == {"stale": 1, "unsettled": 1}
    assert totals["repaired"] == {"stale": 1, "unsettled": 1}
    assert totals["recordings"] == {"settled": 3}
    assert not left.exists()


def test_a_killed_chunk_leaves_no_file(world: World) -> None:
    operator = RecallVerifyArchiveOperator(task_id="verify", chunk=plan()[0])

    given = context()
    stop_at = verification.look_through

    def interrupted(*args: Any, **options: Any) -> Any:
        operator.on_kill()
        return stop_at(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verification, "look_through", interrupted)
        with pytest.raises(CodedError) as caught:
            operator.execute(given)
    assert caught.value.code == "stopped"
    assert world.reports() == []
    assert not [path for path in (world.root / "reports").rglob("*") if path.is_file()]


def test_problems_are_listed_up_to_a_number(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "MOST_PROBLEMS", 2)
    for number in range(5):
        (world.root / world.folders[0] / f"extra-{number}.ogg").write_bytes(b"x")
    world.damage(1)
    chunks = plan()
    operator, given = report(chunks, [verify(chunk, repair="False") for chunk in chunks])
    with pytest.raises(CodedError):
        operator.execute(given)
    ((_, document),) = world.reports()
    assert [one["kind"] for one in document["problems"]] == ["damaged", "extra"]
    assert document["totals"]["found"] == {"damaged": 1, "extra": 5}
