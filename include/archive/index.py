"""All meetings of an archive in one small database on this machine, where they can be searched and counted at once.

The archive alone is true, and this is a view of it that may be thrown away at any time. What is known of a recording
was read from its manifest, and counts for just that version of it (its ETag, size and time): a listing tells what is
new, what has changed and what is gone, and only the former two are read. A listing that fails changes nothing. How old
the view is, and whether all of the archive is in it yet, is part of every answer, see :class:`Standing`.

Listing all of a large bucket takes minutes, so there are two kinds of refreshes: of all, and of the recent days with
what was purged lately. The database holds names of people: only its owner can read the file, and what leaves it is
overwritten.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import math
import os
import re
import sqlite3
import stat
import tempfile
import time
import unicodedata
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from include.archive.errors import ArchiveError, ManifestError, ManifestInvalidError, ObjectMissingError, StorageError
from include.archive.layout import LOST_FOLDER, MANIFEST_NAME, is_recording_folder, recording_folder
from include.archive.manifest import BURIED, MANIFEST_VERSION, Manifest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from concurrent.futures import Future

    from include.archive.stores import ObjectInfo, Store

log = logging.getLogger(__name__)

STATES = ("archived", "archived_with_gaps", "nothing_to_archive", "unsettled", "unreadable", "lost")
"""What a meeting's manifest says; ``unsettled``: there is none yet; ``unreadable``: it can't be believed; ``lost``: a
note in the archive says that the recording was gone before it was archived."""

VERDICTS = ("sound", "harmed", "outdated")
"""What the last verification of a recording found; ``outdated``: its manifest has been written since."""

RECENT_DAYS = 7
"""How far back a refresh goes that is not a complete one."""

PURGES_SECONDS = 3 * 86400.0
"""How long after a note of a purge such a refresh looks at its recording, too."""

READERS = 8
"""How many manifests are read at a time."""

MOST_JUDGED = 200
"""How many verifications the view knows by name."""

LARGEST_MANIFEST = 64 * 1024 * 1024
UNUSED_SECONDS = 7 * 86400.0
"""After so long, an index that nobody refreshes is removed by whoever refreshes another one."""

_FORMAT = 1
_BATCH = 200
_MOST_SUMS = 50
_MOST_NAMES = 4
_MOST_WORDS = 8
_DAY = re.compile(r"dt=([0-9]{4}-[0-9]{2}-[0-9]{2})")
_OUTCOMES = frozenset(STATES[:3])

_SCHEMA = """
CREATE TABLE meeting (
  began REAL NOT NULL, folder TEXT NOT NULL UNIQUE, day TEXT NOT NULL, version TEXT, modified REAL NOT NULL,
  state TEXT NOT NULL, recording_id TEXT NOT NULL, bot_id TEXT, title TEXT, platform TEXT, people INTEGER NOT NULL,
  names TEXT NOT NULL, parts INTEGER NOT NULL, bytes INTEGER NOT NULL, seconds REAL NOT NULL, missing INTEGER NOT NULL,
  problem TEXT, verdict TEXT, verified_at REAL, verified_by TEXT, words TEXT NOT NULL,
  PRIMARY KEY (began DESC, folder)
) WITHOUT ROWID;
CREATE INDEX meeting_of_day ON meeting (day);
CREATE INDEX meeting_of_recording ON meeting (recording_id);
CREATE TABLE verdict (
  folder TEXT PRIMARY KEY, at REAL NOT NULL, harmed INTEGER NOT NULL, run TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE note (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""
_SHOWN = (
    "folder, began, state, recording_id, bot_id, title, platform, people, names, parts, bytes, seconds, missing, "
    "problem, verdict, verified_at, verified_by"
)
_WRITTEN = (
    "began, folder, day, version, modified, state, recording_id, bot_id, title, platform, people, names, parts, bytes, "
    "seconds, missing, problem, words"
)
_INSERT = f"INSERT INTO meeting ({_WRITTEN}) VALUES (:{_WRITTEN.replace(', ', ', :')})"  # noqa: S608 - names of ours
_JUDGE = """
UPDATE meeting SET (verdict, verified_at, verified_by) = (
  SELECT CASE WHEN one.at < meeting.modified THEN 'outdated' WHEN one.harmed THEN 'harmed' ELSE 'sound' END,
    one.at, one.run
  FROM verdict AS one WHERE one.folder = meeting.folder)
"""


@dataclass(frozen=True, kw_only=True)
class Meeting:
    """One row of the view.

    :param folder: in the archive; of a lost recording the key of the note about it.
    :param state: one of :data:`STATES`.
    :param began: when the recording was created; the beginning of its day where only that is known.
    :param names: of the first participants; ``people`` is how many there are.
    :param seconds: of audio, of all participants together.
    :param missing: parts that are gone for good.
    :param problem: why the manifest can't be believed, or why the recording was lost.
    :param verdict: one of :data:`VERDICTS`; None when no verification has looked at it yet.
    :param verified_by: name of that verification, which ran at ``verified_at``.
    """

    folder: str
    state: str
    recording_id: str
    began: datetime
    bot_id: str | None = None
    title: str | None = None
    platform: str | None = None
    names: tuple[str, ...] = ()
    people: int = 0
    parts: int = 0
    bytes: int = 0
    seconds: float = 0.0
    missing: int = 0
    problem: str | None = None
    verdict: str | None = None
    verified_at: datetime | None = None
    verified_by: str | None = None


@dataclass(frozen=True)
class Query:
    """What is asked for.

    :param words: all of them must be somewhere in the ids, the title, the date, or a participant's name or address;
        case is ignored.
    :param first: and ``last``: days, in UTC, both included.
    :param state: one of :data:`STATES`.
    :param verdict: one of :data:`VERDICTS`, or ``none``.
    """

    words: str = ""
    first: date | None = None
    last: date | None = None
    state: str | None = None
    verdict: str | None = None


@dataclass(frozen=True)
class Totals:
    """What some meetings add up to."""

    meetings: int = 0
    parts: int = 0
    bytes: int = 0
    seconds: float = 0.0

    def __add__(self, other: Totals) -> Totals:
        return Totals(
            self.meetings + other.meetings,
            self.parts + other.parts,
            self.bytes + other.bytes,
            self.seconds + other.seconds,
        )


@dataclass(frozen=True)
class Standing:
    """How far the view can be believed.

    :param complete_at: everything that was in the archive at that moment is in the view; None before the first complete
        listing, while recordings may be missing from it.
    :param recent_at: the same for the recent days.
    :param complete_seconds: how long the last complete refresh took; 0 for the first one, which had to read everything.
    :param days: how many days a complete refresh under way has done, of how many; None when none is.
    :param error: what the last refresh failed of, and ``error_at`` when; None when it did not.
    """

    complete_at: datetime | None = None
    recent_at: datetime | None = None
    complete_seconds: float = 0.0
    days: tuple[int, int] | None = None
    error: str | None = None
    error_at: datetime | None = None


@dataclass(frozen=True)
class Answer:
    """What is found.

    :param meetings: newest first, one page of them.
    :param totals: of all that are found, by state and verdict (``none`` for no verdict); those of other states and
        verdicts than asked for too, for whoever wants to offer them.
    """

    meetings: list[Meeting] = field(default_factory=list)
    totals: Mapping[tuple[str, str], Totals] = field(default_factory=dict)
    standing: Standing = field(default_factory=Standing)

    def total(self, *, state: str | None = None, verdict: str | None = None) -> Totals:
        """Add up what is in a state, or has a verdict."""
        chosen = (one for (its, had), one in self.totals.items() if state in (None, its) and verdict in (None, had))
        return sum(chosen, Totals())


class Index:
    """The view of one archive, in a file that all processes of one user share.

    :param archive: the archive's address, which tells it from others.
    :param folder: where the file is, a folder of this user's alone; ``recall-archive-<uid>`` in the machine's folder
        for temporary files by default.
    """

    def __init__(self, archive: str, folder: Path | None = None) -> None:
        self._folder = folder or Path(tempfile.gettempdir()) / f"recall-archive-{os.getuid()}"
        self._name = hashlib.sha256(archive.encode()).hexdigest()[:32]
        self.path = self._folder / f"{self._name}-{_FORMAT}.sqlite"
        self._is_checked = False
        self._totals: dict[Any, Mapping[tuple[str, str], Totals]] = {}

    # -- asking ------------------------------------------------------------------------------------------------------

    def ask(self, query: Query, *, skip: int = 0, most: int = 50) -> Answer:
        """Return one page of what is asked for; nothing before the first refresh.

        :param skip: how many of the newest to leave out.
        """
        with self._reading() as database:
            if database is None:
                return Answer()
            where, values = _conditions(query)
            narrow, narrow_values = list(where), list(values)
            for column, value in (("state", query.state), ("ifnull(verdict, 'none')", query.verdict)):
                if value is not None:
                    narrow.append(f"{column} = ?")
                    narrow_values.append(value)
            rows = database.execute(
                f"SELECT {_SHOWN} FROM meeting{_where(narrow)} ORDER BY began DESC, folder LIMIT ? OFFSET ?",  # noqa: S608
                (*narrow_values, most, skip),
            )
            meetings = [_meeting(row) for row in rows]
            return Answer(meetings, self._add_up(database, where, values), _standing(database))

    def standing(self) -> Standing:
        """Return how far the view can be believed now."""
        with self._reading() as database:
            return Standing() if database is None else _standing(database)

    def settled(self, recording_ids: Sequence[str]) -> set[str]:
        """Return those recordings that have a manifest which can be believed."""
        found: set[str] = set()
        with self._reading() as database:
            for start in range(0, len(recording_ids) if database else 0, 500):
                some = recording_ids[start : start + 500]
                marks = ", ".join("?" * len(some))
                rows = database.execute(  # type: ignore[union-attr]
                    f"SELECT recording_id FROM meeting WHERE recording_id IN ({marks}) AND state IN (?, ?, ?)",  # noqa: S608
                    (*some, *STATES[:3]),
                )
                found.update(recording_id for (recording_id,) in rows)
        return found

    def _add_up(
        self, database: sqlite3.Connection, where: list[str], values: list[Any]
    ) -> Mapping[tuple[str, str], Totals]:
        """Add up by state and verdict; what was added up before counts until something changes."""
        key = (_note(database, "turn"), tuple(where), tuple(values))
        if (known := self._totals.get(key)) is not None:
            return known
        rows = database.execute(
            "SELECT state, ifnull(verdict, 'none'), count(*), sum(parts), sum(bytes), sum(seconds) "  # noqa: S608
            f"FROM meeting{_where(where)} GROUP BY 1, 2",
            values,
        )
        found = {(state, verdict): Totals(*sums) for state, verdict, *sums in rows}
        others = [one for one in list(self._totals.items()) if one[0][0] == key[0]]
        self._totals = dict([*others[-_MOST_SUMS:], (key, found)])
        return found

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection | None]:
        """Give the database as it is at one moment; None where there is none that can be read."""
        try:
            self._check_folder()
            database = sqlite3.connect(f"file:{quote(str(self.path))}?mode=ro", uri=True, timeout=5.0)
        except (sqlite3.OperationalError, FileNotFoundError):
            yield None
            return
        except OSError as error:
            raise _unusable(self._folder, error) from None
        with closing(database):
            try:
                database.execute("BEGIN")
                is_made = database.execute("PRAGMA user_version").fetchone()[0] == _FORMAT
                yield database if is_made else None
            except sqlite3.DatabaseError as error:
                # Whoever refreshes finds out the same, and begins anew.
                raise StorageError(f"the index of the archive can't be read now: {error}", permanent=False) from None

    # -- refreshing --------------------------------------------------------------------------------------------------

    def refresh(self, store: Store, *, complete: bool = True, rest: Callable[[], None] = lambda: None) -> bool:
        """Bring the view up to what the archive holds now.

        :param complete: look at all days; else at the recent ones, those that are new, and what was purged lately.
        :param rest: called every now and then, to make room for others.
        :return: False when another process is at it.
        :raises StorageError: when the archive can't be listed. The view stays as it was, and says so.
        """
        with self._turn() as is_mine:
            if not is_mine:
                return False
            try:
                self._refresh(store, complete, rest)
            except sqlite3.DatabaseError as error:
                if type(error) is not sqlite3.DatabaseError:  # locked, or a full disk: nothing is wrong with the file
                    raise StorageError(f"the index of the archive can't be written: {error}", permanent=False) from None
                log.warning("The index of the archive is damaged (%s) and is built anew", error)
                self._remove()
                self._refresh(store, True, rest)
            except ArchiveError as error:
                self._note_error(str(error))
                raise
        return True

    def _refresh(self, store: Store, complete: bool, rest: Callable[[], None]) -> None:
        began, clock = time.time(), time.monotonic()
        with closing(self._open()) as database:
            is_first = _note(database, "complete_at") is None
            complete = complete or is_first
            days = sorted((day for day in store.folders() if _DAY.fullmatch(day)), reverse=True)
            known = {day for (day,) in database.execute("SELECT DISTINCT day FROM meeting")} - {LOST_FOLDER}
            for day in known.difference(days):
                self._drop(database, "day = ?", day)
            chosen = days if complete else self._recent(days, known, began)
            for number, day in enumerate(chosen):
                if complete:
                    _set(database, "days", f"{number} {len(chosen)}")
                self._look_at(database, day, store.each_folder(day, MANIFEST_NAME), store, rest)
                rest()
            if not complete:
                for folder in self._purged_lately(database, store, began):
                    seen = store.stat(f"{folder}/{MANIFEST_NAME}")
                    self._look_at(database, folder, [(folder, seen)] if seen else [], store, rest)
            self._look_at(database, LOST_FOLDER, _losses(store), store, rest)
            _set(database, "recent_at", repr(began))
            if complete:
                _set(database, "complete_at", repr(began))
                _set(database, "complete_seconds", repr(0.0 if is_first else time.monotonic() - clock))
            database.execute("DELETE FROM note WHERE name IN ('days', 'error', 'error_at')")
            database.commit()
            # What left the view is in the write-ahead log until that is folded in.
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _recent(self, days: list[str], known: set[str], now: float) -> list[str]:
        since = datetime.fromtimestamp(now, timezone.utc).date() - timedelta(days=RECENT_DAYS)
        return [day for day in days if day not in known or day >= f"dt={since.isoformat()}"]

    def _purged_lately(self, database: sqlite3.Connection, store: Store, now: float) -> Iterator[str]:
        notes = {info.key.split("/")[3] for info in store.list(f"{BURIED}/") if info.modified > now - PURGES_SECONDS}
        for name in sorted(notes):
            found = database.execute("SELECT folder FROM meeting WHERE substr(folder, 15) = ?", (f"recording={name}",))
            yield from [folder for (folder,) in found.fetchall()]

    def _look_at(
        self,
        database: sqlite3.Connection,
        place: str,
        listed: Iterable[tuple[str, ObjectInfo | None]],
        store: Store,
        rest: Callable[[], None],
    ) -> None:
        """Make the rows of one day, or of one recording's folder, those of its listing."""
        known: dict[str, str | None] = dict(
            database.execute("SELECT folder, version FROM meeting WHERE day = ? OR folder = ?", (place, place))
        )
        # Not before the whole listing is there: what a failed one lacks is not gone.
        found = {one: info for one, info in listed if place == LOST_FOLDER or is_recording_folder(one)}
        for folder in known.keys() - found.keys():
            self._drop(database, "folder = ?", folder)
        changed = [(one, info) for one, info in found.items() if one not in known or known[one] != _version(info)]
        self._read(database, changed, store, rest)

    def _read(
        self,
        database: sqlite3.Connection,
        changed: Sequence[tuple[str, ObjectInfo | None]],
        store: Store,
        rest: Callable[[], None],
    ) -> None:
        if not changed:
            return
        waiting: deque[Future[_Read]] = deque()
        with ThreadPoolExecutor(READERS, "manifests") as pool:
            try:
                for number, one in enumerate(changed, start=1):
                    waiting.append(pool.submit(_read, store, *one))
                    if len(waiting) > 4 * READERS:
                        self._keep(database, waiting.popleft().result())
                    if number % _BATCH == 0:
                        _next_turn(database)
                        rest()
                while waiting:
                    self._keep(database, waiting.popleft().result())
            finally:
                pool.shutdown(cancel_futures=True)
        _next_turn(database)

    def _keep(self, database: sqlite3.Connection, read: _Read) -> None:
        row = _row(read)
        database.execute("DELETE FROM meeting WHERE folder = ?", (read.folder,))
        if row is not None:
            database.execute(_INSERT, row)
            database.execute(_JUDGE + "WHERE folder = ?", (read.folder,))

    def _drop(self, database: sqlite3.Connection, condition: str, value: str) -> None:
        database.execute(f"DELETE FROM meeting WHERE {condition}", (value,))  # noqa: S608 - a condition of ours
        _next_turn(database)

    # -- what verifications found ------------------------------------------------------------------------------------

    def judged(self) -> frozenset[str]:
        """Return the verifications that the view knows."""
        with self._reading() as database:
            text = None if database is None else _note(database, "judged")
        return frozenset(json.loads(text or "[]"))

    def judge(
        self, run: str, at: datetime, folders: Iterable[tuple[str, bool]], *, also_known: Iterable[str] = ()
    ) -> bool:
        """Take in what a verification found.

        :param run: its name; names of later ones come later in the alphabet.
        :param at: when it began.
        :param folders: each recording's folder, and whether something there is lost or doubtful.
        :param also_known: verifications that tell nothing new, for :meth:`judged`.
        :return: False when another process is refreshing the view; try again later.
        """
        with self._turn() as is_mine:
            if not is_mine:
                return False
            with closing(self._open()) as database:
                database.executemany(
                    "INSERT INTO verdict VALUES (?, ?, ?, ?) ON CONFLICT (folder) DO UPDATE SET at = excluded.at, "
                    "harmed = excluded.harmed, run = excluded.run WHERE excluded.at >= verdict.at",
                    (
                        (folder, at.timestamp(), harmed, run)
                        for folder, harmed in folders
                        if is_recording_folder(folder)
                    ),
                )
                of_run = "WHERE folder IN (SELECT folder FROM verdict WHERE run = ?)"
                database.execute(_JUDGE + of_run, (run,))
                judged = {*json.loads(_note(database, "judged") or "[]"), run, *also_known}
                _set(database, "judged", json.dumps(sorted(judged)[-MOST_JUDGED:]))
                _next_turn(database)
        return True

    # -- the file ----------------------------------------------------------------------------------------------------

    @contextmanager
    def _turn(self) -> Iterator[bool]:
        """Let one process at a time write."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._check_folder()
            path = self._folder / f"{self._name}.lock"
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _unusable(self._folder, error) from None
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            os.utime(lock)
            yield True
        finally:
            os.close(lock)

    def _check_folder(self) -> None:
        found = self._folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise PermissionError(0, "the folder is not this user's alone")

    def _open(self) -> sqlite3.Connection:
        """Open the database to write to it, having made it where that is needed. Only within one's turn."""
        self._remove_others()
        # SQLite gives the files that it puts beside it the same mode.
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        os.chmod(self.path, 0o600)
        database = sqlite3.connect(self.path, timeout=30.0)
        try:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = NORMAL")
            database.execute("PRAGMA secure_delete = ON")
            if not self._is_checked:
                if (fault := database.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
                    raise sqlite3.DatabaseError(fault)
                self._is_checked = True
            if database.execute("PRAGMA user_version").fetchone()[0] != _FORMAT:
                database.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {_FORMAT}; COMMIT;")
        except BaseException:
            database.close()
            raise
        return database

    def _remove(self) -> None:
        self._is_checked = False
        for path in (self.path, Path(f"{self.path}-wal"), Path(f"{self.path}-shm")):
            path.unlink(missing_ok=True)

    def _remove_others(self) -> None:
        """Remove what this project's other versions left of this archive, and what nobody refreshes any more."""
        old = time.time() - UNUSED_SECONDS
        for path in self._folder.iterdir():
            name, _, rest = path.name.partition("-")
            is_ours = name == self._name and rest.startswith(f"{_FORMAT}.sqlite")
            with suppress(OSError):
                if not is_ours and rest and (name == self._name or self._last_used(name) < old):
                    path.unlink()

    def _last_used(self, name: str) -> float:
        try:
            return (self._folder / f"{name}.lock").stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def fail(self, message: str) -> None:
        """Have the view say that it could not be brought up to date, and why."""
        with self._turn() as is_mine:
            if is_mine:
                self._note_error(message)

    def _note_error(self, message: str) -> None:
        with suppress(sqlite3.Error), closing(self._open()) as database:
            _set(database, "error", message)
            _set(database, "error_at", repr(time.time()))
            database.execute("DELETE FROM note WHERE name = 'days'")
            database.commit()


def _unusable(folder: Path, error: OSError) -> StorageError:
    return StorageError(f"the index of the archive can't be kept in {folder}: {error.strerror}", permanent=False)


@dataclass(frozen=True)
class _Read:
    """What was read of one folder.

    :param data: the manifest; None where there is none.
    :param is_gone: there was one when it was listed.
    :param fault: why it can't be read.
    """

    folder: str
    info: ObjectInfo | None
    data: bytes | None = None
    is_gone: bool = False
    fault: ArchiveError | None = None


def _read(store: Store, folder: str, info: ObjectInfo | None) -> _Read:
    if info is None or info.size > LARGEST_MANIFEST:
        return _Read(folder, info)
    try:
        return _Read(folder, info, b"".join(store.read(info.key)))
    except ObjectMissingError:
        return _Read(folder, info, is_gone=True)
    except ArchiveError as error:
        return _Read(folder, info, fault=error)


def _losses(store: Store) -> Iterator[tuple[str, ObjectInfo | None]]:
    for info in store.list(f"{LOST_FOLDER}/"):
        if info.key.endswith(".json"):
            yield info.key, info


def _row(read: _Read) -> dict[str, Any] | None:
    """Return a row from what was read; None for what is gone."""
    if read.is_gone:
        return None
    if read.folder.startswith(f"{LOST_FOLDER}/"):
        return _row_of_loss(read)
    day, _, name = read.folder.partition("/")
    row = _blank(read, day, name.partition("=")[2])
    row["began"] = _start_of(day)
    if read.info is None:
        return {**row, "state": "unsettled", "words": _words(day[3:], row["recording_id"])}
    try:
        if read.fault is not None:
            # Its version is not kept, so it is tried again.
            return {**row, "version": None, "problem": str(read.fault), "words": _words(day[3:], row["recording_id"])}
        if read.data is None:
            raise ManifestInvalidError("the manifest is too large to be one")
        return {**row, **_facts(read.data, read.folder)}
    except ManifestError as error:
        return {**row, "problem": str(error), "words": _words(day[3:], row["recording_id"])}


def _row_of_loss(read: _Read) -> dict[str, Any]:
    row = _blank(read, LOST_FOLDER, read.folder.rpartition("/")[2].removesuffix(".json"))
    try:
        note = json.loads(read.data or b"")
        began = _moment(note["created_at"])
        row |= {"recording_id": _fit(note["recording_id"]), "began": began.timestamp(), "state": "lost"}
        row["problem"] = _fit(f"{note['reason']} at Recall, noticed {_moment(note['noticed_at']):%Y-%m-%d %H:%M} UTC")
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        row["problem"] = str(read.fault or "the note about a lost recording can't be read")
        row["began"] = read.info.modified if read.info else 0.0
    began = datetime.fromtimestamp(row["began"], timezone.utc)
    return {**row, "words": _words(f"{began:%Y-%m-%d}", row["recording_id"])}


def _blank(read: _Read, day: str, recording_id: str) -> dict[str, Any]:
    info = read.info
    return {
        "folder": read.folder,
        "day": day,
        "version": None if read.fault else _version(info),
        "modified": info.modified if info else 0.0,
        "state": "unreadable",
        "recording_id": recording_id,
        **dict.fromkeys(("bot_id", "title", "platform", "problem")),
        **dict.fromkeys(("people", "parts", "bytes", "seconds", "missing"), 0),
        "names": "[]",
    }


def _facts(data: bytes, folder: str) -> dict[str, Any]:
    """Return what a manifest says.

    The whole schema is far slower to check, and is asked only to name the fault.

    :raises ManifestError: when it can't be believed.
    """
    try:
        return _quick_facts(json.loads(data), folder)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        with suppress(OverflowError):
            Manifest.from_bytes(data)
        raise ManifestInvalidError("the manifest's entries don't fit together") from None


def _quick_facts(document: Any, folder: str) -> dict[str, Any]:
    recording, totals, people = document["recording"], document["totals"], document["participants"]
    began = _moment(recording["created_at"])
    if not all(isinstance(document[name], list) for name in ("participants", "parts", "missing")):
        raise ValueError("not a list")
    if document["manifest_version"] != MANIFEST_VERSION or document["outcome"] not in _OUTCOMES:
        raise ValueError("not what this code knows")
    if recording_folder(began, recording["id"]) != folder:
        raise ManifestInvalidError("the manifest is that of another recording")
    parts = [(one["bytes"], one["duration_seconds"]) for one in document["parts"]]
    size, seconds = sum(one for one, _ in parts), math.fsum(one for _, one in parts)
    counts = (totals["participants"], totals["parts"], totals["bytes"])
    if counts != (len(people), len(parts), size) or not abs(totals["audio_seconds"] - seconds) < 0.01:
        raise ManifestInvalidError("the manifest's totals are not those of its parts")
    if not isinstance(size, int) or not 0 <= size < 2**63 or not math.isfinite(seconds):
        raise ValueError("no numbers that can be added up")
    known = [one for person in people for one in (person["name"], person["email"]) if one is not None]
    names = [person["name"] for person in people if person["name"] is not None and person["name"].strip()]
    ids = [recording["id"], recording["bot_id"], recording["title"]]
    return {
        "state": document["outcome"],
        "began": began.timestamp(),
        "recording_id": _fit(recording["id"]),
        **{name: _fit(recording[name]) for name in ("bot_id", "title", "platform")},
        "people": len(people),
        "names": json.dumps([one[:200] for one in names[:_MOST_NAMES]]),
        "parts": len(parts),
        "bytes": size,
        "seconds": seconds,
        "missing": len(document["missing"]),
        "words": _words(f"{began.astimezone(timezone.utc):%Y-%m-%d}", *filter(None, ids), *known),
    }


def _moment(text: str) -> datetime:
    # Python 3.10 reads neither Z nor a lower-case T.
    moment = datetime.fromisoformat(text.upper().replace("Z", "+00:00"))
    if moment.utcoffset() is None:
        raise ValueError("a time without its time zone")
    return moment


def _start_of(day: str) -> float:
    try:
        return datetime.fromisoformat(f"{day[3:]}T00:00:00+00:00").timestamp()
    except ValueError:
        return 0.0


def _fit(text: str | None) -> str | None:
    """Return a text as the database can hold it: halves of characters as what JSON writes for them."""
    return None if text is None else text.encode("utf-8", "backslashreplace").decode()


def plain(text: str) -> str:
    """Return a text as it is compared: letters that look alike are alike, case and spaces don't matter."""
    fit = text.encode("utf-8", "backslashreplace").decode()
    return " ".join(unicodedata.normalize("NFKC", fit).casefold().replace("\x00", " ").split())


def _words(*texts: str) -> str:
    return "\n".join(map(plain, texts))


def _version(info: ObjectInfo | None) -> str:
    # Whole seconds: some stores tell more of them in a listing than of one object.
    return "none" if info is None else f"{info.etag}/{info.size}/{int(info.modified)}"


def _conditions(query: Query) -> tuple[list[str], list[Any]]:
    words: list[Any] = plain(query.words).split()[:_MOST_WORDS]
    where, values = ["instr(words, ?)"] * len(words), words
    for condition, day, seconds in (("began >= ?", query.first, 0), ("began < ?", query.last, 86400)):
        if day is not None:
            where.append(condition)
            values.append(datetime(day.year, day.month, day.day, tzinfo=timezone.utc).timestamp() + seconds)
    return where, values


def _where(conditions: list[str]) -> str:
    return f" WHERE {' AND '.join(conditions)}" if conditions else ""


def _meeting(row: tuple[Any, ...]) -> Meeting:
    values = dict(zip(_SHOWN.split(", "), row, strict=True))
    values["began"] = _time(values["began"])
    values["verified_at"] = None if values["verified_at"] is None else _time(values["verified_at"])
    values["names"] = tuple(json.loads(values["names"]))
    return Meeting(**values)


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, timezone.utc)


def _standing(database: sqlite3.Connection) -> Standing:
    notes = dict(database.execute("SELECT name, value FROM note"))

    def at(name: str) -> datetime | None:
        return _time(float(notes[name])) if name in notes else None

    done, _, of = notes.get("days", "").partition(" ")
    return Standing(
        complete_at=at("complete_at"),
        recent_at=at("recent_at"),
        complete_seconds=float(notes.get("complete_seconds", 0.0)),
        days=(int(done), int(of)) if of else None,
        error=notes.get("error"),
        error_at=at("error_at"),
    )


def _note(database: sqlite3.Connection, name: str) -> str | None:
    row = database.execute("SELECT value FROM note WHERE name = ?", (name,)).fetchone()
    return None if row is None else str(row[0])


def _set(database: sqlite3.Connection, name: str, value: str) -> None:
    database.execute(
        "INSERT INTO note VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value", (name, value)
    )
    database.commit()


def _next_turn(database: sqlite3.Connection) -> None:
    """Keep what was done so far, and let nobody go by earlier sums."""
    _set(database, "turn", os.urandom(8).hex())
