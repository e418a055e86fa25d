"""The system calls that Python 3.10 doesn't have, through ctypes."""

from __future__ import annotations

import ctypes
import os

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_REMOUNT = 0x20
MS_NOATIME = 0x400
MS_NODIRATIME = 0x800
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000
MS_RELATIME = 0x200000

SIGKILL = 9
SIGPIPE = 13

_MNT_DETACH = 2
_SYS_MOUNT_SETATTR = 442
_AT_FDCWD = -100
_AT_RECURSIVE = 0x8000
_MOUNT_ATTR_RDONLY = 0x1
_PR_SET_PDEATHSIG = 1
_PR_CAPBSET_READ = 23
_PR_CAPBSET_DROP = 24
_PR_SET_CHILD_SUBREAPER = 36
_SIG_SETMASK = 2

_OPTIONS = {
    "ro": MS_RDONLY,
    "nosuid": MS_NOSUID,
    "nodev": MS_NODEV,
    "noexec": MS_NOEXEC,
    "noatime": MS_NOATIME,
    "nodiratime": MS_NODIRATIME,
    "relatime": MS_RELATIME,
}

# What a container has by default: no SYS_ADMIN, so the read-only mounts stay read-only (contract: A12).
# CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID SETPCAP NET_BIND_SERVICE NET_RAW SYS_CHROOT MKNOD
# AUDIT_WRITE SETFCAP
_CONTAINER_CAPABILITIES = frozenset({0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31})

_libc = ctypes.CDLL(None, use_errno=True)
_0 = ctypes.c_ulong(0)


def _call(name: str, *arguments: object) -> int:
    result = int(getattr(_libc, name)(*arguments))
    if result < 0:
        number = ctypes.get_errno()
        shown = ", ".join(repr(argument) for argument in arguments)
        raise OSError(number, f"{os.strerror(number)} in {name}({shown})")
    return result


def _path(path: str | None) -> bytes | None:
    return None if path is None else os.fsencode(path)


def unshare(flags: int) -> None:
    _call("unshare", flags)


def setns(descriptor: int, kind: int) -> None:
    _call("setns", descriptor, kind)


def mount(source: str, target: str, kind: str | None = None, flags: int = 0, data: str = "") -> None:
    _call(
        "mount",
        _path(source),
        _path(target),
        _path(kind),
        ctypes.c_ulong(flags),
        os.fsencode(data) if data else None,
    )


def bind(source: str, target: str) -> None:
    """Everything that is mounted below `source` comes along: the kernel allows nothing else here."""
    mount(source, target, None, MS_BIND | MS_REC)


def detach(target: str) -> None:
    _call("umount2", _path(target), _MNT_DETACH)


def pivot_root(new: str, old: str) -> None:
    _call("pivot_root", _path(new), _path(old))


def set_hostname(name: str) -> None:
    raw = name.encode()
    _call("sethostname", raw, ctypes.c_size_t(len(raw)))


def die_with_parent() -> None:
    _call("prctl", _PR_SET_PDEATHSIG, ctypes.c_ulong(SIGKILL), _0, _0, _0)


def adopt_orphans() -> None:
    """Processes below this one whose parent dies become its children, not those of process 1."""
    _call("prctl", _PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(1), _0, _0, _0)


def drop_capabilities() -> None:
    """Leave what a container has by default, from the next exec on (contract: A12)."""
    capability = 0
    while _libc.prctl(_PR_CAPBSET_READ, ctypes.c_ulong(capability), _0, _0, _0) >= 0:
        if capability not in _CONTAINER_CAPABILITIES:
            _call("prctl", _PR_CAPBSET_DROP, ctypes.c_ulong(capability), _0, _0, _0)
        capability += 1


def default_signals() -> None:
    """Undo what Python and whoever started us did to signals: nothing ignored, nothing blocked."""
    for number in range(1, 65):
        _libc.signal(number, ctypes.c_void_p(0))  # fails for SIGKILL, SIGSTOP and libc's own two
    empty = ctypes.create_string_buffer(128)
    _call("sigprocmask", _SIG_SETMASK, empty, None)


def mounts() -> list[tuple[str, list[str]]]:
    """Mount point and options of every mount of this namespace, in the order they were made."""
    found = []
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file:
            fields = line.split()
            point = fields[4]
            if b"\\" in point:
                for code, char in ((b"\\040", b" "), (b"\\011", b"\t"), (b"\\012", b"\n"), (b"\\134", b"\\")):
                    point = point.replace(code, char)
            found.append((os.fsdecode(point), fields[5].decode().split(",")))
    return found


class _MountAttributes(ctypes.Structure):
    _fields_ = [
        ("set", ctypes.c_uint64),
        ("clear", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns", ctypes.c_uint64),
    ]


def read_only(target: str) -> None:
    """Make `target` and every mount below it read-only."""
    attributes = _MountAttributes(_MOUNT_ATTR_RDONLY, 0, 0, 0)
    done = _libc.syscall(
        ctypes.c_long(_SYS_MOUNT_SETATTR),
        ctypes.c_int(_AT_FDCWD),
        os.fsencode(target),
        ctypes.c_uint(_AT_RECURSIVE),
        ctypes.byref(attributes),
        ctypes.c_size_t(ctypes.sizeof(attributes)),
    )
    if done == 0:
        return
    # Linux before 5.12: one mount after the other, each with the flags that it has and may not lose.
    real = os.path.realpath(target)
    for point, options in mounts():
        if point == real or point.startswith(real.rstrip("/") + "/"):
            flags = MS_REMOUNT | MS_BIND | MS_RDONLY
            for option in options:
                flags |= _OPTIONS.get(option, 0)
            mount("none", point, None, flags)
