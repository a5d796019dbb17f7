"""The manifest: what one recording's folder holds, written last and once."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import zlib
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from include.archive.errors import (
    AlreadyExistsError,
    IntegrityError,
    ManifestConflictError,
    ManifestInvalidError,
    ManifestVersionError,
    ObjectMissingError,
)
from include.archive.layout import MANIFEST_NAME, PAGE_NAME, SPEAKERS_NAME, is_derived, is_key, safe_id

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from include.archive.copy import StoredPart
    from include.archive.stores import ObjectInfo, Store

MANIFEST_VERSION = 1
"""The version that this code writes, and the newest one that it reads."""

MANIFEST_MEDIA_TYPE = "application/json"

PURGED = "purged"
"""Code of a missing part that was removed on purpose, because its participant wanted that."""

BURIED = "receipts/purged/recordings"
"""Folder of the notes about who was removed from a recording, each in a folder of the recording's."""

_SCHEMA = Path(__file__).with_name("manifest.v1.schema.json")


@dataclass(frozen=True, kw_only=True)
class RecordingFacts:
    """What the source tells about the recording. Times need their time zone."""

    id: str
    created_at: datetime
    region: str | None = None
    bot_id: str | None = None
    started_at: datetime | None = None
    completed_at: datetime | None = None
    expires_at: datetime | None = None
    title: str | None = None
    platform: str | None = None
    metadata: Mapping[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ParticipantFacts:
    """What the source tells about one participant."""

    id: int
    name: str | None = None
    is_host: bool | None = None
    platform: str | None = None
    email: str | None = None


@dataclass(frozen=True, kw_only=True)
class PartEntry:
    """One stored part; the fields are those of the manifest's schema."""

    artifact_id: str
    part_id: str
    participant_id: int
    start_relative_seconds: float
    start_absolute: datetime | None
    duration_seconds: float
    key: str
    bytes: int
    sha256: str
    media_type: str
    source_format: str | None
    source_bytes: int
    source_sha256: str
    verified_by: list[str]
    warnings: list[str]
    pcm: dict[str, int] | None = None
    crc32: str | None = None

    @classmethod
    def of(
        cls,
        stored: StoredPart,
        *,
        artifact_id: str,
        part_id: str,
        participant_id: int,
        start_relative_seconds: float,
        start_absolute: datetime | None,
        duration_seconds: float,
    ) -> PartEntry:
        """Join what the source says about a part with what became of it."""
        return cls(
            artifact_id=artifact_id,
            part_id=part_id,
            participant_id=participant_id,
            start_relative_seconds=start_relative_seconds,
            start_absolute=start_absolute,
            duration_seconds=duration_seconds,
            key=stored.key,
            bytes=stored.bytes,
            sha256=stored.sha256,
            media_type=stored.media_type,
            source_format=stored.source_format,
            source_bytes=stored.source_bytes,
            source_sha256=stored.source_sha256,
            verified_by=list(stored.verified_by),
            warnings=list(stored.warnings),
            pcm=stored.pcm,
            crc32=stored.crc32,
        )


@dataclass(frozen=True, kw_only=True)
class MissingPart:
    """One part, or a whole artifact when ``part_id`` is None, that the source can never give again."""

    artifact_id: str
    part_id: str | None
    participant_id: int | None
    error_code: str
    message: str = ""


@dataclass(frozen=True, kw_only=True)
class DocumentEntry:
    """One of the source's lists about the recording, stored byte for byte.

    :param name: what the source calls it, such as ``speaker_timeline``.
    :param key: relative to the recording's folder.
    """

    name: str
    key: str
    bytes: int
    sha256: str
    crc32: str
    media_type: str


@dataclass(frozen=True, kw_only=True)
class MissingDocument:
    """A list about the recording that the source did not give. It keeps nothing from being settled."""

    name: str
    error_code: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """One recording's manifest. Make it with :meth:`build`, which orders it and adds up its totals."""

    outcome: str
    outcome_reason: str | None
    recording: RecordingFacts
    participants: tuple[ParticipantFacts, ...]
    parts: tuple[PartEntry, ...]
    missing: tuple[MissingPart, ...]
    documents: tuple[DocumentEntry, ...] = ()
    documents_missing: tuple[MissingDocument, ...] = ()

    @classmethod
    def build(
        cls,
        *,
        recording: RecordingFacts,
        participants: Iterable[ParticipantFacts],
        parts: Iterable[PartEntry],
        missing: Iterable[MissingPart] = (),
        outcome_reason: str | None = None,
    ) -> Manifest:
        """Put a manifest together; the same facts in any order give the same one.

        :param participants: the source repeats a participant with each part, so repetitions are merged; a participant
            of a part who is not among them is added with nothing but the id.
        :param missing: parts that are gone for good. A part that may still come must not be here: its recording is
            not settled and gets no manifest.
        :param outcome_reason: one line for a person.
        :raises ManifestInvalidError: when two parts share a key or an identity.
        """
        parts, missing = tuple(parts), tuple(missing)
        for what, values in (
            ("key", [p.key for p in parts]),
            ("identity", [(p.artifact_id, p.part_id) for p in parts]),
        ):
            if len(set(values)) != len(values):
                raise ManifestInvalidError(f"recording {safe_id(recording.id)}: two parts share one {what}")
        people: dict[int, ParticipantFacts] = {}
        for person in (*participants, *(ParticipantFacts(id=part.participant_id) for part in parts)):
            people[person.id] = _merged(people.get(person.id, person), person)
        outcome = "archived_with_gaps" if missing else "archived" if parts else "nothing_to_archive"
        return cls(
            outcome=outcome,
            outcome_reason=outcome_reason,
            recording=recording,
            participants=tuple(people[key] for key in sorted(people)),
            parts=tuple(sorted(parts, key=_part_order)),
            missing=tuple(sorted(missing, key=_missing_order)),
        )

    def with_documents(self, documents: Iterable[DocumentEntry], missing: Iterable[MissingDocument]) -> Manifest:
        """Return the same manifest that also tells of the source's lists about the recording.

        :param documents: those that are stored beside the audio.
        :param missing: those that could not be had; one that is stored all the same is not missing.
        """
        documents = tuple(documents)
        stored = {one.name for one in documents}
        return replace(
            self,
            documents=tuple(sorted(documents, key=lambda one: one.name)),
            documents_missing=tuple(
                sorted((one for one in missing if one.name not in stored), key=lambda one: one.name)
            ),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the manifest as its schema describes it."""
        by_participant: dict[int, list[PartEntry]] = {person.id: [] for person in self.participants}
        for part in self.parts:
            by_participant[part.participant_id].append(part)
        return {
            "manifest_version": MANIFEST_VERSION,
            "outcome": self.outcome,
            "outcome_reason": self.outcome_reason,
            "recording": _plain(asdict(self.recording)),
            "participants": [
                {
                    **asdict(person),
                    "parts": len(by_participant[person.id]),
                    "audio_seconds": _seconds(by_participant[person.id]),
                }
                for person in self.participants
            ],
            "parts": [_plain(asdict(part)) for part in self.parts],
            "missing": [asdict(part) for part in self.missing],
            "documents": [asdict(one) for one in self.documents],
            "documents_missing": [asdict(one) for one in self.documents_missing],
            "totals": {
                "participants": len(self.participants),
                "parts": len(self.parts),
                "bytes": sum(part.bytes for part in self.parts),
                "audio_seconds": _seconds(self.parts),
            },
        }

    def to_bytes(self) -> bytes:
        """Return the canonical form: one manifest, one sequence of bytes, pure ASCII.

        :raises ManifestInvalidError: when the manifest breaks its schema.
        """
        document = self.to_dict()
        validate(document)
        try:
            return (json.dumps(document, indent=1, sort_keys=True, allow_nan=False) + "\n").encode("ascii")
        except ValueError:
            raise ManifestInvalidError("the manifest holds a number that JSON lacks") from None

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """Read a stored manifest.

        :raises ManifestVersionError: when a newer version of this project wrote it.
        :raises ManifestInvalidError: when it is not JSON, or breaks its schema.
        """
        try:
            document = json.loads(data)
        except (ValueError, RecursionError):
            raise ManifestInvalidError("the manifest is not JSON") from None
        version = document.get("manifest_version") if isinstance(document, dict) else None
        if isinstance(version, int) and version > MANIFEST_VERSION:
            raise ManifestVersionError(f"the manifest has version {version}; this code reads up to {MANIFEST_VERSION}")
        validate(document)
        return cls(
            outcome=document["outcome"],
            outcome_reason=document.get("outcome_reason"),
            recording=_parse(RecordingFacts, document["recording"]),
            participants=tuple(_parse(ParticipantFacts, person) for person in document["participants"]),
            parts=tuple(_parse(PartEntry, part) for part in document["parts"]),
            missing=tuple(_parse(MissingPart, part) for part in document["missing"]),
            documents=tuple(_parse(DocumentEntry, one) for one in document.get("documents", ())),
            documents_missing=tuple(_parse(MissingDocument, one) for one in document.get("documents_missing", ())),
        )

    def says_the_same(self, other: Manifest) -> bool:
        """Tell whether two manifests list the same recording, objects and gaps, whatever was noted around them."""
        return self._substance() == other._substance()

    @property
    def purged(self) -> frozenset[int]:
        """The participants whose audio was removed on purpose; nothing of theirs is ever fetched again."""
        ids = (one.participant_id for one in self.missing if one.error_code == PURGED)
        return frozenset(one for one in ids if one is not None)

    def _substance(self) -> tuple[object, ...]:
        return (
            self.recording.id,
            self.outcome,
            {(p.artifact_id, p.part_id, p.participant_id, p.key, p.bytes, p.sha256) for p in self.parts},
            {(p.artifact_id, p.part_id) for p in self.missing},
        )


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that is wrong with an archived recording.

    :param kind: ``missing``, ``size``, ``damaged``, ``bad_key`` or ``extra``.
    :param key: relative to the recording's folder.
    :param artifact_id: and ``part_id``: the part concerned; None for an extra object, and for one that is no part.
    """

    kind: str
    key: str
    detail: str
    artifact_id: str | None = None
    part_id: str | None = None


def document_entry(name: str, key: str, data: bytes) -> DocumentEntry:
    """Describe a list about the recording as it is stored.

    :param name: what the source calls it.
    :param key: relative to the recording's folder.
    """
    return DocumentEntry(
        name=name,
        key=key,
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        crc32=f"{zlib.crc32(data):08x}",
        media_type=MANIFEST_MEDIA_TYPE,
    )


def validate(document: object) -> None:
    """Check a manifest against the schema that is kept beside this module.

    :raises ManifestInvalidError: naming the path of the first fault.
    """
    error = next(_validator().iter_errors(document), None)
    if error is not None:
        # The validator's own message quotes the value, which may be a person's name.
        raise ManifestInvalidError(f"the manifest breaks its schema at {error.json_path}: rule {error.validator!r}")


def publish(store: Store, folder: str, manifest: Manifest, *, replaces: ObjectInfo | None = None) -> bool:
    """Write the manifest of a settled recording, once, with a note of its own hash.

    :param folder: the recording's folder, see :func:`include.archive.layout.recording_folder`.
    :param replaces: a damaged manifest whose place it takes, and no other's.
    :return: True when it was written, False when one that says the same was there.
    :raises ManifestConflictError: when a different one was there; it is left as it is.
    """
    if write(store, folder, manifest, replaces=replaces):
        if replaces is None:
            # What a dead task asked for may have been done after the next one had cleaned up behind it.
            store.abort_stale_below([folder])
        else:
            tidy(store, folder, manifest)
        return True
    existing = load(store, folder)
    if existing is not None and existing.says_the_same(manifest):
        return False
    raise ManifestConflictError(f"{store.uri(folder)}: a different manifest is already there and stays as it is")


def write(store: Store, folder: str, manifest: Manifest, *, replaces: ObjectInfo | None = None) -> bool:
    """Write a manifest in one step, with a note of its own hash, by which damage to it is found.

    :param replaces: the version whose place it takes, and no other's; by default there must be none.
    :return: False when there is one, or another one than was to be replaced.
    :raises ObjectMissingError: when the one to be replaced is gone.
    """
    key, data = f"{folder}/{MANIFEST_NAME}", manifest.to_bytes()
    notes = {"sha256": hashlib.sha256(data).hexdigest()}
    if replaces is None:
        return store.put_if_absent(key, data, MANIFEST_MEDIA_TYPE, notes)
    try:
        with store.write(key, media_type=MANIFEST_MEDIA_TYPE, size=len(data), replaces=replaces) as writer:
            writer.write(memoryview(data))
            writer.commit(notes)
    except AlreadyExistsError:
        return False
    return True


def bury(store: Store, recording_id: str, participant_ids: Iterable[int]) -> None:
    """Note in the archive that participants were removed from a recording, even should its manifest be lost."""
    for one in participant_ids:
        data = json.dumps({"recording_id": recording_id, "participant_id": one}).encode()
        key = f"{BURIED}/{safe_id(recording_id)}/participant={safe_id(str(one))}.json"
        store.put_if_absent(key, data, "application/json")


def buried(store: Store, recording_id: str) -> frozenset[int]:
    """Return the participants who were removed from a recording on purpose.

    :raises ManifestInvalidError: when a note of that can't be read.
    """
    found = set()
    for info in list(store.list(f"{BURIED}/{safe_id(recording_id)}/")):
        try:
            found.add(int(json.loads(b"".join(store.read(info.key)))["participant_id"]))
        except (ValueError, KeyError, TypeError):
            raise ManifestInvalidError(f"{store.uri(info.key)}: not a note of who was removed") from None
    return frozenset(found)


def tidy(store: Store, folder: str, manifest: Manifest) -> None:
    """Remove what killed writers of a manifest that is there now, and of what belongs to it, have left beside it."""
    names = (MANIFEST_NAME, PAGE_NAME, SPEAKERS_NAME, *(one.key for one in manifest.documents))
    store.abort_stale(*(f"{folder}/{name}".rpartition(".")[0] for name in names))


def load(store: Store, folder: str) -> Manifest | None:
    """Read the manifest of a recording; None when it is not settled.

    :raises ManifestVersionError: when a newer version of this project wrote it.
    :raises ManifestInvalidError: when it cannot be read.
    """
    try:
        data = b"".join(store.read(f"{folder}/{MANIFEST_NAME}"))
    except ObjectMissingError:
        return None
    return Manifest.from_bytes(data)


def find(store: Store, recording_id: str) -> str | None:
    """Find the folder of a settled recording whose creation time is not known, newest day first.

    Costs one request for each day of the archive: prefer :func:`include.archive.layout.recording_folder`.
    """
    name = f"recording={safe_id(recording_id)}"
    for day in sorted(store.folders(), reverse=True):
        folder = f"{day}/{name}"
        if store.stat(f"{folder}/{MANIFEST_NAME}") is not None:
            return folder
    return None


def recording_folders(store: Store) -> Iterator[str]:
    """Yield the folder of every recording in the archive, settled or not, oldest day first."""
    for day in store.folders():
        yield from (folder for folder in store.folders(day) if "/recording=" in folder)


def check(store: Store, folder: str, manifest: Manifest, *, deep: bool = False) -> list[Problem]:
    """Compare a recording's objects with its manifest.

    :param deep: prove every object, by the checksum that the store itself computed, or else by reading it. Otherwise
        only sizes, and hashes that were noted with the objects, are compared, which no flipped bit shows in.
    :return: what is wrong, in the manifest's order, then objects that it does not list, but for derived ones.
    """
    problems = []
    for part in manifest.parts:
        fault = _fault(store, f"{folder}/{part.key}", part, deep=deep)
        if fault is not None:
            kind, detail = fault
            problems.append(
                Problem(kind=kind, key=part.key, detail=detail, artifact_id=part.artifact_id, part_id=part.part_id)
            )
    for document in manifest.documents:
        fault = _fault(store, f"{folder}/{document.key}", document, deep=deep)
        if fault is not None:
            problems.append(Problem(kind=fault[0], key=document.key, detail=fault[1]))
    listed = {part.key for part in manifest.parts} | {one.key for one in manifest.documents} | {MANIFEST_NAME}
    for info in store.list(folder + "/"):
        key = info.key[len(folder) + 1 :]
        if key not in listed and not is_derived(key):
            problems.append(Problem(kind="extra", key=key, detail="not in the manifest"))
    return problems


def _fault(store: Store, key: str, part: PartEntry | DocumentEntry, *, deep: bool) -> tuple[str, str] | None:
    if not is_key(key):
        return "bad_key", "not a key of this archive"
    info = store.stat(key)
    if info is None:
        return "missing", "no such object"
    if info.size != part.bytes:
        return "size", f"{info.size} bytes where {part.bytes} were stored"
    if info.metadata.get("sha256", part.sha256) != part.sha256 or _contradicts_itself(info):
        return "damaged", "noted with another hash"
    if not deep:
        return None
    for computed, listed in ((info.checksums.get("sha256"), part.sha256), (info.checksums.get("crc32"), part.crc32)):
        if computed is not None and listed is not None:
            return None if computed == listed else ("damaged", "the store's own checksum is another one")
    return None if _sha256(store, key) == part.sha256 else ("damaged", "the bytes have another hash")


def _contradicts_itself(info: ObjectInfo) -> bool:
    return any(info.metadata.get(name, computed) != computed for name, computed in info.checksums.items())


def _sha256(store: Store, key: str) -> str | None:
    digest = hashlib.sha256()
    try:
        for chunk in store.read(key):
            digest.update(chunk)
    except (IntegrityError, ObjectMissingError):
        return None
    return digest.hexdigest()


@functools.cache
def _validator() -> Any:
    import jsonschema  # type: ignore[import-untyped]  # slow to import, and only manifests need it

    kind = jsonschema.Draft202012Validator
    return kind(json.loads(_SCHEMA.read_text("utf-8")), format_checker=kind.FORMAT_CHECKER)


def _merged(first: ParticipantFacts, second: ParticipantFacts) -> ParticipantFacts:
    """Fill what the first leaves open. Where both know something, the smaller value wins: order is no matter."""
    merged: dict[str, Any] = {}
    for name in (each.name for each in fields(ParticipantFacts)):
        known = [value for value in (getattr(first, name), getattr(second, name)) if value is not None]
        merged[name] = min(known, default=None)
    return ParticipantFacts(**merged)


def _part_order(part: PartEntry) -> tuple[object, ...]:
    return (part.participant_id, part.start_relative_seconds, part.artifact_id, part.part_id)


def _missing_order(part: MissingPart) -> tuple[object, ...]:
    return (part.artifact_id, part.part_id or "", part.error_code)


def _seconds(parts: Iterable[PartEntry]) -> float:
    return round(math.fsum(part.duration_seconds for part in parts), 6)


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {name: _timestamp(value) if isinstance(value, datetime) else value for name, value in values.items()}


def _timestamp(moment: datetime) -> str:
    if moment.utcoffset() is None:
        raise ManifestInvalidError("a time in the manifest lacks its time zone")
    return moment.astimezone(timezone.utc).isoformat(timespec="microseconds").replace("+00:00", "Z")


_Facts = TypeVar("_Facts", RecordingFacts, ParticipantFacts, PartEntry, MissingPart, DocumentEntry, MissingDocument)
_TIMES = frozenset({"created_at", "started_at", "completed_at", "expires_at", "start_absolute"})


def _parse(kind: type[_Facts], data: Mapping[str, Any]) -> _Facts:
    known: dict[str, Any] = {each.name: data[each.name] for each in fields(kind) if each.name in data}
    for name in _TIMES.intersection(known):
        known[name] = None if known[name] is None else _moment(known[name])
    return kind(**known)


def _moment(text: str) -> datetime:
    try:
        # Python 3.10 reads neither Z nor a lower-case T.
        moment = datetime.fromisoformat(text.upper().replace("Z", "+00:00"))
    except ValueError:
        raise ManifestInvalidError("the manifest holds a time that cannot be read") from None
    if moment.utcoffset() is None:
        raise ManifestInvalidError("a time in the manifest lacks its time zone")
    return moment
