"""The archive at a glance as Airflow serves it: what it shows, to whom, and what it says when it does not know."""

from __future__ import annotations

import json
import re
import tempfile
import threading
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import pytest
from airflow._shared.plugins_manager import plugins_manager

from include.archive import manifest as manifests
from include.archive.errors import StorageUnavailableError
from include.archive.manifest import MissingPart, ParticipantFacts
from include.archive.stores import LocalStore
from include.provider import archive_page, glance, glance_html, runs
from include.provider.sweep import Owed, State
from tests.include.archive.test_index import LOSS, MARCH, a_manifest, put, swap, without
from tests.plugins.conftest import GOOD, ROOT, AuthManager
from tests.plugins.test_recall_plugin import BROWSER, HOSTILE, Tags, keep, verification

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastapi.testclient import TestClient

    from include.archive.stores import ObjectInfo, Store

AT = "/recall/archive/"
RUN = "20261122t020000z-0a1b2c"


@pytest.fixture(autouse=True)
def at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look sees the archive as it is, through an index of this test's own; Airflow's database is empty."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(glance, "FRESH_SECONDS", 0.0)
    monkeypatch.setattr(glance, "PART_OF_TIME", 0.0)
    monkeypatch.setattr(glance, "ALL_SECONDS", 0.0)
    monkeypatch.setattr(glance, "PATIENCE", 240.0)
    monkeypatch.setattr(glance, "SOON", 240.0)
    monkeypatch.setattr(runs, "sweep_state", State)
    monkeypatch.setattr(runs, "states_of", lambda recording_ids: {})


def rows(page: str) -> list[str]:
    """The text of each row of the table."""
    body = page.partition("<tbody>")[2].partition("</tbody>")[0]
    return [" ".join(Tags(row).text.split()) for row in body.split("</tr>") if row]


def tiles(page: str) -> dict[str, str]:
    found = re.findall(r"<div><dt>(.*?)</dt><dd>(.*?)</dd></div>", page)
    return {name: " ".join(re.sub("<.*?>", " ", value).split()) for name, value in found}


def chips(page: str) -> dict[str, int]:
    names = re.findall(r'<li><a href="[^"]*"[^>]*>([^<]+) <span>([\d,]+)</span>', page)
    return {name: int(count.replace(",", "")) for name, count in names}


def links(page: str, beginning: str) -> list[str]:
    return sorted(one for one in Tags(page).addresses if one.startswith(beginning))


# -- where it is, and for whom ---------------------------------------------------------------------------------------


def test_airflow_has_an_entry_for_it() -> None:
    (plugin,), errors = plugins_manager._load_plugins_from_plugin_directory(str(ROOT / "plugins"))
    assert errors == {}
    (view,) = plugin.external_views
    assert (view["destination"], view["url_route"]) == ("nav", "recall-archive")
    assert f"/{view['href']}" == AT  # relative to Airflow's own address


def test_nobody_sees_it_without_login_or_permission(anybody: TestClient, auth: AuthManager, local: LocalStore) -> None:
    put(local, a_manifest(title="Secret"))
    for address in (AT, f"{AT}?standing=1", f"{AT}?q=Secret"):
        assert anybody.get(address).status_code == 401
        assert anybody.get(address, headers={"Authorization": "Bearer bad"}).status_code == 401
    reply = anybody.get(f"{AT}?q=x&page=2", headers=BROWSER)
    assert reply.status_code == 303
    assert parse_qs(urlsplit(reply.headers["location"]).query)["next"] == [f"{AT}?q=x&page=2"]
    auth.allows = False
    for address in (AT, f"{AT}?standing=1"):
        reply = anybody.get(address, headers=GOOD)
        assert reply.status_code == 403
        assert "Secret" not in reply.text
    assert auth.asked is not None
    assert auth.asked["details"].id == "archive_meeting"
    assert not list(Path(tempfile.gettempdir()).glob("recall-archive-*"))  # nothing was even looked at
    assert anybody.get("/recall/archive").headers["location"].endswith(AT)


def test_what_a_browser_may_do_with_it(client: TestClient, local: LocalStore) -> None:
    put(local, a_manifest())
    reply = client.get(AT)
    policy = reply.headers["content-security-policy"]
    assert policy == glance_html.CONTENT_SECURITY_POLICY
    for part in ("default-src 'none'", "form-action 'self'", "frame-ancestors 'self'", "base-uri 'none'"):
        assert part in policy
    assert "unsafe" not in policy
    assert reply.headers["cache-control"] == "private, no-store"
    page = Tags(reply.text)
    assert not page.names & {"link", "img", "audio", "iframe", "object", "base"}
    assert not [name for name in page.attributes if name.startswith("on") or name == "style"]
    assert (
        "frame-ancestors 'self'" in client.get(f"{AT}{links(reply.text, 'dt=')[0]}").headers["content-security-policy"]
    )


# -- what it shows ---------------------------------------------------------------------------------------------------


def test_an_empty_archive_says_what_to_do(client: TestClient, local: LocalStore) -> None:
    reply = client.get(AT)
    assert reply.status_code == 200
    page = Tags(reply.text)
    for text in ("Nothing is archived yet", "archive_meeting", "sweep_recordings", "recall_archive_uri", local.uri("")):
        assert text in page.text, text
    assert "../../dags/archive_meeting" in page.addresses
    assert rows(reply.text) == []


def test_meetings_with_their_states(client: TestClient, local: LocalStore) -> None:
    put(local, a_manifest("rec-1", title="Planning"))
    missing = [MissingPart(artifact_id="a", part_id="9", participant_id=1, error_code="media_deleted")]
    put(local, a_manifest("rec-2", at=MARCH + timedelta(days=1), missing=missing, title=None))
    put(local, a_manifest("rec-3", at=MARCH + timedelta(days=2), parts=0, participants=[]))
    folder = put(local, a_manifest("rec-4", at=MARCH + timedelta(days=3)))
    (local._root / folder / "manifest.json").write_text("{")
    local.put_if_absent("dt=2026-03-08/recording=rec-5/participant=1/a/1.wav", b"x", "audio/wav")
    local.put_if_absent("lost/rec-9.json", json.dumps(LOSS).encode(), "application/json")
    reply = client.get(AT)
    shown = rows(reply.text)
    assert [re.findall(r"rec-\d", row)[0] for row in shown] == ["rec-5", "rec-4", "rec-3", "rec-9", "rec-2", "rec-1"]
    for row, texts in zip(
        shown,
        (
            ("8 Mar 2026", "Not settled"),
            ("7 Mar 2026", "Unreadable", "manifest_invalid"),
            ("6 Mar 2026", "Planning of rec-3", "No audio"),
            ("5 Mar 202610:00", "Lost", "expired at Recall"),
            ("Untitled meeting", "With gaps", "1 part missing", "2 parts", "2 kB", "Not yet"),
            ("4 Mar 202609:55", "Planning", "zoom", "Archived", "Ada Lovelace, Grace", "1 min"),
        ),
        strict=True,
    ):
        assert all(text in row for text in texts), row
    assert tiles(reply.text) == {
        "Meetings": "5 3 settled",
        "Audio": "2 min in separate tracks",
        "Stored": "4 kB 4 parts",
        "Verified": "0 % of 3 settled",
        "Owed": "– no sweep has told",
        "Lost": "1 and not archived",
    }
    assert chips(reply.text) == {
        "All": 6,
        "Archived": 1,
        "With gaps": 1,
        "No audio": 1,
        "Not settled": 1,
        "Unreadable": 1,
        "Lost": 1,
    }
    found = links(reply.text, "dt=")
    assert len(found) == 5
    assert all(client.get(AT + address).status_code == 200 for address in found)


def test_searching_filtering_and_paging(client: TestClient, local: LocalStore) -> None:
    for number in range(120):
        put(local, a_manifest(f"rec-{number:03}", at=MARCH + timedelta(hours=number), parts=number % 2))
    page = client.get(AT).text
    assert len(rows(page)) == glance_html.ROWS == 50
    assert "1–50 of 120" in page
    assert links(page, "?page=") == ["?page=2", "?page=3"]
    last = client.get(f"{AT}?page=3").text
    assert "101–120 of 120" in last
    assert "rec-000" in rows(last)[-1]
    assert client.get(f"{AT}?page=99").text.count("1–50 of 120") == 1
    page = client.get(f"{AT}?q=LOVELACE+rec-01").text
    assert [re.findall(r"rec-\d+", row)[0] for row in rows(page)] == [f"rec-01{number}" for number in range(9, -1, -1)]
    assert chips(page) == {"All": 10, "Archived": 5, "No audio": 5}
    assert tiles(page)["Meetings"] == "10 10 settled"
    page = client.get(f"{AT}?q=rec-01&show=archived&from=2026-03-05&to=2026-03-05").text
    assert [re.findall(r"rec-\d+", row)[0] for row in rows(page)] == ["rec-019", "rec-017", "rec-015"]
    assert "?q=rec-01&amp;from=2026-03-05&amp;to=2026-03-05&amp;show=nothing_to_archive" in page
    assert 'value="2026-03-05"' in page
    page = client.get(f"{AT}?q=nobody").text
    assert "No meeting like that" in page
    assert "./" in Tags(page).addresses


@pytest.mark.parametrize(
    "query", ["page=0", "page=-1", "page=x", "page=²", "from=yesterday", "to=2026-13-40", "show=everything", "q=%ff%00"]
)
def test_what_can_not_be_understood_is_left_out(query: str, client: TestClient, local: LocalStore) -> None:
    put(local, a_manifest())
    reply = client.get(f"{AT}?{query}")
    assert reply.status_code == 200
    assert bool(rows(reply.text)) == (query != "q=%ff%00")


def test_hostile_text_is_only_text(client: TestClient, local: LocalStore) -> None:
    people = [ParticipantFacts(id=number, name=name, email=name) for number, name in enumerate(HOSTILE)]
    put(local, a_manifest("rec-0", title="Harmless", participants=people))
    harmless = Tags(client.get(AT).text)
    for number, name in enumerate(HOSTILE, start=1):
        put(local, a_manifest(f"rec-{number}", title=name, bot_id=name, participants=people[number - 1 :]))
    reply = client.get(AT)
    page = Tags(reply.text)
    assert len(rows(reply.text)) == len(HOSTILE) + 1
    assert page.names == harmless.names
    assert page.attributes <= harmless.attributes
    for name in ("../../etc/passwd", "{{ 7*7 }}", "<script>alert(1)</script>", "&lt;b&gt;", "\\u202eevil\\u2066"):
        assert name in page.text
    assert not set(reply.text) & set("\u202e\u2066\ufeff\x00\r")
    for name in HOSTILE:
        reply = client.get(AT, params={"q": name.encode("utf-8", "replace"), "show": name.encode("utf-8", "replace")})
        assert reply.status_code == 200
        assert Tags(reply.text).names <= harmless.names | {"section", "h2"}


def test_what_verifications_found(client: TestClient, local: LocalStore) -> None:
    folders = [put(local, a_manifest(f"rec-{number}")) for number in range(3)]
    assert "Not yet" in rows(client.get(AT).text)[0]
    soon = datetime.now(timezone.utc) + timedelta(hours=1)
    finding = {"kind": "damaged", "key": "x", "detail": "y", "artifact_id": None, "part_id": None, "code": None}
    lines = [
        {"folder": folders[0], "state": "settled", "findings": [{**finding, "kind": "extra", "action": None}]},
        {"folder": folders[1], "state": "settled", "findings": [{**finding, "action": None}]},
        {"folder": folders[2], "state": "settled", "findings": [{**finding, "action": "replaced"}]},
        {"folder": "dt=2026-03-04", "state": "none", "findings": []},
    ]
    data = "".join(json.dumps(line) + "\n" for line in lines).encode()
    report = verification(began_at=soon.isoformat())
    assert local.put_if_absent(report["details"][0], data, "application/x-ndjson")
    keep(local, RUN, report)
    local.put_if_absent("reports/verify/20261123t020000z-0a1b2c/00-0123abcd.jsonl", b"", "x/y")  # still under way
    keep(local, "20261121t020000z-0a1b2c", {"report_version": 1, "complete": True, "details": 7})  # not worth a look
    page = client.get(AT).text
    by_id = {re.findall(r"rec-\d", row)[0]: row for row in rows(page)}
    day = f"{soon.day} {soon:%b %Y}"
    assert f"Verification of {day}" in by_id["rec-0"]
    assert f"Damaged, {day}" in by_id["rec-1"]
    assert f"Verification of {day}" in by_id["rec-2"]
    assert tiles(page)["Verified"] == "66 % 1 damaged"
    assert links(page, "reports/") == ["reports/verify/", f"reports/verify/{RUN}/"]
    assert client.get(f"{AT}reports/verify/{RUN}/").status_code == 200
    assert chips(page)["Damaged"] == 1
    assert len(rows(client.get(f"{AT}?show=harmed").text)) == 1


def test_a_report_that_can_not_be_read_harms_nothing(client: TestClient, local: LocalStore) -> None:
    put(local, a_manifest())
    keep(local, RUN, verification(details=["reports/verify/none.jsonl"]))
    keep(local, "20261123t020000z-0a1b2c", verification(began_at="never"))
    keep(local, "20261124t020000z-0a1b2c", verification(scope=7))
    reply = client.get(AT)
    assert (reply.status_code, len(rows(reply.text))) == (200, 1)


def test_what_is_owed_and_what_expires(client: TestClient, local: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    now = datetime.now(timezone.utc)
    stamp = int(now.timestamp())
    put(local, a_manifest("rec-1"))
    owed = {
        "rec-1": Owed(stamp, stamp + 3600, True),  # settled since the sweep
        "rec-2": Owed(stamp - 100, stamp + 5 * 3600 + 600, True),
        "rec-3": Owed(stamp - 200, stamp + 6 * 86400, False),
        "rec-4": Owed(stamp - 300, None, False),
    }
    monkeypatch.setattr(runs, "sweep_state", lambda: State(now - timedelta(minutes=10), owed))
    monkeypatch.setattr(runs, "states_of", lambda ids: {one: "failed" for one in ids if one != "rec-3"})
    page = client.get(AT).text
    assert tiles(page)["Owed"] == "3 1 expires soon"
    assert "1 recording not archived yet, and about to be deleted at Recall" in page
    assert chips(page)["Owed"] == 3
    assert links(page, "../../dags") == ["../../dags/archive_meeting/runs/recording__rec-1"]
    page = client.get(f"{AT}?show=owed").text
    assert [re.findall(r"rec-\d", row)[0] for row in rows(page)] == ["rec-2", "rec-3", "rec-4"]
    assert "Expires in 5 h" in rows(page)[0]
    assert "Its audio is there" in rows(page)[0]
    assert "Expires in 6 days" in rows(page)[1]
    assert links(page, "../../dags") == [f"../../dags/archive_meeting/runs/recording__rec-{n}" for n in (2, 4)]
    assert len(rows(client.get(f"{AT}?show=owed&q=rec-3").text)) == 1
    monkeypatch.setattr(runs, "sweep_state", lambda: State(now, dict.fromkeys("abc", Owed(stamp, None))))
    assert "expires soon" not in client.get(AT).text


def test_without_airflow_s_database_the_archive_is_shown(
    client: TestClient, local: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: Any) -> Any:
        raise ConnectionError("no database")

    monkeypatch.setattr(runs, "sweep_state", gone)
    monkeypatch.setattr(runs, "states_of", gone)
    put(local, a_manifest())
    page = client.get(AT).text
    assert len(rows(page)) == 1
    assert tiles(page)["Owed"] == "– no sweep has told"
    assert "Nothing is known" in client.get(f"{AT}?show=owed").text


# -- how far it can be believed --------------------------------------------------------------------------------------


def test_it_shows_the_archive_as_it_is_and_says_as_of_when(
    client: TestClient, local: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(glance, "ALL_SECONDS", 3600.0)  # what is recent, and purged, is shown before that
    put(local, a_manifest("rec-1"))
    before = datetime.now(timezone.utc).replace(microsecond=0)
    page = client.get(AT).text
    (moment,) = re.findall(r'All of it as of <time datetime="([^"]+)"', page)
    assert before <= datetime.fromisoformat(moment) <= datetime.now(timezone.utc)
    put(local, a_manifest("rec-2", at=datetime.now(timezone.utc)))
    page = client.get(AT).text
    assert len(rows(page)) == 2
    manifests.bury(local, "rec-1", [1])
    swap(local, without(a_manifest("rec-1"), 1))
    assert "Lovelace" not in client.get(f"{AT}?q=rec-1").text
    assert rows(client.get(f"{AT}?q=lovelace+rec-1").text) == []


def test_an_archive_that_can_not_be_read_is_named(
    client: TestClient, local: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(local, a_manifest())
    assert len(rows(client.get(AT).text)) == 1

    def refuse(self: Store, folder: str = "") -> Iterator[str]:
        raise StorageUnavailableError("the disk is away")

    monkeypatch.setattr(LocalStore, "folders", refuse)
    page = client.get(AT).text
    assert "The archive could not be read" in page
    assert "the disk is away" in page
    assert len(rows(page)) == 1  # what was there before
    monkeypatch.undo()


def test_a_view_that_is_being_built_says_so(
    client: TestClient, local: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for day in range(4):
        put(local, a_manifest(f"rec-{day}", at=MARCH + timedelta(days=day)))
    held, listing = threading.Event(), LocalStore.each_folder

    def hold(self: LocalStore, folder: str, name: str) -> Iterator[tuple[str, ObjectInfo | None]]:
        if folder == "dt=2026-03-05":
            assert held.wait(240)
        yield from listing(self, folder, name)

    monkeypatch.setattr(LocalStore, "each_folder", hold)
    monkeypatch.setattr(glance, "PATIENCE", 0.5)
    try:
        keeper = glance.keeper_of(archive_page.open_archive)
        keeper.look()
        while keeper.index.standing().days != (2, 4):
            time.sleep(0.05)
        page = client.get(AT).text
        assert "Being built: 2 of 4 days" in page
        assert [re.findall(r"rec-\d", row)[0] for row in rows(page)] == ["rec-3", "rec-2"]
        reply = client.get(f"{AT}?standing=1").json()
        assert reply["building"] is True
        assert reply["text"].startswith("Being built: 2 of 4 days")
    finally:
        held.set()
    while client.get(f"{AT}?standing=1").json()["building"]:
        time.sleep(0.05)
    assert len(rows(client.get(AT).text)) == 4


def test_another_archive_gets_a_view_of_its_own(
    client: TestClient, local: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(local, a_manifest("rec-1"))
    assert "rec-1" in client.get(AT).text
    other = LocalStore(root=tmp_path / "other")
    put(other, a_manifest("rec-2"))
    first = glance.keeper_of(archive_page.open_archive)
    monkeypatch.setattr(archive_page, "open_archive", lambda: other)
    page = client.get(AT).text
    assert "rec-2" in page
    assert "rec-1" not in page
    first._open = lambda: other  # what the first one opens from now on
    first.look()
    assert {one.recording_id for one in first.index.ask(glance.Query()).meetings} == {"rec-1"}
