"""What happens to a recording on its way from Recall to the archive: planned, copied, settled. Knows no Airflow.

The three steps share nothing but ids and the archive itself, so each can run on another machine, and each can be run
again.
"""

from __future__ import annotations

import json
import logging
import unicodedata
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from include.archive import manifest as manifests
from include.archive import meeting_page, speakers
from include.archive.ahead import Lanes
from include.archive.audio import PcmFormat
from include.archive.copy import StoredPart, archive_body, find_stored, survey
from include.archive.errors import ArchiveError, ContentConflictError, IntegrityError, StorageError
from include.archive.layout import MANIFEST_NAME, document_key, part_stem, participant_folder
from include.errors import CodedError
from include.provider.errors import PartsOwedError
from include.provider.progress import Progress
from include.recall.errors import RecallError, RecallMediaDeletedError, RecallMediaFailedError, RecallNotFoundError
from include.recall.media import parse_participants
from include.recall.models import DOCUMENTS
from include.recall.parts import list_parts, open_part

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence

    from include.archive.copy import Shelf, Stop
    from include.archive.stores import ObjectInfo, Store
    from include.recall.client import RecallClient
    from include.recall.media import MediaClient
    from include.recall.models import AudioArtifact, AudioPart, Participant, Recording

log = logging.getLogger(__name__)

SINGLE_PARTICIPANT_LIMIT = 32
"""Up to so many participants of a run, each has a batch of its own."""

MAX_BATCHES = 40
"""Above that limit, participants share at most about so many batches."""

LEAST_SHARING = 8
"""Above that limit, so many participants share a batch at least: a short task costs more than a short copy."""

STREAMS = 8
"""How many parts one task copies at a time."""

LANES = 32
"""How many connections to the source a task has at most: a long part of a slow source comes on several."""

XCOM_LIMIT = 48 * 1024
"""Bytes that one XCom row of ours may take."""

BESIDE = (meeting_page.PAGE, speakers.SPEAKERS)
"""What is made from a manifest and kept beside it."""


@dataclass(frozen=True)
class Batch:
    """The participants of one recording that one mapped task archives: ids only, fit for XCom.

    :param recording_id: the recording.
    :param folder: its folder in the archive.
    :param artifact_ids: the artifacts that these participants have parts in.
    :param participant_ids: the participants, scoped by the recording.
    :param pcm: how headerless samples are laid out, as :meth:`PcmFormat.parse` reads it.
    """

    recording_id: str
    folder: str
    artifact_ids: list[str]
    participant_ids: list[int]
    pcm: str = str(PcmFormat())

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON can hold them."""
        return asdict(self)


@dataclass(frozen=True)
class Ends:
    """The two ends of a transfer.

    :param client: the source's API.
    :param media: fetches from the source's signed links.
    :param store: the destination.
    """

    client: RecallClient
    media: MediaClient
    store: Store


def already_settled(store: Store, folder: str) -> Settled | None:
    """Return what a recording's manifest says if every part that it lists is there as listed, else ``None``."""
    manifest = manifests.load(store, folder)
    if manifest is None:
        return None
    problems = [one for one in manifests.check(store, folder, manifest) if one.kind != "extra"]
    for problem in problems:
        log.warning("%s/%s is %s: %s", folder, problem.key, problem.kind, problem.detail)
    if any(problem.part_id is not None for problem in problems):  # no other object keeps a recording unsettled
        return None
    manifests.tidy(store, folder, manifest)
    for one in BESIDE:
        with of_no_consequence(f"{folder}/{one.name}"):
            if store.stat(f"{folder}/{one.name}") is None:
                one.write(store, folder, manifest)
    return _settled(store, folder, manifest)


def plan(
    ends: Ends,
    recordings: Iterable[tuple[str, str]],
    *,
    pcm: PcmFormat | None = None,
    artifact_ids: Mapping[str, Sequence[str]] | None = None,
    known: dict[str, AudioArtifact] | None = None,
) -> list[Batch]:
    """List every part of every artifact of some recordings, grouped by participant.

    :param recordings: id and folder of each.
    :param pcm: how headerless samples are laid out, default 16 kHz, 16 bits, mono; looked up once for all batches.
    :param artifact_ids: by recording, all its artifacts where they are known; where not, they are listed.
    :param known: artifacts read a while ago, by id, which saves their calls; holds all that were used afterwards.
    """
    known = {} if known is None else known
    artifact_ids = artifact_ids or {}
    found: list[tuple[str, str, dict[int, list[str]]]] = []
    for recording_id, folder in recordings:
        artifacts_of: dict[int, list[str]] = {}
        purged = manifests.buried(ends.store, recording_id)
        for artifact in _usable(_artifacts(ends.client, recording_id, artifact_ids.get(recording_id, ()), known)):
            try:
                listing = list_parts(ends.client, ends.media, artifact.id, artifact=artifact)
            except (RecallMediaDeletedError, RecallMediaFailedError, RecallNotFoundError) as error:
                log.warning("Artifact %s is lost, settling will name it: %s", artifact.id, error)
                continue
            known[artifact.id] = listing.artifact
            for part in listing.parts:
                if part.participant.id in purged:
                    continue
                of_participant = artifacts_of.setdefault(part.participant.id, [])
                if artifact.id not in of_participant:
                    of_participant.append(artifact.id)
        found.append((recording_id, folder, artifacts_of))
        if len(found) == 1:
            ends.store.preflight(folder)
    total = sum(len(artifacts_of) for _, _, artifacts_of in found)
    size = 1 if total <= SINGLE_PARTICIPANT_LIMIT else max(LEAST_SHARING, -(-total // MAX_BATCHES))
    return [
        Batch(
            recording_id=recording_id,
            folder=folder,
            artifact_ids=list(dict.fromkeys(one for who in some for one in artifacts_of[who])),
            participant_ids=some,
            pcm=str(pcm or PcmFormat()),
        )
        for recording_id, folder, artifacts_of in found
        for some in _chunks(sorted(artifacts_of), size)
    ]


def archive(
    ends: Ends,
    batch: Batch,
    *,
    stop: Stop,
    show: Callable[[str], None] = lambda label: None,
    done: Callable[[StoredPart, float], None] = lambda part, seconds: None,
    known: Mapping[str, AudioArtifact] | None = None,
) -> list[dict[str, Any]]:
    """Archive every part of a batch's participants; what fails doesn't keep the rest from being stored.

    :param stop: set it to end the copy.
    :param show: called with the participants' names as soon as they are known.
    :param done: called, from any thread, with each part that is in the archive, and the seconds that it took.
    :param known: artifacts read a while ago, by id; the API is asked for one only if its link is refused.
    :return: a receipt for each part: ``artifact_id``, ``part_id`` and ``stored``, the fields of :class:`StoredPart`.
    :raises CodedError: some parts could not be stored; its ``owed`` names each with its own code.
    """
    manifest = manifests.load(ends.store, batch.folder)
    proven = {(part.artifact_id, part.part_id): part.sha256 for part in manifest.parts} if manifest else {}
    wanted = set(batch.participant_ids) - (manifest.purged if manifest else frozenset())
    failures: list[tuple[str, str | None, CodedError]] = []
    todo: list[tuple[AudioArtifact, AudioPart]] = []
    for artifact_id in batch.artifact_ids:
        try:
            listing = list_parts(ends.client, ends.media, artifact_id, artifact=(known or {}).get(artifact_id))
        except CodedError as error:
            failures.append((artifact_id, None, error))
            continue
        show(label(listing.parts, batch.participant_ids))
        todo += [(listing.artifact, part) for part in listing.parts if part.participant.id in wanted]
    pcm = PcmFormat.parse(batch.pcm)
    folders = [f"{batch.folder}/{participant_folder(one)}" for one in batch.participant_ids]
    shelf = survey(ends.store, folders, tidy=True)
    lanes = Lanes(LANES, parts=len(todo), side_by_side=STREAMS)

    def copy(artifact: AudioArtifact, part: AudioPart) -> StoredPart:
        progress = Progress(part.participant.id, part.id)
        stored = archive_body(
            open_part(ends.client, ends.media, artifact.id, part),
            ends.store,
            part_stem(part.participant.id, artifact.id, part.id),
            folder=batch.folder,
            source_format=artifact.format,
            ids=_ids(batch.recording_id, artifact.id, part),
            duration=part.duration,
            pcm=pcm,
            shelf=shelf,
            lanes=lanes,
            stop=stop,
            progress=progress,
            expected_sha256=proven.get((artifact.id, part.id)),
        )
        done(stored, progress.done(stored))
        return stored

    receipts: list[dict[str, Any]] = []
    with closing(_each(copy, todo, stop)) as outcomes:
        for (artifact, part), outcome in zip(todo, outcomes, strict=True):
            if isinstance(outcome, CodedError):
                if stop.is_set() or (isinstance(outcome, StorageError) and outcome.permanent):
                    raise outcome  # no other part would fare better
                failures.append((artifact.id, part.id, outcome))
            else:
                receipts.append({"artifact_id": artifact.id, "part_id": part.id, "stored": outcome.to_dict()})
    if failures:
        raise _summed_up(failures, len(receipts))
    return receipts


def _each(
    copy: Callable[[AudioArtifact, AudioPart], StoredPart], todo: Sequence[tuple[AudioArtifact, AudioPart]], stop: Stop
) -> Generator[StoredPart | CodedError]:
    """Copy parts, up to :data:`STREAMS` at a time, and yield what came of each, in order."""

    def outcome(one: tuple[AudioArtifact, AudioPart]) -> StoredPart | CodedError:
        try:
            return copy(*one)
        except CodedError as error:
            return error

    if len(todo) < 2:
        yield from map(outcome, todo)
        return
    pool = ThreadPoolExecutor(min(STREAMS, len(todo)), "copy")
    try:
        for future in [pool.submit(outcome, one) for one in todo]:
            yield future.result()
    except BaseException:
        stop.set()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class Settled:
    """A recording with a manifest.

    :param recording_id: the recording.
    :param outcome: the manifest's own word: ``archived``, ``archived_with_gaps`` or ``nothing_to_archive``.
    :param folder: its folder in the archive.
    :param manifest_uri: the manifest's address.
    :param parts: how many parts are stored.
    :param bytes: how many bytes they have.
    """

    recording_id: str
    outcome: str
    folder: str
    manifest_uri: str
    parts: int
    bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON can hold them."""
        return asdict(self)


def settle(
    ends: Ends,
    recording_id: str,
    folder: str,
    *,
    bot_id: str | None,
    receipts: Iterable[Mapping[str, Any]],
    reasons: Mapping[tuple[str, str | None], str],
    artifact_ids: Sequence[str] = (),
    rebuilds: bool = False,
    replaces: ObjectInfo | None = None,
    keep_documents: bool = True,
) -> Settled:
    """Write a recording's manifest, if everything that the source can give is stored; else say what is owed.

    What is to be there comes from the source, what is there from the store: a receipt alone proves nothing.

    :param bot_id: the recording's bot, where known.
    :param receipts: what :func:`archive` returned for the recording's batches.
    :param reasons: the code with which a part (or, under part ``None``, a whole artifact) failed, to say why it is
        owed.
    :param artifact_ids: all its artifacts where they are known, which saves a list call; where not, they are listed.
    :param rebuilds: the recording had a manifest once, so one that leaves out a stored object is none.
    :param replaces: what is left of that manifest, where it is still there: only that is replaced.
    :param keep_documents: store what the source lists about the recording, byte for byte, as far as it can be had.
    :raises PartsOwedError: some parts are not stored yet; its ``owed`` names them.
    :raises RecallMediaFailedError: the source has nothing but failed artifacts.
    :raises RecallMediaDeletedError: the source has nothing but deleted artifacts.
    """
    recording = _recording(ends.client, recording_id, bot_id)
    artifacts = _artifacts(ends.client, recording_id, artifact_ids)
    lost = [_lost(artifact) for artifact in artifacts if artifact.status in ("failed", "deleted")]
    usable = _usable(artifacts)
    if lost and not usable:
        kind = (
            RecallMediaFailedError if any(one.error_code == "media_failed" for one in lost) else RecallMediaDeletedError
        )
        raise kind(f"recording {recording_id} is not archived: {lost[0].message}")
    owed = [
        {"artifact_id": artifact.id, "code": f"audio_{artifact.status}"}
        for artifact in artifacts
        if artifact not in usable and artifact.status not in ("failed", "deleted")
    ]
    stored = {(one["artifact_id"], one["part_id"]): StoredPart.from_dict(one["stored"]) for one in receipts}
    shelf = cache(partial(survey, ends.store, [folder]))
    documents, unavailable = _documents(ends.media, recording, DOCUMENTS[:1])
    people = _everyone(documents)
    purged = manifests.buried(ends.store, recording_id)
    entries: list[manifests.PartEntry] = []
    for artifact in usable:
        for part in list_parts(ends.client, ends.media, artifact.id, artifact=artifact).parts:
            people.append(part.participant)
            if part.participant.id in purged:
                lost.append(_purged(artifact.id, part))
                continue
            try:
                receipt = stored.get((artifact.id, part.id)) or _find(
                    ends.store, folder, recording_id, artifact, part, shelf()
                )
            except ContentConflictError as error:
                owed.append({"artifact_id": artifact.id, "part_id": part.id, "code": error.code})
                continue
            if receipt is not None:
                entries.append(_entry(part, artifact.id, receipt))
            else:
                code = reasons.get((artifact.id, part.id)) or reasons.get((artifact.id, None)) or "not_archived"
                owed.append({"artifact_id": artifact.id, "part_id": part.id, "code": code})
    manifest = manifests.Manifest.build(
        recording=_facts(recording, ends.client.region),
        participants=[_person(one) for one in people if one.id not in purged],
        parts=entries,
        missing=lost,
        outcome_reason=_reason(entries, lost),
    )
    owed += [
        {"artifact_id": str(problem.artifact_id), "part_id": str(problem.part_id), "code": f"object_{problem.kind}"}
        for problem in manifests.check(ends.store, folder, manifest, deep=True)
        if problem.kind != "extra" or (rebuilds and problem.key not in map(document_key, DOCUMENTS))
    ]
    if owed:
        raise _owed(recording, owed, len(entries))
    if purged:
        gone = [manifests.MissingDocument(name=name, error_code=manifests.PURGED) for name in DOCUMENTS]
        manifest = manifest.with_documents([], gone)  # each of them tells of everyone
    elif keep_documents:
        others, too = _documents(ends.media, recording, DOCUMENTS[1:])
        kept, refused = _kept(ends.store, folder, {**documents, **others}, rebuilds=rebuilds)
        manifest = manifest.with_documents(kept, [*unavailable, *too, *refused])
    if not manifests.publish(ends.store, folder, manifest, replaces=replaces):
        manifest = manifests.load(ends.store, folder) or manifest
    _add_beside(ends.store, folder, manifest, is_there=rebuilds)
    return _settled(ends.store, folder, manifest)


def _add_beside(store: Store, folder: str, manifest: manifests.Manifest, *, is_there: bool) -> None:
    for one in BESIDE:
        with of_no_consequence(f"{folder}/{one.name}"):
            if is_there:
                one.renew(store, folder)
            else:
                one.write(store, folder, manifest)


@contextmanager
def of_no_consequence(key: str) -> Iterator[None]:
    """Let a file be left out that can't be made or written: the next run, or a repair, makes up for it."""
    try:
        yield
    except Exception as error:
        # Errors of ours name nobody; what others quote may be anybody's name.
        reason = error.message if isinstance(error, CodedError) else type(error).__name__
        log.warning("%s is not written: %s", key, reason)


def label(parts: Iterable[AudioPart], participant_ids: Sequence[int]) -> str:
    """Return what a person reads on a mapped task: the participants' names, made harmless and short.

    :param parts: all parts of the artifact, so that people who share a name are told apart by their ids.
    :param participant_ids: whose task it is.
    """
    names = {part.participant.id: _harmless(part.participant.name) for part in parts}
    times = Counter(name for name in names.values() if name)

    def one(participant_id: int) -> str:
        name = names.get(participant_id, "")
        if not name:
            return f"Participant {participant_id}"
        return name if times[name] == 1 else f"{name} ({participant_id})"

    shown = ", ".join(one(participant_id) for participant_id in participant_ids[:3])
    more = len(participant_ids) - 3
    return (f"{shown} and {more} more" if more > 0 else shown)[:240]


def fit_for_xcom(receipts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the receipts if one XCom row holds them, else only what the store can't tell by itself: nothing.

    Settling then reads the stored objects themselves.
    """
    return receipts if len(json.dumps(receipts)) <= XCOM_LIMIT else []


def _artifacts(
    client: RecallClient,
    recording_id: str,
    artifact_ids: Sequence[str],
    known: Mapping[str, AudioArtifact] | None = None,
) -> list[AudioArtifact]:
    """Return a recording's artifacts. Lists are Recall's scarcest calls, so known artifacts are asked for singly."""
    if artifact_ids:
        try:
            found = [(known or {}).get(one) or client.get_audio_separate(one) for one in artifact_ids]
        except RecallNotFoundError:
            log.info("An artifact of recording %s is gone, its audio is listed anew", recording_id)
        else:
            return [artifact for artifact in found if artifact.recording_id == recording_id]
    return client.list_audio_separate(recording_id)


def _usable(artifacts: Iterable[AudioArtifact]) -> list[AudioArtifact]:
    return [artifact for artifact in artifacts if artifact.status == "done" and artifact.download_url is not None]


def _chunks(items: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _harmless(name: str | None) -> str:
    """Escape what could reorder, break or hide a line of text (control, format, surrogate, unassigned characters)."""
    shown = "".join(
        char if unicodedata.category(char)[0] != "C" else f"\\u{ord(char):04x}" for char in (name or "").strip()[:80]
    )
    return shown[:80]


def _summed_up(failures: list[tuple[str, str | None, CodedError]], stored: int) -> CodedError:
    """Make one error of many: it can be retried if any of them can, and names them all."""
    passing = [error for _, _, error in failures if not error.permanent]
    first = passing[0] if passing else failures[0][2]
    error = CodedError(
        first.message
        if len(failures) == 1
        else f"{len(failures)} parts failed, {stored} are stored; first: {first.message}",
        code=first.code,
        permanent=not passing,
        retry_after=max((one.retry_after or 0.0 for one in passing), default=0.0) or None,
    )
    error.owed = [  # type: ignore[attr-defined]
        {"artifact_id": artifact_id, "code": one.code, **({} if part_id is None else {"part_id": part_id})}
        for artifact_id, part_id, one in failures[:200]
    ]
    return error


def _find(
    store: Store, folder: str, recording_id: str, artifact: AudioArtifact, part: AudioPart, shelf: Shelf
) -> StoredPart | None:
    return find_stored(
        store,
        part_stem(part.participant.id, artifact.id, part.id),
        folder=folder,
        source_format=artifact.format,
        ids=_ids(recording_id, artifact.id, part),
        duration=part.duration,
        shelf=shelf,
    )


def _ids(recording_id: str, artifact_id: str, part: AudioPart) -> dict[str, str]:
    return {"recording-id": recording_id, "artifact-id": artifact_id, "part-id": part.id}


def _recording(client: RecallClient, recording_id: str, bot_id: str | None) -> Recording:
    """Read a recording with all that is known about it; only its bot knows the platform."""
    if bot_id is not None:
        try:
            for recording in client.get_bot(bot_id).recordings:
                if recording.id == recording_id:
                    return recording
        except RecallNotFoundError:
            log.info("Bot %s is gone, the recording stands alone", bot_id)
    return client.get_recording(recording_id)


def _documents(
    media: MediaClient, recording: Recording, names: Iterable[str]
) -> tuple[dict[str, bytes], list[manifests.MissingDocument]]:
    """Fetch lists about a recording; none that can't be had keeps its audio from being archived."""
    found: dict[str, bytes] = {}
    missing = []
    for name in names:
        link = recording.documents.get(name)
        if link is None:
            missing.append(manifests.MissingDocument(name=name, error_code="not_offered"))
            continue
        try:
            found[name] = media.get_document(link, f"list {name}")
        except RecallError as error:
            log.warning("List %s of recording %s can't be had: %s", name, recording.id, error)
            missing.append(manifests.MissingDocument(name=name, error_code=error.code))
    return found, missing


def _kept(
    store: Store, folder: str, fetched: Mapping[str, bytes], *, rebuilds: bool
) -> tuple[list[manifests.DocumentEntry], list[manifests.MissingDocument]]:
    """Store lists about a recording, and describe those that are stored, which another try may have left.

    Where there is, or was, a manifest, nothing is stored but what it lists and is gone.

    :param fetched: what the source lists, by name.
    :return: what is stored, and what of it can't be vouched for, or could not be stored.
    """
    settled = None if rebuilds else manifests.load(store, folder)
    listed = None if settled is None else {one.name: one.sha256 for one in settled.documents}
    kept, refused = [], []
    for name in DOCUMENTS:
        data = fetched.get(name)
        entry = None if data is None else manifests.document_entry(name, document_key(name), data)
        try:
            if (
                data is not None
                and entry is not None
                and not rebuilds
                and (listed is None or listed.get(name) == entry.sha256)
                and store.put_if_absent(f"{folder}/{entry.key}", data, entry.media_type, {"sha256": entry.sha256})
            ):
                kept.append(entry)
            elif (left := _left(store, folder, name, entry)) is not None:
                kept.append(left)
            elif entry is not None:
                refused.append(manifests.MissingDocument(name=name, error_code="not_archived"))
        except ArchiveError as error:
            if not error.permanent:
                raise
            log.warning("List %s of %s is not kept: %s", name, folder, error)
            refused.append(manifests.MissingDocument(name=name, error_code=error.code))
    return kept, refused


def _left(
    store: Store, folder: str, name: str, fetched: manifests.DocumentEntry | None
) -> manifests.DocumentEntry | None:
    """Describe a list about a recording that is stored.

    :param fetched: what it would be if it were stored now: what is damaged, a verification can make good from that.
    :raises ContentConflictError: it is not what was noted when it was stored, and nor is what the source lists now.
    """
    key = document_key(name)
    info = store.stat(f"{folder}/{key}")
    if info is None:
        return None
    try:
        stored = manifests.document_entry(name, key, b"".join(store.read(info.key)))
    except IntegrityError:
        stored = None
    for entry in (stored, fetched):
        if entry is not None and info.metadata.get("sha256", entry.sha256) == entry.sha256:
            return entry
    raise ContentConflictError(f"{folder}/{key}: not the bytes that were noted when it was stored")


def _everyone(documents: Mapping[str, bytes]) -> list[Participant]:
    """Return everyone who was there, the silent ones too, as far as the source tells."""
    try:
        return parse_participants(documents.get("participants", b"[]"))
    except RecallError as error:
        log.warning("The list of participants is unreadable, only those with audio are named: %s", error)
        return []


def _lost(artifact: AudioArtifact) -> manifests.MissingPart:
    return manifests.MissingPart(
        artifact_id=artifact.id,
        part_id=None,
        participant_id=None,
        error_code=f"media_{artifact.status}",
        message=f"artifact {artifact.id} is {artifact.status} at Recall ({artifact.sub_code or 'no reason given'})",
    )


def _purged(artifact_id: str, part: AudioPart) -> manifests.MissingPart:
    return manifests.MissingPart(
        artifact_id=artifact_id,
        part_id=part.id,
        participant_id=part.participant.id,
        error_code=manifests.PURGED,
        message="removed on request",
    )


def _facts(recording: Recording, region: str | None) -> manifests.RecordingFacts:
    return manifests.RecordingFacts(
        id=recording.id,
        created_at=recording.created_at,
        region=region,
        bot_id=recording.bot_id,
        started_at=recording.started_at,
        completed_at=recording.completed_at,
        expires_at=recording.expires_at,
        title=recording.title,
        platform=recording.platform,
        metadata=recording.metadata,
    )


def _person(participant: Participant) -> manifests.ParticipantFacts:
    return manifests.ParticipantFacts(
        id=participant.id,
        name=participant.name,
        is_host=participant.is_host,
        platform=participant.platform,
        email=participant.email,
    )


def _entry(part: AudioPart, artifact_id: str, stored: StoredPart) -> manifests.PartEntry:
    return manifests.PartEntry.of(
        stored,
        artifact_id=artifact_id,
        part_id=part.id,
        participant_id=part.participant.id,
        start_relative_seconds=part.start_relative,
        start_absolute=part.start_absolute,
        duration_seconds=part.duration,
    )


def _reason(entries: Sequence[manifests.PartEntry], lost: Sequence[manifests.MissingPart]) -> str | None:
    if gone := [one for one in lost if one.error_code != manifests.PURGED]:
        return f"{len(gone)} of the recording's artifacts can't be had any more"
    if lost:
        return "removed on request"
    if not entries:
        return "the recording is finished and its separate audio holds no part: nobody spoke"
    return None


def _owed(recording: Recording, owed: list[dict[str, str]], stored: int) -> PartsOwedError:
    codes = ", ".join(sorted({one["code"] for one in owed}))
    error = PartsOwedError(
        f"recording {recording.id} is not settled: {len(owed)} owed ({codes}), "
        f"{stored} stored and kept; run archive_meeting again with this recording_id to fetch what is missing"
    )
    error.owed = owed[:200]
    error.expires_at = None if recording.expires_at is None else recording.expires_at.isoformat()
    return error


def _settled(store: Store, folder: str, manifest: manifests.Manifest) -> Settled:
    return Settled(
        recording_id=manifest.recording.id,
        outcome=manifest.outcome,
        folder=folder,
        manifest_uri=store.uri(f"{folder}/{MANIFEST_NAME}"),
        parts=len(manifest.parts),
        bytes=sum(part.bytes for part in manifest.parts),
    )
