"""Check that requirements.txt and the lock files of whole environments name the same versions; needs no network."""

from __future__ import annotations

import re
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
_PIN = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[^\]]*\])?==([^\s;\\]+)", re.MULTILINE)


def pins(text: str) -> dict[str, set[str]]:
    """Collect the pinned versions of each package; a package has several where the Python version decides."""
    found: dict[str, set[str]] = {}
    for name, version in _PIN.findall(text):
        found.setdefault(re.sub(r"[-_.]+", "-", name).lower(), set()).add(version)
    return found


def differences(requirements: str, lock: str) -> list[str]:
    """Say what in the requirements is unpinned, or pinned otherwise in the lock."""
    stated, locked = pins(requirements), pins(lock)
    lines = [line.partition("#")[0].strip() for line in requirements.splitlines()]
    problems = [f"not an exact pin: {line}" for line in lines if line and not _PIN.match(line)]
    for name, versions in stated.items():
        if versions != locked.get(name, set()):
            other = ", ".join(sorted(locked.get(name, set()))) or "nothing"
            problems.append(f"{name}: requirements.txt has {', '.join(sorted(versions))}, the lock has {other}")
    return problems


def main() -> int:
    """Print the differences."""
    requirements = (PROJECT / "requirements.txt").read_text(encoding="utf-8")
    locks = [PROJECT / "requirements" / f"{name}.lock" for name in ("dev", "distributed")]
    problems = [
        f"{lock.name}: {problem}"
        for lock in locks
        for problem in differences(requirements, lock.read_text(encoding="utf-8"))
    ]
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        print("run `make lock` after a change of requirements.txt", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
