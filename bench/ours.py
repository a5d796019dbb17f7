"""Our engine as a program: takes a work list, as JSON in a file, and archives it. Imports only the pipeline itself.

With `PYTHONPATH` set to another checkout it measures that one.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit


def ways(work: dict[str, Any]) -> dict[str, Any]:
    """Return how the store is reached: without a client, but for checkouts from before that was possible."""

    def s3_client() -> Any:
        from botocore.config import Config
        from botocore.session import get_session

        # With the settings that the amazon provider's connection has, but without boto3, which only adds to botocore's
        # client what the engine does not use.
        config = Config(max_pool_connections=work["workers"])
        return get_session().create_client("s3", endpoint_url=work["endpoint"], verify=work["ca"], config=config)

    try:
        from include.archive.stores import s3_access
    except ImportError:
        return {"s3_client": s3_client}
    region = os.environ["AWS_DEFAULT_REGION"]
    keys = s3_access.Credentials(os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"])

    def access(bucket: str) -> Any:
        return s3_access.Direct(
            address=str(s3_access.address_of(bucket, region, work["endpoint"])),
            region=region,
            keys=lambda: keys,
            make_client=s3_client,
            verify=work["ca"] or True,
            connections=work["workers"],
        )

    return {"s3_access": access}


def main() -> None:
    """Archive all files of the work list, one a thread, as a task of the pipeline does."""
    with open(sys.argv[1], encoding="utf-8") as file:
        work = json.load(file)
    logging.basicConfig(level=logging.ERROR)
    from include.archive import copy
    from include.archive.stores import open_store
    from include.recall.media import MediaClient, PartSource
    from include.recall.models import SignedLink

    store = open_store(f"s3://{work['bucket']}", **ways(work))
    media = MediaClient(allowed_hosts=[urlsplit(work["urls"][0]).netloc], ca_bundle=work["ca"])
    wall, cpu = time.monotonic(), time.process_time()
    # Checkouts from before there was a survey look each part up by itself.
    survey = getattr(copy, "survey", None)
    folders = sorted({key.rpartition("/")[0] for key in work["keys"]})
    lanes = {}
    if hasattr(copy, "Lanes"):
        parts, workers = len(work["urls"]), work["workers"]
        lanes["lanes"] = copy.Lanes(workers, parts=parts, side_by_side=workers)
    known = {"shelf": survey(store, folders, tidy=True)} if survey else {}

    def archive(url: str, key: str, size: int) -> None:
        stem = key.rpartition(".")[0]
        stored = copy.archive_body(
            PartSource(media, SignedLink(url), lambda: SignedLink(url)),
            store,
            stem,
            source_format="mp3",
            ids={"part-id": stem.rpartition("/")[2]},
            duration=None,
            **known,
            **lanes,
        )
        if stored.action != "stored" or stored.bytes != size:
            raise SystemExit(f"{key}: {stored.action}, {stored.bytes} of {size} bytes")

    with ThreadPoolExecutor(min(work["workers"], len(work["urls"]))) as pool:
        for done in [pool.submit(archive, *one) for one in zip(work["urls"], work["keys"], work["sizes"], strict=True)]:
            done.result()
    print(json.dumps({"wall": time.monotonic() - wall, "cpu": time.process_time() - cpu}))


if __name__ == "__main__":
    main()
