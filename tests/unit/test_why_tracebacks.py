"""Tracebacks in logs as they really come: whole, in turn, with prefixes, stripped, told twice."""

from __future__ import annotations

import textwrap

import pytest

from harness.telemetry import Scan, scan

PLAIN = """
    epoch 1
    Traceback (most recent call last):
      File "/opt/ml/code/train.py", line 11, in <module>
        main()
      File "/opt/ml/code/train.py", line 9, in main
        print(mean([]))
              ^^^^^^^^
      File "/opt/ml/code/lib.py", line 3, in mean
        return sum(xs) / len(xs)
               ~~~~~~~~^~~~~~~~~
    ZeroDivisionError: division by zero
"""
TOOLKIT = """
    2026-11-23 09:40:27,185 sagemaker-training-toolkit INFO     Waiting for the process to finish and give a return code.
    2026-11-23 09:40:27,185 sagemaker-training-toolkit ERROR    Reporting training FAILURE
    2026-11-23 09:40:27,185 sagemaker-training-toolkit ERROR    ExecuteUserScriptError:
    ExitCode 1
    ErrorMessage "Traceback (most recent call last):
      File "/opt/ml/code/other.py", line 1, in <module>
     ValueError: told again"
"""
TORCHRUN = """
    Traceback (most recent call last):
      File "/usr/bin/torchrun", line 8, in <module>
        sys.exit(main())
      File "/usr/lib/torch/distributed/launcher/api.py", line 245, in launch_agent
        raise ChildFailedError(
    torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
    ============================================================
    train.py FAILED
    ------------------------------------------------------------
    Failures:
    [1]:
      time      : 2026-11-23_09:40:28
      host      : algo-1
      rank      : 0 (local_rank: 0)
      exitcode  : -15 (pid: 41)
      error_file: <N/A>
    ------------------------------------------------------------
    Root Cause (first observed failure):
    [0]:
      time      : 2026-11-23_09:40:27
      host      : algo-1
      rank      : 1 (local_rank: 1)
      exitcode  : -11 (pid: 42)
      error_file: <N/A>
    ============================================================
"""


def scanned(*texts: str) -> Scan:
    return scan(line for text in texts for line in textwrap.dedent(text).strip("\n").split("\n"))


def told(found: Scan) -> list[tuple[str, str, int | None, str, int]]:
    """(type, first line of the message, rank, file and line of the last frame)"""
    return [
        (each.type, each.message.split("\n")[0], each.rank, each.frames[-1].file, each.frames[-1].line)
        for each in found.tracebacks
    ]


def test_frames_source_and_message() -> None:
    (found,) = scanned(PLAIN).tracebacks
    assert [(frame.line, frame.function, frame.source) for frame in found.frames] == [
        (11, "<module>", "main()"),
        (9, "main", "print(mean([]))"),
        (3, "mean", "return sum(xs) / len(xs)"),
    ]
    assert (found.type, found.message) == ("ZeroDivisionError", "division by zero")
    assert found.text.startswith("Traceback (most recent call last):\n  File")


def test_the_toolkits_telling_is_not_a_second_traceback() -> None:
    found = scanned(PLAIN, TOOLKIT)
    assert [each.type for each in found.tracebacks] == ["ZeroDivisionError"]
    assert found.tracebacks[0].message == "division by zero", "what follows is no part of the message"
    assert found.last_lines[-1] == "ZeroDivisionError: division by zero"


@pytest.mark.parametrize("indent", ["  ", ""])
def test_a_syntax_error_in_the_script_has_no_head(indent: str) -> None:
    """AWS's toolkit strips the first line of what it reads."""
    found = scan(
        [
            f'{indent}File "/opt/ml/code/train.py", line 3',
            "    x = = 1",
            "        ^",
            "SyntaxError: invalid syntax",
        ]
    )
    assert told(found) == [("SyntaxError", "invalid syntax", None, "/opt/ml/code/train.py", 3)]


def test_lines_that_lost_their_indentation() -> None:
    found = scanned(
        """
        Traceback (most recent call last):
        File "/opt/ml/code/train.py", line 1, in <module>
        main()
        File "/opt/ml/code/train.py", line 2, in main
            raise ValueError("no")
        ValueError: no
        """
    )
    assert told(found) == [("ValueError", "no", None, "/opt/ml/code/train.py", 2)]
    assert found.tracebacks[0].frames[0].source == "main()"


@pytest.mark.parametrize(
    ("before", "rank"),
    [("\r 42%|████      | 3/7 [00:01<00:01]", None), ("name? ", None), ("\r 42%|███[rank1]: ", 1)],
)
def test_behind_what_has_no_line_end(before: str, rank: int | None) -> None:
    """A progress bar stands in the line as long as it grows."""
    prefix = "" if rank is None else f"[rank{rank}]: "
    found = scan(
        [
            f"{before}Traceback (most recent call last):",
            f'{prefix}  File "/opt/ml/code/train.py", line 3, in <module>',
            f"{prefix}    fit()",
            f"{prefix}ValueError: no",
        ]
    )
    assert told(found) == [("ValueError", "no", rank, "/opt/ml/code/train.py", 3)]
    assert found.tracebacks[0].text.startswith("Traceback (most recent call last):\n")


def test_a_chain_is_one_traceback_told_by_its_last_exception() -> None:
    found = scanned(
        """
        Traceback (most recent call last):
          File "/opt/ml/code/train.py", line 2, in <module>
            {}["a"]
        KeyError: 'a'

        The above exception was the direct cause of the following exception:

        Traceback (most recent call last):
          File "/opt/ml/code/train.py", line 4, in <module>
            raise RuntimeError("no config") from e
        RuntimeError: no config
        """
    )
    assert told(found) == [("RuntimeError", "no config", None, "/opt/ml/code/train.py", 4)]
    assert "KeyError: 'a'" in found.tracebacks[0].text


def test_two_ranks_that_write_line_by_line_in_turn() -> None:
    def lines(number: int) -> list[str]:
        return [
            "Traceback (most recent call last):",
            f'  File "/opt/ml/code/train.py", line {number}, in <module>',
            f"    step{number}()",
            f'  File "/opt/ml/code/train.py", line {number + 1}, in step',
            f"    raise ValueError({number})",
            f"ValueError: {number}",
        ]

    found = scan(line for pair in zip(lines(10), lines(20), strict=True) for line in pair)
    assert sorted((each.type, [frame.line for frame in each.frames]) for each in found.tracebacks) == [
        ("ValueError", [10, 11]),
        ("ValueError", [20, 21]),
    ]


@pytest.mark.parametrize(
    "prefix", ["[rank{}]: ", "[1,mpirank:{},algo-1]<stderr>:", "[default{}]:"], ids=["torch", "mpi", "tee"]
)
def test_prefixes_tell_the_rank(prefix: str) -> None:
    lines = textwrap.dedent(PLAIN).strip("\n").split("\n")[1:]
    mixed = [prefix.format(rank) + line for line in lines for rank in (0, 3)]
    found = scan(mixed)
    assert [each.rank for each in found.tracebacks] == [0, 3]
    assert {tuple(frame.line for frame in each.frames) for each in found.tracebacks} == {(11, 9, 3)}


def test_torchruns_own_noise_is_told_apart_and_its_table_read() -> None:
    found = scanned(PLAIN, TORCHRUN)
    assert [each.is_launchers for each in found.tracebacks] == [False, True]
    root = found.root_cause
    assert root is not None
    assert (root.rank, root.exit_code, root.pid, root.host) == (1, -11, 42, "algo-1")


def test_the_loss_of_another_rank_is_a_consequence() -> None:
    found = scanned(
        """
        Traceback (most recent call last):
          File "/opt/ml/code/train.py", line 5, in <module>
            dist.all_reduce(t)
        RuntimeError: [../third_party/gloo/gloo/transport/tcp/pair.cc:598] Connection closed by peer [10.0.0.2]:1234
        """
    )
    assert found.tracebacks[0].is_secondary


def test_where_a_crash_was() -> None:
    found = scanned(
        """
        Fatal Python error: Segmentation fault

        Current thread 0x00007f0 (most recent call first):
          File "/usr/lib/python3.11/ctypes/__init__.py", line 5 in string_at
          File "/opt/ml/code/train.py", line 4 in f
        """
    )
    assert [(frame.file, frame.line) for frame in found.crashed][-1] == ("/opt/ml/code/train.py", 4)


def test_the_toolkits_environment_is_not_among_the_last_lines() -> None:
    found = scanned(
        """
        SM_HP_API_KEY=hunter2
        Invoking script with the following command:

        python train.py --password hunter2

        hello
        """
    )
    assert found.last_lines == ("hello",)


def test_a_flood_of_heads_takes_no_time() -> None:
    found = scan(["Traceback (most recent call last):"] * 3000 + ['  File "/a", line 3, in f'] * 3000)
    assert found.tracebacks == ()


@pytest.mark.parametrize(
    "lines",
    [
        ["Traceback (most recent call last):"],
        ['  File "x", line 1'],
        ["Error: all bad", "KeyError: 'x'"],
        ["Traceback (most recent call last):", "", "Done"],
        ["\x00\xff", "[rank1]: ", "Root Cause:", "==="],
    ],
)
def test_halves_are_no_tracebacks(lines: list[str]) -> None:
    assert scan(lines).tracebacks == ()


@pytest.mark.parametrize(
    "end",
    [
        "KeyError\n:\n'label'",
        "KeyError: \n'label'",
        "KeyError\n: 'label'",
        "KeyError:\n\n'label'",
        "KeyError: 'label'",
    ],
)
def test_a_traceback_that_came_in_pieces(end: str) -> None:
    """Without Python's buffer it is written piece by piece, and AWS's toolkit makes a line of each it reads."""
    lines = [
        "Traceback (most recent call last):",
        'File "/opt/ml/code/train.py", line 5, in <module>',
        "",
        "load()",
        "",
        'File "/opt/ml/code/train.py", line 4, in load',
        "",
        'raise KeyError("label")',
        "",
        *end.split("\n"),
        "",
        "2026-11-23 12:35:36,104 sagemaker-training-toolkit INFO     Done waiting for a return code.",
    ]
    (found,) = scan(lines).tracebacks
    assert (found.type, found.message) == ("KeyError", "'label'")
    assert [frame.source for frame in found.frames] == ["load()", 'raise KeyError("label")']
    assert found.text.endswith("KeyError: 'label'")
    assert "\n\n" not in found.text
