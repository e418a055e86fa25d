"""Metric definitions evaluated on log lines, and samples of hosts."""

from __future__ import annotations

import random
import re
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.errors import ValidationError
from harness.model import ExitStatus, Gpu, Usage
from harness.telemetry import EVENT_BYTES, MetricScanner, Sampler, _pattern

SEED_LINE = (
    b"Epoch : [2][6/10] Train_Time = 0.355 : (3.134) , Train_Speed = 721.1 : (81.7) , "
    b"Train_Loss = 1.0868 : (1.3512) , Train_Prec@1 = 76.250 : (68.958)\n"
)


def scanner(*patterns: str) -> MetricScanner:
    return MetricScanner([{"Name": f"m{number}", "Regex": each} for number, each in enumerate(patterns)])


def values(pattern: str, *chunks: bytes) -> list[float]:
    scan = scanner(pattern)
    points = [point for chunk in chunks for point in scan.feed("algo-1", chunk, 5)] + scan.finish(6)
    return [point.value for point in points]


@pytest.mark.parametrize(
    ("pattern", "data", "expected"),
    [
        # contract: I7: the documented examples, and the seed's
        ("Train_Loss = (.*?) :", SEED_LINE, [1.0868]),
        ("Train_Prec@1 = (.*?) :", SEED_LINE, [76.25]),
        ("Train_error=(.*?);", b"epoch 1: Train_error=0.138318;  Valid_error=0.3\n", [0.138318]),
        (r"loss=([0-9.]+)", b"loss=1\nnothing\nloss=2.5 loss=3\n", [1, 2.5]),  # contract: I9: one per line
        (r"loss: ([-+]?[0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?)", b"loss: 1e-05\nloss: -2\n", [1e-05, -2]),
        (r"loss: ([0-9\.]+)", b"loss: 1e-05\n", [1]),  # contract: I8
        # contract: I9: search, not match; line by line; anchors are the line's
        (r"^loss=(\d)$", b"loss=1\n loss=2\nloss=3 \nloss=4\n", [1, 4]),
        (r"\Aloss=(\d)\Z", b"loss=1\nxloss=2\nloss=4\n", [1, 4]),
        (r"loss=([^,]+)", b"loss=1\n,loss=2,\n", [1, 2]),
        (r"a\s*=\s*(\d)", b"a\n=\n1\na = 2\n", [2]),
        (r"a\n(\d)", b"a\n1\n", []),
        (r"(?s)a.(\d)", b"a\n1\na 2\n", [2]),
        (r"(?i)LOSS (\d)", b"loss 1\nLoss 2\n", [1, 2]),
        (r"(?P<kind>x|y)=(\d)", b"x=1\n", []),  # contract: I9: the first group is not the number
        (r"(\d)(?=%)", b"5 6%\n", [6]),
        (r"\[(\d+)\]\{e\}", b"[7]{e}\n", [7]),
        (r"v{e}=(\d)", b"v{e}=1\nve=2\nv=3\n", [1]),
        (r"[[:alpha:]]=(\d)", b"a]=1\nb=2\n", [1]),
        # contract: I8: no number, no metric
        (r"loss=(\S+)", b"loss=abc\nloss=nan\nloss=inf\nloss=-Infinity\nloss=3\n", [3]),
        (r"x(\d)?", b"x\nx1\n", [1]),
        # contract: I4: a progress bar is one line
        (r"loss=(\d+)", b"\rloss=1\rloss=2\rloss=3\nloss=4\n", [1, 4]),
        (r"loss=(\d+)", b"\xff\xfe loss=5 \x00\n", [5]),
        ("é=(\\d)", "é=1\n".encode(), [1]),
        (r"loss=(\d+)", b"loss=1\r\nloss=2\r\n", [1, 2]),
        # contract: H12: a launcher's prefix is just text
        (r"loss=(\d+)", b"[1,mpirank:0,algo-1]<stdout>:loss=8\n", [8]),
        (r"loss=(\d+)", b"loss=9", [9]),
    ],
)
def test_values(pattern: str, data: bytes, expected: list[float]) -> None:
    assert values(pattern, data) == expected
    # However the bytes come, the lines are the same.
    for size in (1, 3, 7):
        assert values(pattern, *(data[at : at + size] for at in range(0, len(data), size))) == expected


def test_points_have_host_and_time() -> None:
    scan = scanner(r"loss=(\d+)")
    assert scan.feed("algo-1", b"loss=1", 10) == []
    assert scan.feed("algo-2", b"loss=2\nlo", 20)[0].host == "algo-2"
    (point,) = scan.feed("algo-1", b"0\n", 30)
    assert (point.name, point.value, point.timestamp_ms, point.host) == ("m0", 10, 30, "algo-1")
    assert scan.feed("algo-2", b"ss=3\n", 40)[0].value == 3


def test_lines_longer_than_an_event_are_searched_in_pieces() -> None:  # contract: I20
    scan = scanner(r"loss=(\d+)")
    found = []
    for _ in range(10):
        found += scan.feed("algo-1", b"loss=1 \r".ljust(EVENT_BYTES // 2), 1)
    assert len(found) in (4, 5)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("loss=(", "does not compile"), ("loss=[0-9]+", "has no group"), ("(?:a)b", "has no group")],
)
def test_definitions_that_cannot_work(pattern: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        scanner(pattern)


def test_problems() -> None:
    scan = scanner(
        r"never=(\d)", r"text=(\w+)", r"nan=(\S+)", r"(two)=(\d)", r"bar=(\d)", r"fine=(\d)", r"one=(\S)"
    )
    scan.feed("algo-1", b"text=abc\ntext=de\nnan=nan\ntwo=1\n\rbar=1\rbar=2\nfine=1\none=x\n", 1)
    scan.finish()
    assert scan.problems() == [
        r"metric 'm0' never matched: the log has no match of 'never=(\\d)'",
        "metric 'm1': 2 captured texts are no numbers and gave no value (the first: 'abc')",
        "metric 'm2': 1 value was NaN or infinite and dropped",
        "metric 'm3': 1 captured text is no number and gave no value (the first: 'two')",
        "metric 'm3' has 2 groups in its regex; the first is the value",
        (
            "metric 'm4' matched in a line with carriage returns (a progress bar): SageMaker sees one line "
            "there and takes its first match; print a newline to get every value"
        ),
        "metric 'm6': 1 captured text is no number and gave no value (the first: 'x')",
    ]


@pytest.mark.parametrize(
    "pattern",
    [r"(a+)+$", r"(a|aa)*!(c)", r"x(.*)(.*)(.*)(.*)[yz]", r"(?:a?){30}a{30}(b)", r"(.*a){20}b"],
)
def test_catastrophic_regexes_are_bounded(pattern: str) -> None:
    scan = scanner(pattern, r"loss=(\d)")
    line = b"x" + b"a" * 400 + b"!loss=7\n"
    began = time.monotonic()
    points = [point for _ in range(50) for point in scan.feed("algo-1", line * 60, 1)]
    assert time.monotonic() - began < 4
    assert [point.value for point in points if point.name == "m1"] == [7] * 3000
    assert any("was switched off" in problem for problem in scan.problems())


def test_cheap_patterns_are_bounded_in_long_lines() -> None:
    scan = scanner("Train_Loss = (.*?) ;")
    line = b"Train_Loss = " * 20_000
    began = time.monotonic()
    scan.feed("algo-1", line + b"\n", 1)
    assert time.monotonic() - began < 2
    assert any("too long" in problem for problem in scan.problems())


_ATOMS = (
    *("a", "b", "A", "=", "1", r"\.", ".", "[^a]", "[^,b]", "[ab]", r"\d", r"\D", r"\s", r"\S", r"\w", r"\W"),
    *("[0-9]+", r"[\s,]", r"[^\s]", r"\b", r"\B", "^", "$", r"\A", r"\Z", r"\n", "[[:alpha:]]", "{e}"),
    *("x{e<=1}", "(?=a)", "(?!b)", "(?<=a)", "(?<!b)", "(a|b)", "(?i:a)", "(?:ab|ac|1)", "é", "&&", "--"),
)
_REPEATS = ("", "", "", "", "*", "+", "?", "*?", "+?", "??", "{1,2}", "{2}", "{,2}")


def _patterns(seed: int) -> Iterator[re.Pattern[str]]:
    rng = random.Random(seed)
    while True:
        parts = [rng.choice(_ATOMS) + rng.choice(_REPEATS) for _ in range(rng.randint(1, 5))]
        at = rng.randrange(len(parts))
        parts[at] = f"({parts[at]}{rng.choice(_ATOMS)})" + rng.choice(_REPEATS)
        flags = rng.choice(("", "", "", "(?i)", "(?a)", "(?s)", "(?m)", "(?x)"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                yield re.compile(flags + "".join(parts))
            except re.error:
                continue


@pytest.mark.parametrize("seed", range(4))
def test_the_same_values_as_re_search_in_each_line(seed: int) -> None:
    """Patterns made by chance, with what `regex` reads otherwise than `re` among them (contract: I10)."""
    rng = random.Random(seed)
    for number, pattern in enumerate(_patterns(seed)):
        if number == 1500:
            break
        lines = ["".join(rng.choices("aabbAB1,.= \t\ré[]:{}e-&xK", k=rng.randint(0, 10))) for _ in range(20)]
        expected = [match[1] or "" for match in map(pattern.search, lines) if match]
        scan = scanner(pattern.pattern)
        seen: list[str] = []
        scan._definitions[0]._numbers = lambda texts, seen=seen: seen.extend(texts) or []  # type: ignore[method-assign,misc]
        scan.feed("algo-1", "".join(line + "\n" for line in lines).encode(), 1)
        assert seen == expected, pattern.pattern


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("Train_Loss = (.*?) :", {"Train_Loss = "}),
        (r"(?:loss|accuracy): (\d+)", {"loss", "accuracy"}),
        (r"(loss)?x(\d)", {"x"}),
        (r"(?:loss=)+(\d)", {"loss="}),
        (r"(?i)loss=(\d)", set()),
        (r"(?i:loss)=(\d)", {"="}),
        (r"(\d+)", set()),
        (r"(?:loss|)(\d+)", set()),
        (r"(?!loss)(\d+)", set()),
    ],
)
def test_texts_that_a_matching_line_must_have(pattern: str, expected: set[str]) -> None:
    assert set(_pattern.literals(_pattern.parse(pattern))) == expected


@pytest.mark.parametrize(
    ("pattern", "cheap"),
    [
        ("loss = (.*?) :", True),
        (r"x=(\d+)", True),
        (r"(.*) x", False),
        (r"x(a+)+", False),
        (r"x(.*)(.*)y", False),
    ],
)
def test_cheap(pattern: str, cheap: bool) -> None:
    assert _pattern.is_cheap(_pattern.parse(pattern)) == cheap


class Worker:
    """A host whose usage is what the test says."""

    name = "algo-1"

    def __init__(self, *usages: Usage | None) -> None:
        self._usages = list(usages)

    def usage(self) -> Usage | None:
        return self._usages.pop(0)

    def output(self, skip: int = 0) -> Iterator[bytes]:
        raise AssertionError(skip)

    def wait(self, timeout: float | None = None) -> ExitStatus | None:
        raise AssertionError(timeout)

    def signal(self, number: int) -> None:
        raise AssertionError(number)

    def kill(self) -> None:
        raise AssertionError


def test_samples_have_cloudwatchs_names_and_units(tmp_path: Path) -> None:  # contract: I14, I15
    sampler = Sampler({"algo-1": tmp_path}, {})
    host = Worker(
        Usage(cpu_seconds=10, memory_bytes=1 << 30, memory_limit_bytes=4 << 30),
        Usage(cpu_seconds=10.4, memory_bytes=2 << 30, memory_limit_bytes=4 << 30),
    )
    first = {point.name: point.value for point in sampler.sample(host, 1)}
    assert set(first) == {"MemoryUtilization", "DiskUtilization"}
    time.sleep(0.1)
    second = sampler.sample(host, 2)
    found = {point.name: point.value for point in second}
    assert set(found) == {"CPUUtilization", "MemoryUtilization", "DiskUtilization"}
    assert 200 < found["CPUUtilization"] <= 400
    assert (first["MemoryUtilization"], found["MemoryUtilization"]) == (25, 50)
    assert 0 < found["DiskUtilization"] <= 100
    assert {(point.host, point.timestamp_ms) for point in second} == {("algo-1", 2)}


def test_a_host_that_cannot_be_told_or_has_no_gpu_library_gives_what_is_left(tmp_path: Path) -> None:
    gpu = Gpu(index=0, uuid="GPU-none", name="none", memory_bytes=1)
    sampler = Sampler({"algo-1": tmp_path / "gone"}, {"algo-1": [gpu]})
    assert sampler.sample(Worker(None)) == []
    sampler.close()


@pytest.mark.gpu
def test_gpu_samples(tmp_path: Path) -> None:  # contract: I14, I16
    import pynvml

    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    gpu = Gpu(index=0, uuid=pynvml.nvmlDeviceGetUUID(handle), name="gpu", memory_bytes=1)
    sampler = Sampler({"algo-1": tmp_path}, {"algo-1": [gpu]})
    found = {point.name: point.value for point in sampler.sample(Worker(None))}
    assert 0 < found["GPUMemoryUtilization"] <= 100
    assert 0 <= found["GPUUtilization"] <= 100
    sampler.close()
    pynvml.nvmlShutdown()
