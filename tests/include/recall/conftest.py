"""A scriptable HTTP server on a real socket, a clock that nobody waits for, and certificates."""

from __future__ import annotations

import contextlib
import datetime as dt
import ipaddress
import json
import socket
import ssl
import struct
import threading
import time
import traceback
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from include.recall.retry import RetryPolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Reply = bytes | Callable[[socket.socket], None]
    Shown = Callable[[BaseException], str]


def reply(status: int = 200, body: Any = b"", **headers: str) -> bytes:
    """Build a whole reply; underscores in header names become hyphens, anything but bytes becomes JSON."""
    if not isinstance(body, bytes):
        headers.setdefault("Content_Type", "application/json")
        body = json.dumps(body).encode()
    headers.setdefault("Content_Length", str(len(body)))
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items() if value != ""]
    return "\r\n".join([f"HTTP/1.1 {status} Said", *lines, "", ""]).encode() + body


def raw(*pieces: bytes, pause: float = 0.0, reset: bool = False) -> Callable[[socket.socket], None]:
    """Send pieces with pauses between them, then close the connection, or reset it."""

    def send(conn: socket.socket) -> None:
        for piece in pieces:
            conn.sendall(piece)
            time.sleep(pause)
        if reset:
            conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    return send


@dataclass
class Asked:
    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    head: str = field(repr=False)


class Server:
    """Answers requests from a script, in order, then with ``forever``; or as ``route`` decides.

    :ivar asked: every request that arrived.
    :ivar connections: how many connections were accepted.
    :ivar drops: what its endless replies have sent: a measure of time that stands still while the process does.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.asked: list[Asked] = []
        self.connections = 0
        self.script: deque[Reply] = deque()
        self.forever: Reply | None = None
        self.route: Callable[[Asked], Reply] | None = None
        self.drops = 0
        self._closing = threading.Event()
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.netloc = f"127.0.0.1:{self.port}"
        self.url = f"{'https' if tls else 'http'}://{self.netloc}"
        self._open: set[socket.socket] = set()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    reply = staticmethod(reply)
    raw = staticmethod(raw)

    def endless(self, head: bytes, drop: bytes) -> Callable[[socket.socket], None]:
        """Send a head, then twenty drops a second for as long as the server is there."""

        def send(conn: socket.socket) -> None:
            conn.sendall(head)
            while not self._closing.wait(0.05):
                self.drops += 1
                conn.sendall(drop)

        return send

    def says(self, *replies: Reply) -> Server:
        self.script.extend(replies)
        return self

    def _accept(self) -> None:
        while True:
            try:
                conn, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            thread = threading.Thread(target=self._serve, args=(conn,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, conn: socket.socket) -> None:
        with contextlib.suppress(OSError):
            if self._tls is not None:
                conn = self._tls.wrap_socket(conn, server_side=True)
            self._open.add(conn)
            with conn:
                while (asked := _receive(conn)) is not None:
                    self.asked.append(asked)
                    answer = self._answer(asked)
                    if callable(answer):
                        answer(conn)
                        return
                    conn.sendall(answer)
        conn.close()

    def _answer(self, asked: Asked) -> Reply:
        if self.route is not None:
            return self.route(asked)
        if self.script:
            return self.script.popleft()
        return self.forever if self.forever is not None else reply(418, b"not in the script")

    def close(self) -> None:
        self._closing.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for conn in list(self._open):
            with contextlib.suppress(OSError):
                conn.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(2)


def _receive(conn: socket.socket) -> Asked | None:
    data = b""
    while b"\r\n\r\n" not in data:
        more = conn.recv(65536)
        if not more:
            return None
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    method, target, _ = lines[0].split(" ", 2)
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    while len(body) < int(headers.get("content-length", 0)):
        body += conn.recv(65536)
    return Asked(method, target, headers, body, head.decode("latin-1"))


class Clock:
    """A monotonic clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def policy(clock: Clock) -> RetryPolicy:
    return RetryPolicy(sleep=clock.sleep, clock=clock)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture
def other_server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@dataclass
class Authority:
    """A private certificate authority: a file to trust, and servers' certificates on demand."""

    folder: Path
    bundle: str
    _key: Any
    _cert: Any

    def context(
        self, *, expired: bool = False, name: str = "media.example.com", address: str = "127.0.0.1"
    ) -> ssl.SSLContext:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        now = dt.datetime.now(dt.timezone.utc)
        key = ec.generate_private_key(ec.SECP256R1())
        names = [x509.DNSName(name), x509.IPAddress(ipaddress.ip_address(address))]
        cert = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self._cert.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=9))
            .not_valid_after(now + dt.timedelta(days=-1 if expired else 1))
            .add_extension(x509.SubjectAlternativeName(names), critical=True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        file = self.folder / "server.pem"
        file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            + cert.public_bytes(serialization.Encoding.PEM)
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        return context


USAGES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    folder = tmp_path_factory.mktemp("authority")
    now = dt.datetime.now(dt.timezone.utc)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Test authority")])
    cert = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=10))
        .not_valid_after(now + dt.timedelta(days=10))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.KeyUsage(**{usage: usage == "key_cert_sign" for usage in USAGES}), critical=True)
        .sign(key, hashes.SHA256())
    )
    bundle = folder / "ca.pem"
    bundle.write_bytes(cert.public_bytes(serialization.Encoding.PEM))
    return Authority(folder, str(bundle), key, cert)


@pytest.fixture
def tls_server(authority: Authority) -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(**kwargs: Any) -> Server:
        servers.append(Server(authority.context(**kwargs)))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def shown() -> Shown:
    def shown(error: BaseException) -> str:
        """Everything that a log or report could show of an error."""
        linked: list[str] = []
        one: BaseException | None = error
        while one is not None:
            linked.append(f"{one!r} {one} {vars(one)}")
            one = one.__cause__ or one.__context__
        return " ".join([*linked, *traceback.format_exception(error)])

    return shown
