"""The archive's pages as Airflow serves them: its own plugin loader and security, and an auth manager of ours."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import html
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from datetime import datetime, timezone
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any, NoReturn

import boto3
import pytest
from airflow._shared.plugins_manager import plugins_manager
from airflow.api_fastapi import app as airflow_app
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from fastapi import Request
from moto import mock_aws
from starlette.requests import ClientDisconnect

from include.archive import manifest as manifests
from include.archive import meeting_page
from include.archive.errors import NoSuchBucketError, StorageUnavailableError
from include.archive.manifest import Manifest, MissingPart, PartEntry, ParticipantFacts, RecordingFacts
from include.archive.stores import LocalStore
from include.archive.stores.s3 import S3Store
from include.provider import archive_page
from include.provider.links import folder_url
from tests.plugins.conftest import GOOD, ROOT, AuthManager

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fastapi.testclient import TestClient

    from include.archive.stores import Store

FOLDER = "dt=2026-03-04/recording=rec-1"
AT = f"/recall/archive/{FOLDER}/"
KEY = "participant=100/artifact-1/part-1.wav"
AUDIO = bytes(range(256)) * 10_000  # more than two chunks of a store
MARCH = datetime(2026, 3, 4, 9, 55, tzinfo=timezone.utc)
BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


def entry(number: int, key: str, **more: Any) -> PartEntry:
    facts: dict[str, Any] = {
        "artifact_id": "artifact-1",
        "part_id": f"part-{number}",
        "participant_id": number,
        "start_relative_seconds": 3661.5,
        "start_absolute": None,
        "duration_seconds": 80.0,
        "key": key,
        "bytes": len(AUDIO),
        "sha256": hashlib.sha256(AUDIO).hexdigest(),
        "media_type": "audio/wav",
        "source_format": "raw",
        "source_bytes": len(AUDIO),
        "source_sha256": "0" * 64,
        "verified_by": ["content-length", "read-back"],
        "warnings": ["pcm_format_assumed"],
    }
    return PartEntry(**{**facts, **more})


RECORDING = RecordingFacts(id="rec-1", created_at=MARCH, title="Planning", platform="google_meet")
MANIFEST = Manifest.build(
    recording=RECORDING,
    participants=[
        ParticipantFacts(id=100, name="Ada Lovelace", is_host=True, email="ada@example.com"),
        ParticipantFacts(id=101),
        ParticipantFacts(id=102, name="Grace Hopper"),
    ],
    parts=[entry(100, KEY), entry(101, "participant=101/artifact-1/part-2.wav")],
    missing=[
        MissingPart(
            artifact_id="artifact-2",
            part_id=None,
            participant_id=102,
            error_code="media_failed",
            message="it <b>failed",
        )
    ],
    outcome_reason="one artifact failed",
)


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, local: LocalStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    if request.param == "local":
        yield local
        return
    with mock_aws():
        client = boto3.client("s3", region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="y")
        client.create_bucket(Bucket="bucket")
        store = S3Store(bucket="bucket", prefix="some/prefix", client=client)
        monkeypatch.setattr(archive_page, "open_archive", lambda: store)
        yield store


def fill(store: Store, manifest: Manifest | None = MANIFEST) -> None:
    assert store.put_if_absent(f"{FOLDER}/{KEY}", AUDIO, "audio/wav")
    if manifest is not None:
        assert manifests.publish(store, FOLDER, manifest)


class Tags(HTMLParser):
    """What a browser would make of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.attributes: set[str] = set()
        self.addresses: set[str] = set()
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.addresses |= {value or "" for name, value in attrs if name in ("href", "src")}

    def handle_data(self, data: str) -> None:
        self.text += data


# -- loading ---------------------------------------------------------------------------------------------------------


def test_a_task_that_loads_plugins_does_not_build_the_app() -> None:
    program = (
        "import sys, airflow.sdk.execution_time.task_runner; before = set(sys.modules); "
        "from airflow.sdk import plugins_manager as manager; plugins, errors = manager._get_plugins(); "
        "assert 'recall' in [p.name for p in plugins], errors; print('\\n'.join(set(sys.modules) - before))"
    )
    settings = {"PYTHONPATH": str(ROOT), "AIRFLOW__CORE__PLUGINS_FOLDER": str(ROOT / "plugins")}
    printed = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **settings}, capture_output=True, text=True, check=True
    ).stdout.split()
    assert not [name for name in printed if name.split(".")[0] in {"include", "fastapi", "starlette", "sqlalchemy"}]


def test_airflow_mounts_the_app_once(anybody: TestClient) -> None:
    (plugin,), _ = plugins_manager._load_plugins_from_plugin_directory(str(ROOT / "plugins"))
    assert plugin.fastapi_apps is plugin.fastapi_apps
    assert not any(plugin.fastapi_apps[0]["url_prefix"].startswith(one) for one in airflow_app.RESERVED_URL_PREFIXES)
    for path in ("/recall/docs", "/recall/openapi.json", "/recall/", "/recall/archive"):
        assert anybody.get(path, headers=GOOD).status_code in {404, 307}


# -- the page --------------------------------------------------------------------------------------------------------


def test_a_settled_recording_is_shown(client: TestClient, store: Store) -> None:
    fill(store)
    reply = client.get(AT)
    assert reply.status_code == 200
    page = Tags(reply.text)
    for text in (
        *("Planning", "Archived with gaps", "one artifact failed", "4 Mar 2026, 09:55 UTC", "Google Meet"),
        *("Ada Lovelace", "Participant 101", "Grace Hopper", "Host", "ada@example.com"),
        *("1:01:01.5", "1:20.0", "2.56 MB", MANIFEST.parts[0].sha256[:12], "content-length, read-back"),
        *("pcm format assumed", "What is missing for good", "media_failed", "it <b>failed", "artifact-2"),
    ):
        assert text in page.text, text
    assert {KEY, "manifest.json"} <= page.addresses
    for address in page.addresses - {"#participant-100", "#participant-101", "#grid"}:
        assert client.get(AT + address).status_code == (404 if "participant=101" in address else 200)


RUN = "20261122t020000z-0a1b2c"
REPORTS = "/recall/archive/reports/verify/"


def verification(**more: Any) -> dict[str, Any]:
    """A report with a repaired object, one that is left, and one that hostile hands have named."""
    problem = {"artifact_id": "a", "part_id": "p", "action": None, "code": None, "message": None, "detail": "no such"}
    return {
        "report_version": 1,
        "scope": {"recording_id": None, "from": None, "to": None},
        "mode": "full",
        "repair": True,
        "began_at": "2026-11-22T02:00:00+00:00",
        "ended_at": "2026-11-22T02:10:00+00:00",
        "complete": True,
        "unrepaired": 1,
        "totals": {
            "recordings": {"settled": 3},
            "manifests": {"sha256": 3},
            "objects": 12,
            "bytes": 2_560_000,
            "bytes_read": 2_560_000,
            "proofs": {"sha256": 10},
            "found": {"damaged": 2, "extra": 1},
            "repaired": {"damaged": 1},
        },
        "problems": [
            {
                **problem,
                "kind": "damaged",
                "key": f"{FOLDER}/{KEY}",
                "code": "media_deleted",
                "message": "it <b>is gone",
            },
            {**problem, "kind": "damaged", "key": f"{FOLDER}/other.wav", "action": "replaced"},
            {**problem, "kind": "bad_key", "key": "\u202e<script>alert(1)</script>/javascript:x"},
        ],
        "details": [f"reports/verify/{RUN}/00-0123abcd.jsonl"],
        **more,
    }


def keep(store: Store, run: str, document: dict[str, Any], name: str = "report.json") -> None:
    data = json.dumps(document).encode()
    assert store.put_if_absent(f"reports/verify/{run}/{name}", data, "application/json")


def test_verifications_are_listed_and_shown(client: TestClient, store: Store) -> None:
    keep(store, RUN, verification())
    keep(store, "20261129t020000z-0a1b2d", verification(unrepaired=0))
    assert store.put_if_absent(f"reports/verify/{RUN}/00-0123abcd.jsonl", b"{}\n", "application/x-ndjson")
    assert client.get(REPORTS[:-1]).headers["location"] == "verify/"
    page = Tags(client.get(REPORTS).text)
    assert page.addresses == {f"{RUN}/", "20261129t020000z-0a1b2d/"}
    assert page.text.index("1 repaired") < page.text.index("1 not repaired")  # newest first
    assert client.get(REPORTS + RUN).headers["location"] == f"{RUN}/"
    reply = client.get(f"{REPORTS}{RUN}/")
    page = Tags(reply.text)
    for text in ("1 not repaired", "media_deleted", "it <b>is gone", "replaced", "2.56 MB", "the whole archive", KEY):
        assert text in page.text, text
    assert page.addresses == {f"../../../{FOLDER}/", "report.json", "00-0123abcd.jsonl", "../"}
    assert not page.names & {"script", "b", "img"}
    assert "\u202e" not in reply.text
    assert client.get(f"{REPORTS}{RUN}/report.json").json()["unrepaired"] == 1
    assert client.get(f"{REPORTS}{RUN}/00-0123abcd.jsonl").content == b"{}\n"


def test_the_last_report_of_a_run_is_shown(client: TestClient, store: Store) -> None:
    keep(store, RUN, verification(complete=False, unrepaired=0))
    keep(store, RUN, verification(unrepaired=0, scope={"recording_id": "rec-1"}), "report-2.json")
    page = client.get(f"{REPORTS}{RUN}/").text
    assert "recording rec-1" in page
    assert "Incomplete" not in page


@pytest.mark.parametrize(
    "place", ["other/", "../x", f"{RUN}/../../x.json", f"{RUN}/secret.txt", "20261122t020000z-0a1b2d/"]
)
def test_there_is_nothing_else_below_the_reports(client: TestClient, local: LocalStore, place: str) -> None:
    keep(local, RUN, verification())
    assert client.get(REPORTS + place).status_code == 404


def test_no_verification_yet_and_none_for_strangers(
    client: TestClient, local: LocalStore, auth: AuthManager, anybody: TestClient
) -> None:
    assert "None so far" in client.get(REPORTS).text
    auth.allows = False
    assert client.get(REPORTS).status_code == 403
    client.headers.pop("Authorization")
    assert client.get(REPORTS).status_code == 401


def test_the_page_may_run_nothing_and_load_nothing_foreign(client: TestClient, local: LocalStore) -> None:
    fill(local)
    reply = client.get(AT)
    ((_, style), (_, script)) = re.findall("<(style|script)>(.*?)</", reply.text, re.DOTALL)
    style, script = (base64.b64encode(hashlib.sha256(one.encode()).digest()).decode() for one in (style, script))
    policy = (
        f"default-src 'none'; style-src 'sha256-{style}'; script-src 'sha256-{script}'; media-src 'self' file:; "
        "base-uri 'none'; form-action 'none'"
    )
    assert reply.headers["content-security-policy"] == f"{policy}; frame-ancestors 'self'"
    assert f'<meta http-equiv="Content-Security-Policy" content="{policy}">' in reply.text
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["cache-control"] == "private, no-store"
    page = Tags(reply.text)
    assert not page.names & {"link", "img", "audio", "iframe", "object", "form", "base"}
    assert not [name for name in page.attributes if name.startswith("on") or name == "style"]


HOSTILE = [
    "../../etc/passwd",
    "a\r\nb",
    "\u202eevil\u2066",
    "{{ 7*7 }}",
    "=cmd()",
    "x" * 10_000,
    "<script>alert(1)</script>",
    "'\"><img src=x onerror=alert(1)>",
    "</title></style><svg onload=alert(1)>",
    "\ufeff\x00\ud800",
    "&lt;b&gt;",
]


def test_hostile_names_are_text(client: TestClient, local: LocalStore) -> None:
    fill(local)
    names = Tags(client.get(AT).text)
    hostile = Manifest.build(
        recording=replace(RECORDING, title=HOSTILE[8], platform=HOSTILE[7]),
        participants=[
            ParticipantFacts(id=number, name=name, email=name, platform=name) for number, name in enumerate(HOSTILE)
        ],
        parts=[
            entry(number, f"participant={number}/a/{number}.wav", media_type=name, verified_by=[name], warnings=[name])
            for number, name in enumerate(HOSTILE)
        ],
        missing=[
            MissingPart(artifact_id=name, part_id=name, participant_id=number, error_code=name, message=name)
            for number, name in enumerate(HOSTILE)
        ],
        outcome_reason=HOSTILE[6],
    )
    (local._root / FOLDER / "manifest.json").write_bytes(hostile.to_bytes())
    reply = client.get(AT)
    assert reply.status_code == 200
    page = Tags(reply.text)
    assert page.names <= names.names
    assert page.attributes <= names.attributes
    assert page.addresses == {
        "manifest.json",
        "#grid",
        *(f"#participant-{number}" for number in range(len(HOSTILE))),
        *(f"participant={number}/a/{number}.wav" for number in range(len(HOSTILE))),
    }
    for name in ("../../etc/passwd", "{{ 7*7 }}", "<script>alert(1)</script>", "&lt;b&gt;", "\\u202eevil\\u2066"):
        assert name in page.text
    assert not set(reply.text) & set("\u202e\u2066\ufeff\x00\r")
    assert len(reply.text) < 100_000


@pytest.mark.parametrize("key", ["javascript:alert(1)", "//example.com/a.wav", "../../x.wav", "/etc/passwd", "a b", ""])
def test_a_manifest_s_odd_keys_are_no_links(key: str, client: TestClient, local: LocalStore) -> None:
    fill(local, Manifest.build(recording=RECORDING, participants=[], parts=[entry(7, key)]))
    page = Tags(client.get(AT).text)
    assert page.addresses == {"manifest.json", "#participant-7", "#grid"}


def test_an_unsettled_recording_lists_what_is_stored(client: TestClient, store: Store) -> None:
    fill(store, None)
    reply = client.get(AT)
    assert reply.status_code == 200
    page = Tags(reply.text)
    assert "Not settled" in page.text
    assert "2.56 MB" in page.text
    assert page.addresses == {KEY}


def test_a_recording_without_anything_is_not_found(client: TestClient, store: Store) -> None:
    reply = client.get(AT)
    assert reply.status_code == 404
    assert "Nothing stored" in reply.text


@pytest.mark.parametrize(
    ("data", "code"), [(b"{", "manifest_invalid"), (b'{"manifest_version": 2}', "manifest_too_new")]
)
def test_a_manifest_that_cannot_be_read_is_named(data: bytes, code: str, client: TestClient, local: LocalStore) -> None:
    fill(local, None)
    local.put_if_absent(f"{FOLDER}/manifest.json", data, "application/json")
    reply = client.get(AT)
    assert reply.status_code == 200
    assert code in reply.text
    assert KEY in reply.text


def test_the_largest_meeting_stays_a_page(
    client: TestClient, local: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meeting_page, "MOST_ROWS", 20)
    parts = [entry(number % 3, f"participant={number % 3}/a/{number}.wav", part_id=str(number)) for number in range(50)]
    fill(local, Manifest.build(recording=RECORDING, participants=[], parts=parts))
    text = client.get(AT).text
    assert text.count("data-at=") == 20
    assert "30 more parts" in text


def test_the_folder_without_its_slash_leads_to_the_page(client: TestClient, local: LocalStore) -> None:
    reply = client.get(AT.rstrip("/"))
    assert (reply.status_code, reply.headers["location"]) == (308, "recording=rec-1/")


# -- objects ---------------------------------------------------------------------------------------------------------


def test_an_object_is_served_as_it_is_stored(client: TestClient, store: Store) -> None:
    fill(store)
    reply = client.get(AT + KEY)
    assert reply.status_code == 200
    assert reply.content == AUDIO
    assert reply.headers["content-type"] == "audio/wav"
    assert reply.headers["content-length"] == str(len(AUDIO))
    assert reply.headers["content-encoding"] == "identity"
    assert reply.headers["accept-ranges"] == "bytes"
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["cache-control"] == "private, no-store"
    assert "content-disposition" not in reply.headers
    assert client.get(f"{AT}manifest.json").headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("name", "media_type"),
    [
        ("a.ogg", "audio/ogg"),
        ("a.mp3", "audio/mpeg"),
        ("a.bin", "application/octet-stream"),
        ("a.html", "application/octet-stream"),
        ("a.svg", "application/octet-stream"),
        ("html", "application/octet-stream"),
    ],
)
def test_no_object_is_a_page(name: str, media_type: str, client: TestClient, local: LocalStore) -> None:
    local.put_if_absent(f"{FOLDER}/{name}", b"<script>alert(1)</script>", "text/html")
    assert client.get(AT + name).headers["content-type"] == media_type


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [
        ("bytes=0-", 0, 2_559_999),
        ("bytes=0-1", 0, 1),
        ("bytes=10-19", 10, 19),
        ("bytes=1048570-1048585", 1_048_570, 1_048_585),
        ("bytes=2559999-", 2_559_999, 2_559_999),
        ("bytes=2559990-9999999999", 2_559_990, 2_559_999),
        ("bytes=-7", 2_559_993, 2_559_999),
        ("bytes=-9999999999", 0, 2_559_999),
    ],
)
def test_a_range_is_served(asked: str, first: int, last: int, client: TestClient, store: Store) -> None:
    fill(store)
    reply = client.get(AT + KEY, headers={"Range": asked})
    assert reply.status_code == 206
    assert reply.headers["content-range"] == f"bytes {first}-{last}/{len(AUDIO)}"
    assert reply.headers["content-length"] == str(last - first + 1)
    assert reply.content == AUDIO[first : last + 1]
    head = client.head(AT + KEY, headers={"Range": asked})
    assert (head.status_code, head.content) == (206, b"")
    assert head.headers == reply.headers


@pytest.mark.parametrize("asked", ["bytes=2560000-", "bytes=9999999999-", "bytes=-0"])
def test_a_range_beyond_the_end_is_refused(asked: str, client: TestClient, local: LocalStore) -> None:
    fill(local)
    reply = client.get(AT + KEY, headers={"Range": asked})
    assert (reply.status_code, reply.headers["content-range"]) == (416, "bytes */2560000")


@pytest.mark.parametrize(
    "asked", ["bytes=0-1,5-6", "bytes=5-4", "bytes=-", "bytes=a-b", "items=0-1", "bytes=" + "9" * 99]
)
def test_another_range_gets_the_whole(asked: str, client: TestClient, local: LocalStore) -> None:
    fill(local)
    reply = client.get(AT + KEY, headers={"Range": asked})
    assert (reply.status_code, reply.content) == (200, AUDIO)


def test_a_range_on_a_condition_gets_the_whole(client: TestClient, local: LocalStore) -> None:
    fill(local)
    reply = client.get(AT + KEY, headers={"Range": "bytes=0-1", "If-Range": '"v1"'})
    assert (reply.status_code, reply.content) == (200, AUDIO)


def test_head_tells_what_get_would(client: TestClient, local: LocalStore) -> None:
    fill(local)
    for path in (AT + KEY, f"{AT}{KEY}?download=1", f"{AT}manifest.json", AT):
        head, got = client.head(path), client.get(path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers == got.headers
    assert client.post(AT + KEY).status_code == 405
    assert client.delete(AT + KEY).status_code == 405


# -- what is not the archive's -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "dt=2026-03-04/",
        "dt=2026-03-04",
        "participant=100/artifact-1/part-1.wav",
        "/etc/passwd",
        "%2fetc%2fpasswd",
        "%2e%2e/secret.wav",
        "..%2fsecret.wav",
        "dt=2026-03-04/recording=rec-1/%2e%2e/%2e%2e/secret.wav",
        "dt=2026-03-04/recording=rec-1/..%2f..%2fsecret.wav",
        "dt=2026-03-04/recording=rec-1%2f..%2f..%2fsecret.wav",
        "dt=2026-03-04/recording=%2e%2e/",
        "dt=2026-03-04/recording=rec-1/%2fetc%2fpasswd",
        "dt=2026-03-04/recording=rec-1//etc/passwd",
        "dt=2026-03-04/recording=rec-1/.tmp-part-1.wav.0123",
        "dt=2026-03-04/recording=rec-1/link.wav",
        "dt=2026-03-04/recording=rec-1/outside/secret.wav",
        "dt=2026-03-04/recording=rec-1/participant=100",
        "dt=2026-03-04/recording=rec-1/participant=100/",
        "dt=2026-03-04/recording=rec-1/manifest.json/x",
        "dt=2026-03-04/recording=rec-1/manifest.json%00.wav",
        "dt=2026-03-04/recording=rec-1/manifest.json%0a",
        "dt=2026-03-04/recording=rec-1/MANIFEST.JSON",
        "dt=2026-03-04/recording=rec-1/%252e%252e/secret.wav",
        "dt=2026-03-04/recording=rec-1/" + "a" * 1_000,
        "other=2026-03-04/recording=rec-1/manifest.json",
        "dt=2026-03-04/other/secret.wav",
        "s3:/bucket/secret.wav",
    ],
)
def test_nothing_else_is_served(path: str, client: TestClient, local: LocalStore) -> None:
    fill(local)
    root = local._root
    for place in (root.parent, root, root / "dt=2026-03-04/other", root / "other=2026-03-04/recording=rec-1"):
        place.mkdir(exist_ok=True, parents=True)
        (place / "secret.wav").write_bytes(b"secret")
        (place / "manifest.json").write_bytes(b"secret")
    (root / FOLDER / ".tmp-part-1.wav.0123").write_bytes(b"secret")
    (root / FOLDER / "link.wav").symlink_to(root / "secret.wav")
    (root / FOLDER / "outside").symlink_to(root)
    reply = client.get(f"/recall/archive/{path}")
    assert reply.status_code == 404
    assert "secret" not in reply.text


def test_dot_segments_that_no_client_resolved_are_refused() -> None:
    for place in (f"{FOLDER}/../../secret.wav", f"{FOLDER}/./manifest.json", "../secret.wav", f"{FOLDER}/.."):
        with pytest.raises(archive_page.HTTPException) as caught:
            archive_page._split(place)
        assert caught.value.status_code == 404


@pytest.mark.parametrize(
    ("error", "status"), [(StorageUnavailableError("gone away"), 503), (NoSuchBucketError("no bucket"), 502)]
)
def test_an_archive_out_of_reach_says_so(
    error: Exception, status: int, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> Store:
        raise error

    monkeypatch.setattr(archive_page, "open_archive", refuse)
    for path in (AT, AT + KEY):
        reply = client.get(path)
        assert (reply.status_code, reply.json()["detail"]) == (status, str(error))


def test_the_archive_is_opened_once_a_minute_and_for_each_address(monkeypatch: pytest.MonkeyPatch) -> None:
    moment = 600.0
    monkeypatch.setattr(archive_page.time, "monotonic", lambda: moment)
    monkeypatch.setenv("AIRFLOW_VAR_RECALL_ARCHIVE_URI", "file:///srv/one")
    first = archive_page.open_archive()
    assert first.uri("a.ogg") == "file:///srv/one/a.ogg"
    assert archive_page.open_archive() is first
    moment = 661.0
    assert archive_page.open_archive() is not first
    monkeypatch.setenv("AIRFLOW_VAR_RECALL_ARCHIVE_URI", "file:///srv/two")
    assert archive_page.open_archive().uri("a.ogg") == "file:///srv/two/a.ogg"


def test_the_server_s_event_loop_never_waits_for_a_store(
    client: TestClient, local: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(local)
    calls = []

    def outside_the_loop(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            with pytest.raises(RuntimeError, match="no running event loop"):
                asyncio.get_running_loop()
            calls.append(method.__name__)
            return method(*args)

        return call

    def read(*args: Any) -> Iterator[bytes]:
        for chunk in LocalStore.read(local, *args):
            yield outside_the_loop(lambda one: one)(chunk)

    monkeypatch.setattr(local, "stat", outside_the_loop(local.stat))
    monkeypatch.setattr(local, "read", read)
    assert client.get(AT + KEY).content == AUDIO
    assert client.get(AT).status_code == 200
    assert len(calls) == 1 + 3 + 1


def test_a_reader_that_hangs_up_leaves_nothing_open(local: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(local)
    reads: list[str] = []

    def read(*args: Any) -> Iterator[bytes]:
        reads.append("opened")
        try:
            yield from LocalStore.read(local, *args)
        finally:
            reads.append("closed")

    async def receive() -> NoReturn:
        await asyncio.sleep(60)
        raise AssertionError("nobody waits for that")

    async def send(message: dict[str, Any]) -> None:
        if message.get("body"):
            raise OSError("hung up")

    monkeypatch.setattr(local, "read", read)
    scope = {"type": "http", "method": "GET", "headers": [], "path": AT + KEY, "asgi": {"spec_version": "2.4"}}
    reply = archive_page.show(f"{FOLDER}/{KEY}", Request(scope))
    with pytest.raises(ClientDisconnect):
        asyncio.run(reply(scope, receive, send))
    # The reply is still alive here, as it is in an exception's traceback.
    assert reads == ["opened", "closed"]


# -- access ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [AT, AT + KEY, AT.rstrip("/"), "/recall/archive/no/such/thing"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_client_without_a_good_token_is_refused(
    method: str, path: str, anybody: TestClient, local: LocalStore
) -> None:
    fill(local)
    bad = {"Authorization": "Bearer bad"}
    for headers in ({}, bad, {**bad, **BROWSER}, {"Cookie": "_token=bad"}, {"Authorization": "Basic Z29vZDpnb29k"}):
        reply = anybody.request(method, path, headers=headers)
        assert reply.status_code == 401, headers
        assert reply.headers["www-authenticate"] == "Bearer"
    assert "Ada" not in reply.text


@pytest.mark.parametrize("cookie", [{}, {"Cookie": "_token=bad"}])
def test_a_browser_is_sent_to_the_login_and_back(
    cookie: dict[str, str], anybody: TestClient, local: LocalStore
) -> None:
    for path, back in (
        (AT, "%2Frecall%2Farchive%2Fdt%3D2026-03-04%2Frecording%3Drec-1%2F"),
        (
            f"{AT}{KEY}?download=1",
            "%2Frecall%2Farchive%2Fdt%3D2026-03-04%2Frecording%3Drec-1%2Fparticipant%3D100%2Fartifact-1%2Fpart-1.wav"
            "%3Fdownload%3D1",
        ),
        ("/recall/archive///example.com/%25 :", "%2Frecall%2Farchive%2F%2F%2Fexample.com%2F%2525%2520%253A"),
    ):
        reply = anybody.get(path, headers={**BROWSER, **cookie})
        assert (reply.status_code, reply.headers["location"]) == (303, f"/api/v2/auth/login?next={back}")


def test_a_browser_s_cookie_is_enough(anybody: TestClient, local: LocalStore) -> None:
    fill(local)
    cookie = {"Cookie": "_token=good"}
    assert anybody.get(AT, headers={**BROWSER, **cookie}).status_code == 200
    assert anybody.get(AT + KEY, headers=cookie).content == AUDIO


def test_reading_runs_is_what_is_asked_for(client: TestClient, auth: AuthManager, local: LocalStore) -> None:
    fill(local)
    assert client.get(AT).status_code == 200
    assert auth.asked is not None
    assert (auth.asked["method"], auth.asked["access_entity"]) == ("GET", DagAccessEntity.RUN)
    assert (auth.asked["details"].id, auth.asked["user"]) == ("archive_meeting", "somebody")
    auth.allows = False
    for headers in ({}, BROWSER):
        for path in (AT, AT + KEY, "/recall/archive/no/such/thing"):
            reply = client.get(path, headers=headers)
            assert reply.status_code == 403
            assert "Ada" not in html.unescape(reply.text)


# -- the button --------------------------------------------------------------------------------------------------------


def test_the_button_leads_to_the_console_on_aws_and_here_elsewhere(
    local: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def s3(endpoint: str | None) -> S3Store:
        client = boto3.client(
            "s3", region_name="us-east-1", endpoint_url=endpoint, aws_access_key_id="x", aws_secret_access_key="y"
        )
        return S3Store(bucket="bucket", prefix="p", client=client)

    assert folder_url(s3(None), FOLDER).startswith("https://us-east-1.console.aws.amazon.com/s3/buckets/bucket?")
    for base_url in ("https://airflow.example.com/team", "https://airflow.example.com/team/"):
        monkeypatch.setenv("AIRFLOW__API__BASE_URL", base_url)
        for store in (local, s3("http://127.0.0.1:9000")):
            assert folder_url(store, FOLDER) == f"https://airflow.example.com/team{AT}"
