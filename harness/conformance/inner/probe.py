"""Runs in somebody else's image as a training script, and writes down what it finds.

Standard library only, any Python from 3.8. What it is to do is the hyperparameter `harness-mode`; what it
found goes to /opt/ml/output/data/<host>.json, and to the model where a job's end should be seen.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import sys
import time
from types import FrameType
from typing import Any

ML = "/opt/ml"
CONFIG = ML + "/input/config/"
PORT = 7654


def config(name: str) -> Any:
    """A file of input/config; what it can't be read for as text."""
    try:
        with open(CONFIG + name) as file:
            return json.load(file)
    except (OSError, ValueError) as error:
        return "%s: %s" % (type(error).__name__, error)


def write(path: str, text: str) -> str:
    """Whether that file can be written: "" or the error's name."""
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w") as file:
            file.write(text)
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return ""


def listing(root: str) -> dict[str, str]:
    """Files below a directory with their content, the first kilobyte of it."""
    found = {}
    for place, _, names in os.walk(root):
        for name in names:
            path = os.path.join(place, name)
            with open(path, errors="replace") as file:
                found[os.path.relpath(path, root)] = file.read(1024)
    return found


def process(number: int) -> list[str]:
    try:
        with open("/proc/%s/cmdline" % number, "rb") as file:
            return [word.decode(errors="replace") for word in file.read().split(b"\0")[:-1]]
    except OSError:
        return []


def reach(address: str, port: int, seconds: float = 2.0) -> str:
    """Empty when somebody answers there, else why not."""
    try:
        socket.create_connection((address, port), seconds).close()
    except OSError as error:
        return str(error) or type(error).__name__
    return ""


def facts() -> dict[str, Any]:
    return {
        "argv": sys.argv[1:],
        "environment": dict(os.environ),
        "cwd": os.getcwd(),
        "uid": os.getuid(),
        "hostname": socket.gethostname(),
        "terminal": sys.stdout.isatty(),
        "interfaces": sorted(os.listdir("/sys/class/net")),
        "process_1": process(1),
        "hyperparameters": config("hyperparameters.json"),
        "resources": config("resourceconfig.json"),
        "channels": config("inputdataconfig.json"),
        "data": listing(ML + "/input/data"),
        "checkpoints": listing(ML + "/checkpoints"),
        "refused": {
            path: write(path, "x")
            for path in (ML + "/model/probe.txt", ML + "/output/data/probe.txt", "/tmp/harness/probe.txt")
        },
        "writes_to_fast": write(ML + "/input/data/fast/new.txt", "x"),
    }


def meet(hosts: list[str], me: str) -> dict[str, str]:
    """Listen, and talk to every peer: host -> "" or why it can't be reached."""
    server = socket.socket()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind(("", PORT))
    server.listen(64)
    peers = {}
    for host in hosts:
        if host == me:
            continue
        deadline = time.monotonic() + 20
        while True:
            peers[host] = reach(host, PORT)
            if not peers[host] or time.monotonic() > deadline:
                break
            time.sleep(0.2)
    time.sleep(1)  # the others may still be on their way
    return peers


def main() -> None:
    mode = (config("hyperparameters.json") or {}).get("harness-mode", "look").strip('"')
    found = facts()
    host = found["resources"]["current_host"]
    if mode == "fail":
        raise RuntimeError("harness-verify: this failure is asked for")
    if mode == "meet":
        found["peers"] = meet(found["resources"]["hosts"], host)
    if mode == "isolated":
        found["outside"] = {address: reach(address, 53) for address in ("1.1.1.1", "8.8.8.8")}
    write("%s/output/data/%s.json" % (ML, host), json.dumps(found))
    write("%s/model/%s.txt" % (ML, host), "model")
    if mode == "wait":
        write(ML + "/checkpoints/step.txt", "7")

        def end(number: int, frame: FrameType | None) -> None:
            write(ML + "/model/signal.txt", str(number))
            sys.exit(0)

        signal.signal(signal.SIGTERM, end)
        print("harness-verify: waiting", flush=True)
        time.sleep(600)


if __name__ == "__main__":
    main()
