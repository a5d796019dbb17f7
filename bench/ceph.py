"""A real store that checks what it is told: one node of Ceph with its S3 gateway, in memory, from Debian's packages.

Nothing of it is installed or left behind: its daemons run as whoever starts them, on free ports, below one folder.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
import urllib.request
import uuid
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

from bench.ends import BUCKET, RGW, Ends
from bench.wire import LOOPBACK

if TYPE_CHECKING:
    from pathlib import Path

KEY = "bench"
"""Both of the gateway's user, who has the keys that all engines find in their environment."""

PROGRAMS = ("ceph", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")
START_SECONDS = 60
COLLECTION_SECONDS = 4
"""After which the memory of removed objects is free again, as it is set up here."""

_SETTINGS = """[global]
fsid = {cluster}
mon_host = [v2:{address}:{monitor}]
mon_initial_members = a
public_addr = {address}
cluster_addr = {address}
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
ms_mon_client_mode = crc
ms_bind_msgr1 = false
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 8
osd_pool_default_pg_autoscale_mode = off
mon_allow_pool_size_one = true
osd_objectstore = memstore
memstore_device_bytes = 6442450944
osd_crush_chooseleaf_type = 0
run_dir = {folder}
admin_socket = {folder}/$name.asok
log_file = {folder}/$name.log
mon_data = {folder}/mon
osd_data = {folder}/osd
rgw_data = {folder}/rgw
rgw_frontends = beast endpoint={address}:{gateway}
rgw_gc_obj_min_wait = 1
rgw_gc_processor_period = 3
"""


def missing() -> list[str]:
    """Name the programs of it that can't be had here."""
    return [name for name in PROGRAMS if shutil.which(name) is None]


class GatewayEnds(Ends):
    """The source as it always is, and the gateway in the place of the sink; see :class:`Ends`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(RGW, folder)
        self._folder = folder / "ceph"

    def start_sink(self, stack: ExitStack) -> str:
        """Start all daemons and make the bucket."""
        for name in ("mon", "osd", "rgw"):
            (self._folder / name).mkdir(parents=True)
        cluster, disk, (monitor, gateway) = uuid.uuid4(), str(uuid.uuid4()), _free_ports(2)
        path = self._folder / "ceph.conf"
        path.write_text(
            _SETTINGS.format(
                cluster=cluster, address=LOOPBACK, monitor=monitor, gateway=gateway, folder=self._folder.resolve()
            )
        )

        def call(program: str, *words: str) -> None:
            command = [program, "--conf", str(path), *words]
            subprocess.run(command, check=True, capture_output=True, timeout=START_SECONDS)

        def start(program: str, *words: str) -> None:
            with (self._folder / f"{program}.out").open("wb") as output:
                process = subprocess.Popen(
                    [program, "--conf", str(path), "--foreground", *words], stdout=output, stderr=output
                )
            stack.callback(process.wait)
            stack.callback(process.kill)

        monmap = str(self._folder / "monmap")
        addresses = f"[v2:{LOOPBACK}:{monitor}]"
        make = ["monmaptool", "--create", "--fsid", str(cluster), "--addv", "a", addresses, monmap]
        subprocess.run(make, check=True, capture_output=True)
        call("ceph-mon", "--mkfs", "--id", "a", "--monmap", monmap)
        start("ceph-mon", "--id", "a")
        call("ceph", "osd", "new", disk)
        call("ceph-osd", "--id", "0", "--mkfs", "--osd-uuid", disk)
        start("ceph-osd", "--id", "0")
        user = ("--uid", KEY, "--display-name", KEY, "--access-key", KEY, "--secret-key", KEY)
        call("radosgw-admin", "--name", "client.rgw", "user", "create", *user)
        start("radosgw", "--name", "client.rgw")
        self.sink = f"http://{LOOPBACK}:{gateway}"
        self._wait()
        self._warm_up()
        return self.sink

    def _wait(self) -> None:
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            with suppress(OSError), urllib.request.urlopen(self.sink, timeout=5):  # noqa: S310 - our own process
                return
            time.sleep(0.2)
        raise RuntimeError("Ceph's gateway did not start")

    def _warm_up(self) -> None:
        """Make the bucket, and the pools that the gateway makes when it first needs them, which takes it seconds."""
        client = self._client()
        client.create_bucket(Bucket=BUCKET)
        where = {"Bucket": BUCKET, "Key": "first"}
        client.put_object(**where, Body=b"0")
        upload = client.create_multipart_upload(**where)
        client.abort_multipart_upload(**where, UploadId=upload["UploadId"])
        client.delete_object(**where)

    def _client(self) -> Any:
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=self.sink,
            region_name="us-east-1",
            aws_access_key_id=KEY,
            aws_secret_access_key=KEY,
            config=Config(s3={"addressing_style": "path"}),
        )

    def stored(self, *, forget: bool = False) -> dict[str, Any]:
        """See :meth:`Ends.stored`; of no object is the hash told."""
        client = self._client()
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
        found = {
            one["Key"]: {"bytes": one["Size"], "sha256": None} for page in pages for one in page.get("Contents", ())
        }
        if forget and found:
            for key in found:
                client.delete_object(Bucket=BUCKET, Key=key)
            time.sleep(COLLECTION_SECONDS)
        return found


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server((LOOPBACK, 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]
