from __future__ import annotations

from tests.plugins import conftest  # noqa: F401 - Airflow's server, imported without its warnings
