"""The asset that other Dags can be scheduled on."""

from __future__ import annotations

from airflow.sdk import Asset

RECORDING_ARCHIVED = Asset("recall_recording_archived")
"""One event per settled recording; its ``extra`` holds ``recording_id``, ``manifest_uri`` and ``outcome``."""
