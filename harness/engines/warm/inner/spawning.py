"""How the toolkit and torchrun start Python scripts in a warm host: as forks of the preloaded interpreter.

What they start is a proxy, their child in every way, that asks the keeper for the script and lives as long as
it: it passes signals on and ends as the script ends. When there is no fork to be had, it executes what it was
started for.
"""

from __future__ import annotations

import os
import signal
import subprocess
import warnings

from . import command, requirements, wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any, NoReturn

__all__ = ["exit_like", "install", "request_of"]

_ORDINARY = frozenset({"pip", "ensurepip", "venv", "compileall"})
"""Modules that are programs of their own: nothing of what is preloaded is theirs."""
_RESTORED = ("SIGPIPE", "SIGXFSZ", "SIGXFZ")
"""What Python ignores, and a child of `subprocess` doesn't."""


class _Setup:
    """What a child does between fork and exec."""

    def __init__(
        self,
        *,
        streams: Sequence[tuple[int, int]],
        cwd: Any = None,
        keep: Iterable[int] | None = None,
        umask: int = -1,
        session: bool = False,
        group: int | None = None,
    ) -> None:
        self.streams = streams
        """(descriptor here, number there)"""
        self.cwd = cwd
        self.keep = keep
        """Descriptors above 2 that it inherits; None: all that are inheritable."""
        self.umask = umask
        self.session = session
        self.group = group

    def do(self) -> None:
        high = [
            (os.dup2(here, 500 + place, inheritable=False), there)
            for place, (here, there) in enumerate(self.streams)
        ]
        for here, there in high:
            os.dup2(here, there, inheritable=True)
            os.close(here)
        if self.cwd is not None:
            os.chdir(self.cwd)
        if self.umask >= 0:
            os.umask(self.umask)
        if self.session:
            os.setsid()
        elif self.group is not None:
            os.setpgid(0, self.group)
        if self.keep is not None:
            for number in _inheritable():
                os.set_inheritable(number, number in self.keep)
            for number in self.keep:
                os.set_inheritable(number, True)


def _inheritable() -> list[int]:
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            if int(name) > 2 and os.get_inheritable(int(name)):
                found.append(int(name))
        except OSError:
            pass  # the directory's own
    return found


class _Spawner:
    def __init__(self, door: int, settings: dict[str, Any]) -> None:
        self._door = wire.wrap(door)
        self._group: int | None = settings["group"]
        """The process group of ordinary children; None: that of this process."""
        self._installed: set[str] = set(settings["installed"])
        """Requirements that a pip of this host has installed."""

    # ------------------------------------------------------------------------------ what starts processes

    def patch(self) -> None:
        original = subprocess.Popen._execute_child  # type: ignore[attr-defined]
        names = original.__code__.co_varnames[1 : original.__code__.co_argcount]
        spawner = self

        def _execute_child(popen, *arguments):  # type: ignore[no-untyped-def]
            given = dict(zip(names, arguments))
            if not spawner._popen(popen, given):
                original(popen, *given.values())

        subprocess.Popen._execute_child = _execute_child  # type: ignore[attr-defined]
        subprocess._USE_POSIX_SPAWN = False  # type: ignore[misc]
        spawn = os.posix_spawnp

        def posix_spawnp(path, argv, env, **options):  # type: ignore[no-untyped-def]
            pid = spawner._posix_spawn(path, argv, env, options)
            if pid is None:
                if spawner._group is not None:
                    options.setdefault("setpgroup", spawner._group)
                pid = spawn(path, argv, env, **options)
            return pid

        os.posix_spawnp = posix_spawnp

    def _popen(self, popen: Any, given: dict[str, Any]) -> bool:
        """Start what Popen is to start, if that is a script for the preloaded interpreter."""
        plain = (
            not given["shell"]
            and given["preexec_fn"] is None
            and all(given.get(name) in (None, -1) for name in ("gid", "gids", "uid"))
        )
        argv = given["args"]
        argv = [argv] if isinstance(argv, (str, bytes)) or hasattr(argv, "__fspath__") else list(argv)
        environment = os.environ if given["env"] is None else given["env"]
        group = given.get("process_group")
        program = None
        if plain and argv:
            program = self._find(given["executable"] or argv[0], argv, environment, environment, given["cwd"])
        if program is None:
            # Python 3.11 and newer: before, such children are in this process's group.
            if self._group is not None and group == -1 and not given["start_new_session"]:
                given["process_group"] = self._group
            return False
        ends = [(given["p2cread"], 0), (given["c2pwrite"], 1), (given["errwrite"], 2)]
        setup = _Setup(
            streams=[(here, there) for here, there in ends if here != -1],
            cwd=given["cwd"],
            keep=set(given["pass_fds"]) if given["close_fds"] else None,
            umask=given.get("umask", -1),
            session=bool(given["start_new_session"]),
            group=None if group in (-1, None) else group,
        )
        popen.pid = self._fork(program, setup)
        popen._child_created = True
        popen._close_pipe_fds(
            given["p2cread"],
            given["p2cwrite"],
            given["c2pread"],
            given["c2pwrite"],
            given["errread"],
            given["errwrite"],
        )
        return True

    def _posix_spawn(self, path: Any, argv: Any, env: Any, options: dict[str, Any]) -> int | None:
        if set(options) - {"file_actions", "setsigdef"}:
            return None
        actions = options.get("file_actions") or ()
        if any(action[0] != os.POSIX_SPAWN_DUP2 for action in actions):
            return None
        program = self._find(path, list(argv), env, os.environ, None)
        if program is None:
            return None
        return self._fork(program, _Setup(streams=[(here, there) for _, here, there in actions]))

    # ------------------------------------------------------------------------------------------ decisions

    def _find(
        self, name: Any, argv: list[Any], environment: Mapping[Any, Any], search: Mapping[Any, Any], cwd: Any
    ) -> _Program | None:
        """The script to fork for; None for what is started as ever. `search`: the environment with the PATH."""
        place = os.getcwd() if cwd is None else os.path.abspath(os.fsdecode(cwd))
        if not os.path.isdir(place):
            return None
        variables = {os.fsdecode(key): os.fsdecode(value) for key, value in environment.items()}
        words = [os.fsdecode(word) for word in argv]
        path = command.find(
            os.fsdecode(name), {os.fsdecode(key): os.fsdecode(value) for key, value in search.items()}, place
        )
        if path is None:
            return None
        line = command.unfold(path, words, variables, place)
        if line is None:
            return None
        program = _Program(path=path, words=words, line=line, environment=variables)
        try:
            module = command.Command(line).module
        except command.RefusedError as error:
            program.cold = str(error)
            return program
        if module == "pip":
            program.requirements = requirements.digest(line, place, variables)
            return program if program.requirements is not None else None
        return None if module in _ORDINARY else program

    # ------------------------------------------------------------------------------------------ the proxy

    def _fork(self, program: _Program, setup: _Setup) -> int:
        with warnings.catch_warnings():
            # Other threads don't matter here: the child calls nothing but the kernel.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid:
            return pid
        try:
            signal.set_wakeup_fd(-1)
            if program.requirements is not None:
                self._pip(program, setup)
            self._proxy(program, setup)
        except BaseException as error:
            os.write(2, ("%s: %s: %s\n" % (program.path, type(error).__name__, error)).encode())
        finally:
            os._exit(255)

    def _proxy(self, program: _Program, setup: _Setup) -> NoReturn:
        setup.do()
        if program.cold is not None:
            wire.send(self._door, {"cold": program.cold})
            self._execute(program, setup)
        kept, given = wire.pair(stream=True)
        link, end = wire.pair()
        for number in _catchable():
            signal.signal(number, lambda number, _: wire.send(link, {"signal": number}))
        launcher = command.is_launcher(program.line)
        group = os.getpgrp() if self._group is None else self._group
        wire.send(
            self._door,
            {"fork": "launcher" if launcher else "script", "leads": setup.session},
            [given.fileno(), end.fileno()],
        )
        given.close()
        end.close()
        inherited = [0, 1, 2, *_inheritable()]
        request, descriptors = request_of(
            program.path,
            program.line,
            [os.fsencode("%s=%s" % item) for item in program.environment.items()],
            inherited,
            group=group if setup.group is None else setup.group,
            leads=setup.session,
            spawns={"group": None, "installed": []} if launcher else None,
            door=self._door.fileno(),
        )
        try:
            wire.send_stream(kept, request, descriptors)
            answer, _ = wire.receive_stream(kept)
        except (EOFError, OSError):
            answer = {"refused": None}
        kept.close()
        if "refused" in answer:
            # Not through `link`: the keeper closes it as soon as the child that refused has ended.
            wire.send(self._door, {"cold": answer["refused"]})
            self._execute(program, setup)
        _close_all_but(link.fileno())
        if not setup.session:
            os.setpgid(0, 0)  # a signal to the script's group comes to the script, not twice
        while True:
            try:
                told, _ = wire.receive(link)
            except (EOFError, OSError):
                exit_like(signal.SIGKILL)  # the keeper is gone, and so is all else
            exit_like(told["ended"])

    def _execute(self, program: _Program, setup: _Setup) -> NoReturn:
        """What was to be started, itself."""
        for number in _catchable():
            signal.signal(number, signal.SIG_DFL)
        if self._group is not None and not setup.session and setup.group is None:
            os.setpgid(0, self._group)
        os.execve(program.path, program.words, program.environment)

    def _pip(self, program: _Program, setup: _Setup) -> NoReturn:
        """pip, unless it has installed just this before; its success is remembered."""
        setup.do()
        found = program.requirements
        if found in self._installed:
            os.write(1, b"Requirements are installed already: this warm host installed the same before\n")
            os._exit(0)
        child = os.fork()
        if child == 0:
            self._execute(program, setup)
        for number in _catchable():
            signal.signal(number, lambda number, _: os.kill(child, number))
        _, status = os.waitpid(child, 0)
        if status == 0:
            wire.send(self._door, {"installed": found})
        exit_like(status)


class _Program:
    def __init__(self, *, path: str, words: list[str], line: list[str], environment: dict[str, str]) -> None:
        self.path = path
        """The file that would be executed."""
        self.words = words
        self.line = line
        """The Python command line that this amounts to."""
        self.environment = environment
        self.cold: str | None = None
        """Why only a new process will do."""
        self.requirements: str | None = None
        """For pip: a digest of what it installs."""


def request_of(
    path: str,
    line: list[str],
    environment: list[bytes],
    inherited: Sequence[int],
    *,
    group: int,
    leads: bool,
    spawns: dict[str, Any] | None,
    door: int,
) -> tuple[dict[str, Any], list[int]]:
    """What a child of a preloaded interpreter is to become, and the descriptors that go with it.

    Everything that isn't an argument is as in this process. `group`: the process group to be in, 0 for one of
    its own. `leads`: in a session of its own. `spawns`: what a process is told that starts scripts itself.
    """
    import resource

    here = os.open(".", os.O_PATH | os.O_CLOEXEC)
    numbers = {getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")}
    limits = {}
    for number in numbers:
        try:
            limits[number] = list(resource.getrlimit(number))
        except ValueError:
            pass  # this kernel doesn't know it
    umask = os.umask(0)
    os.umask(umask)
    executable = line[0] if "/" in line[0] else command.find(line[0], dict(os.environ), os.getcwd())
    request = {
        "argv": line,
        "executable": executable or path,
        "name": os.path.basename(path),
        "environment": environment,
        "descriptors": list(inherited),
        "limits": limits,
        "umask": umask,
        "nice": os.getpriority(os.PRIO_PROCESS, 0),
        "cpus": list(os.sched_getaffinity(0)),
        "user": [os.getuid(), os.getgid()],
        "group": group,
        "leads": leads,
        "spawns": spawns,
    }
    return request, [*inherited, *([door] if spawns is not None else []), here]


def _close_all_but(kept: int) -> None:
    numbers = sorted({kept, *(int(name) for name in os.listdir("/proc/self/fd"))})
    os.closerange(0, kept)
    os.closerange(kept + 1, numbers[-1] + 1)


def _catchable() -> list[int]:
    return [
        number for number in range(1, 32) if number not in (signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD)
    ]


def exit_like(status: int) -> NoReturn:
    """End as the process did whose wait status this is."""
    if os.WIFSIGNALED(status):
        import resource

        number = os.WTERMSIG(status)
        _, hard = resource.getrlimit(resource.RLIMIT_CORE)
        resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        os._exit(128 + number)
    os._exit(os.WEXITSTATUS(status))


def install(door: int, settings: dict[str, Any]) -> None:
    """From now on this process starts Python scripts through the keeper, which `door` leads to."""
    _Spawner(door, settings).patch()
