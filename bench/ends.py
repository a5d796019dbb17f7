"""Source and sink as processes, and the certificates that they show."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.wire import LOOPBACK, Link

if TYPE_CHECKING:
    from types import TracebackType

PROJECT = Path(__file__).resolve().parent.parent
BUCKET = "bench"


@dataclass(frozen=True)
class Network:
    """The links of a run.

    :param name: what the tables call it.
    :param source: from the source to the engine.
    :param sink: from the engine to the sink.
    :param tls: whether both are encrypted.
    """

    name: str
    source: Link = Link()
    sink: Link = Link()
    tls: bool = False


PLAIN = Network("plain")
TLS = Network("tls", tls=True)
SHAPED = Network("s3-like", Link(20 * 2**20, 0.05), Link(40 * 2**20, 0.03))
RGW = Network("rgw")
"""Plain ones, to a real store instead of a sink: see :mod:`bench.ceph`."""
NETWORKS = {network.name: network for network in (PLAIN, TLS, SHAPED)}


class Ends:
    """A running source and sink; use as a context manager.

    :param network: the links to them.
    :param folder: where certificates may be kept.
    :param verify: whether the sink keeps and checks what it gets.
    """

    def __init__(self, network: Network, folder: Path, *, verify: bool = False) -> None:
        self.network = network
        self.authority = certificates(folder) if network.tls else None
        self._verify = verify
        self._stack = ExitStack()

    def __enter__(self) -> Ends:
        with ExitStack() as stack:
            self.source = stack.enter_context(self._server("source", self.network.source)).url
            self.sink = self.start_sink(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def start_sink(self, stack: ExitStack) -> str:
        """Start what takes the files, until the stack ends; return its address."""
        words = ["--verify"] if self._verify else []
        return stack.enter_context(self._server("sink", self.network.sink, *words)).url

    def _server(self, module: str, link: Link, *words: str) -> _Server:
        words += ("--rate", str(link.rate), "--delay", str(link.delay))
        if self.authority:
            words += ("--certificate", str(self.authority.with_name("server.pem")))
        return _Server(module, "https" if self.authority else "http", *words)

    def url(self, size: int, number: int) -> str:
        """Return the address of a file of the source."""
        return f"{self.source}/{size}/{number}.mp3"

    def stored(self, *, forget: bool = False) -> dict[str, Any]:
        """Return what the sink got: key to bytes and, where it verifies, hash.

        :param forget: whether it then begins anew.
        """
        import ssl

        context = ssl.create_default_context(cafile=str(self.authority)) if self.authority else None
        address = f"{self.sink}/-/{'reset' if forget else 'state'}"
        with urllib.request.urlopen(address, context=context, timeout=60) as reply:  # noqa: S310 - our own process
            return dict(json.load(reply))


class _Server:
    def __init__(self, module: str, scheme: str, *words: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"bench.{module}", *words],
            cwd=PROJECT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        if self._process.stdout is None or not (line := self._process.stdout.readline()):
            raise RuntimeError(f"the {module} did not start")
        self.url = f"{scheme}://{LOOPBACK}:{json.loads(line)['port']}"

    def __enter__(self) -> _Server:
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.kill()
        self._process.communicate()


def certificates(folder: Path) -> Path:
    """Make an authority and a certificate for loopback, once; return the authority's file, ``server.pem`` beside it."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    authority = folder / "authority.pem"
    if authority.exists():
        return authority
    folder.mkdir(parents=True, exist_ok=True)
    now = datetime.now(timezone.utc)
    root_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    root_name, name = (
        x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)]) for text in ("bench authority", "bench")
    )

    def builder(subject: x509.Name, public: Any) -> x509.CertificateBuilder:
        begun = x509.CertificateBuilder().subject_name(subject).issuer_name(root_name).public_key(public)
        begun = begun.serial_number(x509.random_serial_number())
        return begun.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(days=2))

    usage = x509.KeyUsage(
        digital_signature=True, key_cert_sign=True, crl_sign=True, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    root = (
        builder(root_name, root_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(root_key.public_key()), critical=False)
        .sign(root_key, hashes.SHA256())
    )
    leaf = (
        builder(name, key.public_key())
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(LOOPBACK))]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key()), critical=False)
        .sign(root_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "server.pem").write_bytes(secret + leaf.public_bytes(pem))
    authority.write_bytes(root.public_bytes(pem))
    return authority
