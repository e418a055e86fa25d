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

    def __init__(self, control: Any, pid: int | None = None) -> None:
        self.control = control
        self.pid = pid
        self.importing: tuple[str, float] | None = None
        """The module, and until when that may take."""
        self.ready = False
        self.directories: dict[str, Any] = {}
        """Where its modules come from, as it was after they were imported."""


class Interpreters:
    """Starts them, and starts them anew when a module made one unfit or killed it.

    The one for scripts is the trunk. That for tools branches off it, before anything is imported if it can, or
    else when all is: AWS's toolkit imports torch as well. What torchrun is made of comes when nobody waits.
    """

    def __init__(
        self,
        preload: Sequence[str],
        tools: tuple[Sequence[str], Sequence[str]] | None,
        *,
        patience: float,
        why: str | None,
        changed: Callable[[], None],
    ) -> None:
        """`tools`: see `tools_of`. `patience`: seconds that one module may take. `why`: why there shall be no
        preloaded interpreter. `changed`: called when `settled` may have changed."""
        self._wanted = list(dict.fromkeys(preload))
        self._tools = list(tools[0]) if tools else []
        self._beside = list(tools[1]) if tools else []
        self._early = tools is None or bool(tools[1])
        self._patience = patience
        self._changed = changed
        self._starts = 0
        self.script: Interpreter | None = None
        self.tools: Interpreter | None = None
        self.launcher: Interpreter | None = None
        """Has what torchrun is made of; a luxury."""
        self._launcher_tried = False
        self.preloaded: list[str] = []
        self.excluded: dict[str, str] = {}
        """Module → why it isn't preloaded."""
        self.why = why
        """Why there is none, for good."""
        self._unfit = {
            name: reason
            for name in self._wanted
            if (reason := _UNFIT.get(name.partition(".")[0])) is not None
        }

    # ------------------------------------------------------------------------------------------ what there is

    @property
    def settled(self) -> bool:
        """Whether nothing more is to be awaited."""
        both = (self.script, self.tools)
        return self.why is not None or all(each is not None and each.ready for each in both)

    def all(self) -> list[Interpreter]:
        return [each for each in (self.script, self.tools, self.launcher) if each is not None]

    @property
    def pids(self) -> set[int]:
        return {each.pid for each in self.all() if each.pid}

    def usable(self, kind: str) -> tuple[Interpreter | None, str]:
        """The interpreter for a "script", for "tools" or for a "launcher"; or why there is none."""
        found = self.tools if kind == "tools" else self.script
        if kind == "launcher" and self.launcher is not None and self.launcher.ready:
            found = self.launcher
        if self.why is not None:
            return None, self.why
        if found is None or not found.ready:
            return None, "the preloaded interpreter isn't ready"
        if kind == "script" and self.stale:
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
        if self.why is not None:
            return
        self._starts += 1
        self.preloaded = []
        self.excluded = dict(self._unfit)
        if self._starts > _MOST_STARTS:
            self._give_up("the preloaded interpreter died %d times" % _MOST_STARTS)
            return
        ours, theirs = wire.pair()
        pid = os.fork()
        if pid == 0:
            self._execute(theirs.fileno())
        theirs.close()
        self._launcher_tried = False
        self.script = Interpreter(ours, pid)
        wire.send(ours, {"pythonpath": os.environ.get("PYTHONPATH")})
        if self._early:
            self.tools = self._branch(self.script, ["subprocess", *self._tools], self._beside)
        self._load(self.script, [name for name in self._wanted if name not in self.excluded])

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

    def _load(self, which: Interpreter, names: Sequence[str], beside: Sequence[str] = ()) -> None:
        # Also an interpreter that doesn't come to its first import must not be awaited for ever.
        which.importing = "", time.monotonic() + self._patience
        wire.send(which.control, {"load": list(names), "beside": list(beside)})

    def _branch(self, trunk: Interpreter, names: Sequence[str], beside: Sequence[str]) -> Interpreter:
        ours, theirs = wire.pair()
        wire.send(trunk.control, {"branch": True}, [theirs.fileno()])
        theirs.close()
        branch = Interpreter(ours)
        self._load(branch, names, beside)
        return branch

    def stop(self) -> None:
        """Kill them; whoever reaps children finds them."""
        for each in self.all():
            each.control.close()
            if each.pid:
                try:
                    os.kill(each.pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass  # it has ended, and was reaped
        self.script = self.tools = self.launcher = None

    def _give_up(self, why: str) -> None:
        self.stop()
        self.why = why
        self._changed()

    # ------------------------------------------------------------------------------------- what they tell

    def told(self, which: Interpreter, message: dict[str, Any]) -> None:
        """Of an import, or that it is ready."""
        if "unsuitable" in message:
            self._give_up(message["unsuitable"])
        elif "pid" in message:
            which.pid = message["pid"]
        elif "importing" in message:
            which.importing = message["importing"], time.monotonic() + self._patience
        elif "unsafe" in message:
            self._do_without(which, message["unsafe"], message["why"])
        elif "ready" in message:
            which.importing = None
            which.ready = True
            which.directories = _listing(message["ready"])
            if which is self.script and self.tools is None:
                self.tools = self._branch(which, ["subprocess", *self._tools], self._beside)
            if self.settled:
                self._starts = 0
                self._changed()
        elif which is self.script:
            if "imported" in message:
                self.preloaded.append(message["imported"])
            elif "excluded" in message:
                self.excluded[message["excluded"]] = message["why"]

    def ended(self, which: Interpreter) -> None:
        """It is dead, or its end of the socket is closed."""
        if which not in self.all():
            return
        if which.importing is not None:
            self._do_without(which, which.importing[0], "importing it ended the interpreter")
        elif which is self.launcher:
            self._drop_launcher()
        else:
            self.start()

    def _do_without(self, which: Interpreter, name: str, why: str) -> None:
        """A module makes an interpreter unfit: begin anew without it."""
        if which is self.launcher:
            self._drop_launcher()
            return
        if which is self.script and name:
            self._unfit[name] = why
            self._starts -= 1  # each time there is one module less: that ends by itself
        elif name in self._tools:
            # Without the toolkit's modules they take their time in each run.
            self._tools.remove(name)
            self._starts -= 1
        self.start()

    def _drop_launcher(self) -> None:
        launcher, self.launcher = self.launcher, None
        if launcher is not None:
            launcher.control.close()
            if launcher.pid:
                try:
                    os.kill(launcher.pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass  # it has ended, and was reaped

    def idle(self) -> None:
        """Nobody waits: there is time for what torchrun needs."""
        torch = any(name.partition(".")[0] == "torch" for name in self.preloaded)
        if self.settled and self.script is not None and torch and not self._launcher_tried:
            self._launcher_tried = True
            self.launcher = self._branch(self.script, ["subprocess", _LAUNCHER], ())

    @property
    def next_look(self) -> float | None:
        """When `look` has something to see."""
        moments = [each.importing[1] for each in self.all() if each.importing is not None]
        return min(moments, default=None)

    def look(self) -> None:
        """Whether an import takes too long."""
        for each in self.all():
            if each.importing is not None and time.monotonic() >= each.importing[1]:
                why = "importing it takes longer than %g s" % self._patience
                self._do_without(each, each.importing[0], why)
                return


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
    except command.RefusedError:
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
