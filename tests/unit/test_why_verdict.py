"""The verdict: one sentence from what is known, most telling cause first."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from harness.lifecycle._verdict import Facts, HostFacts, exit_words, judge
from harness.telemetry import Frame, Stack, Stacks, scan

TRACEBACK = [
    "Traceback (most recent call last):",
    '  File "/opt/ml/code/train.py", line 31, in <module>',
    "    main()",
    "ZeroDivisionError: division by zero",
]
LOST = [
    "Traceback (most recent call last):",
    '  File "/opt/ml/code/train.py", line 40, in <module>',
    "    dist.all_reduce(t)",
    "RuntimeError: [gloo/transport/tcp/pair.cc:598] Connection closed by peer",
]
ROOT = [
    "Root Cause (first observed failure):",
    "[0]:",
    "  rank      : 1 (local_rank: 1)",
    "  exitcode  : {} (pid: 42)",
    "====",
]


def host(
    *lines: str, name: str = "algo-1", code: int = 1, script: int | None = 1, failure: str = "", **more: Any
) -> HostFacts:
    if script is not None and not failure:
        failure = f'ExecuteUserScriptError:\nExitCode {script}\nErrorMessage "x"\nCommand "python train.py"'
    return HostFacts(
        name=name, exit_code=code, failure=failure, scan=scan(lines), said="\n".join(lines), **more
    )


def facts(*hosts: HostFacts, **more: Any) -> Facts:
    values: dict[str, Any] = {
        "status": "Failed",
        "secondary_status": "Failed",
        "reason": "AlgorithmError: x, exit code: 1",
        "first": hosts[0].name if hosts else None,
        "hosts": hosts,
        "world_size": 1,
    }
    return Facts(**{**values, **more})


def killed(pid: int, *, rss: int = 3_000_000) -> dict[str, Any]:
    text = f"Memory cgroup out of memory: Killed process {pid} (python3) total-vm:9kB, anon-rss:{rss}kB, file-rss:1kB"
    return {"at": 0.0, "text": text, "pid": pid}


@pytest.mark.parametrize(
    ("given", "kind", "words"),
    [
        (facts(host(*TRACEBACK)), "exception", "train.py:31 raised ZeroDivisionError: division by zero"),
        (
            facts(host(*TRACEBACK, *(line.format(1) for line in ROOT)), world_size=2),
            "exception",
            "train.py:31 raised ZeroDivisionError on rank 1: division by zero",
        ),
        (
            facts(
                host(*(f"[rank1]: {line}" for line in TRACEBACK)), host(name="algo-2", code=0), world_size=2
            ),
            "exception",
            "train.py:31 raised ZeroDivisionError on algo-1 rank 1: division by zero",
        ),
        (
            facts(
                host(
                    "(Pdb) ",
                    "Traceback (most recent call last):",
                    '  File "/opt/ml/code/train.py", line 3, in <module>',
                    '    print("x", x)',
                    '  File "/usr/lib/python3.11/bdb.py", line 115, in dispatch_line',
                    "    if self.quitting: raise BdbQuit",
                    "bdb.BdbQuit",
                )
            ),
            "exception",
            "train.py:3 stopped in pdb, and a training job has no terminal, here or in SageMaker: "
            "`harness debug --pdb` gives it one",
        ),
        (
            facts(host("harness debug: TimeoutError: rank 0 stood before its first line and nobody came")),
            "start",
            "rank 0 stood before its first line and nobody came",
        ),
        # The host that ended first only lost the other.
        (
            facts(host(*LOST), host(*TRACEBACK, name="algo-2"), world_size=2),
            "exception",
            "train.py:31 raised ZeroDivisionError on algo-2: division by zero",
        ),
        (facts(host(script=-11)), "signal", "SIGSEGV ended the script: segmentation fault, in native code"),
        (
            facts(host(*(line.format(-6) for line in ROOT)), world_size=2),
            "signal",
            "SIGABRT ended the script on rank 1: native code gave up",
        ),
        (facts(host(script=137)), "signal", "SIGKILL ended the script: killed at once"),
        (facts(host(code=137, script=None)), "signal", "SIGKILL ended process 1 of algo-1"),
        # gloo's threads abort a process that is ending already.
        (
            facts(
                host(
                    *(f"[rank1]: {line}" for line in TRACEBACK),
                    "terminate called without an active exception",
                    "E1123 11:18:02.5 2 torch/distributed/elastic/multiprocessing/api.py:1002] failed (exitcode: -6)",
                    "uneven.py FAILED",
                    *(line.format(-6) for line in ROOT),
                ),
                world_size=2,
            ),
            "exception",
            "train.py:31 raised ZeroDivisionError on rank 1: division by zero (SIGABRT ended it on its way out)",
        ),
        (
            facts(host(*TRACEBACK, "", "epoch 1", "epoch 2", "epoch 3", script=-6)),
            "signal",
            "SIGABRT ended the script",
        ),
        # A traceback that was only logged long before doesn't explain a signal.
        (facts(host(*TRACEBACK, script=-9)), "signal", "SIGKILL ended the script"),
        (
            facts(host(script=-9, oom_killed=True), memory_limit=4_000_000_000, kernel=[killed(7)]),
            "memory",
            "python3 had 3.1 GB, of the 4.0 GB that [local] memory gives each host",
        ),
        (
            facts(
                host(script=-9, look={"processes": [{"pid": 7, "name": "python3"}]}),
                kernel=[killed(7), killed(8)],
            ),
            "memory",
            "out of memory: python3 (process 7) had 3.1 GB",
        ),
        # Another job's.
        (facts(host(script=-9), kernel=[killed(8)]), "signal", "SIGKILL ended the script"),
        (
            facts(host("so long", script=3)),
            "exit",
            "the script ended with exit code 3 and no traceback; its last line: so long",
        ),
        (
            facts(host("train.py: error: unrecognized arguments: --x", script=2)),
            "exit",
            "the script refused its arguments: unrecognized arguments: --x",
        ),
        (facts(host(script=127)), "exit", "the script's command was not found (exit code 127)"),
        (
            facts(host("ExitCode 7", failure="my own words")),
            "exit",
            "the script ended with exit code 7; it wrote to /opt/ml/output/failure: my own words",
        ),
        (
            facts(
                host(
                    "ERROR: No matching distribution found for x",
                    failure="InstallRequirementsError:\nExitCode 1",
                )
            ),
            "install",
            "pip could not install requirements.txt: No matching distribution found for x",
        ),
        (
            facts(host(code=127, script=None, error='exec: "train": executable file not found')),
            "start",
            'algo-1 never started: exec: "train": executable file not found',
        ),
        (facts(host(code=5, script=None)), "exit", "algo-1 ended with exit code 5 and left no word why"),
        (
            facts(reason="ClientError: Data download failed: no such key"),
            "platform",
            "Data download failed: no such key (the request or its data, not the script)",
        ),
        (
            facts(
                host(code=137, vanished=True, script=None), reason="InternalServerError: host algo-1 is gone"
            ),
            "platform",
            "host algo-1 is gone (the platform, not the script)",
        ),
        (facts(reason=None), "platform", "the job failed without a reason"),
        (facts(status="Stopped", secondary_status="Stopped"), "stopped", "stopped by request"),
    ],
)
def test_verdicts(given: Facts, kind: str, words: str) -> None:
    verdict = judge(given)
    assert words in verdict.sentence
    assert verdict.kind == kind
    assert len(verdict.sentence) < 600


def test_a_library_that_fell_is_told_with_the_users_line() -> None:
    inner = '  File "/usr/lib/python3/site-packages/torch/nn/functional.py", line 9, in linear'
    verdict = judge(facts(host(*TRACEBACK[:3], inner, "    return x", "RuntimeError: shapes")))
    assert verdict.sentence == "train.py:31 raised RuntimeError in torch/nn/functional.py:9: shapes"
    assert verdict.frame is not None
    assert verdict.frame.line == 31


@pytest.mark.parametrize("secondary", ["MaxRuntimeExceeded", "MaxWaitTimeExceeded"])
def test_a_limit_tells_where_the_script_was(secondary: str) -> None:
    at = Stack(
        host="algo-1",
        pid=5,
        role="script",
        rank=None,
        command="",
        frames=(Frame(file="/opt/ml/code/train.py", line=7, function="step"),),
        threads={},
    )
    given = facts(
        host(code=137, script=None),
        status="Stopped",
        secondary_status=secondary,
        stacks=(Stacks(at=0, reason="limit", stacks=(at,)),),
        request={"StoppingCondition": {"MaxRuntimeInSeconds": 60, "MaxWaitTimeInSeconds": 60}},
    )
    verdict = judge(given)
    assert verdict.sentence.endswith("InSeconds = 60: the script was at train.py:7 in step")
    assert verdict.frame == at.frames[0]
    blind = judge(
        dataclasses.replace(given, stacks=(Stacks(at=0, reason="", stacks=(), problem="no py-spy"),))
    )
    assert "no py-spy" in blind.sentence


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (None, "it left no exit code"),
        (0, "success"),
        (1, "failure"),
        (7, "failure, by the script's own code"),
        (126, "the command can't be executed"),
        (127, "the command was not found"),
        (137, "SIGKILL: killed at once, by the kernel or by somebody"),
        (-9, "SIGKILL: killed at once, by the kernel or by somebody"),
        (139, "SIGSEGV: segmentation fault, in native code"),
        (-11, "SIGSEGV: segmentation fault, in native code"),
        (134, "SIGABRT: native code gave up: a failed assertion, or an uncaught C++ exception"),
        (135, "SIGBUS: bus error: memory that a file or /dev/shm should have held isn't there"),
        (143, "SIGTERM: asked to end"),
        (255, "exit code 255"),
    ],
)
def test_exit_codes_in_words(code: int | None, words: str) -> None:
    assert exit_words(code) == words


def test_who_sent_sigkill_where_it_is_known() -> None:
    assert exit_words(137, oom_killed=True) == "SIGKILL: by the kernel, out of memory"
    assert exit_words(137, stopped=True) == "SIGKILL: by the stop, since SIGTERM didn't end it"


@pytest.mark.parametrize(
    ("message", "advice"),
    [
        ("ModuleNotFoundError: No module named 'sklearn.svm'", "Put sklearn into requirements.txt"),
        ("KeyError: 'SM_CHANNEL_VALID'", "The job has no channel valid, its channels are train: give it one"),
        (
            "FileNotFoundError: [Errno 2] No such file: '/opt/ml/input/data/test/x'",
            "The job has no channel test",
        ),
        ("OSError: [Errno 28] No space left on device", "The disk is full (1.0 GB of 9.0 GB were free"),
        (
            "RuntimeError: DataLoader worker (pid 5) is killed by signal: Bus error.",
            "/dev/shm was probably too small",
        ),
        (
            "torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB",
            "The GPU's memory is full",
        ),
        ("OSError: [Errno 98] Address already in use", "Another process has that port"),
    ],
)
def test_advice(message: str, advice: str) -> None:
    look = {
        "disk": {"free": 1_000_000_000, "size": 9_000_000_000},
        "shm": {"used": 64_000_000, "size": 64_000_000},
    }
    given = facts(
        host(*TRACEBACK[:3], message, look=look), request={"InputDataConfig": [{"ChannelName": "train"}]}
    )
    assert any(advice in each for each in judge(given).advice), judge(given).advice


def test_a_bus_error_tells_of_dev_shm() -> None:
    verdict = judge(facts(host(script=-7, look={"shm": {"used": 64_000_000, "size": 67_000_000}})))
    assert any("it held 64.0 MB of 67.0 MB" in each and "shm_size" in each for each in verdict.advice)


def test_frames_that_nobody_can_read_are_not_told() -> None:
    lines = [
        "Traceback (most recent call last):",
        '  File "/opt/ml/code/train.py", line 2, in <module>',
        "    print(os.environ['SM_CHANNEL_TRAINING'])",
        '  File "<frozen os>", line 679, in __getitem__',
        "KeyError: 'SM_CHANNEL_TRAINING'",
    ]
    verdict = judge(facts(host(*lines)))
    assert verdict.sentence == "train.py:2 raised KeyError: 'SM_CHANNEL_TRAINING'"
    assert verdict.advice[0].startswith("The job has no channel training, it has none: give it one")


TOOLKITS = [
    "Traceback (most recent call last):",
    '  File "/usr/lib/python3/site-packages/sagemaker_training/trainer.py", line 70, in _write_output',
    "    with open(path, 'w') as file:",
    "OSError: [Errno 28] No space left on device",
]


def test_the_toolkit_s_own_exception_counts_only_where_the_script_had_none() -> None:
    assert judge(facts(host(*TRACEBACK, *TOOLKITS))).sentence.startswith(
        "train.py:31 raised ZeroDivisionError"
    )
    assert "raised OSError: [Errno 28]" in judge(facts(host(*TOOLKITS))).sentence


def test_an_exception_that_did_not_end_the_script_is_not_said_to() -> None:
    told = judge(facts(host(*TRACEBACK, "go on", script=4)))
    assert told.sentence == (
        "the script ended with exit code 4, after it told of ZeroDivisionError at train.py:31: division by zero"
    )
    assert told.frame is not None
