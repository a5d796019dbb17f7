"""``make chaos``: play seeded schedules against the pipeline, and let the oracle judge each.

    python -m tests.chaos.campaign --schedules 500
    SEED=17 make chaos            # one schedule again, with all that it wrote

A worker is a thread with a simulator, an S3 server and a process that forks runs of the pipeline, all its own. It puts
a schedule's faults in force, does to the processes what the schedule says, and hands what is left to the oracle.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3

from include.simulator.process import RunningSimulator, running_simulator
from tests.chaos.oracle import Bucket, Evidence, Finished, Folder, Problem, Stored, judge, secrets_of
from tests.chaos.schedule import KINDS, SINK, Schedule, plan
from tests.strict_s3.process import Process as StrictS3

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[2]
API_KEY = "canary-api-key-" + "k3Yz9" * 8
STORAGE_KEY = "canary-storage-key"
STORAGE_SECRET = "canary-storage-secret-" + "Q7w2" * 6
BUCKET = "recordings"
MOST_RUNS = 8
PATIENCE = 60
"""Seconds for what is done at once, on a machine that has more to do."""
IDLE_CALLS = 4
COUNTED = ("lost", "duplicate", "corrupt", "phantom", "leftover", "overwritten", "secret", "hang")


class Sink:
    """An address where nobody may connect; counts who does."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.connections = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.connections += 1
                connection.close()

    def close(self) -> None:
        self._listener.close()


class Engine:
    """One process of the pipeline."""

    def __init__(self, token: int, folder: Path) -> None:
        self.token = token
        self.pid = 0
        self.started = threading.Event()
        self.ended = threading.Event()
        self.status = 0
        self.began = time.monotonic()
        self.out = folder / f"{token}.out"
        self.err = folder / f"{token}.err"

    def signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        self.started.wait(PATIENCE)
        with contextlib.suppress(ProcessLookupError):
            if not self.ended.is_set():
                os.kill(self.pid, number)

    def wait(self, seconds: float) -> Finished:
        """Wait for its end, and make an end to it at the deadline."""
        hung = not self.ended.wait(seconds)
        if hung:
            self.signal(signal.SIGKILL)
            self.ended.wait(PATIENCE)
        outcome = None
        lines = self.out.read_text(errors="replace").splitlines() if self.out.exists() else []
        if lines and lines[-1].startswith('{"state"'):
            outcome = json.loads(lines[-1])
        return Finished(self.status, outcome, time.monotonic() - self.began, hung)


class Forker:
    """The process that forks runs."""

    def __init__(self, home: Path) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "AWS_"))}
        environment |= {"AIRFLOW_HOME": str(home), "AIRFLOW__CORE__LOAD_EXAMPLES": "False", "PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.engine", "--serve"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self._engines: dict[int, Engine] = {}
        self._by_pid: dict[int, Engine] = {}
        self._count = 0
        self._ready = threading.Event()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            try:
                news = json.loads(line)
            except ValueError:
                continue
            if "ready" in news:
                self._ready.set()
            elif "started" in news:
                engine = self._by_pid[news["started"]] = self._engines[news["token"]]
                engine.pid = news["started"]
                engine.started.set()
            elif news["ended"] in self._by_pid:
                engine = self._by_pid.pop(news["ended"])
                engine.status = news["status"]
                engine.ended.set()

    def start(self, arguments: list[str], environment: dict[str, str], folder: Path) -> Engine:
        if not self._ready.wait(60):
            raise RuntimeError("the pipeline can't be imported")
        self._count += 1
        engine = self._engines[self._count] = Engine(self._count, folder)
        asked = {
            "token": engine.token,
            "args": arguments,
            "env": environment,
            "stdout": str(engine.out),
            "stderr": str(engine.err),
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asked).encode() + b"\n")
        self._process.stdin.flush()
        return engine

    def alive(self) -> list[int]:
        return [pid for pid, engine in list(self._by_pid.items()) if not engine.ended.is_set()]

    def close(self) -> None:
        for pid in self.alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(PATIENCE)
        self._listener.join(PATIENCE)
        assert self._process.stdout is not None
        self._process.stdout.close()


@dataclass
class Result:
    """What came of one schedule.

    :ivar struck: the kinds of fault that really happened.
    """

    schedule: Schedule
    problems: list[Problem]
    struck: set[str]
    seconds: float
    folder: Path
    runs: list[Finished] = field(default_factory=list)


class Worker:
    """Plays schedules, one after the other.

    :param folder: for archives and output.
    """

    def __init__(self, folder: Path) -> None:
        self._stack = contextlib.ExitStack()
        self._folder = folder
        self.sink = Sink()
        self._stack.callback(self.sink.close)
        self.forker = Forker(folder / "home")
        self._stack.callback(self.forker.close)
        self.simulator: RunningSimulator = self._stack.enter_context(running_simulator("--api-key", API_KEY))
        self._servers: dict[str, StrictS3] = {}

    def close(self) -> None:
        self._stack.close()

    def server(self, name: str) -> StrictS3:
        if name not in self._servers:
            self._servers[name] = self._stack.enter_context(
                StrictS3(
                    *([] if name == "plain" else [f"--{name}"]),
                    bucket=BUCKET,
                    access_key=STORAGE_KEY,
                    secret_key=STORAGE_SECRET,
                )
            )
        return self._servers[name]

    def play(self, schedule: Schedule) -> Result:
        """Play one schedule, and judge it."""
        began = time.monotonic()
        folder = self._folder / str(schedule.seed)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        game = Game(self, schedule, folder)
        try:
            game.play()
        finally:
            game.clean()
        return Result(schedule, game.problems, game.struck, time.monotonic() - began, folder, game.runs)


class Game:
    """One schedule being played."""

    def __init__(self, worker: Worker, schedule: Schedule, folder: Path) -> None:
        self._worker = worker
        self._simulator = worker.simulator
        self._schedule = schedule
        self._folder = folder
        self._canaries = folder / "links"
        self._output = folder / "output"
        self._output.mkdir()
        self._engines: list[Engine] = []
        self._s3: StrictS3 | None = None
        self.problems: list[Problem] = []
        self.runs: list[Finished] = []
        self.struck: set[str] = set()
        self._earlier: dict[str, Stored] = {}
        self._single = True
        self._truths: list[dict[str, Any]] = []
        self._ids: list[dict[str, Any]] = []
        self._prepare()

    # Setting up

    def _prepare(self) -> None:
        schedule, simulator = self._schedule, self._simulator
        simulator.reset()
        self._connections = self._worker.sink.connections
        if schedule.settings:
            simulator.control("POST", "/settings", schedule.settings)
        port = simulator.media_host.rpartition(":")[2]
        sink, sink_port = self._worker.sink.address, self._worker.sink.address.rpartition(":")[2]
        text = json.dumps([schedule.meetings, schedule.rules, schedule.environment])
        text = text.replace(SINK, sink).replace("localhost:9/", f"localhost:{sink_port}/").replace("{media_port}", port)
        meetings, self._rules, self._environment = json.loads(text)
        self._meetings = meetings
        self._ids = [simulator.add_meeting(**meeting) for meeting in meetings]
        self._learn_truth()
        if schedule.skew:
            simulator.advance(schedule.skew)
        if self._rules:
            simulator.add_faults(*self._rules)
        if schedule.store == "s3":
            self._s3 = self._worker.server(schedule.server)
            self._s3.reset()
            if schedule.s3_rules:
                self._s3.faults(*schedule.s3_rules)
            self.archive: Folder | Bucket = Bucket(self._s3.endpoint, BUCKET, "archive")
            self._uri = f"s3://{BUCKET}/archive"
        else:
            root = self._folder / "archive"
            self.archive = Folder(root)
            self._uri = root.as_uri()

    def _learn_truth(self) -> None:
        bots = self._simulator.control("GET", "/state")["bots"]
        wanted = {ids.get("bot_id") for ids in self._ids} | ({one["id"] for one in bots} if self._creates else set())
        known = {truth["recording_id"] for truth in self._truths}
        for bot in bots:
            for recording in bot["recordings"] if bot["id"] in wanted else ():
                if recording["id"] not in known:
                    self._truths.append(self._simulator.control("GET", f"/truth/{recording['id']}"))

    @property
    def _creates(self) -> bool:
        return self._schedule.target == "create"

    def _target(self, number: int = 0) -> list[str]:
        if self._creates:
            return ["--meeting-url", self._meetings[number]["meeting_url"]]
        if self._schedule.target == "recording":
            return ["--recording-id", self._ids[number]["recordings"][0]["id"]]
        return ["--bot-id", self._ids[number]["bot_id"]]

    # Processes

    def start(self, *extra: str, number: int = 0, faults: bool = True) -> Engine:
        """Start a process of the pipeline.

        :param number: of the meeting.
        :param faults: let the operating system fail it as the schedule says.
        """
        environment = dict(self._environment) if faults else {}
        connection = json.loads(json.dumps(self._simulator.connection))
        if environment.pop("REFUSED", None):
            with socket.create_server(("127.0.0.1", 0)) as free:
                connection["host"] = f"http://127.0.0.1:{free.getsockname()[1]}"
        if environment.pop("ALSO_LOCALHOST", None):
            connection["extra"]["media_hosts"].append(f"localhost:{self._simulator.media_host.rpartition(':')[2]}")
        environment["AIRFLOW_CONN_RECALL_DEFAULT"] = json.dumps(connection)
        if self._s3 is not None:
            extra_fields = {
                "endpoint_url": self._s3.endpoint,
                "region_name": "us-east-1",
                "config_kwargs": {"retries": {"mode": "standard", "total_max_attempts": 3}, "read_timeout": 20},
            }
            aws = {"conn_type": "aws", "login": STORAGE_KEY, "password": STORAGE_SECRET, "extra": extra_fields}
            environment["AIRFLOW_CONN_AWS_DEFAULT"] = json.dumps(aws)
        words = [*self._target(number), "--archive", self._uri, "--canaries", str(self._canaries)]
        words += ["--state", str(self._output / f"state{number}.json"), *extra]
        words += self._schedule.arguments if faults else self._lasting_arguments()
        words += ["--debug"] if self._schedule.debug else []
        words += ["--ranges"] if self._schedule.ranges else []
        engine = self._worker.forker.start(words, environment, self._output)
        self._engines.append(engine)
        return engine

    def _lasting_arguments(self) -> list[str]:
        words = iter(self._schedule.arguments)
        return [
            word for name, value in zip(words, words, strict=True) if name.endswith("timeout") for word in (name, value)
        ]

    def finish(self, engine: Engine) -> Finished:
        """Wait for a process, and keep what it said."""
        done = engine.wait(self._schedule.deadline)
        self.runs.append(done)
        return done

    def once(self, *extra: str, number: int = 0, faults: bool = True) -> Finished:
        return self.finish(self.start(*extra, number=number, faults=faults))

    def until_it_ends(self, number: int = 0) -> Finished:
        """Run, and again after each run that was killed or stopped, as Airflow would."""
        for _ in range(MOST_RUNS):
            done = self.once(number=number)
            if done.hung or (done.outcome is not None and done.outcome["state"] != "stopped"):
                return done
        return done

    # The game

    def play(self) -> None:
        """Do what the script says, then judge; mend what can be mended, run again, and judge again."""
        schedule = self._schedule
        script = dict(schedule.script)
        getattr(self, "_" + script.pop("name").replace("-", "_"))(**script)
        self._note_strikes()
        self.judge(schedule.codes)
        if schedule.codes and schedule.heals and not self.problems:
            self._simulator.control("DELETE", "/faults")
            self._simulator.control("DELETE", "/journal")
            if self._s3 is not None:
                self._s3.control("DELETE", "faults")
            self._earlier = self.archive.objects()
            self.once(faults=False)
            self.judge([])

    def judge(self, codes: list[str]) -> None:
        if self._creates:
            self._learn_truth()
            bots = len(self._simulator.control("GET", "/state")["bots"])
            if bots > 1 or (bots == 0 and not codes):
                self.problems.append(Problem("duplicate", f"{bots} bots were sent"))
        links = self._canaries.read_text().splitlines() if self._canaries.exists() else []
        secrets = {API_KEY, STORAGE_SECRET, *secrets_of(links), "canary-signature-of-another-host"}
        texts = {path.name: path.read_bytes() for path in self._output.iterdir()}
        evidence = Evidence(
            truths=self._truths,
            gone=self._schedule.gone,
            runs=self.runs,
            journal=self._simulator.journal(),
            rules=self._rules,
            hits=self._schedule.hits,
            single=self._single,
            codes=codes,
            canaries=sorted(secrets),
            texts=texts,
            may_leave=self._schedule.may_leave,
            ignores_conditions=self._schedule.server.startswith(("no-conditions", "ceph")),
            personal=["Person", "@", "Ada", "Kim"],
            connections=self._worker.sink.connections - self._connections,
        )
        self.problems += judge(self.archive, evidence, self._earlier)
        if alive := self._worker.forker.alive():
            self.problems.append(Problem("leftover", f"processes {alive}"))

    def _note_strikes(self) -> None:
        """Find out which faults really happened."""
        groups = {kind.name: kind.group for kind in KINDS}
        rules = self._simulator.control("GET", "/faults")["rules"]
        met = Counter(rule["name"].rpartition("/")[0] for rule in rules if rule["applied"])
        ruled = {rule["name"].rpartition("/")[0] for rule in rules}
        struck = self._s3.control("GET", "faults") if self._s3 is not None else []
        for name in self._schedule.kinds:
            if name in ruled:
                happened = bool(met[name])
            elif name.startswith("D") and self._schedule.s3_rules and groups.get(name) != "drive":
                happened = any(rule["struck"] for rule in struck)
            else:
                happened = self._script_struck if groups.get(name, "drive") == "drive" else True
            if happened:
                self.struck.add(name)

    _script_struck = True

    def clean(self) -> None:
        for engine in self._engines:
            if not engine.ended.is_set():
                engine.signal(signal.SIGKILL)
                engine.signal(signal.SIGCONT)
        for engine in self._engines:
            engine.ended.wait(PATIENCE)
        if self._s3 is not None:
            self._s3.control("POST", "release", {"drop": True})

    # Scripts

    def _once(self) -> None:
        self.until_it_ends()

    def _both(self) -> None:
        self.until_it_ends(number=1)
        self.until_it_ends()

    def _kill(self, after: list[float]) -> None:
        self._single = self._script_struck = False
        for seconds in after:
            engine = self.start()
            engine.ended.wait(seconds)
            engine.signal(signal.SIGKILL)
            self._snapshot_after(engine)
            self._script_struck |= engine.status == -signal.SIGKILL
        self.until_it_ends()

    def _killed(self, faults: list[str]) -> None:
        self._single = False
        for fault in faults:
            engine = self.start("--os-fault", fault)
            self._snapshot_after(engine)
            self._script_struck = engine.status == -signal.SIGKILL
        self.until_it_ends()

    def _snapshot_after(self, engine: Engine) -> None:
        """Wait for a process that was killed; what it published must never change from here on."""
        done = self.finish(engine)
        if done.outcome is None:
            self.runs.remove(done)
        self._earlier = self.archive.objects()

    def _stop(self, after: float) -> None:
        self._single = False
        engine = self.start()
        engine.ended.wait(after)
        engine.signal(signal.SIGTERM)
        self._snapshot_after(engine)
        self.until_it_ends()

    def _at_stall(self, then: str, seconds: float = 0.0) -> None:
        """Wait until a body stands still, then do something."""
        self._single = False
        engine = self.start()
        self._script_struck = self._wait_for(lambda: self._stalled() or engine.ended.is_set())
        if then == "kill":
            engine.signal(signal.SIGKILL)
            self._snapshot_after(engine)
            self.until_it_ends()
        elif then == "freeze":
            # As a worker that Airflow holds for dead: another one takes over, then the first wakes up.
            engine.signal(signal.SIGSTOP)
            self.until_it_ends()
            self._earlier = self.archive.objects()
            engine.signal(signal.SIGCONT)
            self.finish(engine)
        elif then == "stop":
            engine.signal(signal.SIGTERM)
            self._snapshot_after(engine)
            left = self.archive.leftovers()
            if self.runs and self.runs[-1].outcome is not None and left:
                self.problems.append(Problem("leftover", f"after on_kill: {left}"))
            self.until_it_ends()
        elif then == "advance":
            self._simulator.advance(seconds)
            self.finish(engine)
        elif then == "modes":
            self.problems += [Problem("secret", what) for what in self._wrong_modes()]
            self.finish(engine)

    def _wrong_modes(self) -> list[str]:
        """Name the unfinished files of another mode than theirs.

        One with notes is complete, and has that of an object for the moment before it gets its name.
        """
        found = []
        for path in self._folder.rglob(".tmp-*"):
            with contextlib.suppress(FileNotFoundError):
                mode = path.stat().st_mode & 0o777
                if mode != 0o600 and not (os.listxattr(path) and mode & ~0o044 == 0o600):
                    found.append(f"{path.name} has mode {mode:o}")
        return found

    def _stalled(self) -> bool:
        return any(
            entry["fault"] and entry["seconds"] is None and entry["sent"] >= self._stall_at(entry["fault"])
            for entry in self._simulator.journal("media")
        )

    def _stall_at(self, name: str) -> float:
        action = next(rule["action"] for rule in self._rules if rule["name"] == name)
        return float(action.get("stall", float("inf")))

    @staticmethod
    def _wait_for(condition: Callable[[], bool], seconds: float = 15) -> bool:
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                return False
            time.sleep(0.03)
        return True

    def _held(self, when: str, skip: int, operation: str, drop: bool) -> None:
        """Kill the process while the S3 server holds one of its requests, before or after doing the work."""
        assert self._s3 is not None
        self._single = False
        rule = {"operation": operation, "action": "hold", "when": when, "skip": skip, "seconds": 30}
        # The trial of the store is refused what it asks for, as it wants.
        self._s3.faults(rule if operation == ".*" else {**rule, "key": "^(?!.*/probe)"})
        engine = self.start()
        held = self._wait_for(lambda: bool(self._s3 and self._s3.control("GET", "held")) or engine.ended.is_set())
        engine.signal(signal.SIGKILL)
        self._script_struck = held and not engine.ended.is_set()
        done = engine.wait(PATIENCE)
        if done.outcome is not None:
            self.runs.append(done)
        # What a dead process asked for may still be done, even while the next one is at work.
        release = threading.Timer(
            0.0 if drop else 0.2, lambda: self._s3 and self._s3.control("POST", "release", {"drop": drop})
        )
        release.start()
        self._snapshot_safely()
        self.until_it_ends()
        release.join()

    def _snapshot_safely(self) -> None:
        self._earlier = self.archive.objects()

    def _race(self, delay: float) -> None:
        self._single = False
        first = self.start()
        time.sleep(delay)
        second = self.start()
        self._settle_race([self.finish(first), self.finish(second)])

    def _settle_race(self, ended: list[Finished]) -> None:
        if not any(one.outcome and one.outcome["state"] == "success" for one in ended):
            self.problems.append(Problem("outcome", f"both writers failed: {[one.outcome for one in ended]}"))
        for one in ended:
            if one.outcome is None or one.outcome["state"] != "success":
                # Airflow gives the loser further tries of its own.
                self.until_it_ends()
                break

    def _duel(self, operation: str = "", skip: int = 0, call: str = "", number: int = 0) -> None:
        """Bring two writers to the very same step, hold both there, then let both go."""
        self._single = False
        if self._s3 is not None:
            rule = {"operation": operation, "action": "hold", "skip": 2 * skip, "times": 2, "seconds": 30}
            self._s3.faults({**rule, "key": "^(?!.*/probe)"})
            writers = [self.start(), self.start()]
            self._script_struck = self._wait_for(
                lambda: (
                    len(self._s3.control("GET", "held") if self._s3 else ()) == 2
                    or any(one.ended.is_set() for one in writers)
                )
            ) and not any(one.ended.is_set() for one in writers)
            self._s3.control("DELETE", "faults")
            self._s3.control("POST", "release", {"drop": False})
        else:
            writers = [self.start("--os-fault", f"{call}:{number}:halt-before") for _ in range(2)]
            self._script_struck = self._wait_for(lambda: all(map(_is_halted, writers)))
            for one in writers:
                one.signal(signal.SIGCONT)
        self._settle_race([self.finish(one) for one in writers])

    def _again(self, advance: float = 0.0) -> None:
        self.until_it_ends()
        self._earlier = self.archive.objects()
        before = len(self._simulator.journal())
        self._simulator.advance(advance)
        writes = self._puts()
        self.once()
        self._simulator.advance(-advance)
        entries = self._simulator.journal()[before:]
        fetched = [one["path"] for one in entries if one["origin"] == "media"]
        calls = [one["path"] for one in entries if one["origin"] == "api"]
        allowed = IDLE_CALLS + 2 * (len(self._truths) - 1)
        if fetched or len(calls) > allowed or self._puts() != writes:
            self.problems.append(
                Problem("busy", f"the second run fetched {fetched}, called {calls}, {self._puts()} puts")
            )

    def _puts(self) -> int:
        return len(self._s3.journal("PutObject")) + len(self._s3.journal("UploadPart")) if self._s3 is not None else 0

    def _parts(self) -> list[str]:
        return sorted(key for key in self.archive.objects() if "/participant=" in key)

    def _without_manifest(self) -> None:
        self.until_it_ends()
        self._remove_all_but_parts()
        self._earlier = self.archive.objects()
        self.until_it_ends()

    def _lost_object(self) -> None:
        self.until_it_ends()
        if parts := self._parts():
            self._remove(parts[0])
        self._earlier = self.archive.objects()
        self.until_it_ends()

    def _tampered(self, how: str) -> None:
        """Put other bytes in a part's place, with or without our own notes beside them."""
        self.until_it_ends()
        self._remove_all_but_parts()
        key = next((each for each in self._parts() if not each.endswith(".empty")), self._parts()[0])
        data = self.archive.read(key)
        other = (
            data[:-1] + bytes([data[-1] ^ 1])
            if how == "flip" and data
            else data[:-1]
            if how == "shorter"
            else b"x" * 99
        )
        if self._s3 is not None:
            # A write like any other, so that the store's own checksum is that of the other bytes.
            notes = self._s3.state()["objects"][f"archive/{key}"]["metadata"]
            self._remove(key)
            client = boto3.client(
                "s3",
                endpoint_url=self._s3.endpoint,
                region_name=self._s3.region,
                aws_access_key_id=STORAGE_KEY,
                aws_secret_access_key=STORAGE_SECRET,
            )
            client.put_object(
                Bucket=BUCKET, Key=f"archive/{key}", Body=other, Metadata={} if how == "foreign" else notes
            )
        elif how == "foreign":
            (self._folder / "archive" / key).unlink()
            (self._folder / "archive" / key).write_bytes(other)
        else:
            (self._folder / "archive" / key).write_bytes(other)
        self._earlier = self.archive.objects()
        self.until_it_ends()
        if self.archive.objects().get(key) != self._earlier[key]:
            self.problems.append(Problem("overwritten", f"{key} was replaced"))
        self._put_back(key, data)

    def _put_back(self, key: str, data: bytes) -> None:
        """Undo a change of ours, so that what the oracle finds is the pipeline's."""
        if self._s3 is not None:
            coded = base64.b64encode(data).decode()
            self._s3.control("POST", "tamper", {"key": f"archive/{key}", "replace_base64": coded})
        else:
            (self._folder / "archive" / key).write_bytes(data)
        self._earlier = {name: one for name, one in self._earlier.items() if name != key}

    def _remove_all_but_parts(self) -> None:
        """Take the manifest away, and what was made from it, which another manifest would rightly have renewed."""
        for key in self.archive.objects().keys() - self._parts():
            self._remove(key)

    def _remove(self, key: str) -> None:
        if self._s3 is not None:
            self._s3.control("POST", "tamper", {"key": f"archive/{key}", "delete": True})
        else:
            (self._folder / "archive" / key).unlink()


def _is_halted(engine: Engine) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{engine.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    return False


def play_all(
    schedules: Iterator[Schedule], workers: int, folder: Path, tell: Callable[[Result], None], until: float
) -> None:
    """Play schedules on several workers until there are no more or the time is over."""
    todo: queue.Queue[Schedule | None] = queue.Queue(maxsize=workers)
    lock = threading.Lock()
    failures: list[BaseException] = []

    def work(number: int) -> None:
        worker = Worker(folder / f"worker{number}")
        try:
            while (schedule := todo.get()) is not None:
                result = _played(worker, schedule)
                with lock:
                    tell(result)
        except BaseException as error:
            failures.append(error)
            while todo.get() is not None:
                continue
        finally:
            worker.close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(workers)]
    for thread in threads:
        thread.start()
    try:
        for schedule in schedules:
            if time.monotonic() > until or failures:
                break
            todo.put(schedule)
    finally:
        for _ in threads:
            todo.put(None)
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]


def _played(worker: Worker, schedule: Schedule) -> Result:
    try:
        return worker.play(schedule)
    except Exception:
        # A defect of the harness fails the schedule as one of the pipeline does: it is never passed over.
        folder = worker._folder / str(schedule.seed)
        return Result(schedule, [Problem("harness", traceback.format_exc())], set(), 0.0, folder)


class Tally:
    """Counts, and says it all in a table at the end."""

    def __init__(self, *, verbose: bool) -> None:
        self._verbose = verbose
        self._kinds: dict[str, Counter[str]] = defaultdict(Counter)
        self.found: Counter[str] = Counter()
        self.failed: dict[int, Result] = {}
        self.played = 0
        self.runs = 0
        self._began = time.monotonic()

    def tell(self, result: Result) -> None:
        self.played += 1
        self.runs += len(result.runs)
        skipped = set(result.schedule.kinds) - result.struck
        for name in result.schedule.kinds:
            self._kinds[name]["attempted"] += 1
            verdict = "failed" if result.problems else "skipped" if name in skipped else "passed"
            self._kinds[name][verdict] += 1
        self.found.update(problem.kind for problem in result.problems)
        if result.problems:
            self.failed[result.schedule.seed] = result
            print(f"\nseed {result.schedule.seed} ({result.schedule.store}): {', '.join(result.schedule.kinds)}")
            for problem in result.problems[:8]:
                print(f"  {problem.kind}: {problem.detail[:2000]}")
        if self._verbose:
            print(f"{result.schedule.seed:6} {result.seconds:5.1f} s {len(result.runs)} runs {result.schedule.kinds}")
            if skipped:
                print(f"       did not happen: {sorted(skipped)}")
        if not result.problems and not self._verbose:
            shutil.rmtree(result.folder, ignore_errors=True)
        sys.stdout.flush()

    def table(self) -> str:
        lines = [f"{'fault':44} attempted  passed  failed  skipped"]
        for name in sorted(self._kinds):
            counts = self._kinds[name]
            lines.append(
                f"{name:44} {counts['attempted']:9} {counts['passed']:7} {counts['failed']:7} {counts['skipped']:8}"
            )
        total = sum(self._kinds.values(), Counter())
        lines.append(f"{'all':44} {total['attempted']:9} {total['passed']:7} {total['failed']:7} {total['skipped']:8}")
        lines.append("")
        lines.append(", ".join(f"{name} {self.found[name]}" for name in COUNTED))
        if others := {name: number for name, number in self.found.items() if name not in COUNTED}:
            lines.append(", ".join(f"{name} {number}" for name, number in sorted(others.items())))
        seconds = time.monotonic() - self._began
        lines.append(
            f"{self.played} schedules of {len(self._kinds)} kinds of fault, {self.runs} runs of the pipeline, "
            f"{len(self.failed)} failed, {seconds:.0f} s"
        )
        if self.failed:
            lines.append("again with: " + "; ".join(f"SEED={seed} make chaos" for seed in sorted(self.failed)[:20]))
        return "\n".join(lines)


def end(number: int, frame: object) -> None:
    """Told to end, end what was started first, however often told."""
    signal.signal(number, signal.SIG_IGN)
    sys.exit(128 + number)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.campaign", description="Play seeded schedules.")
    parser.add_argument("--schedules", type=int, default=500)
    parser.add_argument("--first", type=int, default=0, help="seed of the first one")
    parser.add_argument("--seconds", type=float, default=3600, help="begin no further schedule after that time")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--store", action="append", choices=["file", "s3"], help="only archives of this kind")
    parser.add_argument("--seed", type=int, default=os.environ.get("SEED") or None, help="play this one schedule")
    parser.add_argument("--only", help="the first fault's name, or its beginning")
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args()
    stores = tuple(options.store or ("file", "s3"))
    again = options.seed is not None
    seeds = [options.seed] if again else range(options.first, options.first + options.schedules)
    names = [
        each.name
        for each in KINDS
        if options.only and each.name.startswith(options.only) and set(each.stores) & set(stores)
    ]
    if options.only and not names:
        parser.error(f"no kind of fault begins with {options.only!r}")

    def schedules() -> Iterator[Schedule]:
        for seed in seeds:
            yield plan(seed, stores=stores, only=names[seed % len(names)] if names else None)

    signal.signal(signal.SIGTERM, end)
    tally = Tally(verbose=again or options.verbose)
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    if again:
        print(json.dumps([asdict(one) for one in schedules()], indent=1))
    play_all(schedules(), min(options.workers, len(seeds)), folder, tally.tell, time.monotonic() + options.seconds)
    print(f"\n{tally.table()}")
    if tally.failed or again:
        print(f"what they wrote is in {folder}")
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return 1 if tally.failed else 0


if __name__ == "__main__":
    sys.exit(main())
