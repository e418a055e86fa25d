"""Process 1 of a warm host.

It talks with the harness over a socket in a directory that both have, keeps the preloaded interpreters, and
runs one command at a time as the first process of a new host would run. It has no handler for any signal but
SIGCHLD: what a script sends to process 1 does nothing, as in a container.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import time

from . import cleaning, command, frames, wire
from .interpreters import Interpreters, tools_of
from .spawning import request_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from .interpreters import Interpreter

__all__ = ["main"]

_IO = "/run/harness/io"
_PATIENCE = 60.0
_PLACES = ("/tmp", "/var/tmp", "/dev/shm", "/dev/mqueue")
_IDLE = 1.0
"""Seconds without a run before interpreters may import more."""
_ANSWER = 10.0
"""Seconds within which a fork has to be what it is to be."""
_NOT_FOUND = 127
_NOT_EXECUTABLE = 126


def main(io: str = _IO) -> NoReturn:
    Keeper(io).serve()


class _Proxy:
    """A process that stands for a script, and the script."""

    def __init__(self, link: Any, leads: bool) -> None:
        self.link = link
        self.leads = leads
        self.pid: int | None = None
        self.waiting: list[int] = []
        """Signals that came before the script was there."""


class _Run:
    """What runs now."""

    def __init__(self) -> None:
        self.pid: int | None = None
        self.status: int | None = None
        self.over = 0.0
        """When its first process had ended."""
        self.why: str | None = None
        self.cold: list[str] = []
        """Why scripts of this run were started the ordinary way."""


class Keeper:
    def __init__(self, io: str) -> None:
        with open(os.path.join(io, "config.json"), encoding="utf-8") as file:
            config = json.load(file)
        self._environment = dict(os.environ)
        first = os.getpid() == 1
        if not first:
            _adopt_orphans()
        # Elsewhere than in a host, /tmp is that of the machine.
        self._in_host = first and io == _IO
        self._places = cleaning.Places(config.get("clean", _PLACES if self._in_host else ()))
        self._group = os.getpgrp()
        self._door, self._inner_door = wire.pair()
        self._wake, inside = os.pipe()
        os.set_blocking(self._wake, False)
        os.set_blocking(inside, False)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(inside, warn_on_full_buffer=False)
        self._proxies: dict[int, _Proxy] = {}
        """By the number of the request, until the script is there, then by its process."""
        self._scripts: dict[int, _Proxy] = {}
        self._early: dict[int, int] = {}
        """How processes ended that nobody has told of yet."""
        self._requests = 0
        self._asked_for: dict[int, Interpreter] = {}
        """Forks that were asked for and haven't told of themselves."""
        self._first_requests: set[int] = set()
        self._run: _Run | None = None
        self._installed: set[str] = set()
        self._link: socket.socket | None = None
        self._told_ready = False
        self._quiet_since = time.monotonic()
        self._interpreters = Interpreters(
            config.get("preload", ()),
            tools_of(config.get("argv", ()), self._environment),
            patience=float(config.get("timeout", _PATIENCE)),
            why=None if config.get("forks", True) else "it was asked for that nothing is preloaded",
            changed=self._changed,
        )
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        directory = os.open(io, os.O_PATH | os.O_DIRECTORY)
        half = "/proc/self/fd/%d/.k" % directory  # the path of a socket may have 107 bytes only
        for name in (".k", "k"):
            try:
                os.unlink(os.path.join(io, name))
            except FileNotFoundError:
                pass
        self._listener.bind(half)
        os.chmod(os.path.join(io, ".k"), 0o666)
        self._listener.listen(1)
        os.rename(os.path.join(io, ".k"), os.path.join(io, "k"))
        os.close(directory)

    # ------------------------------------------------------------------------------------------------ the loop

    def serve(self) -> NoReturn:
        self._interpreters.start()
        while True:
            self._turn()

    def _turn(self) -> None:
        interpreters = self._interpreters
        watched: dict[int, Any] = {self._wake: self._reap, self._door.fileno(): self._asked}
        if self._link is None:
            watched[self._listener.fileno()] = self._accept
        else:
            watched[self._link.fileno()] = self._commanded
        for each in interpreters.all():
            watched[each.control.fileno()] = lambda each=each: self._heard(each)
        for proxy in [*self._proxies.values(), *self._scripts.values()]:
            watched[proxy.link.fileno()] = lambda proxy=proxy: self._of_proxy(proxy)
        poll = select.poll()
        for number in watched:
            poll.register(number, select.POLLIN)
        for number, _ in poll.poll(self._wait())[:1]:  # what else was watched may be another's by then
            watched[number]()
        interpreters.look()
        if self._run is None and time.monotonic() >= self._quiet_since + _IDLE:
            interpreters.idle()
        self._conclude()

    def _wait(self) -> float | None:
        """Milliseconds until there is something to do by itself."""
        moments = [moment for moment in (self._interpreters.next_look,) if moment is not None]
        if self._run is None and time.monotonic() < self._quiet_since + _IDLE:
            moments.append(self._quiet_since + _IDLE)
        if self._run is not None and self._run.status is not None:
            moments.append(self._run.over + _ANSWER)
        return max(0.0, min(moments) - time.monotonic()) * 1000 + 1 if moments else None

    # ---------------------------------------------------------------------------------------------- the harness

    def _accept(self) -> None:
        self._link, _ = self._listener.accept()
        self._changed()

    def _changed(self) -> None:
        if self._link is None or self._told_ready or not self._interpreters.settled:
            return
        self._told_ready = True
        self._quiet_since = time.monotonic()
        found = self._interpreters
        ready = {
            "environment": self._environment,
            "python": "{}.{}.{}".format(*sys.version_info[:3]),
            "preloaded": found.preloaded,
            "excluded": found.excluded,
            "forks": found.why is None,
            "why": found.why or "",
        }
        self._tell({"ready": ready})

    def _tell(self, words: dict[str, Any]) -> None:
        assert self._link is not None
        try:
            frames.send(self._link, words)
        except OSError:
            self._leave()

    def _commanded(self) -> None:
        assert self._link is not None
        try:
            message, descriptors = frames.receive(self._link)
        except (EOFError, OSError):
            self._leave()
        if "run" in message:
            self._start(message["run"], descriptors[0])
        elif "signal" in message and self._run is not None:
            self._signal(self._run, int(message["signal"]))
        elif "exit" in message:
            self._leave()

    def _leave(self) -> NoReturn:
        """End, and all in the host with us."""
        self._interpreters.stop()
        cleaning.end_processes(tuple, self._reap_all)
        os._exit(0)

    # ---------------------------------------------------------------------------------------------------- a run

    def _start(self, wanted: dict[str, Any], output: int) -> None:
        run = self._run = _Run()
        argv: list[str] = wanted["argv"]
        environment: dict[str, str] = wanted["environment"]
        path = command.find(argv[0], environment, "/")
        line = None if path is None else command.unfold(path, argv, environment, "/")
        if path is None or line is None:
            # A container engine would look for it itself, and end with its own words.
            self._execute(run, path or argv[0], argv, environment, output)
        else:
            self._ask(run, path, line, argv, environment, output)
        os.close(output)

    def _ask(
        self, run: _Run, path: str, line: list[str], argv: list[str], environment: dict[str, str], output: int
    ) -> None:
        """Let a preloaded interpreter be the run's first process."""
        interpreters = self._interpreters
        toolkit = tools_of(argv, environment) is not None
        which, why = interpreters.usable("tools" if toolkit else "script")
        if which is None:
            run.why = why
            self._execute(run, path, argv, environment, output)
            return
        ours, theirs = wire.pair(stream=True)
        ours.settimeout(_ANSWER)
        self._requests += 1
        self._first_requests.add(self._requests)
        null = os.open("/dev/null", os.O_RDONLY)
        os.chdir("/")
        os.umask(0o022)
        request, descriptors = request_of(
            path,
            line,
            [os.fsencode("%s=%s" % item) for item in environment.items()],
            [0, 1, 2],
            group=0,
            leads=False,
            spawns={"group": self._group, "installed": list(self._installed)} if toolkit else None,
            door=self._inner_door.fileno(),
        )
        descriptors[:3] = [null, output, output]
        try:
            wire.send(which.control, {"fork": self._requests}, [theirs.fileno()])
            self._asked_for[self._requests] = which
            theirs.close()
            wire.send_stream(ours, request, descriptors)
            answer, _ = wire.receive_stream(ours)
        except (EOFError, OSError):
            answer = {"refused": "the preloaded interpreter is gone"}
        finally:
            ours.close()
            for number in (null, descriptors[-1]):
                os.close(number)
        if "ok" in answer:
            run.pid = answer["ok"]
            self._tell({"started": run.pid, "forks": True})
        else:
            run.why = answer["refused"]
            self._execute(run, path, argv, environment, output)

    def _execute(
        self, run: _Run, path: str, argv: list[str], environment: dict[str, str], output: int
    ) -> None:
        """Start the run's first process the ordinary way."""
        try:
            pid = os.fork()
        except OSError as error:
            run.status = _NOT_EXECUTABLE << 8
            os.write(output, ("can't start a process: %s\n" % error.strerror).encode())
            return
        if pid == 0:
            code = _NOT_EXECUTABLE
            try:
                os.setpgid(0, 0)
                for number in range(1, signal.NSIG):
                    if number not in (signal.SIGKILL, signal.SIGSTOP):
                        try:
                            signal.signal(number, signal.SIG_DFL)
                        except (OSError, ValueError):
                            pass  # libc's own two
                os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
                os.dup2(output, 1)
                os.dup2(output, 2)
                os.chdir("/")
                os.umask(0o022)
                os.execve(path, argv, environment)
            except FileNotFoundError:
                code = _NOT_FOUND
            finally:
                os._exit(code)
        run.pid = pid
        self._tell({"started": pid, "forks": False, "why": run.why or ""})

    def _signal(self, run: _Run, number: int) -> None:
        """As process 1 gets it: only with a handler, and SIGKILL, which ends all (contract: G10)."""
        if number == signal.SIGKILL:
            run.status = number
        elif run.pid is not None and run.status is None and _catches(run.pid, number):
            os.kill(run.pid, number)

    def _conclude(self) -> None:
        """When the run's first process has ended: end the rest, clean up, and tell."""
        run = self._run
        if run is None or run.status is None:
            return
        unclean = cleaning.end_processes(lambda: self._interpreters.pids, self._reap_all)
        if self._awaits_forks(run):
            return
        for proxy in [*self._proxies.values(), *self._scripts.values()]:
            proxy.link.close()
        self._proxies.clear()
        self._scripts.clear()
        self._early.clear()
        self._first_requests.clear()
        self._drain()
        if self._in_host:
            cleaning.remove_ipc()
        unclean = self._places.reset() or unclean
        status = run.status
        ended: dict[str, Any] = {
            "code": 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        }
        if unclean:
            ended["unclean"] = unclean
        if run.cold:
            ended["cold"] = run.cold
        self._run = None
        self._quiet_since = time.monotonic()
        if self._interpreters.stale:
            self._interpreters.start()
        self._tell({"ended": ended})

    def _awaits_forks(self, run: _Run) -> bool:
        """Whether a fork that was asked for is still to come: nothing of a run may begin after its end."""
        alive = self._interpreters.all()
        self._asked_for = {number: which for number, which in self._asked_for.items() if which in alive}
        run.over = run.over or time.monotonic()
        if self._asked_for and time.monotonic() >= run.over + _ANSWER:
            self._interpreters.start()
            self._asked_for.clear()
        return bool(self._asked_for)

    # ---------------------------------------------------------------------------------------------- processes

    def _reap(self) -> None:
        while True:
            try:
                if len(os.read(self._wake, 4096)) < 4096:
                    break
            except BlockingIOError:
                break
        self._reap_all()

    def _reap_all(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            self._ended(pid, status)

    def _ended(self, pid: int, status: int) -> None:
        run = self._run
        if run is not None and pid == run.pid:
            if run.status is None:
                run.status = status
            return
        proxy = self._scripts.pop(pid, None)
        if proxy is not None:
            self._tell_proxy(proxy, status)
            return
        for each in self._interpreters.all():
            if each.pid == pid:
                poll = select.poll()
                poll.register(each.control.fileno(), select.POLLIN)
                while each in self._interpreters.all() and poll.poll(0):
                    self._heard(each)  # its last words
                self._interpreters.ended(each)
                return
        self._early[pid] = status

    def _tell_proxy(self, proxy: _Proxy, status: int) -> None:
        try:
            wire.send(proxy.link, {"ended": status})
        except OSError:
            pass  # it is gone as well
        proxy.link.close()

    def _heard(self, which: Interpreter) -> None:
        """A preloaded interpreter tells something."""
        try:
            message, _ = wire.receive(which.control)
        except (EOFError, OSError):
            self._interpreters.ended(which)
            return
        if "child" not in message:
            self._interpreters.told(which, message)
            return
        number, pid = message["child"], message["pid"]
        self._asked_for.pop(number, None)
        if number in self._first_requests:
            self._first_requests.discard(number)
            run = self._run
            status = self._early.pop(pid, None)
            if run is not None and run.pid in (None, pid) and status is not None and run.status is None:
                run.status = status
            return
        proxy = self._proxies.pop(number, None)
        if proxy is None:
            return
        status = self._early.pop(pid, None)
        if status is not None:
            self._tell_proxy(proxy, status)
            return
        proxy.pid = pid
        self._scripts[pid] = proxy
        for signal_number in proxy.waiting:
            self._pass_on(proxy, signal_number)

    def _asked(self) -> None:
        """A proxy wants a script, or tells something."""
        message, descriptors = wire.receive(self._door)
        if self._noted(message):
            return
        connection, link = descriptors
        which, why = self._interpreters.usable(message["fork"])
        if which is not None:
            self._requests += 1
            try:
                wire.send(which.control, {"fork": self._requests}, [connection])
                self._asked_for[self._requests] = which
                self._proxies[self._requests] = _Proxy(wire.wrap(link), message["leads"])
            except OSError:
                which, why = None, "the preloaded interpreter is gone"
        if which is None:
            os.close(link)
            wire.send_stream(wire.wrap(os.dup(connection)), {"refused": why})
        os.close(connection)

    def _noted(self, message: dict[str, Any]) -> bool:
        """Keep what a process of the run tells; False for what it asks for."""
        if "cold" in message:
            if self._run is not None:
                self._run.cold.append(message["cold"] or "the preloaded interpreter is gone")
        elif "installed" in message:
            self._installed.add(message["installed"])
        else:
            return False
        return True

    def _of_proxy(self, proxy: _Proxy) -> None:
        try:
            message, _ = wire.receive(proxy.link)
        except (EOFError, OSError):
            # It was killed, and so is what it stands for; or it starts its script itself.
            self._pass_on(proxy, signal.SIGKILL)
            self._forget(proxy)
            return
        self._pass_on(proxy, message["signal"])

    def _forget(self, proxy: _Proxy) -> None:
        proxy.link.close()
        for table in (self._proxies, self._scripts):
            for key in [key for key, each in table.items() if each is proxy]:
                del table[key]

    def _pass_on(self, proxy: _Proxy, number: int) -> None:
        if proxy.pid is None:
            proxy.waiting.append(number)
            return
        try:
            if proxy.leads:
                os.killpg(proxy.pid, number)
            else:
                os.kill(proxy.pid, number)
        except ProcessLookupError:
            pass  # it has ended, and its end is about to be told

    def _drain(self) -> None:
        """Read what the processes of the run that ended have still said."""
        poll = select.poll()
        poll.register(self._door.fileno(), select.POLLIN)
        while poll.poll(0):
            message, descriptors = wire.receive(self._door)
            self._noted(message)
            for number in descriptors:
                os.close(number)


def _catches(pid: int, number: int) -> bool:
    """Whether the process has a handler for the signal."""
    try:
        with open("/proc/%d/status" % pid, "rb") as file:
            for line in file:
                if line.startswith(b"SigCgt:"):
                    return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    except OSError:
        pass  # it has ended
    return False


def _adopt_orphans() -> None:
    import ctypes

    ctypes.CDLL(None).prctl(36, ctypes.c_ulong(1), *[ctypes.c_ulong(0)] * 3)  # PR_SET_CHILD_SUBREAPER
