"""What Airflow's Test button does with a connection of type ``recall``: one cheap question, and what it means."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from include.errors import CodedError
from include.provider.hook import client_of, strings
from include.recall.client import RecallClient
from include.recall.errors import RecallAuthError, RecallRequestError
from include.recall.regions import REGIONS, base_url_of
from include.recall.retry import RetryPolicy
from include.recall.webhooks import signing_key

if TYPE_CHECKING:
    from airflow.sdk import Connection

MOST_SECONDS_OFF = 60.0
"""Webhooks are refused when the clocks are five minutes apart; a machine with a kept clock is never this far off."""

_ONCE: dict[str, Any] = {"retry": RetryPolicy(attempts=1, deadline=10.0)}


def run(connection: Connection) -> tuple[bool, str]:
    """Ask Recall whether it knows the key.

    A key that the chosen region doesn't know is tried in Recall's other regions, to say which one to choose. With a
    host instead of a region, it is sent to that host alone.

    :return: whether the connection will do, and a sentence for a person; it holds nothing secret.
    """
    try:
        extra = connection.extra_dejson
        secrets = [signing_key(one) for one in strings(extra.get("webhook_secrets"), "webhook_secrets")]
        hosts = strings(extra.get("media_hosts"), "media_hosts")
        client = client_of(connection, extra, 1.0, **_ONCE)
        client.check_key()
    except RecallAuthError:
        home = None if (connection.host or "").strip() else _other_region(connection)
        if home:
            return False, f"This key is of another region: choose {home}."
        return False, f"{client.host} refuses the key: the API key is wrong, or belongs to another region"
    except RecallRequestError as error:
        return False, f"{error.message}. Is there a way to Recall from this machine?"
    except CodedError as error:
        return False, error.message
    found = [
        f"{client.host} knows the key",
        f"webhook secrets: {len(secrets)}" if secrets else "no webhook secret, so webhooks are refused",
    ]
    if hosts:
        found.append(f"audio may also come from {', '.join(hosts)}")
    if client.server_time is not None:
        off = abs((datetime.now(timezone.utc) - client.server_time).total_seconds())
        if off > MOST_SECONDS_OFF:
            found.append(f"this machine's clock is {off:.0f} s away from Recall's: set it right")
    return True, "; ".join(found)


def _other_region(connection: Connection) -> str | None:
    key = (connection.password or "").strip()
    for region in REGIONS:
        if region == connection.extra_dejson.get("region"):
            continue
        with suppress(CodedError):
            RecallClient(api_key=key, base_url=base_url_of(region), **_ONCE).check_key()
            return region
    return None
