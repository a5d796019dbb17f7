from __future__ import annotations

import re

from include.provider import settings
from scripts import settings_page


def test_the_page_is_up_to_date() -> None:
    text = settings_page.PAGE.read_text("utf-8")
    assert settings_page.page(text) == text, "run `python -m scripts.settings_page`"


def test_every_setting_is_a_row_that_says_what_it_takes() -> None:
    rows = [line.strip("| ").split(" | ") for line in settings_page.table().splitlines()[2:]]
    assert [row[0] for row in rows] == [f"`{setting.name}`" for setting in settings.SETTINGS]
    assert all(len(row) == 4 and all(row) for row in rows)
    by_name = {row[0].strip("`"): row[1:] for row in rows}
    assert by_name["recall_poll_seconds"][:2] == ["unset", "a number from 0.1 to 3600"]
    assert by_name["recall_wait_timeout_seconds"][:2] == ["`86400`", "a number from 1 to 2678400"]
    assert by_name["recall_delete_at_source"][:2] == ["`off`", "off, audio_separate or recording"]
    assert by_name["recall_notify_names"][0] == "`false`"


def test_no_path_of_this_machine_is_on_the_page() -> None:
    assert str(settings.PROJECT_FOLDER) not in settings_page.table()


def test_what_is_markup_is_escaped() -> None:
    assert r'\["\*interview\*"\]' in settings_page.table()
    assert not re.search(r"<(?!!--)", settings_page.table())
