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

__all__ = ["LocalStore", "ObjectInfo", "Store", "Unfinished", "Writer", "open_store"]

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


def open_store(uri: str, *, s3_client: Callable[[], S3Client] | None = None) -> Store:
    """Return the store that an archive's address names. Does no I/O.

    :param uri: ``s3://bucket/prefix`` or ``file:///absolute/folder``.
    :param s3_client: makes the client; called for ``s3://`` only.
    :raises BadArchiveUriError: when the address is neither, or there is no client for it.
    """
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
        return LocalStore(root="/" + "/".join(segments))
    if address.scheme == "s3":
        if not _BUCKET.fullmatch(netloc):
            raise BadArchiveUriError("an S3 archive is addressed as s3://bucket/prefix")
        if s3_client is None:
            raise BadArchiveUriError("an S3 archive needs an S3 client")
        with _without_collections():
            # Not before it is needed: it brings botocore.
            from include.archive.stores.s3 import S3Store

            return S3Store(bucket=netloc, prefix="/".join(segments), client=s3_client())
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
