"""What a host has of its own in its scratch directory, and the launcher's configuration for it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from harness._values import dataclass
from harness.engines.sandbox import _devices, _environment
from harness.engines.sandbox._interpreter import OWN_PLACES, Interpreter
from harness.engines.sandbox._mode import Mode
from harness.engines.sandbox.inner.remove import remove_tree
from harness.model import HostLaunch, Mount

__all__ = ["MARK_VARIABLE", "RECORD", "Layout"]

MARK_VARIABLE: Final = "HARNESS_SANDBOX"
"""`JOB:PID-OF-THE-SUPERVISOR`; how processes are found that no PID namespace holds together."""

RECORD: Final = "remove.json"
"""In the own directory: what is to be removed, should the supervisor and the launcher both be killed."""

_ML: Final = "/opt/ml"
_OURS: Final = "/run/harness"
"""What is mounted here only our own programs use: they find it by their environment."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Makes one host's places and says where they are: below `<scratch>/sandbox`, but for /tmp."""

    launch: HostLaunch
    python: Interpreter
    mode: Mode
    addresses: Mapping[str, str]
    """Host → address, of all hosts of the job."""
    user: Mapping[str, str]
    """The environment of the user, of which only little is taken."""

    @property
    def own(self) -> Path:
        """The directory that goes when the host ends."""
        return self.launch.scratch.absolute() / "sandbox"

    @property
    def tmp(self) -> Path:
        """The host's /tmp; it outlives the host, for whoever looks why a job failed."""
        return self.launch.scratch.absolute() / "tmp"

    def make(self) -> dict[str, Any]:
        """Make the directories and files; the launcher's configuration, still without the memory group."""
        remove_tree(str(self.own))
        for name in ("root", "home", "var-tmp", "etc", "layers"):
            (self.own / name).mkdir(parents=True)
        self.tmp.mkdir(exist_ok=True)
        for path in (self.tmp, self.own / "var-tmp"):
            path.chmod(0o1777)
        (self.own / "home").chmod(0o700)
        self._python_names()
        environment = _environment.compose(self.launch, self.python, self.user, _devices.machine_has_gpus())
        if not self.launch.network_isolated:
            self._pip_config()
        config: dict[str, Any] = {
            "mode": self.mode.name,
            "user_namespace": self.mode.user_namespace,
            "join": [],
            "cgroup_procs": [],
            "cgroup_directories": [],
            "oom_file": None,
            "memory_limit": None,
            "argv": [*(self.launch.entrypoint or ()), *self.launch.command],
            "environment": environment,
            "remove": [str(self.own)],
        }
        config |= self._namespaces(environment) if self.mode.name == "namespaces" else self._rewrite(config)
        record = {"owner": os.getpid(), "remove": config["remove"]}
        (self.own / RECORD).write_text(json.dumps(record))
        return config

    def _python_names(self) -> None:
        """`python` and `python3` are the interpreter, as in an image; many a system has no `python`."""
        folder = self.own / "home/.local/bin"
        folder.mkdir(parents=True)
        for name in ("python", "python3"):
            (folder / name).symlink_to(self.python.executable)

    def _pip_config(self) -> None:
        source = _environment.pip_config(self.user)
        if source is not None:
            target = self.own / "home/.config/pip/pip.conf"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)

    # ------------------------------------------------------------------------------------- with namespaces

    def _namespaces(self, environment: Mapping[str, str]) -> dict[str, Any]:
        mounts = sorted(self.launch.mounts, key=lambda mount: len(mount.target.parts))
        return {
            "root": str(self.own / "root"),
            "home": str(self.own / "home"),
            "tmp": str(self.tmp),
            "var_tmp": str(self.own / "var-tmp"),
            "ml": os.path.realpath(self.launch.ml),
            "hostname": self.launch.hostname,
            "shm_bytes": self.launch.shm_bytes,
            "devices": _devices.nodes(self.launch.gpus),
            "keep": [*self.python.keep, *self._named_files(environment)],
            "overlays": [self._layer(path, number) for number, path in enumerate(self.python.writable)],
            "mounts": [self._mount(mount) for mount in mounts],
            "files": self._files(),
            "hide": [os.path.realpath(self.launch.scratch)],
            "pip_fallback": _environment.pip_fallback(self.python, environment),
            "remove": [str(self.own), *(path for mount in mounts for path in self._written(mount))],
        }

    def _named_files(self, environment: Mapping[str, str]) -> list[tuple[str, str]]:
        """Files such as a CA bundle that the environment names and that a host wouldn't see."""
        return [
            (os.path.realpath(value), value)
            for name, value in environment.items()
            if name not in self.launch.environment
            and any(value.startswith(place + "/") for place in OWN_PLACES)
            and Path(value).exists()
        ]

    def _layer(self, path: str, number: int) -> tuple[str, str, str, str]:
        upper, work = (self.own / "layers" / str(number) / part for part in ("upper", "work"))
        upper.mkdir(parents=True)
        work.mkdir()
        # The layer's own top directory is what the script sees: it must look as the one below.
        upper.chmod(Path(path).stat().st_mode & 0o7777)
        return os.path.realpath(path), path, str(upper), str(work)

    def _mount(self, mount: Mount) -> dict[str, Any]:
        told = {"source": os.path.realpath(mount.source), "target": str(mount.target), "mode": mount.mode}
        if mount.mode == "overlay":
            upper, work = self._written(mount)
            for path in (upper, work):
                remove_tree(path)
                Path(path).mkdir(parents=True)
            source = Path(told["source"])
            like = source if source.is_dir() else source.parent
            Path(upper).chmod(like.stat().st_mode & 0o7777)
            told |= {"upper": upper, "work": work}
        return told

    def _written(self, mount: Mount) -> tuple[str, ...]:
        if mount.mode != "overlay":
            return ()
        place = mount.scratch or self.own / "layers" / str(mount.target).strip("/").replace("/", "-")
        return str(place.absolute() / "upper"), str(place.absolute() / "work")

    def _files(self) -> list[tuple[str, str]]:
        files = {"hosts": self._hosts(), "hostname": f"{self.launch.hostname}\n"}
        switch = _name_service()
        if switch is not None:
            files["nsswitch.conf"] = switch
        for name, text in files.items():
            (self.own / "etc" / name).write_text(text, errors="surrogateescape")
        return [(f"/etc/{name}", str(self.own / "etc" / name)) for name in files]

    def _hosts(self) -> str:
        """The job's names first, for the first match counts; then what this machine has."""
        lines = []
        for host, address in self.addresses.items():
            names = [host]
            if host == self.launch.host:
                short = self.launch.hostname.partition(".")[0]
                names += dict.fromkeys((self.launch.hostname, short))
            lines.append(f"{address}\t{' '.join(names)}\n")
        try:
            return "".join(lines) + Path("/etc/hosts").read_text(errors="surrogateescape")
        except OSError:
            return "127.0.0.1\tlocalhost\n" + "".join(lines)

    # ---------------------------------------------------------------------------------- without namespaces

    def _rewrite(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Only directories, links and variables: SAGEMAKER_BASE_DIR leads the toolkit to the tree."""
        own = self.own
        (own / "base/opt").mkdir(parents=True)
        (own / "base/opt/ml").symlink_to(self.launch.ml.absolute())
        remove = [str(own)]
        elsewhere: dict[str, str] = {}
        for mount in self.launch.mounts:
            link = self._link(mount)
            if link is not None:
                remove.append(str(link))
            elif mount.target.is_relative_to(_OURS):
                elsewhere[str(mount.target)] = str(mount.source.absolute())
        environment: dict[str, str] = config["environment"] | {
            MARK_VARIABLE: f"{self.launch.job_name}:{os.getpid()}",
            "SAGEMAKER_BASE_DIR": str(own / "base"),
            "TMPDIR": str(self.tmp),
        }
        environment |= _environment.pip_fallback(self.python, environment)  # never into the user's own
        for name in ("HOME", "PATH", "PIP_PREFIX", "PYTHONPATH"):
            if name not in self.launch.environment:
                environment[name] = environment[name].replace(_environment.HOME, str(own / "home"))
        for target in sorted(elsewhere, key=len, reverse=True):
            for name, value in environment.items():
                environment[name] = value.replace(target, elsewhere[target])
        return {"environment": environment, "remove": remove}

    def _link(self, mount: Mount) -> Path | None:
        """Lead to the mount's source from its place in the tree; None for a target elsewhere."""
        if not str(mount.target).startswith(_ML + "/"):
            return None
        link = self.launch.ml / mount.target.relative_to(_ML)
        if link.is_dir() and not link.is_symlink():
            link.rmdir()
        link.unlink(missing_ok=True)
        link.parent.mkdir(parents=True, exist_ok=True)
        source = mount.source.resolve()
        if mount.mode == "rw" or not source.is_dir():
            link.symlink_to(source)
        else:
            # A tree of links: what the script makes or removes in it is never the user's.
            shutil.copytree(source, link, copy_function=lambda name, copy: Path(copy).symlink_to(name))
        return link


def _name_service() -> str | None:
    """nsswitch.conf with /etc/hosts asked first: a resolver that knows no algo-N must not have the last word."""
    try:
        lines = Path("/etc/nsswitch.conf").read_text().splitlines(keepends=True)
    except OSError:
        return None
    for number, line in enumerate(lines):
        database, _, services = line.partition(":")
        if database.strip() == "hosts":
            others = [word for word in services.split() if word != "files"]
            if services.split()[:1] == ["files"]:
                return None
            lines[number] = f"hosts: files {' '.join(others)}\n"
            return "".join(lines)
    return None
