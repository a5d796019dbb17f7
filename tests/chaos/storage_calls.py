"""Kill a run before and after every single call that it makes to the store, and judge what the next run leaves.

    python -m tests.chaos.storage_calls

Each ladder climbs from a run's first call to its last; a rung on which nothing was killed is the end of it.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import shutil
import signal
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.chaos.campaign import Tally, Worker, end
from tests.chaos.schedule import around_storage_calls

if TYPE_CHECKING:
    from collections.abc import Iterator

FILE_CALLS = ("mkdir", "open", "write", "setxattr", "fchmod", "fsync", "link", "unlink", "close")

# What is refused, as the first look at a manifest is, has no moment after it was done.
EFFECTIVE = "List.*|CreateMultipartUpload|PutObject|UploadPart|CompleteMultipartUpload"


@dataclass(frozen=True)
class Ladder:
    """One kind of call, and what is done at it.

    :ivar name: for the table.
    :ivar store: ``file`` or ``s3``.
    :ivar call: of the operating system; for ``s3`` every request counts.
    :ivar when: ``before`` or ``after`` the call.
    :ivar drop: of a request that its dead process left under way: it is never carried out.
    """

    name: str
    store: str
    when: str
    call: str = ""
    drop: bool = False

    def script(self, rung: int) -> dict[str, Any]:
        """Return what is done on a rung, from 0."""
        if self.store == "file":
            return {"name": "killed", "faults": [f"{self.call}:{rung + 1}:kill-{self.when}"]}
        operation = ".*" if self.when == "before" else EFFECTIVE
        return {"name": "held", "when": self.when, "skip": rung, "operation": operation, "drop": self.drop}


LADDERS = (
    Ladder("S3 request, killed before it", "s3", "before", drop=True),
    Ladder("S3 request, killed before it is carried out", "s3", "before"),
    Ladder("S3 request, killed after it", "s3", "after"),
    *(
        Ladder(f"{call}, killed {when} it", "file", when, call=call)
        for call in FILE_CALLS
        for when in ("before", "after")
    ),
)


def climb(ladder: Ladder, number: int, folder: Path, highest: int | None) -> Iterator[Any]:
    """Kill at one call after the other, and yield what came of each, until a run makes no further call.

    :param number: of the ladder.
    :param highest: rungs at most; all there are by default.
    """
    worker = Worker(folder / str(number))
    with contextlib.closing(worker):
        for rung in itertools.count():
            schedule = around_storage_calls(ladder.store, 1000 * number + rung)
            schedule.first, schedule.kinds, schedule.script = ladder.name, [ladder.name], ladder.script(rung)
            result = worker.play(schedule)
            if result.struck or result.problems:
                yield result
            if not result.struck or rung + 1 == highest:
                return


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.storage_calls", description="Kill at every call.")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--only", default="", help="ladders whose name begins so")
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, end)
    tally, lock = Tally(verbose=options.verbose), threading.Lock()
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))

    def tell_all(number: int) -> None:
        if LADDERS[number].name.startswith(options.only):
            for result in climb(LADDERS[number], number, folder, None):
                with lock:
                    tally.tell(result)

    with ThreadPoolExecutor(options.workers) as pool:
        list(pool.map(tell_all, range(len(LADDERS))))
    print(f"\n{tally.table()}")
    shutil.rmtree(folder, ignore_errors=not tally.failed)
    return 1 if tally.failed else 0


if __name__ == "__main__":
    sys.exit(main())
