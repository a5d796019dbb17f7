from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from scripts.processes import LOOPBACK

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
PARTS_OF_THE_PROJECT = ("Makefile", "dags", "include", "plugins", "requirements", "requirements.txt", "scripts")

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1500)]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Copy the project to a path with a space, with the environment that is there."""
    if not (ROOT / ".venv" / "dev.lock").exists():
        pytest.skip("needs the environment that `make setup` builds")
    folder = tmp_path / "a check out"
    folder.mkdir()
    for name in PARTS_OF_THE_PROJECT:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    (folder / ".venv").symlink_to(ROOT / ".venv")
    return folder


@pytest.fixture
def port_8080_taken() -> Iterator[None]:
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind((LOOPBACK, 8080))
            server.listen()
        except OSError:
            pass  # somebody else has it, which is the same to us
        yield


def environment(**more: str) -> dict[str, str]:
    home = {name: os.environ[name] for name in ("HOME", "PATH", "TMPDIR") if name in os.environ}
    return {**home, "LC_ALL": "C", **more}


def processes_of(folder: Path) -> list[str]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and Path(process.cwd()).is_relative_to(folder):
                found.append(f"{process.pid} {' '.join(process.cmdline())}")
        except psutil.Error:
            continue
    return found


def read_until(process: subprocess.Popen[str], text: str) -> list[str]:
    """Read lines until one holds the text, or the process has closed its output."""
    lines: list[str] = []
    for line in process.stdout or ():
        lines.append(line)
        if text in line:
            break
    return lines


@pytest.mark.usefixtures("port_8080_taken")
def test_make_run_archives_a_meeting_and_leaves_no_process(checkout: Path) -> None:
    process = subprocess.Popen(
        ["make", "run"],
        cwd=checkout,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
    )
    watchdog = threading.Timer(900, process.kill)
    watchdog.start()
    try:
        output = "".join(read_until(process, "stays up"))
        assert "Quarterly planning: archived, in dt=" in output, output
        rows = [line for line in output.splitlines() if line.endswith(".wav")]
        assert len(rows) == 9
        assert "  NO  " not in output
        (folder,) = re.findall(r"archived, in (\S+)", output)
        assert re.search(rf"^Listen    http://\S+/recall/archive/{folder}/$", output, re.MULTILINE)
        assert ":8080" not in output
        assert (checkout / "archive").is_dir()
        assert oct((checkout / ".run").stat().st_mode & 0o777) == "0o700"
        assert oct((checkout / ".run" / "airflow" / "passwords.json").stat().st_mode & 0o777) == "0o600"
        assert "already running in this folder" in second_run(checkout)
        assert processes_of(checkout)
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=300)
        watchdog.cancel()
    deadline = time.monotonic() + 120
    while processes_of(checkout) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert processes_of(checkout) == []


def second_run(checkout: Path) -> str:
    result = subprocess.run(
        ["make", "run"],
        cwd=checkout,
        env=environment(),
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )
    assert result.returncode == 2
    return result.stderr
