"""pdb in the user's process, at a terminal that `harness debug` hands over; stdout and stderr stay the log's.

The terminal comes as a descriptor over a Unix socket, at the first stop. While the program stands, each byte that
comes over that socket is Ctrl-C: the kernel turns it into SIGINT, no thread has to listen.
"""

from __future__ import annotations

import fcntl
import json
import os
import pdb
import signal
import socket
import sys
import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType, TracebackType
    from typing import Any

__all__ = ["begin"]

_STANDS, _OVER = b"\2", b"\0"
_HIGH = 300
"""Descriptors of ours begin here: those that the script gets are the same as without us."""


class Prompt(str):
    """Not written but given to the line editor, which must know it."""


class Console:
    """The terminal, and the connection that it came by."""

    def __init__(self, files: Any, rank: int) -> None:
        self.files = files
        self.rank = rank
        self.standing = threading.RLock()
        """Held by the thread that has the terminal."""
        self._line = ""
        """What was written, or is to be, since the last line ended: what is typed comes behind it."""
        self._connection: socket.socket | None = None
        self._input: Any = None
        self._output: Any = None
        self._reader: Callable[[str], str] | None = None
        self._owner = os.getpid()
        self._lost = False

    # What pdb needs of a stdin and a stdout.

    def readline(self) -> str:
        prompt, self._line = self._line, ""
        self._put("\r")  # where the line editor begins
        if self._reader is not None:
            self.flush()
            return self._reader(prompt)
        self._put(prompt)
        self.flush()
        try:
            line: str = self._input.readline()
        except OSError:
            return ""  # the terminal is gone
        return line

    def write(self, text: str) -> int:
        self._line = (self._line + text).rpartition("\n")[2]
        if not isinstance(text, Prompt):
            self._put(text.replace("\0", "").replace("\2", ""))
        return len(text)

    def _put(self, text: str) -> None:
        try:
            self._output.write(text)
        except OSError:
            pass  # the terminal is gone; reading will tell

    def flush(self) -> None:
        try:
            self._output.flush()
        except OSError:
            pass

    def isatty(self) -> bool:
        return True

    @property
    def encoding(self) -> str:
        return "utf-8"

    # The connection.

    def open(self) -> str:
        """Get the terminal, unless we have it: "". Else why there is none."""
        if self.without:
            return "it has no terminal"
        if self._connection is not None:
            return ""
        path = self.files.path("rank-%d.sock" % self.rank)
        trial = path + ".new"
        for old in (path, trial):
            try:
                os.unlink(old)
            except FileNotFoundError:
                pass
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(trial)
            os.chmod(trial, 0o666)  # a container's root is nobody to the user who comes to it
            listener.listen(1)
            os.rename(trial, path)
            listener.setblocking(False)
            found: list[socket.socket] = []
            try:
                why: str = self.files.wait(lambda: _accept(listener, found))
            finally:
                os.unlink(path)
        if why:
            return why
        self._take(found[0])
        return ""

    def _take(self, connection: socket.socket) -> None:
        connection.setblocking(True)
        space = socket.CMSG_SPACE(4)
        data, control, _, _ = connection.recvmsg(4096, space, socket.MSG_CMSG_CLOEXEC)
        told = json.loads(data.decode("utf-8"))
        given = int.from_bytes(control[0][2][:4], sys.byteorder)
        reading, writing = (fcntl.fcntl(given, fcntl.F_DUPFD_CLOEXEC, _HIGH) for _ in range(2))
        os.close(given)
        high = fcntl.fcntl(connection.fileno(), fcntl.F_DUPFD_CLOEXEC, _HIGH)
        connection.close()
        self._connection = socket.socket(fileno=high)
        self._input = open(reading, encoding="utf-8", errors="replace")  # noqa: SIM115
        self._output = open(writing, "w", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
        try:
            self._reader = _line_editor(reading, writing, told["term"])
        except Exception:
            self._reader = None  # no readline here: the terminal's own line editing does

    def begin(self) -> None:
        """The program stands: keys go to it."""
        self._mark(_STANDS)

    def end(self) -> None:
        """It goes on."""
        self._mark(_OVER)

    def _mark(self, mark: bytes) -> None:
        """Told among what the program wrote, so that each byte is seen on the right side of it."""
        self.flush()
        try:
            os.write(self._output.fileno(), mark)
        except OSError:
            pass  # the terminal is gone; reading will tell

    def tell(self, **message: Any) -> None:
        try:
            assert self._connection is not None
            self._connection.sendall(json.dumps(message).encode("utf-8") + b"\n")
        except OSError:
            pass  # `harness debug` is gone; reading the terminal will tell

    def gone(self) -> bool:
        """Whether `harness debug` has ended."""
        assert self._connection is not None
        try:
            return not self._connection.recv(4096, socket.MSG_DONTWAIT | socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True

    @property
    def without(self) -> bool:
        """It was lost, or this is a child of the process that has it: there will be none."""
        return self._lost or self._owner != os.getpid()

    def lose(self) -> None:
        self._lost = True

    def interrupts(self, on: bool) -> None:
        """Whether what comes over the connection interrupts us."""
        assert self._connection is not None
        number = self._connection.fileno()
        flags = fcntl.fcntl(number, fcntl.F_GETFL)
        if on:
            try:
                self._connection.recv(4096, socket.MSG_DONTWAIT)  # of the stop before
            except OSError:
                pass
            fcntl.fcntl(number, fcntl.F_SETOWN, os.getpid())
            fcntl.fcntl(number, fcntl.F_SETSIG, signal.SIGINT)
            fcntl.fcntl(number, fcntl.F_SETFL, flags | os.O_ASYNC)
        else:
            fcntl.fcntl(number, fcntl.F_SETFL, flags & ~os.O_ASYNC)

    def await_end(self) -> None:
        """The user has quit: the job is being killed, and no more of the script may run before."""
        assert self._connection is not None
        try:
            while self._connection.recv(4096):
                pass
        except OSError:
            pass


def _accept(listener: socket.socket, found: list[socket.socket]) -> bool:
    try:
        found.append(listener.accept()[0])
    except BlockingIOError:
        return False
    return True


def _line_editor(reading: int, writing: int, term: str) -> Callable[[str], str]:
    """GNU readline on these descriptors. `input()` would use it only on 0 and 1, which are the script's."""
    import ctypes

    before = os.environ.get("TERM")
    os.environ["TERM"] = term  # read by readline when it is loaded
    try:
        import readline  # sets what PyOS_Readline calls

        readline.parse_and_bind("set bell-style none")  # it would ring in the log
    finally:
        if before is None:
            del os.environ["TERM"]
        else:
            os.environ["TERM"] = before
    libc = ctypes.CDLL(None)
    libc.fdopen.restype = ctypes.c_void_p
    libc.fdopen.argtypes = [ctypes.c_int, ctypes.c_char_p]
    streams = [libc.fdopen(reading, b"r"), libc.fdopen(writing, b"w")]
    edit = ctypes.pythonapi.PyOS_Readline
    edit.restype = ctypes.c_void_p
    edit.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p]
    free = ctypes.pythonapi.PyMem_Free
    free.restype, free.argtypes = None, [ctypes.c_void_p]

    def read(prompt: str) -> str:
        if not os.isatty(reading):
            return ""  # hung up; readline's stand-in would write the prompt into the log
        found = edit(streams[0], streams[1], prompt.encode("utf-8", "replace"))
        if not found:
            raise KeyboardInterrupt
        line = ctypes.string_at(found).decode("utf-8", "replace")
        free(found)
        return line

    return read


class Debugger(pdb.Pdb):
    """pdb at that terminal."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._text = ""
        self.headline = ""
        """Told when the program stands next."""
        self._dead = False
        """Post mortem: there is nothing to go on with."""
        super().__init__(stdin=console, stdout=console, nosigint=True)  # type: ignore[arg-type]
        self.use_rawinput = False

    @property
    def prompt(self) -> str:
        return Prompt(self._text)

    @prompt.setter
    def prompt(self, text: str) -> None:
        self._text = text

    def interaction(self, frame: Any, traceback: Any, *more: Any) -> None:
        with self.console.standing:
            why = self.console.open()
            if why:
                self._go_without(why)
                return
            self.console.files.pause()
            self.console.begin()
            if self.headline:
                self.message(self.headline)
                self.headline = ""
            restore = _interruptible(self.console)
            try:
                _complete_with(self.complete)
                super().interaction(frame, traceback, *more)
            finally:
                restore()
                self.console.end()
                self.console.files.resume()
                self.console.files.go()

    def _go_without(self, why: str) -> None:
        if not self.console.without:
            self.console.lose()
            self.console.files.say("rank %d goes on without a debugger: %s" % (self.console.rank, why))
        self.clear_all_breaks()
        self.set_continue()
        sys.settrace(None)

    def do_quit(self, arg: str) -> Any:
        """q(uit) | exit
        End the job: it is killed. After an uncaught exception it ends by itself.
        """
        del arg
        if self._dead:
            return True
        self.console.tell(quit=True)
        self.console.interrupts(False)
        self.console.await_end()
        self._go_without("`harness debug` was ended")
        return True

    do_q = do_quit
    do_exit = do_quit

    def do_EOF(self, arg: str) -> Any:
        """Ctrl-D, or the terminal is gone."""
        if self.console.gone():
            self._go_without("`harness debug` was ended")
            return True
        self.message("")
        return self.do_quit(arg)

    def user_return(self, frame: FrameType, return_value: Any) -> None:
        super().user_return(frame, return_value)
        if frame is self.botframe:  # what comes after the script's end isn't the user's
            self.set_continue()
            sys.settrace(None)

    def do_run(self, arg: str) -> None:
        """Not here: start `harness debug` again."""
        del arg
        self.error("a job runs once: quit, and start `harness debug` again")

    do_restart = do_run

    def do_interact(self, arg: str) -> None:
        """interact
        A console with the names of this place; Ctrl-D ends it.
        """
        del arg
        import code
        import rlcompleter

        frame: Any = self.curframe
        names = {**frame.f_globals, **frame.f_locals}

        def read(prompt: str) -> str:
            self.console.write(Prompt(prompt))
            line = self.console.readline()
            if not line:
                raise EOFError
            return line.rstrip("\n")

        before = sys.stdin, sys.stdout, sys.stderr
        sys.stdin = sys.stdout = sys.stderr = self.console
        try:
            _complete_with(rlcompleter.Completer(names).complete)
            code.interact("*interactive*", readfunc=read, local=names)
        finally:
            _complete_with(self.complete)
            sys.stdin, sys.stdout, sys.stderr = before

    def begin_at(self, frame: FrameType) -> Any:
        """Stop at the next line of `frame`, the script's outermost."""
        self.reset()
        self.botframe = frame
        frame.f_trace = self.trace_dispatch
        self.set_step()
        sys.settrace(self.trace_dispatch)
        return self.trace_dispatch

    def stand_at(self, value: BaseException, traceback: TracebackType | None, *, last: bool) -> None:
        """Post mortem, at the frame that raised. `last`: the program ends with it."""
        if traceback is None:
            return
        sys.settrace(None)
        self.reset()
        self._dead = last
        where = "" if last else " in thread %s" % threading.current_thread().name
        self.headline = "uncaught %s%s: %s" % (type(value).__name__, where, value)
        self.interaction(None, value if sys.version_info >= (3, 13) else traceback)


def _interruptible(console: Console) -> Callable[[], None]:
    """Let Ctrl-C at the prompt be a KeyboardInterrupt there; returns what makes that undone."""
    try:
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
    except ValueError:  # a thread's breakpoint: signals are the main thread's business
        return lambda: None
    console.interrupts(True)

    def restore() -> None:
        console.interrupts(False)
        signal.signal(signal.SIGINT, before)

    return restore


def _complete_with(complete: Any) -> None:
    readline: Any = sys.modules.get("readline")
    if readline is not None:
        readline.set_completer(complete)
        readline.parse_and_bind("tab: complete")


def begin(files: Any, rank: int, script: str | None) -> None:
    """See to it that breakpoint(), an uncaught exception and, with `wait`, the first line stop."""
    console = Console(files, rank)
    debugger = Debugger(console)
    if files.config["mode"] == "pdb":
        _take_breakpoints(debugger)
        if files.config["wait"]:
            files.pause()
            why = console.open()
            if why:
                files.give_up(
                    "TimeoutError: rank %d stood before its first line and %s: the script is not run"
                    % (rank, why)
                )
            files.resume()
            _stop_at_first_line(debugger, script)
        else:
            files.go()
    files.on_uncaught(lambda value, traceback: Debugger(console).stand_at(value, traceback, last=True))
    _see_threads(console)
    os.register_at_fork(after_in_child=_forget)


def _see_threads(console: Console) -> None:
    """An exception that isn't caught ends its thread only: the program goes on after the stop."""
    original = threading.excepthook
    owner = os.getpid()

    def hook(arguments: Any) -> None:
        original(arguments)
        sys.stderr.flush()
        value = arguments.exc_value
        if os.getpid() == owner and isinstance(value, Exception):
            Debugger(console).stand_at(value, arguments.exc_traceback, last=False)

    threading.excepthook = hook


def _take_breakpoints(debugger: Debugger) -> None:
    def here(*_: Any, **__: Any) -> None:
        if os.environ.get("PYTHONBREAKPOINT") != "0":
            sys.settrace(None)  # who steps over a breakpoint() shall not see the debugger debugged
            debugger.set_trace(sys._getframe().f_back)

    def set_trace(*, header: str | None = None, **_: Any) -> None:
        debugger.headline = header or ""
        sys.settrace(None)
        debugger.set_trace(sys._getframe().f_back)

    sys.breakpointhook = here
    pdb.set_trace = set_trace


def _stop_at_first_line(debugger: Debugger, script: str | None) -> None:
    def first(frame: FrameType, event: str, argument: Any) -> Any:
        del argument
        code = frame.f_code
        if event != "call" or code.co_name != "<module>" or frame.f_globals.get("__name__") != "__main__":
            return None
        if script is not None and os.path.realpath(code.co_filename) != script:
            return None
        return debugger.begin_at(frame)

    sys.settrace(first)


def _forget() -> None:
    """A forked child, such as a worker of a DataLoader, runs without a debugger: there is one terminal."""
    sys.settrace(None)
    sys.breakpointhook = lambda *_, **__: None
