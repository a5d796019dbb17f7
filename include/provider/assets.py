"""The assets that other Dags can be scheduled on, or that keep what outlives a run."""

from __future__ import annotations

from airflow.sdk import Asset

RECORDING_ARCHIVED = Asset("recall_recording_archived")
"""One event per settled recording; its ``extra`` holds ``recording_id``, ``outcome``, ``folder``, ``manifest_uri``,
``parts`` and ``bytes``."""

RECALL_MEETINGS = Asset("recall_meetings")
"""What is known about the workspace's meetings between runs, in Airflow's asset state store: which run waits for which
bot (:mod:`include.provider.awaited`), and how far the sweep has come. It emits no events."""
