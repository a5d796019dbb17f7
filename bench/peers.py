"""What others do the same work with, each at the settings that its documentation shows.

`python -m bench.peers ENGINE WORKLIST`
"""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from typing import IO, TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable

PIPE_BYTES = 1024 * 1024


def relay(work: dict[str, Any]) -> Callable[[str, str, int], None]:
    """Let the kernel move the bytes from socket to socket: the limit, without a hash, a check, a retry or TLS."""
    pool: list[tuple[socket.socket, socket.socket, int, int]] = []

    def connect(url: str) -> socket.socket:
        address = urlsplit(url)
        sock = socket.create_connection((address.hostname or "", address.port or 80))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def head(sock: socket.socket) -> bytes:
        # A look first, so that none of the body is taken out of the socket.
        seen = b""
        while b"\r\n\r\n" not in seen:
            seen = sock.recv(4096, socket.MSG_PEEK)
            if not seen:
                raise SystemExit("the connection was closed")
        return sock.recv(seen.index(b"\r\n\r\n") + 4)

    def copy(url: str, key: str, size: int) -> None:
        source, sink, outlet, inlet = pool.pop() if pool else (connect(url), connect(work["endpoint"]), *_pipe())
        source.sendall(f"GET {urlsplit(url).path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        if b" 200 " not in head(source):
            raise SystemExit("the source refused")
        sink.sendall(f"PUT /{work['bucket']}/{key} HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n".encode())
        while size:
            moved = os.splice(source.fileno(), inlet, min(size, PIPE_BYTES))
            size -= moved
            while moved:
                moved -= os.splice(outlet, sink.fileno(), moved)
        if b" 200 " not in head(sink):
            raise SystemExit("the sink refused")
        pool.append((source, sink, outlet, inlet))

    return copy


def _pipe() -> tuple[int, int]:
    import fcntl

    outlet, inlet = os.pipe()
    fcntl.fcntl(inlet, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    return outlet, inlet


def boto3_fileobj(work: dict[str, Any]) -> Callable[[str, str, int], None]:
    """Hand requests' raw body to ``upload_fileobj``."""
    import boto3
    import requests
    from botocore.config import Config

    client = boto3.client("s3", endpoint_url=work["endpoint"], config=Config(max_pool_connections=10 * work["workers"]))
    session = requests.Session()
    adapter = requests.adapters.HTTPAdapter(pool_maxsize=work["workers"])
    session.mount(work["urls"][0].partition(":")[0] + "://", adapter)

    def copy(url: str, key: str, size: int) -> None:
        with session.get(url, stream=True, timeout=60) as response:
            response.raise_for_status()
            client.upload_fileobj(cast("IO[bytes]", response.raw), work["bucket"], key)

    return copy


def upload(work: dict[str, Any]) -> Callable[[str, str, int], None]:
    """Let the kernel send bytes that are in memory already, under addresses signed beforehand: a store's own limit."""
    import boto3
    from botocore.config import Config

    config = Config(
        signature_version="s3v4", s3={"addressing_style": "path"}, request_checksum_calculation="when_required"
    )
    client = boto3.client("s3", endpoint_url=work["endpoint"], config=config)
    file = os.memfd_create("body")
    os.truncate(file, max(work["sizes"]))
    place = urlsplit(work["endpoint"])
    pool: list[socket.socket] = []
    targets = {
        key: client.generate_presigned_url("put_object", {"Bucket": work["bucket"], "Key": key}) for key in work["keys"]
    }

    def copy(url: str, key: str, size: int) -> None:
        sock = pool.pop() if pool else socket.create_connection((place.hostname or "", place.port or 80))
        target = urlsplit(targets[key])
        head = f"PUT {target.path}?{target.query} HTTP/1.1\r\nHost: {place.netloc}\r\nContent-Length: {size}\r\n\r\n"
        sock.sendall(head.encode(), socket.MSG_MORE)
        at = 0
        while at < size:
            at += os.sendfile(sock.fileno(), file, at, size - at)
        if b" 200 " not in sock.recv(65536):
            raise SystemExit("the store refused")
        pool.append(sock)

    return copy


def guide(work: dict[str, Any]) -> Callable[[str, str, int], None]:
    """Do what guides show: pieces of 8192 bytes into a file, then ``upload_file``."""
    import boto3
    import requests

    client = boto3.client("s3", endpoint_url=work["endpoint"])

    def copy(url: str, key: str, size: int) -> None:
        with tempfile.NamedTemporaryFile(suffix=".mp3") as file:
            with requests.get(url, stream=True, timeout=60) as response:
                response.raise_for_status()
                for piece in response.iter_content(chunk_size=8192):
                    file.write(piece)
            file.flush()
            client.upload_file(file.name, work["bucket"], key)

    return copy


def operator(work: dict[str, Any]) -> Callable[[str, str, int], None]:
    """Execute Airflow's own ``HttpToS3Operator``, without a scheduler around it."""
    address = urlsplit(work["urls"][0])
    extra = {"endpoint_url": work["endpoint"], "region_name": "us-east-1"}
    os.environ["AIRFLOW_CONN_AWS_DEFAULT"] = json.dumps({"conn_type": "aws", "extra": extra})
    os.environ["AIRFLOW_CONN_HTTP_DEFAULT"] = json.dumps(
        {"conn_type": "http", "schema": address.scheme, "host": address.hostname, "port": address.port}
    )
    from airflow.providers.amazon.aws.transfers.http_to_s3 import HttpToS3Operator

    def copy(url: str, key: str, size: int) -> None:
        HttpToS3Operator(task_id="copy", endpoint=urlsplit(url).path, s3_bucket=work["bucket"], s3_key=key).execute({})

    return copy


ENGINES = {"relay": relay, "upload": upload, "boto3": boto3_fileobj, "guide": guide, "operator": operator}


def main() -> None:
    """Copy all files of the work list."""
    name, path = sys.argv[1:]
    with open(path, encoding="utf-8") as file:
        work = json.load(file)
    copy = ENGINES[name](work)
    files = zip(work["urls"], work["keys"], work["sizes"], strict=True)
    wall, cpu = time.monotonic(), time.process_time()
    if work["workers"] == 1:
        for one in files:
            copy(*one)
    else:
        with ThreadPoolExecutor(min(work["workers"], len(work["urls"]))) as pool:
            for done in [pool.submit(copy, *one) for one in files]:
                done.result()
    print(json.dumps({"wall": time.monotonic() - wall, "cpu": time.process_time() - cpu}))


if __name__ == "__main__":
    main()
