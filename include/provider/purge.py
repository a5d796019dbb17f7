"""Removing one person from the archive, because that person wants it. Knows no Airflow.

A note with ids is left in the archive first: from then on nothing brings the audio back, even should the manifest be
lost. Then the manifest is rewritten, on the condition that it has not changed, and then the objects go. A try that was
killed in between leaves a manifest that names the participants by their ids, so the next one, and the next search too,
finishes it. The page goes before the manifest: by name nobody is found any more once the manifest is rewritten.
"""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
import unicodedata
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from include.archive import manifest as manifests
from include.archive import meeting_page, speakers
from include.archive.errors import ManifestConflictError, ObjectMissingError
from include.archive.layout import DERIVED_FOLDER, MANIFEST_NAME, document_key, participant_folder, safe_id
from include.provider.deletion import AUDIO, delete_at_source

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from include.archive.stores import ObjectInfo, Store
    from include.provider.transfer import Ends

log = logging.getLogger(__name__)

RECEIPTS = "receipts/purged"
"""Folder of the receipts in the archive."""

ATTEMPTS = 5
"""How often a manifest is read anew because somebody else has just replaced it."""

REMOVED = "removed on request"


@dataclass(frozen=True)
class Request:
    """Whom it is about: an e-mail address, an exact name, or a participant of one recording.

    It holds personal data: it goes into no log, no XCom and no file.
    """

    email: str | None = None
    name: str | None = None
    recording_id: str | None = None
    participant_id: int | None = None

    def means(self, recording_id: str, person: manifests.ParticipantFacts) -> bool:
        """Tell whether a participant of a recording is the one."""
        if self.recording_id is not None:
            return (recording_id, person.id) == (self.recording_id, self.participant_id)
        if self.email is not None:
            return person.email is not None and _plain(person.email).casefold() == _plain(self.email).casefold()
        return self.name is not None and person.name is not None and _plain(person.name) == _plain(self.name)


@dataclass(frozen=True)
class Match:
    """Participants of one recording that are to be removed: ids only, fit for XCom.

    :param participant_ids: usually one; a person who left and came back may be several.
    :param parts: how many parts they have in the archive, in ``bytes`` bytes.
    """

    recording_id: str
    folder: str
    participant_ids: list[int]
    parts: int
    bytes: int


@dataclass(frozen=True)
class Purged:
    """What was removed of one recording.

    :param objects: how many objects were removed by this try.
    :param at_source: the artifacts that were deleted at the source, where that was asked for.
    """

    recording_id: str
    participant_ids: list[int]
    objects: int
    at_source: list[str]


def find(
    store: Store, request: Request, first: datetime | None, last: datetime | None
) -> tuple[list[Match], list[str]]:
    """Look for a person in the manifests of the archive.

    What an earlier purge has left half done is found as well, whoever it was about.

    :param first: the beginning of the first day to look at; all days by default.
    :param last: the end of the last one.
    :return: the matches; and the folders that have no manifest, in which nobody can be found by name.
    """
    matches: list[Match] = []
    unsettled: list[str] = []
    for folder in _folders(store, request, first, last):
        manifest = manifests.load(store, folder)
        if manifest is None:
            unsettled.append(folder)
            continue
        recording_id = manifest.recording.id
        meant = {one.id for one in manifest.participants if request.means(recording_id, one)}
        if request.recording_id is None:
            meant -= manifest.purged  # whose name is gone already
        half_done = {one for one in manifest.purged if any(store.list(_place(folder, one)))}
        if _unlisted(store, folder, manifest):
            half_done |= manifests.buried(store, recording_id)
        if whom := sorted(meant | half_done):
            parts = [part for part in manifest.parts if part.participant_id in whom]
            size = sum(part.bytes for part in parts)
            matches.append(Match(recording_id, folder, whom, len(parts), size))
    return matches, unsettled


def _folders(store: Store, request: Request, first: datetime | None, last: datetime | None) -> Iterable[str]:
    if request.recording_id is not None:
        folder = manifests.find(store, request.recording_id)
        return [] if folder is None else [folder]
    begin = "" if first is None else f"dt={first.date().isoformat()}"
    end = "dt=~" if last is None else f"dt={last.date().isoformat()}"
    return (one for one in manifests.recording_folders(store) if begin <= one.partition("/")[0] < end)


def purge(store: Store, recording_id: str, folder: str, participant_ids: Sequence[int]) -> int:
    """Remove participants of one recording: their names and addresses, their entries, their objects.

    With them goes what tells of everyone at once: the source's lists, and what was made from the audio of all, which
    can be made anew from what is left.

    :return: how many objects were removed; none where an earlier try has removed them.
    :raises ManifestConflictError: somebody else keeps replacing the manifest, or it is another recording's.
    """
    manifests.bury(store, recording_id, participant_ids)
    is_new = _rewrite(store, recording_id, folder, set(participant_ids))
    meeting_page.renew(store, folder)
    speakers.renew(store, folder)
    places = [_place(folder, one) for one in participant_ids]
    store.abort_stale_below([place.rstrip("/") for place in places])
    manifest = manifests.load(store, folder)
    going = _unlisted(store, folder, manifest) if manifest is not None else []
    going += [info for place in places for info in store.list(place)]
    if is_new or going:
        going = [*store.list(f"{folder}/{DERIVED_FOLDER}/"), *going]
    for info in going:
        store.delete(info)
    return len(going)


def _unlisted(store: Store, folder: str, manifest: manifests.Manifest) -> list[ObjectInfo]:
    """Return the lists that a purge has taken out of the manifest and that are still there."""
    names = (one.name for one in manifest.documents_missing if one.error_code == manifests.PURGED)
    found = (store.stat(f"{folder}/{document_key(name)}") for name in names)
    return [info for info in found if info is not None]


def purge_at_source(ends: Ends, recording_id: str, folder: str, *, approved_by: str | None) -> list[str]:
    """Delete a purged recording's separate audio at the source, which goes only as a whole, for everyone in it.

    What the others said must be proven to be in the archive, see :func:`include.provider.deletion.delete_at_source`.

    :return: the artifacts that are gone; none where the source holds none any more.
    """
    if all(one.status == "deleted" for one in ends.client.list_audio_separate(recording_id)):
        return []
    deleted = delete_at_source(ends, recording_id, folder, scope=AUDIO, approved_by=approved_by, purpose="purge")
    return deleted.artifacts


def _rewrite(store: Store, recording_id: str, folder: str, whom: set[int]) -> bool:
    key = f"{folder}/{MANIFEST_NAME}"
    for _ in range(ATTEMPTS):
        info, manifest = store.stat(key), manifests.load(store, folder)
        if info is None or manifest is None or manifest.recording.id != recording_id:
            raise ManifestConflictError(f"{folder}: the manifest of recording {recording_id} is gone")
        anew = without(manifest, whom)
        if anew == manifest:
            return False
        if not meeting_page.show(store, folder, anew):
            continue
        try:
            if manifests.write(store, folder, anew, replaces=info):
                return True
        except ObjectMissingError:
            continue
    raise ManifestConflictError(f"{folder}: somebody else keeps replacing the manifest; try again later")


def without(manifest: manifests.Manifest, whom: set[int]) -> manifests.Manifest:
    """Return a manifest as it is without some participants: nothing is left of them but their ids."""
    names = {_plain(word) for one in manifest.participants if one.id in whom for word in (one.name, one.email) if word}
    missing = [
        manifests.MissingPart(
            artifact_id=part.artifact_id,
            part_id=part.part_id,
            participant_id=part.participant_id,
            error_code=manifests.PURGED,
            message=REMOVED,
        )
        for part in manifest.parts
        if part.participant_id in whom
    ]
    facts = manifest.recording
    recording = replace(
        facts,
        title=_scrubbed(facts.title, names),
        metadata={name: _scrubbed(value, names) for name, value in facts.metadata.items()},
    )
    anew = manifests.Manifest.build(
        recording=recording,
        participants=[
            manifests.ParticipantFacts(id=one.id) if one.id in whom else one for one in manifest.participants
        ],
        parts=[part for part in manifest.parts if part.participant_id not in whom],
        missing=[*manifest.missing, *missing],
        outcome_reason=REMOVED if missing and not manifest.outcome_reason else manifest.outcome_reason,
    )
    # Each of them tells of everyone, in chats by name as well.
    gone = [manifests.MissingDocument(name=one.name, error_code=manifests.PURGED) for one in manifest.documents]
    return anew.with_documents([], [*manifest.documents_missing, *gone])


def _scrubbed(text: str | None, names: set[str]) -> str | None:
    if text is None or not any(name.casefold() in _plain(text).casefold() for name in names):
        return text
    return None


def _place(folder: str, participant_id: int) -> str:
    return f"{folder}/{participant_folder(participant_id)}/"


def write_receipt(
    store: Store, request: Request, purged: Sequence[Mapping[str, Any]], *, run_id: str, approved_by: str | None
) -> str:
    """Store that a request was carried out, without personal data; return the receipt's address.

    The request itself is there as a slow, salted hash: who knows it can show that this is its receipt.

    :param purged: what was removed, as dictionaries of :class:`Purged`.
    :param run_id: of whoever carried it out; the same run writes one receipt.
    """
    salt = secrets.token_bytes(16)
    document = {
        "receipt_version": 1,
        "request": {"salt": salt.hex(), "scrypt": _hash(request, salt)},
        "recordings": sorted(purged, key=lambda one: str(one["recording_id"])),
        "totals": {"recordings": len(purged), "objects": sum(one["objects"] for one in purged)},
        "approved_by": approved_by,
        "purged_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    key = f"{RECEIPTS}/{safe_id(hashlib.sha256(run_id.encode()).hexdigest()[:32])}.json"
    store.put_if_absent(
        key, (json.dumps(document, indent=1, sort_keys=True) + "\n").encode("ascii"), "application/json"
    )
    return store.uri(key)


def is_receipt_of(receipt: Mapping[str, Any], request: Request) -> bool:
    """Tell whether a receipt is that of a request."""
    salt = bytes.fromhex(receipt["request"]["salt"])
    return secrets.compare_digest(str(receipt["request"]["scrypt"]), _hash(request, salt))


def _hash(request: Request, salt: bytes) -> str:
    text = json.dumps(asdict(request), sort_keys=True)
    return hashlib.scrypt(text.encode(), salt=salt, n=2**14, r=8, p=1, dklen=32).hex()


def summary(matches: Sequence[Mapping[str, Any]], unsettled: int, *, at_source: bool, rows: int = 100) -> str:
    """Return what would be removed as Markdown, for whoever has to agree: ids only."""
    lines = [
        "This removes, for good, these participants' audio, names and addresses from the archive:",
        "",
        "| recording | participants | parts | bytes |",
        "|---|---|---|---|",
        *(
            f"| `{one['recording_id']}` | {', '.join(map(str, one['participant_ids']))} | {one['parts']} "
            f"| {one['bytes']:,} |"
            for one in matches[:rows]
        ),
    ]
    if len(matches) > rows:
        lines += ["", f"and {len(matches) - rows} more."]
    if at_source:
        lines += [
            "",
            "**And at Recall: the separate audio of these recordings as a whole, everyone's**, since Recall deletes it "
            "in no smaller piece. What the others said must be proven to be in the archive first.",
        ]
    if unsettled:
        lines += ["", f"{unsettled} recordings are not settled: nobody can be found in them by name. Look again later."]
    return "\n".join(lines)


def _plain(text: str) -> str:
    return unicodedata.normalize("NFC", text).strip()
