"""The program inside a warm host, driven over its socket: a forked script is what a new process would be."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from harness.contract import toolkit_command
from harness.engines.warm.inner import frames

HERE = Path(__file__).parent
INNER = Path(frames.__file__).parent
TOOLKIT = list(toolkit_command(sys.executable))
SPACES = (
    "unshare",
    "--user",
    "--map-root-user",
    "--mount",
    "--ipc",
    "--pid",
    "--fork",
    "--mount-proc",
    "setsid",
)
PATIENCE = 120


class Ended:
    """What became of a run."""

    def __init__(self, output: str, first: float, started: dict[str, Any], ended: dict[str, Any]) -> None:
        self.output = output
        self.first = first
        """Seconds until the first output."""
        self.started = started
        self.code: int = ended["code"]
        self.cold: list[str] = ended.get("cold", [])
        self.unclean = ended.get("unclean")

    @property
    def lines(self) -> list[str]:
        """What the script wrote, without the toolkit's words around it."""
        lines = self.output.splitlines()
        start = max((n for n, line in enumerate(lines) if "Exceptions not imported" in line), default=-1)
        end = next(
            (n for n, line in enumerate(lines) if n > start and "Waiting for the process" in line), None
        )
        return lines[start + 1 : end]

    def __str__(self) -> str:
        return f"{self.code} {self.started} {self.cold}\n{self.output}"


class Keeper:
    """The program, and the harness's end of its socket."""

    def __init__(self, directory: Path, environment: Mapping[str, str], **config: Any) -> None:
        self.io = directory / "io"
        self.io.mkdir()
        self.tmp = directory / "tmp"
        self.tmp.mkdir()
        settings = {"preload": [], "argv": TOOLKIT, "timeout": 60, "clean": [str(self.tmp)], **config}
        (self.io / "config.json").write_text(json.dumps(settings))
        self.base = directory / "ml"
        self.environment = {**environment, "SAGEMAKER_BASE_DIR": str(self.base)}
        self.process = subprocess.Popen(
            [*SPACES, sys.executable, str(INNER), str(self.io)],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # as in a host, also under nohup
        )
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(PATIENCE)
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                self.socket.connect(str(self.io / "k"))
                break
            except OSError:
                assert self.process.poll() is None, self.words()
                assert time.monotonic() < deadline
                time.sleep(0.01)
        self.ready = self.hear()["ready"]

    def hear(self) -> dict[str, Any]:
        told: dict[str, Any] = frames.receive(self.socket)[0]
        return told

    def words(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.read().decode()

    def begin(self, argv: list[str], environment: Mapping[str, str] | None = None) -> int:
        """Start a run; the read end of its output."""
        mine, its = os.pipe()
        try:
            variables = {**self.environment, **(environment or {})}
            frames.send(self.socket, {"run": {"argv": argv, "environment": variables}}, [its])
        finally:
            os.close(its)
        return mine

    def end(self, mine: int) -> Ended:
        begun = time.perf_counter()
        first, output = 0.0, b""
        while chunk := os.read(mine, 65536):
            first = first or time.perf_counter() - begun
            output += chunk
        os.close(mine)
        told: dict[str, Any] = {}
        while "ended" not in told:
            told |= self.hear()
        started = {name: value for name, value in told.items() if name != "ended"}
        return Ended(output.decode(errors="replace"), first, started, told["ended"])

    def run(self, argv: list[str], environment: Mapping[str, str] | None = None) -> Ended:
        return self.end(self.begin(argv, environment))

    def prepare(
        self,
        files: Mapping[str, str] | str,
        parameters: Mapping[str, str] | None = None,
        entry: str = "train.py",
    ) -> None:
        """/opt/ml as it is at the start of a job."""
        shutil.rmtree(self.base, ignore_errors=True)
        for name in ("code", "model", "input/config", "output/data"):
            (self.base / name).mkdir(parents=True)
        for name, text in ({"train.py": files} if isinstance(files, str) else files).items():
            path = self.base / "code" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(text))
        resources = {"current_host": "localhost", "hosts": ["localhost"], "network_interface_name": "lo"}
        configs = {
            "hyperparameters": {"sagemaker_program": json.dumps(entry), **(parameters or {})},
            "resourceconfig": resources,
            "inputdataconfig": {},
        }
        for name, value in configs.items():
            (self.base / f"input/config/{name}.json").write_text(json.dumps(value))

    def script(
        self,
        files: Mapping[str, str] | str,
        environment: Mapping[str, str] | None = None,
        parameters: Mapping[str, str] | None = None,
        entry: str = "train.py",
    ) -> Ended:
        """A job: the toolkit and the script."""
        self.prepare(files, parameters, entry)
        return self.run(TOOLKIT, environment)

    def processes(self) -> list[int]:
        """Process 1 and its children, by their number on this machine: what is left of a run is among them."""
        return [self.pid(), *_children(self.pid())]

    def pid(self) -> int:
        """Process 1 of the host."""
        (pid,) = _children(self.process.pid)
        return pid

    def close(self) -> None:
        self.socket.close()
        try:
            self.process.wait(PATIENCE)
        finally:
            self.process.kill()
            self.process.wait()
            assert self.process.stdout is not None
            self.process.stdout.close()


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    try:
        subprocess.run([*SPACES, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no namespaces for an ordinary user here: {error}")
    return {
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "HOME": "/root",
        "LANG": "C.UTF-8",
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "SAGEMAKER_TRAINING_MODULE": "sagemaker_pytorch_container.training:main",
        "HARNESS_MASTER_PORT": "29641",
    }


Make = Callable[..., Keeper]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Iterator[Make]:
    made: list[Keeper] = []

    def make(variables: Mapping[str, str] | None = None, **config: Any) -> Keeper:
        directory = tmp_path_factory.mktemp("k", numbered=True)
        made.append(Keeper(directory, {**environment, **(variables or {})}, **config))
        return made[-1]

    yield make
    for keeper in made:
        keeper.close()


@pytest.fixture(scope="module")
def warm(make: Make) -> Keeper:
    """With torch and numpy."""
    keeper = make(preload=["numpy", "torch"])
    assert keeper.ready["preloaded"] == ["numpy", "torch"], keeper.ready
    return keeper


@pytest.fixture(scope="module")
def light(make: Make) -> Keeper:
    """With nothing: each script is a fork of an interpreter that has imported nothing."""
    return make()


@pytest.fixture(scope="module")
def cold(make: Make) -> Keeper:
    """Starts everything the ordinary way."""
    keeper = make(forks=False)
    assert not keeper.ready["forks"]
    return keeper


def both(one: Keeper, other: Keeper, base: Path) -> None:
    """Let two keepers use one /opt/ml, so that what they print can be compared."""
    for keeper in (one, other):
        keeper.base = base
        keeper.environment["SAGEMAKER_BASE_DIR"] = str(base)


@pytest.fixture
def pair(light: Keeper, cold: Keeper, tmp_path: Path) -> tuple[Keeper, Keeper]:
    both(light, cold, tmp_path / "ml")
    return light, cold


# A process that can't tell that it was forked


def test_every_fact_is_that_of_a_cold_process(warm: Keeper, cold: Keeper, tmp_path: Path) -> None:
    both(warm, cold, tmp_path / "ml")
    text = (HERE / "warm_facts.py").read_text()
    parameters = {"epochs": "3", "text": '"a b"'}

    runs = [keeper.script(text, parameters=parameters) for keeper in (cold, warm, warm)]

    told = []
    for run in runs:
        assert run.code == 0, run
        assert not run.unclean
        assert not run.cold or run is runs[0], run
        told.append(json.loads(re.sub(r" at 0x[0-9a-f]+", "", "".join(run.lines))))
    expected, *found = told
    for each in found:
        assert each["ppid"] == 1  # as under the toolkit that is process 1
        different = {
            name: _difference(value, expected["facts"][name])
            for name, value in each["facts"].items()
            if value != expected["facts"][name]
        }
        assert not different
        # What was imported beforehand is there, and nothing else.
        assert (
            set(expected["before"]) <= set(each["before"]) <= set(each["facts"]["modules after the imports"])
        )
    for one, two in zip(found[0]["chance"], found[1]["chance"], strict=True):
        assert one != two


def _difference(one: Any, other: Any) -> Any:
    if isinstance(one, dict):
        return {
            name: (one.get(name), other.get(name))
            for name in {**one, **other}
            if one.get(name) != other.get(name)
        }
    return one, other


@pytest.mark.parametrize(
    ("script", "parameters"),
    [
        pytest.param("print('no end of line', end='')", {}, id="no-newline"),
        pytest.param("import sys; sys.exit(7)", {}, id="exit-7"),
        pytest.param("import sys; sys.exit('some words')", {}, id="exit-words"),
        pytest.param("import os; print('x'); os._exit(9)", {}, id="os._exit"),
        pytest.param("import os; os.abort()", {}, id="abort"),
        pytest.param("import os; os.kill(os.getpid(), 9)", {}, id="kill"),
        pytest.param("import ctypes; ctypes.string_at(0)", {}, id="segfault"),
        pytest.param("def f(): g()\ndef g(): 1 / 0\nf()", {}, id="traceback"),
        pytest.param("try:\n  1/0\nexcept Exception as e:\n  raise ValueError('so') from e", {}, id="cause"),
        pytest.param("x = (", {}, id="syntax"),
        pytest.param("raise KeyboardInterrupt", {}, id="interrupt"),
        pytest.param("import os, signal; os.kill(os.getpid(), signal.SIGINT)", {}, id="sigint"),
        pytest.param("import nothing_of_that_name", {}, id="no-module"),
        pytest.param("import atexit; atexit.register(print, 'bye'); print('hi')", {}, id="atexit"),
        pytest.param(
            "import threading, time\n"
            "threading.Thread(target=lambda: (time.sleep(.2), print('thread'))).start(); print('main')",
            {},
            id="thread",
        ),
        pytest.param(
            "import warnings; warnings.warn('careful', stacklevel=2); warnings.warn('x')", {}, id="warn"
        ),
        pytest.param("import traceback; traceback.print_stack()", {}, id="stack"),
        pytest.param("import sys\ndef f(n): return f(n + 1)\nf(0)", {}, id="recursion"),
        pytest.param("print(input())", {}, id="stdin"),
        pytest.param("class A:\n  def __del__(self): print('gone')\na = A()", {}, id="del"),
        pytest.param(
            "class A:\n  def __del__(self): print('gone')\na = A(); a.a = a; del a; print('end')",
            {},
            id="cycle",
        ),
        pytest.param("open('/nowhere')", {"n": "1"}, id="errno"),
        pytest.param(
            "import argparse\np = argparse.ArgumentParser(); p.add_argument('--n', type=int)\nprint(p.parse_args())",
            {"n": '"x"'},
            id="usage",
        ),
        pytest.param("print('\\udcff')", {}, id="encoding"),
        pytest.param("import logging; logging.warning('w'); logging.info('i')", {}, id="logging"),
        pytest.param("import __main__, sys; print(__main__.__file__, sys.argv, sys.path[0])", {}, id="main"),
        pytest.param(
            "import signal, os, time\nsignal.signal(15, lambda *_: (print('term'), os._exit(3)))\nos.kill(os.getpid(), 15)",
            {},
            id="handler",
        ),
        pytest.param(
            "import os; print(os.system('exit 3'), os.popen('echo $$ $PPID | wc -w').read())", {}, id="sh"
        ),
    ],
)
def test_output_and_exit_code(pair: tuple[Keeper, Keeper], script: str, parameters: dict[str, str]) -> None:
    warm, cold = (keeper.script(script, parameters=parameters) for keeper in pair)

    assert warm.started["forks"]
    assert not warm.cold
    assert warm.code == cold.code
    assert sorted(warm.lines) == sorted(cold.lines)  # the two streams come as they come


STYLES: dict[str, tuple[str, dict[str, str]]] = {
    "beside": (
        "train.py",
        {"train.py": "import helper, sys; print(helper.__file__, sys.path[:2])", "helper.py": ""},
    ),
    "folder": ("sub/train.py", {"sub/train.py": "import sys; print(__file__, sys.path[:2])"}),
    "shell": ("run.sh", {"run.sh": "#!/bin/sh\necho $0 $PYTHONPATH; exec python3 x.py", "x.py": "print(1)"}),
    "shadow": (
        "train.py",
        {"train.py": "import code, wire; print(code.__file__)", "code.py": "", "wire.py": ""},
    ),
    "customised": ("train.py", {"train.py": "print('main')", "sitecustomize.py": "print('customised')"}),
    "directory": ("train.py", {"train.py/__main__.py": "print(__name__, __file__)"}),
    "missing": ("nothing.py", {"train.py": ""}),
}


@pytest.mark.parametrize("style", STYLES)
def test_kinds_of_entry_points(pair: tuple[Keeper, Keeper], style: str) -> None:
    entry, files = STYLES[style]

    warm, cold = (keeper.script(files, entry=entry) for keeper in pair)

    assert (warm.code, warm.lines) == (cold.code, cold.lines)
    if style == "customised":
        assert "sitecustomize" in warm.cold[0]


PROGRAMS = {
    "spawn": """
        import multiprocessing, os
        def work(n): return n * n, multiprocessing.current_process().name
        if __name__ == "__main__":
            multiprocessing.set_start_method("spawn")
            with multiprocessing.Pool(2) as pool: print(sorted(pool.map(work, range(4), 1))[3][0])
    """,
    "forkserver": """
        import multiprocessing
        def work(n): return n * n
        if __name__ == "__main__":
            context = multiprocessing.get_context("forkserver")
            with context.Pool(2) as pool: print(pool.map(work, range(4)))
    """,
    "fork": """
        import multiprocessing, os
        def work(n): return n * n, os.getcwd()
        with multiprocessing.get_context("fork").Pool(2) as pool: print(pool.map(work, range(4)))
        from multiprocessing import shared_memory
        block = shared_memory.SharedMemory(create=True, size=10); block.close(); block.unlink()
    """,
    "pickle": """
        import pickle, dataclasses, inspect
        @dataclasses.dataclass
        class Point:
            x: int = 1
        print(pickle.loads(pickle.dumps(Point(3))), Point.__module__, inspect.getsource(Point))
    """,
    "executor": """
        from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
        def work(n): return n + 1
        if __name__ == "__main__":
            for kind in (ThreadPoolExecutor, ProcessPoolExecutor):
                with kind(2) as pool: print(list(pool.map(work, range(3))))
    """,
    "asyncio": """
        import asyncio
        async def main():
            process = await asyncio.create_subprocess_exec("echo", "hi", stdout=asyncio.subprocess.PIPE)
            print(await process.communicate(), process.returncode)
        asyncio.run(main())
    """,
    "subprocess": """
        import subprocess, sys
        print(subprocess.run([sys.executable, "-c", "import sys; print(sys.argv, sys.path[0])", "a"], capture_output=True))
    """,
    "threads at once": """
        import threading, queue
        q = queue.Queue()
        threading.Thread(target=lambda: q.put(threading.current_thread().name), daemon=True).start()
        print(q.get(), threading.active_count() >= 1)
    """,
    "state": """
        import os, locale, signal, time, random, sys, socket, resource
        os.chdir("/"); os.umask(0o77); locale.setlocale(locale.LC_ALL, "C"); signal.signal(signal.SIGINT, signal.SIG_IGN)
        os.environ["LEFT"] = "1"; os.environ["TZ"] = "UTC-5"; time.tzset(); os.nice(3); random.seed(1)
        resource.setrlimit(resource.RLIMIT_NOFILE, (50, 50)); signal.alarm(30)
        sys.path.insert(0, "/nowhere"); sys.argv.append("x"); socket.setdefaulttimeout(1)
        print(random.random())
    """,
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs(pair: tuple[Keeper, Keeper], name: str) -> None:
    warm, cold = (keeper.script(PROGRAMS[name]) for keeper in pair)

    assert not warm.cold
    assert (warm.code, warm.lines) == (cold.code, cold.lines)
    assert warm.code == 0, warm


def test_nothing_of_a_run_is_left_for_the_next(pair: tuple[Keeper, Keeper]) -> None:
    warm, _ = pair
    script = """
        import os, sys, time, signal, threading
        print(os.umask(0), os.getcwd(), "LEFT" in os.environ, time.tzname, os.nice(0), signal.getsignal(2),
              "/nowhere" in sys.path, sys.argv, threading.active_count())
    """
    before = warm.script(script)

    warm.script(PROGRAMS["state"])
    after = warm.script(script)

    assert after.lines == before.lines


def test_workers_of_a_data_loader(warm: Keeper) -> None:
    run = warm.script("""
        import torch
        from torch.utils.data import DataLoader
        data = list(range(8))
        print(sum(int(batch.sum()) for batch in DataLoader(data, batch_size=2, num_workers=2)))
        x = torch.randn(64, 64, requires_grad=True)
        (x @ x).sum().backward()
        print(x.grad.shape, torch.get_num_threads())
    """)

    assert run.lines[0] == "28"
    assert run.code == 0
    assert not run.cold


def test_ranks_of_torchrun_reduce(warm: Keeper, cold: Keeper, tmp_path: Path) -> None:
    both(warm, cold, tmp_path / "ml")
    script = """
        import os, sys, torch, torch.distributed as dist
        dist.init_process_group("gloo")
        rank = dist.get_rank()
        total = torch.ones(2) * (rank + 1)
        dist.all_reduce(total)
        facts = total.tolist(), torch.get_num_threads(), os.environ["OMP_NUM_THREADS"], sys.argv, sys.orig_argv
        more = os.getsid(0) == os.getpid() == os.getpgrp(), os.environ["WORLD_SIZE"], __name__, __file__
        names = sorted(name for name in os.environ if not name.startswith("SM_"))
        os.write(1, ("%r\\n" % [rank, facts, more, names]).encode())
        dist.destroy_process_group()
    """
    parameters = {
        "sagemaker_torch_distributed_enabled": "true",
        "sagemaker_mpi_num_of_processes_per_host": "2",
    }

    runs = [keeper.script(script, parameters=parameters) for keeper in (warm, cold)]

    for run in runs:
        assert run.code == 0, run
    assert not runs[0].cold
    lines = [sorted(line for line in run.output.splitlines() if line.startswith("[")) for run in runs]
    assert len(lines[0]) == 2
    assert lines[0] == lines[1]
    assert "[3.0, 3.0]" in lines[0][0]


def test_a_rank_that_fails_ends_the_others(warm: Keeper) -> None:
    parameters = {
        "sagemaker_torch_distributed_enabled": "true",
        "sagemaker_mpi_num_of_processes_per_host": "2",
    }

    run = warm.script(
        """
        import os, sys, time
        if os.environ["RANK"] == "1":
            raise ValueError("rank 1")
        print("waiting", flush=True)
        time.sleep(600)
        """,
        parameters=parameters,
    )

    assert run.code == 1, run
    assert "ValueError: rank 1" in run.output
    assert "exitcode  : 1" in run.output.replace("exitcode : 1", "exitcode  : 1")
    assert not run.cold


# What a fork can't be


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"PYTHONHASHSEED": "1"}, "PYTHONHASHSEED"),
        ({"PYTHONOPTIMIZE": "1"}, "PYTHONOPTIMIZE"),
        ({"LC_ALL": "C"}, "LC_ALL"),
        ({"LD_PRELOAD": "libm.so.6"}, "LD_PRELOAD"),
        ({"MALLOC_ARENA_MAX": "1"}, "MALLOC_ARENA_MAX"),
    ],
)
def test_what_needs_a_new_process_gets_one(
    pair: tuple[Keeper, Keeper], variables: dict[str, str], reason: str
) -> None:
    script = "import sys, os; print(sys.flags, sorted(os.environ))"

    warm, cold = (keeper.script(script, variables) for keeper in pair)

    assert reason in " ".join([*warm.cold, warm.started.get("why", "")])
    assert warm.lines == cold.lines


def test_number_of_threads(warm: Keeper) -> None:
    run = warm.script("import torch; print(torch.get_num_threads())", {"OMP_NUM_THREADS": "3"})

    assert run.lines == ["3"]
    assert not run.cold


@pytest.mark.parametrize("option", ["-O", "-X dev", "-W error", "-B", "-c pass", "-"])
def test_options_that_need_a_new_process(light: Keeper, option: str) -> None:
    light.prepare("import sys; print(sys.flags)")

    run = light.run([sys.executable, *option.split(), str(light.base / "code/train.py")])

    assert run.code == 0, run
    assert not run.started["forks"]
    assert "Python is started" in run.started["why"]


# Commands that are no toolkit


def test_a_script_as_the_first_process(pair: tuple[Keeper, Keeper]) -> None:
    warm, _ = pair
    warm.prepare(
        "import os, sys; print(sys.argv, __file__, os.getcwd(), sys.path, open('/proc/self/cmdline').read())"
    )
    argv = [sys.executable, "-u", str(warm.base / "code/train.py"), "--x", "1"]

    runs = [keeper.run(argv) for keeper in pair]

    assert runs[0].started["forks"]
    assert not runs[1].started["forks"]
    assert runs[0].output == runs[1].output


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["sh", "-c", "echo hi; exit 5"], 5),
        (["sh", "-c", "kill -9 $$"], 137),
        (["no-such-program"], 127),
        (["/etc/passwd"], 126),
    ],
)
def test_other_programs(light: Keeper, argv: list[str], code: int) -> None:
    run = light.run(argv)

    assert run.code == code
    assert not run.started.get("forks")


def test_a_module_as_the_first_process(pair: tuple[Keeper, Keeper]) -> None:
    warm, _ = pair
    warm.prepare(
        {
            "lib/__init__.py": "",
            "lib/tool.py": "import sys; print(__name__, __spec__, __file__, sys.argv, sys.path)",
        }
    )

    runs = [
        keeper.run([sys.executable, "-m", "lib.tool", "--x"], {"PYTHONPATH": str(warm.base / "code")})
        for keeper in pair
    ]

    assert runs[0].started["forks"]
    assert re.sub("0x[0-9a-f]+", "", runs[0].output) == re.sub("0x[0-9a-f]+", "", runs[1].output)


# Signals


def wait_for(mine: int, text: bytes) -> bytes:
    said = b""
    while text not in said:
        chunk = os.read(mine, 65536)
        assert chunk, said
        said += chunk
    return said


def test_signals_to_the_first_process(light: Keeper) -> None:
    """Only what it has a handler for gets through (contract: G10)."""
    light.prepare("""
        import signal, time
        signal.signal(signal.SIGTERM, lambda *_: (print("stopping", flush=True), exit(3)))
        print("up", flush=True)
        while True: time.sleep(1)
    """)
    mine = light.begin([sys.executable, str(light.base / "code/train.py")])
    wait_for(mine, b"up")

    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM):
        frames.send(light.socket, {"signal": number})
    run = light.end(mine)

    assert (run.code, run.output.strip()) == (3, "stopping")


def test_sigkill_ends_all(light: Keeper) -> None:
    light.prepare("import os, time; os.fork(); print('up', flush=True); time.sleep(600)")
    mine = light.begin(TOOLKIT)
    wait_for(mine, b"up\n")

    frames.send(light.socket, {"signal": int(signal.SIGKILL)})

    assert light.end(mine).code == 137


def test_nothing_of_a_run_begins_after_its_end(light: Keeper) -> None:
    """Also not the fork that was asked for just before."""
    light.prepare("import os, time; os.write(1, b'up'); time.sleep(600)")
    before = light.processes()

    for step in range(25):
        mine = light.begin(TOOLKIT)
        time.sleep(step * 0.003)
        frames.send(light.socket, {"signal": int(signal.SIGKILL)})
        assert light.end(mine).code == 137
        time.sleep(0.02)
        assert light.processes() == before


def test_who_kills_the_proxy_kills_the_script(light: Keeper) -> None:
    """The toolkit's child is a proxy; a signal to it is a signal to the script."""
    light.prepare("import time; print('up', flush=True); time.sleep(600)")
    mine = light.begin(TOOLKIT)
    wait_for(mine, b"up\n")
    toolkit = next(
        pid
        for pid in _children(light.pid())
        if TOOLKIT[-1].encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    )
    (proxy,) = _children(toolkit)

    os.kill(proxy, signal.SIGTERM)

    run = light.end(mine)
    assert "Received -15 from exiting process" in run.output


# Bad weather


BAD = {
    "daemons": """
        import os, subprocess, time
        for n in range(5):
            if os.fork() == 0:
                os.setsid()
                if os.fork(): os._exit(0)
                os.close(0); os.close(1); os.close(2)
                time.sleep(600)
        subprocess.Popen(["sleep", "600"], start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    """,
    "descriptors": """
        import os, resource
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
        try:
            while True: os.pipe()
        except OSError as error: print(error.errno)
    """,
    "stopped": """
        import os, signal, time
        if os.fork() == 0:
            for n in range(1, 32):
                try: signal.signal(n, signal.SIG_IGN)
                except (OSError, ValueError): pass
            os.kill(os.getpid(), signal.SIGSTOP)
            time.sleep(600)
        time.sleep(.2)
    """,
    "signals to process 1": """
        import os, signal
        for n in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD, signal.SIGKILL):
            os.kill(1, n)
        print("alive")
    """,
    "ipc": """
        import ctypes
        libc = ctypes.CDLL(None)
        print(libc.shmget(0, 4096, 0o1600) >= 0, libc.semget(0, 1, 0o1600) >= 0, libc.msgget(0, 0o1600) >= 0)
    """,
}


@pytest.mark.parametrize("name", BAD)
def test_a_script_that_leaves_things_behind(light: Keeper, name: str) -> None:
    before = light.processes()

    run = light.script(BAD[name])

    assert run.code == 0, run
    assert not run.unclean
    assert light.processes() == before
    after = light.script("print('fine')")
    assert after.lines == ["fine"]
    assert after.started["forks"]
    assert not after.cold


def test_temporary_files_go(light: Keeper) -> None:
    run = light.script(f"""
        import os
        os.chdir({str(light.tmp)!r})
        os.makedirs("a/b/c"); open("a/b/c/file", "w").close(); os.symlink("/etc/passwd", "link"); os.mkfifo("pipe")
        os.chmod("a/b", 0); os.chmod("a", 0o500)
        for _ in range(400):
            os.mkdir("d" * 100); os.chdir("d" * 100)
        os.chmod({str(light.tmp)!r}, 0o700)
    """)

    assert run.code == 0, run
    assert run.unclean is None
    assert list(light.tmp.iterdir()) == []
    assert light.tmp.stat().st_mode & 0o7777 == 0o755


def test_the_interpreters_are_killed(make: Make) -> None:
    keeper = make()

    killed = keeper.script("import os; print(os.getpid(), flush=True); os.kill(-1, 9); print('alive')")
    deadline = time.monotonic() + 30
    while not (run := keeper.script("print('hi')")).started["forks"]:
        assert run.lines == ["hi"]  # the ordinary way
        assert "interpreter" in run.started["why"]
        assert time.monotonic() < deadline
    assert killed.code == 137  # its first process was no process 1 either
    assert run.lines == ["hi"]


def test_a_hundred_runs_leave_nothing(light: Keeper) -> None:
    script = "import os; x = [0] * 10**6; open('/dev/null'); os.fork(); print('x')"
    light.script(script)
    processes = light.processes()

    def measure() -> list[tuple[int, int]]:
        found = []
        for pid in processes:
            status = Path(f"/proc/{pid}/status").read_text()
            size = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
            found.append((len(list(Path(f"/proc/{pid}/fd").iterdir())), size))
        return found

    for _ in range(10):
        light.script(script)
    before = measure()
    for _ in range(100):
        run = light.script(script)
        assert run.code == 0
    after = measure()

    assert light.processes() == processes
    for (numbers, size), (more, larger) in zip(before, after, strict=True):
        assert more == numbers
        assert larger <= size + 1024


# What is preloaded


MODULES = {
    "fine": "x = 1",
    "prints": "print('hello from an import')",
    "fails": "import nothing_of_that_name",
    "exits": "raise SystemExit('no')",
    "dies": "import os; os._exit(3)",
    "hangs": "import time; time.sleep(600)",
    "threads": "import threading, time; threading.Thread(target=time.sleep, args=(600,), daemon=True).start()",
    "forks": "import os, time\nif os.fork() == 0:\n    time.sleep(600)\n    os._exit(0)",
    "signals": "import signal; signal.signal(signal.SIGTERM, lambda *_: None)",
    "reaps": "import signal; signal.signal(signal.SIGCHLD, lambda *_: None)",
    "pipes": "import os; ends = os.pipe()",
    "logs": "file = open(__file__ + '.log', 'w')",
    "reads": "file = open('/dev/null'); other = open(__file__)",
    "shares": "import mmap; block = mmap.mmap(-1, 4096)",
    "floods": "print('x' * 10**6)",
    "half": "import m_fine; import nothing_of_that_name",
    "moves": "import os; os.chdir('/tmp'); os.umask(0o77)",
    "sets": "import os; os.environ['SET_BY_IMPORT'] = '1'; asked = os.environ.get('ASKED')",
}


def test_modules_that_can_not_be_preloaded(make: Make, tmp_path: Path) -> None:
    for name, text in MODULES.items():
        (tmp_path / f"m_{name}.py").write_text(text)
    wanted = [*(f"m_{name}" for name in MODULES), "tensorflow", "nothing_of_that_name"]

    keeper = make({"PYTHONPATH": str(tmp_path)}, preload=wanted, timeout=3)

    excluded = keeper.ready["excluded"]
    assert keeper.ready["forks"]
    assert keeper.ready["preloaded"] == [
        f"m_{name}" for name in ("fine", "prints", "signals", "reads", "floods", "moves", "sets")
    ]
    for name, word in {
        "m_fails": "No module named 'nothing_of_that_name'",
        "m_exits": "SystemExit: no",
        "m_dies": "ended the interpreter",
        "m_hangs": "longer than 3 s",
        "m_threads": "threads",
        "m_forks": "processes",
        "m_reaps": "ends of processes",
        "m_pipes": "keeps pipe open",
        "m_logs": "m_logs.py.log open",
        "m_shares": "shares memory",
        "m_half": "No module named 'nothing_of_that_name'",
        "tensorflow": "TensorFlow",
        "nothing_of_that_name": "No module named",
    }.items():
        assert word in excluded[name], excluded
    run = keeper.script(
        "import os, sys; print('m_fine' in sys.modules, os.umask(0), os.environ['SET_BY_IMPORT'])"
    )
    assert run.lines == ["True 18 1"]
    assert run.started["forks"]
    assert not run.cold
    # A variable that an import looked at must be as it was then.
    for _ in range(10):  # who refused it may have ended before the one that asked, or after
        changed = keeper.script("print(1)", {"ASKED": "yes"})
        assert changed.lines == ["1"]
        assert "ASKED" in changed.cold[0]


def test_locks_that_a_module_made_are_free_in_each_run(make: Make, tmp_path: Path) -> None:
    """tqdm makes one when it is imported; whoever is killed with it in hand must not stop the next run."""
    (tmp_path / "m_locks.py").write_text(
        "import multiprocessing as m; lock, three, event = m.RLock(), m.Semaphore(3), m.Event()"
    )
    keeper = make({"PYTHONPATH": str(tmp_path)}, preload=["m_locks"])
    script = """
        import os, m_locks
        print(m_locks.lock.acquire(timeout=0), [m_locks.three.acquire(timeout=0) for _ in range(4)])
        print(m_locks.event.is_set())
        m_locks.event.set()
        if os.fork() == 0:
            m_locks.three.release()
            os._exit(0)
        os.wait()
        print(m_locks.three.get_value(), flush=True)
        os.kill(os.getpid(), 9)
    """

    for _ in range(2):
        run = keeper.script(script)
        assert run.lines == ["True [True, True, True, False]", "False", "1"]
        assert run.started["forks"]
        assert not run.cold


def test_the_end_of_what_counts_what_is_left(make: Make, cold: Keeper, tmp_path: Path) -> None:
    """Triton's library tells, when the interpreter ends, of each of its objects that is still there."""
    pytest.importorskip("triton")
    keeper = make(preload=["triton"])
    assert keeper.ready["preloaded"] == ["triton"]
    both(keeper, cold, tmp_path / "ml")

    runs = [each.script("import triton; print('hi')") for each in (keeper, cold)]

    assert runs[0].lines == runs[1].lines == ["hi"]


SAYS = """
import os, sys, warnings
print("to stdout")
print("to stderr", file=sys.stderr)
os.write(1, b"to the descriptor\\n")
warnings.warn("careful")
warnings.warn("your fault", FutureWarning, stacklevel=2)
warnings.filterwarnings("always", "mine")
warnings.simplefilter("ignore", BytesWarning, append=True)
value = 3
"""


@pytest.mark.parametrize(
    "script",
    [
        "print('before')\nimport m_says\nprint('after')",
        "print('before')\nfrom m_says import value\nimport m_says, m_says\nprint(value)",
        "import warnings; warnings.filterwarnings('ignore')\nimport m_says",
        "import warnings; warnings.simplefilter('ignore', FutureWarning)\nimport m_says",
        "import io, contextlib\nwith contextlib.redirect_stderr(io.StringIO()) as text:\n  import m_says\n"
        "print(len(text.getvalue().splitlines()))",
        "import logging; logging.captureWarnings(True); logging.basicConfig(format='%(message)s')\nimport m_says",
        pytest.param(
            "import importlib; importlib.import_module('m_says')",
            marks=pytest.mark.skipif(sys.version_info < (3, 11), reason="import_module doesn't ask"),
        ),
        "def f():\n  import m_says\nimport warnings\nprint('not called', warnings.filters)",
        "import warnings; warnings.filterwarnings('ignore')\nimport m_says\nprint(warnings.filters)\n"
        "for _ in range(2): warnings.warn('mine too'), warnings.warn('other')",
    ],
)
def test_what_a_module_writes_when_it_is_imported(
    said: tuple[Keeper, Keeper], script: str, tmp_path: Path
) -> None:
    both(*said, tmp_path / "ml")

    warm, cold = (keeper.script(script) for keeper in said)

    assert warm.started["forks"]
    assert not warm.cold
    assert (warm.code, sorted(warm.lines)) == (cold.code, sorted(cold.lines))


@pytest.fixture(scope="module")
def said(make: Make, tmp_path_factory: pytest.TempPathFactory) -> tuple[Keeper, Keeper]:
    """One with the module imported, and one that imports it in each run."""
    site = tmp_path_factory.mktemp("site")
    (site / "m_says.py").write_text(SAYS)
    variables = {"PYTHONPATH": str(site)}
    found = make(variables, preload=["m_says"])
    assert found.ready["preloaded"] == ["m_says"]
    return found, make(variables, forks=False)


def test_packages_that_change_after_the_imports(make: Make, tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / "mine.py").write_text("value = 1")
    keeper = make({"PYTHONPATH": str(site)}, preload=["mine"])
    assert keeper.script("import mine; print(mine.value)").lines == ["1"]

    first = keeper.script(f"""
        import mine, subprocess, sys
        text = "open({str(site / "other.py")!r}, 'w').close(); open({str(site / "mine.py")!r}, 'w').write('value = 2')"
        subprocess.run([sys.executable, "-c", text], check=True)
        print(mine.value)
    """)
    deadline = time.monotonic() + 30
    while not (run := keeper.script("import mine; print(mine.value)")).started["forks"]:
        assert time.monotonic() < deadline

    assert first.lines == ["1"]
    assert run.lines == ["2"]
