"""How much memory our engine takes, and that it does with little: `python -m bench.memory`."""

from __future__ import annotations

import argparse
import os
import tempfile
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.ends import PLAIN, PROJECT, Ends
from bench.engines import FEW, MANY, Job, Workload, ours
from bench.measure import run
from bench.results import keep

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LIMIT = 256 * 2**20
CASES = (
    Workload(1, 64 * 2**20),
    Workload(1, 2**30),
    Workload(1, 10 * 2**30),
    Workload(256, 2**20),
    Workload(64, 64 * 2**20),
)


@contextmanager
def limited() -> Iterator[Callable[[], object] | None]:
    """Make a memory cgroup; yield what a process calls to enter it, or None where that is not possible."""
    version1, version2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
    top, name = (version1, "memory.limit_in_bytes") if version1.is_dir() else (version2, "memory.max")
    group = top / f"bench-{os.getpid()}"
    try:
        group.mkdir()
    except OSError:
        yield None
        return
    try:
        try:
            (group / name).write_text(str(LIMIT))
        except OSError:
            yield None
        else:
            yield lambda: (group / "cgroup.procs").write_text(str(os.getpid()))
    finally:
        group.rmdir()


def main() -> None:
    """Measure each case, the largest body with a limit too, and keep the figures."""
    argparse.ArgumentParser(prog="python -m bench.memory", description=__doc__).parse_args()
    engine = ours(PROJECT)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as name, Ends(PLAIN, Path(name)) as ends, limited() as enter:
        cases: list[tuple[str, Workload, Callable[[], object] | None]] = [(one.name, one, None) for one in CASES]
        if enter is None:
            print("a memory cgroup can't be made here, so nothing is said about a limit")
        else:
            cases.append((f"{CASES[2].name}, in {LIMIT >> 20} MiB", CASES[2], enter))
        for label, workload, prepare in cases:
            job = Job(ends, workload, Path(name), MANY if workload.count > 1 else FEW)
            ends.stored(forget=True)
            cost = run(engine.command(job), engine.environment(job), prepare=prepare)
            if sum(one["bytes"] for one in ends.stored().values()) != workload.bytes:
                raise SystemExit(f"{label}: not all was delivered")
            found[label] = asdict(cost)
            print(
                f"{label:28} {cost.peak / 1e6:6.0f} MB PSS {cost.resident / 1e6:6.0f} MB VmHWM {cost.wall:6.1f} s",
                flush=True,
            )
    keep({"memory": found})


if __name__ == "__main__":
    main()
