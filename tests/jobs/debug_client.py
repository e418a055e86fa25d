"""A client of the Debug Adapter Protocol, as small as an editor can be."""

from __future__ import annotations

import contextlib
import json
import queue
import socket
import threading
import time
from pathlib import Path
from typing import Any


class Client:
    """One session with a debugger that listens."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self._reader = self._socket.makefile("rb")
        self._number = 0
        self._events: queue.Queue[dict[str, Any]] = queue.Queue()
        self._answers: dict[int, queue.Queue[dict[str, Any]]] = {}
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        try:
            while True:
                length = 0
                while line := self._reader.readline().strip():
                    length = int(line.partition(b":")[2])
                if not length:
                    break
                message = json.loads(self._reader.read(length))
                if message["type"] == "response":
                    self._answers[message["request_seq"]].put(message)
                else:
                    self._events.put(message)
        except (OSError, ValueError):
            pass
        self._events.put({"event": "closed", "body": {}})
        for waiting in list(self._answers.values()):
            waiting.put({"success": False, "message": "the debugger hung up"})

    def send(self, command: str, **arguments: Any) -> int:
        self._number += 1
        self._answers[self._number] = queue.Queue()
        body = json.dumps(
            {"seq": self._number, "type": "request", "command": command, "arguments": arguments}
        ).encode()
        self._socket.sendall(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        return self._number

    def answer(self, number: int, seconds: float = 60) -> dict[str, Any]:
        found = self._answers[number].get(timeout=seconds)
        assert found["success"], found
        return dict(found.get("body") or {})

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        return self.answer(self.send(command, **arguments))

    def event(self, name: str, seconds: float = 60) -> dict[str, Any]:
        """The next event of that name; others before it are passed over."""
        deadline = time.monotonic() + seconds
        while True:
            found = self._events.get(timeout=max(0.01, deadline - time.monotonic()))
            if found["event"] == name:
                return dict(found.get("body") or {})
            assert found["event"] != "closed", f"the debugger hung up before {name}"

    def attach(
        self,
        mappings: list[dict[str, str]],
        breakpoints: dict[Path, list[int]],
        filters: tuple[str, ...] = (),
    ) -> list[bool]:
        """As an editor does; whether each breakpoint was found."""
        self.ask(
            "initialize",
            adapterID="test",
            clientID="test",
            pathFormat="path",
            linesStartAt1=True,
            columnsStartAt1=True,
        )
        number = self.send("attach", pathMappings=mappings, justMyCode=False)
        self.event("initialized")
        verified = []
        for path, lines in breakpoints.items():
            answer = self.ask(
                "setBreakpoints", source={"path": str(path)}, breakpoints=[{"line": line} for line in lines]
            )
            verified += [each["verified"] for each in answer["breakpoints"]]
        self.ask("setExceptionBreakpoints", filters=list(filters))
        self.ask("configurationDone")
        self.answer(number)
        return verified

    def stopped(self) -> tuple[int, dict[str, Any]]:
        """Thread and topmost frame of the next stop."""
        thread = int(self.event("stopped")["threadId"])
        return thread, self.ask("stackTrace", threadId=thread)["stackFrames"][0]

    def locals(self, frame: int) -> dict[str, str]:
        for scope in self.ask("scopes", frameId=frame)["scopes"]:
            if scope["name"] == "Locals":
                found = self.ask("variables", variablesReference=scope["variablesReference"])["variables"]
                return {each["name"]: each["value"] for each in found}
        raise AssertionError("no locals")

    def close(self) -> None:
        """Hang up, as an editor that is closed."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._reader.close()
        self._socket.close()

    def evaluate(self, expression: str, frame: int, *, wait: bool = True) -> str:
        number = self.send("evaluate", expression=expression, frameId=frame, context="repl")
        return str(self.answer(number)["result"]) if wait else ""
