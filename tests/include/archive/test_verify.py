"""Every kind of damage is found, nothing else is, and looking changes nothing."""

from __future__ import annotations

import json
import os
import time
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pytest

from include.archive import errors, layout, manifest, verify
from include.archive.copy import Stop
from include.archive.manifest import Manifest, PartEntry, RecordingFacts
from include.archive.stores.base import READ_CHUNK
from tests.include.archive.support import Archive, FakeSource, audio, run

if TYPE_CHECKING:
    from pathlib import Path

    from include.archive.verify import Checked
    from tests.strict_s3.process import Process

MARCH = datetime(2026, 3, 4, 9, 55, tzinfo=timezone.utc)
LATER = time.time() + 3600


def settle(archive: Archive, name: str = "rec-1", *, day: int = 0, parts: int = 3, size: int = 5000) -> str:
    """Archive a recording as a run does; return its folder."""
    created = MARCH + timedelta(days=day)
    folder = layout.recording_folder(created, name)
    entries = []
    for number in range(parts):
        ids = {"recording_id": name, "artifact_id": "artifact-1", "part_id": f"part-{number}"}
        stored = run(
            archive,
            FakeSource(audio(size + number, seed=number)),
            folder=folder,
            stem=layout.part_stem(number, "artifact-1", f"part-{number}"),
            ids=ids,
        )
        entries.append(
            PartEntry.of(
                stored,
                artifact_id="artifact-1",
                part_id=f"part-{number}",
                participant_id=number,
                start_relative_seconds=0.0,
                start_absolute=None,
                duration_seconds=1.0,
            )
        )
    facts = RecordingFacts(id=name, created_at=created, title="Planning")
    manifest.publish(archive.store, folder, Manifest.build(recording=facts, participants=[], parts=entries))
    return folder


def look(archive: Archive, **options: Any) -> list[Checked]:
    given = {"first": "", "last": "dt=9999", "unsettled_before": LATER, **options}
    return list(verify.look_through(archive.store, **given))


def found(archive: Archive, **options: Any) -> list[tuple[str, str]]:
    return [(one.kind, one.key) for checked in look(archive, **options) for one in checked.findings]


def rewrite(archive: Archive, name: str, data: bytes, notes: dict[str, str] | None = None) -> None:
    """Store something else, without the notes of what was there."""
    archive.remove(name)
    archive.put(name, data, notes)


def key(folder: str, number: int = 1) -> str:
    return f"{folder}/participant={number}/artifact-1/part-{number}.ogg"


@pytest.mark.parametrize("mode", verify.MODES)
def test_a_sound_archive(archive: Archive, mode: str) -> None:
    folders = [settle(archive, f"rec-{number}", day=number) for number in range(5)]
    before = {one: archive.modified(one) for one in sorted(archive.keys())}
    checked = look(archive, mode=mode)
    assert [one.folder for one in checked] == folders
    assert [one.state for one in checked] == ["settled"] * 5
    assert [one.findings for one in checked] == [[]] * 5
    assert {one.manifest_proof for one in checked} == {"sha256"}
    assert {(one.objects, one.bytes) for one in checked} == {(3, 15_003)}
    by_store = mode == "checksum" and archive.kind == "s3"
    # A local disk computes no checksum, so there only reading proves anything.
    assert [dict(one.proofs) for one in checked] == [{"store-checksum" if by_store else "sha256": 3}] * 5
    assert {one.bytes_read for one in checked} == {0 if by_store else 15_003}
    assert {one: archive.modified(one) for one in sorted(archive.keys())} == before


@pytest.mark.parametrize("bit", [0, 20_000, 8 * 5001 - 1])
def test_a_flipped_bit(archive: Archive, bit: int) -> None:
    folder = settle(archive)
    archive.flip(key(folder), bit)
    assert found(archive) == [("damaged", key(folder))]
    (checked,) = look(archive)
    (finding,) = checked.findings
    assert (finding.artifact_id, finding.part_id, finding.harms) == ("artifact-1", "part-1", True)
    assert finding.version is not None
    assert dict(checked.proofs) == {"sha256": 2}


def test_checksums_find_a_flipped_bit_on_a_local_disk_too(local: Archive) -> None:
    folder = settle(local)
    local.flip(key(folder), 77)
    assert found(local, mode="checksum") == [("damaged", key(folder))]


def test_another_object_with_another_checksum(bucket: Archive) -> None:
    folder = settle(bucket)
    bucket.put(key(folder), audio(5001, seed=9))
    assert found(bucket, mode="checksum") == [("damaged", key(folder))]


def test_missing_and_cut_objects(archive: Archive) -> None:
    folder = settle(archive)
    archive.remove(key(folder, 0))
    rewrite(archive, key(folder, 2), archive.get(key(folder, 2))[:-1])
    for mode in verify.MODES:
        assert found(archive, mode=mode) == [("missing", key(folder, 0)), ("size", key(folder, 2))]


def test_a_note_that_tells_another_hash(archive: Archive) -> None:
    folder = settle(archive)
    archive.put(key(folder), archive.get(key(folder)), {"sha256": "0" * 64})
    assert found(archive) == [("damaged", key(folder))]


def test_extra_objects(archive: Archive) -> None:
    folder = settle(archive)
    day = folder.split("/")[0]
    for extra in (f"{folder}/participant=1/other.ogg", f"{day}/loose.ogg", f"{day}/elsewhere/a.ogg"):
        archive.put(extra, b"x")
    for inside in ("reports/verify/a.json", "receipts/a.json", "lost/a.json"):
        archive.put(inside, b"{}")
    archive.put("stray.txt", b"x")
    archive.put("folder/stray.txt", b"x")
    assert sorted(found(archive)) == [
        ("extra", f"{day}/elsewhere/a.ogg"),
        ("extra", f"{day}/loose.ogg"),
        ("extra", f"{folder}/participant=1/other.ogg"),
    ]
    assert [(one.kind, one.key) for one in verify.stray(archive.store)] == [
        ("extra", "stray.txt"),
        ("extra", "folder/"),
    ]
    assert not any(one.harms for checked in look(archive) for one in checked.findings)


def test_every_flipped_bit_of_a_manifest_is_found(archive: Archive) -> None:
    folder = settle(archive)
    place = f"{folder}/{layout.MANIFEST_NAME}"
    data = archive.get(place)
    # This one leaves a manifest that is as valid as before.
    bits = [8 * (data.index(b"Planning") + 1), 0, 8 * len(data) - 1, 8 * (data.index(b'"bytes": ') + 9)]
    for bit in bits:
        archive.flip(place, bit)
        (checked,) = look(archive)
        assert [(one.kind, one.key) for one in checked.findings] == [("manifest_damaged", place)]
        assert (checked.state, checked.manifest) == ("unreadable", None)
        archive.flip(place, bit)
        assert found(archive) == []


def test_without_a_note_the_schema_alone_speaks_for_a_manifest(local: Archive, tmp_path: Path) -> None:
    folder = settle(local)
    path = tmp_path / "archive" / folder / layout.MANIFEST_NAME
    os.removexattr(path, "user.recall.sha256")
    (checked,) = look(local)
    assert (checked.manifest_proof, checked.findings) == ("schema", [])
    path.write_bytes(b"{" + path.read_bytes())
    assert found(local) == [("manifest_damaged", f"{folder}/manifest.json")]


def test_without_a_note_the_stores_checksum_speaks_for_a_manifest(bucket: Archive, strict: Process) -> None:
    folder = settle(bucket)
    place = bucket.store.uri(f"{folder}/manifest.json").split("/", 3)[3]
    strict.control("POST", "tamper", {"key": place, "metadata": {}})
    (checked,) = look(bucket)
    assert (checked.manifest_proof, checked.findings) == ("store-checksum", [])


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"manifest_version": 2}, "manifest_too_new"),
        ({"totals": None}, "manifest_damaged"),
        ({"recording": {"id": "other"}}, "manifest_damaged"),
        ({"recording": {"created_at": "2026-03-05T09:55:00Z"}}, "manifest_damaged"),
        ({"recording": {"created_at": "0001-01-01T00:00:00+23:00"}}, "manifest_damaged"),
    ],
)
def test_manifests_that_are_none(archive: Archive, change: dict[str, Any], kind: str) -> None:
    folder = settle(archive)
    place = f"{folder}/{layout.MANIFEST_NAME}"
    document = json.loads(archive.get(place))
    for name, value in change.items():
        document[name] = {**document[name], **value} if isinstance(value, dict) else value
    rewrite(archive, place, json.dumps(document).encode())
    assert found(archive) == [(kind, place)]


def test_keys_that_lead_elsewhere(archive: Archive) -> None:
    folder = settle(archive)
    place = f"{folder}/{layout.MANIFEST_NAME}"
    document = json.loads(archive.get(place))
    document["parts"][1]["key"] = "../../other/secret.ogg"
    rewrite(archive, place, json.dumps(document).encode())
    assert ("bad_key", f"{folder}/../../other/secret.ogg") in found(archive)


def test_without_a_manifest_an_objects_own_note_tells_of_damage(archive: Archive) -> None:
    folder = settle(archive)
    place = f"{folder}/{layout.MANIFEST_NAME}"
    archive.flip(key(folder), 40)
    archive.flip(place, 0)
    assert found(archive) == [("manifest_damaged", place), ("damaged", key(folder))]
    archive.remove(place)
    assert found(archive) == [("unsettled", folder), ("damaged", key(folder))]


def test_folders_without_a_manifest(archive: Archive) -> None:
    folder = settle(archive)
    archive.remove(f"{folder}/{layout.MANIFEST_NAME}")
    assert found(archive) == [("unsettled", folder)]
    # A run may be at work in a folder that is young.
    (checked,) = look(archive, unsettled_before=time.time() - 3600)
    assert (checked.state, checked.findings) == ("under_way", [])


def test_what_nobody_finishes(archive: Archive) -> None:
    folder = settle(archive)
    with archive.store.write(f"{folder}/participant=9/a.ogg", media_type="audio/ogg") as writer:
        writer.write(memoryview(audio(9 * 2**20)))
        day = folder.split("/")[0] + "/"
        assert list(verify.stale(archive.store, day, time.time() - 60)) == []
        ((finding, unfinished),) = verify.stale(archive.store, day, LATER)
        assert (finding.kind, finding.key, finding.harms) == ("stale", f"{folder}/participant=9/a.ogg", False)
        assert archive.store.discard(unfinished)
    assert found(archive) == []


def test_a_range_of_days_and_one_recording(archive: Archive) -> None:
    folders = [settle(archive, f"rec-{number}", day=number, parts=1) for number in range(4)]
    days = [folder.split("/")[0] for folder in folders]
    assert verify.days(archive.store) == days
    assert [one.folder for one in look(archive, first=days[1], last=days[2])] == folders[1:3]
    assert [one.folder for one in look(archive, first=folders[2], last=folders[2])] == [folders[2]]
    assert look(archive, first="dt=2030-01-01") == []


def test_a_manifest_that_changes_meanwhile_is_read_again(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody purges a part while it is looked for."""
    folder = settle(archive)
    place = f"{folder}/{layout.MANIFEST_NAME}"
    stat = type(archive.store).stat

    def purge(store: Any, name: str) -> Any:
        if name == key(folder) and key(folder) in set(archive.keys()):
            archive.remove(key(folder))
            document = json.loads(archive.get(place))
            del document["parts"][1]
            rewrite(archive, place, json.dumps(document).encode())
        return stat(store, name)

    monkeypatch.setattr(type(archive.store), "stat", purge)
    (checked,) = look(archive)
    assert (checked.objects, checked.findings) == (2, [])


def test_a_passing_failure_is_no_damage(bucket: Archive, strict: Process) -> None:
    folder = settle(bucket)
    strict.faults({"operation": "GetObject", "key": "part-1", "action": "error", "status": 503, "times": 200})
    assert found(bucket) == [("unreadable", key(folder))]
    strict.control("DELETE", "faults")
    assert found(bucket) == []


def test_a_store_that_fails_altogether_is_not_blamed_on_the_objects(
    bucket: Archive, strict: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "MOST_UNREADABLE", 1)
    settle(bucket)
    strict.faults(
        {
            "operation": "GetObject",
            "key": "part-",
            "action": "error",
            "code": "AccessDenied",
            "status": 403,
            "times": 200,
        }
    )
    with pytest.raises(errors.StorageDeniedError):
        look(bucket)


def test_it_can_be_stopped(local: Archive) -> None:
    for number in range(12):
        settle(local, f"rec-{number}", parts=1)
    stop = Stop()
    looking = verify.look_through(local.store, first="", last="dt=9999", unsettled_before=LATER, stop=stop)
    next(looking)
    stop.set()
    with pytest.raises(errors.StoppedError):
        list(looking)


def test_tallies_add_up(local: Archive) -> None:
    folder = settle(local)
    local.flip(key(folder), 5)
    settle(local, "rec-2")
    tallies = []
    for checked in look(local):
        tally = verify.Tally()
        tally.add(checked)
        for finding in checked.findings:
            tally.count(finding.kind, repaired=False)
        tallies.append(json.loads(json.dumps(tally.to_dict())))
    whole = verify.Tally.total(tallies)
    assert whole.to_dict() == {
        "recordings": {"settled": 2},
        "manifests": {"sha256": 2},
        "objects": 6,
        "bytes": 30_006,
        "bytes_read": 35_007,
        "proofs": {"sha256": 5},
        "found": {"damaged": 1},
        "repaired": {},
    }
    assert whole.unrepaired == 1
    whole.count("extra", repaired=False)
    whole.count("damaged", repaired=True)
    assert whole.unrepaired == 1


def test_memory_does_not_grow_with_objects_or_recordings(local: Archive) -> None:
    import tracemalloc

    def peak() -> int:
        tracemalloc.start()
        for _ in verify.look_through(local.store, first="", last="dt=9999", unsettled_before=LATER):
            pass
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    peak()  # imports what it needs
    for number in range(8):
        settle(local, f"rec-{number}", size=8_000_000)
    # Of each object that is read at a time, what came last and what comes next; some MiB for all else.
    assert peak() < verify.OBJECTS * 2 * READ_CHUNK + 8 * 2**20
