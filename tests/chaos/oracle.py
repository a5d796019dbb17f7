"""The judge: says what is wrong with an archive after a run, without any code of the pipeline.

What is to be there it asks of the simulator, what is there of the file system or of the S3 server, each in its own
simple way. :func:`judge` returns problems; none means that the standing checks S1 to S7 hold.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import struct
import urllib.parse
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonschema

SCHEMA = Path(__file__).parents[2] / "include" / "archive" / "manifest.v1.schema.json"
KEY = re.compile(r"[a-z0-9][a-z0-9/_.=-]{0,899}")
FOLDER = re.compile(r"dt=\d{4}-\d\d-\d\d/recording=([a-z0-9_-]+)")
LIMITS = {"list": 60, "retrieve": 300}
PER_MINUTE = 60.0
SLACK = 0.05
DOCUMENTS = {f"{name}.json" for name in ("participants", "participant_events", "speaker_timeline")}
"""What is stored of a recording besides its audio."""
DERIVED = {"meeting.html", "speakers.rttm"}
"""What is made from what is stored."""
SHOWN = 24
"""Of a secret, that many characters are as bad as all of it."""

PATTERNS = (
    rb"(?i)signature(?:=|%3d|\"?: ?\"?)(?!\[hidden\])[A-Za-z0-9%+/=]{20}",
    rb"(?i)AWSAccessKeyId(?:=|%3d)SIMULATOR",
    rb"(?i)security-token(?:=|%3d)[A-Za-z0-9_-]{10}",
    rb"eyJrIjog[A-Za-z0-9_-]{10}",
)

_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    :ivar kind: ``lost``, ``duplicate``, ``corrupt``, ``phantom``, ``leftover``, ``secret``, ``overwritten``, ``rate``,
        ``hang``, ``manifest``, ``page``, ``unreported``, ``key``, ``outcome``, ``connection`` or ``busy``.
    """

    kind: str
    detail: str


@dataclass(frozen=True)
class Stored:
    """One object, and what would change if it were written anew."""

    size: int
    sha256: str
    version: str


@dataclass
class Finished:
    """How one process of the pipeline ended.

    :ivar status: its exit status, negative for a signal.
    :ivar outcome: what it printed, if it came to that.
    :ivar hung: it had to be ended by the harness.
    """

    status: int
    outcome: dict[str, Any] | None
    seconds: float = 0.0
    hung: bool = False


@dataclass
class Evidence:
    """What is known of a schedule that was played.

    :ivar truths: what the simulator says of each recording; see ``/_sim/truth``.
    :ivar gone: artifacts that the source can't give any more.
    :ivar runs: the processes, in order; the last one's outcome counts.
    :ivar journal: of the simulator.
    :ivar rules: of the simulator, with what they ask to wait, and ``hits``: how often each may be met.
    :ivar single: there never were two processes at once, and none was killed.
    :ivar codes: with one of which the last run must have failed; empty for success.
    :ivar canaries: secrets in full.
    :ivar texts: everything that was written besides the archive: name to bytes.
    :ivar personal: names and addresses that must be in no key.
    :ivar connections: made to where none may go.
    :ivar may_leave: an unfinished upload may stay, if the run names it.
    :ivar ignores_conditions: the store replaces what it was told not to, as a trial of it must show.
    """

    truths: list[dict[str, Any]]
    runs: list[Finished]
    gone: list[str] = field(default_factory=list)
    journal: list[dict[str, Any]] = field(default_factory=list)
    rules: list[dict[str, Any]] = field(default_factory=list)
    hits: dict[str, int] = field(default_factory=dict)
    single: bool = True
    codes: list[str] = field(default_factory=list)
    canaries: list[str] = field(default_factory=list)
    texts: dict[str, bytes] = field(default_factory=dict)
    personal: list[str] = field(default_factory=list)
    connections: int = 0
    may_leave: bool = False
    ignores_conditions: bool = False


class Folder:
    """An archive in the file system."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def read(self, key: str) -> bytes:
        return (self.root / key).read_bytes()

    def objects(self) -> dict[str, Stored]:
        found = {}
        for path in self.root.rglob("*"):
            if path.is_file() and not path.name.startswith(".tmp-"):
                state = path.stat()
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
                found[str(path.relative_to(self.root))] = Stored(
                    state.st_size, digest, f"{state.st_ino}-{state.st_mtime_ns}-{state.st_mode}"
                )
        return found

    def leftovers(self) -> list[str]:
        return [
            str(path.relative_to(self.root))
            for path in self.root.rglob("*")
            if path.name.startswith(".tmp-") or path.is_symlink() or not (path.is_file() or path.is_dir())
        ]

    def overwritten(self) -> list[str]:
        return []

    def notes(self) -> bytes:
        """Everything that is kept besides the bytes."""
        lines = []
        for path in self.root.rglob("*"):
            lines.append(str(path).encode("utf-8", "surrogateescape"))
            if path.is_file():
                lines += [name.encode() + b"=" + os.getxattr(path, name) for name in os.listxattr(path)]
        return b"\n".join(lines)


class Bucket:
    """An archive on the strict S3 server, seen past S3 itself."""

    def __init__(self, endpoint: str, bucket: str, prefix: str) -> None:
        self._endpoint = endpoint
        self._bucket = bucket
        self._prefix = f"{prefix}/"

    def _get(self, path: str) -> bytes:
        with _opener.open(f"{self._endpoint}/_strict/{path}", timeout=60) as reply:
            data: bytes = reply.read()
            return data

    def _state(self) -> Any:
        return json.loads(self._get("state"))[self._bucket]

    def read(self, key: str) -> bytes:
        place = urllib.parse.urlencode(
            {"bucket": self._bucket, "key": self._prefix + key}, quote_via=urllib.parse.quote
        )
        return self._get(f"object?{place}")

    def objects(self) -> dict[str, Stored]:
        found = {}
        for key, about in self._state()["objects"].items():
            name = key.removeprefix(self._prefix)
            data = self.read(name)
            found[name] = Stored(len(data), hashlib.sha256(data).hexdigest(), f"{about['etag']}-{about['modified']}")
        return found

    def leftovers(self) -> list[str]:
        return [f"upload {one['upload_id']} of {one['key']}" for one in self._state()["uploads"]]

    def overwritten(self) -> list[str]:
        return [one["key"] for one in self._state()["writes"] if one["overwrote"] is not None]

    def notes(self) -> bytes:
        return json.dumps(self._state()).encode()


Archive = Folder | Bucket


def judge(archive: Archive, evidence: Evidence, earlier: dict[str, Stored] | None = None) -> list[Problem]:
    """Say all that is wrong.

    :param earlier: what was stored before the last run; nothing of it may have changed.
    """
    objects = archive.objects()
    problems = [Problem("leftover", each) for each in archive.leftovers() if not _is_reported(each, evidence)]
    trial = "/probe.bin" if evidence.ignores_conditions else None
    problems += [Problem("overwritten", each) for each in archive.overwritten() if not (trial and each.endswith(trial))]
    for key, old in (earlier or {}).items():
        if objects.get(key) != old:
            problems.append(Problem("overwritten", f"{key}: {old} became {objects.get(key)}"))
    problems += _objects(archive, objects, evidence)
    problems += _outcome(evidence)
    problems += _requests(evidence)
    problems += _secrets(archive, objects, evidence)
    return problems


def whole(archive: Archive, truth: dict[str, Any], gone: list[str] | None = None) -> list[Problem]:
    """Say what an archive lacks of one recording, whatever else may be in it.

    :param truth: of the simulator.
    :param gone: artifacts that the source could not give.
    """
    folder = f"dt={truth['created_at'][:10]}/recording={_safe(truth['recording_id'])}"
    there = {key[len(folder) + 1 :]: one for key, one in archive.objects().items() if key.startswith(f"{folder}/")}
    if "manifest.json" not in there:
        return [Problem("lost", f"{folder} has no manifest")]
    return _settled(archive, folder, there, truth, gone or [])


def _is_reported(leftover: str, evidence: Evidence) -> bool:
    said = f"leftover_upload: {leftover.partition(' of ')[0]} ".encode()
    return evidence.may_leave and any(said in text for text in evidence.texts.values())


def _objects(archive: Archive, objects: dict[str, Stored], evidence: Evidence) -> list[Problem]:
    problems = [Problem("key", ascii(key)) for key in objects if not KEY.fullmatch(key) or "//" in key or "/." in key]
    for key in objects:
        problems += [Problem("key", f"{ascii(key)} holds {ascii(word)}") for word in evidence.personal if word in key]
    truths = {_safe(truth["recording_id"]): truth for truth in evidence.truths}
    last = next((run.outcome for run in reversed(evidence.runs) if run.outcome is not None), None) or {}
    kept = [urllib.parse.unquote(uri) for uri in last.get("kept", [])]
    folders: dict[str, dict[str, Stored]] = {}
    for key, stored in objects.items():
        match = FOLDER.match(key)
        if match is None or match[1] not in truths:
            problems.append(Problem("phantom", f"{key} belongs to no recording"))
        else:
            folders.setdefault(match[0], {})[key[match.end() + 1 :]] = stored
    for name, count in Counter(FOLDER.match(folder)[1] for folder in folders).items():  # type: ignore[index]
        if count > 1:
            problems.append(Problem("duplicate", f"recording {name} has {count} folders"))
    succeeded = last.get("state") == "success"
    for name, truth in truths.items():
        folder = f"dt={truth['created_at'][:10]}/recording={name}"
        there = folders.pop(folder, {})
        manifest = "manifest.json" in there
        if succeeded and not manifest:
            problems.append(Problem("lost", f"{folder}: the run succeeded without a manifest"))
        if manifest:
            problems += _settled(archive, folder, there, truth, evidence.gone)
        else:
            problems += _unsettled(archive, folder, there, truth)
            if last.get("state") == "failed":
                problems += [
                    Problem(
                        "unreported", f"{folder}/{key} is in no manifest, and the run does not say that it keeps it"
                    )
                    for key in there
                    if not any(uri.endswith(f"{folder}/{key}") for uri in kept)
                ]
    problems += [Problem("phantom", f"{folder} is of another day") for folder in folders]
    return problems


def _settled(
    archive: Archive, folder: str, there: dict[str, Stored], truth: dict[str, Any], gone: list[str]
) -> list[Problem]:
    """Check a recording that has a manifest: all of it, nothing else, each part once, byte for byte."""
    problems: list[Problem] = []
    try:
        document = json.loads(archive.read(f"{folder}/manifest.json"))
        jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text())).validate(document)
    except (ValueError, jsonschema.ValidationError) as error:
        return [Problem("manifest", f"{folder}: {str(error)[:200]}")]
    wanted = _wanted(truth, gone)
    listed: Counter[Any] = Counter()
    keys: Counter[str] = Counter()
    for entry in document["parts"]:
        what = _identity(entry["artifact_id"], entry["participant_id"], entry["start_relative_seconds"], entry)
        listed[what] += 1
        keys[entry["key"]] += 1
        if what not in wanted:
            problems.append(Problem("phantom", f"{folder}: the manifest lists {what}, which the source does not"))
            continue
        problems += _listed(folder, there, entry)
        if entry["key"] not in there:
            continue
        part = wanted[what]
        problems += _same(archive.read(f"{folder}/{entry['key']}"), part, f"{folder}/{entry['key']}")
        if (entry["source_bytes"], entry["source_sha256"]) != (part["length"], part["sha256"]):
            problems.append(Problem("corrupt", f"{folder}/{entry['key']}: the manifest tells another source body"))
    problems += [Problem("lost", f"{folder}: {what} is in no manifest") for what in wanted if not listed[what]]
    problems += [Problem("duplicate", f"{folder}: {what} is listed {n} times") for what, n in listed.items() if n > 1]
    problems += [Problem("duplicate", f"{folder}/{key} is listed {n} times") for key, n in keys.items() if n > 1]
    documents = document.get("documents", [])
    problems += _documents(archive, folder, there, documents)
    known = {"manifest.json", *DERIVED, *keys, *(entry["key"] for entry in documents)}
    for key in set(there) - known:
        problems.append(_extra(archive, folder, key, wanted))
    if "meeting.html" in there:
        page = archive.read(f"{folder}/meeting.html").decode()
        if set(re.findall(r'href="(participant=[^"]*)"', page)) != set(keys) or not page.endswith("</html>\n"):
            problems.append(Problem("page", f"{folder}/meeting.html doesn't show what the manifest lists"))
    missing = {entry["artifact_id"] for entry in document["missing"]}
    named = {artifact["id"] for artifact in truth["artifacts"] if artifact["id"] in gone}
    if missing != named:
        problems.append(Problem("manifest", f"{folder}: missing are {sorted(missing)}, not {sorted(named)}"))
    totals = {"parts": len(document["parts"]), "bytes": sum(entry["bytes"] for entry in document["parts"])}
    if any(document["totals"][name] != number for name, number in totals.items()):
        problems.append(Problem("manifest", f"{folder}: the totals are wrong"))
    return problems


def _unsettled(archive: Archive, folder: str, there: dict[str, Stored], truth: dict[str, Any]) -> list[Problem]:
    """Check a recording without a manifest: whatever is there is whole, of the source, and there once."""
    wanted = _wanted(truth, [])
    problems = []
    taken: Counter[Any] = Counter()
    for key in there:
        if key in DOCUMENTS:
            problems += _document(archive, folder, key)
            continue
        data = archive.read(f"{folder}/{key}")
        fitting = [what for what, part in wanted.items() if not _same(data, part, key) and _fits(key, what)]
        if not fitting:
            problems.append(_extra(archive, folder, key, wanted))
        taken.update([key.rpartition(".")[0]])
    problems += [Problem("duplicate", f"{folder}/{stem} is stored {n} times") for stem, n in taken.items() if n > 1]
    return problems


def _documents(
    archive: Archive, folder: str, there: dict[str, Stored], documents: list[dict[str, Any]]
) -> list[Problem]:
    problems = []
    for entry in documents:
        problems += _listed(folder, there, entry)
        if entry["key"] in there:
            problems += _document(archive, folder, entry["key"])
    return problems


def _listed(folder: str, there: dict[str, Stored], entry: dict[str, Any]) -> list[Problem]:
    """Check that an object which the manifest lists is there, and as it says."""
    stored = there.get(entry["key"])
    if stored is None:
        return [Problem("lost", f"{folder}/{entry['key']} is listed and not there")]
    if (stored.size, stored.sha256) != (entry["bytes"], entry["sha256"]):
        return [Problem("corrupt", f"{folder}/{entry['key']} is not as the manifest says")]
    return []


def _document(archive: Archive, folder: str, key: str) -> list[Problem]:
    """Check that a list about a recording is a list, and one of those that the source has."""
    try:
        right = key in DOCUMENTS and isinstance(json.loads(archive.read(f"{folder}/{key}")), list)
    except ValueError:
        right = False
    return [] if right else [Problem("phantom", f"{folder}/{key} is no list of the source")]


def _extra(archive: Archive, folder: str, key: str, wanted: dict[Any, dict[str, Any]]) -> Problem:
    data = archive.read(f"{folder}/{key}")
    if any(not _same(data, part, key) for part in wanted.values()):
        return Problem("duplicate", f"{folder}/{key} is a second copy of a part")
    if any(_fits(key, what) for what in wanted):
        return Problem("corrupt", f"{folder}/{key} has not the bytes of any part of its participant")
    return Problem("phantom", f"{folder}/{key} is of no part of the source")


def _wanted(truth: dict[str, Any], gone: list[str]) -> dict[Any, dict[str, Any]]:
    return {
        _identity(artifact["id"], _participant(part), part["relative"], part): part
        for artifact in truth["artifacts"]
        if artifact["id"] not in gone
        for part in artifact["parts"]
    }


def _participant(part: dict[str, Any]) -> int:
    identity: int | None = part["participant_id"]
    return -1 if identity is None else identity


def _identity(artifact: str, participant: int, relative: float, part: dict[str, Any]) -> Any:
    """Name a part by what can't be mistaken: its artifact, its participant, its time, and its bytes."""
    return artifact, participant, round(relative, 6), part.get("source_sha256") or part["sha256"]


def _fits(key: str, what: Any) -> bool:
    return key.startswith(f"participant={_safe(str(what[1]))}/{_safe(what[0])}/")


def _safe(identity: str) -> str:
    if re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,99}", identity) and not identity.startswith("sha256-"):
        return identity
    return "sha256-" + hashlib.sha256(identity.encode("utf-8", "surrogatepass")).hexdigest()


def _same(data: bytes, part: dict[str, Any], where: str) -> list[Problem]:
    """Compare an object with a body of the source: byte for byte, behind a header of ours where there is one."""
    if len(data) == part["length"] and hashlib.sha256(data).hexdigest() == part["sha256"]:
        return []
    wrong = [Problem("corrupt", f"{where} has not the bytes of the source")]
    if len(data) < 44 or data[:4] != b"RIFF" or data[8:16] != b"WAVEfmt " or data[36:40] != b"data":
        return wrong
    size, rate, length = (struct.unpack("<I", data[at : at + 4])[0] for at in (4, 24, 40))
    padded = length + length % 2
    right = length == part["length"] and size == 36 + padded and len(data) == 44 + padded and rate > 0
    return [] if right and hashlib.sha256(data[44 : 44 + length]).hexdigest() == part["sha256"] else wrong


def _outcome(evidence: Evidence) -> list[Problem]:
    problems = [Problem("hang", f"a run took more than {run.seconds:.0f} s") for run in evidence.runs if run.hung]
    last = evidence.runs[-1]
    if last.outcome is None:
        return [*problems, Problem("outcome", f"the last run ended with {last.status} and said nothing")]
    state, code = last.outcome["state"], last.outcome.get("code")
    if state != ("failed" if evidence.codes else "success") or (evidence.codes and code not in evidence.codes):
        wanted = f"failed with {evidence.codes}" if evidence.codes else "success"
        problems.append(Problem("outcome", f"{state} ({last.outcome.get('codes')}) instead of {wanted}"))
    return problems


def _requests(evidence: Evidence) -> list[Problem]:
    problems = [Problem("connection", f"{evidence.connections} connections to where none may go")] * bool(
        evidence.connections
    )
    for entry in evidence.journal:
        sent_to_media = entry["origin"] == "media" or "/download/" in entry["path"]
        if sent_to_media and (entry["authorization"] or entry["cookie"]):
            problems.append(Problem("secret", f"{entry['path']} was asked for with a key or cookie"))
    for name, limit in LIMITS.items():
        times = [entry["time"] for entry in evidence.journal if _class_of(entry) == name]
        for index, time in enumerate(times):
            if index >= limit and time - times[index - limit] < PER_MINUTE:
                problems.append(Problem("rate", f"more than {limit} {name} requests within a minute"))
                break
    for name, most in evidence.hits.items():
        met = sum(entry["fault"] == name for entry in evidence.journal)
        if met > most:
            problems.append(Problem("rate", f"{name} was met {met} times, not at most {most}"))
    if evidence.single:
        problems += _too_early(evidence)
    return problems


def _too_early(evidence: Evidence) -> list[Problem]:
    problems = []
    waits = {rule["name"]: _asked(rule["action"]) for rule in evidence.rules}
    for index, entry in enumerate(evidence.journal):
        wait = waits.get(entry["fault"] or "", 0.0)
        following = next((one for one in evidence.journal[index + 1 :] if _same_place(entry, one)), None)
        if wait and following is not None and following["time"] < entry["time"] + wait - SLACK:
            early = entry["time"] + wait - following["time"]
            problems.append(Problem("rate", f"{following['path']} came {early:.2f} s before Retry-After"))
    return problems


def _same_place(entry: dict[str, Any], other: dict[str, Any]) -> bool:
    if entry["origin"] == "api":
        # All calls of the workspace share its limits; downloads have none.
        return bool(other["origin"] == "api" and ("/download/" in entry["path"]) == ("/download/" in other["path"]))
    return bool(other["origin"] == "media" and other["path"] == entry["path"])


def _asked(action: dict[str, Any]) -> float:
    # A date has whole seconds only.
    return float(action.get("headers", {}).get("Retry-After") or max(0.0, action.get("retry_after_date", 0.0) - 1.0))


def _class_of(entry: dict[str, Any]) -> str | None:
    if entry["origin"] != "api" or entry["method"] != "GET" or "/download/" in entry["path"]:
        return None
    return "list" if entry["path"].strip("/").count("/") == 2 else "retrieve"


def _secrets(archive: Archive, objects: dict[str, Stored], evidence: Evidence) -> list[Problem]:
    texts = {**evidence.texts, "the archive's names and notes": archive.notes()}
    texts |= {key: archive.read(key) for key in objects if key.endswith((".json", ".html"))}
    forms = {form for secret in evidence.canaries for form in _forms(secret)}
    problems = []
    for name, text in texts.items():
        for pattern in PATTERNS:
            if match := re.search(pattern, text):
                problems.append(Problem("secret", f"{name} holds {_around(text, match.start())}"))
        problems += [
            Problem("secret", f"{name} holds {_around(text, text.find(form))}") for form in forms if form in text
        ]
    return problems


def _around(text: bytes, place: int) -> str:
    return ascii(text[max(0, place - 60) : place + 12].decode("utf-8", "replace"))


def _forms(secret: str) -> set[bytes]:
    """Give a secret as it could be shown: as it is, encoded for a URL, in base64 at each offset, and cut short."""
    found: set[bytes] = set()
    for word in {secret, urllib.parse.unquote(secret)}:
        if len(word) < 12:
            continue
        short = word[:SHOWN].encode()
        found |= {short, urllib.parse.quote(word, safe="")[:SHOWN].encode()}
        for offset in range(3):
            coded = base64.b64encode(b"\0" * offset + short)
            # The first and last characters also depend on what stands before and behind.
            found.add(coded[4 if offset else 0 : -4])
    return found


def secrets_of(urls: list[str]) -> list[str]:
    """Give what must stay secret of signed links."""
    found = set()
    for url in urls:
        for name, value in urllib.parse.parse_qsl(urllib.parse.urlsplit(url).query):
            if name.lower() in ("signature", "token", "x-amz-security-token", "x-amz-signature"):
                found.add(value)
    return sorted(found)
