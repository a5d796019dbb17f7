"""Whole runs of `archive_meeting`: real Airflow, real HTTP, real objects; asserted on what is stored and asked for."""

from __future__ import annotations

import hashlib
import html
import http.client
import json
import re
import time
import wave
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

import jsonschema
import pytest
import requests

from scripts.local_airflow import LocalAirflow, LocalAirflowError
from tests.integration.conftest import API_KEY, BUCKET, STORAGE_SECRET, WEBHOOK_SECRET, files_below, set_archive

if TYPE_CHECKING:
    from collections.abc import Callable

    from include.simulator.process import RunningSimulator

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1500)]

DAG = "archive_meeting"
WAIT = "wait_for_recordings"
SCHEMA = json.loads(
    (Path(__file__).resolve().parents[2] / "include/archive/manifest.v1.schema.json").read_text("utf-8")
)
LONG_AGO = "2026-03-04T09:55:00+00:00"


def person(number: int, name: str | None, **more: Any) -> dict[str, Any]:
    return {"id": number, "name": name, **more}


def part(number: int, name: str | None, seed: int, size: int = 64_000, **more: Any) -> dict[str, Any]:
    return {"participant": person(number, name), "audio": {"seed": seed, "bytes": size}, "relative": seed, **more}


HOSTILE = ["../../etc/passwd", "a\r\nb", "\u202eevil\u2066", "{{ 7*7 }}", "=cmd()", "x" * 10_000, "<script>", "\ufeff"]

MEETINGS: dict[str, dict[str, Any]] = {
    "finished": {"created_at": LONG_AGO},
    "by_recording": {"created_at": LONG_AGO, "recordings": [{"artifacts": [{"parts": [part(7, "Ada", 1)]}]}]},
    "two_recordings": {
        "created_at": LONG_AGO,
        "recordings": [
            {"artifacts": [{"parts": [part(100, "Ada", 1), part(101, "Grace", 2)]}]},
            {"artifacts": [{"parts": [part(100, "Ada", 3)]}]},
        ],
    },
    "three_pages": {
        "created_at": LONG_AGO,
        "recordings": [
            {"artifacts": [{"parts": [part(100, "Ada", seed), part(101, None, seed + 50)]} for seed in range(1, 6)]}
        ],
    },
    "nobody_spoke": {"created_at": LONG_AGO, "recordings": [{"artifacts": [{"parts": []}]}]},
    "hostile": {
        "created_at": LONG_AGO,
        "title": "\u202e{{ title }}",
        "recordings": [
            {"artifacts": [{"parts": [part(number, name, number + 1) for number, name in enumerate(HOSTILE)]}]}
        ],
    },
    "not_configured": {
        "live": True,
        "recording_config": {"video_mixed_mp4": {}},
        "recordings": [{"artifacts": []}],
    },
    "not_recorded": {
        "created_at": LONG_AGO,
        "recordings": [],
        "timeline": [
            {"at": 0, "code": "joining_call"},
            {"at": 5, "code": "in_waiting_room"},
            {"at": 900, "code": "call_ended", "sub_code": "timeout_exceeded_waiting_room"},
            {"at": 901, "code": "done"},
        ],
    },
    "fatal": {
        "created_at": LONG_AGO,
        "recordings": [],
        "timeline": [{"at": 0, "code": "joining_call"}, {"at": 5, "code": "fatal", "sub_code": "meeting_not_found"}],
    },
    "media_failed": {"created_at": LONG_AGO, "recordings": [{"artifacts": [{"status": "failed", "parts": []}]}]},
    "one_artifact_failed": {
        "created_at": LONG_AGO,
        "recordings": [{"artifacts": [{"status": "failed", "parts": []}, {"parts": [part(100, "Ada", 9)]}]}],
    },
}
# Bots that stay in the call until the simulator's clock is moved on.
ROOM = "https://example.zoom.us/j/123456789"
CALL: dict[str, Any] = {
    "timeline": [
        {"at": 0, "code": "in_call_recording"},
        {"at": 36_000, "code": "call_ended"},
        {"at": 36_002, "code": "done"},
    ],
    "recordings": [{"artifacts": [{"parts": [part(100, "Ada", 1), part(101, "Grace", 2)]}]}],
}
OUTCOMES = {
    "finished": "archived",
    "by_recording": "archived",
    "in_call": "archived",
    "sent": "archived",
    "two_recordings": "archived",
    "three_pages": "archived",
    "nobody_spoke": "nothing_to_archive",
    "hostile": "archived",
    "one_artifact_failed": "archived_with_gaps",
}
FAILURES = {
    "not_configured": "not_configured",
    "not_recorded": "not_recorded",
    "fatal": "bot_fatal",
    "media_failed": "media_failed",
}


@dataclass
class Run:
    """One run of the Dag, watched to its end."""

    run_id: str
    state: str = ""
    states: dict[str, list[str]] = field(default_factory=dict)
    stages: list[str] = field(default_factory=list)
    labels: dict[int, str] = field(default_factory=dict)
    tries: dict[str, int] = field(default_factory=dict)
    duration: float = 0.0


@dataclass
class Runs:
    """All runs of this module's meetings, started together."""

    ids: dict[str, dict[str, Any]]
    runs: dict[str, Run]
    bots_sent: int

    def recordings(self, name: str) -> list[str]:
        return [recording["id"] for recording in self.ids[name]["recordings"]]


@pytest.fixture(scope="module")
def runs(airflow: LocalAirflow, simulator: RunningSimulator) -> Runs:
    ids = {name: simulator.add_meeting(**meeting) for name, meeting in MEETINGS.items()}
    conf: dict[str, dict[str, Any]] = {name: {"bot_id": one["bot_id"]} for name, one in ids.items()}
    conf["by_recording"] = {"recording_id": ids["by_recording"]["recordings"][0]["id"]}
    watched = watch(airflow, {name: airflow.trigger(DAG, one) for name, one in conf.items()})
    # Those that are still going on start when the machine has time for them, and end when both were seen to wait.
    before = creates(simulator)
    ids["in_call"] = simulator.add_meeting(live=True, **CALL)
    simulator.add_meeting(dispatch="on_create", meeting_url=ROOM, **CALL)
    started = {
        "in_call": airflow.trigger(DAG, {"bot_id": ids["in_call"]["bot_id"]}),
        "sent": airflow.trigger(DAG, {"meeting_url": ROOM, "bot_name": "Archive"}),
    }

    def end_when_they_wait(seen: dict[str, Run]) -> None:
        nonlocal waiting
        if waiting and all(
            "deferred" in one.states.get(WAIT, ()) and "in_call_recording" in one.stages for one in seen.values()
        ):
            waiting = False
            simulator.advance(36_010)

    waiting = True
    watched |= watch(airflow, started, end_when_they_wait)
    bot_id = airflow.xcom(DAG, started["sent"], "send_bot")
    bot = next(one for one in simulator.control("GET", "/state")["bots"] if one["id"] == bot_id)
    ids["sent"] = {"bot_id": bot_id, "recordings": [{"id": one["id"]} for one in bot["recordings"]]}
    return Runs(ids, watched, creates(simulator) - before)


def creates(simulator: RunningSimulator) -> int:
    """Count the bots that were asked for."""
    return sum((one["method"], one["path"]) == ("POST", "/api/v1/bot/") for one in simulator.journal("api"))


def watch(
    airflow: LocalAirflow, started: dict[str, str], look: Callable[[dict[str, Run]], None] = lambda _: None
) -> dict[str, Run]:
    """Follow runs to their ends, and remember what was seen on the way; `look` is shown it after each round."""
    watched = {name: Run(run_id) for name, run_id in started.items()}
    end = time.monotonic() + 1200
    while open_runs := [run for run in watched.values() if run.state not in ("success", "failed")]:
        assert time.monotonic() < end, {name: run.states for name, run in watched.items() if run in open_runs}
        for run in open_runs:
            found = airflow.get(f"/dags/{DAG}/dagRuns/{run.run_id}")
            for one in airflow.task_instances(DAG, run.run_id):
                seen = run.states.setdefault(one["task_id"], [])
                if one["state"] and one["state"] not in seen:
                    seen.append(one["state"])
                run.tries[one["task_id"]] = max(run.tries.get(one["task_id"], 0), one["try_number"])
                if one["task_id"] == "archive_participant" and one["map_index"] >= 0:
                    run.labels[one["map_index"]] = one["rendered_map_index"]
            stage = airflow.xcom(DAG, run.run_id, WAIT, "bot_status")
            if stage and stage not in run.stages:
                run.stages.append(stage)
            run.state = found["state"]
            run.duration = found.get("duration") or 0.0
        look(watched)
        time.sleep(0.3)
    return watched


def folder_of(archive: Path, recording_id: str) -> Path:
    (folder,) = archive.glob(f"dt=*/recording={recording_id}")
    return folder


def read_manifest(folder: Path) -> dict[str, Any]:
    manifest = json.loads((folder / "manifest.json").read_bytes())
    jsonschema.Draft202012Validator(SCHEMA, format_checker=jsonschema.FormatChecker()).validate(manifest)
    return manifest


@pytest.mark.parametrize("name", sorted(OUTCOMES))
def test_meeting_is_archived(name: str, runs: Runs, simulator: RunningSimulator, archive: Path) -> None:
    assert runs.runs[name].state == "success"
    assert runs.recordings(name)
    for recording_id in runs.recordings(name):
        truth = simulator.control("GET", f"/truth/{recording_id}")
        folder = folder_of(archive, recording_id)
        assert folder.parent.name == f"dt={truth['created_at'][:10]}"
        manifest = read_manifest(folder)
        assert manifest["outcome"] == OUTCOMES[name]
        assert manifest["recording"]["id"] == recording_id
        assert manifest["recording"]["bot_id"] == runs.ids[name]["bot_id"]
        check_against_truth(manifest, truth, lambda key, folder=folder: (folder / key).read_bytes())
        stored = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        listed = {one["key"] for one in (*manifest["parts"], *manifest["documents"])}
        assert stored - {"speakers.rttm"} == listed | {"manifest.json", "meeting.html"}
        assert manifest["documents_missing"] == []
        for key in stored:
            assert re.fullmatch(r"[a-z0-9][a-z0-9/_.=-]{0,899}", f"{folder.relative_to(archive)}/{key}")


def check_against_truth(manifest: dict[str, Any], truth: dict[str, Any], read: Any) -> None:
    """Compare a manifest and its objects with what the source really holds, byte for byte."""
    expected = {
        (artifact["id"], one["id"]): (one, artifact["format"])
        for artifact in truth["artifacts"]
        for one in artifact["parts"]
    }
    found = {(one["artifact_id"], one["part_id"]): one for one in manifest["parts"]}
    assert found.keys() == expected.keys()
    assert len({one["key"] for one in manifest["parts"]}) == len(found)
    for identity, entry in found.items():
        source, source_format = expected[identity]
        body = read(entry["key"])
        assert len(body) == entry["bytes"]
        assert hashlib.sha256(body).hexdigest() == entry["sha256"]
        assert (entry["source_bytes"], entry["source_sha256"]) == (source["length"], source["sha256"])
        payload = body[44:] if source_format == "raw" else body
        assert hashlib.sha256(payload).hexdigest() == source["sha256"]
        assert "content-length" in entry["verified_by"]
        assert {"read-back", "store-checksum"} & set(entry["verified_by"])
    assert manifest["totals"]["parts"] == len(found)
    assert manifest["totals"]["bytes"] == sum(one["bytes"] for one in found.values())


@pytest.mark.parametrize("name", sorted(FAILURES))
def test_meeting_that_leaves_nothing_fails_with_its_code(
    name: str, runs: Runs, airflow: LocalAirflow, archive: Path
) -> None:
    run = runs.runs[name]
    assert run.state == "failed"
    error = airflow.xcom(DAG, run.run_id, "wait_for_recordings", "error")
    error = error if isinstance(error, dict) else json.loads(error)
    assert error["code"] == FAILURES[name]
    assert error["message"]
    assert run.tries["wait_for_recordings"] == 1
    for recording_id in runs.recordings(name):
        assert not list(archive.glob(f"dt=*/recording={recording_id}"))


def test_no_separate_audio_fails_at_the_first_look(runs: Runs) -> None:
    run = runs.runs["not_configured"]
    assert "deferred" not in run.states["wait_for_recordings"]


def test_a_reason_is_kept(runs: Runs, airflow: LocalAirflow) -> None:
    for name, reason in (("not_recorded", "timeout_exceeded_waiting_room"), ("fatal", "meeting_not_found")):
        error = airflow.xcom(DAG, runs.runs[name].run_id, "wait_for_recordings", "error")
        assert reason in json.dumps(error)


def test_waiting_holds_no_worker_and_shows_where_the_bot_is(runs: Runs) -> None:
    for name in ("in_call", "sent"):
        run = runs.runs[name]
        assert "deferred" in run.states["wait_for_recordings"]
        assert "in_call_recording" in run.stages


def test_finished_meetings_never_reach_the_triggerer(runs: Runs) -> None:
    for name in ("finished", "by_recording", "two_recordings", "three_pages", "nobody_spoke", "hostile"):
        assert "deferred" not in runs.runs[name].states["wait_for_recordings"], name


def test_mapped_tasks_carry_names(runs: Runs) -> None:
    assert sorted(runs.runs["finished"].labels.values()) == [
        "Alex Kim (101)",
        "Alex Kim (102)",
        "Maria Silva",
        "Participant 104",
        "Priya Nair",
    ]
    labels = runs.runs["hostile"].labels.values()
    assert len(labels) == len(HOSTILE)
    assert "{{ 7*7 }}" in labels
    for label in labels:
        assert label
        assert len(label) <= 240
        assert not set(label) & set("\r\n\u202e\u2066\ufeff")


def test_silent_participants_are_named(runs: Runs, archive: Path) -> None:
    manifest = read_manifest(folder_of(archive, runs.recordings("finished")[0]))
    silent = [one for one in manifest["participants"] if one["parts"] == 0]
    assert len(silent) == 1
    assert {"id": 104, "name": None} in [{key: one[key] for key in ("id", "name")} for one in manifest["participants"]]


def test_hostile_names_stay_in_the_manifest(runs: Runs, archive: Path) -> None:
    folder = folder_of(archive, runs.recordings("hostile")[0])
    manifest = read_manifest(folder)
    assert {one["name"] for one in manifest["participants"]} == set(HOSTILE)
    assert (folder / "manifest.json").read_bytes().isascii()


def test_raw_audio_plays(runs: Runs, archive: Path) -> None:
    folder = folder_of(archive, runs.recordings("finished")[0])
    for entry in read_manifest(folder)["parts"]:
        with wave.open(str(folder / entry["key"])) as sound:
            assert (sound.getframerate(), sound.getsampwidth(), sound.getnchannels()) == (16000, 2, 1)
            assert sound.getnframes() / 16000 == pytest.approx(entry["duration_seconds"], abs=0.01)
        assert "pcm_format_assumed" in entry["warnings"]


def test_gaps_are_listed(runs: Runs, archive: Path) -> None:
    manifest = read_manifest(folder_of(archive, runs.recordings("one_artifact_failed")[0]))
    (gap,) = manifest["missing"]
    assert gap["artifact_id"] == runs.ids["one_artifact_failed"]["recordings"][0]["artifacts"][0]["id"]
    assert gap["error_code"] == "media_failed"


def test_one_asset_event_for_each_recording(runs: Runs, airflow: LocalAirflow) -> None:
    mine = {one.run_id for one in runs.runs.values()}
    events = [one for one in airflow.get("/assets/events?limit=100")["asset_events"] if one["source_run_id"] in mine]
    announced = sorted(event["extra"]["recording_id"] for event in events)
    assert announced == sorted(one for name in OUTCOMES for one in runs.recordings(name))
    for event in events:
        assert Path(unquote(urlsplit(event["extra"]["manifest_uri"]).path)).is_file()
        assert event["extra"]["outcome"] in set(OUTCOMES.values())


def test_extra_links(
    runs: Runs, airflow: LocalAirflow, simulator: RunningSimulator, archive: Path, viewer: dict[str, str]
) -> None:
    run_id = runs.runs["finished"].run_id
    path = f"/dags/{DAG}/dagRuns/{run_id}/taskInstances"
    links = airflow.get(f"{path}/wait_for_recordings/links")["extra_links"]
    bot_id = runs.ids["finished"]["bot_id"]
    assert links["Recall bot"] == f"{simulator.base_url}/dashboard/explorer/bot/{bot_id}"
    links = airflow.get(f"{path}/archive_participant/links?map_index=0")["extra_links"]
    folder = folder_of(archive, runs.recordings("finished")[0])
    assert links["Archive folder"] == f"{airflow.url}/recall/archive/{folder.relative_to(archive)}/"
    page = requests.get(links["Archive folder"], headers=viewer, timeout=30)
    assert page.status_code == 200
    manifest = read_manifest(folder)
    for one in manifest["participants"]:
        assert html.escape(one["name"] or f"Participant {one['id']}") in page.text
    for one in manifest["parts"]:
        served = requests.get(links["Archive folder"] + one["key"], headers=viewer, timeout=30)
        assert served.content == (folder / one["key"]).read_bytes()
        assert (served.headers["Content-Type"], served.headers["Content-Length"]) == ("audio/wav", str(one["bytes"]))
        part = requests.get(served.url, headers={**viewer, "Range": "bytes=-10"}, timeout=30)
        assert (part.status_code, part.content) == (206, served.content[-10:])
        assert requests.head(served.url, headers=viewer, timeout=30).headers["Content-Length"] == str(one["bytes"])


def test_hostile_names_on_the_page_are_text(
    runs: Runs, airflow: LocalAirflow, archive: Path, viewer: dict[str, str]
) -> None:
    folder = folder_of(archive, runs.recordings("hostile")[0]).relative_to(archive)
    reply = requests.get(f"{airflow.url}/recall/archive/{folder}/", headers=viewer, timeout=30)
    assert reply.headers["Content-Security-Policy"].startswith("default-src 'none'; style-src 'sha256-")
    page = reply.text
    assert page.count("<script") == page.count("</script") == 1, "its own"
    for shown in ("&lt;script&gt;", "../../etc/passwd", "\\u202eevil\\u2066", "{{ 7*7 }}", "=cmd()", "x" * 80 + "…"):
        assert shown in page
    assert not set(page) & set("\r\u202e\u2066\ufeff")


def test_the_page_is_for_those_who_are_signed_in(
    runs: Runs, airflow: LocalAirflow, archive: Path, viewer: dict[str, str]
) -> None:
    folder = folder_of(archive, runs.recordings("finished")[0])
    address = f"/recall/archive/{folder.relative_to(archive)}/"
    browser = {"Accept": "text/html"}
    key = read_manifest(folder)["parts"][0]["key"]
    for path in (address, address + key, f"{address}manifest.json"):
        for headers in ({}, {"Authorization": "Bearer no"}, {"Cookie": "_token=no"}):
            reply = requests.get(airflow.url + path, headers=headers, allow_redirects=False, timeout=30)
            assert reply.status_code == 401
        reply = requests.get(airflow.url + path, headers=browser, allow_redirects=False, timeout=30)
        assert reply.status_code == 303
        login = requests.get(airflow.url + reply.headers["Location"], allow_redirects=False, timeout=30)
        target = urlsplit(login.headers["Location"])
        assert (target.path, parse_qs(target.query)["next"]) == ("/auth/login", [path])
    cookie = {"Cookie": f"_token={viewer['Authorization'].removeprefix('Bearer ')}"}
    assert requests.get(airflow.url + address, headers={**browser, **cookie}, timeout=30).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "../../airflow.cfg",
        "dt=2026-03-04/recording=x/../../../etc/passwd",
        "dt=2026-03-04/recording=x/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "dt=2026-03-04/recording=x/..%2f..%2f..%2fetc%2fpasswd",
        "dt=2026-03-04%2f..%2f..%2f..%2fetc%2fpasswd",
        "/etc/passwd",
        "%2fetc%2fpasswd",
        "dt=2026-03-04/recording=x//etc/passwd",
        "elsewhere/manifest.json",
    ],
)
def test_nothing_outside_the_archive_is_served(path: str, airflow: LocalAirflow, viewer: dict[str, str]) -> None:
    # Requests resolves dots before it sends; this does not.
    connection = http.client.HTTPConnection("127.0.0.1", airflow.port, timeout=30)
    connection.request("GET", f"/recall/archive/{path}", headers=viewer)
    reply = connection.getresponse()
    assert (reply.status, json.loads(reply.read())) == (404, {"detail": "Not Found"})
    connection.close()


def test_one_bot_was_sent_with_everything_that_finds_it_again(runs: Runs, simulator: RunningSimulator) -> None:
    assert runs.bots_sent == 1
    url = f"{simulator.base_url}/api/v1/bot/{runs.ids['sent']['bot_id']}/"
    bot = requests.get(url, headers={"Authorization": API_KEY}, timeout=10).json()
    assert {"archive_meeting", "archive_request_id"} <= bot["metadata"].keys()
    assert bot["recording_config"]["audio_separate_raw"] is not None
    assert bot["recording_config"]["retention"] == {"type": "timed", "hours": 166}
    assert bot["variant"]["zoom"] == "native"


def snapshot(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    return {
        str(path): (path.stat().st_mtime_ns, path.stat().st_ino, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_second_run_fetches_and_writes_nothing(
    runs: Runs, airflow: LocalAirflow, simulator: RunningSimulator, archive: Path
) -> None:
    before = snapshot(archive)
    simulator.control("DELETE", "/journal")
    again = watch(airflow, {"again": airflow.trigger(DAG, {"bot_id": runs.ids["finished"]["bot_id"]})})["again"]
    assert again.state == "success"
    assert snapshot(archive) == before
    assert simulator.journal("media") == []
    assert len(simulator.journal("api")) <= 4
    events = airflow.get("/assets/events?limit=100")["asset_events"]
    assert runs.recordings("finished")[0] in [one["extra"]["recording_id"] for one in events]
    assert again.run_id not in [one["source_run_id"] for one in events]


def test_archived_media_that_is_gone_is_still_a_success(
    runs: Runs, airflow: LocalAirflow, simulator: RunningSimulator, archive: Path
) -> None:
    recording_id = runs.recordings("by_recording")[0]
    before = snapshot(archive)
    gone = requests.delete(
        f"{simulator.base_url}/api/v1/recording/{recording_id}/", headers={"Authorization": API_KEY}, timeout=10
    )
    assert gone.status_code == 204
    conf = {"recording_id": recording_id}
    again = watch(airflow, {"again": airflow.trigger(DAG, conf)})["again"]
    assert again.state == "success"
    assert snapshot(archive) == before


def test_same_meeting_to_s3_gives_the_same_manifest(
    runs: Runs, airflow: LocalAirflow, simulator: RunningSimulator, archive: Path, s3: Any, viewer: dict[str, str]
) -> None:
    set_archive(airflow, f"s3://{BUCKET}/audio")
    try:
        run = watch(airflow, {"s3": airflow.trigger(DAG, {"bot_id": runs.ids["finished"]["bot_id"]})})["s3"]
        assert run.state == "success"
        recording_id = runs.recordings("finished")[0]
        local = folder_of(archive, recording_id)
        prefix = f"audio/{local.relative_to(archive)}/"
        listed = {one["Key"] for one in s3.list_objects_v2(Bucket=BUCKET, Prefix=prefix)["Contents"]}
        manifest = json.loads(s3.get_object(Bucket=BUCKET, Key=f"{prefix}manifest.json")["Body"].read())
        jsonschema.Draft202012Validator(SCHEMA).validate(manifest)
        assert without_proofs(manifest) == without_proofs(read_manifest(local))
        keys = {one["key"] for one in (*manifest["parts"], *manifest["documents"])}
        assert listed == {prefix + key for key in (*keys, "manifest.json", "meeting.html", "speakers.rttm")}
        check_against_truth(
            manifest,
            simulator.control("GET", f"/truth/{recording_id}"),
            lambda key: s3.get_object(Bucket=BUCKET, Key=prefix + key)["Body"].read(),
        )
        assert not s3.list_multipart_uploads(Bucket=BUCKET).get("Uploads")
        path = f"/dags/{DAG}/dagRuns/{run.run_id}/taskInstances/settle/links?map_index=0"
        page = airflow.get(path)["extra_links"]["Archive folder"]
        assert requests.get(page, headers=viewer, timeout=30).status_code == 200
        for one in manifest["parts"]:
            served = requests.get(page + one["key"], headers=viewer, timeout=30).content
            assert hashlib.sha256(served).hexdigest() == one["sha256"]
        modified = {one["Key"]: one["LastModified"] for one in s3.list_objects_v2(Bucket=BUCKET)["Contents"]}
        simulator.control("DELETE", "/journal")
        again = watch(airflow, {"s3": airflow.trigger(DAG, {"bot_id": runs.ids["finished"]["bot_id"]})})["s3"]
        assert again.state == "success"
        assert simulator.journal("media") == []
        assert modified == {one["Key"]: one["LastModified"] for one in s3.list_objects_v2(Bucket=BUCKET)["Contents"]}
    finally:
        set_archive(airflow, archive.as_uri())


def without_proofs(manifest: dict[str, Any]) -> dict[str, Any]:
    """Leave out how each store shows that it holds a part: the stores differ in that, and in nothing else."""
    proofs = {"read-back", "store-checksum"}
    parts = [
        {**one, "verified_by": [way for way in one["verified_by"] if way not in proofs]} for one in manifest["parts"]
    ]
    return {**manifest, "parts": parts}


@pytest.mark.parametrize(
    "conf",
    [
        {"bot_id": "../../x"},
        {"bot_id": "x; id"},
        {"recording_id": "x" * 10_000},
        {"bot_id": 5},
        {"meeting_url": "javascript:alert(1)"},
        {"meeting_url": "https://zoom.us/j/1", "join_at": "tomorrow"},
    ],
)
def test_bad_params_are_refused_before_anything_starts(conf: dict[str, Any], airflow: LocalAirflow) -> None:
    with pytest.raises(LocalAirflowError, match="HTTP 400"):
        airflow.trigger(DAG, conf)


def test_contradicting_params_ask_nobody_anything(airflow: LocalAirflow, simulator: RunningSimulator) -> None:
    simulator.control("DELETE", "/journal")
    started = {
        "none": airflow.trigger(DAG, {}),
        "two": airflow.trigger(DAG, {"meeting_url": "https://zoom.us/j/1", "bot_id": "b0b3d1f8"}),
    }
    for run in watch(airflow, started).values():
        assert run.state == "failed"
        assert "bad_params" in json.dumps(airflow.xcom(DAG, run.run_id, "send_bot", "error"))
        assert run.tries["send_bot"] == 1
    assert simulator.journal() == []


def test_nothing_secret_anywhere(runs: Runs, airflow: LocalAirflow, archive: Path, s3: Any) -> None:
    """Runs after all others: the whole of Airflow's home (database, logs, XCom, rendered fields) and both archives."""
    needles = [API_KEY.encode(), STORAGE_SECRET.encode(), WEBHOOK_SECRET.removeprefix("whsec_").encode()]
    patterns = re.compile(rb"(Signature|AWSAccessKeyId)(=|%3D)[A-Za-z0-9%/+_-]{4}|[?&]token(=|%3D)[A-Za-z0-9]{4}")
    hits = []
    searched = 0
    for root in (airflow.home, archive):
        for path, data in files_below(root):
            searched += len(data)
            found = [needle for needle in needles if needle in data] + [one.group() for one in patterns.finditer(data)]
            hits += [(str(path), one) for one in found]
    for one in s3.list_objects_v2(Bucket=BUCKET).get("Contents", []):
        data = s3.get_object(Bucket=BUCKET, Key=one["Key"])["Body"].read() + one["Key"].encode()
        hits += [(one["Key"], match.group()) for match in patterns.finditer(data)]
    assert searched > 1_000_000
    assert hits == []
