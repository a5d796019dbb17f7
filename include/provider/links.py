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


class RecallBotLink(BaseOperatorLink):
    """The bot's page in Recall's dashboard."""

    name = "Recall bot"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """Return the address that the operator left, or nothing where no bot is known."""
        return getattr(operator, "bot_url", "")


class ArchiveFolderLink(BaseOperatorLink):
    """The recording's folder in the archive: in the S3 console, or on this machine's disk."""

    name = "Archive folder"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """Return the address that the operator left, or nothing where the store has no page to show."""
        return getattr(operator, "folder_url", "")
