"""Measure the engine beside its peers and write what was seen: `python -m bench`."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.ends import NETWORKS, PLAIN, PROJECT, Ends, Network
from bench.engines import Engine, Job, Workload, ours, peers, versions
from bench.machine import machine
from bench.measure import EngineError, run

RESULTS = PROJECT / "bench" / "results" / "latest.json"
WORKLOADS = (Workload(200, 2**20), Workload(20, 64 * 2**20), Workload(1, 2**30))
QUICK = (Workload(50, 2**20), Workload(4, 64 * 2**20), Workload(1, 256 * 2**20))
ENOUGH_SECONDS = 20
"""A run that takes longer is not repeated."""


def compare(
    network: Network, engines: list[Engine], workloads: tuple[Workload, ...], rounds: int
) -> list[dict[str, Any]]:
    """Run each engine some times on each workload, taking turns, and check what it delivered."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="bench-") as name, Ends(network, Path(name)) as ends:
        for workload in workloads:
            job = Job(ends, workload, Path(name))
            left = [engine for engine in engines if engine.takes(job)]
            for number in range(rounds):
                for engine in list(left):
                    row: dict[str, Any] = {"network": network.name, "workload": workload.name, "engine": engine.name}
                    row |= {"bytes": workload.bytes, **measured(engine, job)}
                    print(f"{network.name:8} {workload.name:12} {number + 1} {engine.name:22} {shown(row)}", flush=True)
                    rows.append(row)
                    if "error" in row or row["wall"] > ENOUGH_SECONDS:
                        left.remove(engine)
    return rows


def measured(engine: Engine, job: Job) -> dict[str, Any]:
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


def shown(row: dict[str, Any]) -> str:
    """Return a row's figures for a person."""
    if "error" in row:
        return str(row["error"])[-300:]
    wall, gib, peak = row["wall"], row["bytes"] / 2**30, row["peak"] / 1e6
    return f"{wall:7.2f} s {gib * 1024 / wall:6.0f} MiB/s {row['cpu'] / gib:6.2f} CPU s/GiB {peak:5.0f} MB"


def checkouts(paths: list[Path]) -> list[Engine]:
    """Return our engine as it is in each checkout; this one where none is named."""
    if not paths:
        return [ours(PROJECT)]
    return [ours(path, f"ours at {revision(path)}") for path in paths]


def revision(path: Path) -> str:
    """Return the short name of the commit that is checked out."""
    told = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=path, capture_output=True, text=True)
    return told.stdout.strip() or path.name


def main() -> int:
    """Measure, keep the figures, and write the document anew when all was measured."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="smaller workloads, once each; the document stays as it is"
    )
    parser.add_argument("--ours", type=Path, action="append", default=[], help="a checkout to measure; may be repeated")
    parser.add_argument("--network", choices=NETWORKS, action="append", help="only these links; may be repeated")
    parser.add_argument(
        "--engine", action="append", default=[], help="only engines whose name has this; may be repeated"
    )
    parser.add_argument("--rounds", type=int, default=5, help="runs of each engine; default 5")
    options = parser.parse_args()
    others, missing = peers()
    for name in missing:
        print(f"not here: {name}", file=sys.stderr)
    engines = [*checkouts(options.ours), *others]
    if options.engine:
        engines = [engine for engine in engines if any(word in engine.name for word in options.engine)]
    rows: list[dict[str, Any]] = []
    for name in options.network or NETWORKS:
        network = NETWORKS[name]
        if options.quick:
            chosen = [engine for engine in engines if network is PLAIN or not engine.is_slow]
            rows += compare(network, chosen, QUICK, rounds=1)
        else:
            rows += compare(network, engines, WORKLOADS, options.rounds)
    if not options.quick:
        keep({"machine": machine(), "versions": versions(), "missing": missing, "revision": revision(PROJECT)}, rows)
    return 1 if any("error" in row for row in rows) else 0


def keep(about: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Put rows in the place of earlier ones of the same network."""
    earlier = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    networks = {row["network"] for row in rows}
    runs = [row for row in earlier.get("runs", []) if row["network"] not in networks] + rows
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({**earlier, **about, "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
