"""Measure the engine beside its peers and write what was seen: `python -m bench`."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import ceph, report
from bench.ceph import GatewayEnds
from bench.ends import NETWORKS, PLAIN, PROJECT, RGW, SHAPED, Ends, Network
from bench.engines import FEW, MANY, Engine, Job, Workload, ours, peers, versions
from bench.machine import machine
from bench.measure import EngineError, run
from bench.results import keep

if TYPE_CHECKING:
    from collections.abc import Iterator

    Row = dict[str, Any]

WORKLOADS = (Workload(200, 2**20), Workload(20, 64 * 2**20), Workload(1, 2**30))
ON_CEPH = (Workload(100, 2**20), Workload(8, 64 * 2**20))
"""Less, since a store that keeps everything in memory keeps what was removed for a while."""
QUICK = (Workload(50, 2**20), Workload(4, 64 * 2**20), Workload(1, 256 * 2**20))
ENOUGH_SECONDS = 20
"""A run that takes longer is not repeated."""


def compare(network: Network, engines: list[Engine], workloads: list[Workload], rounds: int) -> Iterator[list[Row]]:
    """Run each engine some times on each workload, taking turns, and yield what was seen of each workload."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name, _ends(network, Path(name)) as ends:
        for workload in workloads:
            job = Job(ends, workload, Path(name), MANY if network is SHAPED else FEW)
            left = [engine for engine in engines if engine.takes(job)]
            rows: list[Row] = []
            for number in range(rounds):
                for engine in list(left):
                    row: Row = {"network": network.name, "workload": workload.name, "engine": engine.name}
                    row |= {"bytes": workload.bytes, **measured(engine, job)}
                    print(f"{network.name:8} {workload.name:12} {number + 1} {engine.name:22} {shown(row)}", flush=True)
                    rows.append(row)
                    if "error" in row or row["wall"] > ENOUGH_SECONDS:
                        left.remove(engine)
            yield rows


def _ends(network: Network, folder: Path) -> Ends:
    return GatewayEnds(folder) if network is RGW else Ends(network, folder)


def measured(engine: Engine, job: Job) -> Row:
    """Run an engine once; say what it took, or what went wrong."""
    command, env = engine.command(job), engine.environment(job)
    job.ends.stored(forget=True)
    try:
        cost = run(command, env)
    except EngineError as error:
        return {"error": str(error)}
    stored = {key: one["bytes"] for key, one in job.ends.stored().items()}
    if stored != dict.fromkeys(job.keys, job.workload.size):
        return {"error": f"delivered {len(stored)} objects of {sum(stored.values())} bytes"}
    return asdict(cost)


def shown(row: Row) -> str:
    """Return a row's figures for a person."""
    if "error" in row:
        return str(row["error"])[-300:]
    wall, gib, peak = row["wall"], row["bytes"] / 2**30, row["peak"] / 1e6
    text = f"{wall:7.2f} s {gib * 1024 / wall:6.0f} MiB/s {row['cpu'] / gib:6.2f} CPU s/GiB {peak:5.0f} MB"
    inside = row["inside"]
    return f"{text}; work alone {inside['wall']:6.2f} s {inside['cpu'] / gib:6.2f} CPU s/GiB" if inside else text


def checkouts(paths: list[Path]) -> list[Engine]:
    """Return our engine as it is in each checkout; this one where none is named."""
    folders = [path.resolve() for path in paths or [PROJECT]]
    return [ours(path, report.OURS if path == PROJECT else f"ours at {revision(path)}") for path in folders]


def revision(path: Path) -> str:
    """Return the short name of the commit that is checked out."""
    told = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=path, capture_output=True, text=True)
    return told.stdout.strip() or path.name


def main() -> int:
    """Measure, keep the figures and write the document anew; a quick look is only shown."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="smaller workloads, once each; the document stays as it is"
    )
    parser.add_argument("--ours", type=Path, action="append", default=[], help="a checkout to measure; may be repeated")
    parser.add_argument(
        "--network", choices=[*NETWORKS, RGW.name], action="append", help="only these links; may be repeated"
    )
    parser.add_argument(
        "--engine", action="append", default=[], help="only engines whose name has this; may be repeated"
    )
    parser.add_argument("--workload", help="only these files, for example '1 × 1 GiB'")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each engine; default 5")
    options = parser.parse_args()
    others, missing = peers()
    for name in missing:
        print(f"not here: {name}", file=sys.stderr)
    engines = [*checkouts(options.ours), *others]
    if options.engine:
        engines = [engine for engine in engines if any(word in engine.name for word in options.engine)]
    networks = {**NETWORKS, RGW.name: RGW}
    if ceph.missing():
        print(f"not here: Ceph's gateway ({', '.join(ceph.missing())})", file=sys.stderr)
        missing.append("Ceph's gateway")
        del networks[RGW.name]
    facts = {"machine": machine(), "versions": versions(), "missing": missing}
    failed = False
    for network in (networks[name] for name in options.network or networks if name in networks):
        chosen = [engine for engine in engines if not options.quick or network is PLAIN or not engine.is_slow]
        sizes = QUICK if options.quick else ON_CEPH if network is RGW else WORKLOADS
        workloads = [one for one in sizes if options.workload in (None, one.name)]
        for rows in compare(network, chosen, workloads, 1 if options.quick else options.rounds):
            failed |= any("error" in row for row in rows)
            if not options.quick:
                keep({**facts, "runs": rows})
                report.main()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
