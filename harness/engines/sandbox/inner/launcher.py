"""Starts one host, watches it, and ends it when its supervisor ends.

    supervisor ── launcher ── the host's process 1 ── …
                  (outside)   (inside the namespaces)

The supervisor holds the write end of the control pipe: first the configuration, then one byte per signal.
Its end of file means that the supervisor is gone, by whatever death, and kills the host. A parent-death
signal would not do: it fires when the *thread* that started us ends. The launcher tells what happens on
the status pipe, in frames of `marshal` (json costs 15 ms to import; both ends are one interpreter).
"""

from __future__ import annotations

import errno
import marshal
import os
import resource  # now: a host with another Python doesn't see this one's library
import select
import sys
import time

from . import kernel

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing alone takes as long to import as all the rest
    from typing import Any, NoReturn

    from .memory import Guard

    Config = dict[str, Any]

NOT_FOUND = 127
NOT_EXECUTABLE = 126

_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def main() -> None:
    """Entry of the launcher: `… MODE STATUS_FD`, the control pipe on standard input."""
    mode, status = sys.argv[1], int(sys.argv[2])
    os.set_inheritable(status, False)
    control = os.dup(0)
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0)
    os.umask(0o022)
    try:
        config: Config = read_frame(control)
    except EOFError:
        os._exit(0)  # whoever started us has nothing to be started after all
    try:
        if mode == "host":
            run_host(config, control, status, null)
        elif mode == "enter":
            from . import enter

            enter.run(config, control, status, null)
        else:
            hold_network(config, control, status)
    except OSError as error:
        write_frame(status, {"failed": str(error)})
    os._exit(0)  # nothing is open that Python would have to flush


# ------------------------------------------------------------------------------------------------ frames


def write_frame(descriptor: int, value: Any) -> None:
    data = marshal.dumps(value)
    data = len(data).to_bytes(8, "big") + data
    while data:
        data = data[os.write(descriptor, data) :]


def read_frame(descriptor: int) -> Any:
    """The next frame; EOFError when the other end is closed."""
    return marshal.loads(_read_exactly(descriptor, int.from_bytes(_read_exactly(descriptor, 8), "big")))


def _read_exactly(descriptor: int, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = os.read(descriptor, size - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data


# ------------------------------------------------------------------------------------------ user namespace


def enter_user_namespace() -> None:
    """Become root of a user namespace.

    As an ordinary user only ourselves are mapped (as root), so all that the host writes belongs to that
    user. As real root every id that we know is mapped to itself, or files of others would be nobody's.
    """
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0 and _map_all_ids():
        return
    kernel.unshare(kernel.CLONE_NEWUSER)
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"0 {uid} 1")
    _write("/proc/self/gid_map", f"0 {gid} 1")


def _map_all_ids() -> bool:
    """Whether the whole range could be mapped. Only a process that stays outside may write such a map."""
    maps = {}
    for name in ("uid_map", "gid_map"):
        with open(f"/proc/self/{name}") as file:
            ranges = [line.split() for line in file]
        maps[name] = "".join(f"{inside} {inside} {count}\n" for inside, _, count in ranges)
    me = os.getpid()
    unshared, tell = os.pipe()
    helper = os.fork()
    if helper == 0:
        code = 0
        try:
            os.close(tell)
            if os.read(unshared, 1):
                for name, text in maps.items():
                    _write(f"/proc/{me}/{name}", text)
        except OSError:
            code = 1
        os._exit(code)
    os.close(unshared)
    try:
        kernel.unshare(kernel.CLONE_NEWUSER)
        os.write(tell, b"1")
    finally:
        os.close(tell)
        _, code = os.waitpid(helper, 0)
    if code and not _mapped():
        # Root without CAP_SETUID or CAP_SETFCAP: ourselves alone, as an ordinary user.
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", "0 0 1")
        _write("/proc/self/gid_map", "0 0 1")
    return True


def _mapped() -> bool:
    with open("/proc/self/uid_map") as file:
        return bool(file.read().strip())


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


# ------------------------------------------------------------------------------------------------ the host


def run_host(config: Config, control: int, status: int, null: int) -> None:
    """Start the host's process 1, report it, pass signals on, report its end, clean up."""
    groups = [os.open(path, os.O_WRONLY) for path in config["cgroup_procs"]]
    confined = config["mode"] == "namespaces"
    if config["join"]:
        for kind, descriptor in config["join"]:
            kernel.setns(descriptor, kind)
            os.close(descriptor)
    elif confined and config["user_namespace"]:
        enter_user_namespace()
    if confined:
        # The mount namespace is the child's alone: this process must keep seeing the real paths.
        kernel.unshare(kernel.CLONE_NEWPID)
    else:
        kernel.adopt_orphans()
    progress, tell = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(progress)
        _become_host(config, groups, tell)
    os.close(tell)
    os.dup2(null, 1)  # from here on only the host holds the output pipe: it ends with the host
    os.dup2(null, 2)
    for descriptor in groups:
        os.close(descriptor)
    report: Config = {"pid": child, "notes": [], "setup": None, "exec": None}
    try:
        while True:
            report.update(read_frame(progress))
    except EOFError:
        os.close(progress)
    write_frame(status, report)
    guard = None
    if config["memory_limit"]:
        from .memory import Guard

        guard = Guard(child, config["memory_limit"])
    ended = _watch(child, control, guard)
    if not confined:
        _kill_descendants()
    kills = guard.kills if guard else _oom_kills(config["oom_file"])
    told = {"status": ended, "oom_kills": kills}
    try:
        write_frame(status, told)
    except BrokenPipeError:
        pass  # the supervisor is dead, nobody to tell
    _clean(config)


def _watch(child: int, control: int, guard: Guard | None) -> int:
    """The wait status of `child`; signals that come on the control pipe are passed on until then."""
    poll = select.poll()
    poll.register(control, select.POLLIN)
    try:
        handle = os.pidfd_open(child)
    except (AttributeError, OSError):  # Linux before 5.3
        most: int | None = 20
    else:
        most = None
        poll.register(handle, select.POLLIN)
    while True:
        pause = most if guard is None else min(guard.look(), most or 500)
        events = dict(poll.poll(pause))
        pid, ended = os.waitpid(child, os.WNOHANG)
        if pid:
            return ended
        if control in events:
            numbers = os.read(control, 64)
            if not numbers:
                poll.unregister(control)
                numbers = bytes([kernel.SIGKILL])
            for number in numbers:
                os.kill(child, number)


def _kill_descendants() -> None:
    """Without a PID namespace: kill until none is left. Orphans come to us, so none can slip away."""
    me = os.getpid()
    while True:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        for pid in _children(me):
            os.kill(pid, kernel.SIGKILL)
        time.sleep(0.002)


def _children(parent: int) -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    after_name = file.read().rpartition(b")")[2].split()
            except OSError:
                continue  # it ended meanwhile
            if int(after_name[1]) == parent and after_name[0] != b"Z":
                found.append(int(name))
    return found


def _oom_kills(path: str | None) -> int | None:
    if path is None:
        return None
    try:
        with open(path) as file:
            for line in file:
                name, _, count = line.partition(" ")
                if name == "oom_kill":
                    return int(count)
    except OSError:
        pass  # the control group is gone: nothing is known
    return None


def _clean(config: Config) -> None:
    """Nothing of what the host had of its own outlives it, not even when the supervisor is dead."""
    from .remove import remove_tree

    for path in config["remove"]:
        remove_tree(path)
    for path in config["cgroup_directories"]:
        for _ in range(50):
            try:
                os.rmdir(path)
            except FileNotFoundError:
                break
            except OSError:  # busy for a moment after the last process ended
                time.sleep(0.01)
            else:
                break


# ------------------------------------------------------------------------------------- inside: process 1


def _become_host(config: Config, groups: list[int], tell: int) -> NoReturn:
    """Everything between fork and exec. Reports what went wrong, then ends; never returns."""
    code = NOT_EXECUTABLE
    try:
        os.setsid()
        kernel.die_with_parent()
        for descriptor in groups:
            os.write(descriptor, b"0")
        environment: dict[str, str] = config["environment"]
        if config["mode"] == "namespaces":
            from . import root

            kernel.unshare(kernel.CLONE_NEWNS | kernel.CLONE_NEWUTS | kernel.CLONE_NEWIPC)
            kernel.set_hostname(config["hostname"])
            notes, pip_closed = root.build(config)
            if pip_closed:
                environment |= config["pip_fallback"]
            # Fails when the launcher is dead: then it didn't see us ask to die with it.
            write_frame(tell, {"notes": notes})
            kernel.drop_capabilities()
        os.chdir("/")
        limits()
        kernel.default_signals()
        for descriptor in (0, 1, 2):
            os.set_inheritable(descriptor, True)
        code, reason = execute(config["argv"], environment)
        write_frame(tell, {"exec": {"code": code, "error": reason}})
    except BaseException as error:
        write_frame(tell, {"setup": f"{type(error).__name__}: {error}"})
    os._exit(code)


def limits() -> None:
    """As many open files as may be, as container engines give; no core dumps into the user's directories."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))


def execute(argv: list[str], environment: dict[str, str]) -> tuple[int, str]:
    """Replace this process; only on failure the exit code and the words for it (contract: A2, A3)."""
    name = argv[0]
    if "/" in name:
        candidates = [name]
    else:
        path = environment.get("PATH", _DEFAULT_PATH)
        candidates = [os.path.join(folder or ".", name) for folder in path.split(":")]
        candidates = [file for file in candidates if os.path.isfile(file) and os.access(file, os.X_OK)]
        if not candidates:
            return NOT_FOUND, f'exec: "{name}": executable file not found in $PATH'
    try:
        os.execve(candidates[0], argv, environment)
    except OSError as error:
        missing = error.errno in (errno.ENOENT, errno.ENOTDIR)
        reason = {errno.ENOENT: "no such file or directory", errno.EACCES: "permission denied"}.get(
            error.errno or 0, os.strerror(error.errno or 0).lower()
        )
        if error.errno == errno.EACCES and os.path.isdir(candidates[0]):
            reason = "is a directory"
        return (NOT_FOUND if missing else NOT_EXECUTABLE), f'exec: "{name}": {reason}'


# ------------------------------------------------------------------------------------ the job's network


def hold_network(config: Config, control: int, status: int) -> None:
    """A network namespace for all hosts of a job; it lives as long as someone holds it open."""
    from . import network

    if config["user_namespace"]:
        enter_user_namespace()
    kernel.unshare(kernel.CLONE_NEWNET)
    interface = network.set_up(config["interface"], config["addresses"])
    write_frame(status, {"interface": interface})
    os.read(control, 1)  # until the supervisor has opened the namespaces, or is dead
