"""What this machine has, found in some ten milliseconds without starting or changing anything."""

from __future__ import annotations

import shutil
from pathlib import Path

from harness._values import dataclass, field
from harness.errors import DiskError
from harness.home import Home
from harness.machine import _daemon, _gpus, _limits, _namespaces, _python
from harness.machine._daemon import Docker, Image
from harness.machine._namespaces import Sandbox
from harness.machine._python import Cuda, Python
from harness.model import Gpu

__all__ = ["Machine", "Probe"]

_ROUTES = Path("/proc/net/route")
_ROUTES_6 = Path("/proc/net/ipv6_route")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What this machine has at the moment of `probe`."""

    home: Home
    cpus: int
    """Cores that we may use: affinity and control group counted."""
    memory_bytes: int
    """Memory that we may use: control group counted."""
    gpus: tuple[Gpu, ...]
    gpu_reason: str = ""
    """Why there is no GPU; empty when there is one."""
    docker: Docker
    sandbox: Sandbox
    interface: str
    """The network interface of the default route; `lo` without one."""
    _pythons: dict[str | None, Python] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def probe(cls, home: Home) -> Machine:
        """Look at everything. What isn't there is told by a reason, never by an exception."""
        with Probe(home) as probe:
            return probe.machine()

    def disk_free(self, path: Path) -> int:
        """Bytes that this user may still write where `path` is or will be.

        Raises:
            DiskError: the place can't be looked at.
        """
        place = path.absolute()
        while not place.exists() and place != place.parent:
            place = place.parent
        try:
            return shutil.disk_usage(place).free
        except OSError as error:
            raise DiskError(f"the free space at {path} can't be told: {error.strerror}") from error

    def image(self, name: str) -> Image | None:
        """The local image of that name; None when it isn't here or no engine answers."""
        return self.docker.image(name)

    @property
    def gpu_driver(self) -> str:
        """The driver's version, and the newest CUDA that it runs; empty when it doesn't tell."""
        return _gpus.driver() if self.gpus else ""

    def cuda(self) -> Cuda:
        """What PyTorch of the sandbox's interpreter makes of the GPUs, tried for real. Raises EngineError."""
        return _python.try_cuda(self.python().executable)

    def python(self, executable: str | None = None) -> Python:
        """An interpreter and its PyTorch; None: the one that runs us. Raises EngineError."""
        if executable not in self._pythons:
            self._pythons[executable] = _python.inspect(executable)
        return self._pythons[executable]


class Probe:
    """A look at the machine, begun: the kernel's and the daemon's answers are awaited only by `machine`.

    Whoever has other work first, such as reading a spec, doesn't wait for them at all. A context manager:
    what was begun and never asked for is given up.
    """

    def __init__(self, home: Home) -> None:
        self._home = home
        self._trial = _namespaces.Trial()
        self._docker = _daemon.Question()

    def __enter__(self) -> Probe:
        return self

    def __exit__(self, *exc: object) -> None:
        self._trial.close()
        self._docker.close()

    def machine(self) -> Machine:
        """What there is; to be asked for once."""
        gpus, gpu_reason = _gpus.probe()
        return Machine(
            home=self._home,
            cpus=_limits.cores(),
            memory_bytes=_limits.memory_bytes(),
            gpus=gpus,
            gpu_reason=gpu_reason,
            docker=self._docker.answer(),
            interface=default_interface(),
            sandbox=self._trial.finish(),
        )


def default_interface(routes: Path = _ROUTES, routes_6: Path = _ROUTES_6) -> str:
    """The interface of the default route with the lowest metric, IPv4 first; `lo` when there is none."""
    found = []
    for line in _lines(routes)[1:]:
        fields = line.split()
        if len(fields) > 7 and fields[1] == fields[7] == "00000000":
            found.append((int(fields[6]), fields[0]))
    if not found:
        for line in _lines(routes_6):
            fields = line.split()
            if len(fields) > 9 and fields[0] == "0" * 32 and fields[1] == "00" and fields[9] != "lo":
                found.append((int(fields[5], 16), fields[9]))
    return min(found)[1] if found else "lo"


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []  # no Linux, or no IPv6
