"""`harness debug` as a process of its own: an editor over the Debug Adapter Protocol, and pdb in a terminal."""

from __future__ import annotations

import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.errors import COMPLETED, FAILED, INTERRUPTED, STOPPED
from harness.home import Home
from harness.store import Store
from tests.jobs.conftest import Job, processes_of
from tests.jobs.debug_client import Client
from tests.jobs.terminals import Typist

COMMAND = (sys.executable, "-m", "harness", "debug")

PLAIN = """\
import os, sys

def work(count):
    total = 0
    for number in range(count):
        total += number
    return total

print(f"begin {[name for name in os.environ if 'HARNESS' in name]}", flush=True)
value = work(5)
breakpoint()
print(f"value {value}", flush=True)
places = [place for place in sys.path + os.environ["PYTHONPATH"].split(":") if "harness/debug" in place]
print(f"places {places}")
open("/opt/ml/model/model.txt", "w").write("weights")
"""

RANKS = """\
import os
import torch
import torch.distributed as dist

class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        value = torch.tensor([float(index)])
        return value

def step(batch, rank):
    total = batch.sum() + rank
    dist.all_reduce(total)
    return total

dist.init_process_group("gloo")
rank = dist.get_rank()
for number, batch in enumerate(torch.utils.data.DataLoader(Data(), num_workers=1)):
    print("rank", rank, "step", number, "value", step(batch, rank).item(), flush=True)
dist.destroy_process_group()
"""
LIGHT_RANKS = """\
import multiprocessing
import os

rank = int(os.environ["RANK"])


class Data:
    def item(self, index):
        value = float(index)
        return value


def step(value, rank):
    total = value
    total += rank
    return total


with multiprocessing.get_context("fork").Pool(1) as pool:
    for number, value in enumerate(pool.imap(Data().item, range(4))):
        print("rank", rank, "step", number, "value", step(value, rank), flush=True)
"""
"""The same lines without torch, whose import takes long in a debugger."""
TORCHRUN: dict[str, Any] = {
    "distribution": {"torch_distributed": {"enabled": True}},
    "hyperparameters": {"sagemaker_mpi_num_of_processes_per_host": 2},
    # Python 3.11 and the PyTorch of Debian's torchrun disagree about flags that are zero.
    "environment": {"PET_REDIRECTS": "1", "PET_TEE": "1"},
}

Write = Callable[..., Path]


class Session:
    """`harness debug` without a terminal."""

    def __init__(self, spec: Path, home: Path, *words: str) -> None:
        self.project = spec.parent
        self.home = Home(home)
        self.process = subprocess.Popen(
            [*COMMAND, *words],
            cwd=spec.parent,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        self.lines: list[str] = []
        self.clients: list[Client] = []
        self._new: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as stream:
            for line in stream:
                self._new.put(line.rstrip("\n"))
        self._new.put(None)

    def until(self, pattern: str, seconds: float = 90) -> re.Match[str]:
        """The next line that the pattern is found in."""
        deadline = time.monotonic() + seconds
        while True:
            line = self._new.get(timeout=max(0.01, deadline - time.monotonic()))
            assert line is not None, f"it ended without {pattern!r}:\n" + "\n".join(self.lines[-60:])
            self.lines.append(line)
            if found := re.search(pattern, line):
                return found

    def client(self) -> Client:
        """An editor, when the script waits for one."""
        self.clients.append(Client(int(self.until(r"attach to 127\.0\.0\.1:(\d+)")[1])))
        return self.clients[-1]

    def again(self) -> Client:
        """Another editor at the same port."""
        self.clients.append(Client(self.clients[0].port))
        return self.clients[-1]

    @property
    def mappings(self) -> list[dict[str, str]]:
        return [{"localRoot": str(self.project / "code"), "remoteRoot": "/opt/ml/code"}]

    @property
    def script(self) -> Path:
        return self.project / "code" / "train.py"

    def end(self, seconds: float = 60) -> int:
        """Its exit code; all it wrote is in `lines` then."""
        code = self.process.wait(timeout=seconds)
        self._reader.join()
        while (line := self._new.get_nowait()) is not None:
            self.lines.append(line)
        return code

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def close(self) -> None:
        for client in self.clients:
            client.close()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._reader.join()


def the_job(home: Path) -> Job:
    """The one job of this state directory, as soon as it is on record."""
    place = Home(home)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if place.db.exists():
            with Store(place) as store:
                found = store.jobs(limit=1)
            if found:
                return Job(place, found[0].name)
        time.sleep(0.05)
    raise AssertionError("no job was submitted")


@pytest.fixture
def debug(write_spec: Write, home: Path) -> Iterator[Callable[..., Session]]:
    """`debug(script, *words, engine=…, …spec)`: the command, begun."""
    begun: list[Session] = []

    def begin(script: str, *words: str, engine: str, **spec: Any) -> Session:
        begun.append(Session(write_spec(script, engine=engine, **spec), home, *words))
        return begun[-1]

    yield begin
    for session in begun:
        session.close()


@pytest.fixture
def typist(write_spec: Write, home: Path) -> Iterator[Callable[..., Typist]]:
    """`typist(script, *words, engine=…, …spec)`: the command in a terminal."""
    begun: list[Typist] = []

    def begin(script: str, *words: str, engine: str, **spec: Any) -> Typist:
        cwd = write_spec(script, engine=engine, **spec).parent
        environment = {**os.environ, "HARNESS_HOME": str(home)}
        begun.append(Typist([*COMMAND, *words], cwd=cwd, environment=environment))
        return begun[-1]

    yield begin
    for each in begun:
        each.close()


Debug = Callable[..., Session]
Types = Callable[..., Typist]


# ------------------------------------------------------------------------------------------------------- editors


def test_an_editor_attaches_steps_and_goes(debug: Debug, home: Path, engine_name: str) -> None:
    """By the local path of a line; the script sees nothing of it; what it stands is counted apart."""
    session = debug(PLAIN, engine=engine_name)
    client = session.client()
    host = Home(home).job(the_job(home).name) / "hosts" / "algo-1"
    assert host.stat().st_mode & 0o077 == 0  # the debugger runs anybody's code
    begun = time.monotonic()
    time.sleep(0.5)  # an editor that takes its time
    stood = time.monotonic() - begun
    assert client.attach(session.mappings, {session.script: [6]}) == [True]
    thread, frame = client.stopped()
    assert (frame["name"], frame["line"], frame["source"]["path"]) == ("work", 6, str(session.script))
    assert client.locals(frame["id"]) == {"count": "5", "number": "0", "total": "0"}
    assert int(client.evaluate("len([count, total])", frame["id"])) == 2
    client.ask("next", threadId=thread)
    thread, frame = client.stopped()
    assert frame["line"] == 5
    client.ask("setBreakpoints", source={"path": str(session.script)}, breakpoints=[])
    client.ask("continue", threadId=thread)
    thread, frame = client.stopped()  # breakpoint() in the script
    assert frame["line"] in (11, 12)
    assert client.locals(frame["id"])["value"] == "10"
    client.close()  # an editor that is closed while the script stands: it goes on
    assert session.end() == COMPLETED, session.text
    assert "begin []" in session.text
    assert "value 10" in session.text
    assert "places []" in session.text
    job = the_job(home)
    assert job.archive() == {"model.txt": b"weights"}
    assert job.record.result["paused"]["seconds"] > stood - 0.2
    assert not processes_of(job)


@pytest.mark.parametrize(
    ("engine", "script", "total", "end"),
    [
        ("sandbox", RANKS, "tensor(1.)", "rank 0 step 3 value 7.0"),
        pytest.param("docker", LIGHT_RANKS, "1.0", "rank 0 step 3 value 3.0", marks=pytest.mark.docker),
    ],
    ids=["sandbox", "docker"],
)
def test_one_rank_of_two_under_torchrun(debug: Debug, engine: str, script: str, total: str, end: str) -> None:
    """Rank 0 waits for rank 1; workers of a DataLoader, or a pool, run through breakpoints."""
    session = debug(script, "--rank", "1", engine=engine, **TORCHRUN)
    assert "(gloo) or 10 min (NCCL)" in session.until("give up after")[0] + session.text
    client = session.client()
    assert "rank 1 of 2" in session.lines[-1]
    assert client.attach(session.mappings, {session.script: [10, 16]}) == [True, True]
    _thread, frame = client.stopped()
    assert (frame["name"], frame["line"]) == ("step", 16)
    found = client.locals(frame["id"])
    assert (found["rank"], found["total"]) == ("1", total)
    client.ask("disconnect")
    session.until("rank 1 step 0 value 1.0")
    assert session.end() == COMPLETED, session.text
    assert end in session.text


def test_another_editor_after_the_first(debug: Debug) -> None:
    script = "import time\nfor number in range(600):\n    time.sleep(0.1)\n"
    session = debug(script, engine="sandbox")
    first = session.client()
    first.attach(session.mappings, {session.script: [3]})
    first.stopped()
    first.close()
    second = session.again()
    second.attach(session.mappings, {session.script: [3]})
    _, frame = second.stopped()
    assert frame["line"] == 3
    second.evaluate("exec('import os; os._exit(0)')", frame["id"], wait=False)
    assert session.end() == COMPLETED, session.text


@pytest.mark.docker
def test_a_job_without_a_network(debug: Debug) -> None:
    session = debug(PLAIN, engine="docker", enable_network_isolation=True)
    client = session.client()
    assert client.attach(session.mappings, {session.script: [4]}) == [True]
    _thread, frame = client.stopped()
    assert client.locals(frame["id"]) == {"count": "5"}
    client.ask("disconnect")
    assert session.end() == COMPLETED, session.text


def test_an_uncaught_exception_stops_an_editor_that_asks_for_it(debug: Debug) -> None:
    """Once, also one that asks for those that are raised as well."""
    session = debug("def fail(secret):\n    return [1][secret]\n\nfail(7)\n", engine="sandbox")
    client = session.client()
    client.attach(session.mappings, {}, filters=("raised", "uncaught"))
    uncaught = []
    while not uncaught:
        thread, frame = client.stopped()
        if client.ask("exceptionInfo", threadId=thread)["breakMode"] == "unhandled":
            uncaught.append((frame["line"], client.locals(frame["id"])["secret"]))
        client.ask("continue", threadId=thread)
    assert uncaught == [(2, "7")]
    assert session.end() == FAILED
    assert "IndexError" in session.text


@pytest.mark.parametrize("command", ["terminate", "disconnect"])
def test_an_editor_ends_the_program(debug: Debug, command: str) -> None:
    """The job is killed, as by the debugger's `q`; it doesn't end as if its work was done."""
    session = debug(PLAIN, engine="sandbox")
    client = session.client()
    client.attach(session.mappings, {session.script: [6]})
    client.stopped()
    client.send(command, **({"terminateDebuggee": True} if command == "disconnect" else {}))
    assert session.end() == STOPPED, session.text
    assert "you have quit the debugger: the job is killed" in session.text


def test_ctrl_c_while_nobody_is_attached(debug: Debug) -> None:
    """There is nothing that a SIGTERM could reach, so nobody waits for the grace to be over."""
    session = debug(PLAIN, engine="sandbox", local={"stop_grace": 600})
    session.until("attach to")
    session.process.send_signal(signal.SIGINT)
    assert session.end() == INTERRUPTED
    assert "killing the job: it stands in a debugger" in session.text


@pytest.mark.parametrize(
    ("entry_point", "files"),
    [
        ("start.sh", {"start.sh": "python -c 'print(1)'\nexec python tool.py --x 1\n", "tool.py": PLAIN}),
        (
            "tool.py",
            {
                "setup.py": "from setuptools import setup\nsetup(name='tool', py_modules=['tool'])\n",
                "tool.py": PLAIN,
            },
        ),
    ],
    ids=["shell", "package"],
)
def test_entry_points_that_are_no_script(debug: Debug, entry_point: str, files: dict[str, str]) -> None:
    session = debug(
        files[entry_point], engine="sandbox", entry_point=entry_point, files={**files, "train.py": ""}
    )
    client = session.client()
    # What pip installed lies elsewhere; a breakpoint() finds its place by itself.
    client.attach(session.mappings, {})
    _thread, frame = client.stopped()
    assert frame["line"] in (11, 12)
    client.ask("disconnect")
    assert session.end() == COMPLETED, session.text


def test_a_script_that_listens_for_an_editor_itself(debug: Debug) -> None:
    """Its editor is ours; and its children have none of debugpy's variables."""
    script = """\
        import debugpy, subprocess, sys

        debugpy.listen(5678)
        debugpy.wait_for_client()
        debugpy.breakpoint()
        show = "import os; print('child', [name for name in os.environ if 'PYDEVD' in name])"
        subprocess.run([sys.executable, "-c", show], check=True)
        """
    session = debug(script, engine="sandbox")
    client = session.client()
    client.attach(session.mappings, {})
    thread, frame = client.stopped()
    assert frame["line"] in (5, 6)
    client.ask("continue", threadId=thread)
    assert session.end() == COMPLETED, session.text
    assert "debugpy.listen() is answered" in session.text
    assert "child []" in session.text


def test_nobody_attaches(debug: Debug) -> None:
    session = debug(PLAIN, "--attach-timeout", "1", engine="sandbox", local={"warm": True})
    assert session.end() == FAILED
    assert (
        "why         rank 0 stood before its first line and nothing was attached within 1 s" in session.text
    )
    assert "begin" not in session.text
    assert "[local] warm has no effect here" in session.text


def test_harness_debug_is_killed_while_the_script_waits(debug: Debug, home: Path) -> None:
    session = debug(PLAIN, engine="sandbox")
    session.until("attach to")
    session.process.kill()
    job = the_job(home)
    record = job.wait()
    assert record.status == "Failed"
    assert b"`harness debug` was ended: the script is not run" in job.log()
    assert not processes_of(job)


def test_no_wait_runs_on(debug: Debug) -> None:
    session = debug(PLAIN, "--no-wait", engine="sandbox")
    assert session.end() == COMPLETED, session.text
    assert "the script runs: attach to" in session.text


def test_a_host_whose_python_is_too_old_for_debugpy(debug: Debug) -> None:
    session = debug(PLAIN, engine="sandbox", local={"python": other_python((3, 9))})
    assert session.end() == FAILED
    assert "the machine's debugpy needs Python 3.10, the host has 3.9" in session.text


def other_python(version: tuple[int, int]) -> str:
    """Another interpreter of this machine; skips where there is none."""
    name = "{}.{}".format(*version)
    for place in (Path.home() / ".pyenv/versions").glob(f"{name}.*/bin/python{name}"):
        return str(place)
    pytest.skip(f"this machine has no Python {name}")


# ------------------------------------------------------------------------------------------------------ terminals

FAILS = """\
import os, sys, time

def broken(secret):
    some = [1, 2, 3]
    return some[secret]

print("begin", flush=True)
broken(7)
"""


def test_pdb_in_the_terminal(typist: Types, home: Path, engine_name: str) -> None:
    """Stops at the first line, at a line, at Ctrl-C, and post mortem; the terminal is as it was in between."""
    it = typist(FAILS, "--pdb", engine=engine_name)
    it.expect("engine:")
    modes = it.modes
    it.expect("train.py(1)<module>")
    it.expect("(Pdb) ")
    assert it.modes != modes
    it.type("b broken\r")
    it.expect("Breakpoint 1")
    it.expect("(Pdb) ")
    it.type("c\r")
    it.expect("train.py(4)broken")
    it.expect("(Pdb) ")
    it.type("p secrex\x7ft + 1\r")  # a line that is edited
    it.expect("\n8")
    it.expect("(Pdb) ")
    it.type("len(os.ttyname.__name__), sys.stdin.isatty()\r")
    it.expect("(7, True)")
    it.expect("(Pdb) ")
    it.type("time.sleep(60)\r")
    it.expect("sleep(60)")
    it.shows("\x1b[0mbegin")  # the log goes on above the prompt
    time.sleep(0.2)
    it.type("\x03")
    it.expect("KeyboardInterrupt")
    it.expect("(Pdb) ")
    it.type("n\r")
    it.expect("train.py(5)broken")
    it.expect("(Pdb) ")
    it.type("c\r")
    it.expect("IndexError: list index out of range")
    it.expect("(Pdb) ")
    it.type("p some, secret\r")
    it.expect("([1, 2, 3], 7)")
    it.expect("(Pdb) ")
    it.type("q\r")
    assert it.end() == FAILED
    assert it.seen.count("IndexError") >= 2  # here and in the log
    job = the_job(home)
    assert b"(Pdb)" not in job.log()
    assert not processes_of(job)


@pytest.mark.parametrize("keys", ["q\r", "\x04"], ids=["q", "ctrl-d"])
def test_quitting_pdb_kills_the_job(typist: Types, home: Path, keys: str) -> None:
    it = typist(FAILS, "--pdb", engine="sandbox")
    it.expect("engine:")
    modes = it.modes
    it.expect("(Pdb) ")
    time.sleep(0.2)
    it.type(keys)
    it.expect("the job is killed")
    assert it.modes == modes
    assert it.end() == STOPPED
    assert "begin" not in the_job(home).log().decode()


def test_post_mortem_runs_free_until_it_fails(typist: Types) -> None:
    """Whatever excepthook the script has; torch.distributed's calls the one that was there before."""
    hook = "old = sys.excepthook\nsys.excepthook = lambda *a: (print('own hook', flush=True), old(*a))\n"
    script = FAILS.replace("broken(7)", f"{hook}broken(7)")
    it = typist(script, "--post-mortem", engine="sandbox")
    it.expect("uncaught IndexError")
    it.expect("train.py(5)broken")
    it.expect("(Pdb) ")
    it.type("p secret\r")
    it.expect("\n7")
    it.expect("(Pdb) ")
    it.type("c\r")
    assert it.end() == FAILED
    assert "own hook" in it.seen
    assert it.seen.count("uncaught IndexError") == 1


def test_consoles_within_the_debugger(typist: Types) -> None:
    """An error there isn't the script's; each has its prompt, and the debugger has its own again."""
    it = typist("name = 'grüße'\ndef f(x):\n    return x\n\nf(1)\n", "--pdb", engine="sandbox")
    it.expect("(Pdb) ")
    it.type("n\r")
    it.expect("(Pdb) ")
    it.type("interact\r")
    it.expect(">>> ")
    it.type("1 / 0\r")
    it.expect("ZeroDivisionError")
    it.expect(">>> ")
    it.type("len(name), input('what? ')\r")
    it.expect("what? ")
    it.type("ü\r")
    it.expect("(5, 'ü')")
    it.expect(">>> ")
    it.type("\x04")
    it.expect("(Pdb) ")
    it.type("b 3\r")
    it.expect("(Pdb) ")
    it.type("commands 1\r")
    it.expect("(com) ")
    it.type("end\r")
    it.expect("(Pdb) ")
    it.type("debug f(41)\r")
    it.expect("((Pdb)) ")
    it.type("q\r")
    it.expect("(Pdb) ")
    it.type("cl 1\r")
    it.expect("(Pdb) ")
    it.type("c\r")
    assert it.end() == COMPLETED


def test_an_exception_in_a_thread_stops_and_the_program_goes_on(typist: Types) -> None:
    script = """\
        import threading

        def fail(secret):
            raise ValueError("boom")

        thread = threading.Thread(target=fail, args=(7,))
        thread.start()
        thread.join()
        print("goes on", flush=True)
        """
    it = typist(script, "--post-mortem", engine="sandbox")
    it.expect("uncaught ValueError in thread Thread-1")
    it.expect("(Pdb) ")
    it.type("p secret\r")
    it.expect("\n7")
    it.expect("(Pdb) ")
    it.type("c\r")
    it.expect("goes on")
    assert it.end() == COMPLETED


def test_no_time_limit_counts_what_the_script_stands(typist: Types) -> None:
    it = typist("print('begin', flush=True)\n", "--pdb", engine="sandbox", max_run=4)
    it.expect("(Pdb) ")
    time.sleep(4.5)
    it.type("c\r")
    assert it.end() == COMPLETED, it.seen


def test_breakpoints_without_waiting(typist: Types) -> None:
    script = "for number in range(2):\n    breakpoint()\n    print('after', number, flush=True)\n"
    it = typist(script, "--pdb", "--no-wait", engine="sandbox")
    it.expect("(Pdb) ")
    it.type("p number + 40\r")
    it.expect("\n40")
    it.expect("(Pdb) ")
    for line in (1, 2, 3):  # from one breakpoint() to the next, and over it
        it.type("n\r")
        it.expect(f"train.py({line})<module>()")
        it.expect("(Pdb) ")
    it.type("c\r")
    assert it.end() == COMPLETED


def test_ctrl_c_stops_a_script_that_runs_and_ctrl_backslash_one_that_stands(typist: Types) -> None:
    script = "import time\nprint('begin', flush=True)\ntime.sleep(60)\n"
    it = typist(script, "--pdb", engine="sandbox", local={"stop_grace": 600})
    it.expect("(Pdb) ")
    it.type("\x1c")
    it.expect("killing the job: it stands in a debugger")
    assert it.end() == INTERRUPTED
    it = typist(script, "--post-mortem", engine="sandbox", local={"stop_grace": 0.5})
    it.expect("\x1b[0mbegin")
    it.type("\x03")
    it.expect("stopping as SageMaker does")
    assert it.end() == INTERRUPTED


def test_the_script_is_killed_at_its_prompt(typist: Types, home: Path) -> None:
    it = typist(FAILS, "--pdb", engine="sandbox")
    it.expect("engine:")
    modes = it.modes
    it.expect("(Pdb) ")
    for process in processes_of(the_job(home)):
        if "train.py" in process.cmdline():
            process.kill()
    it.expect("Uploading")
    assert it.modes == modes
    assert it.end() == FAILED


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_harness_debug_is_killed_at_a_prompt(typist: Types, home: Path, number: signal.Signals) -> None:
    """The script goes on without a debugger, and time limits count again."""
    it = typist(
        FAILS.replace("broken(7)", "breakpoint()\nprint('on', flush=True)"), "--pdb", engine="sandbox"
    )
    it.expect("engine:")
    modes = it.modes
    it.expect("(Pdb) ")
    os.kill(it.pid, number)
    os.waitpid(it.pid, 0)
    it.pid = 0
    if number == signal.SIGTERM:
        assert it.modes == modes
    job = the_job(home)
    assert job.wait().status == "Completed"
    assert b"goes on without a debugger: `harness debug` was ended" in job.log()
    assert b"\non\n" in job.log()


def test_the_ranks_of_other_hosts_wait(typist: Types, home: Path) -> None:
    it = typist("print('begin', flush=True)\n", "--pdb", "--rank", "1", engine="sandbox", instance_count=2)
    it.expect("(Pdb) ")
    job = the_job(home)
    time.sleep(0.5)
    assert b"begin" not in job.log("algo-1")
    it.type("c\r")
    assert it.end() == COMPLETED
    assert b"begin" in job.log("algo-1")
    assert b"begin" in job.log("algo-2")
