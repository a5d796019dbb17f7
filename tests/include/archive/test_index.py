"""The index of an archive shows what the archive holds: no more, no less, and nothing that was there before."""

from __future__ import annotations

import json
import multiprocessing
import os
import stat
import time
from dataclasses import replace
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from include.archive import layout, manifest
from include.archive.errors import StorageDeniedError, StorageError, StorageUnavailableError
from include.archive.index import Index, Meeting, Query
from include.archive.manifest import Manifest, MissingPart, PartEntry, ParticipantFacts, RecordingFacts
from include.archive.stores import LocalStore

if TYPE_CHECKING:
    from collections.abc import Iterator

    from include.archive.stores import ObjectInfo, Store
    from tests.include.archive.support import Archive

MARCH = datetime(2026, 3, 4, 9, 55, tzinfo=timezone.utc)
EVERYBODY = (ParticipantFacts(id=1, name="Ada Lovelace", email="ada@example.com"), ParticipantFacts(id=2, name="Grace"))


def a_manifest(name: str = "rec-1", *, at: datetime = MARCH, parts: int = 2, **more: Any) -> Manifest:
    facts: dict[str, Any] = {"title": f"Planning of {name}", "bot_id": f"bot-of-{name}", "platform": "zoom"}
    facts |= {key: more.pop(key) for key in tuple(more) if key in ("title", "bot_id")}
    entries = [
        PartEntry(
            artifact_id="a",
            part_id=str(number),
            participant_id=1 + number % 2,
            start_relative_seconds=60.0 * number,
            start_absolute=None,
            duration_seconds=30.5,
            key=f"participant={1 + number % 2}/a/{number}.wav",
            bytes=1000 + number,
            sha256="0" * 64,
            media_type="audio/wav",
            source_format="raw",
            source_bytes=1000,
            source_sha256="0" * 64,
            verified_by=[],
            warnings=[],
        )
        for number in range(parts)
    ]
    people = more.pop("participants", EVERYBODY)
    return Manifest.build(
        recording=RecordingFacts(id=name, created_at=at, **facts), participants=people, parts=entries, **more
    )


def put(store: Store, made: Manifest) -> str:
    folder = layout.recording_folder(made.recording.created_at, made.recording.id)
    assert manifest.write(store, folder, made)
    return folder


def swap(store: Store, made: Manifest) -> None:
    """Put another manifest where one is, as a purge does."""
    folder = layout.recording_folder(made.recording.created_at, made.recording.id)
    old = store.stat(f"{folder}/manifest.json")
    assert old is not None
    assert manifest.write(store, folder, made, replaces=old)


@pytest.fixture
def index(tmp_path: Path) -> Index:
    return Index("an archive", tmp_path / "index")


def shown(index: Index, query: Query | None = None, **options: Any) -> list[Meeting]:
    return index.ask(query or Query(), **{"most": 1000, **options}).meetings


def ids(index: Index, words: str = "", **options: Any) -> list[str]:
    return [one.recording_id for one in shown(index, Query(words, **options))]


def told(index: Index, field: str) -> dict[str, Any]:
    """What the index says of each recording, in one respect."""
    return {one.recording_id: getattr(one, field) for one in shown(index)}


def dump(index: Index) -> list[tuple[Any, ...]]:
    """All that the index says of meetings."""
    with index._reading() as database:
        assert database is not None
        return list(database.execute("SELECT * FROM meeting ORDER BY folder"))


def test_before_the_first_refresh_it_says_that_it_knows_nothing(index: Index) -> None:
    answer = index.ask(Query())
    assert (answer.meetings, dict(answer.totals), answer.standing.complete_at) == ([], {}, None)
    assert not index.path.parent.exists()  # asking writes nothing


def test_what_is_new_changed_or_gone(archive: Archive, index: Index) -> None:
    store = archive.store
    put(store, a_manifest("rec-1"))
    put(store, a_manifest("rec-2", at=MARCH + timedelta(days=40), parts=3, title="Budget"))
    put(store, a_manifest("rec-3", at=MARCH + timedelta(minutes=1), parts=0))
    missing = [MissingPart(artifact_id="a", part_id="9", participant_id=1, error_code="media_deleted")]
    put(store, a_manifest("rec-4", at=MARCH - timedelta(days=1), missing=missing))
    began = datetime.now(timezone.utc)
    assert index.refresh(store)
    assert ids(index) == ["rec-2", "rec-3", "rec-1", "rec-4"]  # the newest first
    assert told(index, "state") == {
        "rec-1": "archived",
        "rec-2": "archived",
        "rec-3": "nothing_to_archive",
        "rec-4": "archived_with_gaps",
    }
    first = next(one for one in shown(index) if one.recording_id == "rec-1")
    assert first == Meeting(
        folder="dt=2026-03-04/recording=rec-1",
        state="archived",
        recording_id="rec-1",
        began=MARCH,
        bot_id="bot-of-rec-1",
        title="Planning of rec-1",
        platform="zoom",
        names=("Ada Lovelace", "Grace"),
        people=2,
        parts=2,
        bytes=2001,
        seconds=61.0,
    )
    answer = index.ask(Query())
    total = answer.total()
    assert (total.meetings, total.parts, total.bytes, total.seconds) == (4, 7, 2001 + 3003 + 2001, 7 * 30.5)
    assert answer.total(state="archived").meetings == 2
    assert answer.standing.complete_at is not None
    assert began <= answer.standing.complete_at <= datetime.now(timezone.utc)
    assert answer.standing.error is None

    put(store, a_manifest("rec-5", title="A new one"))
    swap(store, a_manifest("rec-1", title="Another title"))
    gone = store.stat("dt=2026-03-03/recording=rec-4/manifest.json")
    assert gone is not None
    store.delete(gone)
    assert answer.standing.complete_seconds == 0.0  # the first one tells nothing of the next
    assert index.refresh(store)
    assert index.standing().complete_seconds > 0.0
    titles = told(index, "title")
    titles.pop("rec-4", None)  # a folder on a disk stays where a manifest was
    assert titles == {
        "rec-1": "Another title",
        "rec-2": "Budget",
        "rec-3": "Planning of rec-3",
        "rec-5": "A new one",
    }
    assert ids(index, "Planning rec-1") == []


def test_only_what_changed_is_read_again(archive: Archive, index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    reading = type(archive.store).read
    monkeypatch.setattr(
        type(archive.store), "read", lambda self, key, *more: (read.append(key), reading(self, key, *more))[1]
    )
    for number in range(20):
        put(archive.store, a_manifest(f"rec-{number}", at=MARCH + timedelta(days=number % 3)))
    index.refresh(archive.store)
    assert len(read) == 20
    swap(archive.store, a_manifest("rec-4", at=MARCH + timedelta(days=1), title="Else"))
    read.clear()
    index.refresh(archive.store)
    assert read == ["dt=2026-03-05/recording=rec-4/manifest.json"]
    read.clear()
    index.refresh(archive.store)
    assert read == []


def test_a_rebuilt_index_equals_one_that_was_kept_up_to_date(archive: Archive, tmp_path: Path) -> None:
    store, kept = archive.store, Index("kept", tmp_path / "index")
    for number in range(30):
        made = a_manifest(f"rec-{number}", at=MARCH + timedelta(hours=7 * number), parts=number % 4)
        put(store, made)
        if number % 3 == 0:
            kept.refresh(store)
        if number % 7 == 0:
            swap(store, a_manifest(f"rec-{number}", at=MARCH + timedelta(hours=7 * number), title="again", parts=1))
    info = store.stat("dt=2026-03-05/recording=rec-3/manifest.json")
    assert info is not None
    store.delete(info)
    store.put_if_absent("dt=2026-03-04/recording=rec-0/participant=1/a.wav", b"x", "audio/wav")
    store.put_if_absent("dt=2026-03-09/recording=broken/manifest.json", b"{", "application/json")
    kept.refresh(store)
    built = Index("built", tmp_path / "index")
    built.refresh(store)
    assert dump(built) == dump(kept)
    assert len(dump(built)) >= 30


def test_a_folder_without_a_manifest_is_shown_as_that(archive: Archive, index: Index) -> None:
    archive.store.put_if_absent("dt=2026-03-04/recording=rec-1/participant=1/a/1.wav", b"x", "audio/wav")
    index.refresh(archive.store)
    (one,) = shown(index)
    assert (one.state, one.recording_id, one.began) == ("unsettled", "rec-1", MARCH.replace(hour=0, minute=0))
    put(archive.store, a_manifest("rec-1"))
    index.refresh(archive.store)
    assert [one.state for one in shown(index)] == ["archived"]


DAMAGE = {
    "not JSON": (lambda text: text[:-40], "manifest_invalid"),
    "not an object": (lambda _: "[]", "manifest_invalid"),
    "deep": (lambda _: "[" * 100_000, "manifest_invalid"),
    "of a newer version": (lambda _: '{"manifest_version": 2}', "manifest_too_new"),
    "another outcome": (lambda text: text.replace('"archived"', '"archivex"'), "$.outcome"),
    "of another recording": (lambda text: text.replace('"rec-1"', '"rec-7"'), "another recording"),
    "of another day": (lambda text: text.replace("2026-03-04T09", "2026-03-05T09"), "another recording"),
    "no time": (lambda text: text.replace("2026-03-04T09", "yesterday"), "manifest_invalid"),
    "a part's size": (lambda text: text.replace('"bytes": 1001', '"bytes": 1009'), "totals"),
    "no number": (lambda text: text.replace('"duration_seconds": 30.5', '"duration_seconds": NaN'), "totals"),
    "too long a number": (lambda text: text.replace("30.5", "9" * 400), "manifest_invalid"),
    "a name that is none": (lambda text: text.replace('"Ada Lovelace"', '["x"]'), "manifest_invalid"),
    "a title that is none": (lambda text: text.replace('"Planning of rec-1"', "7"), "manifest_invalid"),
    "no list": (lambda text: text.replace('"missing": []', '"missing": "none"'), "manifest_invalid"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_manifest_is_named_and_not_hidden(kind: str, tmp_path: Path, index: Index) -> None:
    change, told = DAMAGE[kind]
    store = LocalStore(root=tmp_path / "archive")
    put(store, a_manifest("rec-2"))
    folder = put(store, a_manifest("rec-1"))
    path = tmp_path / "archive" / folder / "manifest.json"
    good = path.read_text()
    assert change(good) != good
    path.write_text(change(good))
    index.refresh(store)
    one = next(one for one in shown(index) if one.folder == folder)
    assert (one.state, one.recording_id) == ("unreadable", "rec-1")
    assert told in str(one.problem)
    assert "Lovelace" not in str(one.problem)
    assert ids(index, "rec-1") == ["rec-1"]
    assert index.ask(Query()).total(state="unreadable").meetings == 1
    path.write_text(good)
    index.refresh(store)
    assert {one.state for one in shown(index)} == {"archived"}


def test_a_manifest_that_can_not_be_read_now_is_named_and_tried_again(
    archive: Archive, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(archive.store, a_manifest("rec-1"))
    with monkeypatch.context() as patch:
        patch.setattr(type(archive.store), "read", refuse)
        index.refresh(archive.store)
    (one,) = shown(index)
    assert (one.state, one.title) == ("unreadable", None)
    assert "storage_denied" in str(one.problem)
    index.refresh(archive.store)
    assert [one.state for one in shown(index)] == ["archived"]


def refuse(self: Store, key: str, start: int = 0) -> Iterator[bytes]:
    raise StorageDeniedError(f"{key}: you may not")


FOREIGN = (
    "notes.txt",
    "dt=2026-03-04/notes.txt",
    "dt=2026-03-04/manifest.json",
    "dt=2026-03-04/other/manifest.json",
    "dt=2026-03-04/recording=rec-1/deeper/manifest.json",
    "dt=2026-03-04/recording=rec-1/manifest.json.bak",
    "days/recording=rec-9/manifest.json",
    "lost/readme.txt",
    "reports/verify/x/report.json",
)


def test_foreign_files_are_no_meetings(archive: Archive, index: Index) -> None:
    put(archive.store, a_manifest("rec-1"))
    for key in FOREIGN:
        archive.store.put_if_absent(key, b"{}", "application/json")
    index.refresh(archive.store)
    assert [(one.recording_id, one.state) for one in shown(index)] == [("rec-1", "archived")]


def test_links_are_not_followed(tmp_path: Path, index: Index) -> None:
    store = LocalStore(root=tmp_path / "archive")
    folder = tmp_path / "archive" / put(store, a_manifest("rec-1"))
    (folder.parent / "recording=rec-2").symlink_to(folder)
    (folder.parent / "recording=rec-3").mkdir()
    (folder.parent / "recording=rec-3/manifest.json").symlink_to(folder / "manifest.json")
    index.refresh(store)
    assert told(index, "state") == {"rec-1": "archived", "rec-3": "unsettled"}


def test_searching(tmp_path: Path, index: Index) -> None:
    store = LocalStore(root=tmp_path / "archive")
    put(store, a_manifest("rec-1", title="Planung der Straße"))
    put(store, a_manifest("rec-2", at=MARCH + timedelta(days=2), title="100% of it_all"))
    noor = [ParticipantFacts(id=1, name="نور رحمن"), ParticipantFacts(id=2, name="Zoë\ud800")]
    put(store, a_manifest("rec-3", at=MARCH + timedelta(days=4), participants=noor, title=None))
    index.refresh(store)
    for words, found in {
        "": ["rec-3", "rec-2", "rec-1"],
        "rec-2": ["rec-2"],
        "BOT-OF-REC-3": ["rec-3"],
        "strasse planung": ["rec-1"],
        "strasse budget": [],
        "lovelace": ["rec-2", "rec-1"],
        "ada@example.com rec-1": ["rec-1"],
        "نور": ["rec-3"],
        "zoe\u0308": ["rec-3"],  # composed otherwise
        "2026-03-06": ["rec-2"],
        "100%": ["rec-2"],
        "t_a": ["rec-2"],
        "%": ["rec-2"],
        "' OR 1=1 --": [],
    }.items():
        assert ids(index, words) == found, words
    assert ids(index, first=date(2026, 3, 6)) == ["rec-3", "rec-2"]
    assert ids(index, last=date(2026, 3, 6)) == ["rec-2", "rec-1"]
    assert ids(index, first=date(2026, 3, 6), last=date(2026, 3, 6)) == ["rec-2"]
    assert ids(index, last=date.max, first=date.min) == ["rec-3", "rec-2", "rec-1"]
    assert ids(index, state="lost") == []
    assert next(iter(shown(index))).names == ("نور رحمن", "Zoë\ud800")
    answer = index.ask(Query("lovelace", state="nothing_to_archive"))
    assert (answer.meetings, answer.total(state="archived").meetings) == ([], 2)  # what other filters would show


def test_pages(tmp_path: Path, index: Index) -> None:
    store = LocalStore(root=tmp_path / "archive")
    for number in range(25):
        put(store, a_manifest(f"rec-{number:02}", at=MARCH + timedelta(minutes=number // 5)))
    index.refresh(store)
    whole = ids(index)
    pages = [one.recording_id for skip in range(0, 30, 10) for one in shown(index, skip=skip, most=10)]
    assert pages == whole
    assert len(set(whole)) == 25


def test_a_listing_that_fails_takes_nothing_away_and_is_told(
    archive: Archive, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    for day in range(3):
        put(archive.store, a_manifest(f"rec-{day}", at=MARCH + timedelta(days=day)))
    index.refresh(archive.store)
    before, standing = dump(index), index.standing()
    listing = type(archive.store).each_folder

    def break_off(self: Store, folder: str, name: str) -> Iterator[tuple[str, ObjectInfo | None]]:
        if folder == "dt=2026-03-05":
            yield from ()
            raise StorageUnavailableError("the store went away")
        yield from listing(self, folder, name)

    with monkeypatch.context() as patch:
        patch.setattr(type(archive.store), "each_folder", break_off)
        with pytest.raises(StorageUnavailableError):
            index.refresh(archive.store)
    assert dump(index) == before
    told = index.standing()
    assert told.complete_at == standing.complete_at
    assert "the store went away" in str(told.error)
    assert told.error_at is not None
    index.refresh(archive.store)
    assert index.standing().error is None


def test_a_refresh_of_the_recent_days(archive: Archive, index: Index) -> None:
    store, now = archive.store, datetime.now(timezone.utc)
    put(store, a_manifest("old"))
    put(store, a_manifest("new", at=now - timedelta(days=1)))
    index.refresh(store, complete=False)  # the first one is complete, whatever is asked for
    first = index.standing()
    assert first.complete_at is not None
    swap(store, a_manifest("old", title="Changed long after"))
    swap(store, a_manifest("new", at=now - timedelta(days=1), title="Changed"))
    put(store, a_manifest("newer", at=now))
    put(store, a_manifest("older", at=MARCH - timedelta(days=300)))  # a day that was not there before
    index.refresh(store, complete=False)
    assert told(index, "title") == {
        "newer": "Planning of newer",
        "new": "Changed",
        "old": "Planning of old",
        "older": "Planning of older",
    }
    standing = index.standing()
    assert standing.complete_at == first.complete_at
    assert standing.recent_at is not None
    assert standing.recent_at > first.complete_at
    index.refresh(store)
    assert ids(index, "long after") == ["old"]


def without(made: Manifest, number: int) -> Manifest:
    """What a purge makes of a manifest."""
    left = tuple(ParticipantFacts(id=one.id) if one.id == number else one for one in made.participants)
    return replace(made, participants=left)


def files_of(index: Index) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in index.path.parent.iterdir()}


@pytest.mark.parametrize("complete", [True, False])
def test_a_purged_person_is_gone_after_the_next_refresh(complete: bool, archive: Archive, index: Index) -> None:
    store = archive.store
    made = a_manifest("rec-1")
    for number in range(30):
        put(store, a_manifest(f"other-{number}", participants=[ParticipantFacts(id=1, name="Grace")]))
    put(store, made)
    index.refresh(store)
    assert ids(index, "lovelace") == ["rec-1"]
    assert any(b"lovelace" in content.lower() for content in files_of(index).values())
    manifest.bury(store, "rec-1", [1])
    swap(store, without(made, 1))
    index.refresh(store, complete=complete)
    assert ids(index, "lovelace") == []
    assert ids(index, "ada@example.com") == []
    assert ids(index, "rec-1") == ["rec-1"]
    left = [name for name, content in files_of(index).items() if b"lovelace" in content.lower()]
    assert left == []


def test_only_its_owner_can_read_it(tmp_path: Path) -> None:
    store = LocalStore(root=tmp_path / "archive")
    put(store, a_manifest())
    index = Index("an archive", tmp_path / "index")
    umask = os.umask(0)
    try:
        index.refresh(store)
        with index._reading():  # the files beside it are there as well
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in index.path.parent.iterdir()}
    finally:
        os.umask(umask)
    assert len(modes) >= 2
    assert set(modes.values()) == {0o600}
    assert stat.S_IMODE(index.path.parent.stat().st_mode) == 0o700
    index.path.parent.chmod(0o755)
    with pytest.raises(StorageError, match="not this user's alone"):
        index.ask(Query())
    with pytest.raises(StorageError, match="not this user's alone"):
        index.refresh(store)


def test_a_damaged_index_is_built_anew(tmp_path: Path, index: Index) -> None:
    store = LocalStore(root=tmp_path / "archive")
    for number in range(300):
        put(store, a_manifest(f"rec-{number}"))
    index.refresh(store)
    before = dump(index)
    data = bytearray(index.path.read_bytes())
    for place in range(4096, len(data), 4096):
        data[place : place + 64] = b"\xff" * 64
    index.path.write_bytes(data)
    again = Index("an archive", index.path.parent)
    with pytest.raises(StorageError):
        again.ask(Query("rec-7"))
    again.refresh(store, complete=False)
    assert dump(again) == before
    index.path.write_bytes(b"no database at all")
    Index("an archive", index.path.parent).refresh(store)
    assert dump(index) == before


def test_what_other_versions_and_other_archives_left_is_removed(tmp_path: Path, index: Index) -> None:
    store = LocalStore(root=tmp_path / "archive")
    index.refresh(store)
    folder = index.path.parent
    older = folder / index.path.name.replace("-1.sqlite", "-0.sqlite")
    unused, used = Index("an old archive", folder), Index("another archive", folder)
    for other in (unused, used):
        other.refresh(store)
    older.write_bytes(b"names")
    long_ago = time.time() - 8 * 86400
    os.utime(folder / unused.path.name.replace("-1.sqlite", ".lock"), (long_ago, long_ago))
    index.refresh(store)
    left = {path.name for path in folder.glob("*.sqlite")}
    assert left == {index.path.name, used.path.name}


def refresh_often(root: str, folder: str, times: int, results: Any) -> None:
    index, store = Index("an archive", Path(folder)), LocalStore(root=root)
    done = 0
    while done < times:
        done += index.refresh(store)  # False while the other one is at it
        time.sleep(0.001)
    answers = [index.ask(Query("rec"), most=1000) for _ in range(times)]
    results.put((done, [len(one.meetings) for one in answers]))


def test_two_processes_share_one_index(tmp_path: Path, index: Index) -> None:
    store = LocalStore(root=tmp_path / "archive")
    for number in range(60):
        put(store, a_manifest(f"rec-{number}", at=MARCH + timedelta(days=number % 5)))
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    arguments = (str(tmp_path / "archive"), str(index.path.parent), 20, results)
    both = [context.Process(target=refresh_often, args=arguments) for _ in range(2)]
    for process in both:
        process.start()
    found = [results.get(timeout=60) for _ in both]
    for process in both:
        process.join(30)
        assert process.exitcode == 0
    assert [done for done, _ in found] == [20, 20]
    assert all(count <= 60 for _, counts in found for count in counts)
    index.refresh(store)
    alone = Index("alone", tmp_path / "alone")
    alone.refresh(store)
    assert dump(index) == dump(alone)
    with index._turn() as is_mine:
        assert is_mine
        assert not Index("an archive", index.path.parent).refresh(store)  # one at a time


# -- what is lost, and what verifications found ----------------------------------------------------------------------

LOSS = {
    "recording_id": "rec-9",
    "outcome": "expired_before_archive",
    "reason": "expired",
    "created_at": "2026-03-05T10:00:00+00:00",
    "noticed_at": "2026-03-13T10:00:00+00:00",
}


def test_a_lost_recording_is_shown(archive: Archive, index: Index) -> None:
    store = archive.store
    put(store, a_manifest("rec-1"))
    store.put_if_absent("lost/rec-9.json", json.dumps(LOSS).encode(), "application/json")
    store.put_if_absent("lost/rec-8.json", b"{}", "application/json")
    index.refresh(store)
    found = {one.recording_id: one for one in shown(index)}
    assert (found["rec-9"].state, found["rec-9"].began.day) == ("lost", 5)
    assert found["rec-9"].problem == "expired at Recall, noticed 2026-03-13 10:00 UTC"
    assert (found["rec-8"].state, found["rec-1"].state) == ("unreadable", "archived")
    for key in ("lost/rec-9.json", "lost/rec-8.json"):
        info = store.stat(key)
        assert info is not None
        store.delete(info)
    index.refresh(store, complete=False)
    assert ids(index) == ["rec-1"]


def test_what_verifications_found(tmp_path: Path, index: Index) -> None:
    store = LocalStore(root=tmp_path / "archive")
    folders = [put(store, a_manifest(f"rec-{number}")) for number in range(4)]
    index.refresh(store)
    soon = datetime.now(timezone.utc) + timedelta(seconds=5)

    def verdicts() -> dict[str, tuple[str | None, str | None]]:
        return {one.recording_id: (one.verdict, one.verified_by) for one in shown(index)}

    assert index.judge("run-1", soon, [(folders[0], False), (folders[1], True), ("dt=x", True)], also_known=["run-0"])
    assert index.judged() == {"run-0", "run-1"}
    none = (None, None)
    assert verdicts() == {"rec-0": ("sound", "run-1"), "rec-1": ("harmed", "run-1"), "rec-2": none, "rec-3": none}
    assert index.ask(Query(verdict="harmed")).meetings[0].recording_id == "rec-1"
    assert index.ask(Query()).total(verdict="harmed").meetings == 1
    assert index.judge("run-2", soon + timedelta(days=1), [(folders[1], False), (folders[2], False)])
    assert verdicts()["rec-1"] == ("sound", "run-2")
    assert index.judge("run-3", soon - timedelta(days=90), [(folders[1], True)])  # an older one, heard of late
    assert verdicts()["rec-1"] == ("sound", "run-2")
    swap(store, a_manifest("rec-0", title="Changed"))
    os.utime(tmp_path / "archive" / folders[0] / "manifest.json", (time.time() + 60, time.time() + 60))
    index.refresh(store)
    assert verdicts()["rec-0"] == ("outdated", "run-1")
    again = Index("built anew", tmp_path / "index")
    again.judge("run-1", soon, [(folders[1], True)])
    again.refresh(store)
    assert told(again, "verdict")["rec-1"] == "harmed"  # in either order


def test_which_recordings_are_settled(tmp_path: Path, index: Index) -> None:
    assert index.settled(["rec-1"]) == set()
    store = LocalStore(root=tmp_path / "archive")
    put(store, a_manifest("rec-1"))
    store.put_if_absent("dt=2026-03-04/recording=rec-2/participant=1/a.wav", b"x", "audio/wav")
    index.refresh(store)
    assert index.settled([*(f"other-{number}" for number in range(1200)), "rec-1", "rec-2"]) == {"rec-1"}
