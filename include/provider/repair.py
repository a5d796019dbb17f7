"""Making good what a look at the archive found, from what Recall still has. Knows no Airflow.

Damaged bytes are replaced by bytes that were proven to be those that the manifest lists, on condition that the damaged
version is still the one that is there; what is missing is stored if its key is still free. So whatever happens, and
whoever else is at work, no good object is ever replaced, and none is absent for a moment that was there.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from include.archive.audio import PcmFormat
from include.archive.copy import StoredPart, archive_body, find_stored, survey
from include.archive.errors import ContentConflictError, IntegrityError, ObjectMissingError, StoppedError
from include.archive.layout import part_stem, recording_folder
from include.archive.manifest import document_entry
from include.archive.verify import Finding, look_through
from include.errors import CodedError
from include.provider.deletion import is_deleted, receipt_key
from include.provider.transfer import BESIDE, of_no_consequence, settle
from include.recall.errors import RecallMediaDeletedError, RecallMediaFailedError
from include.recall.parts import list_parts, open_part

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from include.archive.copy import Shelf, Stop
    from include.archive.manifest import DocumentEntry, Manifest, PartEntry
    from include.archive.stores import ObjectInfo, Store
    from include.archive.verify import Checked
    from include.provider.transfer import Ends
    from include.recall.models import AudioArtifact, AudioPart, SignedLink

log = logging.getLogger(__name__)

PURGE_RECEIPTS = "receipts/purged"
"""Where :mod:`include.provider.purge` says what it removed."""

_PART = frozenset({"missing", "damaged", "size"})
_MANIFEST = frozenset({"manifest_damaged", "unsettled"})


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one finding.

    :param action: ``replaced`` (damaged bytes), ``restored`` (what was missing), ``rebuilt`` (a manifest), ``removed``
        (something unfinished), or None when nothing was changed.
    :param code: why not, for example ``media_deleted``, ``content_conflict``, ``conditions_ignored``.
    :param message: the same for a person.
    """

    action: str | None = None
    code: str | None = None
    message: str | None = None


class Repairer:
    """Makes good what was found in one recording after the other.

    :param open_ends: opens the source and the archive; asked when there is something to do, once.
    :param pcm: how headerless samples are laid out where no manifest says it.
    :param stop: set it from elsewhere to end a copy.
    """

    def __init__(self, open_ends: Callable[[], Ends], *, stop: Stop, pcm: PcmFormat | None = None) -> None:
        self._open_ends = open_ends
        self._stop = stop
        self._pcm = pcm or PcmFormat()
        self._ends: Ends | None = None
        self._is_tried = False
        self._mended: dict[str, tuple[Finding, Outcome]] = {}

    def repair(self, checked: Checked) -> list[tuple[Finding, Outcome]]:
        """Make good what can be, and say what became of each finding.

        A manifest comes first: when it is rebuilt, all that it lists is looked at in full, and ``checked`` tells what
        came of that as well.

        :raises StoppedError: when told to stop.
        """
        outcomes: dict[int, Outcome] = {}
        self._mended = {}
        for finding, outcome in self._outcomes(checked):
            outcomes[id(finding)] = outcome
            log.log(
                logging.INFO if outcome.action else logging.WARNING,
                "%s is %s (%s): %s",
                finding.key,
                finding.kind,
                finding.detail,
                outcome.action or f"not repaired, {outcome.code}",
            )
        known = {finding.key for finding in checked.findings}
        checked.findings += [finding for key, (finding, _) in self._mended.items() if key not in known]
        if checked.manifest is not None:
            for one in BESIDE:
                if one.name in checked.lacking:
                    with of_no_consequence(f"{checked.folder}/{one.name}"):
                        one.write(self._opened().store, checked.folder, checked.manifest)
        left = (None, Outcome())
        return [(one, outcomes.get(id(one)) or self._mended.get(one.key, left)[1]) for one in checked.findings]

    def _outcomes(self, checked: Checked) -> Iterator[tuple[Finding, Outcome]]:
        for finding in [one for one in checked.findings if one.kind in _MANIFEST]:
            outcome = self._tried(partial(self._rebuilt, checked.folder, finding))
            if outcome.action is not None:
                self._look_again(checked, finding)
            yield finding, outcome
        manifest = checked.manifest
        if manifest is None:
            return
        by_artifact: dict[str, list[Finding]] = {}
        for finding in checked.findings:
            if finding.kind in _PART and finding.artifact_id is not None:
                by_artifact.setdefault(finding.artifact_id, []).append(finding)
        lists = [one for one in checked.findings if one.kind in _PART and one.artifact_id is None]
        if lists:
            yield from self._of_lists(checked.folder, manifest, lists)
        for artifact_id, findings in by_artifact.items():
            yield from self._of_artifact(checked.folder, manifest, artifact_id, findings)

    def _of_artifact(
        self, folder: str, manifest: Manifest, artifact_id: str, findings: Sequence[Finding]
    ) -> Iterator[tuple[Finding, Outcome]]:
        entries = {(part.artifact_id, part.part_id): part for part in manifest.parts}
        try:
            ends = self._opened()
            listing = list_parts(ends.client, ends.media, artifact_id)
        except CodedError as error:
            reason = self._deleted_by_us(manifest.recording.id) or error
            for finding in findings:
                yield finding, _refused(reason)
            return
        parts = {part.id: part for part in listing.parts}
        for finding in findings:
            entry, part = entries[artifact_id, str(finding.part_id)], parts.get(str(finding.part_id))
            if part is None:
                gone = CodedError(f"artifact {artifact_id} no longer lists part {entry.part_id}", code="part_gone")
                yield finding, _refused(gone)
            else:
                mend = partial(self._part, ends, folder, manifest.recording.id, listing.artifact, part, entry)
                yield finding, self._tried(partial(mend, finding.version))

    def _deleted_by_us(self, recording_id: str) -> CodedError | None:
        store = None if self._ends is None else self._ends.store
        if store is None or not is_deleted(store, recording_id):
            return None
        where = store.uri(receipt_key(recording_id))
        return CodedError(f"recording {recording_id} was deleted at Recall, see {where}", code="deleted_at_source")

    def _of_lists(
        self, folder: str, manifest: Manifest, findings: Sequence[Finding]
    ) -> Iterator[tuple[Finding, Outcome]]:
        """Make good what the source lists about the recording, where it still lists the very same."""
        entries = {f"{folder}/{one.key}": one for one in manifest.documents}
        try:
            ends = self._opened()
            links = ends.client.get_recording(manifest.recording.id).documents
        except CodedError as error:
            for finding in findings:
                yield finding, _refused(error)
            return
        for finding in findings:
            mend = partial(self._list, ends, finding, entries[finding.key], links)
            yield finding, self._tried(mend)

    def _list(self, ends: Ends, finding: Finding, entry: DocumentEntry, links: Mapping[str, SignedLink]) -> Outcome:
        link = links.get(entry.name)
        if link is None:
            raise CodedError(f"{finding.key}: the source has no such list any more", code="list_gone")
        data = ends.media.get_document(link, f"list {entry.name}")
        if document_entry(entry.name, entry.key, data) != entry:
            raise ContentConflictError(f"{finding.key}: the source's list is another one by now")
        damaged, notes = finding.version, {"sha256": entry.sha256}
        if damaged is None:
            ends.store.put_if_absent(finding.key, data, entry.media_type, notes)
            return Outcome(action="restored")
        self._try_store(finding.key.rpartition("/")[0])
        with ends.store.write(finding.key, media_type=entry.media_type, size=len(data), replaces=damaged) as writer:
            writer.write(memoryview(data))
            writer.commit(notes)
        return Outcome(action="replaced")

    def _tried(self, mend: Callable[[], Outcome]) -> Outcome:
        try:
            return mend()
        except StoppedError:
            raise
        except CodedError as error:
            return _refused(error)

    def _opened(self) -> Ends:
        if self._ends is None:
            self._ends = self._open_ends()
        return self._ends

    def _try_store(self, folder: str) -> None:
        """Find out, before the first object is replaced, whether the store does that only where it is told to."""
        if not self._is_tried:
            self._opened().store.preflight(folder, replacing=True)
            self._is_tried = True

    def _part(
        self,
        ends: Ends,
        folder: str,
        recording_id: str,
        artifact: AudioArtifact,
        part: AudioPart,
        entry: PartEntry,
        damaged: ObjectInfo | None,
    ) -> Outcome:
        stem = part_stem(entry.participant_id, entry.artifact_id, entry.part_id)
        if entry.key.rpartition(".")[0] != stem or part.participant.id != entry.participant_id:
            raise ContentConflictError(f"{folder}/{entry.key}: the source lists this part as another participant's")
        self._copy(
            ends,
            folder,
            recording_id,
            artifact,
            part,
            pcm=PcmFormat(**entry.pcm) if entry.pcm else self._pcm,
            expected_sha256=entry.sha256,
            damaged=damaged,
        )
        return Outcome(action="restored" if damaged is None else "replaced")

    def _copy(
        self,
        ends: Ends,
        folder: str,
        recording_id: str,
        artifact: AudioArtifact,
        part: AudioPart,
        *,
        pcm: PcmFormat,
        expected_sha256: str | None = None,
        damaged: ObjectInfo | None = None,
    ) -> StoredPart:
        if damaged is not None:
            self._try_store(folder)
        return archive_body(
            open_part(ends.client, ends.media, artifact.id, part),
            ends.store,
            part_stem(part.participant.id, artifact.id, part.id),
            folder=folder,
            source_format=artifact.format,
            ids=_ids(recording_id, artifact, part),
            duration=part.duration,
            pcm=pcm,
            expected_sha256=expected_sha256,
            replaces=damaged,
            stop=self._stop,
        )

    def _look_again(self, checked: Checked, rebuilt: Finding) -> None:
        """Look at a recording in the light of its rebuilt manifest: nobody could tell before what was damaged."""
        folder = checked.folder
        for again in look_through(self._opened().store, first=folder, last=folder, unsettled_before=0, stop=self._stop):
            vars(checked).update(vars(again), findings=[rebuilt, *again.findings])

    def _rebuilt(self, folder: str, finding: Finding) -> Outcome:
        """Write a manifest anew, from what the source lists and what is stored."""
        recording_id = folder.rpartition("recording=")[2]
        if recording_id.startswith("sha256-"):
            raise CodedError(f"{folder} doesn't tell the recording's id, only its hash", code="unknown_id")
        ends = self._opened()
        if _was_purged(ends.store, recording_id, finding.version):
            # What was purged must not come back, and only the lost manifest knew what it was.
            raise CodedError(f"somebody was purged from {folder}; restore its manifest by hand", code="purged")
        recording = ends.client.get_recording(recording_id)
        if recording_folder(recording.created_at, recording_id) != folder:
            raise CodedError(f"recording {recording_id} belongs into another folder", code="wrong_folder")
        if finding.version is not None:
            self._try_store(folder)
        shelf = survey(ends.store, [folder])
        receipts = [
            {
                "artifact_id": artifact.id,
                "part_id": part.id,
                "stored": self._stored(ends, folder, recording_id, artifact, part, shelf).to_dict(),
            }
            for artifact in ends.client.list_audio_separate(recording_id)
            if artifact.status == "done" and artifact.download_url is not None
            for part in list_parts(ends.client, ends.media, artifact.id, artifact=artifact).parts
        ]
        settle(
            ends,
            recording_id,
            folder,
            bot_id=recording.bot_id,
            receipts=receipts,
            reasons={},
            rebuilds=True,
            replaces=finding.version,
        )
        return Outcome(action="rebuilt")

    def _stored(
        self, ends: Ends, folder: str, recording_id: str, artifact: AudioArtifact, part: AudioPart, shelf: Shelf
    ) -> StoredPart:
        """Describe what is stored of a part; fetch it where it is missing, or not what was noted when it was stored."""
        stem = part_stem(part.participant.id, artifact.id, part.id)
        try:
            stored = find_stored(
                ends.store,
                stem,
                folder=folder,
                source_format=artifact.format,
                ids=_ids(recording_id, artifact, part),
                duration=part.duration,
                shelf=shelf,
            )
        except ContentConflictError:
            keys = shelf.keys.get(f"{folder}/{stem}", ())
            info = ends.store.stat(keys[0]) if len(keys) == 1 else None
            if info is None or "sha256" not in info.metadata:
                raise
            noted = info.metadata["sha256"]
            mended = self._copy(
                ends, folder, recording_id, artifact, part, pcm=self._pcm, expected_sha256=noted, damaged=info
            )
            kind, detail, action = "damaged", "the bytes have another hash than was noted", "replaced"
        else:
            if stored is not None:
                return stored
            mended = self._copy(ends, folder, recording_id, artifact, part, pcm=self._pcm)
            kind, detail, action = "missing", "no such object", "restored"
        key = f"{folder}/{mended.key}"
        finding = Finding(kind=kind, key=key, detail=detail, artifact_id=artifact.id, part_id=part.id)
        self._mended[key] = finding, Outcome(action=action)
        return mended


def _was_purged(store: Store, recording_id: str, manifest: ObjectInfo | None) -> bool:
    """Tell whether a receipt, or what is left of the manifest, says that a person was purged from a recording."""
    if manifest is not None and any(b'"purged"' in line for line in _lines(store, manifest.key)):
        return True
    receipts = (info.key for info in store.list(f"{PURGE_RECEIPTS}/"))
    return any(recording_id.encode() in line for key in receipts for line in _lines(store, key))


def _lines(store: Store, key: str) -> Iterator[bytes]:
    """Yield the lines of an object, as far as its bytes can be had."""
    rest = b""
    try:
        for chunk in store.read(key):
            *lines, rest = (rest + chunk).split(b"\n")
            yield from lines
    except (IntegrityError, ObjectMissingError):
        log.warning("%s can't be read to its end", key)
    yield rest


def _ids(recording_id: str, artifact: AudioArtifact, part: AudioPart) -> dict[str, str]:
    return {"recording-id": recording_id, "artifact-id": artifact.id, "part-id": part.id}


def _refused(error: CodedError) -> Outcome:
    if isinstance(error, RecallMediaDeletedError | RecallMediaFailedError):
        return Outcome(code=error.code, message="Recall has lost this audio, so it can't be fetched again")
    return Outcome(code=error.code, message=error.message)
