"""Signed links in the two forms that Recall hands out: a token on the API host, an S3 signature on the media host."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import math
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

if TYPE_CHECKING:
    from datetime import datetime

ACCESS_KEY_ID = "SIMULATOR"


class LinkRefusedError(Exception):
    """A link that is not honoured.

    :param reason: ``expired``, ``invalid`` or ``missing``.
    """

    def __init__(self, reason: str, expires: int = 0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.expires = expires


@dataclass(frozen=True)
class Origins:
    """Where this process is reached, as the client that asks sees it.

    :param api: scheme, host and port of the API.
    :param media: the same of the media host.
    """

    api: str
    media: str


class LinkSigner:
    """Makes and checks links. Each one is new: two links to the same thing never share a query."""

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(32)

    def token(self, kind: str, target: str, expires: datetime) -> str:
        """Sign a token for ``/api/v1/download/<kind>``.

        :param kind: what is downloaded.
        :param target: id of the recording or artifact.
        :param expires: from when the token is refused.
        """
        claims = {"k": kind, "t": target, "e": math.ceil(expires.timestamp()), "n": secrets.token_hex(6)}
        payload = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
        return f"{payload}.{self._seal(payload)}"

    def open_token(self, token: str, kind: str, now: datetime) -> str:
        """Check a token and return the id that it is for.

        :raises LinkRefusedError: when it is forged, for something else, or has expired.
        """
        payload, _, seal = token.partition(".")
        if not hmac.compare_digest(seal.encode(), self._seal(payload).encode()):
            raise LinkRefusedError("invalid")
        claims: dict[str, Any] = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        if claims["k"] != kind:
            raise LinkRefusedError("invalid")
        if now.timestamp() >= claims["e"]:
            raise LinkRefusedError("expired", claims["e"])
        return str(claims["t"])

    def media_query(self, path: str, expires: datetime) -> str:
        """Sign the query of a media link, for GET only.

        :param path: of the object, as it stands in the URL.
        :param expires: from when the link is refused.
        """
        moment = str(math.ceil(expires.timestamp()))
        session = secrets.token_urlsafe(18)
        signature = quote(self._signature("GET", path, moment, session), safe="")
        return f"AWSAccessKeyId={ACCESS_KEY_ID}&Signature={signature}&x-amz-security-token={session}&Expires={moment}"

    def check_media(self, method: str, path: str, query: dict[str, str], now: datetime) -> None:
        """Check a media link.

        :raises LinkRefusedError: when it is unsigned, forged, for another verb, or has expired.
        """
        expires = query.get("Expires", "")
        if not (expires.isdigit() and query.get("Signature") and query.get("AWSAccessKeyId")):
            raise LinkRefusedError("missing")
        if now.timestamp() >= int(expires):
            raise LinkRefusedError("expired", int(expires))
        expected = self._signature(method, path, expires, query.get("x-amz-security-token", ""))
        if not hmac.compare_digest(expected.encode(), query["Signature"].encode()):
            raise LinkRefusedError("invalid")

    def _seal(self, payload: str) -> str:
        return hmac.new(self._secret, payload.encode(), hashlib.sha256).hexdigest()[:32]

    def _signature(self, method: str, path: str, expires: str, session: str) -> str:
        text = f"{method}\n\n\n{expires}\nx-amz-security-token:{session}\n{path}"
        return base64.b64encode(hmac.digest(self._secret, text.encode(), "sha1")).decode()
