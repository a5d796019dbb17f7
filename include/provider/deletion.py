"""Deleting at the source what is proven to be in the archive. Knows no Airflow.

What is deleted can never be fetched again, so every try begins with the whole proof: each object that the manifest
lists is read to its end, and each part that the source lists at that moment is matched with one of them. The proof is
written down before the first deletion and the receipt after the last, so that a try that was killed in between leaves
what the next one needs to tell "deleted by us, and proven" from "gone, and nobody knows why".
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from include.archive import manifest as manifests
from include.archive.errors import ObjectMissingError
from include.archive.layout import MANIFEST_NAME, is_key, recording_folder, safe_id
from include.provider.errors import NotProvenError
from include.recall.errors import RecallNotFoundError
from include.recall.parts import list_parts, open_part

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from include.archive.stores import Store
    from include.provider.transfer import Ends
    from include.recall.models import AudioArtifact, AudioPart

log = logging.getLogger(__name__)

AUDIO, RECORDING = "audio_separate", "recording"
"""What is deleted: the separate audio alone, or the recording with its video, transcripts and everything else."""

RECEIPTS = "receipts/deleted"
"""Folder of the receipts in the archive, and of the proofs, each recording's in a folder of its own."""

MOST_AT_ONCE = 200
"""How many recordings one run takes on, which keeps their XCom row below 48 KiB; the rest is for the next one."""


@dataclass(frozen=True)
class Candidate:
    """A settled recording that the source still holds: ids only, fit for XCom.

    :param recording_id: the recording.
    :param folder: its folder in the archive.
    :param artifacts: how many artifacts the source holds.
    :param parts: how many parts the archive holds, in ``bytes`` bytes.
    """

    recording_id: str
    folder: str
    artifacts: int
    parts: int
    bytes: int


@dataclass(frozen=True)
class Found:
    """What could be deleted.

    :param candidates: oldest first.
    :param left_out: the ids of those that were passed over, by the reason.
    """

    candidates: list[Candidate]
    left_out: dict[str, list[str]]


@dataclass(frozen=True)
class Deleted:
    """A recording with a receipt.

    :param recording_id: the recording.
    :param scope: :data:`AUDIO` or :data:`RECORDING`.
    :param artifacts: the ids of the artifacts that are gone now.
    :param parts: how many parts were proven to be in the archive.
    :param bytes: how many bytes these have.
    :param receipt_uri: the receipt's address.
    """

    recording_id: str
    scope: str
    artifacts: list[str]
    parts: int
    bytes: int
    receipt_uri: str


def receipt_key(recording_id: str) -> str:
    """Return the key of a recording's receipt."""
    return f"{RECEIPTS}/{safe_id(recording_id)}.json"


def is_deleted(store: Store, recording_id: str) -> bool:
    """Tell whether a recording was deleted at its source on purpose, by us."""
    return store.stat(receipt_key(recording_id)) is not None


def find(
    ends: Ends,
    *,
    created_after: datetime,
    created_before: datetime,
    settled_before: datetime,
    recording_id: str | None = None,
) -> Found:
    """Find settled recordings whose separate audio the source still holds, and that have no receipt yet.

    Costs a list call for each page of recordings and of artifacts, and up to three requests to the store for each
    recording that the source holds.

    :param created_after: only recordings that began after it.
    :param created_before: only recordings that began before it.
    :param settled_before: only recordings whose manifest is older.
    :param recording_id: this one alone, whenever it began.
    """
    if recording_id is not None:
        recordings = [ends.client.get_recording(recording_id)]
        held = {recording_id: ends.client.list_audio_separate(recording_id)}
    else:
        held = ends.client.list_all_audio_separate(created_after)
        recordings = ends.client.list_recordings(created_at_after=created_after, created_at_before=created_before)
    candidates: list[Candidate] = []
    left_out: dict[str, list[str]] = {}
    for recording in sorted(recordings, key=lambda one: one.created_at):
        folder = recording_folder(recording.created_at, recording.id)
        done = [one for one in held.get(recording.id, ()) if one.status == "done"]
        reason = "not finished" if recording.status != "done" else None if done else "no audio left at the source"
        reason = reason or _not_ready(ends.store, recording.id, folder, settled_before)
        if reason is None and len(candidates) == MOST_AT_ONCE:
            reason = "next time"
        manifest = manifests.load(ends.store, folder) if reason is None else None
        if manifest is not None and not all(one.error_code == manifests.PURGED for one in manifest.missing):
            reason = "archived with gaps"
        if reason is not None or manifest is None:
            left_out.setdefault(reason or "not settled", []).append(recording.id)
            continue
        size = sum(part.bytes for part in manifest.parts)
        candidates.append(Candidate(recording.id, folder, len(done), len(manifest.parts), size))
    return Found(candidates, left_out)


def _not_ready(store: Store, recording_id: str, folder: str, settled_before: datetime) -> str | None:
    info = store.stat(f"{folder}/{MANIFEST_NAME}")
    if info is None:
        return "not settled"
    if info.modified > settled_before.timestamp():
        return "settled too lately"
    return "deleted before" if is_deleted(store, recording_id) else None


def delete_at_source(
    ends: Ends, recording_id: str, folder: str, *, scope: str, approved_by: str | None, purpose: str = "retention"
) -> Deleted:
    """Prove that a recording's audio is in the archive, then delete it at the source.

    Run again after any failure: it proves anew, and what is gone already counts as deleted only where an earlier try
    has proven it.

    :param folder: the recording's folder in the archive.
    :param scope: :data:`AUDIO` deletes each artifact of separate audio, :data:`RECORDING` the recording with all else.
    :param approved_by: who agreed, for the receipt; ``None`` where nobody was asked.
    :param purpose: why, for the receipt: ``retention`` or ``purge``.
    :raises NotProvenError: the archive or the source is not as it must be; nothing was deleted by this try.
    :raises RecallConflictError: the source is still at work on it.
    """
    store = ends.store
    receipt = receipt_key(recording_id)
    if store.stat(receipt) is not None:
        return _read_receipt(store, recording_id)
    manifest, digest = _manifest(store, recording_id, folder)
    # The bucket first, which takes a while; then the source, so that little time is left for it to change.
    proven = _read_all(store, recording_id, folder, manifest)
    held, gone = _match(ends, recording_id, manifest)
    proof = {
        "receipt_version": 1,
        "recording_id": recording_id,
        "folder": folder,
        "scope": scope,
        "manifest_sha256": digest,
        "artifact_ids": sorted({*(one.id for one in held), *gone}),
        "parts": proven,
        "purged": sorted([one.artifact_id, one.part_id] for one in manifest.missing),
    }
    _note_proof(store, recording_id, proof)
    outcome = dict.fromkeys(gone, "already_gone")
    if scope == RECORDING:
        whole = "deleted" if ends.client.delete_recording(recording_id) else "already_gone"
        outcome.update(dict.fromkeys((one.id for one in held), whole))
    else:
        for artifact in held:
            outcome[artifact.id] = "deleted" if ends.client.delete_audio_separate(artifact.id) else "already_gone"
    document = {
        **proof,
        "artifacts": outcome,
        "purpose": purpose,
        "approved_by": approved_by,
        "deleted_at": _now(),
        "totals": {"parts": len(proven), "bytes": sum(one["bytes"] for one in proven)},
    }
    store.put_if_absent(receipt, _document(document), "application/json")
    return _read_receipt(store, recording_id)


def _manifest(store: Store, recording_id: str, folder: str) -> tuple[manifests.Manifest, str]:
    try:
        data = b"".join(store.read(f"{folder}/{MANIFEST_NAME}"))
    except ObjectMissingError:
        raise _refused(recording_id, "not_settled", "it has no manifest: archive it first") from None
    manifest = manifests.Manifest.from_bytes(data)
    if manifest.recording.id != recording_id:
        raise _refused(recording_id, "not_settled", f"the manifest in {folder} is of another recording")
    lost = [one for one in manifest.missing if one.error_code != manifests.PURGED]
    if lost:
        raise _refused(recording_id, "archived_with_gaps", f"{len(lost)} of its parts are not in the archive")
    return manifest, hashlib.sha256(data).hexdigest()


def _read_all(store: Store, recording_id: str, folder: str, manifest: manifests.Manifest) -> list[dict[str, Any]]:
    """Read every object to its end: a checksum that the store remembers says nothing of what it would give back."""
    proven = []
    for part in manifest.parts:
        key = f"{folder}/{part.key}"
        digest, size = hashlib.sha256(), 0
        try:
            for chunk in store.read(key) if is_key(key) else ():
                digest.update(chunk)
                size += len(chunk)
        except ObjectMissingError:
            raise _refused(
                recording_id, "archive_damaged", f"{part.key} is not in the archive; run verify_archive to repair it"
            ) from None
        if (size, digest.hexdigest()) != (part.bytes, part.sha256):
            raise _refused(recording_id, "archive_damaged", f"{part.key} is damaged; run verify_archive to repair it")
        proven.append(
            {
                "artifact_id": part.artifact_id,
                "part_id": part.part_id,
                "key": part.key,
                "bytes": part.bytes,
                "sha256": part.sha256,
                "proven_by": "read",
            }
        )
    for document in manifest.documents:
        try:
            whole = b"".join(store.read(f"{folder}/{document.key}")) if is_key(f"{folder}/{document.key}") else b""
        except ObjectMissingError:
            whole = b""
        if (len(whole), hashlib.sha256(whole).hexdigest()) != (document.bytes, document.sha256):
            raise _refused(
                recording_id, "archive_damaged", f"{document.key} is damaged or gone; run verify_archive to repair it"
            )
    return proven


def _match(ends: Ends, recording_id: str, manifest: manifests.Manifest) -> tuple[list[AudioArtifact], list[str]]:
    """Compare what the source lists now with the manifest.

    :return: the artifacts that are there, each part of which is in the archive; and the ids of those that an earlier
        try has deleted.
    """
    expected = {part.artifact_id for part in manifest.parts} | {one.artifact_id for one in manifest.missing}
    try:
        status = ends.client.get_recording(recording_id).status
    except RecallNotFoundError:
        status = "deleted"
    artifacts = ends.client.list_audio_separate(recording_id) if status != "deleted" else []
    if status not in ("done", "deleted"):
        raise _refused(recording_id, "source_not_ready", f"it is {status} at the source")
    held = [one for one in artifacts if one.status != "deleted"]
    for artifact in held:
        if artifact.status != "done":
            raise _refused(
                recording_id, "source_not_ready", f"its artifact {artifact.id} is {artifact.status} at the source"
            )
        _match_parts(ends, recording_id, artifact, manifest)
    gone = (expected | {one.id for one in artifacts}) - {one.id for one in held}
    if gone and (unproven := gone - _proven_before(ends.store, recording_id)):
        raise _refused(
            recording_id,
            "gone_unproven",
            f"its artifact {min(unproven)} is gone, and no proof of ours is there",
        )
    if not held and not gone:
        raise _refused(recording_id, "nothing_to_delete", "the source lists no separate audio of it")
    return held, sorted(gone)


def _match_parts(ends: Ends, recording_id: str, artifact: AudioArtifact, manifest: manifests.Manifest) -> None:
    """Find each part of an artifact in the manifest, each entry once, and none left over."""
    entries = {part.part_id: part for part in manifest.parts if part.artifact_id == artifact.id}
    for part in list_parts(ends.client, ends.media, artifact.id).parts:
        if part.participant.id in manifest.purged:
            continue
        entry = entries.pop(part.id, None) or _reissued(entries, part)
        if entry is None or _moment_of(entry) != (part.participant.id, part.start_relative, part.duration):
            raise _refused(
                recording_id, "source_has_more", f"its part {part.id} is not in the archive; run archive_meeting again"
            )
        _match_size(ends, recording_id, artifact, part, entry)
    if entries:
        raise _refused(recording_id, "source_changed", f"its part {min(entries)} is no longer listed by the source")


def _reissued(entries: dict[str, manifests.PartEntry], part: AudioPart) -> manifests.PartEntry | None:
    """Return the entry of a part whose id was issued anew, if there is exactly one of that person and moment."""
    same = [
        part_id
        for part_id, entry in entries.items()
        if _moment_of(entry) == (part.participant.id, part.start_relative, part.duration)
    ]
    return entries.pop(same[0]) if len(same) == 1 else None


def _moment_of(entry: manifests.PartEntry) -> tuple[int, float, float]:
    return entry.participant_id, entry.start_relative_seconds, entry.duration_seconds


def _match_size(
    ends: Ends, recording_id: str, artifact: AudioArtifact, part: AudioPart, entry: manifests.PartEntry
) -> None:
    """Refuse a part that has another length by now than the body that was archived."""
    body = open_part(ends.client, ends.media, artifact.id, part).open()
    length = body.length
    body.close()
    if length is not None and length != entry.source_bytes:
        raise _refused(
            recording_id,
            "source_changed",
            f"its part {part.id} has {length} bytes at the source, and {entry.source_bytes} were archived",
        )


def _note_proof(store: Store, recording_id: str, proof: Mapping[str, Any]) -> None:
    digest = hashlib.sha256(_document(proof)).hexdigest()[:32]
    # The same proof under the same key: a further try that finds nothing changed leaves nothing further.
    data = _document({**proof, "proven_at": _now()})
    store.put_if_absent(f"{RECEIPTS}/{safe_id(recording_id)}/proof-{digest}.json", data, "application/json")


def _proven_before(store: Store, recording_id: str) -> set[str]:
    """Return the artifacts that an earlier try has proven, and therefore may have deleted."""
    proven: set[str] = set()
    for info in store.list(f"{RECEIPTS}/{safe_id(recording_id)}/"):
        try:
            document = json.loads(b"".join(store.read(info.key)))
        except (ValueError, ObjectMissingError):
            continue
        if isinstance(document, dict) and document.get("recording_id") == recording_id:
            proven.update(str(one) for one in document.get("artifact_ids", ()))
    return proven


def _read_receipt(store: Store, recording_id: str) -> Deleted:
    key = receipt_key(recording_id)
    try:
        receipt = json.loads(b"".join(store.read(key)))
        return Deleted(
            recording_id=recording_id,
            scope=str(receipt["scope"]),
            artifacts=sorted(receipt["artifacts"]),
            parts=int(receipt["totals"]["parts"]),
            bytes=int(receipt["totals"]["bytes"]),
            receipt_uri=store.uri(key),
        )
    except (ValueError, KeyError, TypeError):
        raise _refused(recording_id, "receipt_unreadable", f"{key} in the archive is no receipt of ours") from None


def summary(candidates: Sequence[Mapping[str, Any]], scope: str, rows: int = 100) -> str:
    """Return what would be deleted as Markdown, for whoever has to agree.

    :param candidates: as dictionaries.
    :param rows: how many of them are listed one by one.
    """
    what = {
        AUDIO: "the **separate audio** of these recordings; their video, transcripts and all else stay",
        RECORDING: "these **recordings with everything that belongs to them: video, mixed audio, transcripts, events**",
    }[scope]
    lines = [
        f"This deletes at Recall, for good: {what}. Every part is proven to be in the archive, by reading it, "
        "just before it is deleted.",
        "",
        "| recording | parts in the archive | bytes |",
        "|---|---|---|",
        *(f"| `{one['recording_id']}` | {one['parts']} | {one['bytes']:,} |" for one in candidates[:rows]),
    ]
    if len(candidates) > rows:
        lines += ["", f"and {len(candidates) - rows} more."]
    return "\n".join(lines)


def to_dicts(candidates: Iterable[Candidate]) -> list[dict[str, Any]]:
    """Return candidates as XCom holds them."""
    return [asdict(one) for one in candidates]


def _document(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, sort_keys=True) + "\n").encode("ascii")


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _refused(recording_id: str, code: str, why: str) -> NotProvenError:
    return NotProvenError(f"recording {recording_id} is not deleted at its source: {why}", code=code)
