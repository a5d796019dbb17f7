"""An SMTP server that keeps the mails it is given, for tests that see what really arrives."""

from __future__ import annotations

import email
import email.policy
import socketserver
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from email.message import EmailMessage


class MailSink(socketserver.ThreadingTCPServer):
    """Say yes to everyone.

    :ivar mails: what arrived.
    :ivar greeting: cleared, it accepts connections and says nothing.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Session)
        self.mails: list[EmailMessage] = []
        self.greeting = threading.Event()
        self.greeting.set()

    @property
    def connection(self) -> dict[str, Any]:
        """The Airflow connection to it."""
        extra = {"disable_ssl": True, "disable_tls": True, "from_email": "airflow@example.com", "retry_limit": 0}
        host, port = self.server_address[:2]
        return {"conn_type": "smtp", "host": str(host), "port": port, "extra": extra}


class _Session(socketserver.StreamRequestHandler):
    server: MailSink

    def handle(self) -> None:
        self.server.greeting.wait()
        self._say("220 sink")
        for line in self.rfile:
            command = line.strip().upper()
            if command == b"DATA":
                self._say("354 go on")
                lines = []
                while (text := self.rfile.readline()) not in (b".\r\n", b""):
                    lines.append(text.removeprefix(b".") if text.startswith(b"..") else text)
                mail = email.message_from_bytes(b"".join(lines), policy=email.policy.default)
                self.server.mails.append(mail)  # type: ignore[arg-type]
            elif command == b"QUIT":
                self._say("221 bye")
                return
            self._say("250 ok")

    def _say(self, text: str) -> None:
        self.wfile.write(f"{text}\r\n".encode())


@contextmanager
def mail_sink() -> Iterator[MailSink]:
    """Run a sink on a port of its own."""
    with MailSink() as sink:
        thread = threading.Thread(target=sink.serve_forever, daemon=True)
        thread.start()
        try:
            yield sink
        finally:
            sink.greeting.set()
            sink.shutdown()
            thread.join()
