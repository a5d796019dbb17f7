"""Buttons on our tasks in the Airflow UI.

Airflow asks for a link in the task's own process when the task ends and keeps the answer, so an operator just leaves
the address on itself while it runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow.sdk import BaseOperatorLink

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator
    from airflow.sdk.types import TaskInstanceKey

    from include.archive.stores import Store


class RecallBotLink(BaseOperatorLink):
    """The bot's page in Recall's dashboard."""

    name = "Recall bot"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """Return the address that the operator left, or nothing where no bot is known."""
        return getattr(operator, "bot_url", "")


class ArchiveFolderLink(BaseOperatorLink):
    """The recording's folder in the archive, see :func:`folder_url`."""

    name = "Archive folder"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """Return the address that the operator left, or nothing where no recording is known."""
        return getattr(operator, "folder_url", "")


class VerifyReportLink(BaseOperatorLink):
    """What a verification of the archive found."""

    name = "Report"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """Return the address that the operator left, or nothing where there is no report."""
        return getattr(operator, "report_url", "")


def folder_url(store: Store, folder: str) -> str:
    """Return the page that shows a recording's folder to a person.

    That is the store's own page where it has one (the S3 console on AWS), and else :mod:`include.provider.archive_page`
    on Airflow's API server.
    """
    if (url := store.browse_url(folder)) is not None:
        return url
    return page_url(folder)


def page_url(place: str) -> str:
    """Return the address of one of our own pages about the archive."""
    from airflow.sdk.configuration import conf

    # Airflow's links to a task's log fall back to the same address.
    base_url = conf.get("api", "base_url", fallback="http://localhost:8080/")
    return f"{base_url.rstrip('/')}/recall/archive/{place}/"
