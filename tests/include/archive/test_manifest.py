from __future__ import annotations

import json
import random
import threading
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from include.archive import errors, layout, manifest
from include.archive.copy import StoredPart
from include.archive.manifest import Manifest, MissingPart, PartEntry, ParticipantFacts, RecordingFacts
from include.archive.stores import s3 as s3_module
from tests.include.archive.support import IDS, Archive, FakeSource, audio, run

CREATED = datetime(2026, 3, 4, 9, 55, 40, 350_000, tzinfo=timezone.utc)
FOLDER = layout.recording_folder(CREATED, "rec-1")
RECORDING = RecordingFacts(
    id="rec-1",
    created_at=CREATED,
    region="eu-central-1",
    bot_id="bot-1",
    started_at=CREATED + timedelta(seconds=1),
    title="Weekly \u2014 planning",
    platform="zoom",
    metadata={"archive_request_id": "req-0001", "nothing": None},
)
NAMES = [
    "../../etc/passwd",
    "a\0b",
    "a\r\nb",
    "\u202etxt",
    "\ufeff",
    "\ud800 lone",
    "\u2028",
    "x" * 10_000,
    "\U0001f600",
    "e\u0301",
    "",
    None,
]


def stored(number: int, **changes: Any) -> StoredPart:
    values: dict[str, Any] = {
        "key": f"participant={number}/artifact-1/part-{number}.wav",
        "bytes": 1000 + number,
        "sha256": f"{number:064x}",
        "media_type": "audio/wav",
        "source_format": "raw",
        "source_bytes": 956 + number,
        "source_sha256": f"{number + 1:064x}",
        "verified_by": ["content-length", "read-back"],
        "warnings": ["pcm_format_assumed"],
        "pcm": {"rate": 16_000, "width": 2, "channels": 1},
        **changes,
    }
    return StoredPart(**values)


def entry(number: int, part: StoredPart | None = None, **changes: Any) -> PartEntry:
    facts: dict[str, Any] = {
        "artifact_id": "artifact-1",
        "part_id": f"part-{number}",
        "participant_id": number,
        "start_relative_seconds": 0.1 * number - 0.25,
        "start_absolute": CREATED + timedelta(seconds=number),
        "duration_seconds": 0.1,
        **changes,
    }
    return PartEntry.of(part or stored(number), **facts)


def build(**changes: Any) -> Manifest:
    facts: dict[str, Any] = {
        "recording": RECORDING,
        "participants": [ParticipantFacts(id=number, name=f"N{number}", is_host=number == 1) for number in (1, 2, 3)],
        "parts": [entry(number) for number in (1, 2, 3)],
        **changes,
    }
    return Manifest.build(**facts)


def test_the_schema_is_the_published_one_and_valid() -> None:
    schema = json.loads((Path(manifest.__file__).parent / "manifest.v1.schema.json").read_text("utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["properties"]["manifest_version"] == {"const": manifest.MANIFEST_VERSION}


def test_a_manifest_survives_a_round_trip() -> None:
    built = build(missing=[MissingPart(artifact_id="artifact-2", part_id=None, participant_id=None, error_code="gone")])
    data = built.to_bytes()
    assert Manifest.from_bytes(data) == built
    assert Manifest.from_bytes(data).to_bytes() == data
    assert data.isascii()
    assert data.endswith(b"}\n")


def test_the_content() -> None:
    document = json.loads(build().to_bytes())
    assert document["outcome"] == "archived"
    assert document["recording"]["created_at"] == "2026-03-04T09:55:40.350000Z"
    assert document["recording"]["expires_at"] is None
    assert document["totals"] == {"participants": 3, "parts": 3, "bytes": 3006, "audio_seconds": 0.3}
    assert document["participants"][0] == {
        "id": 1,
        "name": "N1",
        "is_host": True,
        "platform": None,
        "email": None,
        "parts": 1,
        "audio_seconds": 0.1,
    }
    assert document["parts"][0]["key"] == "participant=1/artifact-1/part-1.wav"
    assert document["parts"][0]["start_relative_seconds"] == pytest.approx(-0.15)


def test_the_outcome_follows_from_what_there_is() -> None:
    gap = MissingPart(artifact_id="a", part_id="p", participant_id=1, error_code="media_deleted")
    assert build().outcome == "archived"
    assert build(missing=[gap]).outcome == "archived_with_gaps"
    assert build(parts=[], missing=[gap]).outcome == "archived_with_gaps"
    empty = build(parts=[], participants=[], outcome_reason="no separate audio")
    assert (empty.outcome, empty.outcome_reason) == ("nothing_to_archive", "no separate audio")
    assert json.loads(empty.to_bytes())["parts"] == []


def test_order_does_not_matter() -> None:
    parts = [entry(number, part_id=f"p{number}", participant_id=number % 5) for number in range(40)]
    people = [ParticipantFacts(id=number % 5, name=None if number % 2 else f"N{number % 5}") for number in range(20)]
    gaps = [
        MissingPart(artifact_id="a", part_id=None if number == 1 else f"g{number}", participant_id=1, error_code="x")
        for number in range(5)
    ]
    expected = build(parts=parts, participants=people, missing=gaps).to_bytes()
    for seed in range(5):
        shuffle = random.Random(seed).shuffle
        shuffle(parts)
        shuffle(people)
        shuffle(gaps)
        assert build(parts=parts, participants=people, missing=gaps).to_bytes() == expected
    turned = replace(RECORDING, metadata=dict(reversed(list(RECORDING.metadata.items()))))
    assert build(recording=turned, parts=parts, participants=people, missing=gaps).to_bytes() == expected


def test_participants_are_merged_and_completed() -> None:
    built = build(
        participants=[ParticipantFacts(id=1), ParticipantFacts(id=1, name="Ada"), ParticipantFacts(id=9, name="Mute")],
        parts=[entry(1), entry(2)],
    )
    assert [(person.id, person.name) for person in built.participants] == [(1, "Ada"), (2, None), (9, "Mute")]
    totals = json.loads(built.to_bytes())["participants"]
    assert [(person["parts"], person["audio_seconds"]) for person in totals] == [(1, 0.1), (1, 0.1), (0, 0)]


def test_two_participants_with_one_name_stay_two() -> None:
    built = build(
        participants=[ParticipantFacts(id=number, name="Ada") for number in (1, 2)], parts=[entry(1), entry(2)]
    )
    assert len(built.participants) == 2


@pytest.mark.parametrize("what", ["key", "identity"])
def test_two_parts_never_share_a_key_or_an_identity(what: str) -> None:
    parts = [entry(1), entry(2, stored(1))] if what == "key" else [entry(1), entry(2, part_id="part-1")]
    with pytest.raises(errors.ManifestInvalidError, match=what):
        build(parts=parts)


@pytest.mark.parametrize("name", NAMES)
def test_hostile_names_are_kept_and_escaped(archive: Archive, name: str | None) -> None:
    built = build(
        recording=replace(RECORDING, title=name, metadata={str(name): name}),
        participants=[ParticipantFacts(id=1, name=name, platform=name, email=name)],
        parts=[entry(1)],
    )
    assert manifest.publish(archive.store, FOLDER, built)
    (key,) = archive.keys()
    data = archive.get(key)
    assert data.isascii()
    assert not set(data) & (set(range(32)) - {10})
    loaded = manifest.load(archive.store, FOLDER)
    assert loaded == built
    assert loaded.participants[0].name == name


@pytest.mark.parametrize(
    "change",
    [
        {"sha256": "ABC"},
        {"bytes": -1},
        {"duration_seconds": -1.0},
        {"duration_seconds": "long"},
        {"part_id": None},
    ],
)
def test_a_manifest_that_breaks_its_schema_is_never_written(archive: Archive, change: dict[str, Any]) -> None:
    broken = replace(build(), parts=(replace(entry(1), **change),))
    with pytest.raises((errors.ManifestInvalidError, TypeError)):
        manifest.publish(archive.store, FOLDER, broken)
    assert archive.keys() == []


@pytest.mark.parametrize("seconds", [float("nan"), float("inf")])
def test_numbers_that_json_lacks_are_refused(seconds: float) -> None:
    with pytest.raises(errors.ManifestInvalidError):
        build(parts=[entry(1, duration_seconds=seconds)]).to_bytes()


def test_times_need_a_zone() -> None:
    with pytest.raises(errors.ManifestInvalidError, match="time zone"):
        build(recording=replace(RECORDING, created_at=datetime(2026, 3, 4))).to_bytes()


def test_a_validation_error_holds_no_personal_data() -> None:
    document = build(participants=[ParticipantFacts(id=1, name="Ada Example")]).to_dict()
    document["participants"][0]["id"] = "Ada Example"
    with pytest.raises(errors.ManifestInvalidError) as caught:
        manifest.validate(document)
    assert "Ada" not in str(caught.value)
    assert "$.participants[0].id" in str(caught.value)


# -- stored ----------------------------------------------------------------------------------------------------------


def test_publishing_is_repeatable(archive: Archive) -> None:
    assert manifest.load(archive.store, FOLDER) is None
    assert manifest.publish(archive.store, FOLDER, build()) is True
    key = f"{FOLDER}/manifest.json"
    data, before = archive.get(key), archive.modified(key)
    assert data == build().to_bytes()
    assert manifest.publish(archive.store, FOLDER, build()) is False
    renamed = build(recording=replace(RECORDING, title="renamed"))
    assert manifest.publish(archive.store, FOLDER, renamed) is False
    assert (archive.get(key), archive.modified(key)) == (data, before)
    assert manifest.load(archive.store, FOLDER) == build()


@pytest.mark.parametrize(
    "changes",
    [
        {"parts": [entry(1), entry(2)]},
        {"parts": [entry(1), entry(2), entry(3, stored(3, sha256="f" * 64))]},
        {"missing": [MissingPart(artifact_id="a", part_id="p", participant_id=1, error_code="x")]},
        {"parts": []},
    ],
)
def test_a_different_manifest_is_never_replaced(archive: Archive, changes: dict[str, Any]) -> None:
    manifest.publish(archive.store, FOLDER, build())
    data = archive.get(f"{FOLDER}/manifest.json")
    with pytest.raises(errors.ManifestConflictError):
        manifest.publish(archive.store, FOLDER, build(**changes))
    assert archive.get(f"{FOLDER}/manifest.json") == data


def test_readers_never_see_half_a_manifest(archive: Archive) -> None:
    large = build(parts=[entry(number) for number in range(400)], participants=[])
    done, seen, faults = threading.Event(), [], []

    def poll() -> None:
        while not done.is_set():
            try:
                seen.append(manifest.load(archive.store, FOLDER))
            except Exception as error:  # noqa: BLE001
                faults.append(error)

    reader = threading.Thread(target=poll)
    reader.start()
    writers = [threading.Thread(target=manifest.publish, args=(archive.store, FOLDER, large)) for _ in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    done.set()
    reader.join()
    assert faults == []
    assert all(each is None or each == large for each in seen)
    assert manifest.load(archive.store, FOLDER) == large


def test_publishing_cleans_up_after_a_killed_publisher(local: Archive) -> None:
    local.store.write(f"{FOLDER}/manifest.json", media_type="application/json").write(memoryview(b"{"))
    assert len(local.leftovers()) == 1
    manifest.publish(local.store, FOLDER, build())
    assert local.leftovers() == []


def test_publishing_ends_what_a_dead_copy_began_too_late(archive: Archive) -> None:
    """What it asked for may be done when the next one has already cleaned up behind it."""
    size = s3_module.PART_BYTES + 1
    copies = [
        archive.store.write(f"{folder}/participant=1/artifact-1/part-1.ogg", media_type="audio/ogg", size=size)
        for folder in (FOLDER, f"{FOLDER}-2")
    ]
    for one in copies:
        one.write(memoryview(bytes(size)))
    assert len(archive.leftovers()) == 2
    manifest.publish(archive.store, FOLDER, build())
    assert len(archive.leftovers()) == 1
    copies[1].abort()


@pytest.mark.parametrize("version", [2, 99])
def test_a_newer_version_is_refused(archive: Archive, version: int) -> None:
    archive.put(f"{FOLDER}/manifest.json", json.dumps({"manifest_version": version, "new": True}).encode())
    with pytest.raises(errors.ManifestVersionError, match=str(version)) as caught:
        manifest.load(archive.store, FOLDER)
    assert caught.value.permanent
    with pytest.raises(errors.ManifestVersionError):
        manifest.publish(archive.store, FOLDER, build())


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b"{}", b'{"manifest_version": "1"}', b"[" * 100_000],
)
def test_what_is_no_manifest_is_refused(archive: Archive, data: bytes) -> None:
    archive.put(f"{FOLDER}/manifest.json", data)
    with pytest.raises(errors.ManifestInvalidError):
        manifest.load(archive.store, FOLDER)
    with pytest.raises(errors.ManifestInvalidError):
        manifest.publish(archive.store, FOLDER, build())
    assert archive.get(f"{FOLDER}/manifest.json") == data


def test_what_others_added_is_read_past() -> None:
    document = build().to_dict()
    document["new"] = document["recording"]["new"] = document["parts"][0]["new"] = {"x": 1}
    document["recording"]["created_at"] = "2026-03-04t10:55:40.350000+01:00"
    assert Manifest.from_bytes(json.dumps(document).encode()) == build()


@pytest.mark.parametrize("moment", ["yesterday", "2026-03-04T09:55:40", "2026-13-04T09:55:40Z"])
def test_times_that_cannot_be_read(moment: str) -> None:
    document = build().to_dict()
    document["recording"]["created_at"] = moment
    with pytest.raises(errors.ManifestInvalidError):
        Manifest.from_bytes(json.dumps(document).encode())


def test_recordings_are_found_by_id(archive: Archive) -> None:
    store = archive.store
    assert manifest.find(store, "rec-1") is None
    settled = {}
    for day, recording_id in ((1, "rec-1"), (2, "rec-2"), (3, "REC/../3")):
        created = CREATED + timedelta(days=day)
        folder = layout.recording_folder(created, recording_id)
        manifest.publish(store, folder, build(recording=replace(RECORDING, id=recording_id, created_at=created)))
        settled[recording_id] = folder
    owed = layout.recording_folder(CREATED, "rec-4")
    archive.put(f"{owed}/participant=1/a/p.ogg", b"OggS")
    assert {each: manifest.find(store, each) for each in settled} == settled
    assert manifest.find(store, "rec-4") is None
    assert list(manifest.recording_folders(store)) == [owed, *settled.values()]


# -- checked ---------------------------------------------------------------------------------------------------------


def archived(archive: Archive, count: int = 3) -> Manifest:
    parts = []
    for number in range(count):
        stem = layout.part_stem(number, "artifact-1", f"part-{number}")
        part = run(archive, FakeSource(audio(5000, seed=number)), stem=stem, folder=FOLDER, ids=IDS)
        parts.append(entry(number, part))
    built = build(parts=parts, participants=[])
    manifest.publish(archive.store, FOLDER, built)
    return built


def kinds(archive: Archive, built: Manifest, *, deep: bool = False) -> list[tuple[str, str]]:
    return [(each.kind, each.key) for each in manifest.check(archive.store, FOLDER, built, deep=deep)]


def test_a_whole_recording_has_no_problems(archive: Archive) -> None:
    built = archived(archive)
    assert kinds(archive, built) == []
    assert kinds(archive, built, deep=True) == []


@pytest.mark.parametrize("keeps_notes", [True, False])
def test_every_flipped_bit_is_found(archive: Archive, keeps_notes: bool) -> None:
    built = archived(archive)
    key = built.parts[1].key
    info = archive.store.stat(f"{FOLDER}/{key}")
    assert info is not None
    whole = archive.get(f"{FOLDER}/{key}")
    for place in random.Random(3).sample(range(len(whole) * 8), 12):
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << place % 8
        archive.put(f"{FOLDER}/{key}", bytes(flipped), dict(info.metadata) if keeps_notes else None)
        (problem,) = manifest.check(archive.store, FOLDER, built, deep=True)
        assert (problem.kind, problem.key) == ("damaged", key)
        assert (problem.artifact_id, problem.part_id) == ("artifact-1", "part-1")


@pytest.mark.parametrize("name", ["sha256", "crc32"])
def test_the_stores_own_checksum_proves_an_object_or_damns_it(
    archive: Archive, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    built = archived(archive)
    built = replace(built, parts=tuple(replace(part, crc32="12345678") for part in built.parts))
    kept = {f"{FOLDER}/{part.key}": {name: getattr(part, name)} for part in built.parts}
    stat = type(archive.store).stat
    computed = lambda self, key: replace(stat(self, key), metadata={}, checksums=kept[key])  # noqa: E731
    monkeypatch.setattr(type(archive.store), "stat", computed)
    monkeypatch.setattr(type(archive.store), "read", lambda self, key: pytest.fail("nothing needs to be read"))
    assert kinds(archive, built, deep=True) == []
    key = built.parts[1].key
    kept[f"{FOLDER}/{key}"] = {name: "0" * 64}
    assert kinds(archive, built, deep=True) == [("damaged", key)]


def test_missing_cut_replaced_and_extra_objects_are_found(archive: Archive) -> None:
    built = archived(archive)
    archive.put(f"{FOLDER}/{built.parts[0].key}", b"OggS")
    archive.put(f"{FOLDER}/{built.parts[1].key}", audio(5000, seed=8), {"sha256": "0" * 64})
    archive.put(f"{FOLDER}/participant=1/artifact-1/part-9.ogg", b"OggS")
    archive.put(f"{FOLDER}/NOTES.txt", b"hello")
    gone = entry(7, stored(7))
    built = build(parts=[*built.parts, gone], participants=[])
    assert kinds(archive, built) == [
        ("size", built.parts[0].key),
        ("damaged", built.parts[1].key),
        ("missing", gone.key),
        ("extra", "NOTES.txt"),
        ("extra", "participant=1/artifact-1/part-9.ogg"),
    ]


@pytest.mark.parametrize("key", ["../../../etc/passwd", "/etc/passwd", "A", "a//b", ""])
def test_keys_that_lead_elsewhere_are_not_followed(archive: Archive, key: str) -> None:
    assert kinds(archive, build(parts=[entry(1, stored(1, key=key))]), deep=True) == [("bad_key", key)]


def test_large_manifests_are_quick_enough() -> None:
    large = build(parts=[entry(number, participant_id=number % 300) for number in range(3_000)], participants=[])
    data = large.to_bytes()
    assert len(data) < 4_000_000
    assert Manifest.from_bytes(data) == large
