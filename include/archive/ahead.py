"""Reading ahead: what is left of one body, fetched in ranges side by side and read in order, in bounded memory.

Object stores give a connection a few dozen MiB/s, however fast the network is, so a large body needs several. The hash
of the whole goes in order, so what comes early has to wait for its turn: how much may wait is bounded, and shared by
all copies of a task.
"""

from __future__ import annotations

import heapq
import queue
import threading
import zlib
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from include.archive.errors import StoppedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PIECE_BYTES = 1024 * 1024
"""How much memory is taken, and given back, at a time: it is held for what comes, not for what has been asked for.

Until then, what comes waits in the system's own buffer of its connection, which for many is not much longer than this.
"""

RANGE_BYTES = 3 * PIECE_BYTES
"""How much one request asks for where there is enough for all connections: it costs as much as hashing half a MiB.

What has come of a longer one would fill more of the system's buffers before its turn comes.
"""

MEMORY_BYTES = 12 * 1024 * 1024
"""How much all copies of a task hold together, on however many connections.

Where the processor is the limit, more is no faster: it leaves the cache, and hashing what comes from there takes half
as long again. Where each connection is slow (a few MiB/s), more would keep more of them busy.
"""

LOOK_SECONDS = 0.1
"""How soon whoever waits for memory notices that nobody wants it any more."""


class Ranged(Protocol):
    """One range of a body being read, cuts forgiven."""

    @property
    def transferred(self) -> int:
        """Bytes read from the source, repetitions included."""
        ...

    def ready(self) -> None:
        """Wait for the first byte."""
        ...

    def readinto(self, buffer: memoryview) -> int:
        """Read some bytes; 0 only at the end of the range."""
        ...

    def close(self) -> None:
        """Let go of the connection."""
        ...


class Stoppable(Protocol):
    """What ends readings, see :class:`include.archive.copy.Stop`."""

    def set(self) -> None:
        """End them."""
        ...

    def is_set(self) -> bool:
        """Tell whether they are to end."""
        ...


class Lanes:
    """Connections to the source, and memory for what comes on them, shared by copies that run side by side.

    :param count: connections at the same time. With one for each copy, none of them reads ahead.
    :param parts: how many copies there will be in all, where that is known: the first ones then leave lanes to others.
    :param side_by_side: how many of them at a time.
    """

    def __init__(self, count: int = 1, *, parts: int = 0, side_by_side: int = 1) -> None:
        self.count = count
        self.copies = 0
        self._parts = parts
        self._side_by_side = side_by_side
        self._lock = threading.Lock()
        self._pieces = self._left = MEMORY_BYTES // PIECE_BYTES
        self._free: list[memoryview] = []
        self._lines: list[Line] = []
        """Those in which somebody waits."""

    @property
    def share(self) -> int:
        """How many connections one copy may have just now."""
        return max(1, self.count // max(1, self.copies, min(self._parts, self._side_by_side)))

    @contextmanager
    def one_copy(self) -> Iterator[None]:
        """Count a copy among those that share."""
        with self._lock:
            self.copies += 1
        try:
            yield
        finally:
            with self._lock:
                self.copies -= 1
                self._parts -= 1

    def take(self, line: Line, start: int, is_over: Callable[[], bool]) -> memoryview | None:
        """Wait for memory for a piece; who is nearest to its turn gets it first.

        Some memory is kept for those that are due next, so that what comes early can't keep them out. Where there are
        several copies, one that has half of the memory on its way to the store waits until the store has taken some,
        and what is kept is for those that have none on its way: where a store takes nothing, the others go on.

        :param line: where the copy's others wait.
        :param start: which byte it is for.
        :param is_over: tells whether nobody wants it any more; None is returned then.
        """
        waiting = _Waiting(start)
        with self._lock:
            if not line.waiting:
                self._lines.append(line)
            heapq.heappush(line.waiting, waiting)
            self._serve()
        while True:
            try:
                return waiting.buffer.get(timeout=LOOK_SECONDS)
            except queue.Empty:
                if is_over():
                    return self._leave(line, waiting)

    def _leave(self, line: Line, waiting: _Waiting) -> memoryview | None:
        """Wait no longer; return what came at the last moment."""
        with self._lock:
            if waiting not in line.waiting:
                return waiting.buffer.get_nowait()
            line.waiting.remove(waiting)
            heapq.heapify(line.waiting)
            if not line.waiting:
                self._lines.remove(line)
            return None

    def give(self, line: Line, buffer: memoryview, *, was_read: bool) -> None:
        """Give memory back.

        :param was_read: whether :meth:`is_read` was told of it.
        """
        with self._lock:
            self._free.append(buffer)
            self._left += 1
            line.under_way -= was_read
            self._serve()

    def is_read(self, line: Line) -> None:
        """Notice that a piece was read in its turn; it is under way to the store from now on."""
        with self._lock:
            line.under_way += 1

    def is_due(self, line: Line, start: int) -> None:
        """Notice which byte of a copy is due next now."""
        with self._lock:
            line.due = start
            self._serve()

    def _serve(self) -> None:
        while self._left and (lines := [line for line in self._lines if self._may_have_some(line)]):
            line = min(lines, key=Line.distance)
            buffer = self._free.pop() if self._free else memoryview(bytearray(PIECE_BYTES))
            self._left -= 1
            heapq.heappop(line.waiting).buffer.put(buffer)
            if not line.waiting:
                self._lines.remove(line)

    def _may_have_some(self, line: Line) -> bool:
        under_way = line.under_way if self.copies > 1 else 0
        if self._left > self.copies:
            return under_way < max(1, self._pieces // 2)
        return not line.distance() and not under_way


class Line:
    """Where one copy's connections wait for memory.

    :param due: the byte that is read next.
    """

    def __init__(self, due: int) -> None:
        self.due = due
        self.under_way = 0
        """How many pieces were read, and are not given back."""
        self.waiting: list[_Waiting] = []
        """Who is nearest to its turn is the first; a heap."""

    def distance(self) -> int:
        """Tell how many bytes are due before those that the first one waits for."""
        return self.waiting[0].start - self.due


class _Waiting:
    def __init__(self, start: int) -> None:
        self.start = start
        self.buffer: queue.SimpleQueue[memoryview] = queue.SimpleQueue()

    def __lt__(self, other: _Waiting) -> bool:
        return self.start < other.start


class _Loan:
    """A piece of a range in memory, which goes back when all who read from it are done."""

    def __init__(self, buffer: memoryview, count: int, lanes: Lanes, line: Line) -> None:
        self.unread = buffer[:count]
        self.crc32: int | None = None
        """Of all of it, where that was computed, and none of it was read apart."""
        self._buffer = buffer
        self._lanes = lanes
        self._line = line
        self._was_read = False
        self._readers = 1
        self._lock = threading.Lock()

    def is_read(self) -> None:
        self._was_read = True
        self._lanes.is_read(self._line)

    def keep(self) -> Callable[[], None]:
        with self._lock:
            self._readers += 1
        return self.let_go

    def let_go(self) -> None:
        with self._lock:
            self._readers -= 1
            is_free = not self._readers
        if is_free:
            self._lanes.give(self._line, self._buffer, was_read=self._was_read)


def _next_multiple(length: int, place: int) -> int:
    return (place // length + 1) * length


class _Range:
    def __init__(self, start: int, end: int) -> None:
        self.start = start
        self.end = end
        self.came: queue.SimpleQueue[_Loan | BaseException | None] = queue.SimpleQueue()
        """Its pieces in order, and None behind the last."""
        self.repeated = 0
        """Bytes that came more than once."""


class Ahead:
    """What is left of a body, read in order while it comes on as many connections as the lanes allow.

    :param lanes: shared with other copies.
    :param open_range: begins to read the bytes from one place up to another.
    :param stop: makes all these readings fail soon.
    :param start: first byte.
    :param end: where the body ends.
    """

    def __init__(
        self,
        lanes: Lanes,
        open_range: Callable[[int, int], Ranged],
        stop: Stoppable,
        start: int,
        end: int,
    ) -> None:
        self.transferred = 0
        self.ways = lanes.share
        self._lanes = lanes
        self._open_range = open_range
        self._stop = stop
        self._unasked = start
        self._line = Line(start)
        self._end = end
        self._range_bytes = min(RANGE_BYTES, max(PIECE_BYTES, (end - start) // self.ways // PIECE_BYTES * PIECE_BYTES))
        self.is_summed = False
        """Whether pieces that come from now on are summed in the thread that they come in."""
        self.crc32: int | None = None
        """CRC-32 of the bytes that were read last, where that was computed when they came."""
        self._lock = threading.Lock()
        self._ranges: deque[_Range] = deque()
        self._loan: _Loan | None = None
        self._fetchers = 0
        self._is_over = False

    def begin(self) -> None:
        """Have as many fetchers as there are lanes for this copy, as long as there is something to ask for."""
        while (self._fetchers < self._lanes.share or not self._ranges) and (one := self._next_range(1)) is not None:
            threading.Thread(target=self._fetch, args=(one,), name="ahead", daemon=True).start()

    def read(self, most: int | None = None) -> memoryview:
        """Return the next bytes, which stay until the next are asked for; none at the end.

        :raises BaseException: whatever the reading of the range raised that is due.
        """
        self.crc32 = None
        if self._loan is not None and not self._loan.unread:
            self._let_go()
        while self._loan is None:
            self.begin()
            if not self._ranges:
                return memoryview(b"")
            came = self._ranges[0].came.get()
            if isinstance(came, BaseException):
                raise came
            if came is not None:
                self._loan = came
                came.is_read()
                self.transferred += len(came.unread)
                continue
            over = self._ranges.popleft()
            self.transferred += over.repeated
            self._lanes.is_due(self._line, over.end)
        loan = self._loan
        chunk = loan.unread[:most]
        loan.unread = loan.unread[len(chunk) :]
        if loan.unread:
            loan.crc32 = None
        self.crc32 = loan.crc32
        return chunk

    def keep(self) -> Callable[[], None]:
        """Leave what was read last as it is until what this returns is called."""
        return self._loan.keep() if self._loan is not None else lambda: None

    def close(self) -> None:
        """End all that is under way, without waiting for it."""
        with self._lock:
            self._is_over = True
        self._stop.set()
        self._let_go()
        for one in self._ranges:
            while not one.came.empty():
                if isinstance(came := one.came.get(), _Loan):
                    came.let_go()

    def _let_go(self) -> None:
        if self._loan is not None:
            loan, self._loan = self._loan, None
            loan.let_go()

    def _next_range(self, more: int = 0) -> _Range | None:
        """Return what a fetcher is to fetch next; None where it is to end.

        :param more: 1 for one that is yet to begin.
        """
        with self._lock:
            self._fetchers += more
            is_one_too_many = self._fetchers > self._lanes.share and bool(self._ranges)
            if self._is_over or self._unasked >= self._end or is_one_too_many:
                self._fetchers -= 1
                return None
            # They end where parts of an object do, so that few pieces belong to two of these.
            one = _Range(self._unasked, min(_next_multiple(self._range_bytes, self._unasked), self._end))
            self._unasked = one.end
            self._ranges.append(one)
            return one

    def _fetch(self, one: _Range | None) -> None:
        while one is not None:
            try:
                self._fetch_one(one)
            except BaseException as error:
                self._pass_on(one, error)  # whoever reads raises it
            one = self._next_range()

    def _fetch_one(self, one: _Range) -> None:
        reader = self._open_range(one.start, one.end)
        try:
            reader.ready()  # nothing is held for what hasn't begun to come
            start = one.start
            while start < one.end:
                end = min(_next_multiple(PIECE_BYTES, start), one.end)
                self._pass_on(one, self._piece(one, reader, end - start))
                start = end
            one.repeated = reader.transferred - (one.end - one.start)
            self._pass_on(one, None)
        finally:
            reader.close()

    def _piece(self, one: _Range, reader: Ranged, count: int) -> _Loan:
        buffer = self._lanes.take(self._line, one.start, self._stop.is_set)
        if buffer is None:
            raise StoppedError("told to stop")
        loan = _Loan(buffer, count, self._lanes, self._line)
        try:
            left = loan.unread
            while left and (came := reader.readinto(left)):
                left = left[came:]
            if self.is_summed:
                loan.crc32 = zlib.crc32(loan.unread)  # while it is in this processor's cache
        except BaseException:
            loan.let_go()
            raise
        return loan

    def _pass_on(self, one: _Range, what: _Loan | BaseException | None) -> None:
        with self._lock:
            if not self._is_over:
                one.came.put(what)
                return
        if isinstance(what, _Loan):
            what.let_go()
