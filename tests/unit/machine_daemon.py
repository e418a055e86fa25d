"""A container engine's API on a socket of its own: as much of it as `harness.machine` asks for."""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

VERSION = {"Version": "24.0.7", "Components": [{"Name": "Engine"}]}


def image(
    *, torch: str | None = "1.10.2+cpu", python: str = "3.8.13", user: str = "", **labels: str
) -> dict[str, Any]:
    """An answer to `GET /images/<name>/json`."""
    told = {} if torch is None else {"harness.torch": torch, "harness.python": python}
    return {
        "Id": "sha256:" + "0" * 64,
        "Architecture": "amd64",
        "Size": 1_500_000_000,
        "Config": {"Labels": {**told, **labels}, "User": user},
    }


@contextmanager
def daemon(
    folder: Path, images: Mapping[str, Mapping[str, Any]], version: Mapping[str, Any] = VERSION
) -> Iterator[str]:
    """Serve until the end of the block; what DOCKER_HOST must say."""
    path = folder / "docker.sock"

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.removeprefix("/images/").removesuffix("/json")
            answer = version if self.path == "/version" else images.get(name)
            body = json.dumps(answer or {"message": f"No such image: {name}"}).encode()
            self.send_response(200 if answer else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def address_string(self) -> str:
            return "unix"

        def log_message(self, *_: object) -> None:
            pass

    class Server(socketserver.ThreadingUnixStreamServer):
        daemon_threads = True

    with Server(str(path), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"unix://{path}"
        finally:
            server.shutdown()
            thread.join()
            path.unlink()
