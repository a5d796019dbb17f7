"""Signed links on their way from one task to the next: encrypted with Airflow's Fernet key, and only for a while.

A link saves the next task a call to the API, and nothing else hangs on it: without a key, past the time, or with a
value that can't be opened, that task asks the API.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from airflow.sdk.crypto import FernetProtocol

    from include.recall.models import AudioArtifact
    from include.recall.watch import Look

SEALED_KEY = "sealed_links"
"""XCom key of a row of its own, which holds each link once, however many tasks use it."""

SEAL_SECONDS = 3600
"""How long a seal can be opened; Recall's own links work for some hours."""


class Sealed(dict[str, str]):
    """What :func:`seal` returned, where it may be logged: Airflow logs the event of each trigger as a whole."""

    def __repr__(self) -> str:
        return f"<{len(self)} sealed links>"


def seal(artifacts: Iterable[AudioArtifact]) -> dict[str, str]:
    """Encrypt the links of artifacts for XCom.

    :param artifacts: as just read from the API; those without a link are left out.
    :return: a token per artifact id, as many as one row holds; empty where Airflow has no Fernet key.
    """
    from include.provider.transfer import XCOM_LIMIT

    fernet = _fernet()
    if fernet is None:
        return {}
    sealed: dict[str, str] = {}
    room = XCOM_LIMIT
    for artifact in artifacts:
        if artifact.download_url is None:
            continue
        facts = {
            "id": artifact.id,
            "recording_id": artifact.recording_id,
            "created_at": artifact.created_at.isoformat(),
            "format": artifact.format,
            "url": artifact.download_url.reveal(),
        }
        token = fernet.encrypt(json.dumps(facts).encode()).decode()
        room -= len(json.dumps({artifact.id: token}))
        if room >= 0:
            sealed[artifact.id] = token
    return sealed


def sealed_links(seen: Look) -> dict[str, str]:
    """Seal the links that a look at a meeting brought."""
    return seal(artifact for recording in seen.recordings for artifact in recording.artifacts)


def unseal(rows: Iterable[Any]) -> dict[str, AudioArtifact]:
    """Decrypt what :func:`seal` made.

    :param rows: values of XCom, ``None`` among them where a task left none.
    :return: the artifacts by id, as good as just read; those that can't be opened, or no longer, are left out.
    """
    return {
        artifact_id: artifact
        for row in rows
        if isinstance(row, dict)
        for artifact_id, token in row.items()
        if (artifact := _opened(token)) is not None and artifact.id == artifact_id
    }


def _fernet() -> FernetProtocol | None:
    """Return what encrypts; ``None`` without a key, or with one that is none."""
    from airflow.sdk.crypto import get_fernet
    from airflow.sdk.exceptions import AirflowException

    try:
        fernet = get_fernet()
    except AirflowException:
        return None
    return fernet if fernet.is_encrypted else None


def _opened(token: Any) -> AudioArtifact | None:
    from cryptography.fernet import InvalidToken

    from include.recall.models import AudioArtifact, SignedLink

    fernet = _fernet()
    if fernet is None:
        return None
    try:
        facts = json.loads(fernet.decrypt(str(token), ttl=SEAL_SECONDS))
        return AudioArtifact(
            id=facts["id"],
            recording_id=facts["recording_id"],
            created_at=datetime.fromisoformat(facts["created_at"]),
            status="done",
            sub_code=None,
            metadata={},
            format=facts["format"],
            download_url=SignedLink(facts["url"]),
        )
    except (InvalidToken, ValueError, KeyError, TypeError):
        return None
