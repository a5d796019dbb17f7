"""``python -m tests.strict_s3``: the server as a process. It prints its address as one line of JSON."""

from __future__ import annotations

import argparse
import json
import os
import signal
import ssl
import sys
from pathlib import Path
from typing import Any

from tests.strict_s3.policy import Policy
from tests.strict_s3.server import Settings, StrictS3
from tests.strict_s3.sigv4 import Credentials


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.strict_s3", description="An S3 server that forgives nothing."
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--bucket", action="append", required=True, help="may be given more than once")
    parser.add_argument("--access-key", required=True)
    parser.add_argument("--secret-key", required=True)
    parser.add_argument("--region", default="us-east-1")
    parser.add_argument("--no-conditions", action="store_true", help="ignore If-Match and If-None-Match on writes")
    parser.add_argument("--no-conditions-on-complete", action="store_true", help="the same, on completions only")
    parser.add_argument("--no-if-match", action="store_true", help="ignore If-Match on writes")
    parser.add_argument("--no-checksums", action="store_true", help="ignore x-amz-checksum-* and never return any")
    parser.add_argument("--no-trailers", action="store_true", help="refuse what is behind a body, and so the body")
    parser.add_argument("--ceph-ids", action="store_true", help="give replies ids as Ceph's gateway does")
    parser.add_argument("--ceph", action="store_true", help="be as Ceph's gateway 16.2 is, in all of that")
    parser.add_argument("--policy", type=Path, help="an IAM policy document: what the one user may do")
    parser.add_argument("--tls", nargs=2, metavar=("CERTIFICATE", "KEY"), help="speak HTTPS")
    options = parser.parse_args()
    tls = None
    if options.tls:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(*options.tls)
    settings = Settings(
        credentials=Credentials(access_key=options.access_key, secret_key=options.secret_key, region=options.region),
        buckets=options.bucket,
        conditions=not options.no_conditions,
        conditions_on_complete=not (options.no_conditions_on_complete or options.ceph),
        if_match=not options.no_if_match,
        checksums=not (options.no_checksums or options.ceph),
        trailers=not (options.no_trailers or options.ceph),
        ceph=options.ceph_ids or options.ceph,
        policy=Policy(json.loads(options.policy.read_text())) if options.policy else None,
        tls=tls,
    )

    def end(number: int, frame: Any) -> None:
        sys.exit(0)

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    with StrictS3((options.host, options.port), settings) as server:
        host, port = server.server_address[:2]
        scheme = "https" if tls else "http"
        address = {"endpoint": f"{scheme}://{host!s}:{port}", "pid": os.getpid(), "folder": str(server.folder)}
        print(json.dumps(address), flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
