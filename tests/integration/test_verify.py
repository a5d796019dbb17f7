"""`verify_archive` in a real Airflow: damage, a run, and what is found of it in the archive and in the UI."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import pytest
import requests

from scripts.local_airflow import LocalAirflow, LocalAirflowError
from tests.integration.conftest import API_KEY, set_archive

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from include.simulator.process import RunningSimulator

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1500)]

DAG = "verify_archive"


@pytest.fixture(scope="module")
def own_archive(airflow: LocalAirflow, archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("to be verified")
    set_archive(airflow, folder.as_uri())
    yield folder
    set_archive(airflow, archive.as_uri())


@pytest.fixture(scope="module")
def recordings(airflow: LocalAirflow, simulator: RunningSimulator, own_archive: Path) -> list[dict[str, Any]]:
    """Three recordings of three days, archived."""
    found = [simulator.add_meeting(created_at=f"2026-03-0{day}T09:55:00+00:00") for day in (4, 5, 6)]
    runs = [airflow.trigger("archive_meeting", {"bot_id": one["bot_id"]}) for one in found]
    assert [airflow.wait("archive_meeting", run)["state"] for run in runs] == ["success"] * 3
    return [one["recordings"][0] for one in found]


def parts_of(archive: Path, recording: dict[str, Any]) -> list[Path]:
    return sorted(archive.glob(f"dt=*/recording={recording['id']}/**/*.wav"))


def contents(archive: Path) -> dict[str, tuple[str, int, int]]:
    """Return what would change if something were written anew."""
    return {
        str(path.relative_to(archive)): (
            hashlib.sha256(path.read_bytes()).hexdigest(),
            path.stat().st_ino,
            path.stat().st_mtime_ns,
        )
        for path in archive.glob("dt=*/**/*")
        if path.is_file()
    }


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(data)


def verify(airflow: LocalAirflow, **conf: Any) -> tuple[str, str]:
    run_id = airflow.trigger(DAG, conf)
    return run_id, airflow.wait(DAG, run_id)["state"]


def test_damage_is_repaired_and_reported(
    airflow: LocalAirflow, own_archive: Path, recordings: list[dict[str, Any]], viewer: dict[str, str]
) -> None:
    before = contents(own_archive)
    damaged, missing = parts_of(own_archive, recordings[0])[0], parts_of(own_archive, recordings[1])[1]
    lost = own_archive / f"{parts_of(own_archive, recordings[2])[0].relative_to(own_archive).parts[0]}"
    manifest = next(lost.glob("recording=*/manifest.json"))
    flip(damaged)
    missing.unlink()
    manifest.write_bytes(manifest.read_bytes().replace(b'"participant_id"', b'"participant-id"', 1))
    run_id, state = verify(airflow)
    assert state == "success"
    after = contents(own_archive)
    assert after.keys() == before.keys()
    touched = {str(path.relative_to(own_archive)) for path in (damaged, missing, manifest)}
    assert {key for key in before if before[key] != after[key]} == touched
    assert all(after[key][0] == before[key][0] for key in touched if key.endswith(".wav"))

    tasks = {(one["task_id"], one["rendered_map_index"]) for one in airflow.task_instances(DAG, run_id)}
    assert tasks >= {("verify", "2026-03-04"), ("verify", "2026-03-05"), ("verify", "2026-03-06")}
    (stored,) = own_archive.glob("reports/verify/*/report.json")
    report = json.loads(stored.read_bytes())
    assert (report["complete"], report["unrepaired"]) == (True, 0)
    assert report["totals"]["repaired"] == {"damaged": 1, "manifest_damaged": 1, "missing": 1}

    link = airflow.get(f"/dags/{DAG}/dagRuns/{run_id}/taskInstances/report/links")["extra_links"]["Report"]
    assert link == f"{airflow.url}/recall/archive/reports/verify/{stored.parent.name}/"
    page = requests.get(link, headers=viewer, timeout=30)
    assert page.status_code == 200
    for text in ("3 repaired", "replaced", "restored", "rebuilt", str(damaged.relative_to(own_archive))):
        assert text in page.text
    assert stored.parent.name in requests.get(f"{link}../", headers=viewer, timeout=30).text
    assert requests.get(link, timeout=30).status_code == 401


def test_what_cannot_be_repaired_fails_the_run(
    airflow: LocalAirflow, simulator: RunningSimulator, own_archive: Path, recordings: list[dict[str, Any]]
) -> None:
    for artifact in recordings[0]["artifacts"]:
        url = f"{simulator.base_url}/api/v1/audio_separate/{artifact['id']}/"
        requests.delete(url, headers={"Authorization": API_KEY}, timeout=30).raise_for_status()
    flip(parts_of(own_archive, recordings[0])[0])
    before = contents(own_archive)
    run_id, state = verify(airflow, recording_id=recordings[0]["id"])
    assert state == "failed"
    error = airflow.xcom(DAG, run_id, "report", "error")
    error = error if isinstance(error, dict) else json.loads(error)
    assert error["code"] == "archive_damaged"
    assert "1 damaged" in error["message"]
    assert contents(own_archive) == before
    # The other recordings are as sound as before.
    assert verify(airflow, **{"from": "2026-03-05", "to": "2026-03-06", "mode": "checksum"})[1] == "success"


@pytest.mark.parametrize("conf", [{"mode": "quick"}, {"from": "yesterday"}, {"recording_id": "../x"}, {"repair": "no"}])
def test_bad_params_are_refused_at_once(airflow: LocalAirflow, conf: dict[str, Any]) -> None:
    with pytest.raises(LocalAirflowError, match="HTTP 400"):
        airflow.trigger(DAG, conf)
