"""Looking an archive through: every object against its manifest, and what lies about besides. Writes nothing.

What a recording's objects have to be, its manifest says; what the manifest's own bytes have to be, a note says that was
stored with it, where the store keeps notes. An object is proven by reading all of it, or, where that is asked for, by
the checksum that the store itself computed when it took it.
"""

from __future__ import annotations

import hashlib
import time
import zlib
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any

from include.archive.copy import Stop
from include.archive.errors import (
    IntegrityError,
    ManifestInvalidError,
    ManifestVersionError,
    ObjectMissingError,
    StoppedError,
    StorageError,
)
from include.archive.layout import (
    MANIFEST_NAME,
    PAGE_NAME,
    SPEAKERS_NAME,
    is_derived,
    is_key,
    is_recording_folder,
    recording_folder,
    safe_id,
)
from include.archive.manifest import Manifest

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
    from concurrent.futures import Executor, Future

    from include.archive.manifest import DocumentEntry, PartEntry
    from include.archive.stores import ObjectInfo, Store, Unfinished

MODES = ("full", "checksum")
"""``full`` reads every byte; ``checksum`` trusts what the store computed, and reads where it has no checksum."""

OBJECTS = 6
"""How many objects are read at a time."""

RECORDINGS = 3
"""How many recordings are looked at at a time."""

READ_ATTEMPTS = 3
"""How often a failing read is tried before the object counts as unreadable."""

MOST_UNREADABLE = 100
"""When more objects than that can't be read, it is the store that fails and not the objects."""

LARGEST_MANIFEST = 256 * 1024 * 1024

BESIDE = frozenset({"reports", "receipts", "lost"})
"""The folders that lie beside those of the days, and belong there."""

ALWAYS_READ = "sha256"
BY_STORE = "store-checksum"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is not as it should be.

    :param kind: of a listed object ``missing``, ``damaged``, ``size``, ``bad_key`` or ``unreadable``; of a manifest
        ``manifest_damaged``, ``manifest_unreadable`` or ``manifest_too_new``; ``unsettled``: objects without a
        manifest; ``extra``: an object that no manifest lists; ``stale``: something unfinished that nobody finishes.
    :param key: below the archive.
    :param detail: one line for a person.
    :param artifact_id: and ``part_id``: the part concerned, if it is one.
    :param version: what was looked at, where there is something.
    """

    kind: str
    key: str
    detail: str
    artifact_id: str | None = None
    part_id: str | None = None
    version: ObjectInfo | None = None

    @property
    def harms(self) -> bool:
        """Whether something that was archived is lost or doubtful, unless it is repaired."""
        return self.kind not in ("extra", "stale")


@dataclass(kw_only=True)
class Checked:
    """What is known of one recording's folder now, or of what lies about in a day's.

    :param folder: of the recording, or of the day.
    :param state: ``settled``, ``unsettled``, ``under_way`` (without a manifest, but young), ``unreadable`` (its
        manifest is), or ``none`` for what is no recording.
    :param manifest: its manifest, as far as it can be believed.
    :param manifest_proof: why: ``sha256`` (the note of its hash), ``store-checksum``, or ``schema``, which lets a
        flipped bit pass that leaves a valid manifest.
    :param objects: how many objects its manifest lists.
    :param bytes: how many bytes it lists.
    :param bytes_read: how many bytes of them were read.
    :param proofs: how many objects are proven, by what: ``sha256`` (read) or ``store-checksum``.
    :param lacking: names of what is made from the manifest, kept beside it, and not there.
    :param findings: what is wrong.
    """

    folder: str
    state: str
    manifest: Manifest | None = None
    manifest_proof: str | None = None
    objects: int = 0
    bytes: int = 0
    bytes_read: int = 0
    proofs: Counter[str] = field(default_factory=Counter)
    lacking: tuple[str, ...] = ()
    findings: list[Finding] = field(default_factory=list)


def look_through(
    store: Store,
    *,
    first: str,
    last: str,
    mode: str = "full",
    unsettled_before: float,
    stop: Stop | None = None,
) -> Generator[Checked]:
    """Look through some days, several objects at a time, oldest day first.

    Memory depends on the number of parts of a few recordings alone.

    :param first: and ``last``: folders of days, or of one recording twice, see :mod:`include.archive.layout`.
    :param mode: one of :data:`MODES`.
    :param unsettled_before: in seconds since 1970: a folder without a manifest counts as unsettled when nothing in it
        is younger than that; else a run may still be at work.
    :param stop: set it from elsewhere to end this.
    :raises StoppedError: when ``stop`` was set.
    :raises StorageError: when the store can't be listed, or fails for too many objects.
    """
    stop, own_end = stop or Stop(), Stop()
    patience = _Patience()
    recordings = ThreadPoolExecutor(RECORDINGS, "recordings")
    objects = ThreadPoolExecutor(OBJECTS, "objects")
    look = partial(
        _Look,
        store,
        mode=mode,
        unsettled_before=unsettled_before,
        stops=(stop, own_end),
        patience=patience,
        pool=objects,
    )
    try:
        waiting: deque[Future[Checked]] = deque()
        for folder, listed in _folders(store, first, last):
            waiting.append(recordings.submit(look(folder, listed).run))
            if len(waiting) > RECORDINGS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        own_end.set()  # whoever stops asking wants no answer any more
        recordings.shutdown(cancel_futures=True)
        objects.shutdown(cancel_futures=True)


def days(store: Store, first: str = "", last: str = "dt=9999") -> list[str]:
    """Return the folders of the archive's days between two, both included."""
    return [day for day in store.folders() if first <= day <= last and day.startswith("dt=")]


def find_folder(store: Store, recording_id: str) -> str | None:
    """Find a recording's folder, settled or not, newest day first; costs one request for each day of the archive."""
    for day in reversed(days(store)):
        folder = f"{day}/recording={safe_id(recording_id)}"
        if next(iter(store.list(f"{folder}/")), None) is not None:
            return folder
    return None


def stray(store: Store) -> Iterator[Finding]:
    """Yield what lies beside the days and belongs to nothing."""
    for info in store.loose():
        yield Finding(kind="extra", key=info.key, detail="in no recording's folder", version=info)
    for folder in store.folders():
        if not folder.startswith("dt=") and folder not in BESIDE:
            yield Finding(kind="extra", key=f"{folder}/", detail="no folder of this archive")


def stale(store: Store, prefix: str, before: float) -> Iterator[tuple[Finding, Unfinished]]:
    """Yield what somebody began below a folder and has left alone since.

    :param prefix: a folder and a slash.
    :param before: in seconds since 1970.
    """
    for one in store.unfinished(prefix):
        if one.since < before:
            since = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(one.since))
            yield Finding(kind="stale", key=one.key, detail=f"begun or last written to {since}"), one


def _folders(store: Store, first: str, last: str) -> Iterator[tuple[str, list[ObjectInfo]]]:
    """Yield each recording's folder, or other place in a day's folder, with all that it holds."""
    if is_recording_folder(first):
        yield first, list(store.list(f"{first}/"))
        return
    for day in days(store, first, last):
        for folder, infos in groupby(store.list(f"{day}/"), lambda info: "/".join(info.key.split("/")[:2])):
            yield folder, list(infos)


class _Patience:
    """Counts what can't be read."""

    def __init__(self) -> None:
        self._left = MOST_UNREADABLE

    def lose(self, error: StorageError) -> None:
        self._left -= 1
        if self._left < 0:
            raise error


class _Look:
    """One look at one recording."""

    def __init__(
        self,
        store: Store,
        folder: str,
        listed: Sequence[ObjectInfo],
        *,
        mode: str,
        unsettled_before: float,
        stops: Sequence[Stop],
        patience: _Patience,
        pool: Executor,
    ) -> None:
        self._store = store
        self._folder = folder
        self._listed = listed
        self._mode = mode
        self._unsettled_before = unsettled_before
        self._stops = stops
        self._patience = patience
        self._pool = pool

    def run(self) -> Checked:
        if not is_recording_folder(self._folder):
            extras = [_extra(info, "in no recording's folder") for info in self._listed]
            return Checked(folder=self._folder, state="none", findings=extras)
        while True:
            checked, version = self._look()
            if not checked.findings:
                return checked
            # Somebody may have written the manifest, or purged a part, while this looked.
            info = self._store.stat(f"{self._folder}/{MANIFEST_NAME}")
            if (info and (info.etag, info.modified)) == version:
                return checked
            self._listed = list(self._store.list(f"{self._folder}/"))

    def _look(self) -> tuple[Checked, Any]:
        checked = Checked(folder=self._folder, state="settled")
        info = self._read_manifest(checked)
        if info is None:
            self._without_manifest(checked)
            return checked, None
        if checked.manifest is not None:
            manifest = checked.manifest
            listed: list[PartEntry | DocumentEntry] = [*manifest.parts, *manifest.documents]
            examined = [(one, self._pool.submit(self._examine, one)) for one in listed]
            for one, future in examined:
                finding, proof, read = future.result()
                checked.objects += 1
                checked.bytes += one.bytes
                checked.bytes_read += read
                if finding is not None:
                    checked.findings.append(finding)
                elif proof is not None:
                    checked.proofs[proof] += 1
            known = {f"{self._folder}/{name}" for name in (MANIFEST_NAME, *(one.key for one in listed))}
            there = {info.key for info in self._listed}
            checked.lacking = tuple(
                name for name in (PAGE_NAME, SPEAKERS_NAME) if f"{self._folder}/{name}" not in there
            )
            checked.findings += [
                _extra(info, "not in the manifest")
                for info in self._listed
                if info.key not in known and not is_derived(info.key[len(self._folder) + 1 :])
            ]
        else:
            self._go_by_notes(checked)
        return checked, (info.etag, info.modified)

    def _without_manifest(self, checked: Checked) -> None:
        newest = max((info.modified for info in self._listed), default=0.0)
        checked.state = "under_way" if newest >= self._unsettled_before else "unsettled"
        if self._listed and checked.state == "unsettled":
            detail = f"{len(self._listed)} objects and no manifest"
            checked.findings.append(Finding(kind="unsettled", key=self._folder, detail=detail))
            self._go_by_notes(checked)

    def _go_by_notes(self, checked: Checked) -> None:
        """Find objects that are not what was noted with them: without a manifest, nothing else tells of damage."""
        infos = [info for info in self._listed if is_key(info.key) and not info.key.endswith(f"/{MANIFEST_NAME}")]
        for finding in [self._pool.submit(self._compare, info.key) for info in infos]:
            if (damaged := finding.result()) is not None:
                checked.findings.append(damaged)

    def _compare(self, key: str) -> Finding | None:
        try:
            info = self._patiently(lambda: self._store.stat(key))
            noted = info.metadata.get("sha256") if info is not None else None
            if noted is None or any(self._patiently(lambda: self._sha256(key)) == noted for _ in range(2)):
                return None
        except StorageError as error:
            self._patience.lose(error)
            return Finding(kind="unreadable", key=key, detail=error.message)
        ids = {name: info.metadata.get(name.replace("_", "-")) for name in ("artifact_id", "part_id")}
        return Finding(
            kind="damaged", key=key, detail="the bytes have another hash than was noted", version=info, **ids
        )

    def _read_manifest(self, checked: Checked) -> ObjectInfo | None:
        """Read the manifest into ``checked``; None when there is none."""
        key = f"{self._folder}/{MANIFEST_NAME}"
        info = self._store.stat(key)
        if info is None:
            return None
        found = partial(Finding, key=key, version=info)
        try:
            if info.size > LARGEST_MANIFEST:
                raise ManifestInvalidError("the manifest is too large to be one")
            data = self._patiently(lambda: b"".join(self._store.read(key)))
            checked.manifest_proof = _proof_of(data, info)
            checked.manifest = _manifest(data, self._folder)
        except ObjectMissingError:
            return None
        except ManifestVersionError as error:
            checked.findings.append(found(kind="manifest_too_new", detail=error.message))
        except (ManifestInvalidError, IntegrityError) as error:
            checked.findings.append(found(kind="manifest_damaged", detail=error.message))
        except StorageError as error:
            self._patience.lose(error)
            checked.findings.append(found(kind="manifest_unreadable", detail=error.message))
        if checked.findings:
            checked.state = "unreadable"
        return info

    def _examine(self, listed: PartEntry | DocumentEntry) -> tuple[Finding | None, str | None, int]:
        """Say what is wrong with an object, or what proves it, and how many bytes of it were read."""
        key = f"{self._folder}/{listed.key}"
        artifact_id, part_id = getattr(listed, "artifact_id", None), getattr(listed, "part_id", None)
        found = partial(Finding, key=key, artifact_id=artifact_id, part_id=part_id)
        if not is_key(key):
            return found(kind="bad_key", detail="no key of this archive"), None, 0
        info = None
        try:
            info = self._patiently(lambda: self._store.stat(key))
            if info is None:
                return found(kind="missing", detail="no such object"), None, 0
            if info.size != listed.bytes:
                detail = f"{info.size} bytes where {listed.bytes} were stored"
                return found(kind="size", detail=detail, version=info), None, 0
            fault, proof, read = self._prove(info, listed)
        except ObjectMissingError:
            return found(kind="missing", detail="no such object"), None, 0
        except StorageError as error:
            self._patience.lose(error)
            return found(kind="unreadable", detail=error.message, version=info), None, 0
        return (found(kind="damaged", detail=fault, version=info) if fault else None), proof, read

    def _prove(self, info: ObjectInfo, listed: PartEntry | DocumentEntry) -> tuple[str | None, str | None, int]:
        if info.metadata.get("sha256", listed.sha256) != listed.sha256:
            return "noted with another hash", None, 0
        if self._mode == "checksum":
            computed = [
                (info.checksums[name], stated)
                for name, stated in (("sha256", listed.sha256), ("crc32", listed.crc32))
                if name in info.checksums and stated is not None
            ]
            if computed:
                agrees = all(one == other for one, other in computed)
                return (None, BY_STORE, 0) if agrees else ("the store's own checksum is another one", None, 0)
        read = 0
        for _ in range(2):  # whoever reads wrongly once must not cost the object its place
            read += listed.bytes
            if self._patiently(lambda: self._sha256(info.key)) == listed.sha256:
                return None, ALWAYS_READ, read
        return "the bytes have another hash", None, read

    def _sha256(self, key: str) -> str | None:
        digest = hashlib.sha256()
        try:
            for chunk in self._store.read(key):
                self._check_stop()
                digest.update(chunk)
        except IntegrityError:
            return None
        return digest.hexdigest()

    def _patiently(self, ask: Callable[[], Any]) -> Any:
        for attempt in range(READ_ATTEMPTS):
            self._check_stop()
            try:
                return ask()
            except StorageError as error:
                if error.permanent or attempt == READ_ATTEMPTS - 1:
                    raise
            self._stops[0].wait(0.5 * 2**attempt)
        raise StoppedError("told to stop")

    def _check_stop(self) -> None:
        if any(stop.is_set() for stop in self._stops):
            raise StoppedError("told to stop")


def _extra(info: ObjectInfo, detail: str) -> Finding:
    return Finding(kind="extra", key=info.key, detail=detail, version=info)


def _proof_of(data: bytes, info: ObjectInfo) -> str:
    """Say why a manifest's bytes are believed to be those that were written.

    :raises ManifestInvalidError: when they are not.
    """
    sha256, crc32 = hashlib.sha256(data).hexdigest(), f"{zlib.crc32(data):08x}"
    for proof, expected, actual in (
        ("sha256", info.metadata.get("sha256"), sha256),
        (BY_STORE, info.checksums.get("sha256"), sha256),
        (BY_STORE, info.checksums.get("crc32"), crc32),
    ):
        if expected is not None:
            if expected != actual:
                raise ManifestInvalidError("the manifest holds other bytes than were written")
            return proof
    return "schema"


def _manifest(data: bytes, folder: str) -> Manifest:
    try:
        manifest = Manifest.from_bytes(data)
        own = recording_folder(manifest.recording.created_at, manifest.recording.id)
    except (ValueError, OverflowError):
        raise ManifestInvalidError("the manifest holds a time that cannot be read") from None
    if own != folder:
        raise ManifestInvalidError("the manifest is that of another recording")
    return manifest


@dataclass(kw_only=True)
class Tally:
    """What a report adds up: of one chunk, or of all."""

    recordings: Counter[str] = field(default_factory=Counter)
    manifests: Counter[str] = field(default_factory=Counter)
    objects: int = 0
    bytes: int = 0
    bytes_read: int = 0
    proofs: Counter[str] = field(default_factory=Counter)
    found: Counter[str] = field(default_factory=Counter)
    repaired: Counter[str] = field(default_factory=Counter)

    def add(self, checked: Checked) -> None:
        """Count one recording; its findings apart, see :meth:`count`."""
        if checked.state != "none":
            self.recordings[checked.state] += 1
        if checked.manifest_proof is not None and checked.manifest is not None:
            self.manifests[checked.manifest_proof] += 1
        self.objects += checked.objects
        self.bytes += checked.bytes
        self.bytes_read += checked.bytes_read
        self.proofs += checked.proofs

    def count(self, kind: str, *, repaired: bool) -> None:
        """Count one finding."""
        self.found[kind] += 1
        if repaired:
            self.repaired[kind] += 1

    @property
    def unrepaired(self) -> int:
        """How many findings still do harm."""
        return sum(
            number - self.repaired[kind]
            for kind, number in self.found.items()
            if Finding(kind=kind, key="", detail="").harms
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON can hold them."""
        return {name: dict(sorted(v.items())) if isinstance(v, Counter) else v for name, v in vars(self).items()}

    @classmethod
    def total(cls, tallies: Iterable[Mapping[str, Any]]) -> Tally:
        """Add up what :meth:`to_dict` gave."""
        whole = cls()
        for one in tallies:
            for name, value in one.items():
                setattr(whole, name, getattr(whole, name) + (Counter(value) if isinstance(value, dict) else value))
        return whole
