"""The file system that a host sees: the machine's own, read-only, with the host's own places in it."""

from __future__ import annotations

import os

from . import kernel

TYPE_CHECKING = False
if TYPE_CHECKING:  # see launcher
    from typing import Any

_OLD = "/.old"
_OWN = ("opt", "root", "tmp", "proc", "dev")
"""Top-level names that are the host's own; all others are the machine's."""

_READ_ONLY_PROC = ("bus", "fs", "irq", "sys", "sysrq-trigger")
_MASKED_PROC = ("acpi", "asound", "kcore", "keys", "latency_stats", "sched_debug", "scsi", "timer_list")
"""As container engines do. Root's sandbox is the machine's root to these files (contract: A12)."""


def build(config: dict[str, Any]) -> tuple[list[str], bool]:
    """Make it this process's root. Notes on what could not be had, and whether pip can't write."""
    notes: list[str] = []
    new = config["root"]
    kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    kernel.mount(new, new, None, kernel.MS_BIND)
    os.chdir(new)
    os.mkdir("." + _OLD)
    kernel.pivot_root(".", "." + _OLD)
    os.chdir("/")
    _proc(notes)
    below = _Submounts(config["root"])
    _machine(config, notes)
    _devices(config, notes)
    for source, target in (
        (config["home"], "/root"),
        (config["tmp"], "/tmp"),
        (config["var_tmp"], "/var/tmp"),
    ):
        if os.path.isdir(target) and not os.path.islink(target):
            kernel.bind(_OLD + source, target)
    for source, target in config["keep"]:
        # The interpreter lies in a place that is now the host's own: put it back there.
        _make_target(target, _OLD + source)
        kernel.bind(_OLD + source, target)
        kernel.read_only(target)
    pip_closed = False
    for source, path, upper, work in config["overlays"]:
        try:
            _overlay(_OLD + source, path, upper, work, below, notes)
        except OSError as error:
            pip_closed = True
            notes.append(f"pip installs beside {path}, not into it: {_why(error)} in an overlay over it")
    _ml(config)
    for mount in config["mounts"]:
        _mount(mount, below, notes)
    for target, source in config["files"]:
        if os.path.isfile(target):
            kernel.bind(_OLD + source, os.path.realpath(target))
        else:
            notes.append(f"this machine has no {target}, so the host has none of its own")
    for path in config["hide"]:
        if os.path.isdir(path):
            kernel.mount("tmpfs", path, "tmpfs", kernel.MS_RDONLY, "size=4k,mode=755")
    kernel.detach(_OLD)
    os.rmdir(_OLD)
    return notes, pip_closed


def _proc(notes: list[str]) -> None:
    os.mkdir("/proc")
    try:
        kernel.mount("proc", "/proc", "proc", kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC)
    except OSError as error:
        kernel.bind(_OLD + "/proc", "/proc")
        notes.append(f"/proc shows the whole machine: its own can't be mounted here ({_why(error)})")
    for name in _READ_ONLY_PROC:
        path = "/proc/" + name
        if os.path.exists(path):
            kernel.bind(path, path)
            kernel.read_only(path)
    for name in _MASKED_PROC:
        path = "/proc/" + name
        if os.path.isdir(path):
            kernel.mount("tmpfs", path, "tmpfs", kernel.MS_RDONLY, "size=4k")
        elif os.path.exists(path):
            kernel.bind(_OLD + "/dev/null", path)


def _machine(config: dict[str, Any], notes: list[str]) -> None:
    """The machine's top-level directories and files, all read-only."""
    with os.scandir(_OLD) as entries:
        names = sorted(
            (entry.name, entry.is_symlink(), entry.is_dir(follow_symlinks=False)) for entry in entries
        )
    for name, link, folder in names:
        source, target = f"{_OLD}/{name}", "/" + name
        if name in _OWN or source.startswith(_OLD + _OLD):
            continue
        if link:
            os.symlink(os.readlink(source), target)
            continue
        _make(target, folder)
        try:
            if name == "sys" and config["join"] and _own_sys():
                continue
            kernel.bind(source, target)
            kernel.read_only(target)
        except OSError as error:
            notes.append(f"{target} is not to be seen: {_why(error)}")
    for name in ("root", "tmp", "dev"):
        os.mkdir("/" + name)
    os.mkdir("/opt")
    _fill("/opt", os.path.realpath(_OLD + "/opt"), skip=("ml",))


def _own_sys() -> bool:
    """A /sys that shows the interfaces of the job's own network; False where that can't be had."""
    flags = kernel.MS_RDONLY | kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
    try:
        kernel.mount("sysfs", "/sys", "sysfs", flags)
    except OSError:
        return False
    return True


def _fill(folder: str, source: str, skip: tuple[str, ...] = ()) -> None:
    """Show what is in `source` in the empty `folder`, read-only."""
    try:
        entries = sorted(os.scandir(source), key=lambda entry: entry.name)
    except FileNotFoundError:
        return
    for entry in entries:
        if entry.name in skip:
            continue
        target = f"{folder}/{entry.name}"
        if entry.is_symlink():
            os.symlink(os.readlink(entry.path), target)
        else:
            _make(target, entry.is_dir(follow_symlinks=False))
            kernel.bind(entry.path, target)
            kernel.read_only(target)


def _devices(config: dict[str, Any], notes: list[str]) -> None:
    """A /dev of a container: the harmless nodes and the accelerators, no disks, no fuse (contract: A12)."""
    kernel.mount("tmpfs", "/dev", "tmpfs", kernel.MS_NOSUID, "mode=755,size=64m")
    for name in config["devices"]:
        _make("/dev/" + name, os.path.isdir(f"{_OLD}/dev/{name}"))
        kernel.bind(f"{_OLD}/dev/{name}", "/dev/" + name)
    for name, target in (("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")):
        os.symlink("/proc/self/fd" + target, "/dev/" + name)
    os.mkdir("/dev/pts")
    flags = kernel.MS_NOSUID | kernel.MS_NOEXEC
    try:
        kernel.mount("devpts", "/dev/pts", "devpts", flags, "newinstance,ptmxmode=0666,mode=620")
        os.symlink("pts/ptmx", "/dev/ptmx")
    except OSError as error:
        notes.append(f"the host has no terminals of its own: {_why(error)}")
    os.mkdir("/dev/mqueue")
    try:
        kernel.mount("mqueue", "/dev/mqueue", "mqueue", flags | kernel.MS_NODEV)
    except OSError as error:
        notes.append(f"the host has no POSIX message queues: {_why(error)}")
    os.mkdir("/dev/shm")
    size = f"size={config['shm_bytes']},mode=1777"
    kernel.mount("tmpfs", "/dev/shm", "tmpfs", flags | kernel.MS_NODEV, size)  # contract: B14


def _ml(config: dict[str, Any]) -> None:
    os.mkdir("/opt/ml")
    kernel.bind(_OLD + config["ml"], "/opt/ml")


def _mount(mount: dict[str, Any], below: _Submounts, notes: list[str]) -> None:
    source, target, mode = mount["source"], mount["target"], mount["mode"]
    seen = _OLD + source
    folder = os.path.isdir(seen)
    _make_target(target, seen)
    if mode == "overlay":
        try:
            if folder:
                _overlay(seen, target, mount["upper"], mount["work"], below, notes)
            else:
                _overlay_file(seen, target, mount, below, notes)
        except OSError as error:
            notes.append(f"{target} is read-only: {_why(error)} in an overlay over {source}")
            mode = "ro"
        else:
            return
    kernel.bind(seen, target)
    if mode == "ro":
        kernel.read_only(target)


def _overlay_file(seen: str, target: str, mount: dict[str, Any], below: _Submounts, notes: list[str]) -> None:
    """overlayfs knows directories only: lay it over the file's own one, then show the one file."""
    folder, name = seen.rsplit("/", 1)
    aside = "/.overlay"
    os.mkdir(aside)
    try:
        _overlay(folder, aside, mount["upper"], mount["work"], below, notes)
        kernel.bind(f"{aside}/{name}", target)
        kernel.detach(aside)
    finally:
        os.rmdir(aside)


def _overlay(lower: str, target: str, upper: str, work: str, below: _Submounts, notes: list[str]) -> None:
    """`lower` at `target`, what is written goes to `upper`. What is mounted in `lower` stays, read-only."""
    try:
        _mount_overlay(lower, target, _OLD + upper, _OLD + work)
    except OSError as error:
        # The scratch directory's file system can't hold a layer: overlayfs itself, NFS, a FUSE.
        _memory_overlay(lower, target)
        notes.append(f"what is written to {target} is kept in memory: {_why(error)} in a layer on disk")
    for inner in below.of(lower):
        place = target + inner.removeprefix(lower)
        if os.path.exists(place):
            kernel.bind(inner, place)
            kernel.read_only(place)


def _memory_overlay(lower: str, target: str) -> None:
    aside = "/.layer"
    os.mkdir(aside)
    try:
        kernel.mount("tmpfs", aside, "tmpfs", 0, "mode=755")
        try:
            for name in ("/upper", "/work"):
                os.mkdir(aside + name)
            os.chmod(aside + "/upper", os.stat(lower).st_mode & 0o7777)
            _mount_overlay(lower, target, aside + "/upper", aside + "/work")
        finally:
            kernel.detach(aside)
    finally:
        os.rmdir(aside)


def _mount_overlay(lower: str, target: str, upper: str, work: str) -> None:
    descriptors = [os.open(path, os.O_PATH | os.O_CLOEXEC) for path in (lower, upper, work)]
    try:
        # By number: overlayfs would read commas and colons of a path as its own.
        places = [f"/proc/self/fd/{descriptor}" for descriptor in descriptors]
        data = "lowerdir={},upperdir={},workdir={}".format(*places)
        # userxattr: what a user namespace may have. volatile: or each end waits for the disk.
        for options in (",userxattr,volatile", ",userxattr", ""):
            try:
                kernel.mount("overlay", target, "overlay", 0, data + options)
            except OSError:
                if not options:
                    raise
            else:
                break
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


class _Submounts:
    """What is mounted below a directory of the machine. An overlay shows one file system, not those in it."""

    def __init__(self, own: str) -> None:
        points = {point for point, _ in kernel.mounts()}
        self._points = sorted(
            point for point in points if point.startswith(_OLD + "/") and not point.startswith(_OLD + own)
        )

    def of(self, folder: str) -> list[str]:
        """The outermost ones: a bind brings along what is mounted in them."""
        found: list[str] = []
        for point in self._points:
            if point.startswith(folder + "/") and not any(point.startswith(done + "/") for done in found):
                found.append(point)
        return found


def _why(error: OSError) -> str:
    return os.strerror(error.errno or 0)


def _make(path: str, folder: bool) -> None:
    if folder:
        os.mkdir(path)
    else:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o644))


def _make_target(path: str, like: str) -> None:
    """See that something can be mounted at `path`; never by writing into a directory of the machine."""
    if os.path.lexists(path) and not os.path.islink(path):
        return
    folder = os.path.isdir(like)
    missing = []
    parent = path
    while not os.path.isdir(parent):
        missing.append(parent)
        parent = os.path.dirname(parent)
    try:
        _make_all(missing, folder)
    except OSError:
        _shadow(parent)
        _make_all(missing, folder)


def _make_all(paths: list[str], folder: bool) -> None:
    for path in reversed(paths):
        _make(path, folder or path != paths[0])


def _shadow(folder: str) -> None:
    """Put a directory of ours, with the same things in it, where a read-only one is."""
    descriptor = os.open(folder, os.O_PATH | os.O_CLOEXEC)
    try:
        kernel.mount("tmpfs", folder, "tmpfs", 0, "mode=755")
        _fill(folder, f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
