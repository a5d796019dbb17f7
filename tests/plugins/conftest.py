from __future__ import annotations

import warnings

with warnings.catch_warnings():
    # Airflow's server imports Starlette's test client, which warns that it would rather have another HTTP library.
    warnings.simplefilter("ignore")
    import airflow.api_fastapi.app  # noqa: F401
