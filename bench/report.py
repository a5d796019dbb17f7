"""Write the tables of docs/performance.md anew from the figures that are kept: `python -m bench.report`.

The text around the tables is written by hand; each table stands between two marks.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench.ends import NETWORKS, PLAIN, PROJECT, RGW, SHAPED, TLS
from bench.results import PATH, Figures, load, number

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

DOCUMENT = PROJECT / "docs" / "performance.md"
SMALL, MEDIUM, LARGE = "200 × 1 MiB", "20 × 64 MiB", "1 × 1 GiB"
OURS = "ours"


@dataclass(frozen=True)
class Gate:
    """A figure that is to be reached.

    :param what: what is measured.
    :param value: reads it from all that is kept; a LookupError means that it was not measured.
    :param gate: what must be reached.
    :param stretch: what would be very good.
    :param at_most: whether less is better.
    """

    what: str
    value: Callable[[dict[str, Any], Figures], float]
    gate: float
    stretch: float
    at_most: bool = False

    def row(self, kept: dict[str, Any], figures: Figures) -> list[str]:
        """Return the gate as a row of a table."""
        sign = "≤" if self.at_most else "≥"
        limits = [f"{sign} {self.gate:g}", f"{sign} {self.stretch:g}"]
        try:
            value = self.value(kept, figures)
        except LookupError:
            return [self.what, *limits, "not measured", ""]
        reached = [limit for limit in (self.gate, self.stretch) if (value <= limit if self.at_most else value >= limit)]
        return [self.what, *limits, number(value), ("**no**", "gate", "stretch")[len(reached)]]


def _own(what: str, network: str, workload: str) -> Callable[[dict[str, Any], Figures], float]:
    return lambda kept, figures: figures.median(what, network, workload, OURS)


def _times(what: str, network: str, workload: str, engine: str) -> Callable[[dict[str, Any], Figures], float]:
    """Return how many times more than ours another engine takes."""
    return lambda kept, figures: (
        figures.median(what, network, workload, engine) / figures.median(what, network, workload, OURS)
    )


def _memory(case: str, figure: str = "peak") -> Callable[[dict[str, Any], Figures], float]:
    return lambda kept, figures: float(kept["memory"][case][figure]) / 1e6


def _growth(kept: dict[str, Any], figures: Figures) -> float:
    return _memory("1 × 1 GiB")(kept, figures) - _memory("1 × 64 MiB")(kept, figures)


def _airflow(*names: str) -> Callable[[dict[str, Any], Figures], float]:
    def value(kept: dict[str, Any], figures: Figures) -> float:
        found: Any = kept["airflow"]
        for name in names:
            found = found[name]
        return float(found)

    return value


def _over(name: str, base: str) -> Callable[[dict[str, Any], Figures], float]:
    return lambda kept, figures: excess(kept["airflow"], name, base)


def _memory_over_empty(kept: dict[str, Any], figures: Figures) -> float:
    found = kept["airflow"]["memory"]
    return float(max(found["archive"][what] - found["empty"][what] for what in ("peak", "resident"))) / 1e6


def excess(found: dict[str, Any], name: str, base: str) -> float:
    """Return how many per cent a mapped task takes over one that does nothing."""
    return float(100 * (found[name] / found[base] - 1))


_GUIDE, _BOTO3, _OPERATOR = "guide's script", "boto3 upload_fileobj", "HttpToS3Operator"
_RELAY, _RCLONE, _RANGES = "kernel relay", "rclone copyurl", "rclone multi-thread"
_UPLOAD = "pure upload"
_WHOLE_OR_INNER = (("", ""), ("inner_", ", start and imports left out"))
"""What stands before a figure's name, and behind a gate's."""

GATES = (
    *(
        Gate(
            f"CPU s/GiB, {network.name}, {workload}{left_out}",
            _own(f"{inner}cpu", network.name, workload),
            *limits,
            at_most=True,
        )
        for network, limits in ((PLAIN, (1.5, 1.2)), (TLS, (3.2, 2.6)))
        for workload in (MEDIUM, LARGE)
        for inner, left_out in _WHOLE_OR_INNER
    ),
    *(
        Gate(
            f"speed against the kernel relay, {workload}{left_out}",
            _times(f"{inner}wall", PLAIN.name, workload, _RELAY),
            0.55,
            0.65,
        )
        for workload in (MEDIUM, LARGE)
        for inner, left_out in _WHOLE_OR_INNER
    ),
    Gate("MiB/s, plain, 200 × 1 MiB, start and imports left out", _own("inner_speed", PLAIN.name, SMALL), 500, 900),
    *(
        Gate(
            f"{label} of {name} for each of ours, plain, {workload}{left_out}",
            _times(f"{inner}{what}", PLAIN.name, workload, name),
            *limits,
        )
        for name, what, label, limits in (
            (_GUIDE, "cpu", "CPU", (5, 7)),
            (_GUIDE, "wall", "wall time", (5, 8)),
            (_BOTO3, "cpu", "CPU", (2.5, 3.5)),
            (_BOTO3, "wall", "wall time", (2.5, 4)),
        )
        for workload in (MEDIUM, LARGE)
        for inner, left_out in _WHOLE_OR_INNER
    ),
    Gate(
        "memory of HttpToS3Operator for each of ours, 1 × 1 GiB", _times("peak", PLAIN.name, LARGE, _OPERATOR), 50, 90
    ),
    Gate("CPU of HttpToS3Operator for each of ours, 1 × 1 GiB", _times("cpu", PLAIN.name, LARGE, _OPERATOR), 6, 10),
    *(
        Gate(
            f"speed against rclone copyurl, S3-like, {workload}",
            _times("wall", SHAPED.name, workload, _RCLONE),
            *limits,
        )
        for workload, limits in ((SMALL, (0.9, 1.1)), (MEDIUM, (1.4, 1.8)), (LARGE, (15, 28)))
    ),
    Gate("speed against rclone's 64 ranges, S3-like, 1 × 1 GiB", _times("wall", SHAPED.name, LARGE, _RANGES), 1.3, 1.9),
    *(
        Gate(
            f"speed against pure upload to Ceph's gateway, {workload}{_WHOLE_OR_INNER[1][1]}",
            _times("inner_wall", RGW.name, workload, _UPLOAD),
            0.65,
            0.8,
        )
        for workload in ("100 × 1 MiB", "8 × 64 MiB")
    ),
    Gate("speed against rclone copyurl, plain, 20 × 64 MiB", _times("wall", PLAIN.name, MEDIUM, _RCLONE), 0.7, 0.9),
    Gate("peak memory, MB, 4 streams", _own("peak", PLAIN.name, MEDIUM), 40, 25, at_most=True),
    Gate("peak memory, MB, 64 streams at once, 256 × 1 MiB", _memory("256 × 1 MiB"), 80, 50, at_most=True),
    Gate("peak memory, MB, 64 streams at once, 64 × 64 MiB", _memory("64 × 64 MiB"), 80, 50, at_most=True),
    Gate("growth of peak memory, MB, 64 MiB to 1 GiB", _growth, 4, 0, at_most=True),
    Gate("Airflow: CPU s of a mapped task", _airflow("task_cpu"), 0.6, 0.4, at_most=True),
    *(
        Gate(f"Airflow: CPU % of a mapped task of {size} over an empty {kind}", _over(name, base), 15, 5, at_most=True)
        for base, kind in (("empty_task_cpu", "`@task`"), ("bare_task_cpu", "operator"))
        for name, size in (("tiny_task_cpu", "1000 bytes"), ("task_cpu", "1 MiB"))
    ),
    Gate("Airflow: MB of a task's process with 64 MiB over an empty one's", _memory_over_empty, 48, 24, at_most=True),
    Gate("Airflow: s of a run with 200 × 1 MiB", _airflow("runs", "200", "wall"), 15, 8, at_most=True),
    Gate("Airflow: s of a run with 1000 × 1 MiB", _airflow("runs", "1000", "wall"), 30, 12, at_most=True),
    Gate("Airflow: s of a run with 1000 × 1000 bytes", _airflow("tiny_runs", "1000", "wall"), 30, 12, at_most=True),
    Gate(
        "Airflow: CPU s of the Dag file's parse over a bare one", _airflow("parse_over_bare"), 0.1, 0.02, at_most=True
    ),
)


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table in Markdown."""
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def comparison(figures: Figures, network: str) -> str:
    """Return the table of all engines on some links: a cell holds speed, CPU and memory."""
    workloads = figures.workloads(network)

    def cell(workload: str, engine: str) -> str:
        found = [figures.spread(what, network, workload, engine) for what in ("speed", "cpu", "peak")]
        return " · ".join(str(one) if what != 2 else number(one.middle) for what, one in enumerate(found) if one) or "–"

    head = ["MiB/s · CPU s/GiB · MB", *workloads]
    return table(
        head, ([engine, *(cell(workload, engine) for workload in workloads)] for engine in figures.engines(network))
    )


def about(kept: dict[str, Any]) -> str:
    """Say what was measured on what."""
    machine = kept["machine"]
    parts = " · ".join(f"{name} {version}" for name, version in kept["versions"].items())
    lines = [f"{machine['date']}: {machine['processor']}, {machine['memory']}, Linux {machine['kernel']}.", f"{parts}."]
    if kept["missing"]:
        lines.append(f"Not to be had there: {', '.join(kept['missing'])}.")
    return "\n".join(lines)


def memory(kept: dict[str, Any]) -> str:
    """Return the table of memory."""
    rows = (
        [name, *(f"{row[key] / 1e6:.0f}" for key in ("peak", "resident")), f"{row['wall']:.1f}"]
        for name, row in kept["memory"].items()
    )
    return table(["files", "PSS, MB", "VmHWM, MB", "s"], rows)


def airflow(kept: dict[str, Any]) -> str:
    """Return the tables of Airflow's own share; what was not measured is left out."""
    found = kept["airflow"]
    shares = table(["", "CPU s"], ([name, number(found[key])] for key, name in AIRFLOW_FIGURES.items() if key in found))
    parts = [shares]
    for base, kind in (("empty_task_cpu", "`@task`"), ("bare_task_cpu", "operator")):
        if "tiny_task_cpu" in found and base in found:
            tiny, small = (f"{excess(found, name, base):.0f} %" for name in ("tiny_task_cpu", "task_cpu"))
            parts.append(f"Over the empty {kind}, that is {tiny} for 1000 bytes and {small} for 1 MiB.")
    if "memory" in found:
        rows = {"does nothing": "empty", "archives 64 MiB": "archive"}
        sizes = ((f"{found['memory'][one][key] / 1e6:.0f}" for key in ("peak", "resident")) for one in rows.values())
        processes = ([f"a task's process that {name}", *row] for name, row in zip(rows, sizes, strict=True))
        parts.append(table(["", "PSS, MB", "VmHWM, MB"], processes))
    if "database" in found:
        parts.append(f"Whole runs, with {found['database']} and `parallelism` {found['parallelism']}:")
    parts += [_runs(found["runs"], found.get("tiny_runs", {})), *slope(found["runs"])]
    if "profile" in found:
        kinds = ([kind, f"{share:.0%}"] for kind, share in found["profile"].items())
        parts.append(table(["where the CPU time of mapped tasks goes", "share"], kinds))
    return "\n\n".join((*parts, AIRFLOW_PLOT))


def _runs(runs: dict[str, Any], tiny: dict[str, Any]) -> str:
    """Return the table of whole runs: of parts of 1 MiB, and beside them of parts that are next to nothing."""
    head = ["participants", "mapped tasks", "run, s", "CPU s of all of Airflow", "CPU s a participant"]
    head += ["CPU s of the simulator", "run with 1000 bytes each, s", "its CPU s"]

    def row(count: str, run: dict[str, Any]) -> list[str]:
        small = [str(run["tasks"]), *(number(run[what]) for what in ("wall", "cpu")), number(run["cpu"] / int(count))]
        source = number(run["source_cpu"]) if "source_cpu" in run else "–"
        beside = [number(tiny[count][what]) if count in tiny else "–" for what in ("wall", "cpu")]
        return [count, *small, source, *beside]

    return table(head, (row(count, run) for count, run in runs.items()))


def slope(runs: dict[str, Any]) -> list[str]:
    """Say what one more participant costs where participants share tasks: the line through the last two runs."""
    few, many = ([0, 0, *sorted(int(count) for count in runs if int(count) > BATCHED)])[-2:]
    if not few:
        return []
    cpu, wall = ((runs[str(many)][what] - runs[str(few)][what]) / (many - few) for what in ("cpu", "wall"))
    more = f"{1000 * cpu:.0f} ms of CPU and {1000 * wall:.0f} ms of time"
    return [f"From {few} to {many} participants, each more costs {more}."]


BATCHED = 32
"""Up to so many participants, each has a mapped task of its own."""

AIRFLOW_PLOT = "![What whole runs cost against the number of participants](images/performance-airflow.svg)"


AIRFLOW_FIGURES = {
    "empty_task_cpu": "a mapped `@task` that does nothing, in a bare Dag file",
    "bare_task_cpu": "a mapped operator that does nothing, in a bare Dag file",
    "tiny_task_cpu": "a mapped task of `archive_participant`, one participant of 1000 bytes",
    "task_cpu": "a mapped task of `archive_participant`, one participant of 1 MiB",
    "parse_over_bare": "parsing `dags/archive_meeting.py`, over a bare Dag file",
}


PLOTS = (
    "![MiB/s of each engine](images/performance-speed.svg)\n\n![CPU s/GiB of each engine](images/performance-cpu.svg)"
)


def gates(kept: dict[str, Any]) -> str:
    """Return the table of what was to be reached."""
    figures = Figures(kept["runs"])
    return table(["what", "gate", "stretch", "reached", "holds"], (gate.row(kept, figures) for gate in GATES))


def main() -> None:
    """Put each table in its place, and draw the plots where matplotlib is to be had."""
    kept = load()
    figures = Figures(kept["runs"])
    parts = {"about": about(kept), "gates": gates(kept), "plots": PLOTS}
    parts |= {name: comparison(figures, name) for name in (*NETWORKS, RGW.name) if figures.engines(name)}
    parts |= {name: part(kept) for name, part in (("memory", memory), ("airflow", airflow)) if name in kept}
    text = DOCUMENT.read_text(encoding="utf-8")
    for name, part in parts.items():
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}\n\n{part}\n\n{end}{rest.partition(end)[2]}"
    DOCUMENT.write_text(text, encoding="utf-8")
    drawing = PROJECT / ".venv-bench" / "bin" / "python"
    if drawing.exists():
        subprocess.run([drawing, PROJECT / "bench" / "plot.py", PATH, DOCUMENT.parent / "images"], check=True)


if __name__ == "__main__":
    main()
