"""A bucket that is reached without boto3 is reached where boto3 would reach it, and as carefully."""

from __future__ import annotations

import itertools
import os
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest
from botocore import UNSIGNED
from botocore.config import Config
from botocore.credentials import Credentials as BotocoreCredentials
from botocore.loaders import create_loader
from botocore.session import Session, get_session
from urllib3.exceptions import InsecureRequestWarning

from include.archive import errors
from include.archive.stores.s3 import S3Store
from include.archive.stores.s3_access import Credentials, RefusedError, UnansweredError, address_of, is_plain_bucket
from include.archive.stores.s3_boto3 import ClientAccess, direct_access
from include.archive.stores.s3_wire import Wire
from tests.include.archive.conftest import BUCKET, make_access
from tests.strict_s3.process import Process
from tests.strict_s3.test_strict_s3 import make_certificate

if TYPE_CHECKING:
    from pathlib import Path

BUCKETS = ["archive", "archive.with.dots", "a-b-c", "abc", "4archive", "a" * 63, "archive-s3alias"]
STRANGE_BUCKETS = ["archive--use1-az4--x-s3", "archive--op-s3", "10.0.0.1", "a..b", "a.-b", "Archive", "ab", "a_b"]
REGIONS = ["us-east-1", "us-west-2", "eu-central-1", "ap-southeast-7", "il-central-1", "mx-central-1", "cn-north-1"]
REGIONS += ["cn-northwest-1", "us-gov-west-1", "us-gov-east-1"]
STRANGE_REGIONS = ["us-iso-east-1", "us-isob-east-1", "eusc-de-east-1", "aws-global", "fips-us-east-1", "s3-external-1"]
ENDPOINTS = ["http://127.0.0.1:9000", "https://s3.example", "https://s3.example:9000/base/", "http://s3.example/base"]
ENDPOINTS += ["https://s3.example:443", "http://[::1]:9000", "http://localhost:4566/", "https://minio.example/a/b"]
STRANGE_ENDPOINTS = ["https://s3.eu-central-1.amazonaws.com", "https://a:b@s3.example", "https://s3.example/?x=1"]
STRANGE_ENDPOINTS += ["ftp://s3.example", "s3.example", "https://s3.example/a b", "http://s3.example:x", "https://"]

LOADER = create_loader()
"""One for all, since reading the service's model is most of the time that a client takes."""


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Session:
    """A session in an environment without settings."""
    for name in [name for name in os.environ if name.upper().startswith("AWS_") or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    found = get_session()
    found.register_component("data_loader", LOADER)
    return found


def reached(session: Session, bucket: str, *, keys: bool = True, **options: Any) -> tuple[str, str]:
    """Return the bucket's address and the region in signatures, as a client of the session has them."""
    given = {"aws_access_key_id": "x", "aws_secret_access_key": "y"} if keys else {}
    options = {"region_name" if name == "region" else name: value for name, value in options.items()}
    access = ClientAccess(session.create_client("s3", **given, **options), bucket)
    return access.address, access.region


@pytest.mark.parametrize(
    ("region", "endpoint_url"),
    [*itertools.product(REGIONS, [None]), *itertools.product(("us-east-1", "eu-central-1", "cn-north-1"), ENDPOINTS)],
)
@pytest.mark.parametrize("style", ["auto", "path", "virtual"])
def test_addresses_are_those_of_boto3(session: Session, region: str, style: str, endpoint_url: str | None) -> None:
    config = Config(s3={"addressing_style": style})
    found = 0
    client = session.create_client("s3", region_name=region, endpoint_url=endpoint_url, config=config)
    for bucket in BUCKETS:
        address = address_of(bucket, region, endpoint_url, style)
        if address is not None:
            access = ClientAccess(client, bucket)
            assert (access.address, access.region) == (address, region)
            found += 1
    assert found >= (0 if style == "virtual" and endpoint_url is not None else len(BUCKETS))


@pytest.mark.parametrize("region", ["garage", "auto", "eu", "my-region-1"])
def test_other_stores_have_regions_of_their_own(session: Session, region: str) -> None:
    for endpoint_url in ENDPOINTS:
        expected = reached(session, "archive", region=region, endpoint_url=endpoint_url)
        assert (address_of("archive", region, endpoint_url), region) == expected
    assert address_of("archive", region) is None


def test_what_is_out_of_the_ordinary_is_left_to_boto3() -> None:
    for bucket, endpoint_url in itertools.product(STRANGE_BUCKETS, (None, ENDPOINTS[0])):
        assert address_of(bucket, "eu-central-1", endpoint_url) is None, bucket
    for region in STRANGE_REGIONS:
        assert address_of("archive", region) is None, region
    for region in ("", "fips-us-east-1", "aws-global", "a b", "-", "a" * 64):
        assert address_of("archive", region, ENDPOINTS[0]) is None, region
    for endpoint_url in STRANGE_ENDPOINTS:
        assert address_of("archive", "eu-central-1", endpoint_url) is None, endpoint_url
    assert address_of("archive", "eu-central-1", None, "dualstack") is None
    assert not is_plain_bucket("arn:aws:s3:eu-central-1:1:accesspoint/a")


def direct(session: Session, bucket: str = "archive", **options: Any) -> tuple[str, str] | None:
    access = direct_access(session, bucket, client=lambda: pytest.fail("no client is needed"), **options)
    return access and (access.address, access.region)


SETTINGS: list[tuple[dict[str, str], str, dict[str, Any]]] = [
    ({"AWS_DEFAULT_REGION": "eu-west-1"}, "", {}),
    ({"AWS_DEFAULT_REGION": "us-east-1"}, "", {}),
    ({"AWS_DEFAULT_REGION": "eu-west-1"}, "", {"region": "us-west-2"}),
    ({"AWS_DEFAULT_REGION": "eu-west-1"}, "", {"config": Config(region_name="us-west-2")}),
    ({}, "region = eu-north-1\n", {}),
    ({}, "region = eu-north-1\ns3 =\n  addressing_style = path\n", {}),
    ({}, "region = eu-north-1\ns3 =\n  addressing_style = path\n", {"config": Config(s3={"addressing_style": "auto"})}),
    ({}, "", {"endpoint_url": "http://127.0.0.1:9000"}),
    ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9000"}, "", {"region": "eu-west-1"}),
    ({"AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_ENDPOINT_URL_S3": "https://s3.example"}, "", {}),
    ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9000"}, "", {"endpoint_url": "https://s3.example/x"}),
    ({}, "endpoint_url = http://127.0.0.1:1\n", {"endpoint_url": "https://s3.example/x"}),
    ({}, "", {"region": "eu-west-1", "config": Config(signature_version="s3v4", retries={"mode": "adaptive"})}),
    ({"HTTP_PROXY": "http://proxy.example", "NO_PROXY": "x"}, "", {"region": "eu-west-1"}),
    ({"HTTPS_PROXY": "http://proxy.example", "NO_PROXY": "amazonaws.com"}, "", {"region": "eu-west-1"}),
]
OF_BOTOCORE_ALONE: list[tuple[dict[str, str], str, dict[str, Any]]] = [
    ({}, "", {}),
    ({"AWS_DEFAULT_REGION": "us-iso-east-1"}, "", {}),
    ({"AWS_USE_FIPS_ENDPOINT": "true"}, "", {"region": "us-east-1"}),
    ({"AWS_USE_DUALSTACK_ENDPOINT": "true"}, "", {"region": "us-east-1"}),
    ({"AWS_DEFAULTS_MODE": "standard"}, "", {"region": "us-east-1"}),
    ({"AWS_DATA_PATH": "/srv/models"}, "", {"region": "us-east-1"}),
    ({"AWS_S3_US_EAST_1_REGIONAL_ENDPOINT": "regional"}, "", {"region": "us-east-1"}),
    ({"AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true", "AWS_ENDPOINT_URL": "http://x"}, "", {"region": "us-east-1"}),
    ({}, "endpoint_url = http://127.0.0.1:9000\n", {"region": "us-east-1"}),
    ({}, "services = mine\n[services mine]\ns3 =\n  endpoint_url = http://x:1\n", {"region": "us-east-1"}),
    ({}, "s3 =\n  use_accelerate_endpoint = true\n", {"region": "us-east-1"}),
    ({}, "s3 =\n  payload_signing_enabled = true\n", {"region": "us-east-1"}),
    ({}, "", {"region": "us-east-1", "config": Config(s3={"use_dualstack_endpoint": True})}),
    ({}, "", {"region": "us-east-1", "config": Config(use_fips_endpoint=True)}),
    ({}, "", {"region": "us-east-1", "config": Config(proxies={"https": "http://proxy.example"})}),
    ({}, "", {"region": "us-east-1", "config": Config(client_cert="/srv/cert.pem")}),
    ({}, "", {"region": "us-east-1", "config": Config(signature_version="s3")}),
    ({}, "", {"region": "us-east-1", "config": Config(signature_version=UNSIGNED)}),
    ({"HTTPS_PROXY": "http://proxy.example"}, "", {"region": "us-east-1"}),
    ({"http_proxy": "http://proxy.example"}, "", {"endpoint_url": "http://s3.example"}),
]


def set_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, environment: dict[str, str], profile: str) -> None:
    (tmp_path / "config").write_text(f"[default]\n{profile}")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(("environment", "profile", "options"), SETTINGS)
def test_a_sessions_settings_are_heeded(
    session: Session,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    environment: dict[str, str],
    profile: str,
    options: dict[str, Any],
) -> None:
    set_up(monkeypatch, tmp_path, environment, profile)
    found = direct(session, **options)
    assert found == reached(session, "archive", **options)


@pytest.mark.parametrize(("environment", "profile", "options"), OF_BOTOCORE_ALONE)
def test_settings_that_only_botocore_can_follow(
    session: Session,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    environment: dict[str, str],
    profile: str,
    options: dict[str, Any],
) -> None:
    set_up(monkeypatch, tmp_path, environment, profile)
    assert direct(session, **options) is None


def test_models_of_ones_own_are_left_to_botocore(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("botocore.loaders.Loader.CUSTOMER_DATA_PATH", os.curdir)
    assert direct(session, region="us-east-1") is None


@pytest.mark.parametrize(
    ("environment", "verify", "expected"),
    [
        ({}, None, True),
        ({}, False, False),
        ({"REQUESTS_CA_BUNDLE": "/r.pem"}, None, "/r.pem"),
        ({"REQUESTS_CA_BUNDLE": "/r.pem", "AWS_CA_BUNDLE": "/a.pem"}, None, "/a.pem"),
        ({"REQUESTS_CA_BUNDLE": "/r.pem", "AWS_CA_BUNDLE": "/a.pem"}, "/mine.pem", "/mine.pem"),
        ({"REQUESTS_CA_BUNDLE": "/r.pem", "AWS_CA_BUNDLE": "/a.pem"}, True, True),
    ],
)
def test_whom_to_trust(
    session: Session, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], verify: Any, expected: Any
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    access = direct_access(session, "archive", client=lambda: None, region="us-east-1", verify=verify)  # type: ignore[arg-type,return-value]
    assert access is not None
    assert access.verify == expected


def test_what_a_config_says_of_connections(session: Session) -> None:
    config = Config(connect_timeout=3, read_timeout=4, max_pool_connections=5)
    access = direct_access(session, "archive", client=lambda: None, region="us-east-1", config=config)  # type: ignore[arg-type,return-value]
    assert access is not None
    assert (access.connect_timeout, access.read_timeout, access.connections) == (3, 4, 5)


def test_credentials_are_asked_for_anew(session: Session) -> None:
    access = direct_access(session, "archive", client=lambda: None, region="us-east-1")  # type: ignore[arg-type,return-value]
    assert access is not None
    assert access.credentials() is None
    for number in range(2):
        session._credentials = BotocoreCredentials(f"key-{number}", "secret", "token")
        found = access.credentials()
        assert (found.access_key, found.secret_key, found.token) == (f"key-{number}", "secret", "token")


def test_credentials_that_are_missing_or_out_of_reach_are_no_passing_fault(
    session: Session, monkeypatch: pytest.MonkeyPatch, strict: Process
) -> None:
    for environment in ({}, {"AWS_ACCESS_KEY_ID": "half"}):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        one = get_session()

        def keys(one: Session = one) -> Any:
            access = direct_access(one, BUCKET, client=lambda: None, endpoint_url=strict.endpoint)  # type: ignore[arg-type,return-value]
            return access.credentials() if access else None

        with pytest.raises(errors.StorageDeniedError):
            S3Store(bucket=BUCKET, prefix="", access=make_access(strict.endpoint, keys=keys)).stat("a")
        assert strict.journal() == []


def test_a_session_token_is_sent(strict: Process) -> None:
    keys = Credentials("testing", "testing", "the-token")
    sent: list[str] = []
    wire = Wire(make_access(strict.endpoint, keys=lambda: keys))
    send = wire._transmit

    def note(request: Any) -> Any:
        sent.append(request.headers["X-Amz-Security-Token"])
        return send(request)

    wire._transmit = note  # type: ignore[method-assign]
    with pytest.raises(RefusedError, match="InvalidToken"):
        wire.objects("", "", None)
    assert sent == ["the-token"]


@pytest.mark.parametrize("sent", [b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", b"HTTP/1.", b"", b"\0" * 99])
def test_an_answer_that_breaks_off_is_none(sent: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(sent)

        thread = threading.Thread(target=answer)
        thread.start()
        wire = Wire(make_access(f"http://127.0.0.1:{server.getsockname()[1]}"))
        with pytest.raises(UnansweredError):
            b"".join(wire.get("a", 0)[1])
        thread.join()


@pytest.mark.parametrize("content", [None, "no certificates"])
def test_a_list_of_certificates_that_cannot_be_read(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "ca.pem").write_text(content)
    access = make_access("https://127.0.0.1:1", verify=str(tmp_path / "ca.pem"))
    with pytest.raises(errors.StorageUnavailableError, match="SSLError"):
        S3Store(bucket=BUCKET, prefix="", access=access).stat("a")


def test_a_silent_store_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(UnansweredError, match="ReadTimeoutError"):
            Wire(make_access(endpoint, read_timeout=0.1)).head("a")


def test_only_a_trusted_certificate_will_do(tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    with Process("--tls", certificate, key, bucket=BUCKET, access_key="testing", secret_key="testing") as server:
        assert Wire(make_access(server.endpoint, verify=certificate)).objects("", "", None).objects == []
        with pytest.warns(InsecureRequestWarning):
            assert Wire(make_access(server.endpoint, verify=False)).objects("", "", None).objects == []
        with pytest.raises(UnansweredError, match="SSLError"):
            Wire(make_access(server.endpoint)).objects("", "", None)
        asked = len(server.journal())
        with pytest.raises(UnansweredError, match="SSLError"):
            Wire(make_access(server.endpoint.replace("127.0.0.1", "localhost"), verify=certificate)).head("a")
        assert len(server.journal()) == asked
