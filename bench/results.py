"""The figures that were seen, as they are kept from one command to the next."""

from __future__ import annotations

import json
from dataclasses import dataclass
from statistics import median
from typing import Any

from bench.ends import PROJECT

PATH = PROJECT / "bench" / "results" / "latest.json"


def load() -> dict[str, Any]:
    """Return all that was kept."""
    return dict(json.loads(PATH.read_text())) if PATH.exists() else {}


def keep(found: dict[str, Any]) -> None:
    """Put figures in the place of earlier ones; runs only in the place of those of the same files on the same links."""
    kept = load()
    if "runs" in found:
        anew = {_cell(row) for row in found["runs"]}
        found["runs"] = [row for row in kept.get("runs", []) if _cell(row) not in anew] + found["runs"]
    PATH.parent.mkdir(exist_ok=True)
    PATH.write_text(json.dumps({**kept, **found}, indent=1) + "\n")


def _cell(row: dict[str, Any]) -> tuple[str, str]:
    return row["network"], row["workload"]


@dataclass(frozen=True)
class Spread:
    """Some measurements of one thing."""

    low: float
    middle: float
    high: float
    count: int

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """Sum up measurements; there must be one."""
        return cls(min(values), median(values), max(values), len(values))

    def __str__(self) -> str:
        """Show the median, and the extremes when there were several."""
        if self.count == 1:
            return f"{number(self.middle)} (1)"
        return f"{number(self.middle)} ({number(self.low)}–{number(self.high)})"


def number(value: float) -> str:
    """Show a figure with about three digits."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


class Figures:
    """What the comparison found.

    :param runs: its rows; those that failed count for nothing.
    """

    UNITS = {
        "speed": "MiB/s",
        "cpu": "CPU s/GiB",
        "peak": "MB",
        "wall": "s",
        "inner_speed": "MiB/s",
        "inner_cpu": "CPU s/GiB",
        "inner_wall": "s",
    }

    def __init__(self, runs: list[dict[str, Any]]) -> None:
        self._runs = [row for row in runs if "error" not in row]

    def workloads(self, network: str) -> list[str]:
        """Return the names of the workloads on some links, in the order of their runs."""
        return list(dict.fromkeys(row["workload"] for row in self._runs if row["network"] == network))

    def engines(self, network: str) -> list[str]:
        """Return the names of the engines that ran there."""
        return list(dict.fromkeys(row["engine"] for row in self._runs if row["network"] == network))

    def spread(self, what: str, network: str, workload: str, engine: str) -> Spread | None:
        """Sum up one figure, one of :attr:`UNITS`, of an engine's runs."""
        values = [
            _figure(what, row)
            for row in self._runs
            if (row["network"], row["workload"], row["engine"]) == (network, workload, engine)
        ]
        return Spread.of(values) if values else None

    def median(self, what: str, network: str, workload: str, engine: str) -> float:
        """Return one figure's median.

        :raises LookupError: when there was no run.
        """
        found = self.spread(what, network, workload, engine)
        if found is None:
            raise LookupError(f"{engine} was not measured on {network} links with {workload}")
        return found.middle


def _figure(what: str, row: dict[str, Any]) -> float:
    gib = row["bytes"] / 2**30
    taken = row["inside"] if what.startswith("inner_") else row
    if what.endswith("speed"):
        return float(gib * 1024 / taken["wall"])
    if what.endswith("cpu"):
        return float(taken["cpu"] / gib)
    return float(row["peak"] / 1e6 if what == "peak" else taken["wall"])
