"""Forged webhooks, replays, and genuine ones among forged ones, against the API server of a real Airflow.

    python -m tests.load.webhooks
    python -m tests.load.webhooks --forged 2000 --replays 200 --seconds 10

Airflow's API server and Dag processor run, with SQLite and one worker; nothing runs the runs that are started. Requests
leave at their appointed times, whatever became of those before, and an answer's time counts from then. The exit status
is 0 if nothing forged was accepted, no run was started twice or by a replay, and 99 in 100 genuine events were answered
within a second.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import os
import random
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import psutil
import requests

from include.recall.webhooks import sign, signing_key
from scripts.local_airflow import COMPONENTS, LocalAirflow

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

DAG = "archive_meeting"
HOOKS = "/recall/webhooks"
ATTEMPTS = 60
Headers = dict[str, str]


def event(
    recording_id: str, bot_id: str = "b0b3d1f8-5f3a-4a3e-9c1d-2f7a8e6c5d40", name: str = "recording.done"
) -> bytes:
    data = {"data": {"code": "done"}, "recording": {"id": recording_id, "metadata": {}}, "bot": {"id": bot_id}}
    return json.dumps({"event": name, "data": data}).encode()


def signed(body: bytes, key: bytes, message_id: str, at: float = 0.0, family: str = "webhook") -> Headers:
    now = int(time.time() + at)
    return {
        f"{family}-id": message_id,
        f"{family}-timestamp": str(now),
        f"{family}-signature": sign(message_id, now, body, key),
    }


def forgeries(key: bytes, chosen: random.Random) -> Iterator[tuple[str, Headers, bytes]]:
    """Yield requests that look genuine and are not, without end, each with the name of its kind."""
    stranger = signing_key("whsec_" + base64.b64encode(b"the key of a stranger").decode())

    def flipped(data: bytes) -> bytes:
        changed = bytearray(data)
        changed[chosen.randrange(len(changed))] ^= 1 << chosen.randrange(8)
        return bytes(changed)

    number = 0
    while True:
        number += 1
        body = event(f"forged-{number}")
        good = signed(body, key, f"msg_{number}")
        signature = base64.b64decode(good["webhook-signature"][3:])
        changed = {
            "unsigned": ({}, body),
            "another key": (signed(body, stranger, f"msg_{number}"), body),
            "body bit": (good, flipped(body)),
            "body cut": (good, body[: chosen.randrange(len(body))]),
            "body grown": (good, body + b" "),
            "body written anew": (good, json.dumps(json.loads(body), separators=(",", ":")).encode()),
            "signature bit": (
                {**good, "webhook-signature": "v1," + base64.b64encode(flipped(signature)).decode()},
                body,
            ),
            "signature cut": (
                {**good, "webhook-signature": good["webhook-signature"][: chosen.randrange(4, 46)]},
                body,
            ),
            "version": ({**good, "webhook-signature": "v2," + good["webhook-signature"][3:]}, body),
            "another id": ({**good, "webhook-id": f"msg_{number}x"}, body),
            "another time": ({**good, "webhook-timestamp": str(int(good["webhook-timestamp"]) + 1)}, body),
            "too old": (signed(body, key, f"msg_{number}", at=-302 - chosen.randrange(10**6)), body),
            "too new": (signed(body, key, f"msg_{number}", at=303 + chosen.randrange(10**6)), body),
            "mixed families": ({**signed(body, key, "m", family="svix"), **good, "webhook-id": ""}, body),
            "one header gone": ({name: good[name] for name in chosen.sample(sorted(good), 2)}, body),
        }
        changed["mixed families"][0].pop("svix-signature")
        for kind, (headers, altered) in changed.items():
            yield kind, headers, altered


class Client:
    """HTTP/1.1 over kept connections: little work, so that on two cores the server gets most of them."""

    def __init__(self, url: str) -> None:
        self._address = urlsplit(url)
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def post(self, headers: Headers, body: bytes) -> int:
        """Send one request, and return the status; 0 where no answer came."""
        lines = [f"POST {HOOKS} HTTP/1.1", f"Host: {self._address.netloc}", f"Content-Length: {len(body)}"]
        head = "\r\n".join([*lines, *(f"{name}: {value}" for name, value in headers.items()), "", ""])
        try:
            if self._idle:
                reader, writer = self._idle.pop()
            else:
                reader, writer = await asyncio.open_connection(self._address.hostname, self._address.port)
            writer.write(head.encode("latin-1") + body)
            answer = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(answer.partition(b"content-length: ")[2].split(b"\r\n", 1)[0])
            await reader.readexactly(length)
        except (OSError, asyncio.IncompleteReadError):
            return 0
        if b"connection: close" in answer:
            writer.close()
        else:
            self._idle.append((reader, writer))
        return int(answer[9:12])

    async def send(self, headers: Headers, body: bytes) -> int:
        """Send one request until there is an answer that does not put it off, as Recall does."""
        for _ in range(ATTEMPTS):
            if (status := await self.post(headers, body)) not in (0, 503):
                break
            await asyncio.sleep(1)
        return status

    async def close(self) -> None:
        for _, writer in self._idle:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


@dataclass
class Outcome:
    """What came back."""

    statuses: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    lateness: list[float] = field(default_factory=list)

    def within(self, share: float) -> float:
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, int(len(ordered) * share))]

    @property
    def accepted(self) -> int:
        return sum(count for status, count in self.statuses.items() if 200 <= status < 300)


async def closed_loop(client: Client, sent: list[tuple[Headers, bytes]], at_once: int) -> Outcome:
    """Send everything, so many at once."""
    outcome, left = Outcome(), iter(sent)

    async def work() -> None:
        for headers, body in left:
            began = time.monotonic()
            outcome.statuses[await client.send(headers, body)] += 1
            outcome.seconds.append(time.monotonic() - began)

    await asyncio.gather(*(work() for _ in range(at_once)))
    return outcome


async def open_loop(rate: float, seconds: float, send: Callable[[int], Awaitable[int]]) -> Outcome:
    """Send at a rate, at appointed times, whatever comes back."""
    outcome, began = Outcome(), time.monotonic()

    async def one(number: int) -> None:
        appointed = began + number / rate
        outcome.lateness.append(time.monotonic() - appointed)
        outcome.statuses[await send(number)] += 1
        outcome.seconds.append(time.monotonic() - appointed)

    tasks = []
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
        tasks.append(asyncio.create_task(one(number)))
    await asyncio.gather(*tasks)
    return outcome


async def play_forged(client: Client, key: bytes, count: int) -> tuple[Outcome, Counter[str]]:
    """Send forged and altered requests."""
    made = forgeries(key, random.Random(7))
    chosen = [next(made) for _ in range(count)]
    outcome = await closed_loop(client, [(headers, body) for _, headers, body in chosen], 32)
    return outcome, Counter(kind for kind, _, _ in chosen)


async def play_replays(client: Client, key: bytes, count: int, recording_id: str) -> Outcome:
    """Send one event, then exact copies of it and, under its id, further deliveries of it."""
    body = event(recording_id)
    first = signed(body, key, "msg_replayed")
    again = [(first if number % 2 else signed(body, key, "msg_replayed"), body) for number in range(count)]
    return await closed_loop(client, [(first, body), *again], 16)


async def play_mixed(
    client: Client, key: bytes, *, seconds: float, genuine: float, forged: float, start_every: int, tag: str
) -> tuple[Outcome, Outcome]:
    """Send genuine events and forged ones at their rates; every so many-th genuine one starts a run."""
    made = forgeries(key, random.Random(8))

    async def send_genuine(number: int) -> int:
        starts = number % start_every == 0
        body = event(f"{tag}-{number}", f"bot-{number}", "recording.done" if starts else "bot.in_call_recording")
        return await client.send(signed(body, key, f"msg_{tag}_{number}"), body)

    async def send_forged(_: int) -> int:
        _, headers, body = next(made)
        return await client.send(headers, body)

    both = await asyncio.gather(open_loop(genuine, seconds, send_genuine), open_loop(forged, seconds, send_forged))
    return both[0], both[1]


def count_of(airflow: LocalAirflow) -> int:
    """Count the runs."""
    return int(airflow.get(f"/dags/{DAG}/dagRuns?limit=1")["total_entries"])


def wait_until_ready(airflow: LocalAirflow) -> None:
    """Wait for the API server and the Dag; LocalAirflow waits for a scheduler too, which there is none of."""
    deadline = time.monotonic() + 120
    while True:
        with contextlib.suppress(requests.RequestException):
            if requests.get(f"{airflow.url}/api/v2/monitor/health", timeout=5).ok:
                break
        if time.monotonic() > deadline:
            raise TimeoutError("the API server did not start")
        time.sleep(0.5)
    airflow.wait_for_dag(DAG, timeout=120)


def cpu_of(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


async def play(airflow: LocalAirflow, key: bytes, options: argparse.Namespace) -> bool:
    """Play all of it, print the figures, and tell whether they are as they should be."""
    client, server = Client(airflow.url), psutil.Process(airflow.pids["api-server"])
    await client.post({}, b"")
    before = server.memory_info().rss
    began = time.monotonic()
    outcome, kinds = await play_forged(client, key, options.forged)
    took = time.monotonic() - began
    runs = count_of(airflow)
    print(f"forged or altered: {options.forged} in {len(kinds)} kinds, accepted {outcome.accepted}, runs {runs}")
    statuses = dict(sorted(outcome.statuses.items()))
    print(f"  {options.forged / took:.0f}/s; statuses {statuses}; p99 {outcome.within(0.99):.3f} s")
    good = outcome.accepted == 0 and runs == 0 and set(outcome.statuses) == {401}

    began = time.monotonic()
    outcome = await play_replays(client, key, options.replays, "replayed")
    took = time.monotonic() - began
    runs = count_of(airflow)
    print(f"replays: {options.replays}, extra runs {runs - 1}; {options.replays / took:.0f}/s")
    print(f"  statuses {dict(sorted(outcome.statuses.items()))}; p99 {outcome.within(0.99):.3f} s")
    good &= runs == 1 and outcome.accepted == options.replays + 1

    for start_every in options.start_every:
        known, cpu, began = count_of(airflow), cpu_of(server), time.monotonic()
        genuine, forged = await play_mixed(
            client,
            key,
            seconds=options.seconds,
            genuine=options.genuine,
            forged=options.forged_rate,
            start_every=start_every,
            tag=f"every{start_every}",
        )
        took = time.monotonic() - began
        started = count_of(airflow) - known
        count = len(genuine.seconds)
        print(f"genuine {count / took:.0f}/s among forged {len(forged.seconds) / took:.0f}/s for {took:.0f} s;"
              f" one in {start_every} starts a run: {started} started of {-(-count // start_every)}")  # fmt: skip
        print(f"  genuine: p50 {genuine.within(0.5):.3f}, p99 {genuine.within(0.99):.3f},"
              f" max {max(genuine.seconds):.3f} s, statuses {dict(sorted(genuine.statuses.items()))}")  # fmt: skip
        print(f"  forged: p99 {forged.within(0.99):.3f} s, accepted {forged.accepted};"
              f" sent late by at most {max(genuine.lateness + forged.lateness):.3f} s;"
              f" server CPU {(cpu_of(server) - cpu) / took:.0%} of a core")  # fmt: skip
        good &= forged.accepted == 0 and genuine.accepted == count and genuine.within(0.99) < 1
        good &= started == -(-count // start_every)
    print(f"server memory grew by {(server.memory_info().rss - before) / 2**20:.0f} MiB")
    await client.close()
    return good


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.load.webhooks", description="Send webhooks to an Airflow.")
    parser.add_argument("--forged", type=int, default=20_000)
    parser.add_argument("--replays", type=int, default=2_000)
    parser.add_argument("--seconds", type=float, default=60.0, help="of genuine events among forged ones")
    parser.add_argument("--genuine", type=float, default=50.0, help="a second")
    parser.add_argument("--forged-rate", type=float, default=500.0, help="a second")
    parser.add_argument("--start-every", type=int, nargs="+", default=[10], help="one in so many starts a run")
    options = parser.parse_args()
    secret = "whsec_" + base64.b64encode(os.urandom(32)).decode()
    connection: dict[str, Any] = {"conn_type": "recall", "password": "x", "extra": {"webhook_secrets": [secret]}}
    env = {"AIRFLOW_CONN_RECALL_DEFAULT": json.dumps(connection)}
    components = {name: COMPONENTS[name] for name in ("api-server", "dag-processor")}
    with tempfile.TemporaryDirectory(prefix="load-") as folder:
        airflow = LocalAirflow(Path(folder) / "airflow", env, components=components)
        try:
            airflow.start()
            wait_until_ready(airflow)
            return 0 if asyncio.run(play(airflow, signing_key(secret), options)) else 1
        finally:
            airflow.stop()


if __name__ == "__main__":
    raise SystemExit(main())
