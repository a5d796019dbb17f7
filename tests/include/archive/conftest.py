from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import uuid
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from botocore.config import Config

from include.archive.stores import LocalStore, S3Store
from tests.include.archive.support import Archive

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BUCKET = "archive"


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """An S3 server of our own, as a process behind a real socket."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    server = subprocess.Popen(
        [sys.executable, "-c", "from moto.server import main; main()", "-H", "127.0.0.1", "-p", str(port)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert server.poll() is None, "the S3 server ended"
                assert time.monotonic() < deadline, "the S3 server does not answer"
                time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


@pytest.fixture(scope="session")
def s3(s3_endpoint: str) -> Any:
    client = make_client(s3_endpoint)
    client.create_bucket(Bucket=BUCKET)
    return client


def make_client(endpoint: str) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id="testing",
        aws_secret_access_key="testing",
        config=Config(
            s3={"addressing_style": "path"},
            retries={"mode": "standard", "max_attempts": 2},
            proxies={},
        ),
    )


def _local(root: Path) -> Archive:
    def put(key: str, data: bytes, metadata: dict[str, str] | None = None) -> None:
        path = root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        for name, value in (metadata or {}).items():
            os.setxattr(path, f"user.recall.{name}", value.encode())

    def files(temporary: bool) -> list[str]:
        return sorted(
            path.relative_to(root).as_posix()
            for path in root.rglob("*")
            if path.is_file() and path.name.startswith(".tmp-") == temporary
        )

    return Archive(
        kind="local",
        store=LocalStore(root=root),
        get=lambda key: (root / key).read_bytes(),
        put=put,
        keys=lambda: files(False),
        leftovers=lambda: files(True),
        modified=lambda key: ((root / key).stat().st_mtime_ns, (root / key).stat().st_ino),
    )


def _s3(client: Any) -> Archive:
    prefix = f"runs/{uuid.uuid4().hex}"

    def put(key: str, data: bytes, metadata: dict[str, str] | None = None) -> None:
        client.put_object(Bucket=BUCKET, Key=f"{prefix}/{key}", Body=data, Metadata=metadata or {})

    def keys() -> list[str]:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix + "/")
        return [item["Key"][len(prefix) + 1 :] for page in pages for item in page.get("Contents", [])]

    def leftovers() -> list[str]:
        reply = client.list_multipart_uploads(Bucket=BUCKET, Prefix=prefix + "/")
        return [upload["Key"][len(prefix) + 1 :] for upload in reply.get("Uploads", [])]

    return Archive(
        kind="s3",
        store=S3Store(bucket=BUCKET, prefix=prefix, client=client),
        get=lambda key: client.get_object(Bucket=BUCKET, Key=f"{prefix}/{key}")["Body"].read(),
        put=put,
        keys=keys,
        leftovers=leftovers,
        modified=lambda key: client.head_object(Bucket=BUCKET, Key=f"{prefix}/{key}")["LastModified"],
    )


@pytest.fixture(params=["local", "s3"])
def archive(request: pytest.FixtureRequest, tmp_path: Path) -> Archive:
    if request.param == "local":
        return _local(tmp_path / "archive")
    return _s3(request.getfixturevalue("s3"))


@pytest.fixture
def local(tmp_path: Path) -> Archive:
    return _local(tmp_path / "archive")


@pytest.fixture
def bucket(s3: Any) -> Archive:
    return _s3(s3)
