"""What the pipeline counts, sent through Airflow's own metrics: StatsD, Datadog or OpenTelemetry, as it is set up.

Where metrics are switched off, as they are by default, nothing is sent and next to nothing is spent. No tag ever holds
an id or a name, so the number of series stays small. A test compares :data:`METRICS` with ``docs/observability.md``.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from include.archive.copy import StoredPart

log = logging.getLogger(__name__)

TASKS = "airflow.sdk.observability.stats"
"""Where metrics go in a task's process."""

SERVICES = "airflow.observability.stats"
"""Where metrics go in Airflow's own services: here, the API server and the triggerer."""


@cache
def _style() -> str:
    """Return how metrics are sent: ``off``, with ``tags``, or with ``names`` alone, as plain StatsD does."""
    from airflow.sdk.configuration import conf

    def is_set(name: str) -> bool:
        return bool(conf.getboolean("metrics", name, fallback=False))

    if is_set("statsd_datadog_enabled"):
        return "tags"
    if is_set("statsd_on"):
        return "tags" if is_set("statsd_influxdb_enabled") else "names"
    return "tags" if is_set("otel_on") else "off"


@cache
def _complain(reason: str) -> None:
    """Say once that metrics can't be sent."""
    log.warning("Metrics can't be sent: %s", reason)


@dataclass(frozen=True)
class Metric:
    """One metric. Airflow puts its prefix, ``airflow.`` by default, before the name.

    :param name: its name.
    :param unit: what one of it is.
    :param when: when it is sent, in a few words.
    :param tags: the names of its tags. Plain StatsD has none: there their values are put behind the name.
    """

    name: str
    unit: str
    when: str
    tags: tuple[str, ...] = ()

    def _send(self, how: str, value: Any, at: str, tags: dict[str, str]) -> None:
        if (style := _style()) == "off":
            return
        name = self.name
        if style == "names":
            name, tags = ".".join([name, *(tags[one] for one in self.tags)]), {}
        try:
            getattr(import_module(at), how)(name, value, tags=tags)
        except Exception as error:  # whatever a metrics client raises: nothing that is counted fails for it
            _complain(f"{type(error).__name__}: {error}")


class Counter(Metric):
    """Adds up."""

    type = "counter"

    def add(self, number: int = 1, *, at: str = TASKS, **tags: str) -> None:
        """Count.

        :param number: how many; nothing is sent for none.
        :param at: :data:`TASKS` or :data:`SERVICES`.
        """
        if number:
            self._send("incr", number, at, tags)


class Gauge(Metric):
    """Is as it was said last."""

    type = "gauge"

    def set(self, value: float, **tags: str) -> None:
        """Say how much it is now."""
        self._send("gauge", value, TASKS, tags)


class Timer(Metric):
    """How long things take; Airflow sends milliseconds."""

    type = "timer"

    def took(self, seconds: float, *, at: str = TASKS, **tags: str) -> None:
        """Take note of one duration.

        :param at: :data:`TASKS` or :data:`SERVICES`.
        """
        self._send("timing", timedelta(seconds=max(0.0, seconds)), at, tags)


PARTS = Counter("recall.parts", "parts", "a part is in the archive; `already_present` is one found there", ("action",))
BYTES = Counter("recall.bytes", "bytes", "a part was copied: what was read from Recall, repetitions included")
PART_DURATION = Timer("recall.part_duration", "ms", "a part was copied: from the first request to the proof")
MEETINGS = Counter("recall.meetings", "recordings", "a recording is settled: its manifest was written", ("outcome",))
WAIT = Timer("recall.wait", "ms", "a recording is complete: since the wait for it began, or since its bot's join time")
ERRORS = Counter("recall.errors", "failed tries", "a try of a task fails with an error of ours", ("code",))
CALLS = Counter("recall.api.calls", "requests", "Recall answered a request, or didn't", ("kind", "result"))
RETRIES = Counter("recall.api.retries", "requests", "a request is sent again", ("kind",))
TURN = Timer("recall.api.turn", "ms", "a request had to wait for its turn in the machine's budget", ("kind",))
SWEEP_FOUND = Gauge("recall.sweep.found", "recordings", "a sweep has looked: finished, wanted and not archived")
SWEEP_OWED = Gauge("recall.sweep.owed", "recordings", "a sweep has looked: not settled, to be looked at again")
SWEEP = Gauge("recall.sweep.recordings", "recordings", "a sweep ends: what became of what it saw", ("kind",))
VERIFIED = Counter("recall.verify.objects", "objects", "a verification ends: what it compared with the manifests")
VERIFIED_BYTES = Counter("recall.verify.bytes_read", "bytes", "a verification ends: what it read")
PROBLEMS = Counter("recall.verify.problems", "findings", "a verification ends: what it found", ("kind",))
REPAIRED = Counter("recall.verify.repaired", "findings", "a verification ends: what it made good", ("kind",))
UNREPAIRED = Gauge("recall.verify.unrepaired", "findings", "a verification ends: the harm that is left")
WEBHOOKS = Counter("recall.webhooks", "messages", "a webhook was answered", ("outcome",))

METRICS: tuple[Counter | Gauge | Timer, ...] = (
    PARTS,
    BYTES,
    PART_DURATION,
    MEETINGS,
    WAIT,
    ERRORS,
    CALLS,
    RETRIES,
    TURN,
    SWEEP_FOUND,
    SWEEP_OWED,
    SWEEP,
    VERIFIED,
    VERIFIED_BYTES,
    PROBLEMS,
    REPAIRED,
    UNREPAIRED,
    WEBHOOKS,
)
"""All metrics, in the order of the table in ``docs/observability.md``."""


def part_done(part: StoredPart, seconds: float) -> None:
    """Count a part that is in the archive."""
    PARTS.add(action=part.action)
    BYTES.add(part.transferred)
    if part.action == "stored":
        PART_DURATION.took(seconds)


class ApiCalls:
    """Counts the requests of a client, see :class:`include.recall.client.Observer`.

    :param at: :data:`TASKS` or :data:`SERVICES`.
    """

    def __init__(self, at: str) -> None:
        self._at = at

    def answered(self, kind: str, result: str, *, again: bool) -> None:
        """Count a request.

        :param result: ``ok``, or the error's code, such as ``rate_limited``.
        :param again: it was sent before.
        """
        CALLS.add(at=self._at, kind=kind, result=result)
        if again:
            RETRIES.add(at=self._at, kind=kind)

    def waited(self, kind: str, seconds: float) -> None:
        """Take note of a wait for the budget."""
        TURN.took(seconds, at=self._at, kind=kind)


def verified(totals: dict[str, Any], unrepaired: int) -> None:
    """Count what a verification found.

    :param totals: as its report has them.
    :param unrepaired: how many findings still do harm.
    """
    VERIFIED.add(totals["objects"])
    VERIFIED_BYTES.add(totals["bytes_read"])
    for metric, name in ((PROBLEMS, "found"), (REPAIRED, "repaired")):
        for kind, number in totals[name].items():
            metric.add(number, kind=kind)
    UNREPAIRED.set(unrepaired)
