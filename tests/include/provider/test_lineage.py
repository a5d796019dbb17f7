"""What OpenLineage is told, through the extractors of Airflow's own provider."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from airflow.providers.openlineage.extractors.manager import ExtractorManager
from airflow.utils.state import TaskInstanceState
from openlineage.client.serde import Serde

from include.archive.stores.s3 import S3Store
from include.provider import lineage
from include.provider.assets import RECORDING_ARCHIVED
from include.provider.operators import RecallArchiveParticipantOperator, RecallSettleRecordingOperator
from tests.include.provider.conftest import LONG_AGO, Context
from tests.include.provider.test_calls import Run, people

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator

    from include.simulator.process import RunningSimulator

ROOT = Path(__file__).resolve().parents[3]

pytestmark = pytest.mark.usefixtures("no_supervisor")


class DagRun:
    run_id = "manual__1"


class TaskInstance:
    rendered_map_index: str | None = "Ada"


def told(operator: BaseOperator, state: TaskInstanceState = TaskInstanceState.SUCCESS) -> dict[str, Any]:
    """Return what is told of an operator that has ended, as it would be sent."""
    found = ExtractorManager().extract_metadata(DagRun(), operator, state, TaskInstance())
    return {name: [json.loads(Serde.to_json(one)) for one in getattr(found, name)] for name in ("inputs", "outputs")}


def without_schemas(facet: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in facet.items() if not name.startswith("_")}


class Archived:
    """A meeting whose every participant has been archived.

    :ivar tasks: the operators that did it.
    :ivar receipts: what they returned.
    """

    def __init__(self, simulator: RunningSimulator, count: int = 2, parts: int = 1) -> None:
        some = [one for one in people(count) for _ in range(parts)]
        self.ids = simulator.add_meeting(created_at=LONG_AGO, recordings=[{"artifacts": [{"parts": some}]}])
        self.recording_id = self.ids["recordings"][0]["id"]
        run = Run(self.ids["bot_id"])
        (self.recording,) = run.wait()
        run.list.recordings = [self.recording]
        batches = run.list.execute(run.context("list", "wait"))  # type: ignore[arg-type]
        self.tasks = [RecallArchiveParticipantOperator(task_id="archive", batch=batch) for batch in batches]
        self.receipts = [task.execute(Context()) for task in self.tasks]  # type: ignore[arg-type]


def test_a_participant_is_told_of(simulator: RunningSimulator, tmp_path: Path) -> None:
    archived = Archived(simulator)
    for number, task in enumerate(archived.tasks):
        said = told(task)
        (source,), (folder,) = said["inputs"], said["outputs"]
        assert source["namespace"] == f"recall://{simulator.base_url.partition('://')[2]}"
        assert source["name"] == f"recording/{archived.recording_id}/audio_separate"
        assert without_schemas(source["inputFacets"]["inputStatistics"]) == {"size": 320, "fileCount": 1}
        place = Path(folder["name"])
        assert (folder["namespace"], place.parents[2]) == ("file", tmp_path / "archive")
        assert place.name == f"participant={number}"
        (path,) = (one for one in place.rglob("*") if one.is_file())
        assert without_schemas(folder["outputFacets"]["outputStatistics"]) == {
            "size": path.stat().st_size,
            "fileCount": 1,
        }
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        assert folder["facets"]["version"]["datasetVersion"] == f"sha256:{digest}"
        assert without_schemas(folder["facets"]["recallArchive"]) == {
            "recordingId": archived.recording_id,
            "participantId": str(number),
            "files": [{"name": str(path.relative_to(place)), "sha256": digest}],
        }


def test_the_version_of_several_files_is_what_sha256sum_says(simulator: RunningSimulator) -> None:
    archived = Archived(simulator, count=1, parts=3)
    (folder,) = told(archived.tasks[0])["outputs"]
    files = sorted(str(one.relative_to(folder["name"])) for one in Path(folder["name"]).rglob("*.wav"))
    assert len(files) == 3
    printed = subprocess.run(["sha256sum", *files], cwd=folder["name"], capture_output=True, check=True).stdout
    assert folder["facets"]["version"]["datasetVersion"] == f"sha256:{hashlib.sha256(printed).hexdigest()}"


def test_a_settled_recording_is_told_of(simulator: RunningSimulator, tmp_path: Path) -> None:
    archived = Archived(simulator)
    task = RecallSettleRecordingOperator(task_id="settle", recording=archived.recording, archived=archived.receipts)
    context = Context()
    context["outlet_events"] = {RECORDING_ARCHIVED: type("Event", (), {"extra": None})()}
    settled = task.execute(context)  # type: ignore[arg-type]
    said = told(task)
    (source,), (folder,) = said["inputs"], said["outputs"]
    assert source["name"] == f"recording/{archived.recording_id}/audio_separate"
    assert folder["name"] == str(tmp_path / "archive" / settled["folder"])
    assert without_schemas(folder["outputFacets"]["outputStatistics"]) == {"size": settled["bytes"], "fileCount": 2}
    assert without_schemas(folder["facets"]["recallArchive"]) == {
        "recordingId": archived.recording_id,
        "outcome": "archived",
    }


def test_neither_names_nor_links_are_told(simulator: RunningSimulator) -> None:
    archived = Archived(simulator)
    said = json.dumps([told(task) for task in archived.tasks])
    assert "token" not in said
    assert '"P0"' not in said
    assert simulator.api_key not in said


def test_a_task_that_failed_tells_of_nothing() -> None:
    task = RecallArchiveParticipantOperator(task_id="archive", batch={})
    assert told(task, TaskInstanceState.FAILED) == {"inputs": [], "outputs": []}


def test_what_is_removed_is_told_of_as_dropped(simulator: RunningSimulator) -> None:
    archived = Archived(simulator)
    ends, batch, _ = archived.tasks[0]._archived or pytest.fail("nothing was archived")
    dropped = lineage.to_openlineage(lineage.purged(ends, batch.recording_id, batch.folder, [0, 1]))
    assert [one.name.rpartition("/")[2] for one in dropped.outputs] == ["participant=0", "participant=1"]
    deleted = lineage.to_openlineage(lineage.deleted(ends, batch.recording_id, batch.folder))
    assert [one.name for one in deleted.outputs] == [f"recording/{batch.recording_id}/audio_separate"]
    for one in [*dropped.outputs, *deleted.outputs]:
        assert json.loads(Serde.to_json(one))["facets"]["lifecycleStateChange"]["lifecycleStateChange"] == "DROP"


def test_objects_in_s3_are_named_by_bucket_and_key() -> None:
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
    store = S3Store(bucket="recordings", prefix="a/b", client=boto3.client("s3", region_name="us-east-1", **keys))
    data = lineage._folder(store, "dt=2026-03-04/recording=x")
    assert (data.namespace, data.name) == ("s3://recordings", "a/b/dt=2026-03-04/recording=x")


def test_nothing_of_openlineage_is_imported_unasked() -> None:
    program = (
        "import sys, include.provider.operators, include.provider.removal_operators, include.provider.transfer\n"
        "found = {one for one in sys.modules if one.startswith(('openlineage', 'include.provider.lineage'))}\n"
        "assert not found, found\n"
    )
    environment = {"PATH": "", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=60)
