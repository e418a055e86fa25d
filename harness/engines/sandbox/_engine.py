"""The sandbox engine: hosts as processes in namespaces, without a daemon and without root."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import select
import signal
import subprocess
import threading
from collections.abc import Mapping
from typing import Any, Final

from harness.engines.keeping import Keeping
from harness.engines.sandbox import _interpreter, _memory
from harness.engines.sandbox._environment import inherited
from harness.engines.sandbox._host import SandboxHost
from harness.engines.sandbox._layout import Layout
from harness.engines.sandbox._memory import MemoryGroup
from harness.engines.sandbox._mode import MARK, Mode, launcher_command, launcher_environment, sandbox_mode
from harness.engines.sandbox._network import JobNetwork
from harness.engines.sandbox._orphans import end_orphans, remove_left
from harness.engines.sandbox.inner import launcher
from harness.engines.sandbox.inner.remove import remove_tree
from harness.errors import EngineError
from harness.model import HostLaunch

__all__ = ["SandboxEngine"]

_START_PATIENCE: Final = 120.0
_CLEAN_PATIENCE: Final = 600.0
_PIPE_SIZE: Final = 1 << 20


class SandboxEngine:
    """Runs each host as processes of this user, in user, mount, PID, UTS and IPC namespaces.

    A host sees the machine read-only, its own /opt/ml, /tmp, /dev/shm and HOME, and runs the machine's
    own Python, over which it has a writable layer of its own. It can't harm what is the user's, and it
    dies with this process, however that dies.

    `HostLaunch.memory_bytes` is enforced by a control group where one can be made: as root, or as a user
    to whom systemd delegates. Elsewhere the launcher looks at the processes often enough and kills the
    largest. Without a limit an OOM kill is told from the machine's own counter.

    Without namespaces (see `sandbox_mode`) a single host still runs, with SAGEMAKER_BASE_DIR in place of
    /opt/ml, and nothing keeps it from what the user may write.
    """

    def __init__(self, mode: Mode | None = None) -> None:
        """`mode`: what `sandbox_mode()` says, unless another is to be tried.

        Raises:
            EngineError: this is not Linux.
        """
        self._mode = mode or sandbox_mode()
        self._lock = threading.Lock()
        self._networks: dict[str, JobNetwork] = {}
        self._hosts: dict[str, list[SandboxHost]] = {}

    @property
    def name(self) -> str:
        return "sandbox"

    @property
    def mode(self) -> Mode:
        """What the sandbox can do here, and why not more."""
        return self._mode

    def prepare(self, launches: tuple[HostLaunch, ...]) -> None:
        """See `Engine.prepare`: the job's addresses, and its network if it is isolated.

        Raises:
            EngineError: the job needs namespaces and this machine forbids them, or it has too many hosts.
        """
        first = launches[0]
        if self._mode.name == "rewrite":
            wants = "network isolation" if first.network_isolated else "several hosts"
            if first.network_isolated or len(first.hosts) > 1:
                raise EngineError(
                    f"{first.job_name} wants {wants}, which the sandbox engine can give only with namespaces: "
                    f"{self._mode.reason}. Or use the docker engine"
                )
        network = JobNetwork(
            first.job_name, first.hosts, first.network_isolated, first.network_interface, self._mode
        )
        with self._lock:
            old, self._networks[first.job_name] = self._networks.get(first.job_name), network
        if old is not None:
            old.close()

    def start(self, launch: HostLaunch) -> SandboxHost:
        """See `Engine.start`; returns when the host's process 1 runs, or could not be executed.

        Raises:
            EngineError: the interpreter or a mount's source is missing, or the kernel refuses a namespace
                or a mount that can't be done without.
        """
        if not launch.entrypoint and not launch.command:
            raise EngineError(f"{launch.host} of {launch.job_name} has no command: the sandbox has no image")
        for mount in launch.mounts:
            if not mount.source.exists():
                raise EngineError(f"{mount.source}, to be seen at {mount.target}, doesn't exist")
        with self._lock:
            network = self._networks.get(launch.job_name)
        if network is None:
            self.prepare((launch,))
            network = self._networks[launch.job_name]
        self._await_former(launch)
        host = self._launch(launch, network)
        if self._mode.name == "rewrite":
            host.notes += (f"hard-coded /opt/ml paths don't work: {self._mode.reason}",)
        with self._lock:
            self._hosts.setdefault(launch.job_name, []).append(host)
        return host

    def attach(self, job_name: str) -> Mapping[str, SandboxHost]:
        """See `Engine.attach`: always empty, for a sandbox dies with its supervisor."""
        del job_name
        return {}

    def close(self, job_name: str) -> None:
        """See `Engine.close`. Kills and cleans up what this engine started; of other processes only what
        a supervisor that is dead left. A living supervisor's job of the same name is not touched.

        Raises:
            EngineError: a process can't be ended.
        """
        with self._lock:
            hosts = self._hosts.pop(job_name, [])
            network = self._networks.pop(job_name, None)
        for host in hosts:
            host.signal(signal.SIGKILL)
        for host in hosts:
            host.kill()
        for host in hosts:
            if not host.finish(_CLEAN_PATIENCE):
                raise EngineError(
                    f"the scratch directory of {host.name} of {job_name} is still being removed"
                )
        if network is not None:
            network.close()
        end_orphans(job_name)
        remove_left(job_name)
        _memory.remove_left(job_name)

    def keeping(self, launch: HostLaunch) -> Keeping:
        """See `Keepable.keeping`."""
        python = _interpreter.describe(launch.python)
        info = python.executable.stat()
        identity = f"{os.path.realpath(python.executable)} {info.st_size} {info.st_mtime_ns}"
        return Keeping(
            refusal=f"hosts can be kept only in namespaces ({self._mode.reason})"
            if self._mode.name == "rewrite"
            else None,
            facts={
                "sandbox's interpreter": identity,
                # A digest: a proxy's address may hold a password, and facts are shown.
                **{
                    f"{name} of your environment": hashlib.sha256(
                        value.encode(errors="surrogateescape")
                    ).hexdigest()[:12]
                    for name, value in inherited(launch, os.environ).items()
                },
            },
            command=(*(launch.entrypoint or ()), *launch.command),
            python=str(python.executable),
        )

    def settle(self, job_name: str) -> None:
        """See `Keepable.settle`: what a sandbox writes is the user's already."""

    # ------------------------------------------------------------------------------------------- internals

    def _await_former(self, launch: HostLaunch) -> None:
        """A former attempt's launcher may still be removing what this one makes."""
        with self._lock:
            hosts = self._hosts.get(launch.job_name, [])
            former = [host for host in hosts if host.name == launch.host]
            self._hosts[launch.job_name] = [host for host in hosts if host not in former]
        for host in former:
            host.kill()
            host.finish(_CLEAN_PATIENCE)

    def _launch(self, launch: HostLaunch, network: JobNetwork) -> SandboxHost:
        before = _memory.oom_kills()
        output, write_output = os.pipe()
        status, write_status = os.pipe()
        process = group = None
        config: dict[str, Any] = {"remove": []}
        try:
            with contextlib.suppress(OSError):  # a user may have used up what pipes may hold in all
                fcntl.fcntl(output, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
            marks = (MARK, launch.job_name, launch.host, str(os.getpid()))
            process = subprocess.Popen(
                launcher_command("host", write_status, marks),
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=write_output,
                stderr=write_output,
                env=launcher_environment(),
                pass_fds=(write_status, *(descriptor for _, descriptor in network.namespaces)),
                start_new_session=True,
            )
            os.close(write_output)
            os.close(write_status)
            write_output = write_status = -1
            # While its interpreter starts: it waits for its configuration.
            config |= self._layout(launch, network).make()
            config["join"] = network.namespaces
            if launch.memory_bytes is not None:
                group = MemoryGroup.make(launch.job_name, launch.host, launch.memory_bytes)
            if group is not None:
                config["cgroup_procs"] = [str(group.processes)]
                config["cgroup_directories"] = [str(group.directory)]
                config["oom_file"] = str(group.oom_file)
            elif launch.memory_bytes is not None:
                config["memory_limit"] = launch.memory_bytes
            report = self._report(process, config, status, output, launch)
        except BaseException as error:
            for descriptor in (output, status, write_output, write_status):
                if descriptor >= 0:
                    os.close(descriptor)
            if process is not None and process.stdin is not None:
                process.stdin.close()  # ends the host and the launcher
                process.wait()
            for path in config["remove"]:
                remove_tree(path)
            if group is not None:
                group.remove()
            if isinstance(error, OSError):
                raise EngineError(f"can't start {launch.host} of {launch.job_name}: {error}") from error
            raise
        return SandboxHost(
            name=launch.host,
            job=launch.job_name,
            process=process,
            output=output,
            status=status,
            report=report,
            group=group,
            remove=tuple(config["remove"]),
            memory_limit=launch.memory_bytes,
            oom_kills_before=before,
        )

    def _layout(self, launch: HostLaunch, network: JobNetwork) -> Layout:
        return Layout(
            launch=launch,
            python=_interpreter.describe(launch.python),
            mode=self._mode,
            addresses=network.addresses,
            user=os.environ,
        )

    def _report(
        self,
        process: subprocess.Popen[bytes],
        config: dict[str, Any],
        status: int,
        output: int,
        launch: HostLaunch,
    ) -> dict[str, Any]:
        """What the launcher tells once process 1 runs, or couldn't."""
        assert process.stdin is not None
        failed = f"can't start {launch.host} of {launch.job_name}"
        try:
            launcher.write_frame(process.stdin.fileno(), config)
            if not select.select([status], [], [], _START_PATIENCE)[0]:
                raise EngineError(f"{failed}: its file system isn't ready after {_START_PATIENCE:.0f} s")
            report: dict[str, Any] = launcher.read_frame(status)
        except (BrokenPipeError, EOFError):
            words = b"" if not select.select([output], [], [], 0)[0] else os.read(output, 65536)
            reason = words.decode(errors="replace").strip()[-500:] or "its launcher ended at once"
            raise EngineError(f"{failed}: {reason}") from None
        if report.get("failed") or report.get("setup"):
            raise EngineError(f"{failed}: {report.get('failed') or report['setup']}")
        return report
