"""From Airflow's connections and Variables to the source's client and the destination's store."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseHook

from include.provider import settings
from include.provider.metrics import SERVICES, TASKS, ApiCalls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from airflow.sdk import Connection

    from include.archive.stores import Store
    from include.archive.stores.s3_access import Access
    from include.recall.client import RecallClient
    from include.recall.media import MediaClient
    from include.recall.poll import Poller


TURN_SECONDS = 300.0
"""How long a task waits for its turn in the machine's request budget before it is tried again later."""


class RecallHook(BaseHook):
    """Talk to Recall.ai with an Airflow connection of type ``recall``.

    The connection: ``password`` is the API key; ``extra.region`` one of Recall's regions; ``host``, when set, is the
    base URL instead and used as it stands; ``extra.media_hosts`` (list of ``host`` or ``host:port``) names further
    hosts that audio may be fetched from, private addresses included; ``extra.webhook_secrets`` (list) holds the active
    signing secrets of webhooks, newest first. Other keys of ``extra`` are ignored.

    Every request first asks the budget that all processes of the machine share (:mod:`include.recall.budget`).

    :param recall_conn_id: the connection, ``recall_default`` by default.
    """

    conn_name_attr = "recall_conn_id"
    default_conn_name = "recall_default"
    conn_type = "recall"
    hook_name = "Recall.ai"

    def __init__(self, recall_conn_id: str = default_conn_name) -> None:
        super().__init__()
        self.recall_conn_id = recall_conn_id
        self._extra: Mapping[str, Any] = {}
        self._client: RecallClient | None = None

    def get_conn(self) -> RecallClient:
        """Return the API client; one per hook.

        :raises RecallConfigError: there is no such connection, it lacks a key, or it names no known region and no host.
        """
        if self._client is None:
            with _explained(self.recall_conn_id):
                connection = self.get_connection(self.recall_conn_id)
            self._extra = connection.extra_dejson
            self._client = client_of(
                connection,
                self._extra,
                settings.REQUEST_SHARE.get,
                patience=TURN_SECONDS,
                observer=ApiCalls(TASKS),
            )
        return self._client

    async def aget_poller(self, request_share: float) -> Poller:
        """Return what waits for many meetings, from within an event loop, which reading the connection doesn't block.

        :param request_share: part of Recall's request limits that this machine may use.
        :raises RecallConfigError: as :meth:`get_conn`.
        """
        from include.recall.poll import Poller
        from include.recall.retry import RetryPolicy

        # It comes back to everything by itself, so it neither tries again nor queues for long.
        with _explained(self.recall_conn_id):
            connection = await self.aget_connection(self.recall_conn_id)
        once = RetryPolicy(attempts=1, deadline=30.0)
        client = client_of(connection, connection.extra_dejson, request_share, retry=once, observer=ApiCalls(SERVICES))
        return Poller(client, request_share)

    def test_connection(self) -> tuple[bool, str]:
        """Ask Recall whether it knows the key; Airflow's Test button shows the answer."""
        from include.provider.connection_test import run

        return run(self.get_connection(self.recall_conn_id))

    def get_media(self) -> MediaClient:
        """Return a client for signed links.

        It holds no key, and reaches the API's own host and ``extra.media_hosts`` besides public addresses.
        """
        from include.recall.media import MediaClient

        base_url = self.get_conn().base_url
        hosts = strings(self._extra.get("media_hosts"), "media_hosts")
        return MediaClient(allowed_hosts=[*hosts, base_url.split("://", 1)[-1].split("/", 1)[0]])

    def webhook_keys(self) -> list[bytes]:
        """Return the keys of all active webhook secrets; what is no secret is left out, and logged as an error."""
        from include.recall.errors import RecallConfigError
        from include.recall.webhooks import signing_key

        keys = []
        extra = self.get_connection(self.recall_conn_id).extra_dejson
        for position, secret in enumerate(strings(extra.get("webhook_secrets"), "webhook_secrets"), start=1):
            try:
                keys.append(signing_key(secret))
            except RecallConfigError as error:
                self.log.error("Entry %d of extra.webhook_secrets is left out: %s", position, error)
        return keys

    def dashboard_url(self, bot_id: str) -> str:
        """Return the address of a bot's page in Recall's dashboard."""
        return f"{self.get_conn().base_url}/dashboard/explorer/bot/{bot_id}"


@contextmanager
def _explained(conn_id: str) -> Iterator[None]:
    """Say what a connection that isn't there has to hold; Airflow only says that it isn't defined.

    It may be tried again: a secrets backend that doesn't answer looks the same.
    """
    from airflow.sdk.exceptions import AirflowNotFoundException

    try:
        yield
    except AirflowNotFoundException:
        from include.recall.errors import RecallConfigError

        raise RecallConfigError(
            f"there is no Airflow connection {conn_id}: make one of type recall, with the API key as its password and "
            "the key's region as extra.region",
            permanent=False,
        ) from None


def client_of(
    connection: Connection, extra: Mapping[str, Any], share: float | Callable[[], float], **options: Any
) -> RecallClient:
    """Make a client of a connection.

    :param extra: the connection's ``extra_dejson``; each look at that tells Airflow's supervisor what to mask.
    :param share: part of Recall's request limits that this machine may use.
    :param options: of the client.
    :raises RecallConfigError: as :meth:`RecallHook.get_conn`.
    """
    from include.recall.budget import FileBudget
    from include.recall.client import RecallClient
    from include.recall.errors import RecallConfigError
    from include.recall.regions import base_url_of

    region = extra.get("region")
    where = f"Airflow connection {connection.conn_id}"
    if not (connection.password or "").strip():
        raise RecallConfigError(f"{where} has no password; it must hold the Recall API key")
    host = (connection.host or "").strip().rstrip("/")
    if host:
        base_url = host if "://" in host else f"https://{host}"
        if connection.port and base_url.count(":") == 1:
            base_url = f"{base_url}:{connection.port}"
    elif isinstance(region, str):
        base_url = base_url_of(region)
    else:
        raise RecallConfigError(f"{where} names neither extra.region nor a host; set extra.region to the key's region")
    key = (connection.password or "").strip()
    budget = FileBudget(f"{base_url}\n{key}", share)
    return RecallClient(api_key=key, base_url=base_url, region=region, budget=budget, **options)


def strings(value: Any, name: str) -> list[str]:
    """Read a list of strings, or one string with commas, from a connection's extra.

    :param name: of the key, for the message.
    :raises RecallConfigError: it is neither.
    """
    if value is None:
        return []
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return value
    from include.recall.errors import RecallConfigError

    raise RecallConfigError(f"extra.{name} of the Recall connection must be a list of strings")


def get_store(aws_conn_id: str = "aws_default") -> Store:
    """Open the archive that the deployment names (Variable ``recall_archive_uri``).

    :param aws_conn_id: the amazon provider's connection, used for ``s3://`` archives alone.
    :raises BadSettingError: the Variable is no archive's URI.
    """
    from include.archive.stores import open_store

    @cache
    def s3_hook() -> Any:
        from airflow.providers.amazon.aws.hooks.s3 import S3Hook

        from include.recall.redaction import redact_logs

        # At level DEBUG botocore logs each request with its signature, and here with its whole body: the audio itself.
        redact_logs(*(f"botocore.{name}" for name in ("auth", "endpoint", "hooks", "httpsession", "awsrequest")))
        logging.getLogger("botocore.endpoint").setLevel(logging.INFO)
        return S3Hook(aws_conn_id=aws_conn_id)

    def s3_access(bucket: str) -> Access | None:
        from airflow.providers.amazon.aws.hooks.base_aws import BaseSessionFactory, SessionFactory

        from include.archive.stores.s3_boto3 import direct_access

        hook = s3_hook()
        if SessionFactory is not BaseSessionFactory:
            return None  # a deployment's own, which may change what its clients send
        return direct_access(
            hook.get_session(region_name=hook.region_name)._session,
            bucket,
            client=s3_client,
            endpoint_url=hook.conn_config.get_service_endpoint_url("s3"),
            verify=hook.verify,
            config=hook.config,
        )

    def s3_client() -> Any:
        return s3_hook().get_conn()

    return open_store(settings.ARCHIVE_URI.get(), s3_client=s3_client, s3_access=s3_access)


def folder_of(recording: Mapping[str, Any]) -> str:
    """Return a recording's folder in the archive.

    :param recording: what the sensor passed on: ``recording_id`` with ``created_at``, or a ``folder`` found before.
    """
    from include.archive.layout import recording_folder

    if folder := recording.get("folder"):
        return str(folder)
    return recording_folder(datetime.fromisoformat(recording["created_at"]), recording["recording_id"])
