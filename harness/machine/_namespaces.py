"""May this user make the namespaces that the sandbox lives in? Tried for real, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

from harness._values import dataclass

__all__ = ["Sandbox", "Trial", "explain", "sandbox"]

_SECONDS: Final = 10

_TRIAL: Final = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def call(step, result):
    if result < 0:
        print(step, ctypes.get_errno())
        sys.exit()
def write(name, text):
    with open("/proc/self/" + name, "w") as file:
        file.write(text)
uid, gid = os.geteuid(), os.getegid()
user = libc.unshare(0x10000000)
if uid or user == 0:
    call("user", user)
    try:
        write("setgroups", "deny")
        write("uid_map", f"0 {uid} 1")
        write("gid_map", f"0 {gid} 1")
    except OSError as error:
        print("map", error.errno)
        sys.exit()
call("namespaces", libc.unshare(0x20000 | 0x20000000 | 0x4000000 | 0x8000000))
call("mount", libc.mount(b"none", b"/", None, ctypes.c_ulong(0x4000 | 0x40000), None))
call("mount", libc.mount(b"tmpfs", b"/tmp", b"tmpfs", ctypes.c_ulong(0), None))
child = os.fork()
if child == 0:
    os._exit(0)
os.waitpid(child, 0)
print("ok", int(user == 0))
"""
"""As the sandbox starts a host: user, mount, PID, UTS and IPC namespaces, a mount, a process 1. Root may
do without the user namespace: the number says whether there was one."""


@dataclass(frozen=True, kw_only=True)
class Sandbox:
    """Whether hosts can have namespaces of their own."""

    ok: bool
    reason: str = ""
    """Why not, naming the setting that forbids it and what to do."""
    user_namespace: bool = False
    """Hosts get a user namespace too. False for real root where those are forbidden: it needs none."""

    def __bool__(self) -> bool:
        return self.ok


class Trial:
    """The trial, begun; it runs while other things are looked at. What it found is what `sandbox` says."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._refused: OSError | None = None
        if sys.platform.startswith("linux"):
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", "-c", _TRIAL],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            except OSError as error:
                self._refused = error

    def finish(self) -> Sandbox:
        """How it ended."""
        global _latest
        _latest = self._judge()
        return _latest

    def close(self) -> None:
        """Give it up, if nobody asked for its end."""
        if self._process is not None and self._process.stdout and not self._process.stdout.closed:
            self._process.kill()
            self._process.communicate()

    def _judge(self) -> Sandbox:
        if self._refused is not None:
            return Sandbox(ok=False, reason=f"no process could be started to try it: {self._refused}")
        if self._process is None:
            return Sandbox(ok=False, reason=f"{sys.platform} has no namespaces: the sandbox needs Linux")
        try:
            said, _ = self._process.communicate(timeout=_SECONDS)
        except subprocess.TimeoutExpired:
            self.close()
            return Sandbox(ok=False, reason=f"trying it gave no answer in {_SECONDS} seconds")
        words = said.split()
        if len(words) != 2 or not words[1].isdecimal():
            why = said.strip().splitlines()[-1:] or self._process.returncode
            return Sandbox(ok=False, reason=f"trying it failed: {why}")
        step, number = words[0], int(words[1])
        if step == "ok":
            return Sandbox(ok=True, user_namespace=bool(number))
        return Sandbox(ok=False, reason=explain(step, number))


_latest: Sandbox | None = None


def sandbox() -> Sandbox:
    """What the last trial of this process found, or of the one that it was forked from; tried now if there
    was none."""
    return _latest or Trial().finish()


def explain(step: str, number: int, proc: Path = Path("/proc")) -> str:
    """Which setting forbids it, and what to do about that.

    `step` is user, map, namespaces or mount; `number` is the system call's errno.
    """
    if _setting(proc, "kernel/unprivileged_userns_clone") == 0:
        return _set("kernel.unprivileged_userns_clone is 0", "kernel.unprivileged_userns_clone=1")
    if _setting(proc, "user/max_user_namespaces") == 0:
        return _set("user.max_user_namespaces is 0", "user.max_user_namespaces=15000")
    if _setting(proc, "kernel/apparmor_restrict_unprivileged_userns") == 1:
        return _set(
            "kernel.apparmor_restrict_unprivileged_userns is 1",
            "kernel.apparmor_restrict_unprivileged_userns=0",
        )
    if _in_container(proc):
        return (
            f"this container's seccomp or AppArmor profile forbids {_STEPS[step]}: start it with "
            "`--security-opt seccomp=unconfined --security-opt apparmor=unconfined`, or with `--privileged`"
        )
    return f"the kernel forbids {_STEPS[step]} ({os.strerror(number)}): use the docker engine"


_STEPS: Final = {
    "user": "user namespaces",
    "map": "writing the user namespace's id map",
    "namespaces": "mount, PID, UTS and IPC namespaces",
    "mount": "mounts in a namespace of its own",
}


def _set(what: str, setting: str) -> str:
    return f"{what}, which forbids user namespaces: `sudo sysctl -w {setting}` allows them"


def _setting(proc: Path, name: str) -> int | None:
    try:
        return int((proc / "sys" / name).read_text())
    except (OSError, ValueError):
        return None  # this kernel hasn't got the setting


def _in_container(proc: Path) -> bool:
    """A seccomp filter is on us, or an engine's own mark is there."""
    try:
        status = (proc / "self/status").read_text()
    except OSError:
        status = ""
    return "Seccomp:\t2" in status or Path("/.dockerenv").exists() or Path("/run/.containerenv").exists()
