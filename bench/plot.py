"""Draw the comparison: `.venv-bench/bin/python bench/plot.py RESULTS FOLDER`; needs matplotlib."""

import json
import sys
from pathlib import Path
from statistics import median

import matplotlib as mpl

mpl.use("svg")
from matplotlib import pyplot

mpl.rcParams |= {"svg.hashsalt": "bench", "svg.fonttype": "none"}  # the same figures give the same small file
COLOURS = {"ours": "#2a7f62", "kernel relay": "#999999"}


def draw(runs: list, title: str, figure, path: Path) -> None:
    """Draw one bar for each engine, at its median, with a line from its least to its most."""
    networks = list(dict.fromkeys(row["network"] for row in runs))
    workloads = list(dict.fromkeys(row["workload"] for row in runs))
    sheet, axes = pyplot.subplots(
        len(networks), len(workloads), figsize=(12, 2.6 * len(networks)), squeeze=False, layout="constrained"
    )
    for line, network in zip(axes, networks, strict=True):
        for place, workload in zip(line, workloads, strict=True):
            rows = [row for row in runs if (row["network"], row["workload"]) == (network, workload)]
            names = list(dict.fromkeys(row["engine"] for row in rows))[::-1]
            for name in names:
                values = [figure(row) for row in rows if row["engine"] == name]
                middle = median(values)
                place.barh(name, middle, color=COLOURS.get(name.split(" at ")[0], "#7da7d9"))
                place.plot([min(values), max(values)], [name, name], color="black", linewidth=1)
                place.annotate(f" {middle:.3g}", (max(values), name), va="center", fontsize=8)
            place.set_title(f"{network}, {workload}", fontsize=9)
            place.tick_params(labelsize=8)
            place.spines[["top", "right"]].set_visible(False)
            place.margins(x=0.15)
    sheet.suptitle(title)
    sheet.savefig(path, metadata={"Date": None})


def draw_growth(runs: dict, path: Path) -> None:
    """Draw what whole runs of Airflow cost against the number of participants."""
    counts = sorted(map(int, runs))
    sheet, axes = pyplot.subplots(1, 2, figsize=(12, 3.2), layout="constrained")
    for place, what, title in zip(
        axes, ("wall", "cpu"), ("seconds from start to end", "CPU s of all of Airflow"), strict=True
    ):
        place.plot(counts, [runs[str(count)][what] for count in counts], "o-", color=COLOURS["ours"])
        for count in counts:
            place.annotate(f" {runs[str(count)][what]:.3g}", (count, runs[str(count)][what]), fontsize=8)
        place.set_title(title, fontsize=9)
        place.set_xlabel("participants", fontsize=8)
        place.set_ylim(bottom=0)
        place.tick_params(labelsize=8)
        place.spines[["top", "right"]].set_visible(False)
    sheet.savefig(path, metadata={"Date": None})


def main() -> None:
    """Draw speed, CPU, and Airflow's cost."""
    results, folder = map(Path, sys.argv[1:])
    kept = json.loads(results.read_text())
    runs = [row for row in kept["runs"] if "error" not in row and row["network"] != "rgw"]
    folder.mkdir(exist_ok=True)
    if "airflow" in kept:
        draw_growth(kept["airflow"]["runs"], folder / "performance-airflow.svg")
    draw(
        runs, "MiB/s, more is better", lambda row: row["bytes"] / 2**20 / row["wall"], folder / "performance-speed.svg"
    )
    draw(
        runs, "CPU s/GiB, less is better", lambda row: row["cpu"] / row["bytes"] * 2**30, folder / "performance-cpu.svg"
    )


if __name__ == "__main__":
    main()
