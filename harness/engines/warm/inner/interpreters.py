"""The preloaded interpreters of a host: one with the script's modules, and its branch with the toolkit's."""

from __future__ import annotations

import os
import re
import signal
import sys
import time

from . import command, wire
from .agreed import CONTROL, PADDING, placeholder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

__all__ = ["Interpreters", "tools_of"]

_UNFIT = {
    "tensorflow": "TensorFlow starts threads",
    "jax": "JAX starts threads",
    "jaxlib": "JAX starts threads",
    "cupy": "CuPy may touch CUDA",
    "pycuda": "PyCUDA may touch CUDA",
    "cudf": "RAPIDS touches CUDA",
    "cuml": "RAPIDS touches CUDA",
    "rmm": "RAPIDS touches CUDA",
    "tensorrt": "TensorRT may touch CUDA",
    "pyopencl": "OpenCL doesn't outlive a fork",
    "horovod": "MPI doesn't outlive a fork",
    "mpi4py": "MPI doesn't outlive a fork",
    "ray": "Ray starts threads and processes",
    "grpc": "gRPC doesn't outlive a fork",
    "smdistributed": "it begins its communication when it is imported",
    "torch_xla": "XLA starts threads",
    "torch_neuron": "it may touch the accelerator",
    "torch_neuronx": "it may touch the accelerator",
    "deepspeed": "DeepSpeed may touch CUDA",
    "vllm": "vLLM may touch CUDA",
}
"""Modules that are never preloaded: a process that has imported them must not be forked."""

_CONTROL_FD = 200
_PADDING_SIZE = 120 * 1024
"""A string of the environment may have 128 KiB."""
_MOST_STARTS = 4
_LAUNCHER = "torch.distributed.run"
_IMPORT = re.compile(rb"^(?:from\s+([\w.]+)\s+import|import\s+([\w.]+))", re.MULTILINE)


class Interpreter:
    """One of them, as the keeper sees it."""

    def __init__(self, control: Any) -> None:
        self.control = control
        self.pid: int | None = None
        self.ready = False
        self.busy = False
        """It imports something more, and doesn't answer meanwhile."""
        self.directories: dict[str, Any] = {}


class Interpreters:
    """Starts them, and starts them anew when a module made one unfit or killed it."""

    def __init__(
        self,
        preload: Sequence[str],
        tools: tuple[Sequence[str], Sequence[str]],
        *,
        patience: float,
        changed: Callable[[], None],
    ) -> None:
        """`tools`: modules of the toolkit, and directories to find them in. `changed`: called when `settled`
        may have changed."""
        self._wanted = list(dict.fromkeys(preload))
        self._tools = tools
        self._patience = patience
        self._changed = changed
        self._starts = 0
        self._importing: tuple[str, float] | None = None
        self._deadline = time.monotonic() + patience
        self._branched = False
        self.script: Interpreter | None = None
        self.tools: Interpreter | None = None
        self.preloaded: list[str] = []
        self.excluded: dict[str, str] = {}
        self.why: str | None = None
        """Why there is none, for good."""
        self._unfit_names = {
            name: reason
            for name in self._wanted
            if (reason := _UNFIT.get(name.partition(".")[0])) is not None
        }

    # ------------------------------------------------------------------------------------------ what there is

    @property
    def settled(self) -> bool:
        """Whether nothing more is to be awaited."""
        if self.why is not None:
            return True
        return bool(
            self.script is not None and self.script.ready and (self.tools is None or self.tools.ready)
        )

    @property
    def pids(self) -> set[int]:
        return {each.pid for each in (self.script, self.tools) if each is not None and each.pid}

    def sockets(self) -> list[Interpreter]:
        return [each for each in (self.script, self.tools) if each is not None]

    def usable(self, kind: str) -> tuple[Interpreter | None, str]:
        """The interpreter for a "script" or for "tools"; or why there is none."""
        found = self.script if kind == "script" else self.tools
        if self.why is not None:
            return None, self.why
        if found is None or not found.ready:
            return None, "the preloaded interpreter isn't ready"
        if found.busy:
            return None, "the preloaded interpreter is importing"
        if kind == "script" and _listing(found.directories) != found.directories:
            return None, "packages were installed since the modules were imported"
        return found, ""

    @property
    def stale(self) -> bool:
        """Whether packages came, went or changed since the imports."""
        found = self.script
        return bool(found and found.ready and _listing(found.directories) != found.directories)

    # ----------------------------------------------------------------------------------------------- starting

    def start(self) -> None:
        """Begin anew, without what turned out to be unfit."""
        self.stop()
        self._starts += 1
        self.preloaded = []
        self.excluded = dict(self._unfit_names)
        if self._starts > _MOST_STARTS:
            self._give_up("the preloaded interpreter died %d times" % _MOST_STARTS)
            return
        ours, theirs = wire.pair()
        pid = os.fork()
        if pid == 0:
            self._execute(theirs.fileno())
        theirs.close()
        self._branched = False
        self._deadline = time.monotonic() + self._patience
        self.script = Interpreter(ours)
        self.script.pid = pid
        names = [name for name in self._wanted if name not in self.excluded]
        wire.send(ours, {"pythonpath": os.environ.get("PYTHONPATH"), "preload": names})

    def _execute(self, control: int) -> None:
        try:
            os.setpgid(0, 0)
            null = os.open("/dev/null", os.O_RDONLY)
            os.dup2(null, 0)
            os.dup2(control, _CONTROL_FD)
            os.chdir("/")
            os.umask(0o022)
            for name in ("SIGINT", "SIGCHLD", "SIGPIPE", "SIGXFSZ"):
                signal.signal(getattr(signal, name), signal.SIG_DFL)
            here = os.path.dirname(os.path.abspath(__file__))
            environment = {
                **os.environ,
                "PYTHONPATH": os.path.join(here, "site"),
                CONTROL: str(_CONTROL_FD),
                PADDING: "-" * _PADDING_SIZE,
            }
            os.execve(sys.executable, [sys.executable, placeholder()], environment)
        finally:
            os._exit(126)

    def stop(self) -> None:
        """Kill them; whoever reaps children finds them."""
        for each in self.sockets():
            each.control.close()
            if each.pid:
                try:
                    os.kill(each.pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass  # it has ended, and was reaped
        self.script = self.tools = self._importing = None

    def _give_up(self, why: str) -> None:
        self.stop()
        self.why = why
        self._changed()

    # ------------------------------------------------------------------------------------- what they tell

    def told(self, which: Interpreter, message: dict[str, Any]) -> None:
        """Of an import, or that it is ready; "child" is not for us."""
        if "unsuitable" in message:
            self._give_up(message["unsuitable"])
        elif "importing" in message:
            self._importing = message["importing"], time.monotonic() + self._patience
        elif "imported" in message:
            if which is self.script:
                self.preloaded.append(message["imported"])
        elif "excluded" in message:
            if which is self.script:
                self.excluded[message["excluded"]] = message["why"]
        elif "unsafe" in message:
            self._unfit(which, message["unsafe"], message["why"])
        elif "loaded" in message:
            which.busy = False
        elif "ready" in message:
            self._importing = None
            which.ready = True
            self._starts = 0
            which.directories = _listing(message["ready"])
            if which is self.script:
                self._branch()
            self._changed()
        elif "pid" in message:
            which.pid = message["pid"]

    def _branch(self) -> None:
        assert self.script is not None
        ours, theirs = wire.pair()
        self.tools = Interpreter(ours)
        names, beside = self._tools
        wire.send(
            self.script.control,
            {"branch": ["subprocess", *names], "beside": list(beside)},
            [theirs.fileno()],
        )
        theirs.close()

    def _unfit(self, which: Interpreter, name: str, why: str) -> None:
        if which is self.tools:
            # Without the toolkit's modules then: they take their time in each run.
            if name not in self._tools[0]:
                self._give_up("%s: %s" % (name, why))
                return
            self._tools = [each for each in self._tools[0] if each != name], self._tools[1]
        else:
            self._unfit_names[name] = why
        self._starts -= 1  # each time one module less: that ends by itself
        self.start()

    def ended(self, which: Interpreter, status: int | None = None) -> None:
        """It is dead, or its end of the socket is closed."""
        if which is self.tools and self.script is not None and self.script.ready:
            which.control.close()
            self.tools = None
            if self._importing is None:
                self._branch()
                return
        name = self._importing[0] if self._importing is not None else None
        if name is not None:
            self._unfit(which, name, "importing it ended the interpreter")
        else:
            self.start()

    def idle(self) -> None:
        """There is time for what torchrun needs."""
        tools = self.tools
        if (
            not self._branched
            and tools is not None
            and tools.ready
            and any(name.partition(".")[0] == "torch" for name in self.preloaded)
        ):
            self._branched = tools.busy = True
            wire.send(tools.control, {"load": [_LAUNCHER]})

    @property
    def next_look(self) -> float | None:
        """When `look` has something to see."""
        return None if self._importing is None else self._importing[1]

    def look(self) -> None:
        """Whether an import takes too long."""
        if self._importing is None or time.monotonic() < self._importing[1]:
            return
        name = self._importing[0]
        which = self.script if self.script is not None and not self.script.ready else self.tools
        assert which is not None
        self._unfit(which, name, "importing it takes longer than %g s" % self._patience)


def _listing(paths: Sequence[str] | Mapping[str, Any]) -> dict[str, Any]:
    """Directory → its time of change, and what is in it; the names only where the time differs from before."""
    found: dict[str, Any] = {}
    for path in paths:
        before = paths[path] if isinstance(paths, dict) else None
        try:
            changed = os.stat(path).st_mtime_ns
            if before is not None and before[0] == changed:
                found[path] = before
                continue
            with os.scandir(path) as entries:
                names = {entry.name: entry.inode() for entry in entries if entry.name != "__pycache__"}
        except OSError:
            continue
        if before is not None and before[1] == names:
            before[0] = changed
            found[path] = before
        else:
            found[path] = [changed, names]
    return found


def tools_of(argv: Sequence[str], environment: Mapping[str, str]) -> tuple[list[str], list[str]] | None:
    """Modules that the toolkit `argv` imports, and where to find them; None when it is no toolkit in Python."""
    path = command.find(argv[0], environment, "/") if argv else None
    line = None if path is None else command.unfold(path, list(argv), environment, "/")
    if path is None or line is None:
        return None
    try:
        script = command.Command(line).script
    except command.Refused:
        return None
    if script is None:
        return None
    folder = os.path.dirname(script)
    if os.path.basename(script) == "__main__.py" and os.path.isfile(os.path.join(folder, "_trainer.py")):
        # Ours, for hosts without an image: harness/contract/toolkit.
        return [os.path.basename(folder) + "._trainer", "json", "select", "signal"], [os.path.dirname(folder)]
    if command.is_same_python(path):
        return None  # a script of the user's
    try:
        with open(script, "rb") as file:
            text = file.read(1 << 16)
    except OSError:
        return None
    names = [(first or second).decode() for first, second in _IMPORT.findall(text)]
    framework = environment.get("SAGEMAKER_TRAINING_MODULE", "").partition(":")[0]
    return [name for name in dict.fromkeys([*names, framework]) if name], []
