"""Who takes part, and how each is started."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench.ends import BUCKET, PLAIN, PROJECT, RGW, Ends

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

RCLONE = PROJECT / ".venv-bench" / "bin" / "rclone"
FEW, MANY = 4, 64
"""Streams at once: where the two cores are the limit, and where the connections are."""


@dataclass(frozen=True)
class Workload:
    """Some files of one size.

    :param count: how many.
    :param size: bytes of each.
    """

    count: int
    size: int

    @property
    def name(self) -> str:
        """What the tables call it."""
        unit, bytes_of = ("GiB", 2**30) if self.size >= 2**30 else ("MiB", 2**20)
        return f"{self.count} × {self.size // bytes_of} {unit}"

    @property
    def bytes(self) -> int:
        """Bytes in all."""
        return self.count * self.size


@dataclass(frozen=True)
class Job:
    """One run of one engine.

    :param ends: where the files come from and go to.
    :param workload: the files.
    :param folder: where the run may keep files of its own.
    :param streams: how many files or ranges an engine that can do several at once shall move at once.
    """

    ends: Ends
    workload: Workload
    folder: Path
    streams: int

    @property
    def keys(self) -> list[str]:
        """Where the files go."""
        return [f"run/{number:05}.mp3" for number in range(self.workload.count)]

    @property
    def urls(self) -> list[str]:
        """Where the files come from."""
        return [self.ends.url(self.workload.size, number) for number in range(self.workload.count)]

    def worklist(self, workers: int) -> str:
        """Write the work list of the engines in Python; return its path."""
        path = self.folder / "work.json"
        work: dict[str, Any] = {
            "urls": self.urls,
            "keys": self.keys,
            "sizes": [self.workload.size] * self.workload.count,
            "endpoint": self.ends.sink,
            "bucket": BUCKET,
            "workers": workers,
            "ca": str(self.ends.authority) if self.ends.authority else None,
        }
        path.write_text(json.dumps(work))
        return str(path)

    def environment(self) -> dict[str, str]:
        """Return what the engine finds in its environment."""
        env = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "TMPDIR": str(self.folder),
            "PYTHONPATH": str(PROJECT),
            "AIRFLOW_HOME": str(self.folder / "airflow"),
            "AWS_ACCESS_KEY_ID": "bench",
            "AWS_SECRET_ACCESS_KEY": "bench",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "RCLONE_CONFIG_SINK_TYPE": "s3",
            "RCLONE_CONFIG_SINK_PROVIDER": "Other",
            "RCLONE_CONFIG_SINK_ENV_AUTH": "true",
            "RCLONE_CONFIG_SINK_REGION": "us-east-1",
            "RCLONE_CONFIG_SINK_ENDPOINT": self.ends.sink,
            "RCLONE_CONFIG_SINK_NO_CHECK_BUCKET": "true",
        }
        if self.ends.authority:
            env |= dict.fromkeys(("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"), str(self.ends.authority))
        return env


@dataclass(frozen=True)
class Engine:
    """One that moves files.

    :param name: what the tables call it.
    :param command: gives the command line of a run.
    :param takes: says whether a job is one for it.
    :param checkout: the project's files that it runs, where it isn't this checkout.
    :param is_slow: whether it moves one file after another, so that it takes too long for a quick look.
    """

    name: str
    command: Callable[[Job], list[str]]
    takes: Callable[[Job], bool] = lambda job: True
    checkout: Path | None = None
    is_slow: bool = False

    def environment(self, job: Job) -> dict[str, str]:
        """Return the environment of a run."""
        env = job.environment()
        return {**env, "PYTHONPATH": str(self.checkout)} if self.checkout else env


def ours(checkout: Path, name: str = "ours") -> Engine:
    """Return our engine, as it is in a checkout."""
    script = str(PROJECT / "bench" / "ours.py")
    return Engine(name, lambda job: [sys.executable, script, job.worklist(job.streams)], checkout=checkout.resolve())


def peers() -> tuple[list[Engine], list[str]]:
    """Return the others, and the names of those that can't be had here."""
    found = [
        Engine("kernel relay", lambda job: _peer("relay", job), lambda job: job.ends.network is PLAIN),
        Engine("pure upload", lambda job: _peer("upload", job), lambda job: job.ends.network is RGW),
        Engine("boto3 upload_fileobj", lambda job: _peer("boto3", job)),
        Engine("guide's script", lambda job: _peer("guide", job, workers=1), is_slow=True),
        Engine("HttpToS3Operator", lambda job: _peer("operator", job, workers=1), is_slow=True),
    ]
    rclone = [
        Engine("rclone copyurl", _rclone_urls),
        Engine("rclone multi-thread", _rclone_ranges, lambda job: _slow(job) and job.workload.count == 1),
    ]
    return (found + rclone, []) if RCLONE.exists() else (found, [engine.name for engine in rclone])


def versions() -> dict[str, str]:
    """Say what the engines are made of."""
    from importlib.metadata import version

    providers = ("apache-airflow-providers-amazon", "apache-airflow-providers-http")
    names = ("apache-airflow", *providers, "boto3", "botocore", "s3transfer", "requests", "urllib3")
    found = {"Python": sys.version.split()[0], **{name: version(name) for name in names}}
    if RCLONE.exists():
        told = subprocess.run([RCLONE, "version"], capture_output=True, text=True, check=True).stdout
        found["rclone"] = told.split()[1].removeprefix("v")
    return found


def _slow(job: Job) -> bool:
    return bool(job.ends.network.source.rate)


def _peer(name: str, job: Job, workers: int | None = None) -> list[str]:
    return [sys.executable, "-m", "bench.peers", name, job.worklist(workers or job.streams)]


def _rclone(job: Job, *words: str) -> list[str]:
    trust = ["--ca-cert", str(job.ends.authority)] if job.ends.authority else []
    return [str(RCLONE), *words, "--config", "", "--retries", "1", *trust]


def _rclone_urls(job: Job) -> list[str]:
    if job.workload.count == 1:
        return _rclone(job, "copyurl", job.urls[0], f"sink:{BUCKET}/{job.keys[0]}")
    path = job.folder / "urls.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(zip(job.urls, job.keys, strict=True))
    return _rclone(job, "copyurl", "--urls", str(path), f"sink:{BUCKET}", "--transfers", str(job.streams))


def _rclone_ranges(job: Job) -> list[str]:
    path = job.urls[0].removeprefix(job.ends.source)
    words = ("--multi-thread-streams", str(job.streams), "--multi-thread-cutoff", "1M", "--ignore-checksum")
    return _rclone(
        job, "copyto", f":http:{path}", f"sink:{BUCKET}/{job.keys[0]}", "--http-url", job.ends.source, *words
    )
