"""The pipeline as a process: the Dag's own operators, one after the other, with nothing of Airflow running around them.

``python -m tests.chaos.engine --bot-id … --archive …`` does what ``archive_meeting`` does, each step with as many tries
as the Dag gives it, and prints one line of JSON: what came of it. Connections come from the environment, as in Airflow.
SIGTERM does what Airflow does when a task is cleared or marked failed: it calls ``on_kill``.

Pauses are shortened so that hundreds of runs take minutes; no rule, limit or order is changed. What a server asks for
with ``Retry-After`` is waited for in full.

``--serve`` imports everything once and then forks a process for every run that is asked for on its standard input.
"""

from __future__ import annotations

import argparse
import errno
import json
import logging
import os
import resource
import select
import signal
import sys
import threading
import time
import traceback
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

RETRY_DELAY = 0.1
LONGEST_RETRY_DELAY = 10.0


class TaskInstance:
    """What our operators use of a task instance."""

    def __init__(self, run: Run, try_number: int) -> None:
        self.try_number = try_number
        self._run = run

    def xcom_push(self, key: str, value: Any) -> None:
        json.dumps(value)
        if key == "error":
            self._run.error = value

    def xcom_pull(self, *, task_ids: list[str], key: str) -> list[Any]:
        return self._run.errors

    def get_first_reschedule_date(self, context: Any) -> None:
        return None


class State:
    """A task state store in a file, which a killed process leaves to the next one."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._values: dict[str, Any] = {}
        if path is not None and path.exists():
            self._values = json.loads(path.read_text())

    def get(self, key: str, default: Any = None) -> Any:
        return self._values.get(key, default)

    def set(self, key: str, value: Any, *, retention: Any = None) -> None:
        self._values[key] = value
        if self._path is not None:
            fresh = self._path.with_name(f"{self._path.name}.{os.getpid()}")
            fresh.write_text(json.dumps(self._values))
            fresh.replace(self._path)


class Events:
    """Where the asset events of a task would go."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def __getitem__(self, outlet: Any) -> Events:
        return self

    def add(self, asset: Any, *, extra: Any) -> None:
        json.dumps(extra)
        self.seen.append(extra)


class StepFailedError(Exception):
    """A step used up its tries, or may not have another one."""

    def __init__(self, task_id: str, code: str, report: Any) -> None:
        super().__init__(code)
        self.task_id = task_id
        self.code = code
        self.report = report


class Run:
    """One run of the Dag.

    :param options: of the command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        from include.provider.errors import RecallRetryPolicy

        self.options = options
        self.policy = RecallRetryPolicy()
        self.error: Any = None
        self.errors: list[Any] = []
        self.tries: dict[str, int] = {}
        self.current: Any = None
        self.stopping = False
        self.state = State(options.state)

    def terminate(self, *_: Any) -> None:
        """Do what Airflow's task runner does on SIGTERM."""
        self.stopping = True
        if (on_kill := getattr(self.current, "on_kill", None)) is not None:
            on_kill()
        if type(self.current).__name__ != "RecallArchiveParticipantOperator":
            # The other operators have nothing to take back; Airflow kills them after its grace time.
            os._exit(143)

    def step(self, task_id: str, operator: Any, call: Callable[[Any, Any], Any]) -> Any:
        """Try one task as often as the Dag would."""
        from include.errors import CodedError

        tries: int = self.options.tries
        for number in range(1, tries + 1):
            self.error, self.current = None, operator
            self.tries[task_id] = number
            context = {
                "run_id": "manual__1",
                "ti": TaskInstance(self, number),
                "task_state_store": self.state,
                "params": {},
                "outlet_events": Events(),
            }
            try:
                return call(operator, context)
            except Exception as error:
                log.exception("Task %s failed on try %d", task_id, number)
                code = error.code if isinstance(error, CodedError) else f"untyped {type(error).__name__}"
                decision = self.policy.evaluate(error, number, tries)
                if number == tries or self.stopping or decision.action.value == "fail":
                    raise StepFailedError(task_id, code, self.error) from None
                asked = decision.retry_delay.total_seconds() if decision.retry_delay is not None else 0.0
                if asked > LONGEST_RETRY_DELAY:
                    raise StepFailedError(task_id, code, self.error) from None
                time.sleep(max(asked, RETRY_DELAY))
            finally:
                self.current = None
        raise AssertionError

    def archive_meeting(self) -> dict[str, Any]:
        """Go the Dag's way; tell what came of it."""
        from include.provider import operators
        from include.provider.sensors import RecallRecordingSensor

        failures: list[StepFailedError] = []
        settled: list[Any] = []
        recordings: list[Any] = []

        def attempt(task_id: str, operator: Any, call: Callable[[Any, Any], Any]) -> Any:
            try:
                return self.step(task_id, operator, call)
            except StepFailedError as error:
                failures.append(error)
                self.errors.append(error.report)
                return None

        bot_id = self.options.bot_id
        if self.options.meeting_url:
            sender = operators.RecallCreateBotOperator(task_id="send_bot", meeting_url=self.options.meeting_url)
            bot_id = attempt("send_bot", sender, lambda one, context: one.execute(context))
        if not failures:
            sensor = RecallRecordingSensor(
                task_id="wait_for_recordings",
                bot_id=bot_id,
                recording_id=self.options.recording_id,
                deferrable=False,
                media_timeout=self.options.media_timeout,
                wait_timeout=self.options.wait_timeout,
            )
            recordings = attempt("wait_for_recordings", sensor, _poke) or []
        if recordings:
            lister = operators.RecallListParticipantAudioOperator(
                task_id="list_participant_audio", recordings=recordings
            )
            batches = attempt("list_participant_audio", lister, lambda one, context: one.execute(context)) or []
            receipts = []
            for batch in batches:
                archiver = operators.RecallArchiveParticipantOperator(task_id="archive_participant", batch=batch)
                receipts.append(
                    attempt("archive_participant", archiver, lambda one, context: one.execute(context)) or []
                )
                if self.stopping:
                    return {"state": "stopped", "code": "stopped", "settled": []}
            for recording in recordings:
                settler = operators.RecallSettleRecordingOperator(
                    task_id="settle", recording=recording, archived=receipts
                )
                if one := attempt("settle", settler, lambda one, context: one.execute(context)):
                    settled.append(one)
        done = bool(recordings) and len(settled) == len(recordings)
        return {
            "state": "success" if done else "failed",
            "code": None if done else failures[0].code,
            "codes": [f"{one.task_id}: {one.code}" for one in failures],
            "tries": self.tries,
            "settled": settled,
            "manifests": [one["manifest_uri"] for one in settled],
            "kept": [] if done else self._kept(recordings),
        }

    def _kept(self, recordings: list[Any]) -> list[str]:
        """Say what a failed run leaves in its recordings' folders for the next one."""
        from include.errors import CodedError
        from include.provider.hook import folder_of, get_store

        try:
            store = get_store()
            return [store.uri(one.key) for each in recordings for one in store.list(folder_of(each) + "/")]
        except CodedError:
            return []


def _poke(sensor: Any, context: Any) -> Any:
    while True:
        seen = sensor.poke(context)
        if seen:
            return seen.xcom_value
        time.sleep(0.2)


def hurry() -> None:
    """Shorten the pauses that the client, the copy and the fetching choose by themselves, and an upload's parts."""
    from include.archive import copy
    from include.archive.stores import s3
    from include.provider import operators, transfer
    from include.recall import client, media
    from include.recall.retry import RetryPolicy

    class Client(client.RecallClient):
        def __init__(self, **given: Any) -> None:
            # The machine's budget is a file, and its calls must not be counted among those of the archive.
            given = {**given, "budget": None}
            super().__init__(**{"retry": RetryPolicy(base=0.08, longest=1.0, deadline=8), "read_timeout": 1.5, **given})

    class Media(media.MediaClient):
        def __init__(self, **given: Any) -> None:
            policy = RetryPolicy(base=0.08, longest=1.0, deadline=8)
            super().__init__(**{"retry": policy, "read_timeout": 1.5, "rate_window": 1.0, **given})

    client.RecallClient = Client  # type: ignore[misc]
    media.MediaClient = Media  # type: ignore[misc]
    # Larger than a test's bodies; they shall go in several parts as well.
    s3.STREAM_BYTES = s3.WHOLE_BYTES = s3.PART_BYTES
    # And they shall be on their way, not still be collected, when something happens to them.
    copy.BUFFER_BYTES = copy.LARGE_BUFFER_BYTES = 64 * 1024
    vars(transfer)["archive_body"] = partial(copy.archive_body, backoff=0.04)
    operators.naming = lambda context: nullcontext(lambda label: None)
    operators.show_label = lambda context, label: None


def slow_down() -> None:
    """Take every source for a slow one, so that all but short bodies come in ranges on several connections."""
    from include.archive import ahead, copy

    copy.AHEAD_BYTES, copy.FAST_SOURCE = 300_000, 1 << 60
    ahead.RANGE_BYTES, ahead.PIECE_BYTES, ahead.MEMORY_BYTES = 100_000, 30_000, 300_000


def watch_links(path: Path) -> None:
    """Note every signed link that the pipeline is given, so that its output can be searched for them."""
    from include.recall.models import SignedLink

    parse = SignedLink.__init__

    def noted(self: SignedLink, url: str) -> None:
        parse(self, url)
        with path.open("a") as file:
            file.write(f"{url}\n")

    SignedLink.__init__ = noted  # type: ignore[method-assign]


def spoil(name: str, number: int, action: str) -> None:
    """Let the n-th call of a function of the operating system fail, or kill or halt this process around it."""
    work = getattr(os, name)
    lock = threading.Lock()
    count = 0

    def spoilt(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        with lock:
            count += 1
            due = count == number or (action.endswith("+") and count > number)
        if due and action == "kill-before":
            os.kill(os.getpid(), signal.SIGKILL)
        if due and action == "halt-before":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif due and not action.startswith("kill"):
            code = getattr(errno, action.rstrip("+"))
            raise OSError(code, os.strerror(code))
        try:
            return work(*args, **kwargs)
        finally:
            if due and action == "kill-after":
                os.kill(os.getpid(), signal.SIGKILL)

    setattr(os, name, spoilt)


def _arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.engine", description="Archive one meeting.")
    parser.add_argument("--serve", action="store_true", help="fork a process for each run asked for on standard input")
    parser.add_argument("--archive", help="the archive's address")
    parser.add_argument("--bot-id")
    parser.add_argument("--recording-id")
    parser.add_argument("--meeting-url")
    parser.add_argument("--media-timeout", type=float, default=2.0)
    parser.add_argument("--wait-timeout", type=float, default=6.0)
    parser.add_argument("--tries", type=int, default=4, help="that each task has, as in the Dag (%(default)s)")
    parser.add_argument("--state", type=Path, help="file of the task state store")
    parser.add_argument("--canaries", type=Path, help="file to note signed links in")
    parser.add_argument("--debug", action="store_true", help="log everything, the HTTP libraries' own lines too")
    parser.add_argument("--ranges", action="store_true", help="fetch all but short bodies in ranges")
    parser.add_argument("--os-fault", action="append", default=[], metavar="CALL:NUMBER:ACTION")
    parser.add_argument("--file-limit", type=int, help="bytes that a file may have")
    return parser.parse_args(words)


def main(options: argparse.Namespace) -> int:
    """Run once; the exit status says whether the run failed."""
    logging.basicConfig(level=logging.DEBUG if options.debug else logging.INFO, stream=sys.stderr, force=True)
    os.environ["AIRFLOW_VAR_RECALL_ARCHIVE_URI"] = options.archive
    hurry()
    if options.ranges:
        slow_down()
    if options.canaries is not None:
        watch_links(options.canaries)
    run = Run(options)
    signal.signal(signal.SIGTERM, run.terminate)
    if options.file_limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (options.file_limit, resource.RLIM_INFINITY))
    for fault in options.os_fault:
        name, number, action = fault.split(":")
        spoil(name, int(number), action)
    outcome = run.archive_meeting()
    print(json.dumps(outcome), flush=True)
    return 0 if outcome["state"] == "success" else 1


def _child(asked: dict[str, Any]) -> None:
    """Become one run."""
    status = 70
    try:
        os.setsid()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for descriptor, name in ((0, os.devnull), (1, asked["stdout"]), (2, asked["stderr"])):
            flags = os.O_RDONLY if descriptor == 0 else os.O_WRONLY | os.O_CREAT | os.O_APPEND
            opened = os.open(name, flags, 0o600)
            os.dup2(opened, descriptor)
            os.close(opened)
        os.environ.update(asked["env"])
        status = main(_arguments(asked["args"]))
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 64
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def serve() -> int:
    """Fork a run for every line that comes in; tell its process id, and later how it ended."""
    import airflow.providers.amazon.aws.hooks.s3  # noqa: F401
    import boto3
    import jsonschema  # noqa: F401

    # All that a run imports, so that all runs are of one version of the code even while it is being changed.
    import include.archive.manifest
    import include.provider.hook
    import include.provider.operators
    import include.provider.sensors
    import include.provider.transfer
    import include.recall.client
    import include.recall.watch  # noqa: F401

    boto3.session.Session()  # its own imports are the slow ones
    include.archive.manifest._validator()
    wake, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    answers = os.dup(1)

    def answer(**facts: Any) -> None:
        os.write(answers, (json.dumps(facts) + "\n").encode())

    answer(ready=os.getpid())
    rest = b""
    while True:
        ready, _, _ = select.select([0, wake], [], [])
        if wake in ready:
            os.read(wake, 4096)
            try:
                while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                    answer(ended=ended[0], status=os.waitstatus_to_exitcode(ended[1]))
            except ChildProcessError:
                pass
        if 0 in ready:
            data = os.read(0, 65536)
            if not data:
                return 0
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                asked = json.loads(line)
                pid = os.fork()
                if not pid:
                    _child(asked)
                answer(started=pid, token=asked["token"])


if __name__ == "__main__":
    given = _arguments()
    if given.serve:
        sys.exit(serve())
    if not given.archive or urlsplit(given.archive).scheme not in ("file", "s3"):
        sys.exit("--archive must be file:///… or s3://…")
    sys.exit(main(given))
