"""Logs: what a host prints, byte for byte, and the events that are read back from it."""

from __future__ import annotations

import itertools
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness.errors import DiskError
from harness.telemetry import EVENT_BYTES, LogEvent, LogReader, LogWriter, stream_name


def written(directory: Path, *chunks: bytes, start: int = 1000) -> LogReader:
    with LogWriter(directory, "algo-1") as writer:
        for number, chunk in enumerate(chunks):
            writer.feed(chunk, start + 1000 * number)
    return LogReader(directory, "algo-1")


def messages(reader: LogReader, start: int = 0) -> list[str]:
    return [event.message for event in reader.lines(start)]


def test_stream_name() -> None:
    assert stream_name("job", "algo-2", 1700000000.9) == "job/algo-2-1700000000"  # contract: I2


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", []),
        (b"one\ntwo\n", ["one", "two"]),
        (b"\n\n", ["", ""]),
        (b"no newline", ["no newline"]),
        # contract: I4
        (b"a\tb\r\n\x1b[31mred\n", ["a#011b#015", "#033[31mred"]),
        (b"10%\r20%\r30%\n", ["10%#01520%#01530%"]),
        (b"nul\x00del\x7f\n", ["nul#000del#177"]),
        ("C1 \x9b2J\n".encode(), ["C1 #2332J"]),
        ("é 漢 🙂\n".encode(), ["é 漢 🙂"]),
        (b"\xff\xfe bin\xc3\n", ["�� bin�"]),
    ],
)
def test_one_event_per_line(tmp_path: Path, data: bytes, expected: list[str]) -> None:
    assert messages(written(tmp_path, data)) == expected


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_events_do_not_depend_on_the_chunks(tmp_path: Path, size: int) -> None:
    data = "é one\ntwo\n\nthree 🙂\nlast".encode()
    reader = written(tmp_path, *(data[at : at + size] for at in range(0, len(data), size)))
    assert (tmp_path / "algo-1.log").read_bytes() == data
    assert messages(reader) == ["é one", "two", "", "three 🙂", "last"]


def test_a_long_line_is_split(tmp_path: Path) -> None:  # contract: I20
    reader = written(tmp_path, b"x" * EVENT_BYTES + b"\n" + b"y" * (2 * EVENT_BYTES + 5) + b"\nend\n")
    assert [len(message) for message in messages(reader)] == [EVENT_BYTES, EVENT_BYTES, EVENT_BYTES, 5, 3]


def test_a_split_keeps_characters_whole(tmp_path: Path) -> None:
    reader = written(tmp_path, b"x" + "é".encode() * EVENT_BYTES + b"\n")
    assert "".join(messages(reader)) == "x" + "é" * EVENT_BYTES
    assert max(len(message.encode()) for message in messages(reader)) <= EVENT_BYTES


def test_a_hundred_megabytes_on_one_line(tmp_path: Path) -> None:
    with LogWriter(tmp_path, "algo-1") as writer:
        for _ in range(100):
            writer.feed(b"z" * (1 << 20), 1000)
    assert sum(len(event.message) for event in LogReader(tmp_path, "algo-1").lines()) == 100 << 20


def test_tokens_go_on_where_reading_ended(tmp_path: Path) -> None:
    reader = written(tmp_path, b"one\ntwo\nthree\npart")
    first, token = reader.read(limit=2)
    assert [event.message for event in first] == ["one", "two"]
    rest, token = reader.read(token)
    assert [event.message for event in rest] == ["three"]
    assert reader.read(token) == ([], token)
    with LogWriter(tmp_path, "algo-1") as writer:
        writer.feed(b"ial\n", 2000)
    rest, token = reader.read(token)
    assert [event.message for event in rest] == ["partial"]
    assert token == reader.size
    assert first[1] == LogEvent(timestamp_ms=1000, message="two", offset=4, end=8)


def test_each_line_has_the_time_of_its_newline(tmp_path: Path) -> None:
    reader = written(tmp_path, b"one\ntw", b"o\nthree\n", b"four\n")
    assert [event.timestamp_ms for event in reader.lines()] == [1000, 2000, 2000, 3000]


def test_a_clock_set_back_does_not_disorder_the_log(tmp_path: Path) -> None:
    with LogWriter(tmp_path, "algo-1") as writer:
        for at in (5000, 1000, 6000):
            writer.feed(b"line\n", at)
    assert [event.timestamp_ms for event in LogReader(tmp_path, "algo-1").lines()] == [5000, 5000, 6000]


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (None, None, ["1", "2", "3", "4"]),
        (2000, None, ["2", "3", "4"]),
        (1500, 3000, ["2"]),
        (9000, None, []),
        (None, 2000, ["1"]),
    ],
)
def test_time_range(tmp_path: Path, start: int | None, end: int | None, expected: list[str]) -> None:
    reader = written(tmp_path, b"1\n2", b"\n", b"3\n", b"4\n")
    assert [event.message for event in reader.lines(start_ms=start, end_ms=end)] == expected


@pytest.mark.parametrize("count", [0, 1, 2, 3, 50, 4000, 9999])
@pytest.mark.parametrize("last", [b"", b"unterminated"])
def test_tail(tmp_path: Path, count: int, last: bytes) -> None:
    lines = [b"%06d " % number + b"." * 300 for number in range(5000)]
    reader = written(tmp_path, b"\n".join(lines) + b"\n" + last)
    every = [line.decode() for line in (*lines, last) if line]
    assert messages(reader, reader.tail(count)) == (every[-count:] if count else [])


def test_tail_of_a_huge_log_reads_its_end_only(tmp_path: Path) -> None:
    with (tmp_path / "algo-1.log").open("wb") as file:
        file.truncate(10 << 30)
        file.seek(0, os.SEEK_END)
        file.write(b"\n" + b"line\n" * 100)
    reader = LogReader(tmp_path, "algo-1")
    began = time.monotonic()
    assert messages(reader, reader.tail(100)) == ["line"] * 100
    assert time.monotonic() - began < 1


def test_read_back(tmp_path: Path) -> None:
    reader = written(tmp_path, b"".join(b"%d\n" % number for number in range(10)))
    last, token = reader.read_back(reader.size, limit=3)
    assert [event.message for event in last] == ["7", "8", "9"]
    before, token = reader.read_back(token, limit=6)
    assert [event.message for event in before] == ["1", "2", "3", "4", "5", "6"]
    first, token = reader.read_back(token, limit=6)
    assert [event.message for event in first] == ["0"]
    assert reader.read_back(token) == ([], 0)


def test_a_log_that_is_not_there_reads_as_empty(tmp_path: Path) -> None:
    reader = LogReader(tmp_path / "nowhere", "algo-1")
    assert (reader.size, reader.tail(5), list(reader.lines())) == (0, 0, [])


def test_without_an_index_lines_have_the_files_time(tmp_path: Path) -> None:
    reader = written(tmp_path, b"one\n")
    (tmp_path / "algo-1.idx").unlink()
    os.utime(tmp_path / "algo-1.log", (77, 77))
    assert [event.timestamp_ms for event in LogReader(tmp_path, "algo-1").lines()] == [77_000]
    reader.close()


def test_follow(tmp_path: Path) -> None:
    writer = LogWriter(tmp_path, "algo-1")
    running = True

    def write() -> None:
        nonlocal running
        for number in range(50):
            writer.feed(b"line %d\npart" % number, number)
            time.sleep(0.002)
            writer.feed(b"ial\n", number)
        writer.feed(b"last words", 99)
        running = False

    thread = threading.Thread(target=write)
    thread.start()
    seen = [
        event.message for event in LogReader(tmp_path, "algo-1").lines(follow=lambda: running, poll=0.001)
    ]
    thread.join()
    writer.close()
    expected = itertools.chain.from_iterable((f"line {number}", "partial") for number in range(50))
    assert seen == [*expected, "last words"]


_WRITER = """
import itertools, sys, time
from pathlib import Path
from harness.telemetry import LogWriter
writer = LogWriter(Path(sys.argv[1]), "algo-1")
data = b"".join(b"%d\\n" % number for number in range(300000))
for at in itertools.count(writer.size, 37):
    writer.feed(data[at:at + 37], int(time.time() * 1000))
"""


def test_kill_9_loses_and_doubles_nothing(tmp_path: Path) -> None:
    size = 0
    for _ in range(4):
        process = subprocess.Popen([sys.executable, "-c", _WRITER, str(tmp_path)])
        log = tmp_path / "algo-1.log"
        while not log.exists() or log.stat().st_size <= size + 1000:
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        size = log.stat().st_size
        with (tmp_path / "algo-1.idx").open("ab") as index:
            index.write(b"torn")
    data = b"".join(b"%d\n" % number for number in range(300000))
    assert log.read_bytes() == data[:size]
    events = list(LogReader(tmp_path, "algo-1").lines())
    assert [event.message for event in events][:-1] == [str(number) for number in range(len(events) - 1)]
    assert all(abs(event.timestamp_ms / 1000 - time.time()) < 60 for event in events)


@contextmanager
def full_after(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_is_told_and_outlived(tmp_path: Path) -> None:
    data = b"".join(b"line %d\n" % number for number in range(3000))
    writer = LogWriter(tmp_path, "algo-1")
    with full_after(5000):
        for at in range(0, 20_000, 1000):
            if at < 5000:
                writer.feed(data[at : at + 1000], at)
            else:
                with pytest.raises(DiskError, match="can't be written"):
                    writer.feed(data[at : at + 1000], at)
        assert writer.size == 5000
    writer.feed(data[20_000:], 99_000)
    writer.close()
    assert (tmp_path / "algo-1.log").read_bytes() == data
    assert writer.lost == 0


def test_a_disk_that_stays_full_cuts_the_log(tmp_path: Path) -> None:
    writer = LogWriter(tmp_path, "algo-1")
    with full_after(5000):
        with pytest.raises(DiskError):
            writer.feed(b"x" * 6000, 1)
        with pytest.raises(DiskError):
            writer.feed(b"x" * (17 << 20), 2)
        writer.feed(b"x" * 10, 3)
        writer.close()
    assert writer.size == (tmp_path / "algo-1.log").stat().st_size == 5000
    assert writer.lost == 1000 + (17 << 20) + 10


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DiskError, match="make its directory writable"):
        LogWriter(tmp_path / "file" / "logs", "algo-1")


@pytest.mark.parametrize(("data", "rest"), [(b"", b""), (b"a\n", b""), (b"a\nbc", b"bc"), (b"bc", b"bc")])
def test_unterminated(tmp_path: Path, data: bytes, rest: bytes) -> None:
    with LogWriter(tmp_path, "algo-1") as writer:
        writer.feed(data, 1)
        assert writer.unterminated() == rest
