from __future__ import annotations

import errno
import gc
import os
import stat
import subprocess
import sys
import threading
import zlib
from typing import TYPE_CHECKING, Any

import boto3
import pytest

from include.archive import errors
from include.archive.stores import LocalStore, Store, open_store
from include.archive.stores import s3 as s3_module
from include.archive.stores.s3 import S3Store
from include.archive.stores.s3_access import UnansweredError
from tests.include.archive.conftest import BUCKET, OnlyBoto3, make_access, make_client
from tests.include.archive.support import STEM, Archive, audio, sha256

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from include.archive.stores import ObjectInfo
    from tests.strict_s3.process import Process

KEY = f"{STEM}.ogg"
PART = s3_module.PART_BYTES
SIZES = [0, 1, PART - 1, PART, PART + 1, 2 * PART + 5]


def put(archive: Archive, key: str, data: bytes, *, size: int | None = None, step: int = 700_001) -> None:
    buffer = bytearray(step)
    with archive.store.write(key, media_type="audio/ogg", size=size, metadata={"recording-id": "rec-1"}) as writer:
        for start in range(0, len(data), step):
            piece = data[start : start + step]
            buffer[: len(piece)] = piece
            writer.write(memoryview(buffer)[: len(piece)])
            buffer[:] = bytes(step)  # a writer must not rely on memory that it was lent
        info = writer.commit({"sha256": "abc"})
    assert (info.key, info.size) == (key, len(data))


def save(store: Store, data: bytes, *, key: str = "a.ogg", meanwhile: Callable[[], object] = lambda: None) -> None:
    with store.write(key, media_type="audio/ogg") as writer:
        writer.write(memoryview(data))
        meanwhile()
        writer.commit({})


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("start", [0, 1, 2_000_000, 2_500_000, 2_500_001, 9_000_000])
def test_objects_are_read_from_any_byte_on(archive: Archive, start: int) -> None:
    data = audio(2_500_000)
    put(archive, KEY, data, size=None)
    chunks = list(archive.store.read(KEY, start))
    assert b"".join(chunks) == data[start:]
    assert max(map(len, chunks), default=0) <= 1024 * 1024
    with pytest.raises(errors.ObjectMissingError):
        list(archive.store.read("dt=2026-01-01/other.ogg", start))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("known", [True, False])
def test_objects_are_stored_whole(archive: Archive, size: int, known: bool) -> None:
    data = audio(size)
    put(archive, KEY, data, size=size if known else None)
    assert archive.get(KEY) == data
    assert b"".join(archive.store.read(KEY)) == data
    assert archive.keys() == [KEY]
    assert archive.leftovers() == []
    info = archive.store.stat(KEY)
    assert info is not None
    assert (info.size, info.metadata["recording-id"]) == (size, "rec-1")
    if size <= PART:
        assert info.metadata["sha256"] == "abc"
    sums = {"sha256": sha256(data), "crc32": f"{zlib.crc32(data):08x}"}
    assert info.checksums.items() <= sums.items()
    assert info.checksums or archive.kind != "s3"


@pytest.mark.parametrize("size", [10, PART + 10])
def test_nothing_is_visible_before_the_commit_or_after_an_abort(archive: Archive, size: int) -> None:
    def look() -> None:
        assert archive.keys() == []
        assert list(archive.store.list()) == []
        assert archive.store.stat(KEY) is None
        interrupt()

    with pytest.raises(KeyboardInterrupt):
        save(archive.store, audio(size), key=KEY, meanwhile=look)
    assert (archive.keys(), archive.leftovers()) == ([], [])


@pytest.mark.parametrize("size", [10, PART + 10])
@pytest.mark.parametrize("same", [True, False])
def test_nothing_is_ever_replaced(archive: Archive, size: int, same: bool) -> None:
    old = audio(size)
    put(archive, KEY, old)
    before = archive.modified(KEY)
    with pytest.raises(errors.AlreadyExistsError):
        put(archive, KEY, old if same else audio(size, seed=1))
    assert archive.get(KEY) == old
    assert archive.modified(KEY) == before
    assert archive.leftovers() == []


@pytest.mark.parametrize("size", [10, PART + 10])
@pytest.mark.parametrize("difference", [-1, 1])
def test_an_object_of_another_length_than_announced_is_refused(archive: Archive, size: int, difference: int) -> None:
    with pytest.raises(errors.IntegrityError):
        put(archive, KEY, audio(size), size=size + difference)
    assert (archive.keys(), archive.leftovers()) == ([], [])


def test_listing(archive: Archive) -> None:
    keys = ["dt=2026-03-04/recording=a/manifest.json", "dt=2026-03-04/recording=a/participant=1/x/p.wav"]
    keys += ["dt=2026-03-04/recording=ab/manifest.json", "dt=2026-03-05/recording=a/manifest.json"]
    for key in reversed(keys):
        archive.put(key, b"x" * len(key))
    store = archive.store
    assert [(info.key, info.size) for info in store.list()] == [(key, len(key)) for key in keys]
    assert [info.key for info in store.list("dt=2026-03-04/recording=a/")] == keys[:2]
    assert [info.key for info in store.list("dt=2026-03-04/recording=a/participant=1/x/p.")] == keys[1:2]
    assert list(store.list("dt=2026-03-04/recording=b")) == []
    assert list(store.folders()) == ["dt=2026-03-04", "dt=2026-03-05"]
    assert list(store.folders("dt=2026-03-04")) == ["dt=2026-03-04/recording=a", "dt=2026-03-04/recording=ab"]
    assert list(store.folders("dt=2026-03-04/recording=ab")) == []
    assert list(store.folders("dt=1999-01-01")) == []


def test_an_empty_archive(archive: Archive) -> None:
    assert list(archive.store.list()) == []
    assert list(archive.store.folders()) == []
    assert archive.store.stat(KEY) is None
    assert archive.store.abort_stale(STEM) == 0
    with pytest.raises(errors.ObjectMissingError):
        b"".join(archive.store.read(KEY))


@pytest.mark.parametrize("key", ["../x", "a/../../x", "/etc/passwd", "a//b", "A", "", "a\nb"])
def test_keys_from_elsewhere_are_refused(archive: Archive, key: str) -> None:
    store = archive.store
    for action in (
        lambda: store.stat(key),
        lambda: list(store.read(key)),
        lambda: store.write(key, media_type="audio/ogg"),
        lambda: store.put_if_absent(key, b"", "audio/ogg"),
        lambda: store.abort_stale(key),
    ):
        with pytest.raises(ValueError, match="not a key"):
            action()


def test_put_if_absent(archive: Archive) -> None:
    assert archive.store.put_if_absent("a/manifest.json", b"{}", "application/json")
    assert not archive.store.put_if_absent("a/manifest.json", b"[]", "application/json")
    assert archive.get("a/manifest.json") == b"{}"
    assert archive.leftovers() == []


@pytest.mark.parametrize("size", [1000, PART + 1000])
def test_one_of_many_writers_wins(archive: Archive, size: int) -> None:
    if archive.kind == "moto" and size > PART:
        pytest.skip("this server looks first and completes then; the next test covers what we send")
    bodies = [audio(size, seed=seed) for seed in range(6)]
    start, outcomes = threading.Barrier(len(bodies)), []

    def write(data: bytes) -> None:
        start.wait()
        try:
            put(archive, KEY, data)
            outcomes.append(data)
        except errors.AlreadyExistsError:
            pass

    threads = [threading.Thread(target=write, args=(body,)) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 1
    assert archive.get(KEY) == outcomes[0]
    assert archive.leftovers() == []


def test_of_two_overlapping_uploads_the_second_is_refused(archive: Archive) -> None:
    one, two = (archive.store.write(KEY, media_type="audio/ogg") for _ in range(2))
    with one, two:
        one.write(memoryview(audio(PART + 1, seed=1)))
        two.write(memoryview(audio(PART + 1, seed=2)))
        one.commit({})
        with pytest.raises(errors.AlreadyExistsError):
            two.commit({})
    assert archive.get(KEY) == audio(PART + 1, seed=1)
    assert archive.leftovers() == []


def test_only_leftovers_below_the_folders_are_removed(archive: Archive) -> None:
    keys = [f"r/participant={one}/artifact/part.ogg" for one in (1, 12, 13, 2)]
    writers = [archive.store.write(key, media_type="audio/ogg") for key in keys]
    for writer in writers:
        writer.write(memoryview(audio(PART + 1)))
    assert archive.store.abort_stale_below(["r/participant=1", "r/participant=12"]) == 2
    assert {key.split("/")[1] for key in archive.leftovers()} == {"participant=13", "participant=2"}
    assert archive.store.abort_stale_below(["nothing"]) == 0
    for writer in writers:
        writer.abort()


@pytest.mark.parametrize("stem", [STEM, STEM + "0", STEM + "-1"])
def test_only_the_leftovers_of_one_stem_are_removed(archive: Archive, stem: str) -> None:
    writers = [archive.store.write(f"{each}.ogg", media_type="audio/ogg") for each in (STEM, STEM + "0", STEM + "-1")]
    for writer in writers:
        writer.write(memoryview(audio(PART + 1)))
    assert len(archive.leftovers()) == 3
    assert archive.store.abort_stale(stem) == 1
    assert not any(f"{stem}." in left.replace(".tmp-", "") for left in archive.leftovers())
    assert len(archive.leftovers()) == 2
    for each, writer in zip((STEM, STEM + "0", STEM + "-1"), writers, strict=True):
        with writer:
            if each == stem:
                # The try that was cleaned up cannot finish. moto answers 500 where S3 says NoSuchUpload.
                lost = errors.StorageUnavailableError if archive.kind == "moto" else errors.UploadLostError
                with pytest.raises(lost):
                    writer.commit({})
            else:
                writer.commit({})
    assert archive.keys() == sorted(f"{each}.ogg" for each in (STEM, STEM + "0", STEM + "-1") if each != stem)
    assert archive.leftovers() == []


@pytest.mark.parametrize("size", [10, PART + 10])
def test_a_writer_can_take_back_only_what_it_stored(archive: Archive, size: int, tmp_path: Path) -> None:
    data = memoryview(audio(size))
    with archive.store.write(KEY, media_type="audio/ogg") as writer:
        writer.write(data)
        writer.withdraw()  # nothing was committed
        writer.commit({})
        assert archive.keys() == [KEY]
        writer.withdraw()
        assert archive.keys() == []
    if archive.kind == "local":
        with archive.store.write(KEY, media_type="audio/ogg") as writer:
            writer.write(data)
            writer.commit({})
            path = tmp_path / "archive" / KEY
            path.rename(path.with_name("other.ogg"))
            archive.put(KEY, b"foreign")
            writer.withdraw()
        assert archive.get(KEY) == b"foreign"
    if archive.kind == "s3":
        with archive.store.write(KEY, media_type="audio/ogg") as writer:
            writer.write(data)
            writer.commit({})
            archive.put(KEY, b"foreign")
            with pytest.raises(errors.AlreadyExistsError):
                writer.withdraw()
        assert archive.get(KEY) == b"foreign"


# -- replacing one damaged version -----------------------------------------------------------------------------------


def renew(archive: Archive, old: ObjectInfo, data: bytes, meanwhile: Callable[[], object] = lambda: None) -> None:
    with archive.store.write(KEY, media_type="audio/ogg", size=len(data), replaces=old) as writer:
        writer.write(memoryview(data))
        meanwhile()
        writer.commit({"sha256": "abc"})


@pytest.mark.parametrize("size", [10, PART + 10])
def test_a_damaged_object_is_replaced(faithful: Archive, size: int) -> None:
    faithful.put(KEY, b"damaged")
    faithful.put("other.ogg", b"other")
    other = faithful.modified("other.ogg")
    old = faithful.store.stat(KEY)
    assert old is not None
    renew(faithful, old, audio(size))
    assert faithful.get(KEY) == audio(size)
    assert faithful.modified("other.ogg") == other
    assert faithful.keys() == sorted([KEY, "other.ogg"])
    assert faithful.leftovers() == []
    new = faithful.store.stat(KEY)
    assert new is not None
    assert new.modified >= old.modified > 1_700_000_000


@pytest.mark.parametrize("size", [10, PART + 10])
def test_another_version_is_not_replaced(faithful: Archive, size: int) -> None:
    faithful.put(KEY, b"damaged")
    old = faithful.store.stat(KEY)
    assert old is not None
    with pytest.raises(errors.AlreadyExistsError):
        renew(faithful, old, audio(size), lambda: faithful.put(KEY, b"foreign"))
    assert faithful.get(KEY) == b"foreign"
    assert faithful.leftovers() == []


@pytest.mark.parametrize("size", [10, PART + 10])
def test_what_is_gone_is_not_replaced(faithful: Archive, size: int, tmp_path: Path, request: Any) -> None:
    faithful.put(KEY, b"damaged")
    old = faithful.store.stat(KEY)
    assert old is not None

    def remove() -> None:
        if faithful.kind == "local":
            (tmp_path / "archive" / KEY).unlink()
        else:
            request.getfixturevalue("strict").control(
                "POST", "tamper", {"key": faithful.store.uri(KEY).split("/", 3)[3], "delete": True}
            )

    with pytest.raises(errors.ObjectMissingError):
        renew(faithful, old, audio(size), remove)
    assert faithful.keys() == []
    assert faithful.leftovers() == []


def test_of_many_repairs_one_replaces(faithful: Archive) -> None:
    faithful.put(KEY, b"damaged")
    old = faithful.store.stat(KEY)
    assert old is not None
    barrier, outcomes = threading.Barrier(8), []

    def repair(number: int) -> None:
        try:
            renew(faithful, old, audio(1000, seed=number), lambda: barrier.wait(30))
            outcomes.append(audio(1000, seed=number))
        except errors.AlreadyExistsError:
            pass

    threads = [threading.Thread(target=repair, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [faithful.get(KEY)] == outcomes
    assert faithful.leftovers() == []


def test_what_took_a_place_is_not_taken_back(faithful: Archive) -> None:
    faithful.put(KEY, b"damaged")
    with faithful.store.write(KEY, media_type="audio/ogg", replaces=faithful.store.stat(KEY)) as writer:
        writer.write(memoryview(b"new"))
        writer.commit({})
        writer.withdraw()
    assert faithful.get(KEY) == b"new"


def test_a_replaced_file_is_never_absent(local: Archive, tmp_path: Path) -> None:
    local.put(KEY, b"damaged")
    path, done, seen = tmp_path / "archive" / KEY, threading.Event(), set()

    def watch() -> None:
        while not done.is_set():
            seen.add(path.read_bytes())

    thread = threading.Thread(target=watch)
    thread.start()
    for number in range(50):
        old = local.store.stat(KEY)
        assert old is not None
        renew(local, old, b"%d" % number)
    done.set()
    thread.join()
    assert seen <= {b"damaged", *(b"%d" % number for number in range(50))}


def test_what_was_begun_can_be_listed_and_discarded(archive: Archive) -> None:
    keys = [f"{folder}/participant=1/artifact/part.ogg" for folder in ("r1", "r2")]
    writers = [archive.store.write(key, media_type="audio/ogg") for key in keys]
    for writer in writers:
        writer.write(memoryview(audio(PART + 1)))
    (one,) = archive.store.unfinished("r1/")
    assert (one.key, one.since > 1_200_000_000) == (keys[0], True)  # which is when moto believes that it was
    assert [each.key for each in sorted(archive.store.unfinished(), key=lambda each: each.key)] == keys
    assert archive.store.discard(one)
    assert not archive.store.discard(one)
    assert [left.replace(".tmp-", "").startswith(keys[1]) for left in archive.leftovers()] == [True]
    for writer in writers:
        writer.abort()


def test_each_folder_with_one_object_of_it(archive: Archive) -> None:
    for key in (
        "day/b/m.json",
        "day/a/x/m.json",
        "day/c/m.json",
        "day/c/a.wav",
        "day/m.json",
        "m.json",
        "dayz/d/m.json",
    ):
        archive.put(key, b"12345")
    found = list(archive.store.each_folder("day", "m.json"))
    assert [(folder, info and info.key) for folder, info in found] == [
        ("day/a", None),
        ("day/b", "day/b/m.json"),
        ("day/c", "day/c/m.json"),
    ]
    assert [info for _, info in found if info] == [
        info for info in archive.store.list("day/") if info.key.count("/") == 2
    ][::2]
    assert [folder for folder, _ in archive.store.each_folder("", "m.json")] == ["day", "dayz"]
    assert list(archive.store.each_folder("nothing", "m.json")) == []


def test_loose_objects(archive: Archive) -> None:
    for key in ("a.txt", "day/b.txt", "day/recording/c.txt", "z.txt"):
        archive.put(key, b"x")
    assert [info.key for info in archive.store.loose()] == ["a.txt", "z.txt"]
    assert [info.key for info in archive.store.loose("day")] == ["day/b.txt"]
    assert list(archive.store.loose("nothing")) == []


# -- local folder ----------------------------------------------------------------------------------------------------


def test_partial_files_are_private_and_finished_ones_follow_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        store = LocalStore(root=tmp_path / "archive")
        with store.write(KEY, media_type="audio/ogg") as writer:
            writer.write(memoryview(b"OggS"))
            (temp,) = (tmp_path / "archive" / STEM).parent.iterdir()
            assert temp.name.startswith(".tmp-")
            assert stat.S_IMODE(temp.stat().st_mode) == 0o600
            writer.commit({})
        assert stat.S_IMODE((tmp_path / "archive" / KEY).stat().st_mode) == 0o640
        assert stat.S_IMODE((tmp_path / "archive" / KEY).parent.stat().st_mode) == 0o750
    finally:
        os.umask(old)


@pytest.mark.parametrize("planted", ["link", "file"])
def test_a_temporary_file_is_always_a_new_one(
    local: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, planted: str
) -> None:
    monkeypatch.setattr("secrets.token_hex", lambda count: "0" * 2 * count)
    (tmp_path / "mine").write_bytes(b"mine")
    temp = tmp_path / "archive" / f".tmp-a.ogg.{'0' * 16}"
    temp.parent.mkdir()
    temp.symlink_to(tmp_path / "mine") if planted == "link" else temp.write_bytes(b"mine")
    with pytest.raises(errors.StorageError):
        save(local.store, b"OggS, not mine")
    assert temp.read_bytes() == b"mine"


def test_no_link_below_the_root_is_followed(local: Archive, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.ogg").write_bytes(b"secret")
    root = tmp_path / "archive"
    root.mkdir()
    (root / "dt=2026-01-01").symlink_to(outside)
    (root / "link.ogg").symlink_to(outside / "secret.ogg")
    (root / "dangling.ogg").symlink_to(outside / "new.ogg")
    store = local.store
    for action in (
        lambda: store.write("dt=2026-01-01/x.ogg", media_type="audio/ogg"),
        lambda: store.stat("dt=2026-01-01/secret.ogg"),
        lambda: list(store.read("dt=2026-01-01/secret.ogg")),
        lambda: list(store.read("link.ogg")),
        lambda: store.abort_stale("dt=2026-01-01/secret"),
    ):
        with pytest.raises(errors.StorageDeniedError):
            action()
    assert list(store.list()) == []
    assert list(store.folders()) == []
    assert not store.put_if_absent("dangling.ogg", b"data", "audio/ogg")
    assert sorted(path.name for path in outside.iterdir()) == ["secret.ogg"]


def test_the_root_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "archive").symlink_to(tmp_path / "disk")
    LocalStore(root=tmp_path / "archive").put_if_absent(KEY, b"x", "audio/ogg")
    assert (tmp_path / "disk" / KEY).read_bytes() == b"x"


@pytest.mark.parametrize("folder", ["..", "../outside", "a/../..", "/etc"])
def test_listings_stay_below_the_root(local: Archive, folder: str) -> None:
    local.put("a/x.ogg", b"x")
    with pytest.raises(ValueError, match="not a folder"):
        list(local.store.folders(folder))
    with pytest.raises(ValueError, match="not a folder"):
        list(local.store.list(folder + "/"))


@pytest.mark.parametrize("special", ["folder", "fifo"])
def test_what_is_no_plain_file_is_no_object(local: Archive, tmp_path: Path, special: str) -> None:
    path = tmp_path / "archive" / "a.ogg"
    path.parent.mkdir()
    path.mkdir() if special == "folder" else os.mkfifo(path)
    with pytest.raises(errors.StorageDeniedError):
        local.store.stat("a.ogg")
    assert not local.store.put_if_absent("a.ogg", b"x", "audio/ogg")


@pytest.mark.parametrize(
    ("call", "number", "code"),
    [
        ("write", errno.ENOSPC, "storage_full"),
        ("write", errno.EDQUOT, "storage_full"),
        ("write", errno.EIO, "storage_unavailable"),
        ("fsync", errno.EIO, "storage_unavailable"),
        ("fsync", errno.ENOSPC, "storage_full"),
        ("fchmod", errno.EROFS, "storage_denied"),
        ("link", errno.EROFS, "storage_denied"),
        ("link", errno.ENOSPC, "storage_full"),
    ],
)
def test_a_failing_disk_leaves_nothing(
    local: Archive, monkeypatch: pytest.MonkeyPatch, call: str, number: int, code: str
) -> None:
    local.put("other.ogg", b"x")  # the folder exists

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(errors.StorageError) as caught:
            save(local.store, b"OggS")
        assert caught.value.code == code
        assert caught.value.permanent is (code == "storage_denied")
    assert (local.keys(), local.leftovers()) == (["other.ogg"], [])


def test_a_read_only_folder_is_refused(local: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.EROFS, "read-only")

    monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(errors.StorageDeniedError):
        local.store.write(KEY, media_type="audio/ogg")


def test_a_file_size_limit_leaves_nothing(tmp_path: Path) -> None:
    script = (
        "import resource, sys\n"
        "from include.archive.stores import LocalStore\n"
        "from include.archive.errors import StorageFullError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n"
        "    with LocalStore(root=sys.argv[1]).write('a.ogg', media_type='audio/ogg') as writer:\n"
        "        writer.write(memoryview(bytes(5000)))\n"
        "        writer.commit({})\n"
        "except StorageFullError:\n"
        "    sys.exit(7)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert done.returncode == 7
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize("point", ["before_link", "after_link"])
def test_a_crash_leaves_the_file_absent_or_exact(local: Archive, tmp_path: Path, point: str) -> None:
    script = (
        "import os, sys\n"
        "from include.archive.stores import LocalStore\n"
        "link = os.link\n"
        "def crash(*args, **kwargs):\n"
        "    if sys.argv[2] == 'after_link':\n"
        "        link(*args, **kwargs)\n"
        "    os._exit(9)\n"
        "os.link = crash\n"
        "with LocalStore(root=sys.argv[1]).write(sys.argv[3], media_type='audio/ogg') as writer:\n"
        "    writer.write(memoryview(b'OggS'))\n"
        "    writer.commit({})\n"
    )
    arguments = [sys.executable, "-c", script, str(tmp_path / "archive"), point, KEY]
    assert subprocess.run(arguments, check=False).returncode == 9
    assert local.keys() == ([] if point == "before_link" else [KEY])
    assert [info.key for info in local.store.list()] == local.keys()
    assert len(local.leftovers()) == 1
    assert local.store.abort_stale(STEM) == 1
    assert local.leftovers() == []
    assert not local.keys() or local.get(KEY) == b"OggS"


def test_file_and_folder_reach_the_disk_in_order(local: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    fsync, link = os.fsync, os.link

    def note_fsync(descriptor: int) -> None:
        calls.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def note_link(*args: Any, **kwargs: Any) -> None:
        calls.append("link")
        link(*args, **kwargs)

    with local.store.write("a.ogg", media_type="audio/ogg") as writer:
        writer.write(memoryview(b"OggS"))
        monkeypatch.setattr(os, "fsync", note_fsync)
        monkeypatch.setattr(os, "link", note_link)
        writer.commit({})
    assert calls == ["file", "link", "folder"]


def test_notes_are_left_out_where_the_file_system_has_none(local: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise OSError(errno.ENOTSUP, "not supported")

    monkeypatch.setattr(os, "setxattr", refuse)
    assert local.store.put_if_absent(KEY, b"OggS", "audio/ogg")
    info = local.store.stat(KEY)
    assert info is not None
    assert info.metadata == {}


def test_longest_names_fit(archive: Archive) -> None:
    part = "p" * 100
    key = f"dt=2026-03-04/recording={'r' * 100}/participant={'9' * 100}/{'a' * 100}/{part}.empty"
    assert archive.store.put_if_absent(key, b"", "application/x-empty")
    assert archive.keys() == [key]


# -- S3 --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda self, context: 0.0)
    monkeypatch.setattr("include.archive.stores.s3.random.uniform", lambda low, high: 0.0)


@pytest.mark.parametrize("size", [None, 1, PART, 200 * 2**30, 5 * 2**40])
def test_ten_thousand_parts_always_suffice(size: int | None) -> None:
    total, number = 0, 0
    while total < (size or 5 * 2**40):
        number += 1
        total += s3_module.part_bytes(size, number)
        if size is not None:
            number, total = -(-size // s3_module.part_bytes(size, 1)), size
    assert number <= s3_module.MAX_PARTS
    assert s3_module.part_bytes(size, 1) >= PART


def test_known_sizes_get_parts_of_one_length() -> None:
    assert s3_module.part_bytes(200 * 2**30, 1) == 21 * 2**20
    assert {s3_module.part_bytes(200 * 2**30, number) for number in (1, 500, 9_999)} == {21 * 2**20}


@pytest.mark.parametrize(
    ("code", "status", "expected", "permanent"),
    [
        ("AccessDenied", 403, "storage_denied", True),
        ("403", 403, "storage_denied", True),
        ("InvalidAccessKeyId", 403, "storage_denied", True),
        ("SignatureDoesNotMatch", 403, "storage_denied", True),
        ("ExpiredToken", 400, "storage_denied", False),
        ("NoSuchBucket", 404, "no_such_bucket", True),
        ("PermanentRedirect", 301, "wrong_region", True),
        ("AuthorizationHeaderMalformed", 400, "wrong_region", True),
        ("QuotaExceeded", 403, "storage_full", False),
        ("SlowDown", 503, "storage_unavailable", False),
        ("InternalError", 500, "storage_unavailable", False),
        ("NoSuchUpload", 404, "upload_lost", False),
        ("RequestTimeout", 400, "storage_unavailable", False),
        ("TooManyRequests", 429, "storage_unavailable", False),
        ("BadDigest", 400, "stored_bytes_differ", False),
        ("XAmzContentChecksumMismatch", 400, "stored_bytes_differ", False),
        ("NotImplemented", 501, "storage_refused", True),
        ("Something New\n", 418, "storage_refused", True),
    ],
)
@pytest.mark.parametrize("way", ["direct", "boto3"])
@pytest.mark.usefixtures("no_pauses")
def test_refusals_are_coded(strict: Process, way: str, code: str, status: int, expected: str, permanent: bool) -> None:
    access = make_access(strict.endpoint) if way == "direct" else OnlyBoto3(make_client(strict.endpoint), BUCKET)
    rule = {"operation": "ListObjectsV2", "action": "error", "code": code, "status": status, "times": None}
    strict.faults(rule)
    with pytest.raises(errors.ArchiveError) as caught:
        list(S3Store(bucket=BUCKET, prefix="x", access=access).list())
    assert (caught.value.code, caught.value.permanent) == (expected, permanent)
    assert "as asked for" not in str(caught.value), "what the store says stays out"
    assert "\n" not in str(caught.value)


def test_a_missing_bucket_and_missing_credentials_are_permanent(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(errors.NoSuchBucketError):
        list(S3Store(bucket="no-such-bucket", prefix="", client=s3).list())
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    poor: Any = boto3.session.Session().client("s3", endpoint_url=s3.meta.endpoint_url, region_name="us-east-1")
    with pytest.raises(errors.StorageDeniedError):
        S3Store(bucket=BUCKET, prefix="", client=poor).stat("a")


def test_a_server_that_is_not_there_is_retryable(s3_endpoint: str) -> None:
    client = make_client("http://127.0.0.1:1")
    with pytest.raises(errors.StorageUnavailableError) as caught:
        S3Store(bucket=BUCKET, prefix="", client=client).stat("a")
    assert not caught.value.permanent


@pytest.mark.parametrize("size", [10, PART + 10])
def test_a_lost_answer_is_resolved_by_looking(bucket: Archive, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    store: Any = bucket.store
    send = store._wire._transmit

    def lose(request: Any) -> Any:
        reply = send(request)
        if request.headers.get("If-None-Match"):
            raise UnansweredError("ConnectionClosedError")
        return reply

    data = audio(size)
    monkeypatch.setattr(store._wire, "_transmit", lose)
    with pytest.raises(errors.AlreadyExistsError):
        save(store, data)
    assert b"".join(store.read("a.ogg")) == data


def test_conflicting_small_writes_are_repeated(bucket: Archive, strict: Process) -> None:
    strict.faults({"operation": "PutObject", "times": 3, "action": "error", "code": "ConditionalRequestConflict"})
    assert bucket.store.put_if_absent("a.json", b"{}", "application/json")
    assert len(strict.journal("PutObject")) == 4


def test_a_bucket_elsewhere_is_left_to_boto3(bucket: Archive, strict: Process) -> None:
    strict.faults({"operation": "PutObject", "action": "error", "code": "PermanentRedirect", "status": 301})
    assert bucket.store.put_if_absent("a.json", b"{}", "application/json")
    data = audio(PART + 5)
    put(bucket, KEY, data, size=len(data))
    assert bucket.get(KEY) == data


def test_a_conflict_at_completion_loses_the_upload(bucket: Archive, strict: Process) -> None:
    rule = {"operation": "CompleteMultipartUpload", "action": "error", "code": "ConditionalRequestConflict"}
    strict.faults({**rule, "times": None})
    with pytest.raises(errors.UploadLostError):
        save(bucket.store, audio(PART + 1))
    assert len(strict.journal("CompleteMultipartUpload")) == 1
    assert bucket.leftovers() == []


@pytest.mark.parametrize("way", ["s3", "boto3"])
def test_a_part_damaged_on_the_way_is_sent_again(strict: Process, s3: Any, way: str) -> None:
    strict.faults({"operation": "UploadPart", "action": "error", "code": "BadDigest", "times": 2})
    access = make_access(strict.endpoint) if way == "s3" else OnlyBoto3(s3, BUCKET)
    store = S3Store(bucket=BUCKET, prefix="damaged-part", access=access)
    data = audio(PART + 1)
    save(store, data)
    assert b"".join(store.read("a.ogg")) == data


def test_a_failing_abort_does_not_hide_why(
    bucket: Archive, strict: Process, caplog: pytest.LogCaptureFixture, no_pauses: None
) -> None:
    strict.faults({"operation": "AbortMultipartUpload", "action": "error", "code": "SlowDown", "times": None})
    with pytest.raises(KeyboardInterrupt):
        save(bucket.store, audio(PART + 1), meanwhile=interrupt)
    (upload,) = strict.state()["uploads"]
    assert upload["upload_id"] in caplog.text
    strict.control("DELETE", "faults")
    assert bucket.store.abort_stale("a") == 1


def test_checksums_are_those_of_whole_objects_only() -> None:
    assert s3_module._checksums({"x-amz-checksum-crc32": "OHc0Fw==", "x-amz-checksum-type": "FULL_OBJECT"}) == {
        "crc32": "38773417"
    }
    assert s3_module._checksums({"x-amz-checksum-crc32": "OHc0Fw=="}) == {"crc32": "38773417"}
    for reply in (
        {"x-amz-checksum-crc32": "OHc0Fw==", "x-amz-checksum-type": "COMPOSITE"},
        {"x-amz-checksum-crc32": "OHc0Fw==-3"},
        {"x-amz-checksum-crc32": "not base64"},
        {"ChecksumCRC32C": "OHc0Fw=="},
        {},
    ):
        assert s3_module._checksums(reply) == {}


# -- addresses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "archive",
        "/srv/archive",
        "file://srv/archive",
        "file:relative",
        "file:///",
        "file:///srv/../etc",
        "file:///srv/%2e%2e/etc",
        "file:///srv/%00",
        "file:///srv?x=1",
        "file:///srv#x",
        "file:///%ff",
        "s3://",
        "s3:///prefix",
        "s3://B/prefix",
        "s3://bucket/../x",
        "s3://user:hunter2@bucket/prefix",
        "s3://bucket:99999/prefix",
        "gs://bucket/prefix",
        "http://[::1/x",
    ],
)
def test_bad_addresses(uri: str) -> None:
    with pytest.raises(errors.BadArchiveUriError) as caught:
        open_store(uri, s3_client=lambda: pytest.fail("no client is needed"))
    assert isinstance(caught.value, ValueError)
    assert "hunter2" not in str(caught.value)


def test_good_addresses(s3: Any, tmp_path: Path) -> None:
    for uri in ("s3://bucket", "s3://bucket/", "s3://bucket/some/prefix/", " s3://bucket/some//prefix "):
        store = open_store(uri, s3_client=lambda: s3)
        assert isinstance(store, S3Store)
        assert store.uri("a.ogg") == ("s3://bucket/some/prefix/a.ogg" if "some" in uri else "s3://bucket/a.ogg")
    with pytest.raises(errors.BadArchiveUriError, match="client"):
        open_store("s3://bucket")
    for uri in ("file:///srv/my%20archive", "file://localhost/srv/my%20archive/"):
        store = open_store(uri)
        assert isinstance(store, LocalStore)
        assert store.uri("a.ogg") == "file:///srv/my%20archive/a.ogg"
        assert store.browse_url("dt=2026-03-04") is None


def test_garbage_is_not_looked_for_while_a_client_is_made() -> None:
    seen = []

    def broken() -> Any:
        seen.append(gc.isenabled())
        raise LookupError

    for is_enabled in (True, False):
        (gc.enable if is_enabled else gc.disable)()
        try:
            with pytest.raises(LookupError):
                open_store("s3://bucket", s3_client=broken)
            seen.append(gc.isenabled())
        finally:
            gc.enable()
    assert seen == [False, True, False, False]


@pytest.mark.parametrize(
    ("region", "key", "expected"),
    [
        (
            "eu-central-1",
            "dt=2026-03-04/recording=a",
            "https://eu-central-1.console.aws.amazon.com/s3/buckets/bucket"
            "?region=eu-central-1&prefix=p/dt%3D2026-03-04/recording%3Da/",
        ),
        (
            "us-east-1",
            "a/manifest.json",
            "https://us-east-1.console.aws.amazon.com/s3/object/bucket?region=us-east-1&prefix=p/a/manifest.json",
        ),
        (
            "cn-north-1",
            "a/manifest.json",
            "https://cn-north-1.console.amazonaws.cn/s3/object/bucket?region=cn-north-1&prefix=p/a/manifest.json",
        ),
    ],
)
def test_pages_for_people(region: str, key: str, expected: str) -> None:
    client = boto3.client("s3", region_name=region, aws_access_key_id="x", aws_secret_access_key="y")
    assert S3Store(bucket="bucket", prefix="p", client=client).browse_url(key) == expected


def test_other_stores_have_no_page(bucket: Archive) -> None:
    assert bucket.store.browse_url("a") is None
