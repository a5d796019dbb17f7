"""Making further files from what is archived: which recordings, and the task that does it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator

from include.errors import CodedError
from include.provider import settings
from include.provider.assets import RECORDING_ARCHIVED
from include.provider.errors import RecallRetryPolicy, error_reported
from include.provider.hook import get_store
from include.provider.operators import show_label
from include.provider.params import given

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from airflow.sdk import Context

    from include.archive.copy import Stop

MOST_TASKS = 500
"""Above so many recordings and kinds, one mapped task takes several, since Airflow maps over 1,024 at most."""


def archived_folders(context: Context) -> list[str]:
    """Return the folders of the recordings that a run is about.

    Those of the asset events that started it; for a run that a person started, the one of its param ``recording_id``.

    :raises CodedError: ``recording_not_archived``: that recording has no manifest.
    """
    from include.archive.layout import is_recording_folder
    from include.archive.manifest import find

    recording_id = given(context["params"].get("recording_id"))
    if recording_id is not None:
        folder = find(get_store(), recording_id)
        if folder is None:
            raise CodedError(f"recording {recording_id} has no manifest in the archive", code="recording_not_archived")
        return [folder]
    events = archived_events(context)
    return sorted({folder for event in events if is_recording_folder(folder := str(event.extra.get("folder")))})


def archived_events(context: Context) -> Sequence[Any]:
    """Return the events of :data:`RECORDING_ARCHIVED` that started a run, none for a run that a person started."""
    events: Mapping[Any, Sequence[Any]] = context.get("triggering_asset_events") or {}
    return events.get(RECORDING_ARCHIVED, ())


class RecallFindArchivedOperator(BaseOperator):
    """Say what is to be made from which recordings, to map over.

    Which kinds, the Variable ``recall_derived_audio`` says.

    :return: one entry for each task: ``kind`` and ``folders``. Ids only.
    """

    ui_color = "#e8f0fe"

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("retry_policy", RecallRetryPolicy())
        super().__init__(**kwargs)

    def execute(self, context: Context) -> list[dict[str, Any]]:
        """List the work."""
        with error_reported(context):
            work = [(kind, folder) for kind in settings.DERIVED_AUDIO.get() for folder in archived_folders(context)]
            size = -(-len(work) // MOST_TASKS) or 1
            batches: list[dict[str, Any]] = []
            for kind, folder in work:
                if not batches or batches[-1]["kind"] != kind or len(batches[-1]["folders"]) == size:
                    batches.append({"kind": kind, "folders": []})
                batches[-1]["folders"].append(folder)
            return batches


class RecallDeriveAudioOperator(BaseOperator):
    """Make audio of one kind from what is archived of some recordings; see :mod:`include.archive.derived`.

    What is there already is left alone, so a second run costs next to nothing. A recording that fails doesn't keep the
    others from being done. Audio passes through temporary files: as much as the parts of the longest recording, and
    for ``aligned`` the file that is made.

    :param work: one entry of what :class:`RecallFindArchivedOperator` returned (templated).
    :param aws_conn_id: connection for an ``s3://`` archive.
    :return: for each recording ``folder``, ``kind``, ``made``, ``skipped``, ``bytes`` and ``source_bytes``.
    """

    template_fields = ("work",)
    ui_color = "#e6f4ea"

    def __init__(self, *, work: Mapping[str, Any], aws_conn_id: str = "aws_default", **kwargs: Any) -> None:
        kwargs.setdefault("retry_policy", RecallRetryPolicy())
        super().__init__(**kwargs)
        self.work = work
        self.aws_conn_id = aws_conn_id
        self._stop: Stop | None = None

    def execute(self, context: Context) -> list[dict[str, Any]]:
        """Make the files."""
        from include.archive.copy import Stop

        self._stop = Stop()
        with error_reported(context):
            folders, kind = self.work["folders"], self.work["kind"]
            one = folders[0].rpartition("=")[2] if len(folders) == 1 else f"{len(folders)} recordings"
            show_label(context, f"{kind}: {one}")
            done, failed = [], None
            for folder in folders:
                try:
                    done.append(self._made(folder, kind, self._stop))
                except CodedError as error:
                    if self._stop.is_set():
                        raise
                    self.log.warning("%s of %s: %s", kind, folder, error)
                    failed = failed or error
            if failed is not None:
                raise failed
            return done

    def _made(self, folder: str, kind: str, stop: Stop) -> dict[str, Any]:
        from include.archive.derived import make_aligned, make_flac
        from include.archive.manifest import load

        store = get_store(self.aws_conn_id)
        manifest = load(store, folder)
        if manifest is None:
            raise CodedError(f"{folder} has no manifest", code="recording_not_archived")
        make = {"aligned": make_aligned, "flac": make_flac}[kind]
        made = make(store, folder, manifest, stop=stop)
        self.log.info("%s of %s: %d files, %d bytes, %d left out", kind, folder, made.made, made.bytes, made.skipped)
        figures = {"made": made.made, "skipped": made.skipped, "bytes": made.bytes, "source_bytes": made.source_bytes}
        return {"folder": folder, "kind": kind, **figures}

    def on_kill(self) -> None:
        """End the work; what isn't whole is not stored."""
        if self._stop is not None:
            self._stop.set()
