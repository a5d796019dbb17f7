"""The oracle is worth something only if it sees what it is there to see: each harm is done here and must be seen."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import struct
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import boto3
import pytest

from tests.chaos.oracle import Bucket, Evidence, Finished, Folder, judge, secrets_of
from tests.strict_s3.process import Process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SECRET = "canary-secret-" + "abcDEF123/+" * 5
RECORDING = "5a1ef69b-592b-4062-906f-22dacfefe4ab"
ARTIFACT = "71fdeb7b-9f0d-45f5-adfa-de92601e08f4"
FOLDER = f"dt=2026-03-04/recording={RECORDING}"
BODIES = [b"OggS one", b"OggS two", b""]
SUCCESS = {"state": "success", "code": None}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def key(number: int) -> str:
    return f"participant=1/{ARTIFACT}/part-{number}." + ("ogg" if BODIES[number] else "empty")


def truth() -> dict[str, Any]:
    parts = [
        {"id": f"part-{n}", "participant_id": 1, "relative": float(n), "length": len(body), "sha256": sha256(body)}
        for n, body in enumerate(BODIES)
    ]
    artifacts = [{"id": ARTIFACT, "format": "ogg", "parts": parts}]
    return {"recording_id": RECORDING, "created_at": "2026-03-04T10:00:00Z", "artifacts": artifacts}


def manifest() -> dict[str, Any]:
    nothing: dict[str, Any] = dict.fromkeys(
        ("region", "bot_id", "started_at", "completed_at", "expires_at", "title", "platform")
    )
    recording = {**nothing, "id": RECORDING, "created_at": "2026-03-04T10:00:00Z", "metadata": {}}
    person = {
        "id": 1,
        "name": "Ada",
        "is_host": None,
        "platform": None,
        "email": None,
        "parts": 3,
        "audio_seconds": 3.0,
    }
    parts = [
        {
            "artifact_id": ARTIFACT,
            "part_id": f"part-{n}",
            "participant_id": 1,
            "start_relative_seconds": float(n),
            "start_absolute": None,
            "duration_seconds": 1.0,
            "key": key(n),
            "bytes": len(body),
            "sha256": sha256(body),
            "media_type": "audio/ogg",
            "source_format": "ogg",
            "source_bytes": len(body),
            "source_sha256": sha256(body),
            "verified_by": ["content-length"],
            "warnings": [],
        }
        for n, body in enumerate(BODIES)
    ]
    return {
        "manifest_version": 1,
        "outcome": "archived",
        "recording": recording,
        "participants": [person],
        "parts": parts,
        "missing": [],
        "totals": {"participants": 1, "parts": 3, "bytes": 16, "audio_seconds": 3.0},
    }


def evidence(**changes: Any) -> Evidence:
    return Evidence(**{"truths": [truth()], "runs": [Finished(0, SUCCESS)], "canaries": [SECRET], **changes})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A good archive, which each test spoils in its own way."""
    folder = tmp_path / FOLDER
    for number, body in enumerate(BODIES):
        (folder / key(number)).parent.mkdir(parents=True, exist_ok=True)
        (folder / key(number)).write_bytes(body)
    write_manifest(tmp_path, manifest())
    return tmp_path


def write_manifest(root: Path, document: dict[str, Any]) -> None:
    (root / FOLDER / "manifest.json").write_text(json.dumps(document))


def kinds(root: Path, given: Evidence | None = None, **more: Any) -> set[str]:
    return {problem.kind for problem in judge(Folder(root), given or evidence(), **more)}


def test_a_good_archive_is_good(root: Path) -> None:
    assert judge(Folder(root), evidence()) == []


def test_wav_of_samples_is_the_same_body(root: Path) -> None:
    body = b"\x01\x02\x03"
    wav = b"RIFF" + struct.pack("<I", 40) + b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 16000, 32000, 2, 16)
    wav += b"data" + struct.pack("<I", 3) + body + b"\0"
    facts, document = truth(), manifest()
    facts["artifacts"][0]["parts"][0].update(length=3, sha256=sha256(body))
    document["parts"][0].update(bytes=48, sha256=sha256(wav), source_bytes=3, source_sha256=sha256(body))
    document["totals"]["bytes"] = 56
    (root / FOLDER / key(0)).write_bytes(wav)
    write_manifest(root, document)
    assert kinds(root, evidence(truths=[facts])) == set()
    for spoilt in (wav[:-2] + b"\x04\0", wav[:-1], wav[:40] + struct.pack("<I", 2) + wav[44:]):
        (root / FOLDER / key(0)).write_bytes(spoilt)
        document["parts"][0].update(bytes=len(spoilt), sha256=sha256(spoilt))
        write_manifest(root, document)
        assert "corrupt" in kinds(root, evidence(truths=[facts]))


def test_lost_object(root: Path) -> None:
    (root / FOLDER / key(0)).unlink()
    assert kinds(root) == {"lost"}


def test_lost_entry(root: Path) -> None:
    document = manifest()
    del document["parts"][1]
    document["totals"].update(parts=2, bytes=8)
    write_manifest(root, document)
    assert "lost" in kinds(root)


def test_success_without_a_manifest(root: Path) -> None:
    (root / FOLDER / "manifest.json").unlink()
    assert "lost" in kinds(root)


def test_duplicate_object(root: Path) -> None:
    (root / FOLDER / f"participant=1/{ARTIFACT}/part-9.ogg").write_bytes(BODIES[0])
    assert kinds(root) == {"duplicate"}


def test_duplicate_entry(root: Path) -> None:
    document = manifest()
    document["parts"].append(document["parts"][0])
    write_manifest(root, document)
    assert "duplicate" in kinds(root)


@pytest.mark.parametrize("keeps_length", [True, False])
def test_corrupt_object(root: Path, keeps_length: bool) -> None:
    (root / FOLDER / key(0)).write_bytes(b"OggS onE" if keeps_length else b"OggS")
    assert kinds(root) == {"corrupt"}


def test_corrupt_object_that_the_manifest_vouches_for(root: Path) -> None:
    other = b"OggS onE"
    (root / FOLDER / key(0)).write_bytes(other)
    document = manifest()
    document["parts"][0]["sha256"] = sha256(other)
    write_manifest(root, document)
    assert kinds(root) == {"corrupt"}


@pytest.mark.parametrize("name", [f"{FOLDER}/participant=7/x/y.ogg", "dt=2026-03-04/recording=other/a.ogg", "stray"])
def test_phantom_object(root: Path, name: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(b"OggS nobody said that")
    assert kinds(root) == {"phantom"}


def test_phantom_entry(root: Path) -> None:
    facts = truth()
    del facts["artifacts"][0]["parts"][0]
    assert "phantom" in kinds(root, evidence(truths=[facts]))


@pytest.mark.parametrize("name", [".tmp-part-0.ogg.1234", f"participant=1/{ARTIFACT}/.tmp-x.ogg.12"])
def test_leftover_file(root: Path, name: str) -> None:
    (root / FOLDER / name).write_bytes(b"half")
    assert kinds(root) == {"leftover"}


def test_overwritten_file(root: Path) -> None:
    earlier = Folder(root).objects()
    path = root / FOLDER / key(0)
    body = path.read_bytes()
    path.unlink()
    path.write_bytes(body)
    os.utime(path, ns=(1, 1))
    assert kinds(root, earlier=earlier) == {"overwritten"}


def test_vanished_file(root: Path) -> None:
    earlier = Folder(root).objects()
    (root / FOLDER / key(2)).unlink()
    assert "overwritten" in kinds(root, earlier=earlier)


@pytest.mark.parametrize(
    "shown",
    [
        SECRET,
        quote(SECRET, safe=""),
        SECRET[:64],
        base64.b64encode(SECRET.encode()).decode(),
        base64.b64encode(b"x" + SECRET.encode()).decode(),
        base64.b64encode(b"xy" + SECRET.encode()).decode(),
    ],
)
@pytest.mark.parametrize("where", ["log", "manifest", "key"])
def test_secret(root: Path, shown: str, where: str) -> None:
    given = evidence()
    if where == "log":
        given.texts["task.log"] = f"fetching {shown} now".encode()
    elif where == "manifest":
        document = manifest()
        document["recording"]["title"] = shown
        write_manifest(root, document)
    else:
        try:
            (root / f"{FOLDER}/x-{shown.replace('/', '_')}").write_bytes(b"")
        except OSError:
            pytest.skip("the file system takes no such name")
        given.canaries.append(f"x-{shown.replace('/', '_')}")
    assert "secret" in kinds(root, given)


@pytest.mark.parametrize(
    "text",
    [
        "GET /x?AWSAccessKeyId=SIMULATOR&Signature=FkXQWcfdW%2BcAb0n0wYpN9PpFOWQ%3D",
        "Signature%3DFkXQWcfdWcAb0n0wYpN9PpFOWQ",
        "x-amz-security-token=Zm9vYmFyYmF6cXV4",
        "token eyJrIjogImF1ZGlvX3NlcGFyYXRlIn0",
        '"signature": "0123456789abcdef0123456789abcdef"',
    ],
)
def test_what_looks_like_a_signed_link_is_a_secret(root: Path, text: str) -> None:
    assert kinds(root, evidence(texts={"log": text.encode()})) == {"secret"}


def test_a_hidden_signature_is_none(root: Path) -> None:
    assert kinds(root, evidence(texts={"log": b"GET /x?[hidden] Signature=[hidden]"})) == set()


def test_secrets_of_links() -> None:
    link = "https://h/p?AWSAccessKeyId=A&Signature=a%2Bb%3D&x-amz-security-token=t&Expires=1"
    assert secrets_of([link, "https://h/d?token=abc.def"]) == ["a+b=", "abc.def", "t"]


def entry(time: float, **changes: Any) -> dict[str, Any]:
    plain = {"origin": "api", "method": "GET", "path": "/api/v1/audio_separate/", "fault": None, "time": time}
    return {**plain, "authorization": False, "cookie": False, **changes}


def test_too_many_requests(root: Path) -> None:
    assert kinds(root, evidence(journal=[entry(number / 2) for number in range(61)])) == {"rate"}
    assert kinds(root, evidence(journal=[entry(float(number)) for number in range(61)])) == set()


def test_request_before_retry_after(root: Path) -> None:
    rule = {"name": "busy", "action": {"status": 429, "headers": {"Retry-After": "7"}}}
    for pause, found in ((6.5, {"rate"}), (7.1, set())):
        journal = [entry(1.0, fault="busy"), entry(1.0 + pause)]
        assert kinds(root, evidence(journal=journal, rules=[rule])) == found


def test_a_permanent_error_that_was_met_twice(root: Path) -> None:
    journal = [entry(1.0, fault="refused"), entry(2.0, fault="refused")]
    assert kinds(root, evidence(journal=journal, hits={"refused": 1})) == {"rate"}


def test_key_sent_to_the_media_host(root: Path) -> None:
    assert kinds(root, evidence(journal=[entry(1.0, origin="media", authorization=True)])) == {"secret"}


def test_connection_to_a_forbidden_place(root: Path) -> None:
    assert kinds(root, evidence(connections=1)) == {"connection"}


def test_hang(root: Path) -> None:
    assert "hang" in kinds(root, evidence(runs=[Finished(-9, None, 60.0, hung=True)]))


@pytest.mark.parametrize(
    "outcome", [None, {"state": "failed", "code": "media_cut"}, {"state": "stopped", "code": "stopped"}]
)
def test_another_outcome(root: Path, outcome: Any) -> None:
    assert "outcome" in kinds(root, evidence(runs=[Finished(1, outcome)]))


def test_another_code(root: Path) -> None:
    failed = Finished(1, {"state": "failed", "code": "media_cut", "kept": []})
    assert "outcome" in kinds(root, evidence(runs=[failed], codes=["media_forbidden"]))
    assert "outcome" in kinds(root, evidence(codes=["media_forbidden"]))


def test_manifest_that_breaks_its_schema(root: Path) -> None:
    document = manifest()
    del document["totals"]
    write_manifest(root, document)
    assert kinds(root) == {"manifest"}
    (root / FOLDER / "manifest.json").write_text('{"manifest_version": 1, "par')
    assert kinds(root) == {"manifest"}


def test_manifest_that_hides_a_gap(root: Path) -> None:
    facts = truth()
    facts["artifacts"].append({"id": "lost-one", "format": "raw", "parts": []})
    assert kinds(root, evidence(truths=[facts], gone=["lost-one"])) == {"manifest"}


def test_page_that_shows_something_else(root: Path) -> None:
    page = root / FOLDER / "meeting.html"
    links = "".join(f'<a href="{key(number)}">' for number in range(len(BODIES)))
    page.write_text(f"{links}</html>\n")
    assert kinds(root) == set()
    for other in (f"{links}</html>", "</html>\n", f'{links}<a href="participant=9/a/b.wav"></html>\n'):
        page.write_text(other)
        assert kinds(root) == {"page"}


def test_object_of_a_failed_run_that_nobody_speaks_of(root: Path) -> None:
    (root / FOLDER / "manifest.json").unlink()
    kept = [f"file://{root}/{FOLDER}/{key(number)}" for number in (0, 1)]
    failed = Finished(1, {"state": "failed", "code": "media_cut", "kept": kept})
    assert kinds(root, evidence(runs=[failed], codes=["media_cut"])) == {"unreported"}


def test_wrong_object_of_a_failed_run(root: Path) -> None:
    (root / FOLDER / "manifest.json").unlink()
    (root / FOLDER / key(1)).write_bytes(b"OggS t")
    kept = [f"file://{root}/{FOLDER}/{key(number)}" for number in (0, 1, 2)]
    failed = Finished(1, {"state": "failed", "code": "media_cut", "kept": kept})
    assert kinds(root, evidence(runs=[failed], codes=["media_cut"])) == {"corrupt"}


def test_personal_data_in_a_key(root: Path) -> None:
    (root / FOLDER / "participant=ada").mkdir()
    (root / FOLDER / "participant=ada/x.ogg").write_bytes(b"OggS one")
    assert "key" in kinds(root, evidence(personal=["ada"]))


@pytest.fixture(scope="module")
def server() -> Iterator[Process]:
    with Process(bucket="b") as running:
        yield running


class TestBucket:
    """The same on the S3 server, for what only it can tell."""

    @pytest.fixture
    def put(self, server: Process) -> Callable[..., None]:
        server.reset()
        client = boto3.client(
            "s3",
            endpoint_url=server.endpoint,
            region_name=server.region,
            aws_access_key_id=server.access_key,
            aws_secret_access_key=server.secret_key,
        )

        def put(name: str, data: bytes, **more: Any) -> None:
            client.put_object(Bucket="b", Key=f"archive/{FOLDER}/{name}", Body=data, **more)

        for number, body in enumerate(BODIES):
            put(key(number), body)
        put("manifest.json", json.dumps(manifest()).encode())
        put.client = client  # type: ignore[attr-defined]
        return put

    def kinds(self, server: Process) -> set[str]:
        return {problem.kind for problem in judge(Bucket(server.endpoint, "b", "archive"), evidence())}

    def test_good(self, server: Process, put: Any) -> None:
        assert self.kinds(server) == set()

    def test_overwritten(self, server: Process, put: Any) -> None:
        put(key(0), BODIES[0])
        assert self.kinds(server) == {"overwritten"}

    def test_leftover(self, server: Process, put: Any) -> None:
        put.client.create_multipart_upload(Bucket="b", Key=f"archive/{FOLDER}/x.ogg")
        assert self.kinds(server) == {"leftover"}

    def test_lost(self, server: Process, put: Any) -> None:
        server.control("POST", "tamper", {"key": f"archive/{FOLDER}/{key(0)}", "delete": True})
        assert self.kinds(server) == {"lost"}

    def test_corrupt(self, server: Process, put: Any) -> None:
        server.control("POST", "tamper", {"key": f"archive/{FOLDER}/{key(0)}", "flip": 60})
        assert self.kinds(server) == {"corrupt"}

    def test_phantom(self, server: Process, put: Any) -> None:
        put("participant=7/x/y.ogg", b"OggS nobody said that")
        assert self.kinds(server) == {"phantom"}

    def test_duplicate(self, server: Process, put: Any) -> None:
        put(f"participant=1/{ARTIFACT}/part-9.ogg", BODIES[0])
        assert self.kinds(server) == {"duplicate"}

    def test_secret(self, server: Process, put: Any) -> None:
        put("manifest2.json", b"{}", Metadata={"from": SECRET})
        assert "secret" in self.kinds(server)
