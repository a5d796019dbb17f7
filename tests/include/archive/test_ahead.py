"""Bodies that are fetched in ranges side by side, and sent while the next bytes come."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from contextlib import closing, suppress
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from bench.ends import certificates
from include.archive import ahead, errors
from include.archive import copy as copy_module
from include.archive.ahead import Ahead, Lanes, Line
from include.archive.audio import PcmFormat, wav_header
from include.archive.copy import Stop
from include.archive.stores import s3 as s3_module
from include.archive.stores.s3 import S3Store
from include.archive.stores.s3_access import Direct
from tests.include.archive.support import (
    STEM,
    Archive,
    CutError,
    FakeBody,
    FakeSource,
    audio,
    run,
    samples,
    sha256,
    wait_for,
)

if TYPE_CHECKING:
    from pathlib import Path

    from tests.strict_s3.process import Process

KEY = f"{STEM}.ogg"
SIZE = 12 * 1024 * 1024 + 7
RANGE, PIECE = 240_000, 80_000


@pytest.fixture(autouse=True)
def small_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take every source for a slow one, and every body for a large one."""
    monkeypatch.setattr(copy_module, "AHEAD_BYTES", 1)
    monkeypatch.setattr(copy_module, "FAST_SOURCE", 1 << 60)
    monkeypatch.setattr(ahead, "RANGE_BYTES", RANGE)
    monkeypatch.setattr(ahead, "PIECE_BYTES", PIECE)


class Crowd(FakeSource):
    """Counts how many ranges are open at the same time, waits for so many, and lets some come late."""

    wanted = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.ends: list[int | None] = []
        self.most = 0
        self._open = 0
        self._lock = threading.Lock()

    def open(self, offset: int = 0, if_match: str | None = None, end: int | None = None) -> FakeBody:
        body = super().open(offset, if_match)
        with self._lock:
            self.ends.append(end)
            self._open += 1
            self.most = max(self.most, self._open)
            number = len(self.opened)
        close = body.close

        def closed() -> None:
            if not body.closed:
                with self._lock:
                    self._open -= 1
            close()

        body.close = closed  # type: ignore[method-assign]
        give_up = time.monotonic() + 30
        while end is not None and self.most < self.wanted and time.monotonic() < give_up:
            time.sleep(0.005)
        if end is not None:
            time.sleep(0.02 if number % 3 == 0 else 0.005)
        return body


def uploads(strict: Process) -> list[dict[str, Any]]:
    return [one for one in strict.journal() if one["operation"] == "UploadPart"]


def test_ranges_come_side_by_side_and_are_stored_in_order(archive: Archive) -> None:
    source = Crowd(audio(SIZE))
    source.wanted = 4
    part = run(archive, source, lanes=Lanes(8))
    assert sha256(archive.get(KEY)) == part.sha256 == part.source_sha256 == sha256(source.data)
    assert archive.keys() == [KEY]
    assert archive.leftovers() == []
    assert part.verified_by == ["content-length", archive.proof]
    assert part.transferred == SIZE
    assert 4 <= source.most <= 8 + 1  # the body that told how long it is may still be closing
    assert all(end - offset <= RANGE for (offset, _), end in zip(source.opened, source.ends, strict=True) if end)
    assert {tag for offset, tag in source.opened if offset} == {'"v1"'}


def test_parts_go_out_side_by_side(bucket: Archive, strict: Process) -> None:
    strict.faults({"operation": "UploadPart", "action": "hold", "seconds": 60, "times": None})
    data, parts = audio(4 * s3_module.AHEAD_PART_BYTES + 1), []
    thread = threading.Thread(target=lambda: parts.append(run(bucket, FakeSource(data), lanes=Lanes(8))))
    thread.start()
    give_up = time.monotonic() + 50
    while len(strict.control("GET", "held")) < 5:
        assert time.monotonic() < give_up, "no five parts are under way at once"
        time.sleep(0.02)
    strict.control("POST", "release", {})
    thread.join()
    assert parts[0].sha256 == sha256(bucket.get(KEY)) == sha256(data)
    assert [one["status"] for one in uploads(strict)] == [200] * 5


@pytest.mark.parametrize("size", [SIZE, SIZE + 1])
def test_samples_get_their_header_and_padding(archive: Archive, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    # So little that most of it comes when it is known that sums of pieces are wanted.
    monkeypatch.setattr(ahead, "MEMORY_BYTES", 6 * PIECE)
    data = samples(size)
    part = run(archive, FakeSource(data), source_format="raw", duration=None, lanes=Lanes(6))
    assert archive.get(part.key) == wav_header(PcmFormat(), size) + data + bytes(size % 2)
    assert part.source_sha256 == sha256(data)


def test_a_second_run_reads_ahead_for_comparison_only(archive: Archive) -> None:
    data = audio(SIZE)
    run(archive, FakeSource(data), lanes=Lanes(6))
    archive.store.put_if_absent(f"{STEM}-2.ogg", data[:100], "audio/ogg")
    with pytest.raises(errors.ContentConflictError):
        run(archive, FakeSource(data), stem=f"{STEM}-2", lanes=Lanes(6))


@pytest.mark.parametrize("closes", [False, True])
def test_a_cut_range_is_resumed_where_it_was_cut(archive: Archive, closes: bool) -> None:  # noqa: FBT001
    cuts = [300_000, 1_000_001, 1_000_002, 5_000_000, SIZE - 1]
    source = FakeSource(audio(SIZE), cuts=cuts, closes=closes)
    part = run(archive, source, lanes=Lanes(6))
    assert sha256(archive.get(KEY)) == part.sha256 == sha256(source.data)
    assert part.transferred == SIZE
    assert archive.leftovers() == []


def test_a_range_that_never_comes_fails_the_copy(archive: Archive) -> None:
    source = FakeSource(audio(SIZE), breaks_at=7_000_000)
    with pytest.raises(CutError):
        run(archive, source, lanes=Lanes(6))
    assert (archive.keys(), archive.leftovers()) == ([], [])
    wait_for_no("ahead")


class Boastful(FakeSource):
    """Says that it takes ranges, and sends everything from the beginning."""

    def open(self, offset: int = 0, if_match: str | None = None, end: int | None = None) -> FakeBody:
        body = super().open(0 if end is not None else offset, if_match)
        body.takes_ranges = True
        return body


def test_a_source_that_ignores_ranges_is_read_in_one(archive: Archive) -> None:
    source = Boastful(audio(SIZE))
    part = run(archive, source, lanes=Lanes(6))
    assert sha256(archive.get(KEY)) == part.sha256 == sha256(source.data)


def test_versions_are_never_mixed(archive: Archive) -> None:
    first, second = audio(SIZE, seed=1), audio(SIZE, seed=2)
    source = FakeSource(first, later=(second, '"v2"'))
    part = run(archive, source, lanes=Lanes(6))
    assert part.sha256 == sha256(archive.get(KEY)) == sha256(second)


def test_a_source_that_ignores_the_condition_is_not_spliced(archive: Archive) -> None:
    first, second = audio(SIZE, seed=1), audio(SIZE, seed=2)

    class Careless(FakeSource):
        def open(self, offset: int = 0, if_match: str | None = None, end: int | None = None) -> FakeBody:
            body = super().open(offset, if_match)
            return FakeBody(self, second, '"v2"', offset) if len(self.opened) > 3 else body

    part = run(archive, Careless(first), lanes=Lanes(6))
    assert part.sha256 == sha256(archive.get(KEY)) == sha256(second)


@pytest.mark.parametrize(
    "rule",
    [
        {"action": "error", "code": "SlowDown"},
        {"action": "error", "code": "InternalError", "when": "after"},
        {"action": "drop", "bytes": 1_000_000},
        {"action": "error", "code": "BadDigest"},
    ],
)
def test_only_the_part_that_failed_is_fetched_again(bucket: Archive, strict: Process, rule: dict[str, Any]) -> None:
    strict.faults({"operation": "UploadPart", "skip": 1, **rule})
    source = FakeSource(audio(SIZE))
    part = run(bucket, source, lanes=Lanes(6))
    assert sha256(bucket.get(KEY)) == part.sha256 == sha256(source.data)
    assert SIZE < source.sent <= SIZE + s3_module.AHEAD_PART_BYTES + 2 * 1024 * 1024
    assert bucket.leftovers() == []


def test_a_part_that_comes_otherwise_the_second_time_is_not_mixed_in(bucket: Archive, strict: Process) -> None:
    strict.faults({"operation": "UploadPart", "skip": 1, "action": "error", "code": "SlowDown"})
    first, second = audio(SIZE, seed=1), audio(SIZE, seed=2)

    class Turning(FakeSource):
        def open(self, offset: int = 0, if_match: str | None = None, end: int | None = None) -> FakeBody:
            if end is not None and end - offset > RANGE:
                self.data = second  # a whole part is asked for again
            return super().open(offset, if_match)

    part = run(bucket, Turning(first), lanes=Lanes(6))
    assert part.sha256 == sha256(bucket.get(KEY)) == sha256(second)
    assert bucket.leftovers() == []


def test_a_store_that_refuses_for_good_ends_all_of_it(bucket: Archive, strict: Process) -> None:
    strict.faults({"operation": "UploadPart", "action": "error", "code": "AccessDenied", "times": None})
    with pytest.raises(errors.StorageDeniedError):
        run(bucket, FakeSource(audio(SIZE)), lanes=Lanes(6))
    assert (bucket.keys(), bucket.leftovers()) == ([], [])
    wait_for_no("ahead")
    wait_for_no("courier")


class Silent(FakeSource):
    """Its ranges say nothing from some place on, until they are interrupted."""

    silent_from = 6_000_000

    def open(self, offset: int = 0, if_match: str | None = None, end: int | None = None) -> FakeBody:
        body = super().open(offset, if_match)
        if end is not None and offset > self.silent_from:
            told = threading.Event()
            body.interrupt = told.set  # type: ignore[method-assign]

            def wait(buffer: memoryview) -> int:
                told.wait(60)
                raise CutError("interrupted")

            body.readinto = wait  # type: ignore[method-assign]
        return body


def test_nothing_is_waited_for_once_the_copy_has_failed(archive: Archive) -> None:
    source = Silent(audio(SIZE), breaks_at=2_000_000)
    source.silent_from = 2_100_000
    with pytest.raises(CutError):
        run(archive, source, lanes=Lanes(6))
    wait_for_no("ahead")


def test_a_stop_ends_every_range(archive: Archive) -> None:
    stop = Stop()
    threading.Timer(0.5, stop.set).start()
    began = time.monotonic()
    with pytest.raises(errors.StoppedError):
        run(archive, Silent(audio(SIZE)), lanes=Lanes(6), stop=stop)
    assert time.monotonic() - began < 30
    assert (archive.keys(), archive.leftovers()) == ([], [])
    wait_for_no("ahead")


def test_memory_is_bounded_and_shared_without_a_deadlock(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "MEMORY_BYTES", 6 * PIECE)
    lanes, made = Lanes(6), []
    monkeypatch.setattr(ahead, "bytearray", lambda size: made.append(size) or bytearray(size), raising=False)
    failures: list[BaseException] = []

    def one(number: int) -> None:
        try:
            data = audio(SIZE, seed=number)
            stored = run(archive, Crowd(data), stem=f"participant=1/artifact-1/part-{number}", lanes=lanes)
            assert stored.sha256 == sha256(data)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert failures == []
    assert not any(thread.is_alive() for thread in threads)
    assert 1 <= len(made) <= 6
    assert lanes.copies == 0


class Pieces:
    """A range of a body, of which the second piece can be made to fail; counts what it repeats."""

    def __init__(self, start: int, end: int, *, breaks: bool = False, repeated: int = 0) -> None:
        self.transferred = repeated
        self._left = end - start
        self._breaks = breaks

    def ready(self) -> None:
        return

    def readinto(self, buffer: memoryview) -> int:
        if self._breaks and self.transferred >= PIECE:
            raise CutError("cut in the second piece")
        count = min(len(buffer), self._left)
        self._left -= count
        self.transferred += count
        return count

    def close(self) -> None:
        return


def test_an_error_in_the_midst_of_a_range_is_raised_behind_what_came_before() -> None:
    reading = Ahead(Lanes(2), lambda start, end: Pieces(start, end, breaks=start > 0), Stop(), 0, 3 * RANGE)
    came = 0
    while came < RANGE + PIECE:
        came += len(reading.read())
    with pytest.raises(CutError):
        reading.read()
    assert reading.transferred == came == RANGE + PIECE
    reading.close()
    wait_for_no("ahead")


def test_what_a_range_repeats_is_counted() -> None:
    reading = Ahead(Lanes(2), lambda start, end: Pieces(start, end, repeated=5), Stop(), 0, 3 * RANGE)
    while reading.read():
        continue
    assert reading.transferred == 3 * RANGE + 3 * 5
    wait_for_no("ahead")


def test_whoever_waits_for_memory_hears_that_the_copy_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "MEMORY_BYTES", 3 * PIECE)
    lanes = Lanes(6)
    other = Line(0)
    held = [lanes.take(other, 0, lambda: False) for _ in range(3)]
    reading = Ahead(lanes, Pieces, Stop(), 0, 30 * RANGE)
    reading.begin()
    wait_for(lambda: len(reading._line.waiting) == 6)
    reading.close()
    wait_for_no("ahead")
    assert (lanes._lines, reading._line.waiting) == ([], [])
    for buffer in held:
        assert buffer is not None
        lanes.give(other, buffer, was_read=False)
    assert lanes._left == 3


def test_who_is_nearest_to_its_turn_gets_memory_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "MEMORY_BYTES", 3 * PIECE)
    lanes, first, second, served = Lanes(6), Line(0), Line(1000), []
    held = [lanes.take(first, 0, lambda: False) for _ in range(3)]

    def want(line: Line, start: int) -> None:
        lanes.take(line, start, lambda: False)
        served.append(start)

    for line, start in ((first, 300), (second, 1250), (first, 100), (second, 1050), (first, 200)):
        threading.Thread(target=want, args=(line, start), daemon=True).start()
    wait_for(lambda: len(first.waiting) + len(second.waiting) == 5)
    expected = [1050, 100, 200, 300]
    for count in range(1, 4):
        buffer = held.pop()
        assert buffer is not None
        lanes.give(first, buffer, was_read=False)
        wait_for(lambda: len(served) == count)  # noqa: B023
        assert served == expected[:count]
    lanes.is_due(first, 290)  # else the 250 bytes before 1250 would be fewer than the 300 before 300
    lanes.give(first, memoryview(bytearray(PIECE)), was_read=False)
    wait_for(lambda: len(served) == 4)
    assert served == expected


def test_a_copy_whose_store_takes_nothing_does_not_keep_others_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "MEMORY_BYTES", 12 * PIECE)
    lanes, kept, takes = Lanes(6), [], threading.Event()
    stalled, other = (Ahead(lanes, Pieces, Stop(), 0, 30 * RANGE) for _ in range(2))

    def let_go() -> None:
        while kept:
            kept.pop()()

    def read() -> None:
        while stalled.read():
            kept.append(stalled.keep())
            if takes.is_set():
                let_go()

    def read_other() -> None:
        while other.read():
            continue

    readers = [threading.Thread(target=one, daemon=True) for one in (read, read_other)]
    with lanes.one_copy(), lanes.one_copy():
        readers[0].start()
        wait_for(lambda: stalled._line.under_way >= 6 and bool(stalled._line.waiting))
        readers[1].start()
        readers[1].join(20)
        assert not readers[1].is_alive()
        takes.set()
        let_go()
        readers[0].join(20)
        assert not readers[0].is_alive()
    assert (lanes._lines, lanes._left) == ([], 12)
    assert [one._line.under_way for one in (stalled, other)] == [0, 0]


def test_what_came_early_may_take_all_memory_but_what_is_kept_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "MEMORY_BYTES", 12 * PIECE)
    lanes = Lanes(12)
    reading = Ahead(lanes, Pieces, Stop(), 0, 30 * RANGE)
    with lanes.one_copy(), lanes.one_copy():
        reading.begin()
        wait_for(lambda: lanes._left == 2)
        while reading.read():
            continue
    assert lanes._left == 12


def test_a_slow_source_is_not_read_on_one_connection_for_long(archive: Archive) -> None:
    source = FakeSource(audio(SIZE))
    run(archive, source, lanes=Lanes(6))
    assert min(offset for offset, _ in source.opened if offset) == copy_module.BUFFER_BYTES


def test_a_fast_source_is_read_on_one_connection(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copy_module, "FAST_SOURCE", 0)
    source = FakeSource(audio(SIZE))
    run(archive, source, lanes=Lanes(6))
    assert source.opened == [(0, None)]


def test_ranges_come_while_the_upload_is_begun(bucket: Archive, strict: Process) -> None:
    strict.faults({"operation": "CreateMultipartUpload", "action": "hold", "seconds": 60})
    source, parts = FakeSource(audio(SIZE)), []
    thread = threading.Thread(target=lambda: parts.append(run(bucket, source, lanes=Lanes(6))))
    thread.start()
    wait_for(lambda: len(source.opened) > 1 and len(strict.control("GET", "held")) == 1)
    strict.control("POST", "release", {})
    thread.join()
    assert parts[0].sha256 == sha256(bucket.get(KEY)) == sha256(source.data)


def test_a_copy_gets_its_share_of_the_lanes() -> None:
    lanes = Lanes(8)
    with lanes.one_copy():
        assert lanes.share == 8
        with lanes.one_copy(), lanes.one_copy():
            assert lanes.share == 2
    assert Lanes().share == 1


def test_the_first_copies_leave_lanes_to_the_others() -> None:
    lanes = Lanes(32, parts=10, side_by_side=8)
    for left in (10, 9, 8):
        with lanes.one_copy():
            assert lanes.share == 4, left
    for share in (32 // 7, 32 // 6, 32 // 5, 8, 32 // 3, 16, 32):
        with lanes.one_copy():
            assert lanes.share == share


def test_with_one_lane_nothing_is_read_ahead(archive: Archive) -> None:
    source = FakeSource(audio(SIZE))
    run(archive, source)
    assert source.opened == [(0, None)]


@pytest.mark.parametrize("ways", [2, 3, 4])
def test_on_few_ways_a_long_body_survives_a_fault_of_the_store(
    bucket: Archive, strict: Process, monkeypatch: pytest.MonkeyPatch, ways: int
) -> None:
    """It goes on in one, and what is still to be sent of it must not be read over."""
    strict.faults({"operation": "UploadPart", "skip": 1, "action": "error", "code": "SlowDown"})
    send = s3_module.S3Store.upload_stream

    def late(self: Any, *args: Any) -> Any:
        time.sleep(0.02)
        return send(self, *args)

    monkeypatch.setattr(s3_module.S3Store, "upload_stream", late)
    source = FakeSource(audio(3 * s3_module.PART_BYTES + 9))
    part = run(bucket, source, lanes=Lanes(ways))
    assert sha256(bucket.get(KEY)) == part.sha256 == sha256(source.data)


def test_another_copy_that_begins_meanwhile_takes_no_memory_away(
    bucket: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_ahead = copy_module._Reader.go_ahead

    def crowded(self: Any, lanes: Lanes) -> None:
        lanes.copies += 1
        go_ahead(self, lanes)

    monkeypatch.setattr(copy_module._Reader, "go_ahead", crowded)
    source = FakeSource(audio(3 * s3_module.PART_BYTES))
    part = run(bucket, source, lanes=Lanes(2))
    assert sha256(bucket.get(KEY)) == part.sha256 == sha256(source.data)


@pytest.mark.parametrize("size", [10 * 1024 * 1024 - 44, 10 * 1024 * 1024 - 43, SIZE])
def test_any_part_of_samples_can_be_sent_again(bucket: Archive, strict: Process, size: int) -> None:
    data = samples(size)
    for number in range(3):
        strict.reset()
        strict.faults({"operation": "UploadPart", "skip": number, "action": "error", "code": "SlowDown"})
        part = run(bucket, FakeSource(data), source_format="raw", lanes=Lanes(6))
        assert bucket.get(part.key) == wav_header(PcmFormat(), size) + data + bytes(size % 2)
        assert bucket.leftovers() == []


def test_ranges_that_do_not_say_what_they_belong_to_are_not_taken(archive: Archive) -> None:
    first, second = audio(SIZE, seed=1), audio(SIZE, seed=2)

    class Untagged(FakeSource):
        def open(self, offset: int = 0, if_match: str | None = None, end: int | None = None) -> FakeBody:
            body = super().open(offset, if_match)
            data = second if len(self.opened) > 10 else first
            return body if end is None else FakeBody(self, data, None, offset)

    part = run(archive, Untagged(first), lanes=Lanes(6))
    assert part.sha256 == sha256(archive.get(KEY)) == sha256(first)


class Hasty:
    """A store that answers a PUT as if all had come, after a part of the body, or never."""

    def __init__(self, *, answers: bool, authority: Path | None = None) -> None:
        self._answers = answers
        self._authority = authority
        self._tls = None
        if authority is not None:
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._tls.load_cert_chain(authority.with_name("server.pem"))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http{'s' if self._tls else ''}://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=self._serve, args=(self._listener.accept()[0],), daemon=True).start()

    def _serve(self, conn: socket.socket) -> None:
        if self._tls is not None:
            conn = self._tls.wrap_socket(conn, server_side=True)
        replies = {
            "POST": (200, b"<InitiateMultipartUploadResult><UploadId>1</UploadId></InitiateMultipartUploadResult>"),
            "DELETE": (204, b""),
            "HEAD": (404, b""),
        }
        with conn, conn.makefile("rb") as lines:
            while line := lines.readline():
                method = line.split()[0].decode()
                while lines.readline().strip():
                    pass
                kind = b"ListMultipartUploadsResult" if b"uploads" in line else b"ListBucketResult"
                listing = b"<%s><IsTruncated>false</IsTruncated></%s>" % (kind, kind)
                status, body = replies.get(method, (200, b"" if method == "PUT" else listing))
                if method == "PUT" and not self._answers:
                    threading.Event().wait(60)
                if method == "PUT":
                    lines.read(100_000)
                head = f'HTTP/1.1 {status} -\r\nETag: "1"\r\nContent-Length: {len(body)}\r\n'
                conn.sendall(f"{head}Connection: close\r\n\r\n".encode() + body)
                return

    def store(self, seconds: float) -> S3Store:
        access = Direct(
            address=f"{self.url}/archive",
            region="us-east-1",
            keys=lambda: SimpleNamespace(access_key="a", secret_key="b", token=None),  # noqa: S106
            make_client=lambda: pytest.fail("no client is needed"),
            read_timeout=seconds,
            verify=str(self._authority) if self._authority else True,
        )
        return S3Store(bucket="archive", prefix="", access=access)

    def close(self) -> None:
        self._listener.close()


@pytest.mark.parametrize("ways", [1, 4, 8])
def test_a_store_that_answers_before_it_has_all_is_not_believed(monkeypatch: pytest.MonkeyPatch, ways: int) -> None:
    monkeypatch.setattr(copy_module, "MAX_FUTILE_ATTEMPTS", 2)
    with closing(Hasty(answers=True)) as server:
        bucket: Any = SimpleNamespace(store=server.store(5))
        lanes = Lanes(ways)
        with pytest.raises((errors.StorageError, errors.UploadLostError)):
            run(bucket, FakeSource(audio(SIZE)), lanes=lanes)
        wait_for_no("courier")
        assert lanes.copies == 0


@pytest.mark.parametrize(
    ("ways", "size", "is_secure"),
    [
        *((ways, size, False) for ways in (4, 8) for size in (500_000, s3_module.AHEAD_PART_BYTES + 500_000, 5 * SIZE)),
        (4, 500_000, True),
    ],
)
def test_a_stop_does_not_wait_for_a_store_that_takes_nothing_or_does_not_answer(
    tmp_path: Path, ways: int, size: int, is_secure: bool
) -> None:
    with closing(Hasty(answers=False, authority=certificates(tmp_path) if is_secure else None)) as server:
        bucket: Any = SimpleNamespace(store=server.store(50))
        stop = Stop()
        threading.Timer(1, stop.set).start()
        began = time.monotonic()
        with pytest.raises(errors.StoppedError):
            run(bucket, FakeSource(audio(size)), lanes=Lanes(ways), stop=stop)
        assert time.monotonic() - began < 25
        wait_for_no("courier")


class TestAFastSource:
    """It is read on one connection, as ever."""

    @pytest.fixture(autouse=True)
    def fast(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(copy_module, "FAST_SOURCE", 1)

    @pytest.mark.parametrize("size", [300_000, s3_module.PART_BYTES, 3 * s3_module.PART_BYTES + 1])
    def test_is_stored_as_it_came(self, archive: Archive, size: int) -> None:
        source = FakeSource(audio(size))
        part = run(archive, source, lanes=Lanes(6))
        assert sha256(archive.get(KEY)) == part.sha256 == sha256(source.data)
        assert source.opened == [(0, None)]

    @pytest.mark.parametrize("size", [s3_module.PART_BYTES, 3 * s3_module.PART_BYTES + 1])
    @pytest.mark.parametrize("dropped", [0, 1_000_000])
    def test_is_read_again_after_a_fault_of_the_store(
        self, bucket: Archive, strict: Process, size: int, dropped: int
    ) -> None:
        strict.faults({"operation": "PutObject|UploadPart", "action": "drop", "bytes": dropped})
        source = FakeSource(audio(size))
        part = run(bucket, source, lanes=Lanes(6))
        assert sha256(bucket.get(KEY)) == part.sha256 == sha256(source.data)
        assert (bucket.keys(), bucket.leftovers()) == ([KEY], [])

    def test_that_breaks_leaves_nothing(self, bucket: Archive, strict: Process) -> None:
        with pytest.raises(CutError):
            run(bucket, FakeSource(audio(s3_module.PART_BYTES), breaks_at=5_000_000), lanes=Lanes(6))
        assert (bucket.keys(), bucket.leftovers()) == ([], [])
        wait_for_no("courier")


def wait_for_no(name: str) -> None:
    """Wait until no thread of that name is left."""
    end = time.monotonic() + 20
    while left := [one.name for one in threading.enumerate() if one.name.startswith(name)]:
        assert time.monotonic() < end, left
        time.sleep(0.02)
