"""Whether this machine lets us make namespaces, and if not, which setting forbids it."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal, NamedTuple

from harness.errors import EngineError

__all__ = ["MARK", "Mode", "launcher_command", "launcher_environment", "sandbox_mode"]

MARK: Final = "harness-sandbox"
"""Stands in every launcher's command line, for `ps`, and to find it again."""

_START: Final = "import sys; sys.path.insert(0, {!r}); from inner import launcher; launcher.main()"

_SETTINGS: Final = (
    ("kernel/apparmor_restrict_unprivileged_userns", "1", "0"),
    ("kernel/unprivileged_userns_clone", "0", "1"),
    ("user/max_user_namespaces", "0", "15000"),
    ("user/max_pid_namespaces", "0", "15000"),
    ("user/max_mnt_namespaces", "0", "15000"),
)
"""Settings under /proc/sys that forbid it, the forbidding value, and one that allows it."""


class Mode(NamedTuple):
    """What the sandbox can do here."""

    name: Literal["namespaces", "rewrite"]
    """rewrite: no namespaces; SAGEMAKER_BASE_DIR stands for /opt/ml, and hard-coded paths don't work."""
    reason: str
    """Why not namespaces, with the setting to change; empty when all is well."""
    user_namespace: bool = False
    """False for real root where user namespaces are forbidden: it needs none."""


def launcher_command(mode: str, status: int, marks: Sequence[str] = ()) -> list[str]:
    """The command line of the launcher; `marks`: more words for its command line."""
    start = _START.format(str(Path(__file__).parent))
    return [sys.executable, "-I", "-S", "-c", start, mode, str(status), *marks]


def launcher_environment() -> dict[str, str]:
    """Only what this interpreter itself may need to start."""
    return {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}


@functools.cache
def sandbox_mode() -> Mode:
    """What the sandbox can do on this machine, by trying it once per process (some 30 ms).

    Raises:
        EngineError: this is not Linux.
    """
    if sys.platform != "linux":
        raise EngineError(f"the sandbox engine needs Linux, this is {sys.platform}: use the docker engine")
    from harness.engines.sandbox.inner import launcher

    receive, status = os.pipe()
    try:
        with subprocess.Popen(
            launcher_command("probe", status),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=launcher_environment(),
            pass_fds=(status,),
        ) as process:
            os.close(status)
            status = -1
            assert process.stdin is not None
            launcher.write_frame(process.stdin.fileno(), {})
            try:
                told = launcher.read_frame(receive)
            except EOFError:
                told = {"ok": False, "step": "start its launcher", "error": "it ended early"}
    finally:
        os.close(receive)
        if status >= 0:
            os.close(status)
    if told["ok"]:
        return Mode("namespaces", "", bool(told["user_namespace"]))
    return Mode("rewrite", f"can't {told['step']}: {told['error']}; {_setting()}")


def _setting() -> str:
    for name, forbidding, allowing in _SETTINGS:
        try:
            value = Path("/proc/sys", name).read_text().strip()
        except OSError:
            continue
        if value == forbidding:
            dotted = name.replace("/", ".")
            return f"{dotted} is {value}, allow it with `sysctl -w {dotted}={allowing}`"
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("Seccomp:") and line.split()[1] != "0":
            return "a seccomp filter is on (as in a container): allow unshare and mount in it"
    return "neither a sysctl nor seccomp says why: look for an SELinux or AppArmor denial in the kernel log"
