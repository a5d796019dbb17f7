"""Where the archive lives: one small interface, a local folder or an S3 bucket behind it."""

from __future__ import annotations

import gc
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from include.archive.errors import BadArchiveUriError
from include.archive.stores.base import ObjectInfo, Store, Unfinished, Writer
from include.archive.stores.local import LocalStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mypy_boto3_s3 import S3Client

    from include.archive.stores.s3_access import Access

__all__ = ["LocalStore", "ObjectInfo", "Store", "Unfinished", "Writer", "check_uri", "open_store"]

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


def open_store(
    uri: str,
    *,
    s3_client: Callable[[], S3Client] | None = None,
    s3_access: Callable[[str], Access | None] | None = None,
) -> Store:
    """Return the store that an archive's address names. Does no I/O.

    :param uri: ``s3://bucket/prefix`` or ``file:///absolute/folder``.
    :param s3_client: makes a client of boto3; called for ``s3://`` only.
    :param s3_access: says how a bucket is reached without a client, or None where it takes one; asked first, and for
        ``s3://`` only.
    :raises BadArchiveUriError: when the address is neither, or there is no client for it.
    """
    scheme, bucket, path = _parsed(uri)
    if scheme == "file":
        return LocalStore(root=f"/{path}")
    with _without_collections():
        # Not before it is needed: it brings urllib3.
        from include.archive.stores.s3 import S3Store

        if s3_access is not None and (access := s3_access(bucket)) is not None:
            return S3Store(bucket=bucket, prefix=path, access=access)
        if s3_client is None:
            raise BadArchiveUriError("an S3 archive needs an S3 client")
        return S3Store(bucket=bucket, prefix=path, client=s3_client())


def check_uri(uri: str) -> None:
    """Refuse an address that :func:`open_store` would refuse.

    :raises BadArchiveUriError: when it is none of an archive.
    """
    _parsed(uri)


def _parsed(uri: str) -> tuple[str, str, str]:
    """Return the scheme of an archive's address, its bucket if it has one, and its path without slashes at the ends."""
    # The address itself stays out of the messages: somebody may have put credentials into it.
    try:
        address = urlsplit(uri.strip())
        netloc, path = address.netloc, unquote(address.path, errors="strict")
    except ValueError:
        raise BadArchiveUriError("the archive's address is not a URI") from None
    if address.query or address.fragment or any(ord(char) < 0x20 or char == "\x7f" for char in path):
        raise BadArchiveUriError("the archive's address has a query, a fragment or control characters")
    segments = [segment for segment in path.split("/") if segment]
    if {".", ".."}.intersection(segments):
        raise BadArchiveUriError("the archive's address has '.' or '..' in its path")
    if address.scheme == "file":
        if netloc not in {"", "localhost"} or not segments or not path.startswith("/"):
            raise BadArchiveUriError("a local archive is addressed as file:///absolute/folder")
        return "file", "", "/".join(segments)
    if address.scheme == "s3":
        if not _BUCKET.fullmatch(netloc):
            raise BadArchiveUriError("an S3 archive is addressed as s3://bucket/prefix")
        return "s3", netloc, "/".join(segments)
    raise BadArchiveUriError("the archive's address begins neither with s3:// nor with file:///")


@contextmanager
def _without_collections() -> Iterator[None]:
    """Look for no garbage: there is none among the objects that a client and its imports are made of.

    Looking takes half of the time that a client takes, and every task of Airflow makes one.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
