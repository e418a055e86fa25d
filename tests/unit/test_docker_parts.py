"""The docker engine's parts that need no daemon: its stream, its journal, its meter."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from harness.engines.docker import _usage
from harness.engines.docker._journal import Journal, Rest
from harness.engines.docker._launch import _escape
from harness.engines.docker._stream import DAEMON, HEADER, STDERR, STDOUT, Demultiplexer, Piece


def frames(*pieces: Piece) -> bytes:
    return b"".join(HEADER.pack(stream, len(data)) + data for stream, data in pieces)


def of(pieces: list[Piece], stream: int) -> bytes:
    return b"".join(data for number, data in pieces if number == stream)


@pytest.mark.parametrize("size", [1, 2, 7, 8, 9, 100, 10**6])
def test_frames_may_be_cut_anywhere(size: int) -> None:
    sent = [
        (STDOUT, b"a" * 5),
        (STDERR, b""),
        (STDERR, bytes(range(256))),
        (STDOUT, b"b"),
        (STDOUT, b"c" * 999),
    ]
    wire, demultiplexer = frames(*sent), Demultiplexer()

    got = [piece for at in range(0, len(wire), size) for piece in demultiplexer.feed(wire[at : at + size])]

    assert b"".join(data for _, data in got) == b"".join(data for _, data in sent)
    assert of(got, STDERR) == bytes(range(256))


def test_payload_is_not_held_back_until_its_frame_is_whole() -> None:
    demultiplexer = Demultiplexer()

    assert demultiplexer.feed(frames((STDOUT, b"x" * 1000))[:18]) == [(STDOUT, b"x" * 10)]


def test_neighbours_of_one_stream_are_joined_and_the_daemon_s_words_kept_apart() -> None:
    wire = frames((STDOUT, b"a"), (STDOUT, b"b"), (STDERR, b"c"), (DAEMON, b"broken"), (0, b"d"))

    assert Demultiplexer().feed(wire) == [
        (STDOUT, b"ab"),
        (STDERR, b"c"),
        (DAEMON, b"broken"),
        (STDOUT, b"d"),
    ]


@pytest.mark.parametrize("seed", range(20))
def test_after_a_crash_at_any_byte_another_mixture_gives_the_rest_of_both_streams(
    tmp_path: Path, seed: int
) -> None:
    draw = random.Random(seed)
    out, err = draw.randbytes(draw.randint(0, 500)), draw.randbytes(draw.randint(0, 500))

    def mixture() -> list[Piece]:
        left, pieces = {STDOUT: out, STDERR: err}, []
        while any(left.values()):
            stream = draw.choice([stream for stream in left if left[stream]])
            size = draw.randint(1, 50)
            pieces.append((stream, left[stream][:size]))
            left[stream] = left[stream][size:]
        return pieces

    told, crashes, skip = [], 3, 0
    for _ in range(crashes):
        with Journal(tmp_path / "streams", skip) as journal:
            rest, said = Rest(journal), []
            for piece in mixture():
                if new := rest.of([piece]):
                    journal.note(new)
                    said += new
        kept = draw.randint(0, sum(len(data) for _, data in said))
        skip += kept
        for stream, data in said:
            told.append((stream, data[:kept]))
            kept -= len(data[:kept])
    with Journal(tmp_path / "streams", skip) as journal:
        told += Rest(journal).of(mixture())

    assert of(told, STDOUT) == out
    assert of(told, STDERR) == err


def test_a_journal_that_is_gone_counts_from_the_start_of_the_mixture(tmp_path: Path) -> None:
    with Journal(tmp_path / "none/streams", 4) as journal:
        rest = Rest(journal)
        assert rest.of([(STDOUT, b"ab"), (STDERR, b"cdef")]) == [(STDERR, b"ef")]
        journal.note([(STDERR, b"ef")])
        assert journal.taken == {STDOUT: 2, STDERR: 4}
    with Journal(tmp_path / "none/streams", 6) as journal:
        assert (journal.taken, journal.unknown) == ({STDOUT: 2, STDERR: 4}, 0)


def test_a_journal_cut_off_in_a_note_is_still_of_use(tmp_path: Path) -> None:
    with Journal(tmp_path / "streams", 0) as journal:
        journal.note([(STDOUT, b"abc"), (STDERR, b"de")])
    path = tmp_path / "streams"
    path.write_bytes(path.read_bytes()[:-2])

    with Journal(path, 5) as journal:
        assert (journal.taken, journal.unknown) == ({STDOUT: 3, STDERR: 0}, 2)


ID = "0123456789ab" * 5 + "cdef"


def test_usage_under_the_unified_hierarchy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_usage, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(_usage, "PROCESSES", tmp_path / "proc")
    group = tmp_path / f"cgroup/system.slice/docker-{ID}.scope"
    group.mkdir(parents=True)
    (tmp_path / "proc/7").mkdir(parents=True)
    (tmp_path / "proc/7/cgroup").write_text(f"0::/system.slice/docker-{ID}.scope\n")
    (tmp_path / "proc/meminfo").write_text("MemTotal:       1000 kB\nMemFree: 1 kB\n")
    (group / "memory.current").write_text("5000\n")
    (group / "memory.max").write_text("max\n")
    (group / "memory.stat").write_text("anon 1\ninactive_file 1000\n")
    (group / "cpu.stat").write_text("usage_usec 2500000\nuser_usec 1\n")
    (group / "cgroup.procs").write_text("7\n8\n")

    usage = _usage.read_groups(_usage.find_groups(7, ID))

    assert (usage.cpu_seconds, usage.memory_bytes, usage.memory_limit_bytes) == (2.5, 4000, 1024000)
    assert usage.pids == (7, 8)


@pytest.mark.parametrize("line", [f"0::/docker/{'f' * 64}", f"0::/gone/{ID}", ""])
def test_a_process_that_is_not_the_container_s_is_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    # With the daemon on another machine the number is some other process's here.
    monkeypatch.setattr(_usage, "PROCESSES", tmp_path)
    (tmp_path / "7").mkdir()
    (tmp_path / "7/cgroup").write_text(line)

    assert _usage.find_groups(7, ID) == {}
    assert _usage.find_groups(8, ID) == {}


def test_separators_in_paths_are_escaped_for_overlayfs() -> None:
    assert _escape(Path("/a,b:c\\d")) == "/a\\,b:c\\\\d"
    assert _escape(Path("/a,b:c"), colon=True) == "/a\\,b\\:c"


def test_the_journal_of_a_second_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A supervisor that dies while it takes the journal over leaves the old one whole."""
    path = tmp_path / "streams"
    with Journal(path, 0) as journal:
        journal.note([(STDOUT, b"abc"), (STDERR, b"de")])

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", die)
        with pytest.raises(KeyboardInterrupt):
            Journal(path, 5)
    with Journal(path, 5) as journal:
        assert (journal.taken, journal.unknown) == ({STDOUT: 3, STDERR: 2}, 0)
