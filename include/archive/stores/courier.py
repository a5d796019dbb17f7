"""A body on its way to the store in a thread of its own, while what follows is read and hashed."""

from __future__ import annotations

import queue
import zlib
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from include.archive.errors import SourceChangedError, StoppedError, StorageUnavailableError
from include.archive.stores.s3_wire import Body, combined_crc32

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence
    from concurrent.futures import Executor

    from include.archive.stores.base import Flow

GRACE_SECONDS = 2.0
"""How long a courier that was given up may take to notice; it waits for nothing but its connection then."""

LOOK_SECONDS = 0.1
"""How soon whoever waits for an answer notices that the copy is to end."""

Sent = TypeVar("Sent")


class Courier(Generic[Sent]):
    """Sends the next bytes of a flow.

    :param count: how many bytes.
    :param send: sends a body, and returns what comes of it.
    :param sha256: tells the hash of the body once all of it was taken; without it, its CRC-32 goes with it.
    :param form: what is sent.
    """

    def __init__(
        self,
        count: int,
        send: Callable[[Body], Sent],
        sha256: Callable[[], str] | None = None,
        form: type[Body] = Body,
    ) -> None:
        self.crc32 = 0
        """Of what was handed over, where no hash of it is sent; computed while the bytes are in the cache."""
        self.answer: Future[Sent] = Future()
        """What comes of it, in the end."""
        self.answer.cancel()  # until there is something to wait for
        self._is_summed = sha256 is None
        self._count = count
        self._send = send
        self._pieces: queue.SimpleQueue[tuple[memoryview, Callable[[], None]] | None] = queue.SimpleQueue()
        self._has_all = False
        self._is_given_up = False
        self._has_failed = False
        self._taken = self._take()
        self.body = form(self._taken, count, sha256, crc32=lambda: self.crc32, is_over=lambda: self._is_given_up)

    def start(self, threads: Executor) -> None:
        """Begin to send, in a thread of these."""
        self.answer = threads.submit(self._run)

    def carry(self, flow: Flow, *, is_all_wanted: bool = True) -> None:
        """Hand over the bytes, without waiting for an answer; raises what the flow raises.

        :param is_all_wanted: take all of them from the flow even when sending has failed.
        """
        for chunk in flow.chunks(self._count):
            if self._is_summed:
                known = flow.crc32
                self.crc32 = (
                    zlib.crc32(chunk, self.crc32) if known is None else combined_crc32(self.crc32, known, len(chunk))
                )
            self._pieces.put((chunk, flow.keep()))
            if self._has_failed and not is_all_wanted:
                break
        self._pieces.put(None)

    def arrived(self, flow: Flow) -> Sent:
        """Wait for the answer, unless the copy is to end; raises what sending raised."""
        while not wait([self.answer], LOOK_SECONDS).done:
            flow.check_stop()
        return self.answer.result()

    def again(self, body: Body) -> Sent:
        """Send the same bytes once more.

        :param body: they, read anew.
        :raises SourceChangedError: they are not the same.
        """
        sent = self._send(body)
        if body.crc32 != self.crc32:
            raise SourceChangedError("a part of the body that was read again is another one")
        return sent

    def give_up(self) -> None:
        """End it soon, if it is still under way; what it has sent so far is no whole body, and the store forgets it."""
        self._is_given_up = True
        self._pieces.put(None)

    def _run(self) -> Sent:
        try:
            sent = self._send(self.body)
            if not self._has_all:
                raise StorageUnavailableError("the store answered before it had all of a body")
        except BaseException:
            self._has_failed = True
            self._taken.close()
            for _ in self._take():
                continue  # the memory goes back
            raise
        return sent

    def _take(self) -> Generator[memoryview]:
        while not self._has_all:
            piece = self._pieces.get()
            if piece is None:
                self._has_all = True
                break
            chunk, let_go = piece
            try:
                if not self._is_given_up:
                    yield chunk
            finally:
                let_go()
        if self._is_given_up:
            raise StoppedError("given up")


def give_up(couriers: Sequence[Courier[Any]]) -> None:
    """End couriers and wait a moment, so that nothing of theirs arrives after what follows."""
    for one in couriers:
        one.give_up()
    wait([one.answer for one in couriers], GRACE_SECONDS)
