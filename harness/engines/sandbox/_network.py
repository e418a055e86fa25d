"""The addresses of a job's hosts, and its own network when it is isolated."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import zlib

from harness.engines.sandbox._mode import MARK, Mode, launcher_command, launcher_environment
from harness.engines.sandbox.inner import kernel, launcher
from harness.errors import EngineError

__all__ = ["JobNetwork"]

_MOST_HOSTS = 250
_BLOCKS = 64 * 256
"""127.64.0.0/24 … 127.127.255.0/24: loopback addresses that nothing else uses by custom."""


class JobNetwork:
    """One address per host.

    On the machine's network each job has a /24 of loopback addresses, reserved among all harness processes
    by an abstract socket, which the kernel frees whenever and however this process ends. Hosts of one job
    share the ports of the machine then: two hosts can't both listen on 0.0.0.0:7777. An isolated job has a
    network namespace of its own, without a way out, that its hosts share; it is held by open descriptors.
    """

    def __init__(self, job: str, hosts: tuple[str, ...], isolated: bool, interface: str, mode: Mode) -> None:
        if len(hosts) > _MOST_HOSTS:
            raise EngineError(f"the sandbox engine runs at most {_MOST_HOSTS} hosts, {job} has {len(hosts)}")
        self._reservation: socket.socket | None = None
        self._namespaces: list[tuple[int, int]] = []
        if isolated:
            self.addresses = {host: f"10.0.1.{number}" for number, host in enumerate(hosts, 1)}
            self.interface = self._isolate(job, interface, mode)
        else:
            block = self._reserve(job)
            self.addresses = {host: f"{block}.{number}" for number, host in enumerate(hosts, 1)}
            self.interface = "lo"

    @property
    def namespaces(self) -> list[tuple[int, int]]:
        """(kind, descriptor) of the namespaces that a host enters, in this order; empty if not isolated."""
        return list(self._namespaces)

    def close(self) -> None:
        if self._reservation is not None:
            self._reservation.close()
            self._reservation = None
        for _, descriptor in self._namespaces:
            os.close(descriptor)
        self._namespaces.clear()

    def _reserve(self, job: str) -> str:
        first = zlib.crc32(job.encode())
        for step in range(_BLOCKS):
            high, low = divmod((first + step) % _BLOCKS, 256)
            block = f"127.{64 + high}.{low}"
            reservation = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            try:
                reservation.bind(f"\0harness-sandbox-{block}")
            except OSError as error:
                reservation.close()
                if error.errno != errno.EADDRINUSE:
                    raise EngineError(f"can't reserve addresses for {job}: {error}") from error
            else:
                self._reservation = reservation
                return block
        raise EngineError(f"no loopback addresses are left for {job}: close other sandbox jobs")

    def _isolate(self, job: str, interface: str, mode: Mode) -> str:
        receive, status = os.pipe()
        try:
            with subprocess.Popen(
                launcher_command("network", status, (MARK, job)),
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=launcher_environment(),
                pass_fds=(status,),
                start_new_session=True,
            ) as process:
                os.close(status)
                status = -1
                assert process.stdin is not None
                launcher.write_frame(
                    process.stdin.fileno(),
                    {
                        "user_namespace": mode.user_namespace,
                        "interface": interface,
                        "addresses": list(self.addresses.values()),
                    },
                )
                try:
                    told = launcher.read_frame(receive)
                except EOFError:
                    told = {"failed": "its helper ended early"}
                if "failed" in told:
                    raise EngineError(
                        f"{job} wants network isolation, but no network can be made for it: {told['failed']}"
                    )
                kinds = [("user", kernel.CLONE_NEWUSER)] if mode.user_namespace else []
                for name, kind in (*kinds, ("net", kernel.CLONE_NEWNET)):
                    descriptor = os.open(f"/proc/{process.pid}/ns/{name}", os.O_RDONLY)
                    self._namespaces.append((kind, descriptor))
        finally:
            os.close(receive)
            if status >= 0:
                os.close(status)
        return str(told["interface"])
