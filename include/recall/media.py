"""Fetching from signed links: parts lists and audio.

A link is whatever the API, or whoever stands in for it, made it. So this client holds no key and no cookies, decides
itself which addresses it connects to, and believes a body to be whole only if its length says so.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import contextlib
import ipaddress
import json
import re
import ssl
import threading
import time
from functools import cache
from http.client import HTTPException
from typing import TYPE_CHECKING, NoReturn, TypeVar
from urllib.parse import urljoin, urlsplit

import certifi
import urllib3
from urllib3.connection import HTTPConnection
from urllib3.exceptions import HTTPError
from urllib3.util import parse_url

from include.recall.errors import (
    RecallConfigError,
    RecallError,
    RecallHostNotAllowedError,
    RecallLinkExpiredError,
    RecallMediaCutError,
    RecallMediaForbiddenError,
    RecallMediaSlowError,
    RecallRateLimitError,
    RecallRequestError,
    RecallResponseError,
    RecallSchemaError,
    RecallServerError,
    RecallTooLargeError,
    RecallUnexpectedContentError,
    RecallUnsafeRedirectError,
)
from include.recall.models import AudioPart, Participant
from include.recall.redaction import hide_signed_links, redact_http_logs
from include.recall.retry import RetryPolicy, parse_retry_after
from include.recall.transport import (
    PlainConnection,
    Reply,
    SecureConnection,
    get,
    parsed,
    reason_of,
    timed_out,
    use_connections,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from include.recall.models import SignedLink

Entry = TypeVar("Entry")

USER_AGENT = "recall-audio-archive"
MOST_REDIRECTS = 3
LARGEST_PARTS_LIST = 64 * 2**20
LARGEST_ENTRY = 2**20
LARGEST_DOCUMENT = 16 * 2**20
MOST_PARTS = 200_000
PARTS_LIST_SECONDS = 300.0
CHUNK = 256 * 1024
LONGEST_COLLECTING = 0.2
MOST_CONNECTIONS = 64

# 400 is S3's answer to an expired session token.
_REFUSED = frozenset({400, 401, 403, 404, 410})
_NETWORK_ERRORS = (HTTPError, HTTPException, OSError)
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)")
_SPACE = re.compile(r"[ \t\r\n]*")
_DIGEST_BYTES = {"md5": 16, "sha256": 32, "crc32": 4}


class MediaBody:
    """One body on its way.

    :param response: the open reply.
    :param offset: where in the whole body it begins.
    :param length: bytes of the whole body; ``None`` if nobody told.
    :param min_rate: bytes per second that must come in every window, counting only the time spent waiting for them.
    :param window: seconds.
    :param end: when the body must be complete, on ``clock``; ``None`` for no limit.
    """

    def __init__(
        self,
        response: Reply,
        *,
        offset: int,
        length: int | None,
        min_rate: float,
        window: float,
        end: float | None,
        clock: Callable[[], float],
    ) -> None:
        self.offset = offset
        self.length = length
        self.etag = _strong(response.headers.get("ETag"))
        self.content_type = response.headers.get("Content-Type")
        self.takes_ranges = response.headers.get("Accept-Ranges", "").strip().lower() == "bytes"
        self.checksums = _checksums(response.headers) if response.status == 200 else {}
        self._response = response
        self._position = offset
        self._min_rate = min_rate
        self._window = window
        self._end = end
        self._clock = clock
        self._waited = 0.0
        self._came = 0
        self._broken: RecallError | None = None

    def readinto(self, buffer: memoryview) -> int:
        """Read what comes next into ``buffer``.

        :return: how many bytes; 0 at the end of the whole body.
        :raises RecallMediaCutError: the connection ended too early.
        :raises RecallMediaSlowError: too little came for too long.
        """
        started = self._clock()
        failure, self._broken = self._broken, None
        count = 0
        try:
            # A socket, and TLS even more so, gives little at a time; what follows costs the same for much.
            while failure is None and count < len(buffer):
                came = self._response.receive_into(buffer[count:])
                count += came
                if not came or self._clock() - started > LONGEST_COLLECTING:
                    break
        except _NETWORK_ERRORS as error:
            failure = _failure(error, f"byte {self._position + count} of a body")
        if count:
            failure, self._broken = None, failure  # what came before counts
        if failure is None:
            self._position += count
            failure = self._shortcoming(count, started, self._clock())
        if failure is not None:
            self.close()
            raise failure
        return count

    def interrupt(self) -> None:
        """Make a read that waits in another thread fail at once."""
        self._response.interrupt()

    def close(self) -> None:
        """Let go of the connection; it is kept for the next request if the body was read to its end."""
        self._response.close()

    def _shortcoming(self, came: int, started: float, now: float) -> RecallError | None:
        if came == 0:
            if self.length is not None and self._position < self.length:
                return RecallMediaCutError(f"the body ended at byte {self._position} of {self.length}")
            return None
        if self._end is not None and now >= self._end:
            return RecallMediaSlowError(f"the body was not complete in time, at byte {self._position}")
        self._came += came
        self._waited += now - started
        if self._waited < self._window:
            return None
        if self._came < self._min_rate * self._waited:
            return RecallMediaSlowError(f"only {self._came} bytes in {self._waited:.0f} s, at byte {self._position}")
        self._came, self._waited = 0, 0.0
        return None


class MediaClient:
    """Fetches from signed links, without key, cookies, netrc or proxies.

    Addresses: https to public addresses, and whatever is in ``allowed_hosts``. Names are resolved here, and the socket
    is connected to the very address that was checked.

    :param allowed_hosts: ``host`` or ``host:port`` that may also be private, loopback or plain http.
    :param connect_timeout: seconds for one address.
    :param read_timeout: seconds for the headers, and for each wait within a body.
    :param min_bytes_per_second: a body slower than this for ``rate_window`` seconds is given up.
    :param rate_window: seconds.
    :param total_deadline: seconds for one body; none by default, since a minimum rate bounds it.
    :param ca_bundle: file of trusted certificates, certifi's by default.
    :param retry: when to fetch a parts list again; bodies of audio are resumed by who reads them.
    :param clock: monotonic seconds.
    :raises RecallConfigError: an allowed host can't be one.
    """

    def __init__(
        self,
        *,
        allowed_hosts: Collection[str] = (),
        connect_timeout: float = 10.0,
        read_timeout: float = 30.0,
        min_bytes_per_second: float = 1024.0,
        rate_window: float = 30.0,
        total_deadline: float | None = None,
        ca_bundle: str | None = None,
        retry: RetryPolicy | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        redact_http_logs()
        self._allowed = frozenset(_host_and_port(entry) for entry in allowed_hosts)
        self._timeout = urllib3.Timeout(connect=connect_timeout, read=read_timeout)
        self._min_rate = min_bytes_per_second
        self._window = rate_window
        self._total_deadline = total_deadline
        self._retry = retry or RetryPolicy(deadline=PARTS_LIST_SECONDS)
        self._clock = clock
        # A pool manager of urllib3 never looks at the environment, and knows neither cookies nor credentials.
        self._pools = urllib3.PoolManager(maxsize=MOST_CONNECTIONS, ssl_context=trusting(ca_bundle or certifi.where()))
        rules = {"is_allowed": staticmethod(self._is_allowed)}
        use_connections(
            self._pools,
            type("PlainVetted", (_Vetting, PlainConnection), rules),
            type("SecureVetted", (_Vetting, SecureConnection), rules),
        )

    def close(self) -> None:
        """Close the connections that are not in use."""
        self._pools.clear()

    def get_parts(self, link: SignedLink) -> list[AudioPart]:
        """Fetch a parts list.

        :param link: an artifact's ``download_url``.
        :raises RecallLinkExpiredError: the link is refused; fetch the artifact anew.
        :raises RecallSchemaError: it is no array, or an entry lacks what nothing works without.
        :raises RecallTooLargeError: it is beyond every plausible size.
        :raises RecallResponseError: it is not JSON.
        """
        return self._get_list(link, "a parts list", AudioPart.parse)

    def get_document(self, link: SignedLink, what: str) -> bytes:
        """Fetch a small JSON list to keep: as it is, byte for byte, but for the secrets of links in it.

        Raises as :meth:`get_parts` does.

        :param link: one of a recording's ``documents``.
        :param what: what it is, for messages.
        """

        def attempt(end: float) -> bytes:
            body = self._open(link, 0, None, end=self._clock() + end - self._retry.clock())
            try:
                data = b"".join(_chunks(body, what, LARGEST_DOCUMENT))
            finally:
                body.close()
            read_list(data, what, lambda entry, path: None)
            return hide_signed_links(data)

        return self._retry.run(attempt)

    def get_participants(self, link: SignedLink) -> list[Participant]:
        """Fetch the list of everyone who was there; raises as :meth:`get_parts` does."""
        return parse_participants(self.get_document(link, "the list of participants"))

    def _get_list(self, link: SignedLink, what: str, parse: Callable[[object, str], Entry]) -> list[Entry]:
        def attempt(end: float) -> list[Entry]:
            body = self._open(link, 0, None, end=self._clock() + end - self._retry.clock())
            try:
                return _read_list(_chunks(body, what, LARGEST_PARTS_LIST), what, parse)
            finally:
                body.close()

        return self._retry.run(attempt)

    def open(
        self, link: SignedLink, *, offset: int = 0, if_match: str | None = None, end: int | None = None
    ) -> MediaBody:
        """Begin to fetch a body.

        :param link: a part's ``download_url``.
        :param offset: byte to go on from. The body's own ``offset`` is 0 instead if the server can't, or if the body is
            no longer the one of ``if_match``.
        :param if_match: strong entity tag of the body that is resumed.
        :param end: byte to stop before; the server may send less, or more.
        :raises RecallLinkExpiredError: the link is refused; a fresh one may help.
        :raises RecallHostNotAllowedError: the address rule forbids it; nothing was sent.
        :raises RecallUnsafeRedirectError: so it does for a redirect's target, or there are too many.
        :raises RecallUnexpectedContentError: the reply can't be the body.
        :raises RecallRateLimitError: the host asked to wait.
        :raises RecallServerError: the host failed.
        :raises RecallRequestError: its certificate can't be trusted.
        :raises RecallMediaCutError: it can't be reached.
        :raises RecallMediaSlowError: it doesn't answer in time.
        """
        deadline = None if self._total_deadline is None else self._clock() + self._total_deadline
        return self._open(link, offset, if_match, last=None if end is None else end - 1, end=deadline)

    def _open(
        self, link: SignedLink, offset: int, if_match: str | None, *, last: int | None = None, end: float | None
    ) -> MediaBody:
        headers = {"User-Agent": USER_AGENT, "Accept": "*/*", "Accept-Encoding": "identity"}
        if offset or last is not None:
            headers["Range"] = f"bytes={offset}-{'' if last is None else last}"
            if if_match is not None:
                headers["If-Match"] = if_match
        response = self._get(link.reveal(), headers)
        try:
            placed = _place(response, link.host, offset, if_match, is_range="Range" in headers)
        except RecallError:
            response.close()
            raise
        if placed is None:
            response.close()
            return self._open(link, 0, None, end=end)
        begin, length = placed
        return MediaBody(
            response,
            offset=begin,
            length=length,
            min_rate=self._min_rate,
            window=self._window,
            end=end,
            clock=self._clock,
        )

    def _get(self, url: str, headers: Mapping[str, str]) -> Reply:
        response = self._get_once(url, headers)
        for _ in range(MOST_REDIRECTS):
            if response.status not in _REDIRECTS:
                return response
            response.close()
            failure: RecallError
            try:
                url = urljoin(url, response.headers.get("Location") or "")
                response = self._get_once(url, headers)
            except (RecallHostNotAllowedError, ValueError) as error:
                why = error.message if isinstance(error, RecallError) else "it is no URL"
                failure = RecallUnsafeRedirectError(f"a redirect of the media host is not followed: {why}")
            else:
                continue
            raise failure
        if response.status not in _REDIRECTS:
            return response
        response.close()
        raise RecallUnsafeRedirectError(f"the media host redirected more than {MOST_REDIRECTS} times")

    def _get_once(self, url: str, headers: Mapping[str, str]) -> Reply:
        host = self._checked_host(url)
        failure: RecallError
        try:
            target = parse_url(url)
            pool = self._pools.connection_from_host(target.host, target.port, target.scheme)
            return get(pool, target, headers, self._timeout)
        except _NETWORK_ERRORS as error:
            failure = _failure(error, f"media host {host}")
        raise failure  # outside of the handler, so that no library's text with the URL in it hangs on

    def _checked_host(self, url: str) -> str:
        # By the parser that the connection goes by: what two of them read differently, one would let through.
        target = parsed(url)
        if target is None:
            raise RecallHostNotAllowedError("a link that is no http(s) URL")
        scheme, host, port, _ = target
        if scheme != "https" and not self._is_allowed(host, port):
            raise RecallHostNotAllowedError(
                f"media host {host}:{port} without TLS is not allowed; if it is yours, add it to media_hosts"
            )
        return f"{host}:{port}"

    def _is_allowed(self, host: str, port: int) -> bool:
        return (host, port) in self._allowed or (host, None) in self._allowed


class PartSource:
    """One part's bytes, whose links come and go.

    :param media: fetches them.
    :param link: the first link.
    :param refresh: asks the API for a fresh one.
    :param max_refreshes: fresh links in a row that may be refused before any further byte has come.
    """

    def __init__(
        self, media: MediaClient, link: SignedLink, refresh: Callable[[], SignedLink], max_refreshes: int = 3
    ) -> None:
        self._media = media
        self._link = link
        self._refresh = refresh
        self._max_refreshes = max_refreshes
        self._refreshes = 0
        self._refreshed_at = 0
        self._refreshing = threading.Lock()

    def open(self, offset: int = 0, if_match: str | None = None, end: int | None = None) -> MediaBody:
        """Begin to fetch the part, see :meth:`MediaClient.open`; from several threads, if need be.

        :raises RecallMediaForbiddenError: fresh links are refused too.
        """
        refused = 0
        while True:
            link = self._link
            try:
                return self._media.open(link, offset=offset, if_match=if_match, end=end)
            except RecallLinkExpiredError as error:
                refusal = error.message
            with self._refreshing:
                if offset > self._refreshed_at and end is None:
                    self._refreshes, self._refreshed_at = 0, offset
                # Where ranges are read side by side, a higher place says nothing about what has come.
                if (self._refreshes if end is None else refused) >= self._max_refreshes:
                    raise RecallMediaForbiddenError(
                        f"refused with {self._max_refreshes} fresh links in a row too: {refusal}; see in Recall's "
                        "dashboard whether it plays there"
                    )
                if link is self._link:  # else another thread has a fresh one
                    self._link = self._refresh()
                    if end is None:
                        self._refreshes += 1
            refused += 1


class _Vetting(HTTPConnection):
    is_allowed: Callable[[str, int], bool]

    def vet(self, host: str, port: int, addresses: list[str]) -> None:
        if not self.is_allowed(host, port) and not all(is_public(address) for address in addresses):
            raise RecallHostNotAllowedError(
                f"media host {host[:253]!r} is not allowed: it has an address that is not public; "
                "if it is yours, add it to media_hosts"
            )


@cache
def trusting(ca_bundle: str) -> ssl.SSLContext:
    """Return what checks certificates; reading a bundle takes as long as fetching a small part.

    :param ca_bundle: file of trusted certificates.
    """
    return ssl.create_default_context(cafile=ca_bundle)


def is_public(address: str) -> bool:
    """Tell whether an address is one of the public internet, also behind IPv6 forms that stand for an IPv4 one.

    :param address: numeric form.
    """
    ip = ipaddress.ip_address(address.split("%", 1)[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour
        if inner is None and ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            ip = inner
        elif ip.is_site_local:
            return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved)


def _host_and_port(entry: str) -> tuple[str, int | None]:
    text = entry.strip().lower()
    if text.count(":") > 1 and not text.startswith("["):
        text = f"[{text}]"
    try:
        target = urlsplit(f"//{text}")
        host, port = target.hostname, target.port
    except ValueError:
        host, port = None, None
    if not host or target.netloc != text or "@" in text:
        raise RecallConfigError(f"{entry[:253]!r} can't be a media host; it must be a host or host:port")
    return host.rstrip("."), port


def _failure(error: Exception, what: str) -> RecallError:
    reason, permanent = reason_of(error)
    if permanent:
        return RecallRequestError(f"{what}: {reason}", permanent=True)
    if timed_out(error):
        return RecallMediaSlowError(f"{what}: {reason}")
    return RecallMediaCutError(f"{what}: {reason}")


def _place(
    response: Reply, host: str, offset: int, if_match: str | None, *, is_range: bool
) -> tuple[int, int | None] | None:
    """Say where a reply's body begins and how long the whole is; ``None`` if it has to be fetched from the start."""
    status, headers = response.status, response.headers
    if is_range and status in (412, 416):
        return None
    if status in _REFUSED:
        raise RecallLinkExpiredError(f"media host {host} refused the link with {status}")
    if status == 429:
        raise RecallRateLimitError(
            f"media host {host} asks for patience", status=status, retry_after=parse_retry_after(headers)
        )
    if status >= 500:
        raise RecallServerError(
            f"media host {host} answered {status}", status=status, retry_after=parse_retry_after(headers)
        )
    if status not in (200, 206) or (status == 206 and not is_range):
        raise RecallUnexpectedContentError(f"media host {host} answered {status} instead of a body")
    encoding = headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("identity", ""):
        raise RecallUnexpectedContentError(f"media host {host} sent an encoded body, which was not asked for")
    sent = None if "Transfer-Encoding" in headers else _natural(headers.get("Content-Length"))
    if status == 200:
        return 0, sent
    span = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", "").strip())
    tag = _strong(headers.get("ETag"))
    if span is None or int(span[1]) != offset or (if_match and tag and tag != if_match):
        return None
    if span[3] == "*":
        return offset, None if sent is None else offset + sent
    return (offset, int(span[3])) if int(span[3]) >= offset else None


def _natural(value: str | None) -> int | None:
    return int(value) if value is not None and re.fullmatch(r"[0-9]{1,18}", value.strip()) else None


def _strong(tag: str | None) -> str | None:
    return tag if tag is not None and re.fullmatch(r'"[!#-~]*"', tag) else None


def _checksums(headers: Mapping[str, str]) -> dict[str, str]:
    """Collect what a reply's headers state about the bytes of its body, as lower-case hex."""
    stated = {"md5": headers.get("Content-MD5")}
    if headers.get("x-amz-checksum-type", "").strip().upper() != "COMPOSITE":
        stated |= {name: headers.get(f"x-amz-checksum-{name}") for name in ("sha256", "crc32")}
    for header in ("Digest", "Content-Digest", "Repr-Digest"):
        match = re.search(r"(?i)(?:^|,)\s*sha-256=:?([a-z0-9+/]+=*):?", headers.get(header, ""))
        if match:
            stated["sha256"] = match[1]
    return {name: digest for name, value in stated.items() if value and (digest := _hex(value, _DIGEST_BYTES[name]))}


def _hex(value: str, size: int) -> str | None:
    try:
        digest = base64.b64decode(value.strip(), validate=True)
    except (binascii.Error, ValueError):
        return None
    return digest.hex() if len(digest) == size else None


def _chunks(body: MediaBody, what: str, most: int) -> Iterator[bytes]:
    buffer = memoryview(bytearray(CHUNK))
    came = 0
    while count := body.readinto(buffer):
        came += count
        if came > most:
            raise RecallTooLargeError(f"{what} of more than {most} bytes")
        yield bytes(buffer[:count])


def parse_participants(data: bytes) -> list[Participant]:
    """Read the list of everyone who was there; raises as :func:`read_list` does."""
    return read_list(data, "the list of participants", Participant.parse)


def read_list(data: bytes, what: str, parse: Callable[[object, str], Entry]) -> list[Entry]:
    """Read a JSON list, entry by entry.

    :param data: what :meth:`MediaClient.get_document` returned.
    :param what: what it is, for messages.
    :param parse: gets an entry and its path.
    :raises RecallSchemaError: it is no array, or ``parse`` refuses an entry.
    :raises RecallResponseError: it is not JSON.
    :raises RecallTooLargeError: it has more entries than is plausible.
    """
    pieces = (data[start : start + CHUNK] for start in range(0, len(data), CHUNK))
    return _read_list(pieces, what, parse)


def _read_list(chunks: Iterator[bytes], what: str, parse: Callable[[object, str], Entry]) -> list[Entry]:
    entries: list[Entry] = []
    try:
        for index, entry in enumerate(_ArrayReader(chunks)):
            if index >= MOST_PARTS:
                raise RecallTooLargeError(f"{what} of more than {MOST_PARTS} entries")
            entries.append(parse(entry, f"[{index}]"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        unreadable = f"{what} is no JSON: {type(error).__name__} after {len(entries)} entries"
    else:
        return entries
    raise RecallResponseError(unreadable)


class _ArrayReader:
    """Decodes a JSON array entry by entry, so that memory is bounded by what is kept, not by what is sent."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._utf8 = codecs.getincrementaldecoder("utf-8-sig")()
        self._json = json.JSONDecoder(parse_constant=_no_constant, parse_int=_integer)
        self._text = ""
        self._at = 0

    def __iter__(self) -> Iterator[object]:
        if self._next() != "[":
            self._entry()  # raises unless it is JSON
            raise RecallSchemaError("a list is no array; the API's schema has changed", field="")
        self._at += 1
        if self._next() == "]":
            self._at += 1
        else:
            yield from self._entries()
        if self._next():
            self._unreadable()

    def _entries(self) -> Iterator[object]:
        while True:
            yield self._entry()
            mark = self._next()
            self._at += 1
            if mark == "]":
                return
            if mark != ",":
                self._unreadable()

    def _entry(self) -> object:
        self._next()
        while True:
            with contextlib.suppress(json.JSONDecodeError):
                entry, end = self._json.raw_decode(self._text, self._at)
                # What looks like a whole number may go on in the next chunk.
                if end < len(self._text) and self._text[end] in " \t\r\n,]":
                    self._at = end
                    return entry
            if len(self._text) - self._at > LARGEST_ENTRY:
                raise RecallTooLargeError(f"a list's entry of more than {LARGEST_ENTRY} characters")
            if not self._more():
                entry, self._at = self._json.raw_decode(self._text, self._at)
                return entry

    def _next(self) -> str:
        """Return the next character that means something, without taking it; empty at the end."""
        while True:
            match = _SPACE.match(self._text, self._at)
            self._at = match.end() if match else self._at
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def _more(self) -> bool:
        chunk = next(self._chunks, None)
        self._text = self._text[self._at :] + self._utf8.decode(chunk or b"", final=chunk is None)
        self._at = 0
        return chunk is not None

    def _unreadable(self) -> NoReturn:
        raise json.JSONDecodeError("not an array", "", 0)


def _no_constant(name: str) -> NoReturn:
    raise json.JSONDecodeError(f"{name} is not JSON", "", 0)


def _integer(digits: str) -> int:
    if len(digits) > 4000:  # Python refuses to convert such numbers, with a plain ValueError
        raise json.JSONDecodeError("number too long", "", 0)
    return int(digits)
