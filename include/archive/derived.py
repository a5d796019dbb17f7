"""Audio that is made from what is archived, and can be made again: FLAC of each part, and all tracks side by side.

It is kept in a folder of its own below the recording's and is in no manifest. Of each kind an index is written last:
where there is one, what it lists was decoded again and has the samples that it was made from. Bodies pass through
temporary files (in ``TMPDIR``), so memory depends neither on their length nor on their number.

Needs soundfile (requirements/audio.in), which brings libsndfile and numpy.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from include.archive.audio import FLAC, MP3, OGG, WAV
from include.archive.copy import archive_body, find_stored
from include.archive.errors import (
    ArchiveChangedError,
    AudioLibraryMissingError,
    AudioUnfitError,
    DecodedDiffersError,
    IntegrityError,
    ObjectMissingError,
    StoppedError,
    StorageFullError,
)
from include.archive.layout import DERIVED_FOLDER, part_stem
from include.archive.manifest import load

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from include.archive.copy import Stop, StoredPart
    from include.archive.manifest import Manifest, PartEntry
    from include.archive.stores import ObjectInfo, Store

log = logging.getLogger(__name__)

INDEX_MEDIA_TYPE = "application/json"
BLOCK_SAMPLES = 256 * 1024
"""Samples, all channels together, that are in memory at a time."""

FLAC_CHANNELS = 8
"""As many channels a FLAC file can have."""

MOST_CHANNELS = 1024
"""As many channels libsndfile writes to any file."""

LARGEST_WAV = 4 * 2**30 - 2**20
"""Bytes of samples up to which a file is WAV; beyond, its sizes take RF64 (EBU Tech 3306)."""

LONGEST_SECONDS = 48 * 3600.0
"""A part that ends later than this after the recording's start is misplaced."""

MP3_DELAY = 529 + 576
"""Samples by which MP3 comes late where the file doesn't tell: any decoder's own, and what LAME's encoder adds."""

_MP3_TELLS = (b"Xing", b"Info", b"LAME")
_DECODABLE = {WAV.media_type, FLAC.media_type, OGG.media_type, MP3.media_type}
_LOSSLESS = {WAV.media_type, FLAC.media_type}
_BITS = {"PCM_U8": 8, "PCM_S8": 8, "PCM_16": 16, "PCM_24": 24}
_FLOATS = {"FLOAT", "DOUBLE"}


@dataclass(frozen=True)
class Derived:
    """What became of one recording.

    :param key: of the index, relative to the recording's folder.
    :param made: how many audio files the index lists.
    :param skipped: how many parts it leaves out.
    :param bytes: size of the audio files.
    :param source_bytes: size of the parts that they were made from.
    :param is_new: it was made now.
    """

    key: str
    made: int
    skipped: int
    bytes: int
    source_bytes: int
    is_new: bool


def make_flac(store: Store, folder: str, manifest: Manifest, *, stop: Stop | None = None) -> Derived:
    """Store each part that is WAV a second time, as FLAC under ``derived/flac/``, where that loses nothing.

    Each file is decoded again and compared, sample by sample, before it is stored; where the source sent headerless
    samples, what is decoded must have the SHA-256 of what the source sent.

    :param folder: the recording's folder.
    :param stop: set it to end the work.
    :return: what the index, ``derived/flac.json``, says.
    :raises AudioLibraryMissingError: soundfile is not installed.
    :raises DecodedDiffersError: a file does not decode to its source.
    :raises IntegrityError: a part is not what the manifest says.
    :raises ArchiveChangedError: the manifest lists other parts by now.
    """
    if (known := _known(store, folder, "flac", manifest)) is not None:
        return known
    sf = _soundfile()
    files, skipped = [], []
    for part in manifest.parts:
        with tempfile.TemporaryDirectory(prefix="recall-") as there:
            reason = _why_no_flac(sf, store, folder, part, Path(there))
            if reason is not None:
                skipped.append({"artifact_id": part.artifact_id, "part_id": part.part_id, "reason": reason})
                continue
            stored = _flac(sf, store, folder, manifest, part, Path(there), stop)
        files.append(
            {
                "artifact_id": part.artifact_id,
                "part_id": part.part_id,
                "participant_id": part.participant_id,
                "key": stored.key,
                "bytes": stored.bytes,
                "sha256": stored.sha256,
                "made_from": {"key": part.key, "sha256": part.sha256, "bytes": part.bytes},
            }
        )
    return _finish(store, folder, manifest, {"kind": "flac", "files": files, "skipped": skipped})


def make_aligned(store: Store, folder: str, manifest: Manifest, *, stop: Stop | None = None) -> Derived:
    """Store one file with a channel for each participant who has audio, all beginning at the recording's start.

    The channels are in the order of the participants' ids. Every part is placed at its offset, to the sample; what
    lies before the recording's start is cut off, silence fills the rest, parts of one participant that overlap are
    added. Up to eight channels it is FLAC, above that WAV, or RF64 from 4 GiB up.

    Of several forms of the same audio one is taken: a lossless one if there is any, then the longest.

    :return: what the index, ``derived/aligned.json``, says. Its ``channels`` name each channel's participant and parts.
    :raises AudioUnfitError: the parts have different sample rates, or one can't be decoded or placed.

    The other parameters and errors are those of :func:`make_flac`.
    """
    if (known := _known(store, folder, "aligned", manifest)) is not None:
        return known
    sf = _soundfile()
    parts = _one_form(manifest)
    document: dict[str, Any] = {"kind": "aligned", "files": [], "skipped": []}
    if parts:
        with tempfile.TemporaryDirectory(prefix="recall-") as there:
            paths = [_spooled(store, folder, part, Path(there), number) for number, part in enumerate(parts)]
            mix = _Mix(sf, paths, parts)
            stored = _aligned(store, folder, manifest, mix, Path(there), stop)
        document["files"] = [
            {
                "artifact_id": parts[0].artifact_id,
                "key": stored.key,
                "bytes": stored.bytes,
                "sha256": stored.sha256,
                "rate": mix.rate,
                "frames": mix.frames,
                "channels": mix.channels(),
                "made_from": {"bytes": sum(part.bytes for part in parts)},
            }
        ]
        chosen = {(part.artifact_id, part.part_id) for part in parts}
        document["skipped"] = [
            {"artifact_id": part.artifact_id, "part_id": part.part_id, "reason": "another_form_or_no_audio"}
            for part in manifest.parts
            if (part.artifact_id, part.part_id) not in chosen
        ]
    return _finish(store, folder, manifest, document)


def _soundfile() -> Any:
    try:
        import soundfile  # an extra: who makes no audio needs neither it nor numpy
    except (ImportError, OSError) as error:
        raise AudioLibraryMissingError(
            f"no audio without soundfile ({type(error).__name__}): install requirements/audio.in where tasks run"
        ) from None
    return soundfile


def _spooled(store: Store, folder: str, part: PartEntry, there: Path, number: int = 0) -> Path:
    """Put a part into a temporary file, proven."""
    digest = hashlib.sha256()
    path = there / f"{number}.{part.key.rpartition('.')[2]}"
    with path.open("wb") as file:
        for chunk in store.read(f"{folder}/{part.key}"):
            digest.update(chunk)
            file.write(chunk)
    if digest.hexdigest() != part.sha256:
        raise IntegrityError(f"{store.uri(folder)}/{part.key} is not what its manifest says", permanent=True)
    return path


def _why_no_flac(sf: Any, store: Store, folder: str, part: PartEntry, there: Path) -> str | None:
    """Return why a part gets no FLAC; where it gets one, the part lies in the temporary folder then."""
    if part.media_type != WAV.media_type:
        return "not_wav"
    if part.pcm is not None and part.source_bytes % (part.pcm["width"] * part.pcm["channels"]):
        return "partial_sample"  # FLAC can't hold it, and every byte counts
    path = _spooled(store, folder, part, there)
    try:
        about = sf.info(str(path))
    except sf.LibsndfileError:
        return "not_decodable"
    if about.subtype not in _BITS or about.channels > FLAC_CHANNELS or not about.frames:
        return "not_lossless_in_flac"
    return None


def _flac(
    sf: Any, store: Store, folder: str, manifest: Manifest, part: PartEntry, there: Path, stop: Stop | None
) -> StoredPart:
    stem = f"{DERIVED_FOLDER}/flac/{part_stem(part.participant_id, part.artifact_id, part.part_id)}"
    ids = {
        "recording_id": manifest.recording.id,
        "artifact_id": part.artifact_id,
        "part_id": part.part_id,
        "made_from": part.sha256,
    }
    found = find_stored(store, stem, folder=folder, source_format="flac", ids=ids, duration=None)
    if found is not None:
        return found
    (wav,) = there.iterdir()
    flac = there / "made.flac"
    with sf.SoundFile(str(wav)) as source:
        subtype = {8: "PCM_S8"}.get(_BITS[source.subtype], source.subtype)
        with sf.SoundFile(str(flac), "w", source.samplerate, source.channels, subtype, format="FLAC") as target:
            for block in _blocks(source, stop):
                target.write(block)
    _compare(sf, wav, flac, part, stop)
    return _store(store, folder, stem, flac, ids, stop)


def _aligned(store: Store, folder: str, manifest: Manifest, mix: _Mix, there: Path, stop: Stop | None) -> StoredPart:
    stem = f"{DERIVED_FOLDER}/aligned"
    ids = {"recording_id": manifest.recording.id, "made_from": mix.fingerprint}
    for info in list(_made(store, folder, "aligned")):
        if info.key != _index_key(folder, "aligned"):
            known = store.stat(info.key)
            if known is not None and known.metadata.get("made-from") != mix.fingerprint:
                store.delete(known)  # a killed try made it of other parts
    found = find_stored(store, stem, folder=folder, source_format="flac", ids=ids, duration=None)
    if found is not None:
        return found
    path = there / ("aligned.flac" if mix.is_flac else "aligned.wav")
    mix.write(path, stop)
    return _store(store, folder, stem, path, ids, stop)


def _compare(sf: Any, wav: Path, flac: Path, part: PartEntry, stop: Stop | None) -> None:
    digest = hashlib.sha256()
    with sf.SoundFile(str(wav)) as one, sf.SoundFile(str(flac)) as other:
        same = (one.frames, one.samplerate, one.channels) == (other.frames, other.samplerate, other.channels)
        width = _BITS[one.subtype] // 8
        for block in _blocks(one, stop) if same else ():
            decoded = other.read(len(block), dtype="int32", always_2d=True)
            same = same and decoded.shape == block.shape and bool((decoded == block).all())
            digest.update(_sample_bytes(decoded, width))
    if not same or (part.pcm is not None and digest.hexdigest() != part.source_sha256):
        raise DecodedDiffersError(f"part {part.part_id}: its FLAC does not decode to what is archived; nothing is kept")


def _sample_bytes(block: Any, width: int) -> bytes:
    """Return samples as headerless PCM has them."""
    if width == 1:
        data: bytes = ((block >> 24) + 128).astype("u1").tobytes()
    elif width == 2:
        data = (block >> 16).astype("<i2").tobytes()
    else:
        data = (block >> 8).astype("<i4").view("u1").reshape(-1, 4)[:, :3].tobytes()
    return data


def _blocks(source: Any, stop: Stop | None) -> Iterator[Any]:
    frames = max(1, BLOCK_SAMPLES // source.channels)
    while len(block := source.read(frames, dtype="int32", always_2d=True)):
        _check(stop)
        yield block


def _check(stop: Stop | None) -> None:
    if stop is not None and stop.is_set():
        raise StoppedError("told to stop")


def _one_form(manifest: Manifest) -> list[PartEntry]:
    """Return the parts of the artifact whose audio is the best to have."""
    forms: dict[str, list[PartEntry]] = {}
    for part in manifest.parts:
        if part.media_type in _DECODABLE and part.bytes:
            forms.setdefault(part.artifact_id, []).append(part)

    def worth(artifact_id: str) -> tuple[bool, float, str]:
        parts = forms[artifact_id]
        lossless = all(part.media_type in _LOSSLESS for part in parts)
        return lossless, sum(part.duration_seconds for part in parts), artifact_id

    return forms[max(forms, key=worth)] if forms else []


@dataclass
class _Placed:
    """A part in the mix.

    :param start: frame of the recording at which it begins.
    :param frames: how many it has, but for the first ``delay``, which hold nothing of it.
    :param cut: how many of them lie before the recording.
    """

    path: Path
    part: PartEntry
    channel: int
    start: int
    delay: int
    frames: int
    cut: int

    @property
    def begin(self) -> int:
        return max(0, self.start)

    @property
    def end(self) -> int:
        return max(0, self.start + self.frames)


class _Mix:
    """One participant a channel, on one clock."""

    def __init__(self, sf: Any, paths: Sequence[Path], parts: Sequence[PartEntry]) -> None:
        self._sf = sf
        about = []
        for path, part in zip(paths, parts, strict=True):
            try:
                about.append(sf.info(str(path)))
            except sf.LibsndfileError:
                raise AudioUnfitError(f"part {part.part_id} ({part.media_type}) can't be decoded") from None
            if about[-1].subtype in _FLOATS:
                raise AudioUnfitError(f"part {part.part_id} has samples of floating point, which have no fixed scale")
        rates = sorted({one.samplerate for one in about})
        if len(rates) != 1:
            raise AudioUnfitError(f"the parts have different sample rates ({', '.join(map(str, rates))} Hz)")
        (self.rate,) = rates
        self.people = sorted({part.participant_id for part in parts})
        if len(self.people) > MOST_CHANNELS:
            raise AudioUnfitError(f"{len(self.people)} participants are more than one file has channels for")
        self._placed = [
            self._place(path, part, one.frames) for path, part, one in zip(paths, parts, about, strict=True)
        ]
        self._placed.sort(key=lambda one: one.begin)
        self.frames = max(one.end for one in self._placed)
        # What was compressed with loss has no width of its own.
        self.bits = max(32 if one.subtype == "PCM_32" else max(16, _BITS.get(one.subtype, 16)) for one in about)
        self.is_flac = len(self.people) <= FLAC_CHANNELS and self.bits <= 24
        # The same parts at the same places give the same samples, whatever libsndfile's version makes of them.
        told = [(one.part.sha256, one.channel, one.start) for one in self._placed]
        self.fingerprint = hashlib.sha256(repr((sorted(told), self.bits, self.is_flac)).encode()).hexdigest()

    def _place(self, path: Path, part: PartEntry, frames: int) -> _Placed:
        delay = min(frames, _delay(path, part))
        frames -= delay
        if part.start_relative_seconds + frames / self.rate > LONGEST_SECONDS:
            raise AudioUnfitError(f"part {part.part_id} ends days after the recording's start")
        start = round(max(part.start_relative_seconds, -LONGEST_SECONDS) * self.rate)
        channel = self.people.index(part.participant_id)
        return _Placed(path, part, channel, start, delay, frames, min(frames, max(0, -start)))

    def channels(self) -> list[dict[str, Any]]:
        """Return who is on which channel, counted from 1, and where in it each part begins."""
        return [
            {
                "channel": number + 1,
                "participant_id": who,
                "parts": [
                    {"part_id": one.part.part_id, "start": one.begin, "frames": one.frames - one.cut, "cut": one.cut}
                    for one in self._placed
                    if one.channel == number
                ],
            }
            for number, who in enumerate(self.people)
        ]

    def write(self, path: Path, stop: Stop | None) -> None:
        """Write the file, and read it again.

        :raises DecodedDiffersError: when it holds other samples than were written.
        :raises StorageFullError: when the temporary folder has too little space.
        """
        subtype = f"PCM_{self.bits}"
        size = self.frames * len(self.people) * self.bits // 8
        if not self.is_flac and size > shutil.disk_usage(path.parent).free:
            raise StorageFullError(f"{size} bytes of aligned tracks don't fit into the temporary folder (TMPDIR)")
        form = "FLAC" if self.is_flac else "WAV" if size <= LARGEST_WAV else "RF64"
        written, read = hashlib.sha256(), hashlib.sha256()
        with self._sf.SoundFile(str(path), "w", self.rate, len(self.people), subtype, format=form) as target:
            for block in self._mixed(stop):
                target.write(block)
                written.update(self._kept_bits(block))
        with self._sf.SoundFile(str(path)) as source:
            for block in _blocks(source, stop):
                read.update(self._kept_bits(block))
        if written.digest() != read.digest():
            raise DecodedDiffersError("the aligned tracks don't decode to what they were made from; nothing is kept")

    def _kept_bits(self, block: Any) -> bytes:
        kept: bytes = (block >> (32 - self.bits)).tobytes()
        return kept

    def _mixed(self, stop: Stop | None) -> Iterator[Any]:
        import numpy as np

        low, high = np.iinfo("int32").min, np.iinfo("int32").max
        length = max(1, BLOCK_SAMPLES // len(self.people))
        waiting = list(reversed(self._placed))
        with ExitStack() as stack:
            running: list[tuple[_Placed, Any]] = []
            for begin in range(0, self.frames, length):
                _check(stop)
                end = min(self.frames, begin + length)
                block: Any = np.zeros((end - begin, len(self.people)), dtype="int64")
                while waiting and waiting[-1].begin < end:
                    one = waiting.pop()
                    if one.end > one.begin:
                        source = stack.enter_context(closing(self._sf.SoundFile(str(one.path))))
                        source.seek(one.delay + one.cut)
                        running.append((one, source))
                for one, source in running:
                    first = max(0, one.begin - begin)
                    samples = source.read(min(end, one.end) - begin - first, dtype="int32", always_2d=True)
                    block[first : first + len(samples), one.channel] += samples.mean(axis=1).astype("int64")
                for _, source in (each for each in running if each[0].end <= end):
                    source.close()
                running = [each for each in running if each[0].end > end]
                yield np.clip(block, low, high).astype("int32")


def _delay(path: Path, part: PartEntry) -> int:
    if part.media_type != MP3.media_type:
        return 0
    with path.open("rb") as file:
        head = file.read(4096)
    return 0 if any(word in head for word in _MP3_TELLS) else MP3_DELAY  # where it tells, the decoder has seen to it


class _File:
    """A finished temporary file as a source of the copy."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def open(self, offset: int = 0, if_match: str | None = None, end: int | None = None) -> _FileBody:
        """Open it at ``offset``; it never changes."""
        return _FileBody(self._path, offset)


class _FileBody:
    def __init__(self, path: Path, offset: int) -> None:
        self._file = path.open("rb", buffering=0)
        self._file.seek(offset)
        self.offset = offset
        self.takes_ranges = False
        self.length: int | None = path.stat().st_size
        self.etag: str | None = None
        self.content_type: str | None = None
        self.checksums: Mapping[str, str] = {}

    def readinto(self, buffer: memoryview) -> int:
        return self._file.readinto(buffer)

    def interrupt(self) -> None:
        """Do nothing: a file never lets its reader wait."""

    def close(self) -> None:
        self._file.close()


def _store(store: Store, folder: str, stem: str, path: Path, ids: Mapping[str, str], stop: Stop | None) -> StoredPart:
    # The copy compares with what is there, and proves what it stores.
    return archive_body(
        _File(path), store, stem, folder=folder, source_format=path.suffix[1:], ids=ids, duration=None, stop=stop
    )


def _known(store: Store, folder: str, kind: str, manifest: Manifest) -> Derived | None:
    """Return what was made before, if it is all there and of the very parts that the manifest lists.

    What is there of other parts is removed first: it may hold the voice of somebody whom a purge removed meanwhile.
    """
    there = {info.key: info.size for info in _made(store, folder, kind)}
    index = _index_key(folder, kind)
    if index in there:
        try:
            document = json.loads(b"".join(store.read(index)))
            is_sound = document["parts_sha256"] == _parts_sha256(manifest) and all(
                there.get(f"{folder}/{one['key']}") == one["bytes"] for one in document["files"]
            )
        except (ValueError, KeyError, TypeError, IntegrityError, ObjectMissingError):
            is_sound = False
        if is_sound:
            return _told(document, is_new=False)
        log.warning("%s is not of what is archived now, or not whole; it is made anew", index)
        _remove(store, folder, kind)
    return None


def _finish(store: Store, folder: str, manifest: Manifest, document: dict[str, Any]) -> Derived:
    kind = document["kind"]
    listed = {f"{folder}/{one['key']}" for one in document["files"]}
    for info in list(_made(store, folder, kind)):
        if info.key not in listed:
            store.delete(info)  # what a killed try made of parts that are no longer listed
    document = {**document, "parts_sha256": _parts_sha256(manifest)}
    data = (json.dumps(document, indent=1, sort_keys=True) + "\n").encode("ascii")
    store.put_if_absent(_index_key(folder, kind), data, INDEX_MEDIA_TYPE)
    # After all was written: a purge that comes later finds it. One that came earlier must not be undone.
    now = load(store, folder)
    if now is None or _parts_sha256(now) != document["parts_sha256"]:
        _remove(store, folder, kind)
        raise ArchiveChangedError(f"{folder}: its parts have changed while {kind} was made of them; nothing is kept")
    return _told(document, is_new=True)


def _index_key(folder: str, kind: str) -> str:
    return f"{folder}/{DERIVED_FOLDER}/{kind}.json"


def _made(store: Store, folder: str, kind: str) -> Iterator[ObjectInfo]:
    """Yield what there is of a kind, its index included."""
    stem = f"{folder}/{DERIVED_FOLDER}/{kind}"
    return (info for info in store.list(stem) if info.key.startswith((f"{stem}.", f"{stem}/")))


def _remove(store: Store, folder: str, kind: str) -> None:
    for info in list(_made(store, folder, kind)):
        store.delete(info)


def _parts_sha256(manifest: Manifest) -> str:
    """Return what stays the same as long as the parts do, and where they belong."""
    told = sorted((one.artifact_id, one.part_id, one.sha256, one.start_relative_seconds) for one in manifest.parts)
    return hashlib.sha256(repr(told).encode()).hexdigest()


def _told(document: Mapping[str, Any], *, is_new: bool) -> Derived:
    return Derived(
        key=f"{DERIVED_FOLDER}/{document['kind']}.json",
        made=len(document["files"]),
        skipped=len(document["skipped"]),
        bytes=sum(one["bytes"] for one in document["files"]),
        source_bytes=sum(one["made_from"]["bytes"] for one in document["files"]),
        is_new=is_new,
    )
