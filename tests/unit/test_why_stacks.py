"""Who waits for whom, and when a job hangs: from stacks as py-spy tells them."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import time
from collections.abc import Mapping

import pytest

from harness.store import from_json, to_json
from harness.telemetry import Frame, Stack, Stacks, hide_arguments, hider, is_secret, standstill, take_stacks
from harness.telemetry._hang import HangDetector, describe_hang
from harness.telemetry._stacks import _why_not, _with_roles, find_py_spy

needs_py_spy = pytest.mark.skipif(find_py_spy() is None, reason="py-spy is not installed")
C10D = "/usr/lib/python3/site-packages/torch/distributed/distributed_c10d.py"


def stack(rank: int | None, *places: str, host: str = "algo-1", pid: int | None = None) -> Stack:
    """`places` innermost first: file:line:function, files without a slash in the user's code."""
    frames = []
    for place in places:
        file, line, function = place.split(":")
        frames.append(
            Frame(file=file if "/" in file else f"/opt/ml/code/{file}", line=int(line), function=function)
        )
    return Stack(
        host=host,
        pid=pid if pid is not None else 100 + (rank or 0),
        role="script",
        rank=rank,
        command="python train.py",
        frames=tuple(frames),
        threads={},
    )


def reducing(rank: int | None, line: int = 55, **more: object) -> Stack:
    return stack(rank, f"{C10D}:1541:all_reduce", f"train.py:{line}:step", "train.py:90:<module>", **more)  # type: ignore[arg-type]


def sleeping(rank: int | None, line: int = 12, **more: object) -> Stack:
    return stack(rank, f"train.py:{line}:fetch", "train.py:90:<module>", **more)  # type: ignore[arg-type]


def taken(*stacks: Stack, size: int | None = None) -> Stacks:
    return Stacks(at=0.0, reason="test", stacks=stacks, world_size=size)


@pytest.mark.parametrize(
    ("stacks", "sentence", "behind"),
    [
        (
            taken(reducing(0), sleeping(1), size=2),
            "rank 1 is behind (at train.py:12 in fetch): rank 0 waits in all_reduce at train.py:55",
            (1,),
        ),
        (
            taken(reducing(0), reducing(1), sleeping(2), reducing(3), size=4),
            "rank 2 is behind (at train.py:12 in fetch): all others wait in all_reduce at train.py:55",
            (2,),
        ),
        (
            taken(reducing(0), sleeping(1), sleeping(2), size=3),
            "ranks 1 and 2 are behind (at train.py:12 in fetch): rank 0 waits in all_reduce at train.py:55",
            (1, 2),
        ),
        (
            taken(reducing(0), reducing(2), size=3),
            "rank 1 has ended already: ranks 0 and 2 wait in all_reduce at train.py:55",
            (1,),
        ),
        (taken(reducing(0), reducing(1), size=2), "all ranks wait in all_reduce at train.py:55", ()),
        (
            taken(reducing(0), reducing(1, 70), reducing(2), size=3),
            "the ranks wait in different collective operations: ranks 0 and 2 in all_reduce at train.py:55; "
            "rank 1 in all_reduce at train.py:70",
            (1,),
        ),
        (
            # The script starts its ranks itself, one on each host.
            taken(reducing(None, pid=1), sleeping(None, pid=2, host="algo-2")),
            "algo-2 is behind (at train.py:12 in fetch): algo-1 waits in all_reduce at train.py:55",
            (),
        ),
    ],
)
def test_who_is_behind(stacks: Stacks, sentence: str, behind: tuple[int, ...]) -> None:
    found = standstill(stacks)
    assert found is not None
    assert (found.sentence, found.behind) == (sentence, behind)


@pytest.mark.parametrize(
    "stacks", [taken(), taken(sleeping(0), size=1), taken(sleeping(0), sleeping(1), size=2)]
)
def test_without_a_collective_nobody_is_behind(stacks: Stacks) -> None:
    assert standstill(stacks) is None


def test_backward_is_a_collective_of_ddp() -> None:
    waiting = stack(
        0, "/x/torch/autograd/__init__.py:200:backward", "/x/torch/_tensor.py:480:backward", "train.py:7:step"
    )
    assert waiting.collective == "backward"


def test_stacks_survive_json() -> None:
    stacks = taken(reducing(0), sleeping(1), size=2)
    assert from_json(Stacks, to_json(stacks)) == stacks


# -------------------------------------------------------------------------------------------- hangs


class World:
    """A job as the detector sees it, and its clock."""

    def __init__(self, stacks: Stacks, *, after: float = 6, gpus: bool = False) -> None:
        self.now = 0.0
        self.stacks = stacks
        self.cpu: dict[int, float] = {}
        self.busy: Mapping[int, float] = {}
        self.detector = HangDetector(
            after, take=lambda: self.stacks, cpu=lambda: dict(self.cpu), gpus=gpus, clock=lambda: self.now
        )

    def run(self, seconds: float, *, says: bool = False) -> Stacks | None:
        """Let time pass; the stacks when a hang was found."""
        end = self.now + seconds
        while self.now < end:
            self.now += 0.25
            for pid, cores in self.busy.items():
                self.cpu[pid] = self.cpu.get(pid, 0.0) + 0.25 * cores
            if says:
                self.detector.moved()
            if self.detector.due and (found := self.detector.look()) is not None:
                return found
        return None


def test_a_hang_is_found_once_and_again_after_it_moved() -> None:
    world = World(taken(reducing(0), sleeping(1), size=2))
    assert world.run(5.5) is None, "it may be silent for a while"
    found = world.run(6)
    assert found is not None
    assert describe_hang(found, 8.2) == (
        "rank 1 is behind (at train.py:12 in fetch): rank 0 waits in all_reduce at train.py:55 "
        "(nothing was printed for 8 s and no rank moves)"
    )
    assert world.run(60) is None, "it has been told"
    assert world.detector.moved()
    assert world.run(20) is not None


@pytest.mark.parametrize(
    ("stacks", "busy", "gpus", "hangs"),
    [
        (taken(sleeping(0)), {}, False, True),
        (taken(sleeping(0)), {100: 1.0}, False, False),  # computes in C, silently
        (taken(sleeping(0)), {100: 1.0}, True, True),  # spins for its GPU
        (taken(reducing(0), sleeping(1), size=2), {100: 1.0}, False, True),  # gloo spins
        (taken(reducing(0), sleeping(1), size=2), {101: 1.0}, False, False),  # slow, not hanging
        (Stacks(at=0, reason="", stacks=(), problem="no py-spy"), {}, False, True),
        (Stacks(at=0, reason="", stacks=(), problem="no py-spy"), {7: 0.3}, False, False),
    ],
)
def test_what_counts_as_a_hang(stacks: Stacks, busy: Mapping[int, float], gpus: bool, hangs: bool) -> None:
    world = World(stacks, gpus=gpus)
    world.cpu = dict.fromkeys(busy, 0.0)
    world.busy = busy
    assert (world.run(30) is not None) == hangs


def test_a_stack_that_moves_is_no_hang() -> None:
    world = World(taken(sleeping(0)))
    for line in range(40):
        world.stacks = taken(sleeping(0, line))
        assert world.run(1) is None


def test_output_is_no_hang_and_0_is_never() -> None:
    assert World(taken(sleeping(0))).run(60, says=True) is None
    assert World(taken(sleeping(0)), after=0).run(60) is None


# ------------------------------------------------------------------------------------------ py-spy


@needs_py_spy
def test_stacks_of_a_real_process() -> None:
    code = "import time\ndef hold():\n    time.sleep(60)\nprint('up', flush=True)\nhold()"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            found = take_stacks({"algo-1": [process.pid]}, "test", seconds=20)
        finally:
            process.kill()
    assert not found.problem, found.problem
    (script,) = found.scripts
    assert [frame.function for frame in script.frames][:2] == ["hold", "<module>"]


def test_what_can_not_be_had_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert take_stacks({"algo-1": ()}, "test").problem == "the engine can't tell the hosts' process ids"
    monkeypatch.setattr("harness.telemetry._stacks.find_py_spy", lambda: None)
    assert "py-spy is not installed" in take_stacks({"algo-1": (1,)}, "test").problem


@needs_py_spy
def test_a_process_that_is_gone_and_a_short_deadline() -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"]) as process:
        began = time.monotonic()
        late = take_stacks({"algo-1": [process.pid] * 50}, "test", seconds=0.2)
        assert time.monotonic() - began < 10
        process.kill()
    assert any(
        "time left" in each.problem or "too long" in each.problem or each.frames for each in late.stacks
    )
    assert take_stacks({"algo-1": [process.pid]}, "test").stacks == ()


# ----------------------------------------------------------------------------------------- secrets


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["--api-key", "x", "--lr", "1"], ["--api-key", "********", "--lr", "1"]),
        (["--password=x"], ["--password=********"]),
        (["HF_TOKEN=x", "train.py"], ["HF_TOKEN=********", "train.py"]),
        (["--max_tokens", "5", "--tokenizer", "bert"], ["--max_tokens", "5", "--tokenizer", "bert"]),
        (["--secret", "--other", "5"], ["--secret", "--other", "5"]),
    ],
)
def test_arguments_that_look_like_secrets_are_hidden(words: list[str], shown: list[str]) -> None:
    assert hide_arguments(words) == shown


def test_names_that_look_like_secrets() -> None:
    assert all(is_secret(name) for name in ("AWS_SECRET_ACCESS_KEY", "wandb_api_key", "db-password", "TOKEN"))
    assert not any(is_secret(name) for name in ("lr", "tokenizer", "max_tokens", "keys"))


def test_the_stack_class_is_a_value() -> None:
    assert dataclasses.replace(sleeping(0), rank=3).rank == 3


LOADER = "/usr/lib/python3/site-packages/torch/utils/data/dataloader.py"
BOOTSTRAP = "/usr/lib/python3.11/multiprocessing/process.py:314:BaseProcess._bootstrap"


def worker(*places: str, pid: int, script: int = 100) -> Stack:
    """A forked one: below its own frames it has those of its parent."""
    told = stack(None, *places, BOOTSTRAP, "train.py:13:<module>", pid=pid)
    return dataclasses.replace(told, role="worker", script=script)


def test_the_worker_that_a_script_waits_for_is_named() -> None:
    waits = stack(None, f"{LOADER}:1293:_try_get_data", "train.py:13:<module>", pid=100)
    idle = worker("/usr/lib/python3.11/selectors.py:415:select", pid=101)
    stuck = worker("lib.py:9:stuck", "lib.py:5:__getitem__", pid=102)
    told = describe_hang(taken(waits, idle, stuck), 9)
    assert told.startswith(
        "a worker (process 102) stands at lib.py:9 in stuck, and the script waits for it at train.py:13"
    )
    assert "train.py:13" in describe_hang(taken(waits, idle), 9)
    assert "worker" not in describe_hang(taken(waits, idle), 9)
    # One that goes its own way is no one's that is waited for.
    assert "worker" not in describe_hang(taken(stack(None, "train.py:14:save", pid=100), stuck), 9)
    behind = standstill(taken(reducing(0, pid=99), dataclasses.replace(waits, rank=1), stuck, size=2))
    assert behind is not None
    assert behind.sentence.startswith(
        "rank 1 is behind (at train.py:13 in <module>, waiting for its worker, which is at lib.py:9 in stuck)"
    )


def test_values_that_are_secret_are_hidden_as_words() -> None:
    hide = hider(["hunter2", "a.bc", "x", "hunter2-long"])
    assert hide("--key hunter2, 'hunter2' hunter2s x a.bc aXbc hunter2-long") == (
        "--key ********, '********' hunter2s x ******** aXbc ********"
    )
    document = {"text": ["hunter2", 1, None], "path": "/opt/hunter2/x", "deep": {"lines": ("hunter2",)}}
    assert hide(document) == {
        "text": ["********", 1, None],
        "path": "/opt/hunter2/x",
        "deep": {"lines": ["********"]},
    }
    assert hider([])(document) is document


def test_the_keeper_of_a_warm_host_is_not_the_script() -> None:
    """Before the script is there, no process runs the user's code."""
    places = ("/run/harness/code/keeper.py:144:_turn", "/usr/lib/python3.11/runpy.py:88:_run_code")
    (told,) = _with_roles([stack(None, *places, pid=1)], {})
    assert told.role == "launcher"
    (baked,) = _with_roles([stack(None, "/opt/app/train.py:1:<module>", pid=1)], {})
    assert baked.role == "script"


@pytest.mark.parametrize(
    "words",
    [
        "Permission Denied: Try running again with elevated permissions by going 'sudo env \"PATH=$PATH\" !!'\n",
        "Error: Failed to open process\nReason: Operation not permitted (os error 1)\n",
        "This program requires root on this system\n",
    ],
)
def test_what_an_ordinary_user_is_told_of_a_container_s_stacks(words: str) -> None:
    assert _why_not(words).startswith("the kernel doesn't let this user look into the process")
    assert _why_not(words).count("\n") == 0
