"""Seeded schedules: what meeting, which faults, and what must come of it.

A schedule is plain data, made from its seed alone. The faults come from :data:`KINDS`; each is named after the id of
the failure that it stands for, and states its outcome:

- *shape*: an unusual meeting or setting; the run succeeds at once.
- *retry*: something passing; the run succeeds, by trying again.
- *drive*: processes are killed, stopped, raced or started again; in the end everything is there, once.
- *fail*: the run ends ``failed`` with one of the stated codes, in time; what it stored is good, and where the fault can
  be mended the next run completes it.
"""

from __future__ import annotations

import random
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 2**20
PART = 8 * MIB
BOT = r"^/api/v1/bot/[^/?]+/?$"
LIST = r"^/api/v1/audio_separate/\?"
ARTIFACT = r"^/api/v1/audio_separate/[^/?]+/?$"
DOCUMENT = r"^/api/v1/download/audio_separate"
CREATE = r"^/api/v1/bot/?$"
FOREVER = {"type": "forever"}
SINK = "127.0.0.1:9"  # replaced by the address of a listener that counts connections

NAMES: list[str | None] = [
    "Ada",
    "Kim",
    "Kim",
    None,
    "",
    ".",
    "CON",
    "../../etc/passwd",
    "..\\..\\boot.ini",
    "/abs",
    "C:\\x",
    "a\x00b",
    "line\r\nbreak: ERROR forged",
    "\u202egnp.exe",
    "\ufeffbom",
    "\udc80lone",
    "é\u0301\u0065\u0301",
    "🎙️",
    "x" * 10_000,
    "{{ conn.recall_default.password }}",
    "${jndi:ldap://x}",
    "=cmd|'/c calc'!A0",
    "<script>alert(1)</script>",
    "'; DROP TABLE dag; --",
]
# What the simulator's framework can encode.
TITLES = [name for name in NAMES if name is not None and "\udc80" not in name]
PART_IDS = [
    "../../../escape",
    "a/b",
    "A/B",
    "..",
    ".tmp-x",
    "manifest.json",
    "ID",
    "id",
    "ıd",
    "x" * 3000,
    "line\nbreak",
    "nul\x00",
    "\u202e",
    "sha256-" + "0" * 64,
    "*",
    " ",
]


@dataclass
class Schedule:
    """One run under faults, as data.

    :ivar seed: it was made from.
    :ivar first: the fault that the seed stands for.
    :ivar kinds: names of all its faults.
    :ivar store: ``file`` or ``s3``.
    :ivar ranges: all but short bodies come in ranges, on several connections.
    :ivar meetings: to make in the simulator; the first is the one to archive, by ``target``.
    :ivar target: ``bot``, ``recording`` or ``create``.
    :ivar rules: of the simulator; ``s3_rules`` of the S3 server.
    :ivar server: which S3 server: ``plain``, or one that lacks something.
    :ivar settings: of the simulator.
    :ivar skew: seconds that the simulator's clock is wrong by.
    :ivar script: what is done with the processes, see :mod:`tests.chaos.campaign`.
    :ivar arguments: of the engine; ``environment`` likewise.
    :ivar codes: with one of which it must fail; empty where it must succeed.
    :ivar hits: how often a rule may be met at most.
    :ivar gone: artifacts that the source can't give any more.
    :ivar may_leave: an unfinished upload may stay, if the run says so.
    :ivar heals: a run after the faults are gone must succeed.
    :ivar deadline: seconds for one process.
    """

    seed: int
    first: str = ""
    kinds: list[str] = field(default_factory=list)
    store: str = "file"
    debug: bool = False
    ranges: bool = False
    meetings: list[dict[str, Any]] = field(default_factory=list)
    target: str = "bot"
    rules: list[dict[str, Any]] = field(default_factory=list)
    s3_rules: list[dict[str, Any]] = field(default_factory=list)
    server: str = "plain"
    settings: dict[str, Any] = field(default_factory=dict)
    skew: float = 0.0
    script: dict[str, Any] = field(default_factory=lambda: {"name": "once"})
    arguments: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    codes: list[str] = field(default_factory=list)
    hits: dict[str, int] = field(default_factory=dict)
    gone: list[str] = field(default_factory=list)
    may_leave: bool = False
    heals: bool = True
    deadline: float = 40.0


class Draft:
    """A schedule in the making."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(f"chaos {seed}")
        self.made = Schedule(seed)
        self._victims: set[tuple[str, int]] = set()

    @property
    def meeting(self) -> dict[str, Any]:
        return self.made.meetings[0]

    @property
    def artifacts(self) -> list[dict[str, Any]]:
        return [artifact for recording in self.meeting["recordings"] for artifact in recording["artifacts"]]

    def uuid(self) -> str:
        return str(uuid.UUID(int=self.random.getrandbits(128), version=4))

    def meet(self) -> dict[str, Any]:
        """Make a meeting of a few people, as a rule a small one."""
        recordings = [self.recording() for _ in range(2 if self.random.random() < 0.15 else 1)]
        return {
            "bot_id": self.uuid(),
            "created_at": f"2026-03-0{self.random.randint(1, 9)}T{self.random.randint(0, 23):02}:55:00Z",
            "recording_config": {
                "audio_separate_raw": {},
                "participant_events": {},
                "meeting_metadata": {},
                "retention": FOREVER,
            },
            "recordings": recordings,
        }

    def recording(self) -> dict[str, Any]:
        people = [
            {"id": number * 7 + 1, "name": f"Person {number}", "email": f"person{number}@example.com"}
            for number in range(self.random.randint(1, 4))
        ]
        formats = self.random.choice([["raw"], ["raw"], ["ogg"], ["raw", "ogg"]])
        artifacts = []
        for kind in formats:
            parts = [
                self.part(person, kind, self.size(), relative=round(self.random.uniform(0, 600), 3))
                for person in people
                for _ in range(self.random.choice([1, 1, 2]))
            ]
            artifacts.append({"id": self.uuid(), "format": kind, "parts": parts})
        return {"id": self.uuid(), "artifacts": artifacts}

    def part(self, person: dict[str, Any] | None, kind: str, size: int, **more: Any) -> dict[str, Any]:
        audio: dict[str, Any] = {"seed": self.random.getrandbits(40), "bytes": size}
        # Random samples begin like a text page or another format once in a while; a sample's first bytes are not ours.
        head = "4f676753" if kind != "raw" else "0100feff"
        if size >= len(head) // 2:
            audio["head_hex"] = head
        elif size:
            audio = {"hex": head[: 2 * size]}
        return {
            "id": self.uuid(),
            "participant": person,
            "audio": audio,
            "checksum": self.random.choice(["none", "none", "sha256", "crc32", "md5"]),
            "ranges": self.random.random() > 0.1,
            **more,
        }

    def size(self) -> int:
        """Draw a body's length: mostly small, now and then around the length of an upload's part."""
        draw = self.random.random()
        if draw < 0.1:
            return self.random.choice([0, 1, 2, 3, 43, 44, 45, 4095, 4096, 4097])
        if draw < 0.16:
            return PART + self.random.choice([-45, -44, -43, -1, 0, 1, 70_001])
        if draw < 0.17:
            return 20 * MIB
        return self.random.randint(2_000, 300_000)

    def victim(self, size: int | None = None, **more: Any) -> str:
        """Choose a part for something to happen to, another one each time; give the path of its body.

        :param size: its length from now on.
        :param more: further members of the part.
        """
        free = [
            (artifact, index)
            for artifact in self.artifacts
            for index in range(len(artifact["parts"]))
            if (artifact["id"], index) not in self._victims
        ]
        if not free:
            artifact = self.random.choice(self.artifacts)
            free = [(artifact, len(artifact["parts"]))]
            person = {"id": 701, "name": "One more"}
            artifact["parts"].append(self.part(person, artifact["format"], 1, relative=700.0 + len(self._victims)))
        artifact, index = self.random.choice(free)
        self._victims.add((artifact["id"], index))
        old = artifact["parts"][index]
        length = size if size is not None else self.random.randint(100_000, 600_000)
        kept = {name: old[name] for name in ("id", "relative", "checksum", "ranges") if name in old}
        artifact["parts"][index] = {
            **self.part(old["participant"], artifact["format"], length),
            **kept,
            **more,
        }
        return f"^/{artifact['id']}/{index}-0\\?"

    def rule(
        self, origin: str, path: str, *, times: int | None = 1, skip: int = 0, hits: int | None = None, **action: Any
    ) -> None:
        """Add a rule of the simulator.

        :param hits: how often it may be met at most.
        """
        name = f"{self.made.kinds[-1]}/{len(self.made.rules)}"
        method = action.pop("method", None)
        rule = {"name": name, "origin": origin, "path": path, "times": times, "skip": skip, "action": action}
        self.made.rules.append({**rule, "method": method} if method else rule)
        if hits is not None:
            self.made.hits[name] = hits

    def api(self, path: str, **members: Any) -> None:
        self.rule("api", path, **members)

    def media(self, path: str, **members: Any) -> None:
        self.rule("media", path, **members)

    def s3(self, operation: str, action: str, **members: Any) -> None:
        """Add a rule of the S3 server."""
        self.made.s3_rules.append({"operation": operation, "action": action, **members})

    def somewhere(self) -> str:
        """Choose a call that every run with audio makes more than once."""
        return self.random.choice([BOT, LIST, DOCUMENT])

    def run(self, name: str, **members: Any) -> None:
        self.made.script = {"name": name, **members}


@dataclass(frozen=True)
class Kind:
    """One kind of fault.

    :ivar name: id of the failure and what is special.
    :ivar group: ``shape``, ``retry``, ``drive`` or ``fail``.
    :ivar apply: puts it into a draft.
    :ivar codes: of a ``fail``.
    :ivar stores: where it can happen.
    :ivar alone: nothing else goes with it.
    :ivar heals: of a ``fail``: the next run succeeds once the fault is gone.
    """

    name: str
    group: str
    apply: Callable[[Draft], None]
    codes: tuple[str, ...] = ()
    stores: tuple[str, ...] = ("file", "s3")
    alone: bool = False
    heals: bool = True

    @property
    def id(self) -> str:
        return self.name.partition(" ")[0]


KINDS: list[Kind] = []


def kind(name: str, group: str, *codes: str, **members: Any) -> Callable[[Callable[[Draft], None]], None]:
    """Register a kind of fault."""

    def register(apply: Callable[[Draft], None]) -> None:
        KINDS.append(Kind(name, group, apply, codes, **members))

    return register


def rules(name: str, group: str, *codes: str, origin: str, path: str | None = None, **members: Any) -> None:
    """Register a kind of fault that is one rule of the simulator."""
    about = {one: members.pop(one) for one in ("stores", "alone", "heals") if one in members}
    size = members.pop("size", None)

    def apply(draft: Draft) -> None:
        where = path or (draft.somewhere() if origin == "api" else draft.victim(size))
        draft.rule(origin, where, **members)

    KINDS.append(Kind(name, group, apply, codes, **about))


# A. The API

rules("A01 401", "fail", "auth_rejected", origin="api", path=BOT, times=None, hits=1, status=401)
rules("A02 403 page", "fail", "request_blocked", origin="api", path=BOT, times=None, hits=1, html=403)
rules("A02 403 page on list", "fail", "request_blocked", origin="api", path=LIST, times=None, hits=1, html=403)
rules("A04 404", "fail", "bot_not_found", origin="api", path=BOT, times=None, hits=1, status=404)
rules("A07 429", "retry", origin="api", status=429, headers={"Retry-After": "1"})
rules("A07 429 twice", "retry", origin="api", times=2, status=429, headers={"Retry-After": "1"})
rules("A07 429 asks too much", "fail", "rate_limited", origin="api", path=BOT, times=None, hits=1, status=429, headers={
    "Retry-After": "90"})  # fmt: skip
rules("A09 429 without a time", "retry", origin="api", status=429)
for _status in (500, 502, 503, 504):
    rules(f"A10 {_status}", "retry", origin="api", times=2, status=_status)
rules("A10 500 for ever", "fail", "server_error", origin="api", path=LIST, times=None, status=500)
rules("A10 503 later", "retry", origin="api", skip=1, times=2, status=503)
rules("A12 cut JSON", "retry", origin="api", times=2, truncate=20)
rules("A12 empty", "retry", origin="api", times=2, body_hex="")
rules("A12 page", "retry", origin="api", times=2, html=200)
rules("A12 array", "retry", origin="api", path=BOT, times=2, body=[])
rules("A12 for ever", "fail", "bad_response", origin="api", path=BOT, times=None, body=[])
rules("A12 deep", "retry", origin="api", path=BOT, body='{"a":' * 50_000)
rules("A12 claims more", "retry", origin="api", content_length=200_000)
rules("A12 reset", "retry", origin="api", cut=9)
rules("A12 closed", "retry", origin="api", cut=9, reset=False)
rules("A14 slow body", "retry", origin="api", rate=1)
rules("A14 slow head", "retry", origin="api", head_rate=1)
rules("A14 stall", "retry", origin="api", stall=5, stall_seconds=4)
rules("A15 reset at once", "retry", origin="api", times=2, drop="before")
rules("A15 lost answer", "retry", origin="api", drop="after")
rules(
    "A16 redirect elsewhere", "fail", "unsafe_redirect", origin="api", path=LIST, times=None, redirect=f"http://{SINK}/"
)
rules("A17 next elsewhere", "fail", "unsafe_pagination_url", origin="api", path=LIST, times=None, hits=1,
      next=f"http://{SINK}/api/v1/audio_separate/")  # fmt: skip
rules("A18 next repeats", "fail", "unsafe_pagination_url", origin="api", path=LIST, times=None, next="repeat")
rules("A21 results renamed", "fail", "schema_changed", origin="api", path=LIST, times=None, hits=1, remove=["results"])
rules("A21 id null", "fail", "schema_changed", origin="api", path=LIST, times=None, hits=1, set={"results.0.id": None})
rules("A21 link is a number", "fail", "schema_changed", origin="api", path=LIST, times=None, hits=1,
      set={"results.0.data.download_url": 7})  # fmt: skip
rules("A21 parts are an object", "fail", "schema_changed", origin="api", path=DOCUMENT, times=None, body={"parts": []})


@kind("A15 refused", "fail", "request_failed")
def _(draft: Draft) -> None:
    draft.made.environment["REFUSED"] = "1"


@kind("A19 small pages", "shape")
def _(draft: Draft) -> None:
    draft.made.settings["page_size"] = 1
    for recording in draft.meeting["recordings"]:
        while len(recording["artifacts"]) < 3:
            part = draft.part({"id": 1, "name": "Person 0"}, "raw", 3000, relative=5.0)
            recording["artifacts"].append({"id": draft.uuid(), "format": "raw", "parts": [part]})


@kind("A20 unknown fields and states", "shape")
def _(draft: Draft) -> None:
    draft.meeting["overrides"] = {"something_new": {"deep": [1, None]}, "bot_mood": "good"}
    for artifact in draft.artifacts:
        artifact["overrides"] = {"codec": "new", "format": draft.random.choice(["RAW", "flac?", "opus"])}
        artifact["overrides"].pop("format")
        artifact["parts"][0]["overrides"] = {"loudness": -3}


@kind("A23 clock skew", "shape")
def _(draft: Draft) -> None:
    draft.made.skew = draft.random.choice([-3600, 3600, -600, 86_400])


@kind("A08 429 with a date", "retry")
def _(draft: Draft) -> None:
    draft.made.skew = draft.random.choice([-600, 600])
    draft.api(draft.somewhere(), status=429, retry_after_date=2)


def _created(draft: Draft) -> None:
    draft.made.target = "create"
    draft.made.arguments += ["--wait-timeout", "12"]
    draft.meeting.update(
        {
            "dispatch": "on_create",
            "pace": 5000.0,
            "meeting_url": f"https://example.zoom.us/j/{draft.random.getrandbits(40)}",
        }
    )
    del draft.meeting["created_at"], draft.meeting["bot_id"]


@kind("A03 402", "fail", "payment_required", alone=True)
def _(draft: Draft) -> None:
    _created(draft)
    draft.api(CREATE, method="POST", times=None, hits=1, status=402)


@kind("A05 404 just after create", "retry", alone=True)
def _(draft: Draft) -> None:
    _created(draft)
    draft.api(BOT, times=2, status=404)


@kind("A06 409 on create", "retry", alone=True)
def _(draft: Draft) -> None:
    _created(draft)
    draft.api(CREATE, method="POST", times=3, status=409)


@kind("A11 507 on create", "retry", alone=True)
def _(draft: Draft) -> None:
    _created(draft)
    draft.api(CREATE, method="POST", times=2, status=507, headers={"Retry-After": "1"}, body={"detail": "none free"})


@kind("A15 create: answer lost", "retry", alone=True)
def _(draft: Draft) -> None:
    _created(draft)
    draft.api(CREATE, method="POST", times=2, drop="after")


# B. The life of bots, recordings and media


@kind("B01 bot fatal", "fail", "bot_fatal", alone=True, heals=False)
def _(draft: Draft) -> None:
    draft.meeting["recordings"] = []
    sub_code = draft.random.choice(["bot_errored", "meeting_not_found", "made_up_yesterday"])
    draft.meeting["timeline"] = [{"at": 0, "code": "joining_call"}, {"at": 4, "code": "fatal", "sub_code": sub_code}]


@kind("B02 not let in", "fail", "not_recorded", alone=True, heals=False)
def _(draft: Draft) -> None:
    draft.meeting["recordings"] = []
    draft.meeting["timeline"] = [
        {"at": 0, "code": "joining_call"},
        {"at": 3, "code": "in_waiting_room"},
        {"at": 9, "code": "call_ended", "sub_code": "timeout_exceeded_waiting_room"},
        {"at": 10, "code": "done"},
    ]


@kind("B04 several recordings", "shape")
def _(draft: Draft) -> None:
    while len(draft.meeting["recordings"]) < 3:
        draft.meeting["recordings"].append(draft.recording())


@kind("B05 media finishes late", "retry", alone=True)
def _(draft: Draft) -> None:
    del draft.meeting["created_at"]
    draft.meeting.update({"live": True, "pace": 1000.0})
    for artifact in draft.artifacts:
        artifact["done_after"] = 800.0


@kind("B06 media never finishes", "fail", "media_timeout", alone=True, heals=False)
def _(draft: Draft) -> None:
    draft.artifacts[-1]["status"] = "processing"
    if len(draft.meeting["recordings"]) > 1:
        del draft.meeting["recordings"][:-1]
    draft.made.arguments += ["--media-timeout", "1.5"]


@kind("B07 media failed", "fail", "media_failed", alone=True, heals=False)
def _(draft: Draft) -> None:
    for artifact in draft.artifacts:
        artifact.update({"status": "failed", "sub_code": "made_up"})


@kind("B07 one artifact failed", "shape", alone=True)
def _(draft: Draft) -> None:
    lost: dict[str, Any] = {"id": draft.uuid(), "format": "raw", "status": "failed", "sub_code": "made_up"}
    lost["parts"] = [draft.part({"id": 1, "name": "Person 0"}, "raw", 3000, relative=1.0)]
    draft.meeting["recordings"][0]["artifacts"].append(lost)
    draft.made.gone.append(lost["id"])


@kind("B08 media expired", "fail", "media_expired", alone=True, heals=False)
def _(draft: Draft) -> None:
    for recording in draft.meeting["recordings"]:
        recording["expires_at"] = "2026-04-01T00:00:00Z"
    draft.made.settings["deleted"] = draft.random.choice(["listed", "gone"])


@kind("B08 media deleted", "fail", "media_deleted", alone=True, heals=False)
def _(draft: Draft) -> None:
    for artifact in draft.artifacts:
        artifact["status"] = "deleted"


@kind("B08 expires in the middle", "fail", "media_deleted", "media_expired", "media_forbidden", "artifact_not_found",
      "media_failed", alone=True, heals=False)  # fmt: skip
def _(draft: Draft) -> None:
    for recording in draft.meeting["recordings"]:
        recording["expires_at"] = "2027-06-01T00:00:00Z"
    path = draft.victim(500_000)
    # Before the copy knows what it is, and so before it could go on in ranges.
    draft.media(path, stall=100, stall_seconds=1.2, cut=100)
    draft.run("at-stall", then="advance", seconds=400 * 86_400)


@kind("B09 expired after it was archived", "drive", alone=True)
def _(draft: Draft) -> None:
    draft.made.target = draft.random.choice(["bot", "recording"])
    for recording in draft.meeting["recordings"]:
        recording["expires_at"] = "2027-06-01T00:00:00Z"
    draft.made.settings["deleted"] = "listed"
    draft.run("again", advance=400 * 86_400)


@kind("B10 never asked for", "fail", "not_configured", alone=True, heals=False)
def _(draft: Draft) -> None:
    del draft.meeting["recording_config"]["audio_separate_raw"]
    for recording in draft.meeting["recordings"]:
        recording["artifacts"] = []


@kind("B11 never listed", "fail", "media_missing", alone=True, heals=False)
def _(draft: Draft) -> None:
    for recording in draft.meeting["recordings"]:
        recording["artifacts"] = []
    draft.made.arguments += ["--media-timeout", "1.5"]


@kind("B12 nobody spoke", "shape", alone=True)
def _(draft: Draft) -> None:
    for artifact in draft.artifacts:
        artifact["parts"] = []


@kind("B13 nothing known of participants", "shape")
def _(draft: Draft) -> None:
    draft.victim(5000, participant=None)
    draft.victim(6000, participant={"id": None, "name": None})


@kind("B14 rejoins and namesakes", "shape")
def _(draft: Draft) -> None:
    artifact = draft.random.choice(draft.artifacts)
    for person in ({"id": 501, "name": "Kim"}, {"id": 502, "name": "Kim"}, {"id": 501, "name": "Kim"}):
        artifact["parts"].append(draft.part(person, artifact["format"], draft.random.randint(2, 9000), relative=50.0))


@kind("B15 one id, two parts", "shape")
def _(draft: Draft) -> None:
    artifact = draft.random.choice(draft.artifacts)
    for number in (1, 2):
        part = draft.part({"id": 601, "name": "Twin"}, artifact["format"], 4000 * number, relative=60.0 * number)
        artifact["parts"].append({**part, "id": "twin"})


@kind("B16 the same ids in another meeting", "drive")
def _(draft: Draft) -> None:
    other = draft.meet()
    del other["recordings"][1:]
    for recording in other["recordings"]:
        recording["artifacts"][0]["parts"][0]["id"] = draft.artifacts[0]["parts"][0]["id"]
        recording["artifacts"][0]["parts"][0]["participant"] = draft.artifacts[0]["parts"][0]["participant"]
    draft.made.meetings.append(other)
    draft.run("both")


@kind("B17 many parts", "shape", alone=True)
def _(draft: Draft) -> None:
    del draft.meeting["recordings"][1:]
    artifact = draft.artifacts[0]
    # Each batch costs a client of the store of its own, so many of them take long on a busy machine.
    people = draft.random.choice([4, 10])
    draft.made.deadline = 80.0
    artifact["parts"] = [
        {
            **draft.part({"id": number, "name": f"P{number}"}, artifact["format"], 400, relative=float(number)),
            "id": f"many-{number}",
            "repeat": 160 // people,
        }
        for number in range(people)
    ]


@kind("B18 zero bytes and no length", "shape")
def _(draft: Draft) -> None:
    draft.victim(0, duration=12.5)
    draft.victim(2000, duration=0.0)


@kind("B19 implausible size", "shape")
def _(draft: Draft) -> None:
    draft.victim(40_000, duration=600.0)


@kind("B21 still in the call", "retry", alone=True)
def _(draft: Draft) -> None:
    del draft.meeting["created_at"]
    draft.meeting.update({"live": True, "pace": 700.0})
    draft.made.arguments += ["--wait-timeout", "15"]


# C. Fetching

rules("C01 link expired", "retry", origin="media", expired=True)
rules("C01 all links expired once", "retry", origin="media", path="", expired=True)
rules("C01 parts link expired", "retry", origin="api", path=DOCUMENT, expired=True)
rules("C03 403 for ever", "fail", "media_forbidden", origin="media", times=None, hits=8, status=403)
rules(
    "C03 parts link refused for ever", "fail", "media_forbidden", origin="api", path=DOCUMENT, times=None, expired=True
)
for _offset in (0, 1, 65_535, 65_536, 65_537):
    rules(f"C04 reset at {_offset}", "retry", origin="media", size=300_001, cut=_offset)
rules("C04 reset before part end", "retry", origin="media", size=PART + 9000, cut=PART - 45)
rules("C04 reset at part end", "retry", origin="media", size=PART + 9000, cut=PART)
rules("C04 reset after part end", "retry", origin="media", size=PART + 9000, cut=PART + 1)
rules("C04 reset at last byte", "retry", origin="media", size=300_001, cut=300_000)
rules("C05 closed early", "retry", origin="media", size=300_001, cut=150_000, reset=False)
rules("C05 closed at once", "retry", origin="media", size=300_001, cut=0, reset=False)
rules("C06 less than declared", "retry", origin="media", size=300_001, content_length=400_000)
rules("C07 no length", "retry", origin="media", size=300_001, content_length="none")
rules("C07 chunked", "retry", origin="media", size=300_001, content_length="chunked")
rules("C08 500", "retry", origin="media", times=2, status=500)
rules("C08 503 with a time", "retry", origin="media", status=503, headers={"Retry-After": "1"})
rules("C08 429 with a time", "retry", origin="media", status=429, headers={"Retry-After": "1"})
rules("C08 500 for ever", "fail", "server_error", origin="media", times=None, status=500)
rules("C09 encoded", "retry", origin="media", headers={"Content-Encoding": "gzip"})
rules("C10 bomb", "retry", origin="media", bomb=4)
rules("C10 bomb for ever", "fail", "unexpected_content", "decoded_too_large", origin="media", times=None, bomb=4)
rules("C10 bomb as parts list", "retry", origin="api", path=DOCUMENT, bomb=4)
rules("C15 too many redirects", "fail", "unsafe_redirect", origin="media", times=None, redirect="{path}?{query}")
rules("C16 redirect to metadata", "fail", "unsafe_redirect", origin="media", times=None,
      redirect="http://169.254.169.254/latest/meta-data/")  # fmt: skip
rules("C16 redirect to loopback", "fail", "unsafe_redirect", origin="media", times=None, redirect=f"https://{SINK}/x")
rules("C16 redirect to a file", "fail", "unsafe_redirect", origin="media", times=None, redirect="file:///etc/passwd")
rules("C16 redirect in hexadecimal", "fail", "unsafe_redirect", origin="media", times=None,
      redirect="http://0xa9fea9fe/")  # fmt: skip
rules("C16 parts list redirects", "fail", "unsafe_redirect", origin="api", path=DOCUMENT, times=None,
      redirect=f"https://{SINK}/x")  # fmt: skip
rules("C17 name of a private address", "fail", "unsafe_redirect", origin="media", times=None,
      redirect=f"https://localhost:{SINK.rpartition(':')[2]}/x")  # fmt: skip
rules("C19 page", "retry", origin="media", times=2, html=200)
rules("C19 error in a 200", "retry", origin="media", times=2,
      body='<?xml version="1.0"?><Error><Code>SlowDown</Code></Error>')  # fmt: skip
rules("C19 page for ever", "fail", "unexpected_content", origin="media", times=None, html=200)
rules("C22 slow", "retry", origin="media", rate=1)
rules("C22 stall", "retry", origin="media", size=300_001, stall=150_000, stall_seconds=6)
rules("C22 stall before the first byte", "retry", origin="media", size=300_001, stall=0, stall_seconds=6)
rules("C22 slow head", "retry", origin="media", head_rate=1)
rules("C24 reset at once", "retry", origin="media", times=2, drop="before")
rules("C25 cookies", "retry", origin="media", path="", times=None, headers={"Set-Cookie": "session=1; Path=/"})
rules("C25 challenge", "retry", origin="media", status=401, headers={"WWW-Authenticate": "Basic realm=x"})


@kind("C22 slow for ever", "fail", "media_slow")
def _(draft: Draft) -> None:
    draft.media(draft.victim(), times=None, rate=1)
    draft.made.arguments += ["--tries", "1"]


@kind("C02 cut, then expired", "retry")
def _(draft: Draft) -> None:
    path = draft.victim(400_000)
    draft.media(path, cut=200_000)
    draft.media(path, expired=True)


@kind("C11 range ignored", "retry")
def _(draft: Draft) -> None:
    path = draft.victim(400_000, ranges=True, etag="opaque")
    draft.media(path, cut=200_000)
    draft.media(path, ignore_range=True)


@kind("C12 other version on resume", "retry")
def _(draft: Draft) -> None:
    path = draft.victim(400_000, ranges=True, etag="opaque")
    draft.media(path, cut=200_000)
    draft.media(path, etag='"other"')


@kind("C13 wrong place in Content-Range", "retry")
def _(draft: Draft) -> None:
    path = draft.victim(400_000, ranges=True, etag="opaque")
    draft.media(path, cut=200_000)
    wrong = draft.random.choice(["bytes 0-199999/400000", "bytes 200001-399999/400000", "bytes 200000-399999/999", "x"])
    draft.media(path, headers={"Content-Range": wrong})


@kind("C14 bit turned over, checksum known", "retry")
def _(draft: Draft) -> None:
    checksum = draft.random.choice(["sha256", "crc32", "md5"])
    draft.media(draft.victim(400_000, checksum=checksum), flip=draft.random.randrange(400_000))


@kind("C06 declares too little, checksum known", "retry")
def _(draft: Draft) -> None:
    draft.media(draft.victim(300_001, checksum="sha256"), content_length=299_000)


@kind("C15 redirect to an allowed host", "retry")
def _(draft: Draft) -> None:
    draft.made.environment["ALSO_LOCALHOST"] = "1"
    draft.media(draft.victim(), times=1, redirect="http://localhost:{media_port}{path}?{query}")


@kind("C18 no length at all", "shape")
def _(draft: Draft) -> None:
    draft.victim(draft.random.choice([1, 5000, 300_000, PART + 3]), content_length=False, checksum="none")


@kind("C23 ten cuts", "retry")
def _(draft: Draft) -> None:
    path = draft.victim(600_000, ranges=True, etag="opaque")
    for _ in range(10):
        draft.media(path, cut=draft.random.randint(30_000, 58_000), reset=draft.random.random() < 0.5)


@kind("C26 host not allowed", "fail", "host_not_allowed", heals=False)
def _(draft: Draft) -> None:
    draft.victim(overrides={"download_url": f"http://{SINK}/audio?Signature=canary-signature-of-another-host"})


# D. Storing

FILE, S3 = ("file",), ("s3",)


def _os(draft: Draft, name: str, number: int, action: str) -> None:
    draft.made.arguments += ["--os-fault", f"{name}:{number}:{action}"]


for _name, _errno in (("write", "ENOSPC"), ("write", "EIO"), ("fsync", "EIO"), ("fsync", "ENOSPC"), ("link", "EIO"),
                      ("write", "EDQUOT"), ("open", "EMFILE")):  # fmt: skip

    @kind(f"D20 {_errno} on {_name}, passing", "retry", stores=FILE)
    def _(draft: Draft, name: str = _name, code: str = _errno) -> None:
        _os(draft, name, draft.random.randint(1, 3), code)


@kind("D20 disk full for ever", "fail", "storage_full", stores=FILE)
def _(draft: Draft) -> None:
    _os(draft, draft.random.choice(["write", "fsync"]), 1, "ENOSPC+")


@kind("D20 file too large", "fail", "storage_full", stores=FILE)
def _(draft: Draft) -> None:
    draft.victim(400_000)
    draft.made.arguments += ["--file-limit", "200000"]


@kind("D20 read-only", "fail", "storage_denied", stores=FILE)
def _(draft: Draft) -> None:
    _os(draft, "mkdir", 1, "EROFS+")


@kind("D20 no extended attributes", "shape", stores=FILE)
def _(draft: Draft) -> None:
    _os(draft, "setxattr", 1, "ENOTSUP+")


@kind("D21 killed around a step of a file", "drive", stores=FILE)
def _(draft: Draft) -> None:
    name = draft.random.choice(["mkdir", "open", "write", "setxattr", "fchmod", "fsync", "link", "unlink", "close"])
    when = draft.random.choice(["kill-before", "kill-after"])
    draft.run("killed", faults=[f"{name}:{draft.random.randint(1, 2)}:{when}"])


@kind("D21 killed at the link", "drive", stores=FILE)
def _(draft: Draft) -> None:
    when = draft.random.choice(["kill-before", "kill-after"])
    count = sum(len(artifact["parts"]) for artifact in draft.artifacts)
    draft.run(
        "killed",
        faults=[f"{draft.random.choice(['link', 'unlink', 'fsync'])}:{draft.random.randint(1, count + 1)}:{when}"],
    )


@kind("D07 same content is there", "drive")
def _(draft: Draft) -> None:
    draft.run("without-manifest")


@kind("D08 other content is there", "fail", "content_conflict", alone=True, heals=False)
def _(draft: Draft) -> None:
    draft.run("tampered", how=draft.random.choice(["flip", "shorter", "foreign"]))


@kind("D09 two writers", "drive")
def _(draft: Draft) -> None:
    if draft.random.random() < 0.4:
        draft.victim(PART + draft.random.randint(0, 3 * MIB))
    draft.run("race", delay=draft.random.choice([0.0, 0.0, 0.05, 0.2]))


@kind("D09 two writers of a large part", "drive", stores=S3)
def _(draft: Draft) -> None:
    draft.victim(PART + draft.random.randint(1, 3 * MIB))
    draft.run("race", delay=draft.random.choice([0.0, 0.02, 0.1]))


@kind("D09 two writers at the same write", "drive", stores=S3)
def _(draft: Draft) -> None:
    if draft.random.random() < 0.5:
        draft.victim(PART + draft.random.randint(1, 3 * MIB))
    operation = draft.random.choice(["PutObject", "CompleteMultipartUpload", "PutObject|CompleteMultipartUpload"])
    draft.run("duel", operation=operation, skip=draft.random.randint(0, 2))


@kind("D09 two writers at the same link", "drive", stores=FILE)
def _(draft: Draft) -> None:
    draft.run("duel", call="link", number=draft.random.randint(1, 3))


def storage(
    name: str, group: str, *codes: str, operation: str, action: str, large: bool = False, **members: Any
) -> None:
    """Register a kind of fault that is one rule of the S3 server."""
    about = {one: members.pop(one) for one in ("alone", "heals") if one in members}

    def apply(draft: Draft) -> None:
        if large:
            draft.victim(PART + draft.random.randint(1, 2 * MIB))
        draft.s3(operation, action, **members)

    KINDS.append(Kind(name, group, apply, codes, stores=S3, **about))


_WRITES = "PutObject|UploadPart|CompleteMultipartUpload"
storage("D01 SlowDown", "retry", operation=_WRITES, action="error", times=3, every=2)
storage("D01 SlowDown on parts", "retry", operation="UploadPart", action="error", large=True, times=2)
storage("D01 500", "retry", operation=_WRITES, action="error", code="InternalError", times=2)
storage(
    "D01 SlowDown on reads", "retry", operation="ListObjectsV2|HeadObject|ListMultipartUploads", action="error", times=3
)
storage("D02 denied", "fail", "storage_denied", operation=".*", action="error", code="AccessDenied", times=None)
storage(
    "D02 writing denied", "fail", "storage_denied", operation=_WRITES, action="error", code="AccessDenied", times=None
)
storage("D02 no bucket", "fail", "no_such_bucket", operation=".*", action="error", code="NoSuchBucket", times=None)
storage(
    "D02 other region",
    "fail",
    "wrong_region",
    operation=".*",
    action="error",
    code="PermanentRedirect",
    status=301,
    times=None,
)
storage("D03 credentials expire", "retry", operation=_WRITES, action="error", code="ExpiredToken", skip=1)
storage(
    "D03 credentials expire in an upload",
    "retry",
    operation="UploadPart",
    action="error",
    code="ExpiredToken",
    large=True,
)
storage("D04 stored bytes differ", "retry", operation="PutObject", action="corrupt")
storage("D04 stored bytes differ, checksum kept", "retry", operation="UploadPart", action="corrupt", large=True)
storage("D05 answer to PutObject lost", "retry", operation="PutObject", action="drop", when="after")
storage(
    "D05 answer to completion lost",
    "retry",
    operation="CompleteMultipartUpload",
    action="drop",
    when="after",
    large=True,
)
storage("D05 answer to UploadPart lost", "retry", operation="UploadPart", action="drop", when="after", large=True)
storage(
    "D05 answer to creation lost", "drive", operation="CreateMultipartUpload", action="drop", when="after", large=True
)
storage("D05 reset in a body", "retry", operation=_WRITES, action="drop", bytes=0)
storage("D06 conflict", "retry", operation="PutObject", action="error", code="ConditionalRequestConflict", status=409)
storage("D06 conflict on completion", "retry", operation="CompleteMultipartUpload", action="error",
        code="ConditionalRequestConflict", status=409, large=True)  # fmt: skip
storage(
    "D10 error in a 200",
    "retry",
    operation="CompleteMultipartUpload",
    action="error",
    code="InternalError",
    status=200,
    large=True,
)
storage(
    "D15 upload vanishes", "retry", operation="UploadPart", action="error", code="NoSuchUpload", status=404, large=True
)
storage(
    "D15 upload vanishes at the end",
    "retry",
    operation="CompleteMultipartUpload",
    action="error",
    code="NoSuchUpload",
    status=404,
    large=True,
)
storage(
    "D17 manifest refused once", "retry", operation="PutObject", action="error", code="InternalError", key="manifest"
)
storage("D17 manifest's answer lost", "retry", operation="PutObject", action="drop", when="after", key="manifest")
storage("D22 read cut", "retry", operation="GetObject", action="cut", bytes=100)
storage("D22 slow store", "retry", operation=_WRITES, action="delay", seconds=0.5, times=2)


@kind("D12 abort fails", "retry", stores=S3)
def _(draft: Draft) -> None:
    draft.s3("AbortMultipartUpload", "error", code="InternalError", times=draft.random.choice([2, 9, 99]))
    draft.made.may_leave = True


for _server in ("no-conditions", "no-conditions-on-complete"):

    @kind(f"D13 store with {_server}", "fail", "conditions_ignored", stores=S3, heals=False)
    def _(draft: Draft, server: str = _server) -> None:
        draft.made.server = server


@kind("D11 killed at a storage call", "drive", stores=S3)
def _(draft: Draft) -> None:
    if draft.random.random() < 0.6:
        draft.victim(PART + draft.random.randint(1, 3 * MIB))
    when = draft.random.choice(["before", "after"])
    draft.run(
        "held",
        when=when,
        # What is refused has no moment after it was done.
        operation=".*" if when == "before" else f"List.*|CreateMultipartUpload|{_WRITES}",
        skip=draft.random.randint(0, 8 if when == "before" else 4),
        drop=draft.random.random() < 0.5,
    )


@kind("D11 killed in an upload", "drive", stores=S3)
def _(draft: Draft) -> None:
    draft.victim(2 * PART + draft.random.randint(1, MIB))
    operation = draft.random.choice(["CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"])
    draft.run(
        "held",
        when=draft.random.choice(["before", "after"]),
        skip=draft.random.randint(0, 2) if operation == "UploadPart" else 0,
        operation=operation,
        drop=draft.random.random() < 0.5,
    )


@kind("D14 store without checksums", "shape", stores=S3)
def _(draft: Draft) -> None:
    draft.made.server = "no-checksums"
    if draft.random.random() < 0.5:
        draft.victim(PART + 70_000)


@kind("D14 store without trailers", "shape", stores=S3)
def _(draft: Draft) -> None:
    draft.made.server = "ceph"
    if draft.random.random() < 0.5:
        draft.victim(PART + 70_000)


# E. Processes


@kind("E01 SIGKILL at any moment", "drive")
def _(draft: Draft) -> None:
    draft.run("kill", after=[round(draft.random.uniform(0.0, 0.9), 3) for _ in range(draft.random.randint(1, 3))])


@kind("E01 SIGKILL within a body", "drive")
def _(draft: Draft) -> None:
    size = draft.random.choice([300_000, PART + 300_000])
    draft.media(draft.victim(size), stall=draft.random.randint(0, size - 1))
    draft.run("at-stall", then="kill")


@kind("E02 the old process lives on", "drive")
def _(draft: Draft) -> None:
    size = draft.random.choice([300_000, PART + 300_000])
    draft.media(draft.victim(size), stall=draft.random.randint(0, size - 1), stall_seconds=3)
    draft.run("at-stall", then="freeze")


@kind("E10 stopped within a body", "drive")
def _(draft: Draft) -> None:
    size = draft.random.choice([300_000, PART + 300_000])
    draft.media(draft.victim(size), stall=draft.random.randint(0, size - 1), stall_seconds=1.0)
    draft.run("at-stall", then="stop")


@kind("E10 stopped at any moment", "drive")
def _(draft: Draft) -> None:
    draft.run("stop", after=round(draft.random.uniform(0.0, 0.8), 3))


@kind("E11 the same again", "drive")
def _(draft: Draft) -> None:
    draft.run("again")


@kind("E13 an object is gone, its manifest is not", "drive")
def _(draft: Draft) -> None:
    draft.run("lost-object")


@kind("E14 one part fails for good", "fail", "media_forbidden")
def _(draft: Draft) -> None:
    path = draft.victim()
    draft.media(path, times=None, status=draft.random.choice([403, 404, 410]))


@kind("E24 links run out in the middle", "drive")
def _(draft: Draft) -> None:
    draft.media(draft.victim(500_000), stall=200_000, stall_seconds=0.8, cut=200_000)
    draft.run("at-stall", then="advance", seconds=20_000)


# G. Secrets and names


@kind("G02 debug logging", "shape")
def _(draft: Draft) -> None:
    draft.made.debug = True


@kind("G02 debug logging of a failure", "fail", "media_cut")
def _(draft: Draft) -> None:
    draft.made.debug = True
    draft.media(draft.victim(), times=None, drop="before")
    draft.made.arguments += ["--tries", "2"]


@kind("G03 hostile names", "shape")
def _(draft: Draft) -> None:
    for artifact in draft.artifacts:
        for part in artifact["parts"]:
            if part["participant"] is not None:
                name = draft.random.choice(NAMES)
                part["participant"] = {**part["participant"], "name": name, "email": f"{str(name)[:30]}@example.com"}
    for recording in draft.meeting["recordings"]:
        recording["participants"] = [{"id": 1, "name": draft.random.choice(TITLES)}, {"id": 900, "name": "Silent"}]
    draft.meeting["title"] = draft.random.choice(TITLES)


@kind("G04 hostile ids", "shape")
def _(draft: Draft) -> None:
    for artifact in draft.artifacts:
        for part, identity in zip(artifact["parts"], draft.random.sample(PART_IDS, len(PART_IDS)), strict=False):
            part["id"] = identity
    if not draft.made.rules:
        draft.artifacts[0]["id"] = f"UPPER_{draft.random.getrandbits(32)}"


@kind("G10 proxies in the environment", "shape", stores=FILE)
def _(draft: Draft) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        draft.made.environment[name] = f"http://{SINK}"


@kind("G12 mode of unfinished files", "drive", stores=FILE)
def _(draft: Draft) -> None:
    draft.media(draft.victim(500_000), stall=300_000, stall_seconds=1.0)
    draft.run("at-stall", then="modes")


def around_storage_calls(store: str, number: int) -> Schedule:
    """Make a small meeting that meets every way of storing, for processes that are killed at a storage call.

    :param store: ``file`` or ``s3``.
    :param number: that nothing else has.
    """
    draft = Draft(number)
    draft.made.store = store
    draft.made.meetings.append(draft.meet())
    draft.meeting["recordings"] = draft.meeting["recordings"][:1]
    artifact = draft.artifacts[0]
    draft.meeting["recordings"][0]["artifacts"] = [artifact]
    people = [{"id": one, "name": f"Person {one}"} for one in (1, 2)]
    sizes = (70_000, 2 * PART + 70_000 if store == "s3" else 300_000)
    artifact["parts"] = [
        draft.part(person, artifact["format"], size, relative=1.0) for person, size in zip(people, sizes, strict=True)
    ]
    return draft.made


def plan(seed: int, *, stores: tuple[str, ...] = ("file", "s3"), only: str | None = None) -> Schedule:
    """Make the schedule of a seed.

    The first fault follows from the seed in turn, so that consecutive seeds meet every kind equally often.

    :param stores: where archives may be.
    :param only: the first fault's name.
    """
    draft = Draft(seed)
    kinds = [each for each in KINDS if set(each.stores) & set(stores)]
    first = kinds[seed % len(kinds)] if only is None else next(each for each in KINDS if each.name == only)
    draft.made.first = first.name
    chosen = [first]
    for _ in range(draft.random.choice([0, 0, 0, 1, 1, 2]) if not first.alone else 0):
        groups = {"shape"} if any(one.group == "fail" for one in chosen) else {"shape", "retry", "drive"}
        if any(one.group == "drive" for one in chosen):
            groups.discard("drive")
        fitting = [
            each
            for each in kinds
            if each.group in groups
            and not each.alone
            and each not in chosen
            # Several unreadable replies in a row are no longer a passing fault.
            and (each.id != "A12" or all(one.id != "A12" for one in chosen))
            and set.intersection(set(stores), each.stores, *(one.stores for one in chosen))
        ]
        chosen.append(draft.random.choice(fitting))
    possible = sorted(set(stores).intersection(*(one.stores for one in chosen)))
    draft.made.store = possible[seed // len(kinds) % len(possible)]
    draft.made.debug = draft.random.random() < 0.1
    draft.made.meetings.append(draft.meet())
    # What shapes the meeting comes before what picks its victims in it.
    for each in sorted(chosen, key=lambda one: one.group != "shape"):
        draft.made.kinds.append(each.name)
        each.apply(draft)
        draft.made.codes += each.codes
        draft.made.heals = draft.made.heals and each.heals
    draft.made.ranges = draft.random.random() < 0.5
    return draft.made
