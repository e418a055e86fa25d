"""A small process beside a command in a host: it puts right what the command line can't when it is killed.

It waits for the end of a pipe that the command line holds, and whoever ends in order ends it first. So at that
end it gives the terminal back, ends what was started in the host (docker lets it live on), and removes a host
that was started only for a look around.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.engines.enter import Terminal
    from harness.home import Home

__all__ = ["Guard", "main"]


class Guard:
    """What is to be put right for one command."""

    def __init__(
        self, *, home: Home, job: str, host: str, entry: Mapping[str, Any], mark: str, kept: bool
    ) -> None:
        self._log = home.job(job) / "supervisor.log"
        self._config: dict[str, Any] = {
            "home": str(home.root),
            "job": job,
            "host": host,
            "entry": dict(entry),
            "mark": mark,
            "kept": kept,
        }

    @contextlib.contextmanager
    def over(self, terminal: Terminal | None) -> Iterator[None]:
        """Guarded inside the `with`. A sandbox's command ends by itself, so without a terminal it needs no guard."""
        if terminal is None and self._config["entry"]["engine"] == "sandbox" and not self._config["kept"]:
            yield
            return
        passed: list[int] = []
        if terminal is not None:
            passed.append(fcntl.fcntl(terminal.stdin, fcntl.F_DUPFD_CLOEXEC, 3))
            self._config["terminal"] = [passed[0], _plain(terminal.saved)]
        try:
            with self._log.open("ab") as log:
                process = subprocess.Popen(
                    [sys.executable, "-m", "harness.debugging._guard", json.dumps(self._config)],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    cwd="/",
                    pass_fds=passed,
                    start_new_session=True,  # what ends us shall not end it
                )
        finally:
            for descriptor in passed:
                os.close(descriptor)
        try:
            yield
        finally:
            process.kill()  # also after an exception: then whoever let it pass has put things right
            process.wait()
            assert process.stdin is not None
            process.stdin.close()


def _plain(attributes: list[Any]) -> list[Any]:
    """A terminal's attributes without the bytes objects that JSON can't hold."""
    *flags, characters = attributes
    return [*flags, [ord(each) if isinstance(each, bytes) else each for each in characters]]


def main(config: Mapping[str, Any]) -> None:
    """Wait, and act if it must be."""
    sys.stdin.buffer.read()
    if "terminal" in config:
        _give_back(*config["terminal"])
    from harness.errors import HarnessError
    from harness.home import VARIABLE

    os.environ[VARIABLE] = config["home"]
    try:
        for problem in _remove(Path(config["home"])) if config["kept"] else _end(config):
            print(f"after a shell that was killed: {problem}", file=sys.stderr)
    except HarnessError as error:
        print(f"after a shell that was killed: {error}", file=sys.stderr)


def _end(config: Mapping[str, Any]) -> list[str]:
    from harness.engines.enter import open_door

    open_door(config["entry"], job=config["job"], host=config["host"]).kill(config["mark"])
    return []


def _remove(root: Path) -> list[str]:
    from harness.home import Home
    from harness.lifecycle import clean_left
    from harness.store import Store

    home = Home(root)
    with Store(home) as store:
        return clean_left(home, store)


def _give_back(descriptor: int, attributes: list[Any]) -> None:
    import termios

    from harness.engines.enter import RESET

    with contextlib.suppress(termios.error, OSError):  # the terminal is gone with the one who used it
        termios.tcsetattr(descriptor, termios.TCSANOW, attributes)
        os.write(descriptor, RESET)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
