from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from include.archive.stores import LocalStore
from scripts.report import printable, read_recording, table

if TYPE_CHECKING:
    from pathlib import Path

FOLDER = "dt=2026-03-04/recording=r1"


def participant(number: int, name: str | None) -> dict[str, Any]:
    return {"id": number, "name": name}


def part(number: int, key: str, body: bytes) -> dict[str, Any]:
    return {
        "participant_id": number,
        "key": key,
        "bytes": len(body),
        "duration_seconds": 1.25,
        "sha256": hashlib.sha256(body).hexdigest(),
    }


def archive(root: Path, *, stored: dict[str, bytes], parts: list[dict[str, Any]]) -> LocalStore:
    manifest = {
        "outcome": "archived",
        "recording": {"id": "r1", "title": None},
        "participants": [participant(1, "Ann"), participant(2, "Ann"), participant(3, None), participant(4, "Bo")],
        "parts": parts,
        "missing": [],
    }
    for key, body in {**stored, "manifest.json": json.dumps(manifest).encode()}.items():
        path = root / FOLDER / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
    return LocalStore(root=root)


def test_every_participant_has_a_row_with_what_is_stored(tmp_path: Path) -> None:
    bodies = {"participant=1/a.wav": b"one", "participant=1/b.wav": b"three", "participant=3/c.wav": b"3"}
    parts = [part(int(key[12]), key, body) for key, body in bodies.items()]
    report = read_recording(archive(tmp_path, stored=bodies, parts=parts), FOLDER)
    assert report.verified
    assert report.title == "r1"
    assert [(row.name, row.parts, row.seconds, row.bytes) for row in report.rows] == [
        ("Ann (1)", 2, 2.5, 8),
        ("Ann (2)", 0, 0, 0),
        ("Participant 3", 1, 1.25, 1),
        ("Bo", 0, 0, 0),
    ]
    assert table(report.rows).splitlines()[1:3] == [
        "  Ann (1)            2      2.5      8  yes       participant=1/a.wav",
        "                                                  participant=1/b.wav",
    ]


def test_bytes_that_changed_after_the_manifest_are_not_verified(tmp_path: Path) -> None:
    key = "participant=4/a.wav"
    report = read_recording(archive(tmp_path, stored={key: b"damaged"}, parts=[part(4, key, b"correct")]), FOLDER)
    assert not report.verified
    assert report.rows[3].faults == [f"{key}: the stored bytes are not those of the manifest"]
    assert " NO " in table(report.rows)


def test_an_object_that_is_gone_is_not_verified(tmp_path: Path) -> None:
    report = read_recording(archive(tmp_path, stored={}, parts=[part(4, "participant=4/a.wav", b"x")]), FOLDER)
    assert not report.verified


def test_a_name_cannot_drive_the_terminal() -> None:
    assert printable("\x1b[2JEve\u202e\nBob") == " [2JEve  Bob"
