"""A warm host's first process."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import frames  # noqa: E402

IO = "/run/harness/io"


def others():
    me = os.getpid()
    return [int(n) for n in os.listdir("/proc") if n.isdigit() and int(n) != me]


def run(words, output, keep):
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        null = os.open("/dev/null", os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.closerange(3, 256)
        os.chdir("/")
        os.umask(0o022)
        signal.set_wakeup_fd(-1)
        for n in range(1, 65):
            try:
                signal.signal(n, signal.SIG_DFL)
            except (OSError, ValueError):
                pass
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        os.execvpe(words["argv"][0], words["argv"], words["environment"])
    except BaseException as error:
        os.write(2, f"{error}\n".encode())
    os._exit(127)


def clean():
    while True:
        for pid in others():
            try:
                os.kill(pid, 9)
            except ProcessLookupError:
                pass
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass
        if not others():
            break
        time.sleep(0.002)
    for folder in ("/tmp", "/var/tmp", "/dev/shm"):
        for name in os.listdir(folder):
            path = os.path.join(folder, name)
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path, ignore_errors=True)
            else:
                os.unlink(path)


def main():
    config = json.load(open(IO + "/config.json"))
    environment = dict(os.environ)
    listen = socket.socket(socket.AF_UNIX)
    listen.bind(IO + "/k")
    os.chmod(IO + "/k", 0o666)
    listen.listen(1)
    line, _ = listen.accept()
    frames.send(line, {"ready": {"environment": environment, "python": sys.version.split()[0], "preloaded": [], "excluded": {}, "forks": False, "why": "no preload"}})
    r, w = os.pipe()
    os.set_blocking(w, False)
    os.set_blocking(r, False)
    signal.signal(signal.SIGCHLD, lambda *a: None)
    signal.set_wakeup_fd(w)
    running = 0
    while True:
        ready, _, _ = select.select([line, r], [], [])
        if r in ready:
            try:
                os.read(r, 1000)
            except BlockingIOError:
                pass
            while True:
                try:
                    pid, status = os.waitpid(-1, os.WNOHANG)
                except ChildProcessError:
                    break
                if not pid:
                    break
                if pid == running:
                    running = 0
                    code = os.waitstatus_to_exitcode(status)
                    clean()
                    frames.send(line, {"ended": {"code": code if code >= 0 else 128 - code}})
        if line in ready:
            try:
                words, fds = frames.receive(line)
            except (EOFError, OSError):
                os._exit(0)
            if "run" in words:
                running = run(words["run"], fds[0], line)
                os.close(fds[0])
                frames.send(line, {"started": running})
            elif "signal" in words and running:
                os.kill(running, words["signal"])
            elif "exit" in words:
                os._exit(0)


main()
