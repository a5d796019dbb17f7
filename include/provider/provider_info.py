"""What Airflow's list of providers knows of this project: the connection type ``recall``, with its form.

Airflow finds it through the folder ``recall_audio_archive.dist-info`` beside ``include``: whatever has the project on
its PYTHONPATH sees an installed distribution, and nothing need be installed.
"""

from __future__ import annotations

from typing import Any

from include.recall.regions import REGIONS


def get_provider_info() -> dict[str, Any]:
    """Return the provider's metadata, as Airflow's ``provider.yaml`` has it; the hook is not imported for it."""
    return {
        "package-name": "recall-audio-archive",
        "name": "Recall.ai",
        "description": "Archive every meeting participant's audio from Recall.ai.",
        "connection-types": [
            {
                "connection-type": "recall",
                "hook-class-name": "include.provider.hook.RecallHook",
                "hook-name": "Recall.ai",
                "ui-field-behaviour": {
                    # Airflow up to 3.3.2 takes a port that is not there for another one than it has stored, and then
                    # its list of connections can't test them: https://github.com/apache/airflow/pull/73298
                    "hidden-fields": ["schema", "login"],
                    "relabeling": {"password": "API key", "host": "Base URL (instead of a region)"},
                    "placeholders": {
                        "host": "leave empty, and choose a region under Extra Fields",
                        "password": "made in Recall's dashboard, in one region",
                        "port": "443; Airflow's button that tests needs one",
                    },
                },
                "conn-fields": {
                    "region": {
                        "label": "Region",
                        "description": "Where the API key was made; Recall's regions know nothing of each other.",
                        "schema": {"type": ["string", "null"], "enum": [*REGIONS]},
                    },
                    "webhook_secrets": {
                        "label": "Webhook secrets",
                        "description": "Signing secrets of Recall's webhooks, newest first, each with whsec_ in front. "
                        "To change the list, type all of it anew: *** stands for what was saved at its place.",
                        "schema": {"type": ["array", "null"], "items": {"type": "string"}},
                    },
                    "media_hosts": {
                        "label": "Media hosts",
                        "description": "Further hosts (host or host:port) that audio may come from, private ones too.",
                        "schema": {"type": ["array", "null"], "items": {"type": "string"}},
                    },
                },
            }
        ],
    }
