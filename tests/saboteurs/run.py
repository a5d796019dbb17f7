"""Break the code on purpose, one small way at a time, and see that a test notices.

Each saboteur of ``saboteurs.json`` replaces one piece of text in one file of a private copy of the project, runs the
tests that are said to notice it, and takes the change back. The project itself is never touched.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

ROOT = Path(__file__).resolve().parents[2]
LIST = Path(__file__).with_name("saboteurs.json")

COPIED = ("dags", "include", "plugins", "scripts", "tests", "pyproject.toml", "README.md")
"""What the tests need of the project."""

TIMEOUT = 120.0
"""Seconds that one saboteur's tests may take on a busy machine; idle, none needs ten."""

PASSED, FAILED = 0, 1  # pytest's exit codes; all others say that nothing was tested

# A change that merely breaks the program proves nothing about its tests.
BROKEN = re.compile(r"- (SyntaxError|IndentationError|NameError|UnboundLocalError|ImportError|ModuleNotFoundError)\b")
_SUMMARY = re.compile(r"^(?:FAILED|ERROR) (?P<test>\S.*?)(?: - (?P<reason>.*))?$", re.MULTILINE)


@dataclass(frozen=True)
class Saboteur:
    """One small, deliberate bug.

    :param breaks: what it breaks, in one line.
    :param classes: the ids of the failure catalogue whose promise it breaks.
    :param file: the file that it changes, relative to the project.
    :param find: a text that occurs there exactly once.
    :param replace: what stands there instead.
    :param tests: pytest node ids, at least one of which must fail.
    """

    id: str
    breaks: str
    classes: tuple[str, ...]
    file: str
    find: str
    replace: str
    tests: tuple[str, ...]

    def applied(self, text: str) -> str:
        """Return the file's text with the bug in it.

        :raises ValueError: when the text to replace does not occur exactly once.
        """
        if text.count(self.find) != 1:
            raise ValueError(f"its text occurs {text.count(self.find)} times in {self.file}")
        return text.replace(self.find, self.replace)


@dataclass(frozen=True)
class Verdict:
    """What became of one saboteur.

    :param word: ``caught``, or why it was not: ``survived``, ``no longer fits``, ``broke the program``, ``timed out``,
        ``nothing tested``.
    :param detail: the test that failed, or what went wrong.
    """

    word: str
    seconds: float
    detail: str


def load(path: Path = LIST) -> list[Saboteur]:
    """Read the list of saboteurs."""
    return [
        Saboteur(**{**entry, "classes": tuple(entry["classes"]), "tests": tuple(entry["tests"])})
        for entry in json.loads(path.read_text("utf-8"))
    ]


def copy_project(target: Path) -> Path:
    """Copy what the tests need into a folder."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, target / name)
    return target


def run_tests(copy: Path, tests: Iterable[str], timeout: float) -> tuple[int | None, str]:
    """Run tests in a copy of the project.

    :return: pytest's exit code, None when it had to be ended; and what it printed.
    """
    options = ["-x", "-q", "-rfE", "--tb=no", "--no-header", "-p", "no:cacheprovider", "--hypothesis-seed=0"]
    environment = {
        **os.environ,
        "PYTHONPATH": str(copy),
        # Two versions of one file may be equally long and written within one second.
        "PYTHONDONTWRITEBYTECODE": "1",
        "COLUMNS": "400",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", *options, *tests],
        cwd=copy,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        printed, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        printed, _ = process.communicate()
        return None, printed
    return process.returncode, printed


def judge(saboteur: Saboteur, copy: Path, timeout: float = TIMEOUT) -> Verdict:
    """Let one saboteur into a copy of the project, run its tests, and throw it out again."""
    path = copy / saboteur.file
    whole = path.read_text("utf-8")
    try:
        sabotaged = saboteur.applied(whole)
    except ValueError as error:
        return Verdict("no longer fits", 0.0, str(error))
    started = time.monotonic()
    path.write_text(sabotaged, "utf-8")
    try:
        code, printed = run_tests(copy, saboteur.tests, timeout)
    finally:
        path.write_text(whole, "utf-8")
    word, detail = _verdict(code, printed)
    return Verdict(word, time.monotonic() - started, detail)


def _verdict(code: int | None, printed: str) -> tuple[str, str]:
    failed = _SUMMARY.search(printed)
    last = printed.strip().rpartition("\n")[2][:160]
    if code is None:
        return "timed out", last
    if code == PASSED:
        return "survived", last
    if code != FAILED or failed is None:
        return "nothing tested", f"pytest ended with {code}: {last}"
    if BROKEN.search(failed[0]):
        return "broke the program", failed[0][:160]
    file, _, test = failed["test"].partition("::")
    return "caught", f"{Path(file).name}::{test}"


def main(arguments: list[str] | None = None) -> int:
    """Run all saboteurs, or one, and print what became of each."""
    parser = argparse.ArgumentParser(prog="make saboteurs", description=__doc__)
    parser.add_argument("--only", default="", help="ids, separated by commas")
    parser.add_argument("-j", type=int, default=1, metavar="N", help="how many at a time")
    parser.add_argument("--timeout", type=float, default=TIMEOUT, help="seconds for one saboteur's tests")
    options = parser.parse_args(arguments)
    saboteurs = load()
    if options.only:
        wanted = set(options.only.split(","))
        if unknown := wanted - {one.id for one in saboteurs}:
            parser.error(f"no such saboteur: {', '.join(sorted(unknown))}")
        saboteurs = [one for one in saboteurs if one.id in wanted]
    with tempfile.TemporaryDirectory(prefix="saboteurs-") as folder:
        copies: queue.SimpleQueue[Path] = queue.SimpleQueue()
        for number in range(options.j):
            copies.put(copy_project(Path(folder) / str(number)))
        return _run_all(saboteurs, copies, options.j, options.timeout)


def _run_all(saboteurs: list[Saboteur], copies: queue.SimpleQueue[Path], workers: int, timeout: float) -> int:
    copy = copies.get()
    tests = list(dict.fromkeys(test for one in saboteurs for test in one.tests))
    print(f"without a saboteur: {len(tests)} tests ...", flush=True)
    code, printed = run_tests(copy, tests, timeout + 10 * len(tests))
    copies.put(copy)
    print(printed.strip().rpartition("\n")[2], flush=True)
    if code != PASSED:
        print(f"{printed}\nwithout a saboteur the tests must pass; nothing was tried", file=sys.stderr)
        return 1

    def one_at_a_time(saboteur: Saboteur) -> Verdict:
        copy = copies.get()
        try:
            return judge(saboteur, copy, timeout)
        finally:
            copies.put(copy)

    width = max(len(one.id) for one in saboteurs)
    caught = 0
    pool = ThreadPoolExecutor(workers)
    try:
        for saboteur, verdict in zip(saboteurs, pool.map(one_at_a_time, saboteurs), strict=True):
            caught += verdict.word == "caught"
            print(
                f"{saboteur.id:{width}}  {' '.join(saboteur.classes):11}  {verdict.word:8}  {verdict.seconds:5.1f} s  "
                f"{saboteur.breaks if verdict.word == 'survived' else verdict.detail}",
                flush=True,
            )
    finally:
        pool.shutdown(cancel_futures=True)
    print(f"{caught} of {len(saboteurs)} caught")
    return 0 if caught == len(saboteurs) else 1


if __name__ == "__main__":
    sys.exit(main())
