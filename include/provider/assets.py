"""The asset that other Dags can be scheduled on."""

from __future__ import annotations

from airflow.sdk import Asset, AssetAlias

RECORDING_ARCHIVED = Asset("recall_recording_archived")
"""One event per settled recording; its ``extra`` holds ``recording_id``, ``manifest_uri`` and ``outcome``."""

SETTLED_RECORDINGS = AssetAlias("recall_settled_recordings")
"""Through this alias one task run can emit an event for each of several recordings."""
