"""The archive in a browser: a page for each recording, with its objects to listen to, and one for each verification.

Served by Airflow's API server under ``/recall/archive``, to whoever may read the runs of the Dag that archives. Only
the API server imports this module, when it starts.
"""

from __future__ import annotations

import logging
import re
import time
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Annotated
from urllib.parse import quote, urlencode

from airflow.api_fastapi.app import API_ROOT_PATH
from airflow.api_fastapi.auth.managers.models.base_user import BaseUser  # noqa: TC002 - FastAPI reads annotations
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.core_api.security import bearer_scheme, get_user, requires_access_dag
from fastapi import APIRouter, Depends, HTTPException, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from fastapi.security import HTTPAuthorizationCredentials  # noqa: TC002

from include.archive import manifest as manifests
from include.archive.audio import MEDIA_TYPE_OF_EXTENSION, UNKNOWN
from include.archive.errors import ManifestError, StorageDeniedError
from include.archive.layout import MANIFEST_NAME, PAGE_NAME, is_key, is_recording_folder
from include.archive.meeting_page import CONTENT_SECURITY_POLICY, MOST_ROWS, settled_page, unsettled_page
from include.errors import CodedError
from include.provider import glance, glance_html, settings, verification
from include.provider.archive_html import report_page, reports_page
from include.provider.hook import get_store
from include.provider.runs import DAG_ID

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    from starlette.types import Receive, Scope, Send

    from include.archive.stores import Store

log = logging.getLogger(__name__)

PREFIX = "/archive"
MOST_REPORTS = 30

_HEADERS = {
    "Cache-Control": "private, no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
# By what our own keys end in, never by what somebody wrote into a manifest: nothing here is a type that a browser runs.
_MEDIA_TYPES = {**MEDIA_TYPE_OF_EXTENSION, MANIFEST_NAME.rpartition(".")[2]: manifests.MANIFEST_MEDIA_TYPE}
_REPORT = re.compile(r"report(-[0-9]{1,3})?\.json|[0-9]{2}-[0-9a-f]{8}\.jsonl")
_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")


async def signed_in(
    request: Request, bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer_scheme)]
) -> BaseUser:
    """Return Airflow's user; a browser without one goes to Airflow's login and comes back."""
    try:
        return await get_user(request, None, bearer)
    except HTTPException:
        if bearer is None and "text/html" in request.headers.get("accept", ""):
            # The address as the browser knows it, wherever a proxy has put Airflow.
            here = f"{API_ROOT_PATH}recall{PREFIX}/{quote(request.path_params['place'], safe='/=')}"
            query = urlencode({"next": f"{here}?{request.url.query}" if request.url.query else here})
            login = {"Location": f"{API_ROOT_PATH}api/v2/auth/login?{query}"}
            raise HTTPException(303, "Not authenticated", headers=login) from None
        raise HTTPException(401, "Not authenticated", headers={"WWW-Authenticate": "Bearer"}) from None


def may_read(request: Request, user: Annotated[BaseUser, Depends(signed_in)]) -> None:
    """Refuse whom Airflow does not let read the runs of the Dag that archives."""
    requires_access_dag(method="GET", access_entity=DagAccessEntity.RUN, param_dag_id=DAG_ID)(request, user)


router = APIRouter(prefix=PREFIX, dependencies=[Depends(may_read)])


# Not async: a store blocks, so all of this runs in the server's threads, a body chunk by chunk.
@router.api_route("/{place:path}", methods=["GET", "HEAD"])
def show(place: str, request: Request) -> Response:
    """Answer with all meetings, a recording's page (``dt=…/recording=…/``), an object below it, or verifications.

    The page is made anew from the manifest: what the archive keeps of it is never run on Airflow's own address.
    """
    if not place:
        return _glance(request)
    above = f"{verification.FOLDER}/"
    if place == verification.FOLDER:
        raise HTTPException(308, headers={"Location": f"{verification.FOLDER.rpartition('/')[2]}/"})
    is_report = place.startswith(above)
    folder, name = _split_report(place[len(above) :]) if is_report else _split(place)
    try:
        store = open_archive()
        if is_report:
            return _report(store, folder, name, request)
        return _page(store, folder) if name in ("", PAGE_NAME) else _object(store, f"{folder}/{name}", request)
    except CodedError as error:
        log.warning("No answer for %s: %s", place, error)
        raise HTTPException(502 if error.permanent else 503, str(error)) from None


def _glance(request: Request) -> Response:
    try:
        if "standing" in request.query_params:
            return JSONResponse(glance.standing(open_archive), headers=_HEADERS)
        page = glance_html.page(glance.view(request.query_params, open_archive))
    except CodedError as error:
        log.warning("No answer about the whole archive: %s", error)
        raise HTTPException(502 if error.permanent else 503, str(error)) from None
    return _html(page, policy=glance_html.CONTENT_SECURITY_POLICY)


def open_archive() -> Store:
    """Return the archive; its address counts at once, what else its connection says within a minute."""
    return _opened(settings.ARCHIVE_URI.get(), int(time.monotonic() // 60))


@lru_cache(maxsize=1)
def _opened(uri: str, minute: int) -> Store:
    # A client for S3 takes 0.3 s to make, and a player asks for a range at every jump.
    return get_store()


def _split(place: str) -> tuple[str, str]:
    """Return the recording's folder and what is asked for below it, empty for the folder itself.

    :raises HTTPException: for anything that no key of the archive looks like.
    """
    day, _, rest = place.partition("/")
    recording, slash, name = rest.partition("/")
    folder = f"{day}/{recording}"
    if not is_recording_folder(folder) or (name and not is_key(place)):
        raise HTTPException(404)
    if not slash:
        # The page's links are relative to its folder.
        raise HTTPException(308, headers={"Location": f"{recording}/"})
    return folder, name


def _split_report(place: str) -> tuple[str, str]:
    """Return the name of a verification, empty for the list of them, and of one of its files, empty for its page."""
    run, slash, name = place.partition("/")
    if (run and not verification.RUN_NAME.fullmatch(run)) or (name and not _REPORT.fullmatch(name)):
        raise HTTPException(404)
    if run and not slash:
        raise HTTPException(308, headers={"Location": f"{run}/"})
    return run, name


def _report(store: Store, run: str, name: str, request: Request) -> Response:
    if name:
        return _object(store, f"{verification.FOLDER}/{run}/{name}", request, download=True)
    if not run:
        return _html(reports_page(verification.reports(store, MOST_REPORTS)))
    document = verification.report(store, run)
    if document is None:
        raise HTTPException(404)
    return _html(report_page(document))


def _page(store: Store, folder: str) -> Response:
    manifest, problem, status = None, None, 200
    try:
        manifest = manifests.load(store, folder)
    except ManifestError as error:
        problem = str(error)
    if manifest is not None:
        page = settled_page(folder, manifest)
    else:
        stored = list(islice(store.list(f"{folder}/"), MOST_ROWS + 1))
        page = unsettled_page(folder, stored, problem)
        status = 200 if stored else 404
    return _html(page, status)


def _html(page: str, status: int = 200, policy: str = CONTENT_SECURITY_POLICY) -> Response:
    headers = {**_HEADERS, "Content-Security-Policy": policy}
    return Response(page, status, headers, media_type="text/html; charset=utf-8")


def _object(store: Store, key: str, request: Request, *, download: bool = False) -> Response:
    try:
        info = store.stat(key)
    except StorageDeniedError as error:
        # A link, a folder or another thing where a file should be: nothing that was archived.
        log.warning("Refused %s: %s", key, error)
        info = None
    if info is None:
        raise HTTPException(404)
    headers = {**_HEADERS, "Accept-Ranges": "bytes", "Content-Security-Policy": "default-src 'none'; media-src 'self'"}
    # Airflow compresses what doesn't say that it is encoded: in the event loop, losing the length, and ranges too.
    headers["Content-Encoding"] = "identity"
    headers["Content-Type"] = _MEDIA_TYPES.get(key.rpartition(".")[2], UNKNOWN.media_type)
    if download:
        filename = re.sub(r"[^a-z0-9_.-]", "-", key.split("/", 2)[2])
        headers["Content-Disposition"] = f'attachment; filename="{filename}"'
    # Nothing here has a validator, so a range on condition of one is never meant for what is here.
    wanted = None if "if-range" in request.headers else request.headers.get("range")
    status, start, end = 200, 0, info.size
    if (part := _range(wanted, info.size)) is not None:
        status, (start, end) = 206, part
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{info.size}"
    headers["Content-Length"] = str(end - start)
    if request.method == "HEAD":
        return Response(None, status, headers)
    return _Stream(_bytes(store, key, start, end - start), status, headers)


def _range(header: str | None, size: int) -> tuple[int, int] | None:
    """Return where the one range that is asked for begins and where it ends; None for the whole.

    :raises HTTPException: when no byte of the object is in it.
    """
    asked = _RANGE.fullmatch(header or "")
    if asked is None or asked.group() == "bytes=-":
        return None
    first, last = asked.groups()
    if not first:
        start, end = max(0, size - int(last)), size
    else:
        start, end = int(first), min(size, int(last) + 1) if last else size
        if last and int(last) < start:
            return None
    if start >= end:
        raise HTTPException(416, headers={"Content-Range": f"bytes */{size}"})
    return start, end


class _Stream(StreamingResponse):
    """A body that is let go of when its reader hangs up, as every player does, not when garbage is next collected."""

    def __init__(self, chunks: Generator[bytes], status: int, headers: Mapping[str, str]) -> None:
        super().__init__(chunks, status, headers)
        self._chunks = chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._chunks.close()


def _bytes(store: Store, key: str, start: int, count: int) -> Generator[bytes]:
    for chunk in store.read(key, start):
        yield chunk[:count]
        count -= len(chunk)
        if count <= 0:
            break
