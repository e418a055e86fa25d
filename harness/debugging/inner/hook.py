"""Runs in every Python of a debugged host, and acts in one: the user's process of the chosen rank.

Python 3.8 or newer, its standard library only. `sitecustomize` calls `start` before the first line of a cold
process; a process that is forked from a preloaded interpreter is given `start` by whoever forked it.

In a user's process nothing of ours stays where a script looks: our variables, our place on PYTHONPATH and on
sys.path go away first. So the children of that process are never taken for it.
"""

from __future__ import annotations

import json
import os
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

__all__ = ["Files", "Words", "command_line", "start"]

HOOK = "HARNESS_HOOK"
PLACE = "HARNESS_DEBUG_IO"
PROGRAM = "HARNESS_DEBUG_PROGRAM"

_POLL = 0.05
_NOBODY = 5.0
"""Seconds without `harness debug` after which nobody is waited for any more."""
_RANKS = ("RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK")
_INSTALLERS = frozenset(
    [
        "pip",
        "pip3",
        "conda",
        "torchrun",
        "accelerate",
        "deepspeed",
        "mpirun",
        "smddprun",
        "train",
        "serve",
        "pytest",
    ]
)
_MODULES = frozenset(
    [
        "pip",
        "ensurepip",
        "venv",
        "torch.distributed.run",
        "torch.distributed.launch",
        "accelerate.commands.launch",
    ]
)
_LONE = "bBdEhiIOPqsSuvVx?"
"""Options of Python that have no value and may stand together in one word."""


def command_line() -> list[str]:
    """How this process was started; `sys.argv` doesn't exist yet when sitecustomize runs."""
    with open("/proc/self/cmdline", "rb") as file:
        return [os.fsdecode(word) for word in file.read().split(b"\0")[:-1]]


class Words:
    """What a Python command line runs: a script, a module, or neither."""

    def __init__(self, argv: list[str]) -> None:
        self.script, self.module = _read(argv[1:])


def _read(words: list[str]) -> tuple[str | None, str | None]:
    """The script (its real path) and the module among the words after the interpreter."""
    while words:
        word = words.pop(0)
        if word == "-" or (word == "--" and not words):
            return None, None
        if word == "--":
            return os.path.realpath(words[0]), None
        if not word.startswith("-"):
            return os.path.realpath(word), None
        if word.startswith("--"):  # the one with a value, and those that end Python at once
            if word == "--check-hash-based-pycs":
                del words[:1]
            continue
        letters = word[1:].lstrip(_LONE)
        if not letters:
            continue
        kind, value = letters[0], letters[1:]
        if not value and words:
            value = words.pop(0)
        if kind == "c":
            return None, None
        if kind == "m":
            # mpi4py runs what comes after it, and reports who fails.
            return _read(words) if value == "mpi4py" else (None, value)
    return None, None


class Files:
    """The directory that the host shares with the harness."""

    def __init__(self, place: str) -> None:
        self.place = place
        with open(os.path.join(place, "config.json"), encoding="utf-8") as file:
            self.config: dict[str, Any] = json.load(file)
        self._paused: Any | None = None

    def path(self, name: str) -> str:
        return os.path.join(self.place, name)

    @staticmethod
    def say(sentence: str) -> None:
        """One sentence into the log of the job."""
        try:
            os.write(2, ("harness debug: %s\n" % sentence).encode("utf-8", "replace"))
        except OSError:
            pass  # nobody reads it

    def give_up(self, sentence: str) -> NoReturn:
        """End the process before its first line. A sentence that begins with the name of one of Python's
        exceptions becomes the job's failure reason as well."""
        self.say(sentence)
        os._exit(1)

    def go(self) -> None:
        """Let the other ranks begin."""
        os.close(os.open(self.path("go"), os.O_WRONLY | os.O_CREAT, 0o666))

    def attended(self) -> bool:
        """Whether `harness debug` lives: it holds a lock, which goes with it however it ends."""
        import fcntl

        with open(self.path("attended"), "r+b") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return True
            return False

    def pause(self) -> None:
        """Time limits stand still as long as this process lives or until `resume`."""
        if self._paused is None:
            import fcntl

            self._paused = open(self.path("paused"), "r+b")  # noqa: SIM115
            fcntl.lockf(self._paused, fcntl.LOCK_EX)

    def resume(self) -> None:
        if self._paused is not None:
            self._paused.close()
            self._paused = None

    def claim(self, rank: int) -> bool:
        """Whether this process is the first that wants to be that rank's."""
        try:
            os.close(os.open(self.path("claim-%d" % rank), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        except FileExistsError:
            return False
        return True

    def wait(self, until: Callable[[], bool]) -> str:
        """Until that is true: "". Else why not: nobody attends any more, or it takes too long."""
        limit = float(self.config["attach_timeout"])
        begin = alone = time.monotonic()
        while not until():
            now = time.monotonic()
            if now - begin > limit:
                return "nothing was attached within %g s" % limit
            if self.attended():
                alone = now
            elif now - alone > _NOBODY:
                return "`harness debug` was ended"
            time.sleep(_POLL)
        return ""

    @staticmethod
    def on_uncaught(stand: Callable[[BaseException, Any], None]) -> None:
        """Call that when an exception ends this process, after its traceback went to the log.

        A script may set an excepthook of its own: the audit event comes before whichever there is. And who
        calls an excepthook without the event, such as an interactive console, ends nothing.
        """
        original = sys.excepthook
        owner = os.getpid()
        ends: list[BaseException] = []
        stood: list[BaseException] = []

        def once(value: BaseException, traceback: Any) -> None:
            if not stood and os.getpid() == owner and isinstance(value, Exception):
                stood.append(value)
                stand(value, traceback)

        def hook(kind: Any, value: BaseException, traceback: Any) -> None:
            original(kind, value, traceback)
            sys.stderr.flush()
            if ends and ends[0] is value:
                once(value, traceback)

        def audit(event: str, arguments: Any) -> None:
            if event == "sys.excepthook" and not ends:
                ends.append(arguments[2])
                if arguments[0] is not hook:
                    once(arguments[2], arguments[3])

        sys.excepthook = hook
        sys.addaudithook(audit)


def start(argv: list[str] | None = None) -> None:
    """Begin to debug, if this is the process for it. Called once, before the first line of the user's.

    `argv`: the command line that this process stands for, where it isn't its own.
    """
    place = os.environ.get(PLACE)
    if not place:
        return
    words = Words(command_line() if argv is None else list(argv))
    if words.script is None and words.module is None:
        return
    files = Files(place)
    config = files.config
    program: str = config["program"] or ""
    named = program.endswith(".py")
    if not (_is_program(words, program) if named else _may_be_program(words, program)):
        return
    rank = _rank(config)
    if not named and not files.claim(rank):
        return
    _leave_no_trace()
    chosen = config["rank"]
    if chosen is not None and rank != chosen:
        if config["wait"]:
            _await_go(files, rank)
        return
    if config["mode"] == "debugpy":
        _load("client").begin(files, rank, words.script)
    else:
        _load("terminal").begin(files, rank, words.script)


def _load(name: str) -> Any:
    """A module beside this one, under a name that no script uses."""
    from importlib.util import module_from_spec, spec_from_file_location

    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), name + ".py")
    spec = spec_from_file_location("_harness_debug_" + name, path)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _code() -> str:
    return os.path.realpath(os.path.join(os.environ.get("SAGEMAKER_BASE_DIR", "/opt/ml"), "code"))


def _is_program(words: Words, program: str) -> bool:
    """Whether this is the entry point itself."""
    if words.module is not None:
        return words.module == program[:-3]
    return words.script == os.path.realpath(os.path.join(_code(), program))


def _may_be_program(words: Words, program: str) -> bool:
    """A shell script, a package or an image's own program: any Python that isn't known for something else."""
    if words.module is not None:
        return words.module == program or not (program or words.module in _MODULES)
    assert words.script is not None
    if program:
        return words.script.startswith(_code() + os.sep)
    if os.path.basename(words.script) in _INSTALLERS:
        return False
    try:
        with open(words.script, "rb") as file:
            return b"sagemaker_training" not in file.read(4096)
    except OSError:
        return False


def _rank(config: dict[str, Any]) -> int:
    """The global rank: its launcher's word, else the place of the host among the hosts."""
    for name in _RANKS:
        value = os.environ.get(name, "")
        if value.isdigit():
            return int(value)
    return int(config["host_rank"])


def _leave_no_trace() -> None:
    for name in (HOOK, PLACE, PROGRAM):
        os.environ.pop(name, None)
    own = os.path.join(os.path.dirname(os.path.abspath(__file__)), "site")
    if "PYTHONPATH" in os.environ:
        rest = [place for place in os.environ["PYTHONPATH"].split(":") if place != own]
        if rest:
            os.environ["PYTHONPATH"] = ":".join(rest)
        else:
            del os.environ["PYTHONPATH"]
    sys.path[:] = [place for place in sys.path if place != own]


def _await_go(files: Files, rank: int) -> None:
    """Stand before the first line until the chosen rank begins: else a rendezvous would time out."""
    why = files.wait(lambda: os.path.exists(files.path("go")))
    if why:
        files.say("rank %d goes on: %s" % (rank, why))
