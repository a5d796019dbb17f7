"""### Tell what the last week's archive lacks.

An example to copy: it reads the archive itself, through its manifests, and sends one message through the deployment's
notifiers: which recordings are archived with gaps, and which are not settled. It asks neither Recall nor the database.

It runs on Mondays once it is switched on; it is paused when it is first seen.
"""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

from airflow.sdk import dag, task

DAYS = 7


@dag(
    schedule="0 7 * * 1",
    catchup=False,
    tags=["recall", "example"],
    doc_md=__doc__,
    is_paused_upon_creation=True,
    default_args={"retries": 2, "retry_delay": timedelta(minutes=1)},
)
def example_tell_of_gaps() -> None:
    @task
    def tell_of_gaps(**context: Any) -> dict[str, list[str]]:
        """Look at each recording that began within the last week; return those that lack something."""
        from include.archive.manifest import load
        from include.provider.hook import get_store
        from include.provider.notices import Notice, describe, notify

        store, today = get_store(), datetime.now(timezone.utc).date()
        lacking: dict[str, list[str]] = {"with_gaps": [], "not_settled": []}
        for ago in range(DAYS):
            for folder in store.folders(f"dt={today - timedelta(days=ago)}"):
                manifest = load(store, folder)
                if manifest is None:
                    lacking["not_settled"].append(folder)
                elif manifest.outcome == "archived_with_gaps":
                    lacking["with_gaps"].append(folder)
        folders = lacking["with_gaps"] + lacking["not_settled"]
        if folders:
            subject = f"{len(folders)} recordings of the last {DAYS} days lack something"
            todo = "Start archive_meeting again for those that are not settled; the others' pages say what is missing."
            facts = {name: len(some) for name, some in lacking.items()}
            body = describe(context, f"{subject}:\n" + "\n".join(folders), todo=todo, facts=facts)
            notify(context, Notice("weekly", subject, body, facts))
        return lacking

    tell_of_gaps()


example_tell_of_gaps()
