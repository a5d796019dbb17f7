"""What `make run` was asked to do, read from the environment and checked before anything starts."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from include.archive.errors import BadArchiveUriError
from include.archive.stores import check_uri
from include.recall.regions import REGIONS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

DEMO_MEETING = "https://zoom.us/j/91234567890"
PARAMS = {"MEETING_URL": "meeting_url", "BOT_ID": "bot_id", "RECORDING_ID": "recording_id"}
_ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z_-]{0,63}")


class SettingsError(ValueError):
    """A setting is missing or wrong; the message is one line for a person."""


@dataclass(frozen=True)
class RunSettings:
    """One run of the main command.

    :param api_key: key of the Recall account; None means the demo, with the simulator in Recall's place.
    :param region: region of the account.
    :param conf: params of the Dag run.
    :param archive: where the archive is, as a URI.
    :param once: end after the result instead of staying up.
    """

    api_key: str | None = field(repr=False)
    region: str | None
    conf: dict[str, str]
    archive: str
    once: bool

    @classmethod
    def from_environment(cls, env: Mapping[str, str], project: Path) -> RunSettings:
        """Read and check the settings.

        :param env: the environment. An empty variable counts as unset.
        :param project: the project's folder.
        :raises SettingsError: something is missing or wrong.
        """
        env = {name: value.strip() for name, value in env.items() if value.strip()}
        api_key, region = _account(env)
        return cls(
            api_key=api_key,
            region=region,
            conf=_conf(env, demo=api_key is None),
            archive=_archive(env.get("ARCHIVE", (project / "archive").as_uri())),
            once=env.get("ONCE", "0").lower() not in ("0", "false", "no"),
        )

    @property
    def demo(self) -> bool:
        """Whether the simulator stands in for Recall."""
        return self.api_key is None

    @property
    def uses_s3(self) -> bool:
        """Whether the archive is on S3."""
        return self.archive.startswith("s3://")


def _account(env: Mapping[str, str]) -> tuple[str | None, str | None]:
    api_key, region = env.get("RECALL_API_KEY"), env.get("RECALL_REGION")
    regions = ", ".join(REGIONS)
    if api_key is None:
        if region is not None:
            raise SettingsError("RECALL_REGION is set without RECALL_API_KEY: set both, or neither for the demo")
        return None, None
    if not api_key.isascii() or not api_key.isprintable() or " " in api_key:
        raise SettingsError("RECALL_API_KEY holds characters that no key has: copy it again from Recall's dashboard")
    if region is None:
        raise SettingsError(f"RECALL_API_KEY is set without RECALL_REGION: set it to the key's region ({regions})")
    if region not in REGIONS:
        raise SettingsError(f"RECALL_REGION={region[:40]!r} is no region of Recall's: choose one of {regions}")
    return api_key, region


def _conf(env: Mapping[str, str], *, demo: bool) -> dict[str, str]:
    given = {name: env[name] for name in PARAMS if name in env}
    if len(given) > 1:
        raise SettingsError(f"{' and '.join(given)} are set: give exactly one of {', '.join(PARAMS)}")
    if demo and (ids := given.keys() - {"MEETING_URL"}):
        raise SettingsError(f"{ids.pop()} is set without RECALL_API_KEY: the demo's simulator knows nothing of yours")
    if not given and not demo:
        raise SettingsError("RECALL_API_KEY is set, but not what to archive: give BOT_ID, MEETING_URL or RECORDING_ID")
    for name, value in given.items():
        if name != "MEETING_URL" and not _ID.fullmatch(value):
            raise SettingsError(f"{name}={value[:80]!r} is not an id: letters, digits, '-' and '_', at most 64")
        if name == "MEETING_URL" and not _is_meeting_url(value):
            raise SettingsError("MEETING_URL is not an https:// address without spaces (put it in quotes)")
    return {PARAMS[name]: value for name, value in given.items()} or {"meeting_url": DEMO_MEETING}


def _is_meeting_url(value: str) -> bool:
    try:
        address = urlsplit(value)
    except ValueError:
        return False
    return address.scheme == "https" and bool(address.hostname) and value.isprintable() and " " not in value


def _archive(uri: str) -> str:
    try:
        check_uri(uri)
    except BadArchiveUriError as error:
        raise SettingsError(f"ARCHIVE: {error.message}") from None
    return uri
