"""What needs botocore: buckets that are reached through a client of boto3, or in the way that a session is set up for.

Imported only where there is such a client or session.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from botocore import UNSIGNED
from botocore.awsrequest import AWSPreparedRequest
from botocore.exceptions import BotoCoreError, ClientError, FlexibleChecksumError
from botocore.utils import get_environ_proxies

from include.archive.errors import IntegrityError
from include.archive.stores.base import READ_CHUNK
from include.archive.stores.s3_access import (
    SECONDS,
    Direct,
    RefusedError,
    Reply,
    Request,
    UnansweredError,
    address_of,
    exchanged,
    is_plain_bucket,
    named_faults,
)
from include.archive.stores.s3_xml import Begun, Listed, Objects, Uploads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from mypy_boto3_s3 import S3Client
    from urllib3 import HTTPConnectionPool

_PARAMETERS = {
    "Content-Type": "ContentType",
    "If-Match": "IfMatch",
    "If-None-Match": "IfNoneMatch",
    "x-amz-checksum-algorithm": "ChecksumAlgorithm",
    "x-amz-checksum-crc32": "ChecksumCRC32",
    "x-amz-checksum-sha256": "ChecksumSHA256",
    "x-amz-checksum-type": "ChecksumType",
    "x-amz-mp-object-size": "MpuObjectSize",
}
_NOTE = "x-amz-meta-"
_HARMLESS = frozenset(
    {
        "connect_timeout",
        "max_pool_connections",
        "parameter_validation",
        "read_timeout",
        "region_name",
        "retries",
        "s3",
        "signature_version",
        "tcp_keepalive",
        "user_agent",
        "user_agent_extra",
    }
)
"""Options of a client that don't change where its requests go, or that are heeded here."""


def direct_access(
    session: Any,
    bucket: str,
    *,
    client: Callable[[], S3Client],
    region: str | None = None,
    endpoint_url: str | None = None,
    verify: bool | str | None = None,
    config: Any = None,
) -> Direct | None:
    """Return how a bucket is reached without a client as the session's own client would reach it.

    None where a client is set up in a way that only botocore can follow.

    :param session: one of botocore.
    :param client: makes that client, when one is needed after all.
    :param region: the other parameters are those of ``create_client``.
    """
    if (defaults := session.get_default_client_config()) is not None:
        config = defaults if config is None else defaults.merge(config)
    options = dict(getattr(config, "_user_provided_options", None) or {})
    settings = {**(session.get_config_variable("s3") or {}), **(options.get("s3") or {})}
    style = settings.pop("addressing_style", None) or "auto"
    if (
        (config is not None and not hasattr(config, "_user_provided_options"))
        or any(value is not None for name, value in options.items() if name not in _HARMLESS)
        or any(value not in (None, False) for value in settings.values())
        or options.get("signature_version") not in (None, "s3v4")
        or _is_set_up(session)
    ):
        return None
    scoped = session.get_scoped_config()
    if endpoint_url is None:
        ignores_them = session.get_config_variable("ignore_configured_endpoint_urls")
        if "services" in scoped or "endpoint_url" in scoped or ignores_them:
            return None
        endpoint_url = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None
    region = region or options.get("region_name") or session.get_config_variable("region")
    if region is None and endpoint_url is not None:
        region = "us-east-1"
    address = address_of(bucket, region, endpoint_url, style) if region else None
    if address is None or get_environ_proxies(address).get(urlsplit(address).scheme):
        return None
    if verify is None:
        verify = session.get_config_variable("ca_bundle") or os.environ.get("REQUESTS_CA_BUNDLE") or True

    def keys() -> Any:
        with _answers():
            keeper = session.get_credentials()
            return keeper and keeper.get_frozen_credentials()

    return Direct(
        address=address,
        region=str(region),
        keys=keys,
        make_client=client,
        verify=verify,
        connect_timeout=options.get("connect_timeout") or SECONDS,
        read_timeout=options.get("read_timeout") or SECONDS,
        connections=options.get("max_pool_connections") or 10,
    )


def _is_set_up(session: Any) -> bool:
    """Tell whether a session has settings that change what its clients do, beyond those that are heeded here."""
    loader = session.get_component("data_loader")
    variables = ("use_fips_endpoint", "use_dualstack_endpoint", "auth_scheme_preference", "sigv4a_signing_region_set")
    return (
        os.path.isdir(loader.CUSTOMER_DATA_PATH)  # may have endpoints of its own
        or bool(session.get_config_variable("data_path"))
        or session.get_config_variable("defaults_mode") not in (None, "legacy")
        or any(session.get_config_variable(name) for name in variables)
    )


class ClientAccess:
    """A bucket that is reached with the credentials, the address and the connections of a client of boto3.

    :param client: the client.
    :param bucket: the bucket.
    """

    def __init__(self, client: S3Client, bucket: str) -> None:
        self._client: Any = client
        self._bucket = bucket

    @property
    def is_plain(self) -> bool:
        """See :class:`include.archive.stores.s3_access.Access`, and what is signed at all."""
        return is_plain_bucket(self._bucket) and self._client.meta.config.signature_version is not UNSIGNED

    @cached_property
    def address(self) -> str:
        """See :class:`include.archive.stores.s3_access.Access`."""
        # Only botocore knows how this bucket is addressed; a presigned URL would show the global endpoint.
        operation = self._client.meta.service_model.operation_model("PutObject")
        place = {"Bucket": self._bucket, "Key": "x"}
        return str(self._client._resolve_endpoint_ruleset(operation, place, {})[0].rstrip("/"))

    @property
    def region(self) -> str:
        """See :class:`include.archive.stores.s3_access.Access`."""
        return str(self._client.meta.region_name)

    def credentials(self) -> Any:
        """See :meth:`include.archive.stores.s3_access.Access.credentials`."""
        keeper = self._client._request_signer._credentials
        with _answers():
            return keeper and keeper.get_frozen_credentials()

    def client(self) -> S3Client:
        """See :meth:`include.archive.stores.s3_access.Access.client`."""
        client: S3Client = self._client
        return client

    def transmit(self, request: Request) -> Reply:
        """See :meth:`include.archive.stores.s3_access.Access.transmit`."""
        prepared: Any = AWSPreparedRequest(
            request.method,
            request.url,
            request.headers,  # type: ignore[arg-type]
            request.body,
            stream_output=request.stream_output,
        )
        # As the client does: who watches its requests, or answers in the place of S3, sees these as well.
        name = f"before-send.s3.{request.operation}"
        _, reply = self._client.meta.events.emit_until_response(name, request=prepared)
        if reply is None and not self._is_behind_proxy:
            return exchanged(self._pool, prepared)
        with _answers():
            reply = reply or self._client._endpoint.http_session.send(prepared)
            if request.stream_output and reply.status_code in {200, 206}:
                return Reply(reply.status_code, reply.headers, b"", _chunks(reply))
            return Reply(reply.status_code, reply.headers, reply.content or b"")

    @cached_property
    def _is_behind_proxy(self) -> bool:
        return bool(self._client._endpoint.http_session._proxy_config.proxy_url_for(self.address))

    @cached_property
    def _pool(self) -> HTTPConnectionPool:
        session = self._client._endpoint.http_session
        pool: HTTPConnectionPool = session._manager.connection_from_url(self.address)
        session._setup_ssl_cert(pool, self.address, session._verify)
        return pool


def _chunks(reply: Any) -> Iterator[bytes]:
    with named_faults():
        yield from reply.raw.stream(amt=READ_CHUNK)


class Boto3:
    """One bucket, with the methods of :class:`include.archive.stores.s3_wire.Wire` but for streams.

    Each request is sent as often as the client is set up for.

    :param client: the client.
    :param bucket: the bucket.
    """

    def __init__(self, client: S3Client, bucket: str) -> None:
        self._client: Any = client
        self._bucket = {"Bucket": bucket}

    def put(self, key: str, body: bytes | memoryview, headers: Mapping[str, str]) -> Mapping[str, str]:
        """See :meth:`include.archive.stores.s3_wire.Wire.put`."""
        with _answers():
            reply = self._client.put_object(**self._bucket, Key=key, Body=bytes(body), **_parameters(headers))
        return _headers(reply)

    def head(self, key: str) -> Mapping[str, str]:
        """See :meth:`include.archive.stores.s3_wire.Wire.head`."""
        with _answers():
            return _headers(self._client.head_object(**self._bucket, Key=key, ChecksumMode="ENABLED"))

    def put_part(self, key: str, upload_id: str, number: int, body: bytes, headers: Mapping[str, str]) -> str:
        """See :meth:`include.archive.stores.s3_wire.Wire.put_part`."""
        part = {"UploadId": upload_id, "PartNumber": number, "Body": body, **_parameters(headers)}
        with _answers():
            return str(self._client.upload_part(**self._bucket, Key=key, **part)["ETag"])

    def create_upload(self, key: str, headers: Mapping[str, str]) -> tuple[str, bool]:
        """See :meth:`include.archive.stores.s3_wire.Wire.create_upload`."""
        with _answers():
            reply = self._client.create_multipart_upload(**self._bucket, Key=key, **_parameters(headers))
        return str(reply["UploadId"]), bool(reply["ResponseMetadata"].get("RetryAttempts"))

    def complete_upload(
        self, key: str, upload_id: str, parts: Sequence[Mapping[str, Any]], headers: Mapping[str, str]
    ) -> None:
        """See :meth:`include.archive.stores.s3_wire.Wire.complete_upload`."""
        upload = {"UploadId": upload_id, "MultipartUpload": {"Parts": parts}}
        with _answers():
            self._client.complete_multipart_upload(**self._bucket, Key=key, **upload, **_parameters(headers))

    def abort_upload(self, key: str, upload_id: str) -> None:
        """See :meth:`include.archive.stores.s3_wire.Wire.abort_upload`."""
        with _answers():
            self._client.abort_multipart_upload(**self._bucket, Key=key, UploadId=upload_id)

    def delete(self, key: str, headers: Mapping[str, str]) -> None:
        """See :meth:`include.archive.stores.s3_wire.Wire.delete`."""
        with _answers():
            self._client.delete_object(**self._bucket, Key=key, **_parameters(headers))

    def objects(self, prefix: str, delimiter: str, following: str | None) -> Objects:
        """See :meth:`include.archive.stores.s3_wire.Wire.objects`."""
        where = {"Prefix": prefix, "Delimiter": delimiter} if delimiter else {"Prefix": prefix}
        where |= {"ContinuationToken": following} if following else {}
        with _answers():
            page = self._client.list_objects_v2(**self._bucket, **where)
        return Objects(
            [
                Listed(one["Key"], one["Size"], one["ETag"], one["LastModified"].timestamp())
                for one in page.get("Contents", [])
            ],
            [one["Prefix"] for one in page.get("CommonPrefixes", [])],
            page.get("NextContinuationToken"),
        )

    def uploads(self, prefix: str, following: tuple[str, str] | None) -> Uploads:
        """See :meth:`include.archive.stores.s3_wire.Wire.uploads`."""
        where = {"KeyMarker": following[0], "UploadIdMarker": following[1]} if following else {}
        with _answers():
            page = self._client.list_multipart_uploads(**self._bucket, Prefix=prefix, **where)
        return Uploads(
            [Begun(one["Key"], one["UploadId"], one["Initiated"].timestamp()) for one in page.get("Uploads", [])],
            (page["NextKeyMarker"], page["NextUploadIdMarker"]) if page.get("IsTruncated") else None,
        )

    def get(self, key: str, start: int) -> tuple[Mapping[str, str], Iterator[bytes]]:
        """See :meth:`include.archive.stores.s3_wire.Wire.get`; without headers, since boto3 compares by itself."""
        where = {"Range": f"bytes={start}-"} if start else {}
        with _answers():
            body = self._client.get_object(**self._bucket, Key=key, **where)["Body"]
        return {}, self._chunks(key, body)

    def _chunks(self, key: str, body: Any) -> Iterator[bytes]:
        try:
            with _answers():
                try:
                    yield from body.iter_chunks(READ_CHUNK)
                except FlexibleChecksumError as error:
                    where = f"s3://{self._bucket['Bucket']}/{key}"
                    raise IntegrityError(f"{where}: the bytes do not match the store's own checksum") from error
        finally:
            body.close()


@contextmanager
def _answers() -> Iterator[None]:
    """Turn what botocore raises into what :class:`include.archive.stores.s3_wire.Wire` does."""
    try:
        yield
    except ClientError as error:
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        raise RefusedError(status, str(error.response.get("Error", {}).get("Code", ""))) from error
    except RecursionError:
        # botocore asks a store that answers with a redirect for the bucket's region, over and over.
        raise RefusedError(301, "PermanentRedirect") from None
    except BotoCoreError as error:
        raise UnansweredError(type(error).__name__) from error


def _parameters(headers: Mapping[str, str]) -> dict[str, Any]:
    """Return headers in boto3's words."""
    notes = {name[len(_NOTE) :]: value for name, value in headers.items() if name.startswith(_NOTE)}
    named: dict[str, Any] = {_PARAMETERS[name]: value for name, value in headers.items() if not name.startswith(_NOTE)}
    if "MpuObjectSize" in named:
        named["MpuObjectSize"] = int(named["MpuObjectSize"])
    return {**named, "Metadata": notes} if notes else named


def _headers(reply: Any) -> Mapping[str, str]:
    return {name.lower(): value for name, value in reply["ResponseMetadata"]["HTTPHeaders"].items()}
