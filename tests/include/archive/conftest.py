from __future__ import annotations

import functools
import os
import uuid
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from botocore.config import Config

from include.archive.stores import LocalStore
from include.archive.stores import s3 as s3_module
from include.archive.stores.s3 import S3Store
from include.archive.stores.s3_access import Credentials, Direct, address_of
from include.archive.stores.s3_boto3 import ClientAccess
from tests.include.archive.support import Archive
from tests.moto_server import moto_server
from tests.strict_s3.process import Process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from include.archive.stores.s3_access import Access

BUCKET = "archive"
TEST_AGENT = "by-the-test-itself"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what is asked of every store on all of them, and on a bucket in all the ways in which one is reached.

    The engine's tests spare themselves the second S3 server, and all ways but the one without boto3.
    """
    is_about_stores = metafunc.module.__name__.endswith(("test_stores", "test_s3_faults"))
    if "archive" in metafunc.fixturenames:
        metafunc.parametrize(
            "archive", ["local", "s3", *(["client", "boto3", "moto"] * is_about_stores)], indirect=True
        )
    if "bucket" in metafunc.fixturenames:
        metafunc.parametrize("bucket", ["s3", "client"] if is_about_stores else ["s3"], indirect=True)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[Process]:
    """An S3 server that checks whatever S3 checks, see tests/strict_s3."""
    with Process(bucket=BUCKET, access_key="testing", secret_key="testing") as server:
        yield server


@pytest.fixture
def strict(s3_server: Process, request: pytest.FixtureRequest) -> Iterator[Process]:
    """The same, empty. At the end, whoever wrote must have asked that nothing be replaced, or one version alone.

    And what was written must have come with a checksum, but for whole objects of tests that are marked as those of a
    store that takes none behind a body.
    """
    s3_server.reset()
    yield s3_server
    done = [entry for entry in s3_server.journal() if entry["done"] and TEST_AGENT not in entry["agent"]]
    unguarded = [
        entry["key"]
        for entry in done
        if entry["operation"] in {"PutObject", "CompleteMultipartUpload"}
        and entry["conditions"] != {"if-none-match": "*"}
        and (list(entry["conditions"]) != ["if-match"] or "*" in entry["conditions"]["if-match"])
    ]
    assert unguarded == []
    sums = {"PutObject": "sha256", "UploadPart": "crc32", "CompleteMultipartUpload": "crc32"}
    if request.node.get_closest_marker("takes_no_checksums"):
        del sums["PutObject"]
    unsummed = [
        entry["key"]
        for entry in done
        if (name := sums.get(entry["operation"])) and f"x-amz-checksum-{name}" not in entry["checksums"]
    ]
    assert unsummed == []


@pytest.fixture(autouse=True)
def short_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let objects of a few MiB go in several parts."""
    monkeypatch.setattr(s3_module, "STREAM_BYTES", s3_module.PART_BYTES)
    monkeypatch.setattr(s3_module, "WHOLE_BYTES", s3_module.PART_BYTES)


@pytest.fixture
def s3_endpoint(strict: Process) -> str:
    return strict.endpoint


@pytest.fixture(scope="session")
def s3_client(s3_server: Process) -> Any:
    return make_client(s3_server.endpoint)


@pytest.fixture
def s3(strict: Process, s3_client: Any) -> Any:
    return s3_client


@pytest.fixture(scope="session")
def moto() -> Iterator[Any]:
    """A client of an S3 server by other people, which forgives more."""
    with moto_server() as endpoint:
        client = make_client(endpoint)
        client.create_bucket(Bucket=BUCKET)
        yield client


def make_client(endpoint: str, *, agent: str = "") -> Any:
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
            user_agent_extra=agent,
        ),
    )


def _local(root: Path) -> Archive:
    def put(key: str, data: bytes, metadata: dict[str, str] | None = None) -> None:
        path = root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        for name, value in (metadata or {}).items():
            os.setxattr(path, f"user.recall.{name}", value.encode())

    def flip(key: str, bit: int) -> None:
        data = bytearray((root / key).read_bytes())
        data[bit // 8] ^= 1 << bit % 8
        with (root / key).open("r+b") as file:
            file.write(data)

    def files(temporary: bool) -> list[str]:
        return sorted(
            path.relative_to(root).as_posix()
            for path in root.rglob("*")
            if path.is_file() and path.name.startswith(".tmp-") == temporary
        )

    return Archive(
        kind="local",
        proof="read-back",
        store=LocalStore(root=root),
        get=lambda key: (root / key).read_bytes(),
        put=put,
        keys=lambda: files(False),
        leftovers=lambda: files(True),
        modified=lambda key: ((root / key).stat().st_mtime_ns, (root / key).stat().st_ino),
        flip=flip,
        remove=lambda key: (root / key).unlink(),
    )


@functools.cache
def _vandal(endpoint: str) -> Any:
    return make_client(endpoint, agent=TEST_AGENT)


def make_access(endpoint: str, **changes: Any) -> Direct:
    """Say how the bucket is reached without a client."""
    address = address_of(BUCKET, "us-east-1", endpoint)
    assert address is not None
    keys = Credentials("testing", "testing")
    options = {"keys": lambda: keys, "make_client": lambda: make_client(endpoint), **changes}
    return Direct(address=address, region="us-east-1", **options)


class OnlyBoto3(ClientAccess):
    """A bucket of a kind for which there is but the client itself."""

    is_plain = False


def _s3(client: Any, *, kind: str = "s3", way: str = "client", server: Process | None = None) -> Archive:
    vandal = _vandal(client.meta.endpoint_url)
    prefix = f"runs/{uuid.uuid4().hex}"

    def put(key: str, data: bytes, metadata: dict[str, str] | None = None) -> None:
        vandal.put_object(Bucket=BUCKET, Key=f"{prefix}/{key}", Body=data, Metadata=metadata or {})

    def modified(key: str) -> object:
        if server is None:
            return client.head_object(Bucket=BUCKET, Key=f"{prefix}/{key}")["LastModified"]
        return server.state()["objects"][f"{prefix}/{key}"]["modified"]

    def tamper(key: str, **how: Any) -> None:
        assert server is not None
        server.control("POST", "tamper", {"key": f"{prefix}/{key}", **how})

    def keys() -> list[str]:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix + "/")
        return [item["Key"][len(prefix) + 1 :] for page in pages for item in page.get("Contents", [])]

    def leftovers() -> list[str]:
        reply = client.list_multipart_uploads(Bucket=BUCKET, Prefix=prefix + "/")
        return [upload["Key"][len(prefix) + 1 :] for upload in reply.get("Uploads", [])]

    ways: dict[str, Callable[[], Access]] = {
        "s3": lambda: make_access(client.meta.endpoint_url),
        "client": lambda: ClientAccess(client, BUCKET),
        "boto3": lambda: OnlyBoto3(client, BUCKET),
    }
    return Archive(
        kind=kind,
        proof="store-checksum",
        store=S3Store(bucket=BUCKET, prefix=prefix, access=ways[way]()),
        get=lambda key: client.get_object(Bucket=BUCKET, Key=f"{prefix}/{key}")["Body"].read(),
        put=put,
        keys=keys,
        leftovers=leftovers,
        modified=modified,
        flip=lambda key, bit: tamper(key, flip=bit),
        remove=lambda key: tamper(key, delete=True),
    )


@pytest.fixture
def archive(request: pytest.FixtureRequest, tmp_path: Path) -> Archive:
    if request.param == "local":
        return _local(tmp_path / "archive")
    if request.param == "moto":
        return _s3(request.getfixturevalue("moto"), kind="moto")
    return _s3(request.getfixturevalue("s3"), way=request.param, server=request.getfixturevalue("strict"))


@pytest.fixture(params=["local", "s3"])
def faithful(request: pytest.FixtureRequest, tmp_path: Path) -> Archive:
    """A store that replaces one version and no other, which moto does not."""
    if request.param == "local":
        return _local(tmp_path / "archive")
    return _s3(request.getfixturevalue("s3"), way=request.param, server=request.getfixturevalue("strict"))


@pytest.fixture
def local(tmp_path: Path) -> Archive:
    return _local(tmp_path / "archive")


@pytest.fixture
def bucket(request: pytest.FixtureRequest, s3: Any, strict: Process) -> Archive:
    return _s3(s3, way=request.param, server=strict)
