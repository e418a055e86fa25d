"""In a fork of a preloaded interpreter: become the process that was asked for.

What is refused here, with the reason, is started the ordinary way instead: every change waits until nothing
can be refused any more.
"""

from __future__ import annotations

import _io
import gc
import os
import resource
import sys
import time

from . import command, program, wire
from .agreed import PACKAGE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, NoReturn

    from .zygote import Zygote

__all__ = ["become", "customise", "hide", "kind", "search_path"]

_PLACE = sys.modules[PACKAGE]

_STARTS = (
    *(b"PYTHON", b"LD_", b"LC_", b"MALLOC_", b"GLIBC_TUNABLES"),
    *(b"OMP_", b"GOMP_", b"KMP_", b"MKL_", b"OPENBLAS_", b"BLIS_", b"NUMEXPR_", b"VECLIB_", b"DNNL_"),
    *(b"ONEDNN_", b"TORCH_", b"PYTORCH_", b"ATEN_"),
)
"""Variables that C libraries read when they are loaded, unseen by `preload.Reads`."""
_LATER = (b"TORCH_NCCL_", b"TORCH_DISTRIBUTED_", b"TORCH_GLOO_", b"TORCH_ELASTIC", b"PYTHONBREAKPOINT")
_NAMES = frozenset({b"LANG", b"LANGUAGE"})
_HANDLED = frozenset({b"PYTHONPATH", b"PYTHONUNBUFFERED", b"OMP_NUM_THREADS", b"TZ", b"TMPDIR", b"PATH"})
"""Set right here; and PATH, to which the toolkit adds: modules only look there for programs."""
_THREADS = b"OMP_NUM_THREADS"
_SITE = ("sitecustomize", "usercustomize")
_BLAS_SETTERS = (
    *("openblas_set_num_threads", "openblas_set_num_threads64_"),
    *("scipy_openblas_set_num_threads", "scipy_openblas_set_num_threads64_"),
)
_DOOR = 250
"""The descriptor, in a process that starts scripts, that leads to the keeper."""


def hide(names: Iterable[str]) -> None:
    """Forget modules that only we imported: the user's import their own, and nobody sees ours."""
    for name in {*names, *(name for name in sys.modules if name.partition(".")[0] == PACKAGE)}:
        sys.modules.pop(name, None)


def kind(descriptor: int) -> tuple[int, bool]:
    """What the stream that Python makes for a descriptor depends on."""
    return os.fstat(descriptor).st_mode & 0o170000, os.isatty(descriptor)


def search_path(base: list[str], pythonpath: str | None) -> list[str]:
    """sys.path as `site` leaves it: PYTHONPATH's entries in front, each directory once."""
    found = [os.path.abspath(entry) for entry in pythonpath.split(os.pathsep)] if pythonpath else []
    return list(dict.fromkeys([*found, *base]))


def become(zygote: Zygote, connection: Any) -> list[str]:
    """Read the request, and come back as the process that it asks for, with its command line; or refuse, and end."""
    try:
        wanted, descriptors = wire.receive_stream(connection)
    except EOFError:
        os._exit(0)  # who asked is gone
    request = _Request(zygote, connection, wanted, descriptors)
    try:
        return request.take()
    except command.RefusedError as error:
        request.refuse(str(error))
    except BaseException as error:
        request.refuse("the preloaded interpreter failed (%s: %s)" % (type(error).__name__, error))


class _Request:
    """One command to become, with all that a new process would have from the one that starts it."""

    def __init__(
        self, zygote: Zygote, connection: Any, request: dict[str, Any], descriptors: list[int]
    ) -> None:
        self._zygote = zygote
        self._connection = connection
        self._request = request
        self._descriptors = descriptors
        self._argv: list[str] = request["argv"]
        self._environment: dict[bytes, bytes] = dict(entry.split(b"=", 1) for entry in request["environment"])

    def take(self) -> list[str]:
        zygote, request, environment = self._zygote, self._request, self._environment
        words = command.Command(self._argv)
        executable = request["executable"]
        if not command.is_same_python(executable):
            raise command.RefusedError("it is another Python")
        self._check_environment()
        self._check_customisation()
        self._process()
        os.fchdir(self._descriptors[-1])
        try:
            zygote.program.set(script=words.script, module=words.module)
        except program.UnsuitableError as error:
            raise command.RefusedError(str(error)) from error
        threads = environment.get(_THREADS)
        if threads != zygote.started.get(_THREADS):
            self._set_threads(threads)
        self._place_descriptors()
        self._set_environment()
        self._set_python(words, executable)
        self._renew_chance()
        zygote.program.show(
            [os.fsencode(word) for word in self._argv], request["environment"], os.fsencode(request["name"])
        )
        if request["spawns"]:
            self._let_spawn()
        wire.send_stream(self._connection, {"ok": os.getpid()})
        self._connection.close()
        return self._argv

    def refuse(self, why: str) -> NoReturn:
        try:
            wire.send_stream(self._connection, {"refused": why})
        finally:
            os._exit(0)

    # ------------------------------------------------------------------------------------ what is refused

    def _check_environment(self) -> None:
        zygote, now = self._zygote, self._environment
        reads = zygote.reads.found
        for key in {*zygote.started, *now, *reads}:
            if key in _HANDLED:
                continue
            counts = key in reads or key in _NAMES or (key.startswith(_STARTS) and not key.startswith(_LATER))
            if counts and zygote.started.get(key) != now.get(key):
                raise command.RefusedError(
                    "%s is not as it was when the modules were imported" % os.fsdecode(key)
                )

    def _check_customisation(self) -> None:
        """A sitecustomize of the run's own PYTHONPATH would have run; the debugger's is called instead."""
        hook = os.fsdecode(self._environment.get(b"HARNESS_HOOK", b""))
        path = self._environment.get(b"PYTHONPATH")
        for entry in search_path([], None if path is None else os.fsdecode(path)):
            if entry in self._zygote.path or (hook and os.path.dirname(entry) == os.path.dirname(hook)):
                continue
            for name in _SITE:
                if os.path.isfile(os.path.join(entry, name + ".py")) or os.path.isdir(
                    os.path.join(entry, name)
                ):
                    raise command.RefusedError("there is a %s in %s" % (name, entry))

    def _set_threads(self, threads: bytes | None) -> None:
        """What OMP_NUM_THREADS would have done when the libraries were loaded; torchrun sets it."""
        text = "" if threads is None else os.fsdecode(threads).strip()
        if not text.isdigit() or int(text) < 1:
            raise command.RefusedError("OMP_NUM_THREADS is not as it was when the modules were imported")
        torch = sys.modules.get("torch")
        if torch is not None:
            torch.set_num_threads(int(text))
        else:
            with open("/proc/self/maps", "rb") as file:
                if b"gomp" in file.read():
                    raise command.RefusedError(
                        "OMP_NUM_THREADS is not as it was when the modules were imported"
                    )
        for library in program.loaded("openblas"):
            for name in _BLAS_SETTERS:
                setter = getattr(library, name, None)
                if setter is not None:
                    setter(int(text))

    # --------------------------------------------------------------------------------------- the process

    def _process(self) -> None:
        request = self._request
        for number, limits in request["limits"].items():
            if resource.getrlimit(number) != tuple(limits):
                resource.setrlimit(number, tuple(limits))
        if request["leads"]:
            os.setsid()
        elif os.getpgrp() != request["group"]:
            os.setpgid(0, request["group"])
        os.umask(request["umask"])
        nice = os.getpriority(os.PRIO_PROCESS, 0)
        if nice != request["nice"]:
            os.setpriority(os.PRIO_PROCESS, 0, request["nice"])
        if set(request["cpus"]) != os.sched_getaffinity(0):
            os.sched_setaffinity(0, request["cpus"])
        if (os.getuid(), os.getgid()) != tuple(request["user"]):
            raise command.RefusedError("it runs as another user")

    def _place_descriptors(self) -> None:
        """Put what came along where it belongs, and the connection out of its way."""
        connection = self._connection
        zygote, targets, received = self._zygote, self._request["descriptors"], self._descriptors
        if not {0, 1, 2} <= set(targets):
            raise command.RefusedError("a standard stream is closed")
        ours = {connection.fileno(), zygote.control.fileno(), *received}
        for target in targets:
            if target > 2 and target not in ours:
                try:
                    os.fstat(target)
                except OSError:
                    continue
                raise command.RefusedError("descriptor %d is in use by an imported module" % target)
        base = max(*ours, *targets, _DOOR) + 1
        self._connection = wire.wrap(os.dup2(connection.fileno(), base, inheritable=False))
        high = [
            os.dup2(number, base + place, inheritable=False) for place, number in enumerate(received, start=1)
        ]
        connection.detach()
        zygote.control.detach()
        for number in ours:
            os.close(number)
        for number, target in zip(high, targets):
            os.dup2(number, target, inheritable=True)
        if self._request["spawns"]:
            os.dup2(high[len(targets)], _DOOR, inheritable=False)
        for number in high:
            os.close(number)

    # ------------------------------------------------------------------------------------ the interpreter

    def _set_environment(self) -> None:
        zygote, now = self._zygote, self._environment
        for key in list(os.environb):
            del os.environb[key]
        for key, value in now.items():
            os.environb[key] = value
        for key, changed in zygote.changed.items():
            if now.get(key) != zygote.started.get(key):
                continue
            if changed is not None:
                os.environb[key] = changed
            elif key in now:
                del os.environb[key]
        if now.get(b"TZ") != zygote.started.get(b"TZ"):
            time.tzset()

    def _set_python(self, words: command.Command, executable: str) -> None:
        zygote = self._zygote
        # What was frozen (see `Zygote.serve`) is never collected, and a script's own names must be.
        old = sys.modules["__main__"]
        main = type(sys)("__main__")
        main.__dict__.update(old.__dict__)
        sys.modules["__main__"] = main
        path = self._environment.get(b"PYTHONPATH")
        entries = search_path(zygote.base, None if path is None else os.fsdecode(path))
        front = [entry for before, entry in zygote.added if before and entry not in entries]
        back = [entry for before, entry in zygote.added if not before and entry not in entries]
        sys.path[:] = [*front, *entries, *back]
        first = words.script if words.script is not None else "-m"
        sys.argv[:] = [first, *words.arguments]
        if hasattr(sys, "orig_argv"):
            sys.orig_argv[:] = self._argv
        if sys.executable != executable:
            sys.executable = sys._base_executable = executable  # type: ignore[attr-defined]
            spawn = sys.modules.get("multiprocessing.spawn")
            if spawn is not None:
                spawn.set_executable(executable)
        unbuffered = words.unbuffered or bool(self._environment.get(b"PYTHONUNBUFFERED"))
        for number, name in enumerate(("stdin", "stdout", "stderr")):
            if kind(number) != zygote.streams[number] or unbuffered != zygote.unbuffered:
                _open_stream(number, name, unbuffered)
        if zygote.collects:
            gc.unfreeze()

    def _renew_chance(self) -> None:
        """What modules took from chance, the clock, the process or its directory when they were imported.

        `random` seeds itself after a fork.
        """
        modules: dict[str, Any] = sys.modules
        tempfile = modules.get("tempfile")
        if tempfile is not None:
            tempfile.tempdir = None
            tempfile._name_sequence = None
        numpy = modules.get("numpy.random")
        if numpy is not None:
            numpy.seed()
        torch = modules.get("torch")
        if torch is not None:
            torch.default_generator.seed()
        process = modules.get("multiprocessing.process")
        if process is not None:
            process.ORIGINAL_DIR = os.getcwd()
            process.current_process()._config["authkey"] = process.AuthenticationString(os.urandom(32))
        for lock, value in self._zygote.semaphores:
            # Its memory is shared with all forks, and a run that was killed may have held it.
            old = lock._semlock
            lock._semlock = type(old)(old.kind, value, old.maxvalue, lock._make_name(), True)
            lock._make_methods()
        threading = modules.get("threading")
        if threading is not None:
            threading.main_thread()._set_native_id()
        logging = modules.get("logging")
        if logging is not None:
            whole = isinstance(logging._startTime, int)
            logging._startTime = time.time_ns() if whole else time.time()

    def _let_spawn(self) -> None:
        before = len(sys.modules)
        sys.modules[PACKAGE] = _PLACE
        spawning = __import__(PACKAGE + ".spawning", fromlist=["install"])
        # Only the new ones are looked at: whoever looks at all of them copies the page of each.
        new = [name for name, _ in zip(reversed(sys.modules), range(len(sys.modules) - before))]
        for name in new:
            if name.partition(".")[0] == PACKAGE:
                del sys.modules[name]
        spawning.install(_DOOR, self._request["spawns"])


def _open_stream(descriptor: int, name: str, unbuffered: bool) -> None:
    """sys.stdin and its like, as `create_stdio` of CPython makes them."""
    old = getattr(sys, name)
    writes = descriptor > 0
    plain = unbuffered and writes
    buffer: Any = _io.open(descriptor, "wb" if writes else "rb", 0 if plain else -1, closefd=False)
    raw = buffer if plain else buffer.raw
    raw.name = "<%s>" % name
    terminal = raw.isatty()
    lines = not unbuffered and (terminal or (descriptor == 2 and sys.version_info >= (3, 9)))
    stream: Any = _io.TextIOWrapper(
        buffer,
        encoding=old.encoding,
        errors=old.errors,
        newline="\n",
        line_buffering=lines,
        write_through=unbuffered,
    )
    stream.mode = "w" if writes else "r"
    setattr(sys, name, stream)
    setattr(sys, "__%s__" % name, stream)


def customise(argv: list[str]) -> None:
    """What the debugger's sitecustomize does in a new process."""
    path = os.environ.get("HARNESS_HOOK")
    if not path:
        return
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("_harness_debug", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    module.start(argv)
