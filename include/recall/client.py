"""The client of Recall's API, and the only place that builds requests with the key."""

from __future__ import annotations

import html
import json
import re
from collections import Counter
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, Literal, Protocol
from urllib.parse import quote, urlencode, urljoin

import requests
import urllib3
from requests.adapters import HTTPAdapter

from include.recall.errors import (
    RecallApiError,
    RecallAuthError,
    RecallBlockedError,
    RecallConfigError,
    RecallConflictError,
    RecallError,
    RecallNoBotsError,
    RecallNotFoundError,
    RecallPaginationError,
    RecallPaymentError,
    RecallRateLimitError,
    RecallRequestError,
    RecallResponseError,
    RecallServerError,
    RecallUnsafeRedirectError,
)
from include.recall.models import AudioArtifact, Bot, Recording, parse_page
from include.recall.redaction import HIDDEN, redact, redact_http_logs
from include.recall.retry import RetryPolicy, parse_date, parse_retry_after
from include.recall.transport import (
    PlainWholeConnection,
    SecureWholeConnection,
    linked,
    parsed,
    reason_of,
    use_connections,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

USER_AGENT = "recall-audio-archive"
LARGEST_REPLY = 32 * 2**20
MOST_PAGES = 10_000

RequestKind = Literal["create", "list", "retrieve"]

_SAFE_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_SAFE_KEY = re.compile(r"[!-~]{1,512}")

_ERRORS: dict[int, tuple[type[RecallApiError], str]] = {
    401: (RecallAuthError, "the API key is wrong, or belongs to another region"),
    402: (RecallPaymentError, "the account's balance is too low"),
    403: (RecallBlockedError, "Recall's firewall refused the request"),
    409: (RecallConflictError, "the same request, or what it is about, is still under way"),
    429: (RecallRateLimitError, "the workspace's request budget is used up"),
    507: (RecallNoBotsError, "no ad-hoc bot is free; try again with a new idempotency key"),
}


class RequestBudget(Protocol):
    """A share of the workspace's request limits, asked before every request."""

    def take(self, kind: RequestKind, longest: float) -> float:
        """Reserve a request.

        :param kind: which of Recall's limits it counts against.
        :param longest: seconds that the caller can wait; if it had to wait longer, nothing is reserved.
        :return: seconds to wait before the request may go.
        """

    def pause(self, kind: RequestKind, seconds: float) -> None:
        """Take note that the API asked everyone to stay away for so long."""


class Observer(Protocol):
    """Is told what a client's requests come to."""

    def answered(self, kind: RequestKind, result: str, *, again: bool) -> None:
        """Take note of a request.

        :param result: ``ok``, or the code of what went wrong.
        :param again: whether the call had sent one before.
        """

    def waited(self, kind: RequestKind, seconds: float) -> None:
        """Take note that a request had to wait for its turn in the budget."""


class _Adapter(HTTPAdapter):
    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        use_connections(self.poolmanager, PlainWholeConnection, SecureWholeConnection)

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> urllib3.ProxyManager:
        manager: urllib3.ProxyManager = super().proxy_manager_for(proxy, **kwargs)
        use_connections(manager, PlainWholeConnection, SecureWholeConnection)
        return manager


@dataclass(frozen=True)
class _Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes


class RecallClient:
    """Recall's API in one region.

    Every call has a total deadline and raises :class:`~include.recall.errors.RecallError` alone. Besides what it names,
    any method may raise ``request_failed``, ``auth_rejected``, ``request_blocked``, ``bad_request``, ``rate_limited``,
    ``server_error``, ``bad_response``, ``schema_changed`` and ``unsafe_redirect``, and ``bad_config`` for an id that
    can't be one.

    The environment's proxies and netrc are ignored, cookies are not kept, and the key goes to the base URL's host
    alone.

    :param api_key: the key of the region; surrounding whitespace is dropped.
    :param base_url: that of a region, see :func:`~include.recall.regions.base_url_of`, or another; used as it stands.
    :param region: the region's name, for messages and records; ``None`` behind a base URL of one's own.
    :param budget: shares Recall's rate limits with others; none by default.
    :param retry: when to try again; its sleep and clock can be replaced.
    :param https_proxy: proxy for the API, none by default.
    :param ca_bundle: file of trusted certificates, certifi's by default.
    :param connect_timeout: seconds for one connection.
    :param read_timeout: seconds for one whole reply.
    :param patience: seconds that a call may wait for its turn in the budget, before its deadline begins to run.
    :param observer: is told of every request; nobody by default.
    :ivar calls: how many requests were sent, by the limit that they count against.
    :raises RecallConfigError: the key or base URL can't be used.
    """

    def __init__(
        self,
        *,
        api_key: str,
        base_url: str,
        region: str | None = None,
        budget: RequestBudget | None = None,
        retry: RetryPolicy | None = None,
        https_proxy: str | None = None,
        ca_bundle: str | None = None,
        connect_timeout: float = 10.0,
        read_timeout: float = 30.0,
        patience: float = 0.0,
        observer: Observer | None = None,
    ) -> None:
        redact_http_logs()
        key = api_key.strip()
        if not _SAFE_KEY.fullmatch(key):
            raise RecallConfigError("the API key is empty or holds characters that no key has")
        self.base_url = base_url.strip().rstrip("/")
        self.region = region
        self.server_time: datetime | None = None
        self.calls: Counter[RequestKind] = Counter()
        if parsed(self.base_url) is None or re.search(r"[?#\s]", self.base_url):
            raise RecallConfigError("the base URL must be like https://us-west-2.recall.ai, without user or query")
        self._budget = budget
        self._retry = retry or RetryPolicy()
        self._connect_timeout = connect_timeout
        self._read_timeout = read_timeout
        self._patience = patience
        self._observer = observer
        self._proxies = {"https": https_proxy} if https_proxy else {}
        self._verify = ca_bundle or True
        self._headers = {
            "Authorization": key,
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            "User-Agent": USER_AGENT,
        }
        # An adapter without a session around it: no cookies, netrc, environment or redirects to switch off.
        self._adapter = _Adapter()

    @property
    def host(self) -> str:
        """The API's host, as messages name it."""
        return self.base_url.split("://", 1)[1].split("/", 1)[0]

    def close(self) -> None:
        """Close the connections."""
        self._adapter.close()

    def create_bot(self, request: Mapping[str, object], *, idempotency_key: str) -> Bot:
        """Send a bot.

        :param request: the body of Create Bot.
        :param idempotency_key: the same for every try of one bot, also after a lost reply; a new one after
            ``no_bots_available``.
        :raises RecallNoBotsError: no ad-hoc bot is free; ``retry_after`` says when to try with a new key.
        :raises RecallConflictError: a request with this key is still under way.
        :raises RecallPaymentError: the balance is too low.
        """
        if not _SAFE_KEY.fullmatch(idempotency_key):
            raise RecallConfigError("the idempotency key is empty or holds characters that a header can't")
        body = json.dumps(request).encode()
        return Bot.parse(self._call("POST", self._url("bot/"), "create", body=body, key=idempotency_key))

    def get_bot(self, bot_id: str) -> Bot:
        """Fetch a bot.

        :raises RecallNotFoundError: ``bot_not_found``: the region doesn't know it.
        """
        return Bot.parse(self._retrieve("bot", bot_id, "bot_not_found"))

    def check_key(self) -> None:
        """Learn whether the key is good: ask for one page, of the recordings that begin after tomorrow, so for none."""
        tomorrow = datetime.now(timezone.utc) + timedelta(days=1)
        next(self._walk("recording/", {"created_at_after": _moment(tomorrow)}), None)

    def find_bots(self, metadata: Mapping[str, str]) -> list[Bot]:
        """List the bots that carry all of this metadata.

        :param metadata: at least one pair.
        """
        if not metadata:
            raise RecallConfigError("bots are found by metadata, and none was given")
        params = {f"metadata__{name}": value for name, value in metadata.items()}
        bots = (Bot.parse(entry, path) for entry, path in self._walk("bot/", params))
        # A server that ignored the filter would make us adopt a stranger's bot.
        return [bot for bot in bots if all(bot.metadata.get(name) == value for name, value in metadata.items())]

    def get_recording(self, recording_id: str) -> Recording:
        """Fetch a recording.

        :raises RecallNotFoundError: ``recording_not_found``: the region doesn't know it.
        """
        return Recording.parse(self._retrieve("recording", recording_id, "recording_not_found"))

    def list_recordings(
        self,
        bot_id: str | None = None,
        *,
        created_at_after: datetime | None = None,
        created_at_before: datetime | None = None,
        status_code: str | None = None,
    ) -> list[Recording]:
        """List recordings, all pages; a walk that can't be finished raises.

        :param bot_id: only this bot's.
        :param created_at_after: only those that began after it (which is not when they finished).
        :param created_at_before: only those that began before it.
        :param status_code: ``processing``, ``paused``, ``done`` or ``failed``.
        """
        params = {
            "bot_id": None if bot_id is None else _checked_id(bot_id),
            "created_at_after": _moment(created_at_after),
            "created_at_before": _moment(created_at_before),
            "status_code": status_code,
        }
        return [Recording.parse(entry, path, bot_id=bot_id) for entry, path in self._walk("recording/", params)]

    def list_audio_separate(self, recording_id: str) -> list[AudioArtifact]:
        """List a recording's separate audio, all pages; empty if there is none (yet)."""
        params = {"recording_id": _checked_id(recording_id)}
        artifacts = (AudioArtifact.parse(entry, path) for entry, path in self._walk("audio_separate/", params))
        return [artifact for artifact in artifacts if artifact.recording_id == recording_id]

    def list_all_audio_separate(
        self, created_at_after: datetime, created_at_before: datetime | None = None
    ) -> dict[str, list[AudioArtifact]]:
        """List the workspace's separate audio, all pages, by recording; a walk that can't be finished raises.

        :param created_at_after: only artifacts that began after it (which is not when they finished).
        :param created_at_before: only artifacts that began before it.
        """
        found: dict[str, list[AudioArtifact]] = {}
        params = {"created_at_after": _moment(created_at_after), "created_at_before": _moment(created_at_before)}
        for entry, path in self._walk("audio_separate/", params):
            artifact = AudioArtifact.parse(entry, path)
            found.setdefault(artifact.recording_id, []).append(artifact)
        return found

    def get_audio_separate(self, artifact_id: str) -> AudioArtifact:
        """Fetch one artifact, with a fresh link.

        :raises RecallNotFoundError: ``artifact_not_found``: the region doesn't know it, or it was deleted.
        """
        return AudioArtifact.parse(self._retrieve("audio_separate", artifact_id, "artifact_not_found"))

    def delete_audio_separate(self, artifact_id: str) -> bool:
        """Delete one artifact at Recall, for good. Sent once: after a lost reply, look again before another try.

        :return: False where there was nothing any more.
        :raises RecallConflictError: it is still being processed.
        """
        return self._delete("audio_separate", artifact_id)

    def delete_recording(self, recording_id: str) -> bool:
        """Delete a recording at Recall with all its artifacts, video and transcripts too; otherwise as above."""
        return self._delete("recording", recording_id)

    def _delete(self, resource: str, one: str) -> bool:
        try:
            self._call("DELETE", self._url(f"{resource}/{_checked_id(one)}/"), "retrieve", once=True)
        except RecallApiError as error:
            if error.status != 404:
                raise
            return False
        return True

    def _retrieve(self, resource: str, one: str, not_found: str) -> object:
        try:
            return self._call("GET", self._url(f"{resource}/{_checked_id(one)}/"), "retrieve")
        except RecallApiError as error:
            if error.status != 404:
                raise
        raise RecallNotFoundError(
            f"{self.host} knows no {resource} {one}: it was never there, was deleted, or lives in another region",
            status=404,
            code=not_found,
        )

    def _walk(self, path: str, params: Mapping[str, str | None]) -> Iterator[tuple[object, str]]:
        query = urlencode({name: value for name, value in params.items() if value is not None}, quote_via=quote)
        url: str | None = f"{self._url(path)}?{query}" if query else self._url(path)
        seen: set[str] = set()
        while url is not None:
            seen.add(url)
            entries, following = parse_page(self._call("GET", url, "list"))
            yield from entries
            url = None if following is None else self._checked_next(following, url, seen)

    def _checked_next(self, following: str, url: str, seen: set[str]) -> str:
        target = _joined(url, following)
        if not _is_same(target, url):
            raise RecallPaginationError(
                f"a list of {self.host} continues at another address; the key is not sent there"
            )
        if target in seen:
            raise RecallPaginationError(f"a list of {self.host} repeats itself: its next page was read before")
        if len(seen) >= MOST_PAGES:
            raise RecallPaginationError(f"a list of {self.host} doesn't end after {MOST_PAGES} pages")
        return target

    def _url(self, path: str) -> str:
        return f"{self.base_url}/api/v1/{path}"

    def _call(
        self,
        method: str,
        url: str,
        kind: RequestKind,
        *,
        body: bytes | None = None,
        key: str | None = None,
        once: bool = False,
    ) -> object:
        headers = {}
        if body is not None and key is not None:
            headers = {"Content-Type": "application/json", "Idempotency-Key": key}

        # Once in the queue of all who share the budget, it is better to wait for one's turn than to come back later.
        has_turn = self._patience > 0
        if has_turn:
            self._wait_for_budget(kind, self._retry.clock() + self._patience)

        tries = 0

        def attempt(end: float) -> object:
            nonlocal has_turn, tries
            if not has_turn:
                self._wait_for_budget(kind, end)
            has_turn = False
            self.calls[kind] += 1
            tries += 1
            try:
                reply = self._send(method, url, headers, body, end)
                if 300 <= reply.status < 400:
                    reply = self._send(method, self._redirected(method, url, reply), headers, body, end)
                answer = self._read(reply, f"{method} {url.split('?', 1)[0].removeprefix(self.base_url)}", kind)
            except RecallError as error:
                self._tell(kind, error.code, tries)
                raise
            self._tell(kind, "ok", tries)
            return answer

        return (replace(self._retry, attempts=1) if once else self._retry).run(attempt)

    def _tell(self, kind: RequestKind, result: str, tries: int) -> None:
        if self._observer is not None:
            self._observer.answered(kind, result, again=tries > 1)

    def _wait_for_budget(self, kind: RequestKind, end: float) -> None:
        if self._budget is None:
            return
        left = max(0.0, end - self._retry.clock())
        wait = self._budget.take(kind, left)
        if wait > left:
            raise RecallRateLimitError(
                f"our share of {self.host}'s request budget is used up", status=429, retry_after=wait
            )
        if wait > 0:
            self._retry.sleep(wait)
            if self._observer is not None:
                self._observer.waited(kind, wait)

    def _send(self, method: str, url: str, headers: Mapping[str, str], body: bytes | None, end: float) -> _Reply:
        left = max(0.01, end - self._retry.clock())
        failure: RecallError
        try:
            timeout = urllib3.Timeout(total=left, connect=self._connect_timeout, read=self._read_timeout)
            request = requests.Request(method, url, headers={**self._headers, **headers}, data=body).prepare()
            with self._adapter.send(
                request,
                stream=True,
                timeout=timeout,  # type: ignore[arg-type]  # the stubs don't know that requests takes urllib3's
                verify=self._verify,
                proxies=self._proxies,
            ) as response:
                content = response.raw.read(LARGEST_REPLY + 1, decode_content=False)
                reply = _Reply(response.status_code, response.headers, content)
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            failure = self._failure(error)
        else:
            self.server_time = parse_date(reply.headers.get("Date"))
            return reply
        raise failure  # outside of the handler, so that no library's text with the URL in it hangs on

    def _failure(self, error: Exception) -> RecallError:
        if any(isinstance(one, urllib3.exceptions.IncompleteRead) for one in linked(error)):
            return RecallResponseError(f"{self.host} sent less than it announced")
        reason, permanent = reason_of(error)
        return RecallRequestError(f"no reply from {self.host}: {reason}", permanent=permanent)

    def _redirected(self, method: str, url: str, reply: _Reply) -> str:
        target = _joined(url, reply.headers.get("Location") or "")
        if method == "GET" and target != url and _is_same(target, url):
            return target
        raise RecallUnsafeRedirectError(
            f"{self.host} answered {reply.status} and sent us elsewhere; check the base URL"
        )

    def _read(self, reply: _Reply, what: str, kind: RequestKind) -> object:
        if not 200 <= reply.status < 300:
            error = self._refusal(reply, what)
            if error.status == 429 and self._budget is not None and error.retry_after is not None:
                self._budget.pause(kind, error.retry_after)
            raise error
        if what.startswith("DELETE "):
            return None  # 204, and nothing to read
        where = f"{what} at {self.host}"
        if len(reply.body) > LARGEST_REPLY:
            raise RecallResponseError(f"{where} answered with more than {LARGEST_REPLY} bytes")
        try:
            data = json.loads(reply.body, parse_constant=_no_constant)
        except (ValueError, RecursionError):
            data = None
        if not isinstance(data, dict):
            kind_of_body = reply.headers.get("Content-Type") or "no content type"
            raise RecallResponseError(
                f"{where} answered {reply.status} with {len(reply.body)} bytes that are no JSON object "
                f"({redact(kind_of_body)[:60]})"
            )
        return data

    def _refusal(self, reply: _Reply, what: str) -> RecallApiError:
        known = _ERRORS.get(reply.status)
        if known is None and reply.status >= 500:
            known = (RecallServerError, "the server failed")
        cls, hint = known or (RecallApiError, "the API refused the request")
        said = _shown(reply.body, self._headers["Authorization"])
        return cls(
            f"{what} at {self.host} answered {reply.status}: {hint}" + (f"; it said: {said}" if said else ""),
            status=reply.status,
            retry_after=None if reply.status < 500 and cls.permanent else parse_retry_after(reply.headers),
        )


def _is_same(target: str, url: str) -> bool:
    """Tell whether a link leads to the same resource as a URL of ours, but for its query and last slash."""
    there, here = parsed(target), parsed(url)
    return (
        there is not None
        and here is not None
        and there._replace(path=there.path.rstrip("/")) == here._replace(path=here.path.rstrip("/"))
    )


def _joined(url: str, link: str) -> str:
    try:
        return urljoin(url, link)
    except ValueError:
        return ""


def _checked_id(one: str) -> str:
    if not _SAFE_ID.fullmatch(one):
        raise RecallConfigError(f"{one[:80]!r} can't be an id of Recall")
    return one


def _moment(moment: datetime | None) -> str | None:
    if moment is None:
        return None
    if moment.tzinfo is None:
        raise RecallConfigError("a time to filter by needs a time zone")
    return moment.astimezone(timezone.utc).isoformat().replace("+00:00", "Z")


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


def _shown(body: bytes, key: str) -> str:
    """Return what a reply says, as at most 200 characters of one line without markup and secrets."""
    text = body[:20_000].decode("utf-8", "replace")
    text = re.sub(r"(?is)<(script|style|title)\b.*?</\1\s*>|<[^>]*>|<!--.*?-->", " ", text)
    text = "".join(char if char.isprintable() else " " for char in html.unescape(text))
    return redact(" ".join(text.split()).replace(key, HIDDEN))[:200]
