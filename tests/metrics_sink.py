"""Receivers of metrics that keep what they are sent, for tests that see what really arrives."""

from __future__ import annotations

import socket
import threading
from collections import defaultdict
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class StatsdSink:
    """A StatsD server.

    :ivar port: where it listens, on UDP.
    :ivar lines: what arrived.
    """

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * 2**20)
        self._socket.bind(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self.lines: list[str] = []
        self._thread = threading.Thread(target=self._receive, daemon=True)
        self._thread.start()

    def _receive(self) -> None:
        while data := self._socket.recv(65536):
            self.lines += data.decode("ascii").splitlines()

    def close(self) -> None:
        self.settle()
        self._socket.close()

    def settle(self) -> None:
        """Wait until all that was sent before has been read, then end."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
            last.sendto(b"", ("127.0.0.1", self.port))
        self._thread.join(120)

    def ours(self, kind: str) -> dict[str, list[float]]:
        """Return the values of our own metrics by name.

        :param kind: StatsD's letter: ``c``, ``g`` or ``ms``.
        """
        found: dict[str, list[float]] = defaultdict(list)
        for line in list(self.lines):
            name, _, rest = line.removeprefix("airflow.").rpartition(":")
            value, _, letter = rest.partition("|")
            if name.startswith("recall.") and letter == kind:
                found[name].append(float(value))
        return dict(found)

    def counted(self) -> dict[str, float]:
        """Return the sums of our own counters."""
        return {name: sum(values) for name, values in self.ours("c").items()}


@contextmanager
def statsd_sink() -> Iterator[StatsdSink]:
    sink = StatsdSink()
    try:
        yield sink
    finally:
        sink.close()


class OtlpSink(ThreadingHTTPServer):
    """An OpenTelemetry collector that speaks OTLP over HTTP.

    :ivar bodies: the requests that arrived.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Collector)
        self.bodies: list[bytes] = []

    def points(self) -> dict[tuple[str, str], float]:
        """Return sums, gauges' values and timers' counts, by name and attributes."""
        from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

        found: dict[tuple[str, str], float] = {}
        for body in self.bodies:
            request = ExportMetricsServiceRequest.FromString(body)
            metrics = [one for r in request.resource_metrics for s in r.scope_metrics for one in s.metrics]
            for metric in metrics:
                points = getattr(metric, metric.WhichOneof("data")).data_points
                for point in points:
                    tags = ",".join(sorted(f"{one.key}={one.value.string_value}" for one in point.attributes))
                    value = point.count if hasattr(point, "count") else (point.as_int or point.as_double)
                    found[metric.name, tags] = value
        return found


class _Collector(BaseHTTPRequestHandler):
    server: OtlpSink

    def do_POST(self) -> None:  # noqa: N802 - the name is the base class's
        self.server.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None: ...


@contextmanager
def otlp_sink() -> Iterator[OtlpSink]:
    with OtlpSink() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join(10)
