"""debugpy in the user's process: listening before the first line, for editors that come over a Unix socket."""

from __future__ import annotations

import os
import sys
import threading
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["begin"]


def begin(files: Any, rank: int, script: Any) -> None:
    """Listen, and with `wait` stand before the first line until an editor is attached.

    Ends the process with a sentence when debugpy can't run here or nobody comes.
    """
    del script
    config = files.config
    debugpy, port = _listen(files, config["debugpy"], tuple(config["debugpy_needs"]))
    sys.breakpointhook = debugpy.breakpoint
    _forget_in_children()
    if config["wait"]:
        files.pause()  # before anybody can know that it stands
    _relay(files, rank, port)
    if config["wait"]:
        _await(debugpy, files, rank)
    _see_uncaught(debugpy, files)
    files.go()


def _see_uncaught(debugpy: Any, files: Any) -> None:
    """Where pydevd traces, it looks for the outermost frame when it begins, and exceptions that leave the script's
    own, which comes later, escape it. Where it uses sys.monitoring they don't."""
    constants: Any = sys.modules.get("_pydevd_bundle.pydevd_constants")
    if getattr(constants, "PYDEVD_USE_SYS_MONITORING", False):
        return
    tell = getattr(debugpy, "trigger_exception_handler", None)
    if tell is None:
        return
    seen = _seen_by_pydevd()

    def uncaught(value: BaseException, traceback: Any) -> None:
        if not any(each is value for each in seen):
            tell((type(value), value, traceback))

    files.on_uncaught(uncaught)


def _seen_by_pydevd() -> list[BaseException]:
    """The uncaught exceptions that it saw by itself; with "raised" it traces the outermost frame as well."""
    seen: list[BaseException] = []
    pydevd: Any = sys.modules["pydevd"].get_global_debugger()
    before = getattr(pydevd, "stop_on_unhandled_exception", None)
    if before is not None:

        def stop(debugger: Any, thread: Any, information: Any, exception: Any) -> Any:
            seen.append(exception[1])
            return before(debugger, thread, information, exception)

        pydevd.stop_on_unhandled_exception = stop
    return seen


def _listen(files: Any, place: str, needs: Any) -> Any:
    """The machine's debugpy, listening; or one that the host has itself where that one is too new for it."""
    before = dict(os.environ)
    # It would warn into the log that frozen modules can't be debugged; nobody wants to.
    os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"
    ours = sys.version_info[:2] >= needs
    if ours:
        sys.path.insert(0, place)
    try:
        import debugpy

        # Children would be sessions of their own, at a port that nobody outside the host can reach.
        debugpy.configure(subProcess=False)
        _, port = debugpy.listen(("127.0.0.1", 0))
    except Exception as error:
        here = "%d.%d" % sys.version_info[:2]
        if ours:
            told: Any = (here, type(error).__name__, error)
            why = "the machine's debugpy can't be used by the host's Python %s (%s: %s)" % told
        else:
            told = (*needs, here)
            why = "the machine's debugpy needs Python %d.%d, the host has %s and no debugpy of its own" % told
        files.give_up(
            "ImportError: %s: use `harness debug --pdb`, or put debugpy into the image or requirements.txt"
            % why
        )
    finally:
        if ours:
            sys.path.remove(place)
        _restore(before)
    _answer(debugpy, files, ("127.0.0.1", port))
    return debugpy, port


def _restore(before: dict[str, str]) -> None:
    """debugpy sets variables as well, and the script's children would have them."""
    for name in [name for name in os.environ if name not in before]:
        del os.environ[name]
    for name, value in before.items():
        if os.environ.get(name) != value:
            os.environ[name] = value


def _answer(debugpy: Any, files: Any, endpoint: Any) -> None:
    """A script that listens for an editor itself goes on with the one that is there: no second can be."""

    def listen(address: Any, **_: Any) -> Any:
        del address
        files.say("the script's own debugpy.listen() is answered: its editor is the one of `harness debug`")
        return endpoint

    debugpy.listen = listen


def _relay(files: Any, rank: int, port: int) -> None:
    """Start the process that editors come through; it is nobody's child and ends with us."""
    import subprocess

    program = os.path.join(os.path.dirname(os.path.abspath(__file__)), "relay.py")
    command: list[str] = [sys.executable, "-I", "-S", program]
    command += [files.place, str(rank), str(port), str(os.getpid())]
    subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)


def _await(debugpy: Any, files: Any, rank: int) -> None:
    over = threading.Event()
    why: list[str] = []

    def watch() -> None:
        told = files.wait(lambda: over.is_set() or debugpy.is_client_connected())
        if told:
            why.append(told)
            while not over.is_set():
                try:
                    debugpy.wait_for_client.cancel()
                except RuntimeError:
                    pass  # it hasn't begun to wait
                time.sleep(0.05)

    thread: Any = threading.Thread(target=watch, daemon=True)
    thread.pydev_do_not_trace = thread.is_pydev_daemon_thread = True
    thread.start()
    debugpy.wait_for_client()
    over.set()
    thread.join()
    files.resume()
    if why and not debugpy.is_client_connected():
        files.give_up(
            "TimeoutError: rank %d stood before its first line and %s: the script is not run" % (rank, why[0])
        )


def _forget_in_children() -> None:
    """A forked child, such as a worker of a DataLoader, has none of debugpy's threads: a breakpoint in it
    would stand for ever. So it runs without a debugger."""

    def forget() -> None:
        sys.breakpointhook = lambda *_, **__: None
        sys.modules["pydevd"].settrace_forked(setup_tracing=False)
        sys.settrace(None)
        threading.settrace(None)
        monitoring = getattr(sys, "monitoring", None)
        if monitoring is not None and monitoring.get_tool(monitoring.DEBUGGER_ID) is not None:
            monitoring.set_events(monitoring.DEBUGGER_ID, 0)

    os.register_at_fork(after_in_child=forget)
