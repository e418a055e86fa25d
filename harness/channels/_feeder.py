"""The process that feeds the FIFOs of a job's Pipe channels.

It reads what to do from the file whose descriptor is its first argument, and ends, at once and whatever it
waits for, when its parent closes its standard input or dies. One thread for each channel of each host, so channels are independent (contract: E13). What goes
wrong is told on standard output, in one line of JSON, and the stream that it happened to stays open: a reader
must not take it for one that has ended, so it waits until the job is ended by who reads that line.
"""

from __future__ import annotations

import json
import os
import select
import sys
import threading
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.channels._fifo import open_epoch
from harness.channels._objects import Library
from harness.channels._pace import Pace
from harness.channels._streams import Stream
from harness.errors import HarnessError
from harness.model import JsonObject, LocalOptions, Upload
from harness.objects import ObjectStore

__all__ = ["main", "tell"]


def tell(
    streams: list[Stream],
    directories: Mapping[str, int],
    *,
    parent: int,
    objects: Path,
    uploads: tuple[Upload, ...],
    local: LocalOptions,
    region: str | None,
) -> bytes:
    """What the process is told; `directories`: host → its open /opt/ml/input/data."""
    told = {
        "streams": [stream.to_json() for stream in streams],
        "directories": dict(directories),
        "parent": parent,
        "objects": str(objects),
        "uploads": [[upload.uri, str(upload.path)] for upload in uploads if upload.kind == "channel"],
        "local": {
            "offline": local.offline,
            "s3_latency_ms": local.s3_latency_ms,
            "s3_throughput_mbps": local.s3_throughput_mbps,
        },
        "region": region,
    }
    return json.dumps(told).encode()


def main() -> None:
    """Until standard input ends, or the parent does."""
    with open(int(sys.argv[1]), "rb") as file:  # noqa: PTH123
        told = json.load(file)
    lock = threading.Lock()
    library = Library(
        uploads=tuple(Upload(uri=uri, path=Path(path), kind="channel") for uri, path in told["uploads"]),
        objects=ObjectStore(Path(told["objects"])),
        local=LocalOptions(**told["local"]),
        region=told["region"],
    )

    def complain(what: JsonObject) -> None:
        with lock:
            os.write(1, json.dumps(what).encode() + b"\n")

    paces = {host: Pace(library.local) for host in told["directories"]}
    for stream in map(Stream.from_json, told["streams"]):
        for host in stream.hosts:
            threading.Thread(
                target=_feed,
                args=(stream, host, told["directories"][host], paces[host], library, complain),
                name=f"{stream.channel}-{host}",
                daemon=True,
            ).start()
    _await_end(told["parent"])
    os._exit(0)  # threads wait for readers that may never come


def _await_end(parent: int) -> None:
    waited: list[Any] = [0]
    try:
        waited.append(os.pidfd_open(parent))
    except ProcessLookupError:
        return
    except (AttributeError, OSError):  # a kernel before 5.3, or not Linux
        pass
    select.select(waited, [], [])


def _feed(stream: Stream, host: str, directory: int, pace: Pace, library: Library, complain: Any) -> None:
    """Epoch after epoch, for ever: how many a script wants only the script knows (contract: E11)."""
    try:
        epoch = 0
        while True:
            with open_epoch(directory, stream.channel, epoch, pace) as writer:
                library.play(stream, host, epoch, writer, pace)
            epoch += 1
    except HarnessError as error:
        complain({"channel": stream.channel, "host": host, "error": str(error)})
    except Exception as error:
        traceback.print_exc()
        complain(
            {
                "channel": stream.channel,
                "host": host,
                "error": f"{type(error).__name__}: {error}",
                "ours": True,
            }
        )
